"""A caller who tokenizes many times fetches the server's tokenizer, and then sends no more requests."""

import json
import pickle
from typing import Any

import pytest

from m3_integrations import M3Encoder, RemoteEncoder
from m3_integrations.remote import tokens
from tests.remote.conftest import Scripted

pytestmark = pytest.mark.enable_socket

TEXTS = ["rotate the keys", "", "Rain is expected in Vienna. " * 60]


def paths(scripted: Scripted) -> list[str]:
    return [path for _, path, *_ in scripted.asked]


def test_many_calls_fetch_the_tokenizer_once_and_its_tokens_are_the_servers(
    scripted: Scripted, local: M3Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "_CALLS_BEFORE", 20)  # each asks the server
    wanted = local.tokenize(TEXTS)
    with RemoteEncoder(scripted.url) as encoder:
        for _ in range(tokens._CALLS_BEFORE + 50):
            assert encoder.tokenize(TEXTS) == wanted
        asked = paths(scripted)
        assert (asked.count("/v1/tokenize"), asked.count("/v1/tokenizer")) == (tokens._CALLS_BEFORE, 1)
        assert encoder.tokenize(["keys"], kind="query") == local.tokenize(["keys"], kind="query")
        assert encoder.tokenize(TEXTS, max_length=9) == local.tokenize(TEXTS, max_length=9)
        assert paths(scripted).count("/v1/tokenize") == tokens._CALLS_BEFORE + 2
        with pickle.loads(pickle.dumps(encoder)) as twin:
            assert twin.tokenize(TEXTS) == wanted


def test_the_places_of_tokens_are_the_servers(scripted: Scripted, local: M3Encoder) -> None:
    asked: list[dict[str, Any]] = [{}, {"kind": "query"}, {"max_length": 9}]
    with RemoteEncoder(scripted.url) as encoder:
        for each in asked:
            wanted, found = local.token_spans(TEXTS, **each), encoder.token_spans(TEXTS, **each)
            assert [spans.tolist() for spans in found] == [spans.tolist() for spans in wanted]
        encoder._tokenizer._n_calls = tokens._CALLS_BEFORE
        assert [spans.tolist() for spans in encoder.token_spans(TEXTS)] == [
            spans.tolist() for spans in local.token_spans(TEXTS)
        ]
        assert paths(scripted)[-1] == "/v1/tokenizer"


@pytest.mark.parametrize(
    "spans", [None, [[[0, 1]]], [[[0, 99]], [], []], [[[0]], [], []], [["a"], [], []], [[[-1, 2]], [], []]]
)
def test_places_outside_the_texts_are_refused(scripted: Scripted, spans: object) -> None:
    with RemoteEncoder(scripted.url) as encoder:
        scripted.script = [(200, {}, json.dumps({"tokens": [[], [], []], "spans": spans}).encode())]
        with pytest.raises(ValueError, match="does not hold the places of the tokens of 3 texts"):
            encoder.token_spans(TEXTS)


@pytest.mark.parametrize("body", [b"", b"{}", b"\xff", b'{"tokens": []}'])
def test_what_is_no_tokenizer_is_refused(scripted: Scripted, monkeypatch: pytest.MonkeyPatch, body: bytes) -> None:
    monkeypatch.setattr(tokens, "_CALLS_BEFORE", 0)
    with RemoteEncoder(scripted.url) as encoder:
        scripted.script = [(200, {}, body)]
        with pytest.raises(ValueError, match=f"{scripted.url} sent a wrong answer: it is not a tokenizer"):
            encoder.tokenize(TEXTS)
        assert encoder.tokenize(["keys"])[0][-1] == "</s>"
