"""Copies between the host and the device that nobody waits for until the results are wanted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from m3_integrations.vectors import IntArray


@dataclass(frozen=True, slots=True)
class PendingArrays:
    """Arrays on their way to the host.

    Attributes:
        tensors: On CUDA pinned memory of the host that is being filled, elsewhere the results themselves.
        event: Comes when all are there; None where there is nothing to wait for but the device itself.
    """

    tensors: Mapping[str, torch.Tensor]
    event: torch.cuda.Event | None

    def wait(self) -> dict[str, NDArray[Any]]:
        """Give the arrays as soon as they are there; any thread may wait."""
        if self.event is not None:
            self.event.synchronize()
        return {name: tensor.cpu().numpy() for name, tensor in self.tensors.items()}


class Transfer:
    """Copies to and from one device, without waiting for it on CUDA.

    Args:
        device: The CPU copies nothing.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # Results leave on a stream of their own, so that the next pass begins meanwhile.
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def to_device(self, arrays: Mapping[str, IntArray]) -> dict[str, torch.Tensor]:
        """Give one-dimensional arrays as int64 tensors on the device, all in one copy."""
        flat = torch.from_numpy(np.concatenate(list(arrays.values()), dtype=np.int64))
        if self._stream is not None:
            # From pageable memory the host would wait. Torch holds the pinned memory until the copy is done.
            flat = flat.pin_memory()
        parts = torch.split(flat.to(self.device, non_blocking=True), [len(array) for array in arrays.values()])
        return dict(zip(arrays, parts, strict=True))

    def to_host(self, tensors: Mapping[str, torch.Tensor]) -> PendingArrays:
        """Start to copy tensors that the device may not have computed yet."""
        if self._stream is None:
            return PendingArrays(tensors, None)
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            copies = {name: _copy(tensor, self._stream) for name, tensor in tensors.items()}
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(self._stream)
        return PendingArrays(copies, event)


def _copy(tensor: torch.Tensor, stream: torch.cuda.Stream) -> torch.Tensor:
    """Start to copy a tensor into pinned memory, on the current stream, which is this one."""
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    copy.copy_(tensor, non_blocking=True)
    # The tensor belongs to the other stream, which must not use its memory again before this one has read it.
    tensor.record_stream(stream)
    return copy
