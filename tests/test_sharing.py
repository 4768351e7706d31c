"""Many handles and threads share one network; processes do not."""

import asyncio
import gc
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tqdm.auto import tqdm

from m3_integrations import M3Encoder, M3Vectors
from m3_integrations.engine import opening
from m3_integrations.vectors import Kind, Mode
from tests.golden.texts import TEXTS
from tests.test_encoder import assert_same

pytestmark = pytest.mark.filterwarnings("ignore:.*longer than")


def network(encoder: M3Encoder) -> object:
    return encoder._live_engine().network


def test_handles_with_different_settings_hold_one_network(small: Path, wide: Path) -> None:
    one = M3Encoder(small, device="cpu")
    others = [
        M3Encoder(str(small), device="cpu", max_length=20, cache_size_bytes=0),
        M3Encoder(small / ".." / "small", device="cpu:0", dtype="float32", pooling="mcls"),
        M3Encoder(small, query_instruction="find: ", device="cpu"),
    ]
    assert all(network(other) is network(one) for other in others)
    assert network(M3Encoder(wide, device="cpu")) is not network(one)
    assert network(M3Encoder(small, device="cpu", dtype="bfloat16")) is not network(one)
    assert network(M3Encoder(small, shared=False, device="cpu")) is not network(one)


def test_a_second_handle_costs_no_memory(tmp_path: Path) -> None:
    """Run in a new process, with a network whose widest layers alone have 77 MB."""
    code = f"""
import gc, os, sys
sys.path.insert(0, {str(Path(__file__).parent.parent)!r})
from pathlib import Path
from tests.golden.checkpoints import SHAPES, build_checkpoint
from transformers import AutoConfig, XLMRobertaModel
from m3_integrations import M3Encoder
folder = build_checkpoint(Path({str(tmp_path)!r}) / "big", "small")
config = AutoConfig.from_pretrained(folder)
config.intermediate_size = 50_000
XLMRobertaModel(config, add_pooling_layer=False).save_pretrained(folder)
def resident():
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
handles = [M3Encoder(folder, device="cpu")]
handles[0].encode(["warm up"])
before = resident()
handles += [M3Encoder(folder, device="cpu", max_length=10 + i) for i in range(20)]
[handle.encode(["warm up"]) for handle in handles]
print(resident() - before)
"""
    grown_mb = float(subprocess.check_output([sys.executable, "-c", code], text=True))
    assert grown_mb < 40


def test_the_network_goes_with_its_last_handle(small: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(small, tmp_path / "own"))
    one, two = M3Encoder(folder, device="cpu"), M3Encoder(folder, device="cpu")
    alive = weakref.ref(network(one))
    one.close()
    gc.collect()
    assert alive() is not None
    assert len(two.encode(["still works"])) == 1
    two.close()
    end = time.monotonic() + 30
    while alive() is not None and time.monotonic() < end:  # the worker's thread may still return from its last pass
        gc.collect()
    assert alive() is None


def test_a_checkpoint_rewritten_in_place_is_loaded_anew(small: Path, wide: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(small, tmp_path / "retrained"))
    old = M3Encoder(folder, device="cpu")
    shutil.copytree(wide, folder, dirs_exist_ok=True)
    assert M3Encoder(folder, device="cpu").dim == 96
    assert old.dim == 64


def broken(*_: object) -> str:
    raise OSError(24, "too many open files")


def test_a_fingerprint_is_never_that_of_files_that_came_later(small: Path, wide: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(small, tmp_path / "retrained"))
    early, late = M3Encoder(folder, shared=False, device="cpu"), M3Encoder(folder, shared=False, device="cpu")
    fingerprint = early.fingerprint
    (folder / "tokenizer.json.bak").touch()  # not a file of the network
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("m3_integrations.engine.engine.checkpoint_fingerprint", broken)
        with pytest.raises(OSError, match="too many open files"):  # no word of a change
            late.fingerprint  # noqa: B018
    shutil.copytree(wide, folder, dirs_exist_ok=True)
    with pytest.raises(RuntimeError, match=r"were changed after this encoder was opened.* open the encoder again"):
        late.fingerprint  # noqa: B018
    shutil.rmtree(folder)
    with pytest.raises(RuntimeError, match="were changed after this encoder was opened"):
        late.fingerprint  # noqa: B018
    assert early.fingerprint == fingerprint


def test_threads_that_ask_at_once_get_one_network(small: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(small, tmp_path / "raced"))
    with ThreadPoolExecutor(8) as pool:
        handles = list(pool.map(lambda _: M3Encoder(folder, device="cpu"), range(8)))
    assert len({id(network(handle)) for handle in handles}) == 1


@pytest.mark.filterwarnings("ignore")
def test_networks_of_different_dtypes_load_at_once_without_harm(small: Path, wide: Path) -> None:
    for _ in range(8):
        with ThreadPoolExecutor(2) as pool:
            one = pool.submit(M3Encoder, small, shared=False, device="cpu", dtype="float32")
            two = pool.submit(M3Encoder, wide, shared=False, device="cpu", dtype="bfloat16")
        assert torch.get_default_dtype() == torch.float32
        for future, dtype in ((one, torch.float32), (two, torch.bfloat16)):
            encoder = future.result()
            assert {p.dtype for p in encoder._live_engine().network.parameters()} == {dtype}
            encoder.encode(["a"])


def test_files_beside_the_checkpoint_do_not_load_a_second_network(small: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(small, tmp_path / "own"))
    one = M3Encoder(folder, device="cpu")
    (folder / "README.md").write_text("notes")
    (folder / "trainer.log").write_text("log")
    assert network(M3Encoder(folder, device="cpu")) is network(one)


def test_one_forward_pass_runs_at_a_time(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = M3Encoder(small, shared=False, device="cpu", cache_size_bytes=0)
    inside, most, real = 0, 0, encoder._live_engine().network.launch

    def counted(*arguments: Any, **settings: Any) -> Any:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        try:
            return real(*arguments, **settings)
        finally:
            inside -= 1

    monkeypatch.setattr(encoder._live_engine().network, "launch", counted)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: encoder.encode([f"text {i}"]), range(100)))
    assert most == 1
    assert encoder.stats.encoded_texts == 100
    assert encoder.stats.forward_passes <= 100


def test_use_after_close_raises(small: Path) -> None:
    encoder = M3Encoder(small, device="cpu")
    encoder.close()
    encoder.close()
    for use in (
        lambda: encoder.encode(["a"]),
        lambda: encoder.score("a", ["b"]),
        lambda: list(encoder.encode_batches(["a"])),
        lambda: asyncio.run(encoder.aencode(["a"])),
        lambda: pickle.dumps(encoder),
        lambda: encoder.dim,
        lambda: encoder.stats,
    ):
        with pytest.raises(RuntimeError, match="was closed"):
            use()
    assert "closed" in repr(encoder)


def test_a_pickle_carries_the_settings_and_shares_on_the_other_side(small: Path) -> None:
    encoder = M3Encoder(small, device="cpu", max_length=9, query_instruction="find: ", pooling="mcls")
    data = pickle.dumps(encoder)
    assert len(data) < 2000
    again = pickle.loads(data)
    assert network(again) is network(encoder)
    assert again.max_length == 9
    text = "what the settings make of it, and a little more of it than fits"
    with pytest.warns(UserWarning, match="longer than 9"):
        np.testing.assert_array_equal(
            again.encode([text], kind="query").dense, encoder.encode([text], kind="query").dense
        )


def _encode_there(encoder: M3Encoder) -> np.ndarray[Any, Any]:
    return encoder.encode(["over there"]).dense


def test_a_spawned_process_shares_anew_from_a_pickle(small: Path) -> None:
    encoder = M3Encoder(small, device="cpu")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        there = pool.apply_async(_encode_there, (encoder,)).get(timeout=120)
    np.testing.assert_allclose(there, encoder.encode(["over there"]).dense, atol=1e-6)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_fork_raises_at_once_and_never_hangs(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = M3Encoder(small, device="cpu")
    encoder.encode(["before"])
    carried = pickle.dumps(encoder)
    closed = M3Encoder(small, shared=False, device="cpu")
    closed.close()
    monkeypatch.setattr("m3_integrations.encoder._WINDOW_TEXTS", 1)
    begun = encoder.encode_batches(["a", "stream", "of", "texts"])
    next(begun)
    encoder.encode(["after what the stream has queued"])
    locks = (encoder._live_engine().scheduler._changed, opening._loading_lock, tqdm.get_lock())  # type: ignore[no-untyped-call]
    uses = (
        lambda: encoder.encode(["in the child"]),
        lambda: M3Encoder(small, device="cpu"),
        lambda: M3Encoder(small, shared=False, device="cpu"),
        lambda: pickle.loads(carried).encode(["unpickled in the child"]),
        lambda: next(begun),
    )
    for use in uses:
        for lock in locks:  # held during the fork, and never released in the child
            with lock:
                reader, writer = os.pipe()
                child = os.fork()
                if child == 0:
                    try:
                        use()
                        os.write(writer, b"no error")
                    except RuntimeError as error:
                        os.write(writer, str(error).encode())
                    finally:
                        os._exit(0)
            os.close(writer)
            watchdog = threading.Timer(60, os.kill, (child, 9))
            watchdog.start()
            result = os.read(reader, 1000).decode()
            watchdog.cancel()
            os.waitpid(child, 0)
            os.close(reader)
            assert "do not work after a fork" in result, result
            assert "spawn" in result
    assert len(encoder.encode(["after"])) == 1


def test_a_fork_before_the_first_load_is_no_obstacle(small: Path) -> None:
    code = f"""
import multiprocessing
from m3_integrations import M3Encoder
def work(_):
    return M3Encoder({str(small)!r}, device="cpu").encode(["in the worker"]).dense.shape
if __name__ == "__main__":
    with multiprocessing.get_context("fork").Pool(1) as pool:
        print(pool.apply_async(work, (0,)).get(timeout=120))
"""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False, timeout=180
    )
    assert result.stdout.strip() == "(1, 64)", result.stderr


KINDS: tuple[Kind, ...] = ("document", "query")
MODES: tuple[tuple[Mode, ...], ...] = (
    ("dense",),
    ("lexical",),
    ("dense", "lexical", "multi_vector"),
    ("multi_vector",),
)


def test_requests_from_32_threads_with_different_settings_all_get_their_own_vectors(small: Path) -> None:
    limits = (5, 16, 40, 128)
    handles = [
        M3Encoder(small, device="cpu", query_instruction="find: ", cache_size_bytes=size) for size in (0, 100_000)
    ]
    reference = {
        (kind, limit): handles[0].encode(TEXTS, kind=kind, max_length=limit) for kind in KINDS for limit in limits
    }
    random = np.random.default_rng(0)
    requests = [
        (
            handles[random.integers(2)],
            random.integers(0, len(TEXTS), random.integers(1, 4)),
            KINDS[random.integers(2)],
            limits[random.integers(4)],
            MODES[random.integers(4)],
        )
        for _ in range(2000)
    ]

    def ask(request: tuple[M3Encoder, Any, Kind, int, tuple[Mode, ...]]) -> M3Vectors:
        handle, rows, kind, limit, modes = request
        return handle.encode([TEXTS[i] for i in rows], kind=kind, max_length=limit, modes=modes)

    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(ask, requests))
    for (_, rows, kind, limit, modes), answer in zip(requests, answers, strict=True):
        assert_same(answer, reference[kind, limit].take(rows).select(modes))
