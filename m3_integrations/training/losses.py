"""The training loss of BGE-M3: InfoNCE in every mode, and distillation from their ensemble and from a reranker."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name

from m3_integrations.training.scores import BatchScores

_KD_LOSSES: Final = ("kl_div", "m3_kd_loss")


@dataclass(frozen=True, slots=True, kw_only=True)
class LossSettings:
    """The numbers of the loss; the defaults are the paper's.

    Attributes:
        temperature: Every score is divided by it.
        dense_weight: The weight of the dense score in the ensemble: w1 of the paper.
        lexical_weight: The weight of the lexical score: w2.
        multi_vector_weight: The weight of the multi-vector score: w3.
        dense_lambda: The weight of the dense loss and of its distillation: lambda 1 of the paper.
        lexical_lambda: The weight of the lexical loss and of its distillation: lambda 2.
        multi_vector_lambda: The weight of the multi-vector loss and of its distillation: lambda 3.
        self_distillation: Whether the ensemble teaches the modes.
        knowledge_distillation: Whether the scores in the data (pos_scores and neg_scores of a reranker) teach every
            mode and the ensemble. With self_distillation there are two teachers.
        kd_loss_type: The formula of this teaching, by FlagEmbedding's names: see `compute_loss`.
        in_batch_negatives: Whether the passages of other queries are negatives too, not only a query's own.
        mask_known_answers: Whether a passage that the data call an answer to a query, in any example of this query, is
            never its negative, even if it is a passage of another query of the batch or among the example's own
            negatives. Queries, with their instruction, and passages must be equal character by character. With
            knowledge_distillation the teacher scores the example's own negatives, so they stay.
        false_negative_margin: A passage does not count as a negative if its ensemble score, the weighted mean of the
            three raw scores, exceeds the positive's by more than this; infinite for never. In the contrastive stage it
            is the dense score.
    """

    temperature: float = 0.02
    dense_weight: float = 1.0
    lexical_weight: float = 0.3
    multi_vector_weight: float = 1.0
    dense_lambda: float = 1.0
    lexical_lambda: float = 0.1
    multi_vector_lambda: float = 1.0
    self_distillation: bool = True
    knowledge_distillation: bool = False
    kd_loss_type: str = "kl_div"
    in_batch_negatives: bool = True
    mask_known_answers: bool = True
    false_negative_margin: float = math.inf

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be positive and finite, got {self.temperature}")
        weights = (self.dense_weight, self.lexical_weight, self.multi_vector_weight)
        lambdas = (self.dense_lambda, self.lexical_lambda, self.multi_vector_lambda)
        if not all(0 <= number < math.inf for number in (*weights, *lambdas)) or not sum(weights):
            raise ValueError(
                f"weights and lambdas must be 0 or more and finite, and one weight more, got {weights} and {lambdas}"
            )
        if self.kd_loss_type not in _KD_LOSSES:
            raise ValueError(f"kd_loss_type must be one of {', '.join(_KD_LOSSES)}, got {self.kd_loss_type!r}")
        if math.isnan(self.false_negative_margin):
            raise ValueError("false_negative_margin must be a number, got nan")


@dataclass(frozen=True, slots=True)
class LossTerms:
    """The loss of one batch and all its terms, each a scalar, before they are multiplied by their lambdas.

    The first four terms are InfoNCE, or with knowledge distillation what `compute_loss` describes. The last three are
    the cross entropy with the ensemble's distribution; they are 0 without self-distillation.

    Attributes:
        total: The loss that is minimised.
        dense: InfoNCE of the dense scores.
        lexical: InfoNCE of the lexical scores.
        multi_vector: InfoNCE of the multi-vector scores.
        ensemble: InfoNCE of the weighted sum of the three scores.
        dense_distillation: Cross entropy of the dense scores.
        lexical_distillation: Cross entropy of the lexical scores.
        multi_vector_distillation: Cross entropy of the multi-vector scores.
    """

    total: torch.Tensor
    dense: torch.Tensor
    lexical: torch.Tensor
    multi_vector: torch.Tensor
    ensemble: torch.Tensor
    dense_distillation: torch.Tensor
    lexical_distillation: torch.Tensor
    multi_vector_distillation: torch.Tensor


def compute_loss(
    scores: BatchScores,
    positives: torch.Tensor,
    settings: LossSettings | None = None,
    *,
    group_size: int = 1,
    known_answers: torch.Tensor | None = None,
    teacher_scores: torch.Tensor | None = None,
) -> LossTerms:
    """Return the loss of the paper's section 3.3 in its fourth version (arXiv 2402.03216v4).

    Every score is divided by the temperature. Then s_inter = w1 s_dense + w2 s_lex + w3 s_mul,
    L = (l1 L_dense + l2 L_lex + l3 L_mul + L_inter) / 4 and L' = (l1 L'_dense + l2 L'_lex + l3 L'_mul) / 3. The loss is
    (L + L') / 2. The teacher in L' is the softmax of s_inter without gradient. Without self-distillation the loss is L.

    Some guides print the third version's formulas: plain sums of the scores and losses, and L + L'. BGE-M3 was trained
    with the fourth version, as its code shows. The lexical head begins at random and its poor scores must not dominate
    the teacher, so its weight is 0.3 in the ensemble and 0.1 in the loss.

    Knowledge distillation changes each of the four L, in one of FlagEmbedding's two ways. t is the softmax of the
    teacher's scores over a query's own group, at temperature 1. "kl_div" adds to InfoNCE the cross entropy of t with
    the softmax over the group. "m3_kd_loss" replaces InfoNCE by the sum over the group of t_i times InfoNCE with
    passage i as the positive and without passages 0 to i - 1 of the group.

    Args:
        scores: The scores of every query with every passage.
        positives: (queries,) int64, the column of the passage that answers each query. The rest of its group follows.
        settings: The settings of the loss; the paper's if None.
        group_size: The number of passages in each query's group.
        known_answers: (queries, passages) bool, whether the data call the passage an answer to the query.
        teacher_scores: (queries, group_size), the reranker's scores on any scale.

    Raises:
        ValueError: If knowledge distillation is on without teacher_scores.
    """
    settings = settings or LossSettings()
    if settings.knowledge_distillation and teacher_scores is None:
        raise ValueError("knowledge_distillation needs teacher_scores: pos_scores and neg_scores in the data")
    weights = (settings.dense_weight, settings.lexical_weight, settings.multi_vector_weight)
    raw = (scores.dense, scores.lexical, scores.multi_vector)
    raw_ensemble = weights[0] * raw[0] + weights[1] * raw[1] + weights[2] * raw[2]
    own = positives[:, None] + torch.arange(group_size, device=positives.device)  # (queries, group): their columns
    allowed = find_allowed((raw_ensemble / sum(weights)).detach(), own, settings, known_answers)
    *modes, ensemble = (
        (score / settings.temperature).masked_fill(~allowed, -torch.inf) for score in (*raw, raw_ensemble)
    )
    teacher = teacher_scores.softmax(dim=1) if teacher_scores is not None and settings.knowledge_distillation else None
    contrastive = [_contrast(logits, own, teacher, settings) for logits in (*modes, ensemble)]
    total = (_weigh(contrastive[:3], settings) + contrastive[3]) / 4
    distilled = [torch.zeros_like(total)] * 3
    if settings.self_distillation:
        target = ensemble.detach().softmax(dim=1)
        distilled = [_cross_entropy(logits, target) for logits in modes]
        total = (total + _weigh(distilled, settings) / 3) / 2
    return LossTerms(total, *contrastive, *distilled)


def find_allowed(
    scores: torch.Tensor, own: torch.Tensor, settings: LossSettings, known_answers: torch.Tensor | None
) -> torch.Tensor:
    """Return which passages are in each query's softmax, its positive and negatives: (queries, passages) bool.

    Args:
        scores: (queries, passages), the scores that false_negative_margin is about, without gradient.
        own: (queries, group_size) int64, the columns of each query's group, its positive first.
        settings: The settings of the loss.
        known_answers: (queries, passages) bool, whether the data call the passage an answer to the query.
    """
    of_positive = scores.gather(1, own[:, :1])
    allowed = scores - of_positive <= settings.false_negative_margin
    if not settings.in_batch_negatives:
        allowed &= torch.zeros_like(allowed).scatter(1, own, value=True)
    if known_answers is not None and settings.mask_known_answers:
        allowed &= ~known_answers
    # With a teacher's scores no passage of the group can be a false negative.
    kept = own if settings.knowledge_distillation else own[:, :1]
    return allowed.scatter(1, kept, value=True)


def _contrast(
    logits: torch.Tensor, own: torch.Tensor, teacher: torch.Tensor | None, settings: LossSettings
) -> torch.Tensor:
    """Return InfoNCE, or with a teacher the loss of knowledge distillation that `compute_loss` describes."""
    if teacher is None or settings.kd_loss_type == "kl_div":
        loss = F.cross_entropy(logits, own[:, 0])
        return loss if teacher is None else loss + _cross_entropy(logits.gather(1, own), teacher)
    total = torch.zeros_like(logits[:, 0])
    for place in range(own.shape[1]):
        rest = logits.scatter(1, own[:, :place], -torch.inf)
        total = total + teacher[:, place] * F.cross_entropy(rest, own[:, place], reduction="none")
    return total.mean()


def _cross_entropy(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the mean cross entropy with a target distribution; a logit may be -inf if its target is 0."""
    logs = logits.log_softmax(dim=1)
    return -(target * logs.masked_fill(logits == -torch.inf, 0.0)).sum(dim=1).mean()


def _weigh(losses: list[torch.Tensor], settings: LossSettings) -> torch.Tensor:
    dense, lexical, multi_vector = losses
    return (
        settings.dense_lambda * dense + settings.lexical_lambda * lexical + settings.multi_vector_lambda * multi_vector
    )
