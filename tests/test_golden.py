"""Vectors and scores equal FlagEmbedding's: `make_golden.py` made the values with FlagEmbedding 1.4.2 in float32."""

from pathlib import Path

import numpy as np
import pytest

from m3_integrations import M3Encoder, M3Vectors, ModeWeights, scoring
from tests.golden.checkpoints import SHAPES, build_checkpoint
from tests.golden.texts import PAIRS, TEXTS

GOLDEN = Path(__file__).parent / "golden"

pytestmark = pytest.mark.filterwarnings("ignore:.*longer than")

Golden = tuple[M3Encoder, "np.lib.npyio.NpzFile"]


@pytest.fixture(scope="module", params=list(SHAPES))
def golden(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Golden:
    folder = build_checkpoint(tmp_path_factory.mktemp("golden") / request.param, request.param)
    return M3Encoder(folder, shared=False, device="cpu"), np.load(GOLDEN / f"golden_{request.param}.npz")


def assert_close(actual: object, expected: object) -> None:
    """Within 1e-5 * max(1, |expected|)."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    error = np.abs(actual - expected) / np.maximum(1, np.abs(expected))
    assert error.max(initial=0) <= 1e-5


@pytest.fixture(scope="module")
def vectors(golden: Golden) -> M3Vectors:
    return golden[0].encode(TEXTS)


def test_dense_vectors_are_flagembeddings(golden: Golden, vectors: M3Vectors) -> None:
    assert_close(vectors.dense, golden[1]["dense"])


def test_lexical_weights_are_flagembeddings(golden: Golden, vectors: M3Vectors) -> None:
    reference = golden[1]
    np.testing.assert_array_equal(vectors.lexical.offsets, reference["lexical_offsets"])
    np.testing.assert_array_equal(vectors.lexical.indices, reference["lexical_indices"])
    assert_close(vectors.lexical.values, reference["lexical_values"])


def test_multi_vectors_are_flagembeddings(golden: Golden, vectors: M3Vectors) -> None:
    np.testing.assert_array_equal(vectors.multi_vector.offsets, golden[1]["multi_vector_offsets"])
    assert_close(vectors.multi_vector.flat, golden[1]["multi_vector"])


def test_pair_scores_are_flagembeddings(golden: Golden) -> None:
    encoder, reference = golden
    pairs = [(TEXTS[query], TEXTS[document]) for query, document in PAIRS]
    scores = encoder.score_pairs(pairs, weights=ModeWeights(1, 0.3, 1))
    for mode in ("dense", "lexical", "multi_vector", "combined"):
        assert_close(getattr(scores, mode), reference[f"pair_{mode}"])


def test_padding_does_not_change_max_sim_as_it_does_in_flagembedding(golden: Golden, vectors: M3Vectors) -> None:
    """FlagEmbedding pads documents with zeros, so its best similarity in a batch is never negative; ours can be."""
    reference = golden[1]
    for (query, document), padded in zip(reference["quirk_pairs"], reference["quirk_scores"], strict=True):
        tokens, others = vectors.multi_vector[int(query)], vectors.multi_vector[int(document)]
        best = (tokens.astype(np.float64) @ others.T.astype(np.float64)).max(axis=1)
        (ours,) = scoring.max_sim(tokens, vectors.multi_vector.take(np.array([document])))
        assert_close(ours, best.mean())
        assert_close(padded, np.maximum(best, 0).mean())
        assert padded - ours > 1e-3


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("float16", 1e-2)])
def test_cuda_gives_the_cpus_numbers(golden: Golden, vectors: M3Vectors, dtype: str, tolerance: float) -> None:
    """The tolerances are expectations: this test has not run on a GPU yet."""
    on_device = M3Encoder(golden[0].model, shared=False, device="cuda", dtype=dtype).encode(TEXTS)
    np.testing.assert_allclose(on_device.dense, vectors.dense, atol=tolerance)
    np.testing.assert_array_equal(on_device.multi_vector.offsets, vectors.multi_vector.offsets)
    np.testing.assert_allclose(on_device.multi_vector.flat, vectors.multi_vector.flat, atol=tolerance)
