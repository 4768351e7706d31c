"""A forward pass: one batch of texts, from its launch on the device to its results on the host.

`largest_weights` is the lexical rule for a token that a text repeats: its largest weight counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from m3_integrations.vectors import FloatArray, IntArray, LexicalRows, MultiVectorRows, offsets_of

_DROPPED: Final = np.iinfo(np.int64).max


class ForwardPass:
    """A batch that was sent to the device and may not be computed yet. Any thread may wait for it.

    `is_finite`, `dense`, `lexical` and `multi_vector` are set by `wait`.

    Args:
        results: On the device: `is_finite` (n,) and `dense` (n, d); with a head, `lexical_keys` and `lexical_weights`
            from `largest_weights`; `token_vectors` (tokens, d) of the texts for which they were requested, if any.
        n_token_vectors: (n,) the number of token vectors of every text; 0 if they were not requested.
        stream: On CUDA, the stream that copies results to the host while the next pass runs; None elsewhere.

    Attributes:
        tensors: On CUDA, pinned host memory that the copy fills; elsewhere the results themselves.
        is_finite: (n,) bool, whether all of the network's values for a text are finite. If not, its vectors are
            meaningless.
        dense: (n, d) float32, unit length.
        lexical: The n texts' lexical weights; None without a head.
        multi_vector: The n texts' multi-vectors, without [CLS]; a text without a request has no rows. None if no text
            has any.
    """

    is_finite: NDArray[np.bool_]
    dense: FloatArray
    lexical: LexicalRows | None
    multi_vector: MultiVectorRows | None

    def __init__(
        self, results: Mapping[str, torch.Tensor], n_token_vectors: Sequence[int], stream: torch.cuda.Stream | None
    ) -> None:
        self.tensors, self._n_token_vectors = results, n_token_vectors
        self._event: torch.cuda.Event | None = None
        if stream is not None:
            stream.wait_stream(torch.cuda.current_stream(stream.device))
            with torch.cuda.stream(stream):
                self.tensors = {name: _pinned_copy(tensor, stream) for name, tensor in results.items()}
                self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
                self._event.record(stream)

    def wait(self) -> ForwardPass:
        """Wait until the device has computed the results, and return this pass with them.

        On CUDA `dense` and `multi_vector` are views of pinned memory, which is scarce: callers copy what they keep.
        """
        if self._event is not None:
            self._event.synchronize()
        arrays = {name: tensor.cpu().numpy() for name, tensor in self.tensors.items()}
        self.is_finite, self.dense, self.lexical, self.multi_vector = arrays["is_finite"], arrays["dense"], None, None
        if "lexical_keys" in arrays:
            self.lexical = lexical_rows(arrays["lexical_keys"], arrays["lexical_weights"], len(self.dense))
        if "token_vectors" in arrays:
            self.multi_vector = MultiVectorRows(offsets_of(self._n_token_vectors), arrays["token_vectors"])
        return self


def to_device(
    arrays: Mapping[str, IntArray], device: torch.device, stream: torch.cuda.Stream | None
) -> dict[str, torch.Tensor]:
    """Copy one-dimensional arrays to a device as int64 tensors, in one copy. On CUDA the host does not wait for it."""
    flat = torch.from_numpy(np.concatenate(list(arrays.values()), dtype=np.int64))
    if stream is not None:
        # The host would wait for a copy from pageable memory. Torch keeps the pinned memory until the copy is done.
        flat = flat.pin_memory()
    parts = torch.split(flat.to(device, non_blocking=True), [len(array) for array in arrays.values()])
    return dict(zip(arrays, parts, strict=True))


def _pinned_copy(tensor: torch.Tensor, stream: torch.cuda.Stream) -> torch.Tensor:
    """Start to copy a tensor into pinned memory. This stream must be the current one."""
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    copy.copy_(tensor, non_blocking=True)
    # The tensor was allocated on another stream, which must not reuse its memory before this stream has read it.
    tensor.record_stream(stream)
    return copy


def largest_weights(
    weights: torch.Tensor, rows: torch.Tensor, token_ids: torch.Tensor, ignored_ids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the largest positive weight of every distinct token of every text, without the ignored ids.

    Both rules are those of FlagEmbedding's M3 (paper, section 3.2). No shape depends on how many weights remain, so the
    host does not wait for the device: the results are as long as the input, and `lexical_rows` cuts them.

    Args:
        weights: (tokens,) float32.
        rows: (tokens,) int64, the text of every token.
        token_ids: (tokens,) int64.
        ignored_ids: (ids,) int64.

    Returns:
        (tokens,) int64 keys in rising order, each once: the text in the upper 32 bits, the token id in the lower 32.
        The rest is filled with int64's largest value. And (tokens,) float32, the weights of the keys; those of the
        filling are meaningless.
    """
    stays = (weights > 0) & (token_ids[:, None] != ignored_ids).all(dim=1)
    keys, order = torch.where(stays, rows << 32 | token_ids, _DROPPED).sort(stable=True)
    is_first = torch.ones_like(keys)
    is_first[1:] = keys[1:] != keys[:-1]
    places = is_first.cumsum(0) - 1
    distinct = torch.full_like(keys, _DROPPED).scatter_(0, places, keys)
    largest = torch.zeros_like(weights).scatter_reduce_(0, places, weights[order], "amax")
    return distinct, largest


def lexical_rows(keys: IntArray, weights: FloatArray, n: int) -> LexicalRows:
    """Return the lexical weights of n texts from the results of `largest_weights`."""
    end = int(np.searchsorted(keys, _DROPPED))
    rows, ids = keys[:end] >> 32, (keys[:end] & 0xFFFFFFFF).astype(np.int32)
    lengths: NDArray[np.int64] = np.bincount(rows, minlength=n)
    return LexicalRows(offsets_of(lengths), ids, weights[:end].copy())
