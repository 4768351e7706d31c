"""Which examples make up each batch: groups by length and source, the same on every device and after a resume."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

_POOL_BATCHES: Final = 100
"""Examples are sorted by length within this many batches at a time, so that a batch is alike, another each epoch."""


class BatchPlan:
    """The examples of every batch: decided by the seed and the number of the batch alone.

    Examples of one length group (and of one source, if asked for) make up a batch. Each epoch draws the order of the
    examples of every group anew, and that of the batches of all groups.

    Args:
        lengths: (examples,) int64: tokens of the longest passage of every example.
        sources: (examples,) int64: the file of every example.
        batch_size: Queries in a batch; or, by the most tokens of a group, those of its batches.
        one_source: Whether a batch holds examples of one source only.
        keeps_last: Whether the examples that do not fill a batch are one; otherwise other ones are left out each epoch.
        least: A rest of fewer examples is no batch all the same; such as one for each process.
        seed: Of the order.

    Raises:
        ValueError: If a group makes up no batch, or a text is longer than the last group's.
    """

    def __init__(
        self,
        lengths: NDArray[np.int64],
        sources: NDArray[np.int64],
        batch_size: int | Mapping[int, int],
        *,
        one_source: bool = False,
        keeps_last: bool = False,
        least: int = 1,
        seed: int,
    ) -> None:
        self._lengths, self._seed = lengths, seed
        longest = int(lengths.max(initial=0))
        sizes = {longest: batch_size} if isinstance(batch_size, int) else dict(sorted(batch_size.items()))
        if not sizes or longest > max(sizes):
            raise ValueError(f"no group for passages of {longest} tokens: the last ends at {max(sizes, default=0)}")
        self._groups = _form_groups(lengths, sources if one_source else None, sizes)
        if not self._groups:
            raise ValueError("there are no examples")
        # A rest of this many examples is left out of every epoch's batches of a group.
        self._left = [
            0 if keeps_last and len(rows) % size >= least else len(rows) % size for rows, size in self._groups
        ]
        pairs = zip(self._groups, self._left, strict=True)
        if short := [(len(rows), size) for (rows, size), left in pairs if left == len(rows)]:
            count, size = short[0]
            whose = "" if len(self._groups) == 1 else " of one length group or file"
            raise ValueError(f"{count} examples{whose} do not fill one batch of {size}: use keep_last_batch or less")
        self._epoch: int | None = None
        self._batches: list[NDArray[np.int64]] = []

    @property
    def batches_per_epoch(self) -> int:
        """How many batches are a pass over the data."""
        return sum(-(-(len(rows) - left) // size) for (rows, size), left in zip(self._groups, self._left, strict=True))

    def rows(self, step: int) -> NDArray[np.int64]:
        """Return the examples of one batch: (queries,)."""
        epoch, place = divmod(step, self.batches_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._plan_epoch(epoch)
        return self._batches[place]

    def _plan_epoch(self, epoch: int) -> list[NDArray[np.int64]]:
        generator = np.random.default_rng([self._seed, epoch])
        batches: list[NDArray[np.int64]] = []
        for (rows, size), left in zip(self._groups, self._left, strict=True):
            order = rows[generator.permutation(len(rows))]
            order = order[: len(rows) - left]  # before the long ones are last
            pool = size * _POOL_BATCHES
            parts = [order[start : start + pool] for start in range(0, len(order), pool)]
            order = np.concatenate([part[np.argsort(self._lengths[part], kind="stable")] for part in parts])
            batches.extend(order[start : start + size] for start in range(0, len(order), size))
        return [batches[place] for place in generator.permutation(len(batches))]


def _form_groups(
    lengths: NDArray[np.int64], sources: NDArray[np.int64] | None, sizes: Mapping[int, int]
) -> list[tuple[NDArray[np.int64], int]]:
    """Return the examples and the batch size of every group that has any."""
    places = np.searchsorted(np.array(list(sizes)), lengths)  # a text of just the most tokens of a group is in it
    keys = np.zeros_like(places) if sources is None else sources
    found = [
        (np.flatnonzero((keys == key) & (places == place)), size)
        for key in np.unique(keys)
        for place, size in enumerate(sizes.values())
    ]
    return [(rows, size) for rows, size in found if len(rows)]
