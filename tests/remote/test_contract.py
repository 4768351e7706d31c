"""The behaviour that `M3Encoder` and `RemoteEncoder` share."""

import asyncio
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m3_integrations import Encoder, M3Encoder, ModeWeights, RemoteEncoder
from tests.golden.texts import TEXTS
from tests.test_encoder import assert_same

pytestmark = pytest.mark.enable_socket

AnyEncoder = M3Encoder | RemoteEncoder


@pytest.fixture(params=["here", "remote"])
def each(request: pytest.FixtureRequest, small: Path, url: str) -> Iterator[AnyEncoder]:
    with (
        M3Encoder(small, device="cpu", query_instruction="find: ") if request.param == "here" else RemoteEncoder(url)
    ) as encoder:
        yield encoder


@pytest.mark.filterwarnings("ignore:.*longer than")
def test_vectors_are_those_of_the_network(each: AnyEncoder, local: M3Encoder) -> None:
    for kind in ("document", "query"):
        assert_same(each.encode(TEXTS, kind=kind), local.encode(TEXTS, kind=kind), 1e-5)


@pytest.mark.filterwarnings("ignore:.*longer than")
async def test_async_vectors_and_batches_are_those_of_the_network(each: AnyEncoder, local: M3Encoder) -> None:
    assert_same(await each.aencode(TEXTS, kind="query"), local.encode(TEXTS, kind="query"), 1e-5)
    parts = await asyncio.gather(*(each.aencode([text], modes=("lexical",)) for text in TEXTS[:20]))
    for part, text in zip(parts, TEXTS, strict=False):
        assert_same(part, local.encode([text], modes=("lexical",)), 1e-5)


def test_any_iterable_is_read_once(each: AnyEncoder, local: M3Encoder) -> None:
    texts = [f"text {i}" for i in range(40)]
    assert_same(each.encode(text for text in texts), local.encode(texts), 1e-5)
    parts = list(each.encode_batches(iter(texts), modes=("dense",)))
    np.testing.assert_allclose(np.concatenate([part.dense for part in parts]), local.encode(texts).dense, atol=1e-5)


def test_encoding_nothing_gives_empty_results_of_the_right_shape(each: AnyEncoder) -> None:
    vectors = each.encode([])
    assert vectors.dense.shape == (0, each.dim)
    assert list(vectors.lexical) == []
    assert vectors.multi_vector.flat.shape == (0, 64)
    assert each.encode([], modes=("lexical",)).modes == ("lexical",)
    assert len(asyncio.run(each.aencode([]))) == 0
    assert list(each.encode_batches([])) == []
    assert each.tokenize([]) == []
    assert each.score("a", []).combined.shape == (0,)
    assert each.score_pairs([]).dense.shape == (0,)


def test_what_is_returned_can_be_written_to(each: AnyEncoder) -> None:
    vectors = each.encode(["a text", "another"])
    vectors.dense[0] = 0
    vectors.multi_vector.flat[0] = 0
    vectors.lexical.values[0] = 1


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("one string", r"got one string: pass \[text\]"),
        (["a", None], "got NoneType at position 1"),
        (["a"] * 20 + [b"c"], "got bytes at position 20"),
    ],
)
async def test_anything_but_strings_is_refused_with_its_position(each: AnyEncoder, texts: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        each.encode(texts)
    with pytest.raises(TypeError, match=message):
        await each.aencode(texts)
    with pytest.raises(TypeError, match=message):
        each.tokenize(texts)
    with pytest.raises(TypeError, match=message):
        each.score("query", texts)
    with pytest.raises(TypeError, match=message):
        list(each.encode_batches(texts))
    for pair in ("hi", {"query": "a", "text": "b"}, {"a", "b"}):  # of these the keys would be scored
        with pytest.raises(TypeError, match=r"two strings, got .* at position 0"):
            each.score_pairs([pair])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"kind": "passage"}, "kind must be one of document, query, got 'passage'"),
        ({"modes": ("sparse",)}, "modes must be one or more of"),
        ({"modes": ()}, "modes must be one or more of"),
        ({"max_length": 2}, "max_length must be at least 3"),
    ],
)
async def test_wrong_arguments_are_refused(each: AnyEncoder, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        each.encode(["a"], **asked)
    with pytest.raises(ValueError, match=message):
        each.encode_batches(["a"], **asked)
    with pytest.raises(ValueError, match=message):
        await each.aencode(["a"], **asked)
    for text in ("\ud800", "half \udc00"):
        with pytest.raises(ValueError, match="at position 1 is not valid Unicode"):
            each.encode(["fine", text])


def test_texts_are_cut_at_max_length_and_warned_of_once(each: AnyEncoder, local: M3Encoder) -> None:
    texts = ["word " * 300, "short", *["word " * 200] * 2]
    with pytest.warns(UserWarning, match="3 of 4 texts were longer than 128 tokens") as caught:
        whole = each.encode(texts)
    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_same(whole, local.encode(texts), 1e-5)
        assert [len(rows) for rows in each.encode(texts, max_length=9).multi_vector] == [8, 4, 8, 8]
        assert [len(tokens) for tokens in each.tokenize(texts, max_length=9)] == [8, 4, 8, 8]
    with pytest.warns(UserWarning, match="3 of 4 texts were longer than 9 tokens"):
        list(each.encode_batches(texts, max_length=9))
    with pytest.warns(UserWarning, match="1 of 1"):
        asyncio.run(each.aencode(texts[:1]))


def test_tokens_are_those_of_the_network(each: AnyEncoder, local: M3Encoder) -> None:
    texts = [text for text in TEXTS if len(text) < 100]
    assert each.tokenize(texts) == local.tokenize(texts)
    assert each.tokenize(["keys"], kind="query") == local.tokenize(["keys"], kind="query")
    assert each.tokenize(["keys"], kind="query") != local.tokenize(["keys"])


def test_lexical_weights_name_their_tokens(each: AnyEncoder, local: M3Encoder) -> None:
    (found,), (wanted,) = (encoder.encode(["rotate the keys"]).lexical for encoder in (each, local))
    assert [token for token, _ in found.tokens()] == [token for token, _ in wanted.tokens()]
    assert len(each.vocabulary) == len(local.vocabulary)
    assert each.vocabulary[5:9] == local.vocabulary[5:9]
    assert len(repr(each.vocabulary)) < 60


def test_texts_that_are_cut_for_scoring_are_counted_once_and_warned_of_once(each: AnyEncoder) -> None:
    """`RemoteEncoder` sends several requests here, and most of them contain the long query."""
    long = "word " * 300
    texts = [long, *(f"keys {i}" for i in range(20)), long, "rain " * 200]
    with pytest.warns(UserWarning, match="3 of 23 texts were longer than 128 tokens") as caught:
        each.score("keys " * 200, texts)
    assert [warning.filename for warning in caught] == [__file__]
    with pytest.warns(UserWarning, match="1 of 4 texts were longer"):
        each.score_pairs([("keys", long), ("rain", "short"), ("keys", long)])


def test_scores_are_those_of_the_network(each: AnyEncoder, local: M3Encoder) -> None:
    texts = [f"keys and rain {i}" for i in range(30)]
    for weights in (None, "miracl", ModeWeights(1, 0, 0), (0.2, 0.3, 0.5)):
        found, wanted = (encoder.score("keys", texts, weights=weights) for encoder in (each, local))
        assert found.modes == wanted.modes
        for name in ("combined", *found.modes):
            np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), atol=1e-5)
            assert getattr(found, name).dtype == np.float32
    pairs = [("a", "b"), ("keys", "rotate keys"), ("a", "b")]
    np.testing.assert_allclose(each.score_pairs(pairs).combined, local.score_pairs(pairs).combined, atol=1e-5)
    with pytest.raises(ValueError, match="unknown weights 'best'"):
        each.score("keys", texts, weights="best")
    with pytest.raises(TypeError, match="query must be a string"):
        each.score(None, texts)  # type: ignore[arg-type]


def test_it_is_an_encoder_of_the_same_model(each: AnyEncoder, local: M3Encoder) -> None:
    assert isinstance(each, Encoder)
    for name in ("modes", "dim", "fingerprint", "max_length", "dtype", "pooling"):
        assert getattr(each, name) == getattr(local, name)


async def test_a_closed_encoder_raises(each: AnyEncoder) -> None:
    each.close()
    each.close()
    assert "closed" in repr(each)
    for call in (
        each.encode,
        each.tokenize,
        lambda texts: each.score("a", texts),
        each.encode_batches,
    ):
        with pytest.raises(RuntimeError, match="was closed: open another"):
            call(["a"])
    with pytest.raises(RuntimeError, match="was closed: open another"):
        await each.aencode(["a"])


def test_a_progress_bar_is_drawn_on_request_only(each: AnyEncoder, capsys: pytest.CaptureFixture[str]) -> None:
    each.encode(["a", "b"])
    assert capsys.readouterr().err == ""
    each.encode([f"progress {i}" for i in range(30)], show_progress=True)
    assert "30/30" in capsys.readouterr().err
