"""What comes out of a forward pass: first as work that the device has been told to do, then as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m3_integrations.model.lexical import lexical_rows
from m3_integrations.model.transfer import PendingArrays
from m3_integrations.vectors import FloatArray, LexicalRows, MultiVectorRows, offsets_of


@dataclass(frozen=True, slots=True)
class BatchOutput:
    """What one forward pass gives for a batch of n texts, on the host.

    On CUDA `dense` and `multi_vector` lie in pinned memory, which is scarce: copy what is kept.

    Attributes:
        is_finite: (n,) bool, whether the network's values for a text are all finite; the others' vectors mean nothing.
        dense: (n, d) float32, unit length.
        lexical: The n texts' lexical weights; None without a head.
        multi_vector: The n texts' multi-vectors, without [CLS]; a row has no tokens where it was not asked for. None
            if nobody asked, or without a head.
    """

    is_finite: NDArray[np.bool_]
    dense: FloatArray
    lexical: LexicalRows | None
    multi_vector: MultiVectorRows | None


@dataclass(frozen=True, slots=True)
class LaunchedBatch:
    """A forward pass that the device has been told to do, and may not have done yet.

    Attributes:
        pending: `is_finite` and `dense` as in `BatchOutput`; with a head `lexical_keys` and `lexical_weights` as
            `largest_weights` gives them; `token_vectors` (tokens of the texts that asked, d) if any did.
        multi_vector_lengths: (n,) the token vectors of every text; 0 where it did not ask.
    """

    pending: PendingArrays
    multi_vector_lengths: Sequence[int]

    def wait(self) -> BatchOutput:
        """Give the results as soon as the device has them; any thread may wait."""
        arrays = self.pending.wait()
        lexical = multi_vector = None
        if "lexical_keys" in arrays:
            lexical = lexical_rows(arrays["lexical_keys"], arrays["lexical_weights"], len(arrays["dense"]))
        if "token_vectors" in arrays:
            multi_vector = MultiVectorRows(offsets_of(self.multi_vector_lengths), arrays["token_vectors"])
        return BatchOutput(arrays["is_finite"], arrays["dense"], lexical, multi_vector)
