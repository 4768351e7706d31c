"""Watching the three heads: training stops if one of them dies, because the ensemble's loss would not show it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch

from m3_integrations.training.losses import LossTerms
from m3_integrations.training.scores import BatchScores, TextViews

_LEAST_SPREAD: Final = 1e-4
"""A mode is dead if no query's scores differ by this much: at temperature 0.02 such scores rank nothing."""


class HeadDiedError(RuntimeError):
    """An error for a head that returns the same for every text, or for a loss that is not finite."""


class HeadWatch:
    """A counter of the batches in a row in which each head was dead.

    The total loss still falls while one head is dead, so the loss does not show it. A lexical head whose weights are
    all 0 gets no gradient through its ReLU and stays dead.

    Args:
        patience: The number of dead batches in a row that is an error.

    Raises:
        ValueError: If patience is less than 1.
    """

    def __init__(self, patience: int) -> None:
        if patience < 1:
            raise ValueError(f"patience must be at least 1, got {patience}")
        self._patience = patience
        self._dead_for = {"dense": 0, "lexical": 0, "multi_vector": 0}

    def check(self, queries: TextViews, passages: TextViews, scores: BatchScores, loss: LossTerms) -> None:
        """Check one batch.

        Raises:
            HeadDiedError: If a head was dead in `patience` batches in a row, or at once if the loss is not finite.
        """
        check_finite(loss.total, {name: getattr(loss, name) for name in ("dense", "lexical", "multi_vector")})
        self._note(
            {
                "dense": _tells_nothing(scores.dense),
                "lexical": not (bool(queries.token_weights.any()) and bool(passages.token_weights.any())),
                "multi_vector": _tells_nothing(scores.multi_vector),
            }
        )

    def check_dense(self, scores: torch.Tensor, loss: torch.Tensor) -> None:
        """Check one batch of the dense mode alone.

        Args:
            scores: (queries, passages) cosines.
            loss: A scalar.

        Raises:
            HeadDiedError: For the reasons of `check`.
        """
        check_finite(loss, {"dense": loss})
        self._note({"dense": _tells_nothing(scores)})

    def _note(self, is_dead: Mapping[str, bool]) -> None:
        for name, dead in is_dead.items():
            self._dead_for[name] = self._dead_for[name] + 1 if dead else 0
            if self._dead_for[name] >= self._patience:
                raise HeadDiedError(_explain(name, self._patience))


def check_finite(loss: torch.Tensor, terms: Mapping[str, torch.Tensor]) -> None:
    """Raise HeadDiedError if the loss is infinite or NaN.

    Args:
        loss: A scalar.
        terms: The terms of the loss, for the message.
    """
    if not bool(torch.isfinite(loss)):
        values = {name: term.item() for name, term in terms.items()}
        raise HeadDiedError(f"the loss is not finite ({values}): lower the learning rate, or train in float32")


def _tells_nothing(scores: torch.Tensor) -> bool:
    """Return whether every query has almost the same score with all passages."""
    if scores.shape[1] < 2:
        return False
    return bool((scores.amax(dim=1) - scores.amin(dim=1)).amax() < _LEAST_SPREAD)


def _explain(name: str, batches: int) -> str:
    what = {
        "dense": "every query has the same cosine with all passages",
        "lexical": "every lexical weight of the queries or of the passages is 0",
        "multi_vector": "every query has the same score with all passages",
    }[name]
    return (
        f"the {name} head has died: {what}, {batches} batches in a row. Go back to a checkpoint before it and train "
        f"with a lower learning rate or a longer warm-up"
    )
