"""`RemoteEncoder` when the server, the network or the process fails."""

import asyncio
import gc
import json
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from m3_integrations import M3Encoder, RemoteEncoder
from m3_integrations.remote import requests
from m3_integrations.search import changed_settings, open_encoder
from tests.remote.conftest import Reply, Scripted, served
from tests.test_encoder import assert_same

pytestmark = pytest.mark.enable_socket

BUSY: Reply = (429, {"Content-Type": "application/json"}, b'{"error": {"message": "too much waits"}}')
ENDING: Reply = (503, {"Retry-After": "0.3"}, b'{"error": {"message": "this server is ending"}}')
LOST: Reply = (500, {"Content-Type": "text/plain"}, b"Internal Server Error")
"""A proxy's answer for a server that died during a request."""


@pytest.mark.parametrize("trouble", [[BUSY], [ENDING], ["reset"], [LOST], [BUSY, "reset", LOST, ENDING, BUSY]])
async def test_what_passes_is_tried_again(scripted: Scripted, local: M3Encoder, trouble: list[Any]) -> None:
    with RemoteEncoder(scripted.url) as encoder:
        wanted = local.encode(["keys"])
        scripted.script = list(trouble)
        assert_same(encoder.encode(["keys"]), wanted, 1e-5)
        scripted.script = list(trouble)
        assert_same(await encoder.aencode(["keys"]), wanted, 1e-5)
        scripted.script = list(trouble)
        assert encoder.tokenize(["keys"]) == local.tokenize(["keys"])
        assert len(scripted.asked) == 1 + 3 * (len(trouble) + 1)


def test_retry_after_is_honoured(scripted: Scripted) -> None:
    with RemoteEncoder(scripted.url) as encoder:
        scripted.script = [ENDING]
        encoder.encode(["keys"])
        (first, *_), (second, *_) = scripted.asked[-2:]
        assert second - first >= 0.3


@pytest.mark.parametrize("wait", ["3600", "Wed, 21 Oct 2099 07:28:00 GMT", "-1", "nan", "inf"])
def test_a_busy_server_is_not_waited_for_without_end(scripted: Scripted, wait: str) -> None:
    with RemoteEncoder(scripted.url, timeout_s=0.5) as encoder:
        scripted.script = [(429, {"Retry-After": wait}, BUSY[2])] * 50
        began = time.monotonic()
        with pytest.raises(
            TimeoutError, match=r"within timeout_s=0\.5 seconds \(the server was busy, 429: too much waits\)"
        ):
            encoder.encode(["keys"])
        assert time.monotonic() - began < 3


def test_a_connection_that_breaks_each_time_is_an_error(scripted: Scripted) -> None:
    with RemoteEncoder(scripted.url) as encoder:
        scripted.script = ["reset"] * 20
        with pytest.raises(ConnectionError, match="broke the connection 5 times"):
            encoder.encode(["keys"])


@pytest.mark.parametrize(
    ("reply", "tries"), [(LOST, 5), ((500, {}, b'{"error": {"message": "the server failed"}}'), 1)]
)
def test_only_a_proxys_failure_is_tried_again_and_not_for_ever(scripted: Scripted, reply: Reply, tries: int) -> None:
    with RemoteEncoder(scripted.url) as encoder:
        before = len(scripted.asked)
        scripted.script = [reply] * 20
        with pytest.raises(RuntimeError, match=r"failed \(500\): .*erver"):
            encoder.encode(["keys"])
        assert len(scripted.asked) - before == tries


async def test_a_slow_server_times_out(scripted: Scripted) -> None:
    with RemoteEncoder(scripted.url, timeout_s=0.2) as encoder:
        scripted.script = ["hang", "hang"]
        with pytest.raises(TimeoutError, match=f"{scripted.url} did not finish within"):
            encoder.encode(["keys"])
        with pytest.raises(TimeoutError, match="allow more time"):
            await encoder.aencode(["keys"])
        encoder.encode(["keys"])


def test_nothing_that_answers_says_what_to_start() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(ConnectionError, match=f"nothing answers at {url} .*m3 serve MODEL"):
            RemoteEncoder(url)
    with pytest.raises(ConnectionError, match=r"nothing answers at http://no-such-host\.invalid"):
        RemoteEncoder("http://no-such-host.invalid:8000", timeout_s=5)


def test_a_key_is_sent_and_a_wrong_one_refused(local: M3Encoder) -> None:
    with served(local, api_keys=["secret", "other"]) as url:
        with RemoteEncoder(url, api_key="other") as encoder:
            assert len(encoder.encode(["keys"])) == 1
            assert "other" not in repr(encoder)
            assert changed_settings(encoder) == {}
            with pickle.loads(pickle.dumps(encoder)) as twin:
                assert len(twin.encode(["keys"])) == 1
        for key in (None, "wrong"):
            with pytest.raises(PermissionError, match=r"does not accept the API key.*api_key="):
                RemoteEncoder(url, api_key=key)


@pytest.mark.parametrize("key", ["", "two\nlines", "schlüssel"])
def test_a_key_that_cannot_be_sent_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="api_key must be printable"):
        RemoteEncoder("http://127.0.0.1:1", api_key=key)


@pytest.mark.parametrize("url", ["localhost:8000", "", "ftp://host", "http://", "http://host/?a=b"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="url must be a server's URL"):
        RemoteEncoder(url)


def test_a_url_with_a_password_is_refused_and_not_shown() -> None:
    with pytest.raises(ValueError, match="pass api_key=") as caught:
        RemoteEncoder("http://me:hidden@host")
    assert "hidden" not in str(caught.value)
    with pytest.raises(TypeError, match="url must be a string"):
        RemoteEncoder(None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="timeout_s must be greater than 0"):
        RemoteEncoder("http://host", timeout_s=0)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((200, {"Content-Type": "text/html"}, b"<html>Welcome"), "not an m3 serve: its answer begins '<html>Welcome'"),
        ((404, {}, b'{"status": {"error": "Not found"}}'), "not an m3 serve: /v1/encoder returns 404"),
        ((301, {"Location": "http://else.where/"}, b""), "returns 301, and redirects to http://else.where/"),
        ((200, {}, b'{"title": "qdrant", "version": "1.17"}'), "not an m3 serve"),
        ((200, {}, b"[1]"), "not an m3 serve"),
        (
            (200, {}, b'{"api": 2, "version": "9.0"}'),
            r"has version 2 .*9\.0\), and this package has version 1: upgrade",
        ),
        ((200, {}, b'{"api": 1, "model": "m"}'), "cannot be read"),
        ((200, {}, b"x" * (2 << 20)), "more than 1,048,576 bytes"),
        ((200, {"Content-Encoding": "gzip"}, b"no gzip"), "in the encoding gzip"),
    ],
)
def test_what_is_no_server_of_ours_is_refused(scripted: Scripted, reply: Reply, message: str) -> None:
    scripted.script = [reply]
    with pytest.raises(ValueError, match=message):
        RemoteEncoder(scripted.url)


def answer(encoder: RemoteEncoder, *, metadata: dict[str, str] | None = None, **changed: Any) -> Reply:
    """The vectors of one text, with some tensors replaced."""
    tensors = {
        "dense": np.zeros((1, encoder.dim), np.float32),
        "lexical.offsets": np.array([0, 1]),
        "lexical.indices": np.zeros(1, np.int32),
        "lexical.values": np.ones(1, np.float32),
        "multi_vector.offsets": np.array([0, 2]),
        "multi_vector.flat": np.zeros((2, 64), np.float32),
    } | {name.replace("_of_", "."): array for name, array in changed.items()}
    body = save(
        {n: a for n, a in tensors.items() if a is not None}, {"truncated": "0"} if metadata is None else metadata
    )
    return 200, {"X-M3-Fingerprint": encoder.fingerprint}, body


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dense": None}, "no dense"),
        ({"dense": np.zeros((2, 64), np.float32)}, r"dense of shape \(2, 64\)"),
        ({"dense": np.zeros((1, 64), np.float16)}, "type float16"),
        ({"dense": np.zeros(64, np.float32)}, r"shape \(64,\)"),
        ({"lexical_of_offsets": np.array([0, 2])}, "lexical weights that do not fit together"),
        ({"lexical_of_indices": np.zeros(2, np.int32)}, "2 token ids for 1 weights"),
        ({"lexical_of_indices": np.zeros(1, np.int64)}, "type int64"),
        ({"multi_vector_of_offsets": np.array([1, 2])}, "multi-vectors that do not fit together"),
        ({"multi_vector_of_flat": np.zeros((2, 63), np.float32)}, "not \\(-1, 64\\)"),
        ({"sparse": np.zeros(1)}, "sparse, which was not requested"),
        ({"metadata": {}}, "no vectors"),
    ],
)
def test_vectors_of_another_shape_are_refused(scripted: Scripted, changed: dict[str, Any], message: str) -> None:
    with RemoteEncoder(scripted.url) as encoder:
        scripted.script = [answer(encoder)]
        assert encoder.encode(["keys"]).dense.shape == (1, 64)  # the unchanged answer is accepted
        scripted.script = [answer(encoder, **changed)]
        with pytest.raises(ValueError, match=message):
            encoder.encode(["keys"])


@pytest.mark.parametrize("body", [b"", b"garbage", b"\xff" * 40, b"\x08\0\0\0\0\0\0\0{}      "])
async def test_garbage_is_refused(scripted: Scripted, body: bytes) -> None:
    with RemoteEncoder(scripted.url) as encoder:
        garbage: Reply = (200, {"X-M3-Fingerprint": encoder.fingerprint}, body)
        scripted.script = [garbage] * 4
        with pytest.raises(ValueError, match=f"{scripted.url} sent a wrong answer: the answer holds no vectors"):
            encoder.encode(["keys"])
        with pytest.raises(ValueError, match="no vectors"):
            await encoder.aencode(["keys"])
        with pytest.raises(ValueError, match="no tokens"):
            encoder.tokenize(["keys"])
        with pytest.raises(ValueError, match="does not hold combined scores"):
            encoder.score("keys", ["keys"])


@pytest.mark.parametrize("tokens", [None, [], [["a"], ["b"]], ["a"], [[1]]])
def test_other_tokens_than_asked_for_are_refused(scripted: Scripted, tokens: Any) -> None:
    with RemoteEncoder(scripted.url) as encoder:
        scripted.script = [(200, {}, json.dumps({"tokens": tokens}).encode())]
        with pytest.raises(ValueError, match="does not hold the tokens of 1 texts"):
            encoder.tokenize(["keys"])


@pytest.mark.parametrize("combined", [None, [], [1, 2], ["a"], [float("nan")], [[1]]])
def test_other_scores_than_asked_for_are_refused(scripted: Scripted, combined: Any) -> None:
    with RemoteEncoder(scripted.url) as encoder:
        scripted.script = [(200, {}, json.dumps({"combined": combined}).encode())]
        with pytest.raises(ValueError, match=r"does not hold (1 finite )?combined scores"):
            encoder.score("keys", ["keys"])


@pytest.mark.parametrize("rows", [None, 1, [1], [-1], ["a"], [0.5]])
def test_other_rows_of_cut_texts_than_there_are_are_refused(scripted: Scripted, rows: Any) -> None:
    scores = {name: [1.0] for name in ("combined", "dense", "lexical", "multi_vector")}
    with RemoteEncoder(scripted.url) as encoder:
        scripted.script = [(200, {}, json.dumps(scores | {"truncated_queries": [], "truncated_texts": rows}).encode())]
        with pytest.raises(ValueError, match="does not hold truncated_texts of 1 pairs"):
            encoder.score("keys", ["keys"])


def test_another_model_at_the_same_url_is_refused(scripted: Scripted) -> None:
    with RemoteEncoder(scripted.url) as encoder:
        status, headers, body = answer(encoder)
        for fingerprint, message in (("0" * 32, "now has the model 0+;.*open another"), ("", "now has the model ;")):
            scripted.script = [(status, headers | {"X-M3-Fingerprint": fingerprint}, body)]
            with pytest.raises(ValueError, match=message):
                encoder.encode(["keys"])
        scripted.script = [(status, {}, body)]
        with pytest.raises(ValueError, match="does not state the model"):
            encoder.encode(["keys"])


@pytest.mark.parametrize(
    "call",
    [
        lambda remote: remote.encode(["keys"]),
        lambda remote: remote.score("keys", ["keys"]),
        lambda remote: remote.score_pairs([("keys", "keys")]),
        lambda remote: remote.tokenize(["keys"]),
        lambda remote: remote.token_spans(["keys"]),
        lambda remote: remote.vocabulary[0],
        lambda remote: remote._tokenizer._fetch(),
    ],
)
def test_no_call_uses_the_answer_of_another_model(remote: RemoteEncoder, call: Any) -> None:
    remote._about = replace(remote._about, fingerprint="0" * 32)  # as if the server had another model at the opening
    with pytest.raises(ValueError, match=r"now has the model .* when this encoder was opened.*open another"):
        call(remote)


def test_an_older_server_that_names_its_model_only_for_vectors_is_accepted(scripted: Scripted) -> None:
    with RemoteEncoder(scripted.url) as encoder:
        scripted.script = [(200, {}, b'{"tokens": [["a", "[SEP]"]]}')]
        assert encoder.tokenize(["a"]) == [["a", "[SEP]"]]


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        (422, ValueError, "refused the request.*: it is wrong"),
        (413, ValueError, "it is wrong"),
        (500, RuntimeError, "failed.*: it is wrong"),
        (504, TimeoutError, "the server's time limit: it is wrong"),
        (408, TimeoutError, "the server's time limit: it is wrong"),
        (403, PermissionError, "API key"),
        (404, ValueError, "not an m3 serve: /v1/encode returns 404"),
    ],
)
async def test_an_error_says_what_the_server_said(
    scripted: Scripted, status: int, error: type[Exception], message: str
) -> None:
    with RemoteEncoder(scripted.url) as encoder:
        reply: Reply = (status, {}, b'{"error": {"message": "it is wrong"}}')
        scripted.script = [reply, reply]
        with pytest.raises(error, match=message):
            encoder.encode(["keys"])
        with pytest.raises(error, match=message):
            await encoder.aencode(["keys"])


def test_a_call_is_cut_into_requests_that_the_server_accepts(scripted: Scripted, local: M3Encoder) -> None:
    """The server takes 8 texts, and bodies of 20,000 bytes."""
    texts = [*(f"text {i}" for i in range(20)), *("ä" * 4000 for _ in range(5)), '"\n\x01' * 900]
    with RemoteEncoder(scripted.url) as encoder:
        with pytest.warns(UserWarning, match="6 of 26"):
            found = encoder.encode(texts, modes=("dense",))
        with pytest.warns(UserWarning, match="6 of 26"):
            wanted = local.encode(texts, modes=("dense",))
        np.testing.assert_allclose(found.dense, wanted.dense, atol=1e-5)
        sent = [asked[2]["texts"] for asked in scripted.asked[1:]]
        assert sorted(text for part in sent for text in part) == sorted(texts)
        assert max(map(len, sent)) == 8
        with pytest.raises(ValueError, match=r"text at position 20 has 30,\d+ bytes.* accepts requests of 20,000"):
            encoder.encode(["short"] * 20 + ["a" * 30_000])
        with pytest.raises(ValueError, match=r"text at position 1 has 30,\d+ bytes"):
            encoder.score("short", ["short", "a" * 30_000])


async def test_batches_are_read_no_further_than_a_few_requests_ahead(remote: RemoteEncoder) -> None:
    taken = 0

    def stream() -> Any:
        nonlocal taken
        while True:
            taken += 1
            yield f"text {taken}"

    batches = remote.encode_batches(stream(), modes=("dense",))
    for _ in range(20):
        assert len(next(batches)) == 8
    assert taken <= 8 * (20 + requests._UNDER_WAY) + 1
    batches.close()  # type: ignore[attr-defined]


def test_an_error_in_a_stream_comes_after_the_vectors_before_it(remote: RemoteEncoder) -> None:
    def stream() -> Any:
        yield from (f"text {i}" for i in range(17))
        raise OSError("the disk is gone")

    found: list[int] = []
    with pytest.raises(OSError, match="the disk is gone"):
        found.extend(len(vectors) for vectors in remote.encode_batches(stream()))
    assert found == [8, 8]


def test_a_slow_server_has_one_request_of_a_call_at_a_time(scripted: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "_SLOW_S", 0.0)
    with RemoteEncoder(scripted.url) as encoder:
        batches = encoder.encode_batches([f"text {i}" for i in range(80)])
        next(batches)
        next(batches)
        assert len(scripted.asked) == 1 + 2
        list(batches)


async def test_a_cancelled_task_takes_its_request_along(scripted: Scripted) -> None:
    with RemoteEncoder(scripted.url) as encoder:
        scripted.script = ["hang"]
        task = asyncio.create_task(encoder.aencode(["keys"]))
        while len(scripted.asked) < 2:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(await encoder.aencode(["keys"])) == 1


def test_closing_ends_what_is_under_way(scripted: Scripted) -> None:
    encoder = RemoteEncoder(scripted.url)
    scripted.script = ["hang"]
    errors: list[BaseException] = []

    def call() -> None:
        try:
            encoder.encode(["keys"])
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    while len(scripted.asked) < 2:
        time.sleep(0.01)
    encoder.close()
    thread.join(5)
    assert [str(error) for error in errors] == ["this encoder was closed: open another with RemoteEncoder(...)"]


def test_a_forgotten_encoder_leaves_no_thread(url: str) -> None:
    before = threading.active_count()
    encoder = RemoteEncoder(url)
    assert threading.active_count() > before
    del encoder
    gc.collect()
    deadline = time.monotonic() + 5
    while any(thread.name == "m3-remote" for thread in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not [thread for thread in threading.enumerate() if thread.name == "m3-remote"]


def test_many_threads_and_event_loops_share_an_encoder(remote: RemoteEncoder, local: M3Encoder) -> None:
    texts = [f"text {i} of a thread" for i in range(24)]
    wanted = local.encode(texts).dense
    found: list[Any] = [None] * len(texts)

    def call(i: int) -> None:
        if i % 2:
            found[i] = remote.encode([texts[i]]).dense[0]
        else:
            found[i] = asyncio.run(remote.aencode([texts[i]])).dense[0]

    threads = [threading.Thread(target=call, args=(i,)) for i in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_allclose(np.array(found), wanted, atol=1e-5)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_it_works_in_a_forked_child_and_then_in_the_parent(url: str) -> None:
    """Run in a new process without a network, whose threads would not survive the fork."""
    program = f"""
import gc, os, sys
from m3_integrations import RemoteEncoder
encoder = RemoteEncoder({url!r})
wanted = encoder.encode(["keys"]).dense
for _ in range(3):
    child = os.fork()
    if child == 0:
        same = (encoder.encode(["keys"]).dense == wanted).all()
        del encoder
        gc.collect()
        sys.exit(0 if same else 3)
    assert os.waitpid(child, 0)[1] == 0
    assert (encoder.encode(["keys"]).dense == wanted).all()
assert not {{"torch", "transformers"}} & set(sys.modules)
"""
    result = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("kind", ["vocabulary", "tokenizer"])
def test_a_fork_during_a_fetch_by_another_thread_does_not_hang(kind: str) -> None:
    program = f"""
import os, signal, threading
from m3_integrations.remote.encoder import _Vocabulary
from m3_integrations.remote.tokens import FetchedTokenizer
parent, begun, go = os.getpid(), threading.Event(), threading.Event()
def fetch():
    if os.getpid() == parent:
        begun.set()
        go.wait()
    return ("fetched",)
FetchedTokenizer._read = lambda self, body: body
vocabulary, tokenizer = _Vocabulary(fetch), FetchedTokenizer("url", fetch)
tokenizer._n_calls = 10_000
use = {{"vocabulary": lambda: vocabulary[0], "tokenizer": lambda: tokenizer.after_many_calls()[0]}}[{kind!r}]
threading.Thread(target=use).start()
begun.wait()
if (child := os.fork()) == 0:
    signal.alarm(10)
    os._exit(0 if use() == "fetched" else 3)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
go.set()
assert status == 0, status
"""
    subprocess.run([sys.executable, "-W", "ignore::DeprecationWarning", "-c", program], check=True, timeout=60)


def test_a_pickled_encoder_does_not_connect_before_it_is_used(local: M3Encoder) -> None:
    with served(local) as url, RemoteEncoder(url, timeout_s=7) as encoder:
        pickled = pickle.dumps(encoder)
        found = pickle.loads(pickled).encode(["keys"])
        np.testing.assert_allclose(found.dense, local.encode(["keys"]).dense, atol=1e-5)
    twin = pickle.loads(pickled)
    assert (twin.model, twin.fingerprint, twin.settings["timeout_s"]) == (url, local.fingerprint, 7)
    with pytest.raises(ConnectionError, match="nothing answers"):
        twin.encode(["keys"])
    twin.close()
    with pytest.raises(RuntimeError, match="was closed"):
        pickle.dumps(twin)


def test_m3_encoder_names_remote_encoder_for_a_url(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"open RemoteEncoder\('http://127.0.0.1:8000'\)"):
        M3Encoder("http://127.0.0.1:8000")


def test_a_url_is_a_model_wherever_one_is_named(url: str) -> None:
    with open_encoder(url, model_kwargs={"timeout_s": 9}) as encoder:  # type: ignore[attr-defined]
        assert isinstance(encoder, RemoteEncoder)
        assert open_encoder(url, encoder=encoder, model_kwargs={"timeout_s": 9}) is encoder
        assert changed_settings(encoder) == {"timeout_s": 9}
    with pytest.raises(TypeError, match="device"):
        open_encoder(url, model_kwargs={"device": "cpu"})
