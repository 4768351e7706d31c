"""The plan of the batches: examples grouped by length and source, the same on every device and after a resume."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

_POOL_BATCHES: Final = 100
"""Examples are sorted by length within this many batches at a time: a batch has similar lengths, and other examples in
each epoch."""


class BatchPlan:
    """The examples of every batch. They depend only on the arguments and the number of the batch.

    A batch has examples of one length group, and of one source if asked for. In each epoch the examples of a group and
    the batches of all groups are put into a new random order.

    Args:
        lengths: (examples,) int64, the tokens of the longest passage of every example.
        sources: (examples,) int64, the number of the file of every example.
        batch_size: Queries in a batch. Or a mapping from the most tokens of a length group to the queries in its
            batches.
        one_source: Whether a batch has examples of one source only.
        keeps_last: Whether the examples that do not fill a batch form a smaller one. If not, random ones are left out
            in each epoch.
        least: The fewest examples of such a smaller batch, for example one for each process.
        seed: The seed of the order.

    Raises:
        ValueError: If a group does not fill a batch, or a passage is longer than the last group allows.
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
            raise ValueError(
                f"batch_size_by_length ends at {max(sizes, default=0)} tokens, but a passage has {longest}"
            )
        self._groups = _form_groups(lengths, sources if one_source else None, sizes)
        if not self._groups:
            raise ValueError("there are no examples")
        # For each group, the number of examples that every epoch leaves out.
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
        """The number of batches in a pass over the data."""
        return sum(-(-(len(rows) - left) // size) for (rows, size), left in zip(self._groups, self._left, strict=True))

    def rows(self, step: int) -> NDArray[np.int64]:
        """Return the rows of the examples of one batch: (queries,) int64."""
        epoch, place = divmod(step, self.batches_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._plan_epoch(epoch)
        return self._batches[place]

    def _plan_epoch(self, epoch: int) -> list[NDArray[np.int64]]:
        generator = np.random.default_rng([self._seed, epoch])
        batches: list[NDArray[np.int64]] = []
        for (rows, size), left in zip(self._groups, self._left, strict=True):
            order = rows[generator.permutation(len(rows))]
            order = order[: len(rows) - left]  # before sorting: afterwards it would leave out the longest
            pool = size * _POOL_BATCHES
            parts = [order[start : start + pool] for start in range(0, len(order), pool)]
            order = np.concatenate([part[np.argsort(self._lengths[part], kind="stable")] for part in parts])
            batches.extend(order[start : start + size] for start in range(0, len(order), size))
        return [batches[place] for place in generator.permutation(len(batches))]


def _form_groups(
    lengths: NDArray[np.int64], sources: NDArray[np.int64] | None, sizes: Mapping[int, int]
) -> list[tuple[NDArray[np.int64], int]]:
    """Return the rows of the examples and the batch size of every group that is not empty."""
    places = np.searchsorted(np.array(list(sizes)), lengths)  # a passage with exactly the most tokens is in the group
    keys = np.zeros_like(places) if sources is None else sources
    found = [
        (np.flatnonzero((keys == key) & (places == place)), size)
        for key in np.unique(keys)
        for place, size in enumerate(sizes.values())
    ]
    return [(rows, size) for rows, size in found if len(rows)]
