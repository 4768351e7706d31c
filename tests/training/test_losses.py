"""The loss against a second implementation in float64, written from the paper's formulas with plain loops."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from m3_integrations.training.losses import LossSettings, compute_loss
from m3_integrations.training.scores import (
    BatchScores,
    TextViews,
    join_views,
    lexical_scores,
    multi_vector_scores,
    score_batch,
)

Array = NDArray[np.float64]


def random_views(seed: int, n: int, length: int, dim: int, vocab_size: int) -> TextViews:
    """Texts of different lengths that repeat tokens, some of weight 0."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, length + 1, (n,), generator=generator)
    mask = torch.arange(length) < lengths[:, None]
    ids = torch.randint(3, vocab_size, (n, length), generator=generator).masked_fill(~mask, 1)
    weights = torch.relu(torch.randn(n, length, generator=generator, dtype=torch.float64)).masked_fill(~mask, 0.0)
    vectors = torch.randn(n, length, dim, generator=generator, dtype=torch.float64)
    dense = torch.randn(n, dim, generator=generator, dtype=torch.float64)
    return TextViews(
        dense=dense / dense.norm(dim=-1, keepdim=True),
        token_ids=ids,
        token_weights=weights,
        token_vectors=vectors / vectors.norm(dim=-1, keepdim=True),
        vector_mask=mask,
    )


def log_softmax(row: Array) -> Array:
    highest = max(row)
    return np.asarray(row - highest - math.log(math.fsum(math.exp(x - highest) for x in row)))


def paper_terms(dense: Array, lexical: Array, multi: Array, positives: list[int], s: LossSettings) -> dict[str, float]:
    """arXiv 2402.03216v4, section 3.3, query by query."""
    modes = {"dense": dense, "lexical": lexical, "multi_vector": multi}
    modes = {name: scores / s.temperature for name, scores in modes.items()}
    inter = (
        s.dense_weight * modes["dense"]
        + s.lexical_weight * modes["lexical"]
        + s.multi_vector_weight * modes["multi_vector"]
    )
    queries = range(len(positives))

    def info_nce(scores: Array) -> float:
        return -math.fsum(log_softmax(scores[i])[positives[i]] for i in queries) / len(positives)

    def distil(scores: Array) -> float:
        parts = [
            math.exp(a) * b for i in queries for a, b in zip(log_softmax(inter[i]), log_softmax(scores[i]), strict=True)
        ]
        return -math.fsum(parts) / len(positives)

    terms = {name: info_nce(scores) for name, scores in modes.items()}
    terms["ensemble"] = info_nce(inter)
    terms |= {f"{name}_distillation": distil(scores) if s.self_distillation else 0.0 for name, scores in modes.items()}
    lambdas = {"dense": s.dense_lambda, "lexical": s.lexical_lambda, "multi_vector": s.multi_vector_lambda}
    contrastive = (math.fsum(lambdas[name] * terms[name] for name in modes) + terms["ensemble"]) / 4
    distilled = math.fsum(lambdas[name] * terms[f"{name}_distillation"] for name in modes) / 3
    terms["total"] = (contrastive + distilled) / 2 if s.self_distillation else contrastive
    return terms


@pytest.mark.parametrize("group_size", [1, 3])
@pytest.mark.parametrize(
    "settings",
    [
        LossSettings(),
        LossSettings(self_distillation=False),
        LossSettings(temperature=0.05, dense_weight=0.5, lexical_weight=0.7, multi_vector_weight=0.2,
                     dense_lambda=0.4, lexical_lambda=0.9, multi_vector_lambda=0.3),
    ],
    ids=["paper", "without distillation", "other numbers"],
)  # fmt: skip
def test_every_term_of_the_loss_equals_a_float64_implementation_of_the_paper(
    settings: LossSettings, group_size: int
) -> None:
    queries, passages = random_views(1, 5, 6, 8, 20), random_views(2, 5 * group_size, 9, 8, 20)
    scores = score_batch(queries, passages)
    positives = torch.arange(5) * group_size
    terms = compute_loss(scores, positives, settings)
    expected = paper_terms(
        scores.dense.numpy(), scores.lexical.numpy(), scores.multi_vector.numpy(), positives.tolist(), settings
    )
    assert {name: getattr(terms, name).item() for name in expected} == pytest.approx(expected, abs=1e-9, rel=0)


def test_the_teacher_gets_no_gradient() -> None:
    tensors = [torch.randn(3, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    settings = LossSettings(dense_lambda=0.0, multi_vector_lambda=0.0, lexical_lambda=1.0)
    terms = compute_loss(BatchScores(*tensors), torch.arange(3), settings)
    (gradient,) = torch.autograd.grad(terms.lexical_distillation, tensors[0], allow_unused=True)
    assert gradient is None


def test_lexical_scores_equal_brute_force() -> None:
    queries, passages = random_views(3, 4, 7, 2, 12), random_views(4, 6, 11, 2, 12)
    expected = np.zeros((4, 6))
    for q in range(4):
        for p in range(6):
            for token in set(queries.token_ids[q].tolist()) & set(passages.token_ids[p].tolist()):
                in_query = max(queries.token_weights[q][queries.token_ids[q] == token].tolist())
                in_passage = max(passages.token_weights[p][passages.token_ids[p] == token].tolist())
                expected[q, p] += in_query * in_passage
    assert expected.max() > 0
    np.testing.assert_allclose(lexical_scores(queries, passages).numpy(), expected, rtol=0, atol=1e-12)


def test_lexical_gradients_equal_finite_differences() -> None:
    queries, passages = random_views(5, 3, 5, 2, 9), random_views(6, 4, 6, 2, 9)
    distinct = torch.rand(passages.token_weights.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def scores(in_queries: torch.Tensor, in_passages: torch.Tensor) -> torch.Tensor:
        return lexical_scores(
            dataclasses.replace(queries, token_weights=in_queries),
            dataclasses.replace(passages, token_weights=in_passages),
        )

    start = (distinct[:3, :5] + 0.1).clone().requires_grad_(), (distinct + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(scores, start)


def test_multi_vector_scores_equal_brute_force_and_padding_never_wins() -> None:
    queries, passages = random_views(7, 4, 6, 3, 20), random_views(8, 5, 9, 3, 20)
    # Every real product is negative, so a padding of 0 would win.
    queries.token_vectors.copy_(queries.token_vectors.abs())
    passages.token_vectors.copy_(-passages.token_vectors.abs())
    expected = np.zeros((4, 5))
    for q in range(4):
        for p in range(5):
            real_query = queries.token_vectors[q][queries.vector_mask[q]].numpy()
            real_passage = passages.token_vectors[p][passages.vector_mask[p]].numpy()
            expected[q, p] = np.mean([max(token @ other for other in real_passage) for token in real_query])
    assert expected.max() < 0
    np.testing.assert_allclose(multi_vector_scores(queries, passages).numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 0.0),
        ("temperature", math.nan),
        ("lexical_weight", -0.1),
        ("dense_weight", math.inf),
        ("dense_lambda", -1.0),
        ("dense_lambda", math.nan),
    ],
)
def test_numbers_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        LossSettings(**{name: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one weight more"):
        LossSettings(dense_weight=0, lexical_weight=0, multi_vector_weight=0)


def test_max_sim_in_parts_equals_max_sim_at_once_with_its_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, passages = random_views(11, 3, 5, 4, 9), random_views(12, 7, 6, 4, 9)
    weights = torch.randn(3, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    results = []
    for at_once in (10**9, 2 * 3 * 5 * 6):  # all, or two passages
        vectors = [views.token_vectors.clone().requires_grad_() for views in (queries, passages)]
        pair = [
            dataclasses.replace(views, token_vectors=each)
            for views, each in zip((queries, passages), vectors, strict=True)
        ]
        monkeypatch.setattr("m3_integrations.training.scores._PRODUCTS_AT_ONCE", at_once)
        scores = multi_vector_scores(pair[0], pair[1])
        results.append((scores, *torch.autograd.grad((scores * weights).sum(), vectors)))
    for whole, part in zip(*results, strict=True):
        torch.testing.assert_close(part, whole, rtol=0, atol=1e-12)


def test_joined_views_are_padded_with_what_scores_nothing() -> None:
    parts = [random_views(13, 2, 4, 3, 9), random_views(14, 3, 7, 3, 9)]
    queries, joined = random_views(15, 2, 5, 3, 9), join_views(parts)
    expected = [score_batch(queries, part) for part in parts]
    got = score_batch(queries, joined)
    for mode in ("dense", "lexical", "multi_vector"):
        torch.testing.assert_close(getattr(got, mode), torch.cat([getattr(each, mode) for each in expected], dim=1))
