import asyncio
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m3_integrations import Encoder, M3Encoder, M3Vectors, scoring
from tests.golden.texts import TEXTS

LONG = "word " * 500


def assert_same(one: M3Vectors, other: M3Vectors, tolerance: float = 1e-5) -> None:
    assert one.modes == other.modes
    for mode in one.modes:
        if mode == "dense":
            np.testing.assert_allclose(one.dense, other.dense, atol=tolerance)
        elif mode == "multi_vector":
            np.testing.assert_array_equal(one.multi_vector.offsets, other.multi_vector.offsets)
            np.testing.assert_allclose(one.multi_vector.flat, other.multi_vector.flat, atol=tolerance)
        else:
            for a, b in zip(one.lexical, other.lexical, strict=True):
                assert_same_weights(a.to_dict(), b.to_dict(), tolerance)


def assert_same_weights(one: dict[int, float], other: dict[int, float], tolerance: float) -> None:
    """Compare values; a weight within the tolerance of 0 may be absent, since the ReLU drops it."""
    for token in one.keys() | other.keys():
        assert abs(one.get(token, 0) - other.get(token, 0)) <= tolerance * max(1, abs(one.get(token, 0))), token


@pytest.mark.filterwarnings("ignore:.*longer than")
def test_a_texts_vectors_do_not_depend_on_its_batch(small: Path, uncached: M3Encoder) -> None:
    alone = M3Vectors.concatenate([uncached.encode([text]) for text in TEXTS])
    random = np.random.default_rng(0)
    for budget in (1, 200, 1024, 10**6):
        encoder = M3Encoder(small, shared=False, device="cpu", cache_size_bytes=0)
        encoder._live_engine().scheduler.max_tokens = budget
        order = random.permutation(len(TEXTS))
        assert_same(encoder.encode([TEXTS[i] for i in order]), alone.take(order))


def test_encoding_nothing_gives_empty_results_of_the_right_shape(encoder: M3Encoder, wide: Path) -> None:
    for handle, width in ((encoder, 64), (M3Encoder(wide, shared=False, device="cpu"), 32)):
        vectors = handle.encode([])
        assert len(vectors) == 0
        assert vectors.dense.shape == (0, handle.dim)
        assert list(vectors.lexical) == []
        assert vectors.multi_vector.flat.shape == (0, width)
        assert handle.score("a", []).combined.shape == (0,)
        assert handle.score_pairs([]).dense.shape == (0,)
        assert list(handle.encode_batches([])) == []
        assert handle.stats.forward_passes == 0


def test_empty_and_blank_texts_encode(encoder: M3Encoder) -> None:
    vectors = encoder.encode(["", "   \n\t"])
    assert [len(rows) for rows in vectors.multi_vector] == [1, 1]  # [SEP] alone
    assert [len(weights) for weights in vectors.lexical] == [0, 0]
    np.testing.assert_allclose(np.linalg.norm(vectors.dense, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("one string", r"got one string: pass \[text\]"),
        (["a", None], "got NoneType at position 1"),
        (["a", "b", b"c"], "got bytes at position 2"),
        ([["a"]], "got list at position 0"),
        ({"id1": "a text"}, r"got a dict: pass its values\(\)"),  # its keys would be encoded
    ],
)
def test_anything_but_strings_is_refused_with_its_position(encoder: M3Encoder, texts: object, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        encoder.encode(texts)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=message):
        encoder.score("query", texts)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="got one string" if isinstance(texts, str) else message):
        list(encoder.encode_batches(texts))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["document", "query"])
def test_any_iterable_of_texts_is_read_once_and_encoded_whole(encoder: M3Encoder, kind: Any) -> None:
    texts = ["one", "two words", "three"]
    expected = encoder.encode(texts, kind=kind)
    for given in (iter(texts), (text for text in texts), np.array(texts), dict.fromkeys(texts)):
        assert_same(encoder.encode(given, kind=kind), expected)
    assert len(encoder.score("two", iter(texts)).combined) == 3
    assert len(encoder.score_pairs(("two", text) for text in texts).combined) == 3
    assert len(encoder.tokenize(iter(texts))) == 3
    with pytest.raises(TypeError, match="texts must be strings, got 7"):
        encoder.encode(7)  # type: ignore[arg-type]


def test_pairs_of_anything_but_strings_are_refused(encoder: M3Encoder) -> None:
    with pytest.raises(TypeError, match="query must be a string, got NoneType"):
        encoder.score(None, ["a"])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"two strings, got \('a', 7\) at position 1"):
        encoder.score_pairs([("a", "b"), ("a", 7)])  # type: ignore[list-item]
    for pair in ("hi", {"query": "a", "text": "b"}, {"a", "b"}, 5, b"ab", iter("ab")):
        with pytest.raises(TypeError, match=r"every pair must be two strings, got .* at position 1"):
            encoder.score_pairs([("a", "b"), pair])  # type: ignore[list-item]
    expected = encoder.score_pairs([("a", "b")]).combined
    for same in (["a", "b"], np.array(["a", "b"]), {"query": "a", "text": "b"}.values()):
        np.testing.assert_array_equal(encoder.score_pairs([same]).combined, expected)  # type: ignore[list-item]
    table = type("DataFrame", (list,), {"columns": ["query", "text"]})(["query", "text"])
    with pytest.raises(TypeError, match=r"two strings each, got a DataFrame: pass zip\(table"):
        encoder.score_pairs(table)
    half = [("a", "x"), ("a", "x"), ("a", "\ud800")]
    with pytest.raises(ValueError, match="the text at position 2 is not valid Unicode"):
        encoder.score_pairs(half)


def test_half_a_surrogate_pair_is_refused_and_loses_nothing_else(encoder: M3Encoder) -> None:
    message = (
        r"the text at position 1 is not valid Unicode: .*surrogates not allowed\) at character 2, near 'a \\ud83d b'"
    )
    texts = ["fine", "a \ud83d b"]
    for use in (encoder.encode, encoder.tokenize, lambda given: encoder.score("fine", given)):
        with pytest.raises(ValueError, match=message):
            use(texts)
    with pytest.raises(ValueError, match="at position 3000 is not valid Unicode"):
        list(encoder.encode_batches([*["fine"] * 3000, "\ud83d"]))
    assert len(encoder.encode(["fine"])) == 1


def test_devices_and_dtypes_of_torch_and_none_are_taken(small: Path) -> None:
    import torch

    given = M3Encoder(small, device=torch.device("cpu"), dtype=torch.float32)
    assert (given.device, given.dtype) == ("cpu", "float32")
    assert M3Encoder(small, device=None, dtype=None).device == M3Encoder(small).device


def test_what_is_printed_is_short_and_says_what_matters(encoder: M3Encoder) -> None:
    assert repr(encoder).endswith("64 dimensions, dense+lexical+multi_vector, cpu, float32)")
    assert repr(encoder.vocabulary) == f"Vocabulary({len(encoder.vocabulary)} tokens)"


def test_bad_settings_are_refused(small: Path, encoder: M3Encoder) -> None:
    bad_settings: list[tuple[dict[str, Any], str]] = [
        ({"max_length": 2}, "at least 3.*got 2"),
        ({"query_max_length": 0}, "at least 3.*got 0"),
        ({"pooling": "max"}, "one of cls, mcls, mean, got 'max'"),
        (
            {"pooling": "mean"},
            "was trained with pooling='cls', so pooling='mean' would return meaningless vectors",
        ),
        ({"cache_size_bytes": -1}, "0 or more"),
        ({"device": "toaster"}, "device 'toaster' cannot be used here"),
        ({"device": "cuda:99"}, "device 'cuda:99' cannot be used here"),
        ({"device": "meta"}, "device 'meta' cannot be used here"),
        ({"dtype": "int4"}, "dtype must be 'auto' or one of float32, float16, bfloat16, int8, got 'int4'"),
    ]
    for bad, message in bad_settings:
        with pytest.raises(ValueError, match=message):
            M3Encoder(small, **({"device": "cpu"} | bad))
    bad_calls: list[tuple[dict[str, Any], str]] = [
        ({"kind": "passage"}, "kind must be one of document, query, got 'passage'"),
        ({"modes": ("sparse",)}, "modes must be one or more of dense, lexical, multi_vector"),
        ({"modes": ()}, "modes must be one or more"),
        ({"max_length": 1}, "at least 3"),
    ]
    for bad, message in bad_calls:
        with pytest.raises(ValueError, match=message):
            encoder.encode(["a"], **bad)


def test_only_the_modes_asked_for_are_given(encoder: M3Encoder) -> None:
    vectors = encoder.encode(["a text"], modes=("lexical",))
    assert vectors.modes == ("lexical",)
    with pytest.raises(ValueError, match="dense vectors were not computed"):
        _ = vectors.dense


def test_long_texts_are_cut_counted_and_warned_of_once_per_call(encoder: M3Encoder) -> None:
    with pytest.warns(UserWarning, match="2 of 3 texts were longer than 128 tokens") as caught:
        vectors = encoder.encode([LONG, "", LONG + "x"])
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert [len(rows) for rows in vectors.multi_vector] == [127, 1, 127]
    assert encoder.stats.truncated_texts == 2
    with pytest.warns(UserWarning, match="1 of 1"):  # also for vectors from the cache
        encoder.encode([LONG])
    assert encoder.stats.truncated_texts == 3
    with pytest.warns(UserWarning, match="longer than 10 tokens"):
        assert len(encoder.encode([LONG], max_length=10).multi_vector[0]) == 9
    with pytest.warns(UserWarning, match="1 of 2 texts") as caught:
        encoder.score("q", [LONG])
    with pytest.warns(UserWarning, match="1 of 2 texts") as caught_of_pairs:
        encoder.score_pairs([("q", LONG)])
    assert caught[0].filename == caught_of_pairs[0].filename == __file__


def test_the_limit_is_never_more_than_the_checkpoints_positions(small: Path) -> None:
    assert M3Encoder(small, device="cpu").max_length == 128
    assert M3Encoder(small, device="cpu", max_length=50).max_length == 50


def test_query_instruction_and_length_apply_to_queries_alone(small: Path, encoder: M3Encoder) -> None:
    assert_same(
        M3Encoder(small, device="cpu", query_instruction=None).encode(["a"], kind="query"), encoder.encode(["a"])
    )
    for wrong, message in (
        ({"query_instruction": 5}, "must be a string, got 5"),
        ({"cache_size_bytes": "1"}, "got '1'"),
    ):
        with pytest.raises(TypeError, match=message):
            M3Encoder(small, device="cpu", **wrong)
    handle = M3Encoder(small, device="cpu", query_instruction="find: ", query_max_length=16)
    assert_same(handle.encode(["keys"], kind="document"), encoder.encode(["keys"]))
    assert_same(handle.encode(["keys"], kind="query"), encoder.encode(["find: keys"], max_length=16))
    with pytest.warns(UserWarning, match="longer than 16 tokens"):
        assert len(handle.encode([LONG], kind="query").multi_vector[0]) == 15
    with pytest.warns(UserWarning, match="longer than 9 tokens"):
        handle.encode([LONG], kind="query", max_length=9)
    scores = handle.score("keys", ["some text"])
    expected = scoring.score_vectors(encoder.encode(["find: keys"], max_length=16), encoder.encode(["some text"]))
    assert scores.combined == pytest.approx(expected.combined, abs=1e-6)


def test_mcls_averages_the_cls_states_of_a_long_text(small: Path, wide: Path) -> None:
    """Compare with transformers' backbone; the interval is short, so that 64 positions hold several [CLS]."""
    import torch

    from m3_integrations import tokenizer
    from m3_integrations.checkpoint.architectures import load_backbone

    handle = M3Encoder(wide, shared=False, device="cpu", pooling="mcls")
    engine = handle._live_engine()
    before, tokenizer.MCLS_INTERVAL = tokenizer.MCLS_INTERVAL, 10  # type: ignore[misc]
    try:
        text = "one two three four five six seven eight nine ten " * 2
        plain = engine.tokenizer([text], max_length=999)[0].ids.tolist()[1:-1]
        vectors = handle.encode([text, "short"])
    finally:
        tokenizer.MCLS_INTERVAL = before  # type: ignore[misc]
    ids = [token for i in range(0, len(plain), 10) for token in (0, *plain[i : i + 10])] + [2]
    with torch.no_grad():
        hidden = load_backbone(wide, torch.float32)(input_ids=torch.tensor([ids])).last_hidden_state[0]
    cls = [i for i in range(len(ids) - 1) if i % 11 == 0]
    assert len(cls) > 2
    mean = hidden[cls].mean(dim=0)
    np.testing.assert_allclose(vectors.dense[0], (mean / mean.norm()).numpy(), atol=1e-5)
    assert len(vectors.multi_vector[0]) == len(plain) + 1
    assert_same(vectors[1], M3Encoder(wide, device="cpu").encode(["short"]))


def test_lexical_weights_name_their_tokens(encoder: M3Encoder) -> None:
    (weights,) = encoder.encode(["rotate the keys, rotate them"]).lexical
    tokens = weights.tokens()
    assert [weight for _, weight in tokens] == sorted(weights.values.tolist(), reverse=True)
    assert {token for token, _ in tokens} == {encoder.vocabulary[i] for i in weights.indices}
    assert not {"<s>", "</s>", "<pad>", "<unk>"} & {token for token, _ in tokens}


def test_m3_vectors_hold_no_more_than_their_own_bytes(uncached: M3Encoder) -> None:
    for vectors in (uncached.encode(["a b c", "d", "a b c"]), uncached.encode(["a", "b c"], modes=("multi_vector",))):
        for mode in vectors.modes:
            column = vectors._columns[mode]
            arrays = [column] if mode == "dense" else [a for a in vars(column).values() if isinstance(a, np.ndarray)]
            for array in arrays:
                assert array.base is None or array.base.nbytes == array.nbytes


@pytest.mark.filterwarnings("ignore:.*longer than")
def test_encode_batches_gives_the_same_vectors_in_order(uncached: M3Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m3_integrations.encoder._WINDOW_TEXTS", 7)
    parts = list(uncached.encode_batches(text for text in TEXTS))
    assert [len(part) for part in parts[:3]] == [7, 7, 7]
    assert_same(M3Vectors.concatenate(parts), uncached.encode(TEXTS))


def test_encode_batches_names_positions_in_the_whole_stream(
    uncached: M3Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("m3_integrations.encoder._WINDOW_TEXTS", 2)
    parts = uncached.encode_batches(["a", "b", "c", None])  # type: ignore[list-item]
    assert len(next(parts)) == 2
    with pytest.raises(TypeError, match="NoneType at position 3"):
        next(parts)
    with pytest.raises(ValueError, match="kind must be"):
        uncached.encode_batches(["a"], kind="passage")  # type: ignore[arg-type]


def test_encode_batches_warns_once(uncached: M3Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m3_integrations.encoder._WINDOW_TEXTS", 1)
    with pytest.warns(UserWarning, match="2 of 4 texts were longer than 128 tokens and were cut: split them") as caught:
        list(uncached.encode_batches(["short", LONG, "short too", LONG]))
    assert len(caught) == 1
    assert caught[0].filename == __file__


def test_a_progress_bar_is_drawn_on_request_only(encoder: M3Encoder, capsys: pytest.CaptureFixture[str]) -> None:
    encoder.encode(["a", "b"])
    assert capsys.readouterr().err == ""
    encoder.encode(["a", "b", "c"], show_progress=True)
    assert "3/3" in capsys.readouterr().err
    list(encoder.encode_batches(["d"], show_progress=True))
    assert "1/1" in capsys.readouterr().err
    list(encoder.encode_batches(iter(["e"]), show_progress=True))
    assert "1text" in capsys.readouterr().err


def test_what_is_returned_is_float32(encoder: M3Encoder) -> None:
    vectors, scores = encoder.encode(["a b", "c"]), encoder.score("a", ["b", "c"])
    arrays = [vectors.dense, vectors.lexical.values, vectors.multi_vector.flat]
    arrays += [scores.dense, scores.lexical, scores.multi_vector, scores.combined]
    assert {array.dtype for array in arrays} == {np.dtype(np.float32)}


@pytest.mark.filterwarnings("ignore:.*longer than", "ignore:.*and emulates it")
@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 6e-3), ("bfloat16", 6e-2)])
def test_half_precision_is_near_full_precision(small: Path, encoder: M3Encoder, dtype: str, tolerance: float) -> None:
    """Measured differences on these random weights: 0.0025 in float16, 0.024 in bfloat16; lexical 0.0063 and 0.046."""
    half = M3Encoder(small, device="cpu", dtype=dtype)
    full, rounded = encoder.encode(TEXTS), half.encode(TEXTS)
    np.testing.assert_allclose(rounded.dense, full.dense, atol=tolerance)
    np.testing.assert_allclose(rounded.multi_vector.flat, full.multi_vector.flat, atol=tolerance)
    for a, b in zip(rounded.lexical, full.lexical, strict=True):
        assert_same_weights(a.to_dict(), b.to_dict(), 2 * tolerance)


@pytest.mark.parametrize(
    "name",
    ["backbone.encoder.layer.2.output.LayerNorm.bias", "lexical_head.bias", "multi_vector_head.bias"],
)
def test_values_that_are_not_finite_are_an_error(small: Path, name: str) -> None:
    import torch

    encoder = M3Encoder(small, shared=False, device="cpu")
    with torch.no_grad():
        encoder._live_engine().network.get_parameter(name)[0] = torch.inf
    with pytest.raises(FloatingPointError, match="dtype='float32'"):
        encoder.encode(["a"])


async def test_aencode_gives_what_encode_gives(uncached: M3Encoder) -> None:
    with pytest.warns(UserWarning, match="longer than") as caught:
        vectors = await uncached.aencode(TEXTS)
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match="longer than"):
        assert_same(vectors, uncached.encode(TEXTS))


async def test_aencode_works_in_a_thread_of_its_own_while_the_loop_goes_on(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = M3Encoder(small, shared=False, device="cpu")
    network = encoder._live_engine().network
    gate, seen, real = threading.Event(), list[str](), network.launch

    def gated(*arguments: Any, **settings: Any) -> Any:
        seen.append(threading.current_thread().name)
        assert gate.wait(60)
        return real(*arguments, **settings)

    monkeypatch.setattr(network, "launch", gated)
    task = asyncio.create_task(encoder.aencode(["a text that is cut"], max_length=4))
    while not seen:  # a blocked loop would never reach this line
        await asyncio.sleep(0.001)
    encoder.close()  # the call that has begun is finished nevertheless, and warns
    gate.set()
    with pytest.warns(UserWarning, match="1 of 1 texts were longer than 4 tokens"):
        assert len(await task) == 1
    assert seen[0].startswith("m3-encoder")


async def test_errors_of_aencode_reach_their_caller_alone(encoder: M3Encoder) -> None:
    results = await asyncio.gather(
        encoder.aencode(["fine"]), encoder.aencode([None]), encoder.aencode(["fine too"]), return_exceptions=True  # type: ignore[list-item]
    )  # fmt: skip
    assert isinstance(results[1], TypeError)
    assert isinstance(results[0], M3Vectors)
    assert isinstance(results[2], M3Vectors)


def test_the_encoder_is_an_encoder(encoder: M3Encoder) -> None:
    assert isinstance(encoder, Encoder)


@pytest.mark.parametrize("length", ["5", True, 5.0])
def test_a_length_that_is_no_integer_is_refused(small: Path, length: Any) -> None:
    with pytest.raises(TypeError, match="max_length must be an integer, got"):
        M3Encoder(small, device="cpu", max_length=length)
