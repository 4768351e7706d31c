"""A reranker as the teacher, and which passages are negatives, against plain loops in float64."""

from __future__ import annotations

import math

import pytest
import torch

from m3_integrations.training.losses import LossSettings, compute_loss
from m3_integrations.training.scores import BatchScores

QUERIES, GROUP = 4, 3
POSITIVES = torch.arange(QUERIES) * GROUP


def draw_scores(seed: int) -> BatchScores:
    generator = torch.Generator().manual_seed(seed)
    return BatchScores(
        *(torch.rand(QUERIES, QUERIES * GROUP, generator=generator, dtype=torch.float64) / 10 for _ in range(3))
    )


def draw_teacher(seed: int) -> torch.Tensor:
    return torch.randn(QUERIES, GROUP, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax(row: list[float]) -> list[float]:
    total = math.fsum(math.exp(value) for value in row)
    return [math.exp(value) / total for value in row]


def nce(row: list[float], target: int, columns: list[int]) -> float:
    return math.log(math.fsum(math.exp(row[column]) for column in columns)) - row[target]


def expected_term(logits: torch.Tensor, teacher: torch.Tensor, kind: str) -> float:
    """FlagEmbedding's two losses, one query after the other."""
    losses = []
    for i, row in enumerate(logits.tolist()):
        target, group = softmax(teacher[i].tolist()), list(range(i * GROUP, i * GROUP + GROUP))
        if kind == "kl_div":
            taught = -math.fsum(t * math.log(s) for t, s in zip(target, softmax([row[j] for j in group]), strict=True))
            losses.append(taught + nce(row, group[0], list(range(len(row)))))
        else:
            parts = []
            for place, column in enumerate(group):
                rest = [j for j in range(len(row)) if j not in group[:place]]
                parts.append(target[place] * nce(row, column, rest))
            losses.append(math.fsum(parts))
    return math.fsum(losses) / len(losses)


@pytest.mark.parametrize("kind", ["kl_div", "m3_kd_loss"])
@pytest.mark.parametrize("is_beside", [True, False], ids=["beside the ensemble", "instead of it"])
def test_a_reranker_teaches_all_four_losses_in_both_of_flagembeddings_forms(kind: str, is_beside: bool) -> None:
    scores, teacher = draw_scores(1), draw_teacher(2)
    settings = LossSettings(knowledge_distillation=True, kd_loss_type=kind, self_distillation=is_beside)
    terms = compute_loss(scores, POSITIVES, settings, group_size=GROUP, teacher_scores=teacher)
    logits = {name: getattr(scores, name) / 0.02 for name in ("dense", "lexical", "multi_vector")}
    logits["ensemble"] = logits["dense"] + 0.3 * logits["lexical"] + logits["multi_vector"]
    for name, each in logits.items():
        assert getattr(terms, name).item() == pytest.approx(expected_term(each, teacher, kind), abs=1e-9), name
    total = (terms.dense + 0.1 * terms.lexical + terms.multi_vector + terms.ensemble) / 4
    if is_beside:
        without = compute_loss(scores, POSITIVES, LossSettings(), group_size=GROUP)
        for name in ("dense_distillation", "lexical_distillation", "multi_vector_distillation"):
            assert getattr(terms, name).equal(getattr(without, name))
        distilled = terms.dense_distillation + 0.1 * terms.lexical_distillation + terms.multi_vector_distillation
        total = (total + distilled / 3) / 2
    assert terms.total.item() == pytest.approx(total.item(), abs=1e-9)


def test_a_teacher_without_scores_is_refused() -> None:
    with pytest.raises(ValueError, match="needs teacher_scores: pos_scores and neg_scores in the data"):
        compute_loss(draw_scores(1), POSITIVES, LossSettings(knowledge_distillation=True), group_size=GROUP)


def expected_masked(scores: BatchScores, masked: list[tuple[int, int]]) -> float:
    """The paper's loss with some passages taken out of the softmax of some queries."""
    logits = [(each / 0.02).tolist() for each in (scores.dense, scores.lexical, scores.multi_vector)]
    ensemble = [[d + 0.3 * s + m for d, s, m in zip(*rows, strict=True)] for rows in zip(*logits, strict=True)]
    contrastive, distilled = [], []
    for each in (*logits, ensemble):
        parts, taught = [], []
        for i, row in enumerate(each):
            columns = [j for j in range(len(row)) if (i, j) not in masked]
            parts.append(nce(row, i * GROUP, columns))
            target = softmax([ensemble[i][j] for j in columns])
            taught.append(math.fsum(t * nce(row, j, columns) for t, j in zip(target, columns, strict=True)))
        contrastive.append(math.fsum(parts) / QUERIES)
        distilled.append(math.fsum(taught) / QUERIES)
    total = (contrastive[0] + 0.1 * contrastive[1] + contrastive[2] + contrastive[3]) / 4
    return (total + (distilled[0] + 0.1 * distilled[1] + distilled[2]) / 3) / 2


def test_a_known_answer_is_no_negative() -> None:
    scores = draw_scores(3)
    known = torch.zeros(QUERIES, QUERIES * GROUP, dtype=torch.bool)
    known[0, 0] = known[0, 6] = known[2, 6] = known[2, 7] = True  # positives among them, which stay
    terms = compute_loss(scores, POSITIVES, group_size=GROUP, known_answers=known)
    assert terms.total.item() == pytest.approx(expected_masked(scores, [(0, 6), (2, 7)]), abs=1e-9)
    off = compute_loss(scores, POSITIVES, LossSettings(mask_known_answers=False), group_size=GROUP, known_answers=known)
    assert off.total.item() == pytest.approx(expected_masked(scores, []), abs=1e-9)


def test_a_passage_that_scores_better_than_the_positive_by_more_than_the_margin_is_no_negative() -> None:
    scores, margin = draw_scores(4), 0.02
    raw = (scores.dense + 0.3 * scores.lexical + scores.multi_vector) / 2.3
    masked = [
        (i, j)
        for i in range(QUERIES)
        for j in range(QUERIES * GROUP)
        if raw[i, j].item() > raw[i, i * GROUP].item() + margin
    ]
    assert 3 < len(masked) < 30
    terms = compute_loss(scores, POSITIVES, LossSettings(false_negative_margin=margin), group_size=GROUP)
    assert terms.total.item() == pytest.approx(expected_masked(scores, masked), abs=1e-9)


def test_masked_passages_get_no_gradient_and_no_other_is_lost() -> None:
    tensors = [
        each.clone().requires_grad_() for each in (draw_scores(5).dense, draw_scores(6).dense, draw_scores(7).dense)
    ]
    known = torch.zeros(QUERIES, QUERIES * GROUP, dtype=torch.bool)
    known[1, 7] = True
    terms = compute_loss(BatchScores(*tensors), POSITIVES, group_size=GROUP, known_answers=known)
    for gradient in torch.autograd.grad(terms.total, tensors):
        assert bool(torch.isfinite(gradient).all())
        assert (gradient == 0).nonzero().tolist() == [[1, 7]]


def test_a_teacher_is_not_overruled_by_a_mask_within_its_group() -> None:
    scores, teacher = draw_scores(8), draw_teacher(9)
    known = torch.ones(QUERIES, QUERIES * GROUP, dtype=torch.bool)
    settings = LossSettings(
        knowledge_distillation=True, kd_loss_type="m3_kd_loss", self_distillation=False, false_negative_margin=-1.0
    )
    terms = compute_loss(scores, POSITIVES, settings, group_size=GROUP, known_answers=known, teacher_scores=teacher)
    alone = LossSettings(
        knowledge_distillation=True, kd_loss_type="m3_kd_loss", self_distillation=False, in_batch_negatives=False
    )
    expected = compute_loss(scores, POSITIVES, alone, group_size=GROUP, teacher_scores=teacher)
    assert terms.total.equal(expected.total)
    assert expected.total > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kd_loss_type": "mse"}, "kd_loss_type must be one of kl_div, m3_kd_loss, got 'mse'"),
        ({"false_negative_margin": math.nan}, "false_negative_margin must be a number, got nan"),
    ],
)
def test_a_wrong_setting_of_a_teacher_or_a_mask_is_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LossSettings(**settings)  # type: ignore[arg-type]
