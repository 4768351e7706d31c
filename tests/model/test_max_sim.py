"""MaxSim on the device against the formula of `scoring`, on the CPU and, where there is one, on a GPU."""

import numpy as np
import pytest
import torch

from m3_integrations import M3Vectors, scoring
from m3_integrations.model.max_sim import best_matches
from m3_integrations.vectors import FloatArray, IntArray
from tests.model.conftest import Load
from tests.test_scoring import random_vectors


def test_the_best_match_of_every_query_token_in_every_document() -> None:
    query = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    flat = torch.tensor([[0.5, -0.5], [0.25, 0.75], [-2.0, -3.0]])
    best = best_matches(query, flat, torch.tensor([0, 0, 2]), 3)
    inf = float("inf")
    assert best.tolist() == [[0.5, 0.75, -0.25], [-inf, -inf, -inf], [-2.0, -3.0, 2.0]]
    np.testing.assert_array_equal(
        scoring.best_matches(query.numpy(), flat.numpy(), np.array([0, 2])), best[[0, 2]].numpy()
    )


def test_half_precision_vectors_are_multiplied_in_float32() -> None:
    query, flat = torch.full((1, 3000), 0.1).half(), torch.full((1, 3000), 0.1).half()
    best = best_matches(query, flat, torch.zeros(1, dtype=torch.int64), 1)
    assert best.item() == pytest.approx(3000 * float(query[0, 0]) ** 2, rel=1e-5)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_scores_are_those_of_the_host(load: Load, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = load(device=device)
    random = np.random.default_rng(0)
    sizes: list[int] = []

    def counted(query: FloatArray, flat: FloatArray, starts: IntArray) -> FloatArray:
        sizes.append(len(flat))
        return network.best_matches(query, flat, starts)

    for trial in range(40):
        monkeypatch.setattr(scoring, "_BLOCK_SIZE", int(random.integers(1, 400)))
        query, documents = random_vectors(random, 1), random_vectors(random, int(random.integers(1, 40)))
        rows = random.integers(0, len(documents), 20)
        for chosen in (None, rows):
            expected = scoring.max_sim(query.multi_vector[0], documents.multi_vector, chosen)
            actual = scoring.max_sim(query.multi_vector[0], documents.multi_vector, chosen, best_matches=counted)
            np.testing.assert_allclose(actual, expected, atol=1e-5, err_msg=str(trial))
    assert len(sizes) > 80


def test_pairs_are_scored_where_they_are_told_to_be(load: Load) -> None:
    network = load()
    random = np.random.default_rng(1)
    queries, documents = random_vectors(random, 3), random_vectors(random, 9)
    of_query, of_document = random.integers(0, 3, 30), random.integers(0, 9, 30)
    pairs: tuple[M3Vectors, M3Vectors, IntArray, IntArray] = (queries, documents, of_query, of_document)
    expected = scoring.score_pairs(*pairs)
    np.testing.assert_allclose(
        scoring.score_pairs(*pairs, best_matches=network.best_matches).combined, expected.combined, atol=1e-5
    )
    never = scoring.score_pairs(*pairs, best_matches=lambda q, _, starts: np.zeros((len(starts), len(q)), np.float32))
    assert not never.multi_vector.any()
    assert expected.multi_vector.any()
