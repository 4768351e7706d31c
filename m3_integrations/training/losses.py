"""The training loss of BGE-M3: InfoNCE in every mode, and self-knowledge distillation from their ensemble."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name

from m3_integrations.training.scores import BatchScores


@dataclass(frozen=True, slots=True, kw_only=True)
class LossSettings:
    """The numbers of the loss; the defaults are the paper's.

    Attributes:
        temperature: Every score is divided by it.
        dense_weight: Weight of the dense score in the ensemble: w1 of the paper.
        lexical_weight: w2.
        multi_vector_weight: w3.
        dense_lambda: Weight of the dense loss and of its distillation: lambda 1 of the paper.
        lexical_lambda: lambda 2.
        multi_vector_lambda: lambda 3.
        self_distillation: Whether the ensemble teaches the modes.
    """

    temperature: float = 0.02
    dense_weight: float = 1.0
    lexical_weight: float = 0.3
    multi_vector_weight: float = 1.0
    dense_lambda: float = 1.0
    lexical_lambda: float = 0.1
    multi_vector_lambda: float = 1.0
    self_distillation: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be positive and finite, got {self.temperature}")
        weights = (self.dense_weight, self.lexical_weight, self.multi_vector_weight)
        lambdas = (self.dense_lambda, self.lexical_lambda, self.multi_vector_lambda)
        if not all(0 <= number < math.inf for number in (*weights, *lambdas)) or not sum(weights):
            raise ValueError(
                f"weights and lambdas must be 0 or more and finite, and one weight more, got {weights} and {lambdas}"
            )


@dataclass(frozen=True, slots=True)
class LossTerms:
    """The loss of one batch and every term it is made of: scalars.

    Attributes:
        total: What is minimised.
        dense: InfoNCE of the dense scores, before its lambda. So are the next three.
        lexical: Of the lexical scores.
        multi_vector: Of the multi-vector scores.
        ensemble: Of the weighted sum of the three scores.
        dense_distillation: Cross entropy of the dense scores with the ensemble's distribution; 0 without distillation.
        lexical_distillation: Of the lexical scores.
        multi_vector_distillation: Of the multi-vector scores.
    """

    total: torch.Tensor
    dense: torch.Tensor
    lexical: torch.Tensor
    multi_vector: torch.Tensor
    ensemble: torch.Tensor
    dense_distillation: torch.Tensor
    lexical_distillation: torch.Tensor
    multi_vector_distillation: torch.Tensor


def compute_loss(scores: BatchScores, positives: torch.Tensor, settings: LossSettings | None = None) -> LossTerms:
    """Return the loss of the paper's section 3.3 in its fourth version (arXiv 2402.03216v4).

    With every score divided by the temperature, s_inter = w1 s_dense + w2 s_lex + w3 s_mul;
    L = (l1 L_dense + l2 L_lex + l3 L_mul + L_inter) / 4; L' = (l1 L'_dense + l2 L'_lex + l3 L'_mul) / 3, where the
    teacher is the softmax of s_inter without gradient; the loss is (L + L') / 2.

    Some guides print the third version's formulas: plain sums of the scores and losses, and L + L'. The fourth version
    is what BGE-M3 was trained with, as its code shows: the lexical head begins at random, its poor scores must not
    lead the teacher, and so it counts 0.3 in the ensemble and 0.1 in the loss.

    Args:
        scores: Of every query with every passage.
        positives: (queries,) int64: the column of the passage that answers each query.
        settings: The paper's if None.
    """
    settings = settings or LossSettings()
    dense = scores.dense / settings.temperature
    lexical = scores.lexical / settings.temperature
    multi_vector = scores.multi_vector / settings.temperature
    ensemble = (
        settings.dense_weight * dense + settings.lexical_weight * lexical + settings.multi_vector_weight * multi_vector
    )
    contrastive = [F.cross_entropy(logits, positives) for logits in (dense, lexical, multi_vector)]
    of_ensemble = F.cross_entropy(ensemble, positives)
    total = (_weigh(contrastive, settings) + of_ensemble) / 4
    distilled = [torch.zeros_like(of_ensemble)] * 3
    if settings.self_distillation:
        teacher = ensemble.detach().softmax(dim=1)
        distilled = [F.cross_entropy(logits, teacher) for logits in (dense, lexical, multi_vector)]
        total = (total + _weigh(distilled, settings) / 3) / 2
    return LossTerms(total, contrastive[0], contrastive[1], contrastive[2], of_ensemble, *distilled)


def _weigh(losses: list[torch.Tensor], settings: LossSettings) -> torch.Tensor:
    dense, lexical, multi_vector = losses
    return (
        settings.dense_lambda * dense + settings.lexical_lambda * lexical + settings.multi_vector_lambda * multi_vector
    )
