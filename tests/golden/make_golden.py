"""Writes the golden values: what FlagEmbedding says of TEXTS and PAIRS on the random checkpoints.

Needs FlagEmbedding==1.4.2, which no test needs. From the root of the repository:

    python -m tests.golden.make_golden

writes golden_<shape>.npz for every shape, the same bytes each time on one machine.

Every value is computed in float32 on one text or one pair at a time, so nothing is padded. The texts are also encoded
in one padded batch, and the two must agree. In golden_<shape>.npz (n texts, p pairs):

- `dense` (n, d) float32, unit length.
- `lexical_offsets` (n + 1,) int64, `lexical_indices` int32 rising within a text, `lexical_values` float32: the weights
  of text i are at lexical_offsets[i]:lexical_offsets[i + 1].
- `multi_vector_offsets` (n + 1,) int64, `multi_vector` (tokens, colbert_dim) float32, rows of unit length.
- `pair_dense`, `pair_lexical`, `pair_multi_vector` (p,) float32: scores of the vectors above.
- `pair_combined` (p,) float32: `compute_score`'s weighted mean of the three, with `combined_weights` (3,) for dense,
  lexical, multi-vector. It pads query and document each to the longest of its batch, so a pair alone is not padded, and
  its three scores are checked to equal those above.
- `quirk_pairs` (4, 2) int64, `quirk_scores` (4,) float32: the multi-vector score that `compute_score` gives these pairs
  in a padded batch. Padding rows are zeros and take part in the maximum, so a query token whose best document token has
  a negative cosine counts 0. `quirk_unpadded_scores` is what the pairs score alone, and what an encoder has to
  give whatever the batch.
- `versions`: what the values were computed with.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray

from tests.golden.checkpoints import SHAPES, CheckpointShape, build_checkpoint
from tests.golden.texts import NAMES, PAIRS, TEXTS

FLAG_EMBEDDING_VERSION = "1.4.2"

_PACKAGES = ("FlagEmbedding", "torch", "transformers", "tokenizers", "numpy")
_TOLERANCE = 1e-5
_COMBINED_WEIGHTS = [1.0, 0.3, 1.0]  # dense, lexical, multi-vector
_MIN_LEXICAL_MARGIN = 1e-4
_QUIRK_COUNT = 4

Float32 = NDArray[np.float32]


class _Reference(Protocol):
    """The part of FlagEmbedding's `BGEM3FlagModel` that is used here."""

    model: Any
    tokenizer: Any

    def encode(self, sentences: list[str], **settings: object) -> dict[str, Any]: ...

    def compute_score(self, sentence_pairs: list[tuple[str, str]], **settings: object) -> dict[str, list[float]]: ...

    def compute_lexical_matching_score(self, first: dict[str, Any], second: dict[str, Any]) -> float: ...

    def colbert_score(self, query: Float32, document: Float32) -> torch.Tensor: ...


def main() -> None:
    """Write the golden values."""
    torch.set_num_threads(1)  # the same order of additions on every run
    for shape in SHAPES:
        _write_golden(shape)


def _write_golden(shape: str) -> None:
    sizes = SHAPES[shape]
    with tempfile.TemporaryDirectory() as folder:
        reference = _load(build_checkpoint(Path(folder), shape), sizes)
    _check_texts(reference, sizes.max_length)
    dense, lexical, multi_vector = _encode(reference, TEXTS, sizes.max_length)
    _check_batched(reference, sizes.max_length, dense, lexical, multi_vector)
    _check_lexical_margin(reference, sizes.max_length)

    arrays: dict[str, NDArray[Any]] = {
        "dense": dense,
        **_flatten_lexical(lexical),
        "multi_vector_offsets": _offsets(multi_vector),
        "multi_vector": np.concatenate(multi_vector),
        **_score_pairs(reference, sizes.max_length, dense, lexical, multi_vector),
        **_find_quirk(reference, sizes.max_length, multi_vector),
        "versions": np.array([f"{package}=={version(package)}" for package in _PACKAGES]),
    }
    path = Path(__file__).with_name(f"golden_{shape}.npz")
    np.savez_compressed(path, allow_pickle=False, **arrays)
    _report(path, dense, reference, sizes.max_length)


def _load(folder: Path, sizes: CheckpointShape) -> _Reference:
    """FlagEmbedding's model of a checkpoint, in true float32 (its default rounds the weights to float16)."""
    installed = version("FlagEmbedding")
    if installed != FLAG_EMBEDDING_VERSION:
        raise RuntimeError(f"needs FlagEmbedding=={FLAG_EMBEDDING_VERSION}, got {installed}")
    from FlagEmbedding import BGEM3FlagModel

    model = BGEM3FlagModel(str(folder), use_fp16=False, devices="cpu", colbert_dim=sizes.colbert_dim)
    return cast(_Reference, model)


def _encode(
    reference: _Reference, texts: Iterable[str], max_length: int
) -> tuple[Float32, list[dict[str, Any]], list[Float32]]:
    """Dense vectors, lexical weights and multi-vectors, one text per call."""
    single = [_encode_batch(reference, [text], max_length) for text in texts]
    dense = np.concatenate([output["dense_vecs"] for output in single])
    assert dense.dtype == np.float32
    return dense, [o["lexical_weights"][0] for o in single], [o["colbert_vecs"][0] for o in single]


def _encode_batch(reference: _Reference, texts: list[str], max_length: int) -> dict[str, Any]:
    return reference.encode(
        texts, max_length=max_length, return_dense=True, return_sparse=True, return_colbert_vecs=True
    )


def _flatten_lexical(lexical: list[dict[str, Any]]) -> dict[str, NDArray[Any]]:
    rising = [sorted((int(token), weight) for token, weight in weights.items()) for weights in lexical]
    return {
        "lexical_offsets": _offsets(rising),
        "lexical_indices": np.array([token for items in rising for token, _ in items], dtype=np.int32),
        "lexical_values": np.array([weight for items in rising for _, weight in items], dtype=np.float32),
    }


def _score_pairs(
    reference: _Reference,
    max_length: int,
    dense: Float32,
    lexical: list[dict[str, Any]],
    multi_vector: list[Float32],
) -> dict[str, Float32]:
    scores = {
        "dense": [dense[query] @ dense[document] for query, document in PAIRS],
        "lexical": [reference.compute_lexical_matching_score(lexical[q], lexical[d]) for q, d in PAIRS],
        "multi_vector": [reference.colbert_score(multi_vector[q], multi_vector[d]).item() for q, d in PAIRS],
    }
    alone = [_compute_score(reference, [(query, document)], max_length) for query, document in PAIRS]
    for mode, key in (("dense", "dense"), ("lexical", "sparse"), ("multi_vector", "colbert")):
        _assert_close(f"compute_score's {key}", [output[key][0] for output in alone], scores[mode])
    scores["combined"] = [output["colbert+sparse+dense"][0] for output in alone]
    arrays = {f"pair_{mode}": np.array(values, dtype=np.float32) for mode, values in scores.items()}
    return {**arrays, "combined_weights": np.array(_COMBINED_WEIGHTS, dtype=np.float32)}


def _compute_score(reference: _Reference, pairs: list[tuple[int, int]], max_length: int) -> dict[str, list[float]]:
    """FlagEmbedding's scores of pairs of TEXTS, in one batch."""
    return reference.compute_score(
        [(TEXTS[query], TEXTS[document]) for query, document in pairs],
        max_query_length=max_length,
        max_passage_length=max_length,
        weights_for_different_modes=_COMBINED_WEIGHTS,
    )


def _find_quirk(reference: _Reference, max_length: int, multi_vector: list[Float32]) -> dict[str, NDArray[Any]]:
    """The pairs of texts that padding moves most, with their scores in one batch with a long pair, and alone.

    No text is taken twice on the same side. The largest effects are on short documents: the fewer the tokens, the more
    likely is a query token whose best cosine is negative.
    """
    longest = max(range(len(TEXTS)), key=lambda text: (len(multi_vector[text]), -text))
    lost = {
        (query, document): float(np.minimum((multi_vector[query] @ multi_vector[document].T).max(axis=1), 0).mean())
        for query, document in product(range(len(TEXTS)), repeat=2)
        if len(multi_vector[document]) < len(multi_vector[longest])
    }
    pairs: list[tuple[int, int]] = []
    for query, document in sorted(lost, key=lambda pair: (lost[pair], pair)):
        if len(pairs) < _QUIRK_COUNT and all(query != q and document != d for q, d in pairs):
            pairs.append((query, document))
    padded = _compute_score(reference, [*pairs, (longest, longest)], max_length)["colbert"][:_QUIRK_COUNT]
    alone = [reference.colbert_score(multi_vector[q], multi_vector[d]).item() for q, d in pairs]
    moved = np.abs(np.array(padded) - np.array(alone))
    assert moved.min() > 1e-2, f"padding moves some of these pairs too little to be seen: {moved}"
    return {
        "quirk_pairs": np.array(pairs, dtype=np.int64),
        "quirk_scores": np.array(padded, dtype=np.float32),
        "quirk_unpadded_scores": np.array(alone, dtype=np.float32),
    }


def _offsets(parts: Iterable[Any]) -> NDArray[np.int64]:
    return np.cumsum([0, *(len(part) for part in parts)], dtype=np.int64)


# What has to hold for the values to be worth keeping


def _check_texts(reference: _Reference, max_length: int) -> None:
    """The texts are what their names say, under the tokenizer that FlagEmbedding loads."""
    ids = {name: reference.tokenizer(text, verbose=False).input_ids for name, text in zip(NAMES, TEXTS, strict=True)}
    assert len(set(TEXTS)) == len(TEXTS)
    for name, tokens in ids.items():
        if name.startswith("tokens_"):
            assert len(tokens) == int(name.removeprefix("tokens_")), f"{name} has {len(tokens)} tokens"
        if name.startswith("over_"):
            assert len(tokens) > 2 * max_length, f"{name} has {len(tokens)} tokens"
    mask = reference.tokenizer.mask_token_id
    assert mask == len(reference.tokenizer) - 1
    assert [ids[f"literal_{name}"].count(id_) for name, id_ in (("bos", 0), ("eos", 2), ("unk", 3))] == [2, 2, 1]
    assert ids["literal_pad_only"] == [0, 1, 1, 1, 2]
    assert mask in ids["literal_mask"]
    assert 3 in ids["unknown_cuneiform"]
    words = reference.tokenizer(TEXTS[NAMES.index("over_inside_word")], verbose=False).word_ids()
    assert words[max_length - 2] == words[max_length - 1]  # the last token kept and the first one cut


def _check_batched(
    reference: _Reference,
    max_length: int,
    dense: Float32,
    lexical: list[dict[str, Any]],
    multi_vector: list[Float32],
) -> None:
    """One padded batch of all texts says the same as one text at a time."""
    batch = _encode_batch(reference, list(TEXTS), max_length)
    _assert_close("dense in a batch", batch["dense_vecs"], dense)
    _assert_close("multi-vectors in a batch", np.concatenate(batch["colbert_vecs"]), np.concatenate(multi_vector))
    for batched, alone in zip(batch["lexical_weights"], lexical, strict=True):
        assert batched.keys() == alone.keys()
        _assert_close("lexical in a batch", [batched[token] for token in alone], list(alone.values()))


def _check_lexical_margin(reference: _Reference, max_length: int) -> None:
    """No weight is so near 0 that rounding decides whether its token is in the result at all."""
    weights = _raw_lexical_weights(reference, max_length)
    nearest = np.abs(weights).min()
    assert nearest > _MIN_LEXICAL_MARGIN, f"a lexical weight is {nearest} before ReLU; take another seed"


def _raw_lexical_weights(reference: _Reference, max_length: int) -> Float32:
    """The sparse head's output for every token of every text, before ReLU."""
    parts = []
    for text in TEXTS:
        inputs = reference.tokenizer(text, truncation=True, max_length=max_length, return_tensors="pt")
        with torch.no_grad():
            hidden = reference.model.model(**inputs).last_hidden_state
            parts.append(reference.model.sparse_linear(hidden).flatten().numpy())
    return cast(Float32, np.concatenate(parts))


def _assert_close(what: str, actual: Any, expected: Any) -> None:
    actual, expected = np.asarray(actual, dtype=np.float32), np.asarray(expected, dtype=np.float32)
    error = float(np.max(np.abs(actual - expected) / np.maximum(1, np.abs(expected)), initial=0.0))
    assert error < _TOLERANCE, f"{what} is off by {error}"


def _report(path: Path, dense: Float32, reference: _Reference, max_length: int) -> None:
    cosines = (dense @ dense.T)[np.triu_indices(len(dense), k=1)]
    spread = ", ".join(f"{value:.2f}" for value in np.quantile(cosines, [0, 0.05, 0.5, 0.95, 1]))
    positive = float((_raw_lexical_weights(reference, max_length) > 0).mean())
    sys.stdout.write(
        f"{path.name}: {path.stat().st_size:,} bytes, {len(TEXTS)} texts, {len(PAIRS)} pairs, cosines between texts "
        f"{spread} (0, 5, 50, 95, 100 %), {positive:.0%} of the lexical weights above 0\n"
    )


if __name__ == "__main__":
    main()
