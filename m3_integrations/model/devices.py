"""Choose the device and the dtype that a name stands for on this machine."""

from __future__ import annotations

import logging
from functools import cache
from typing import Any, Final

import torch

from m3_integrations.model.int8 import has_int8_kernel
from m3_integrations.model.prepacked import can_prepack
from m3_integrations.vectors.warning import warn_caller

DTYPES: Final = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,
}

_FASTER: Final = {
    "bfloat16": "takes about a third of its time (AMX)",
    "int8": "takes less than half of its time (VNNI)",
}
_logger = logging.getLogger(__name__)


def find_device(name: str) -> torch.device:
    """Return the device of this name; "auto" is the first available of CUDA, Apple's GPU and the CPU.

    Raises:
        ValueError: If torch does not know the name or the machine does not have the device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        probe = torch.zeros(1, device=device)
        probe.item()
    except (RuntimeError, AssertionError, NotImplementedError, ValueError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"device {name!r} cannot be used here: {reason}") from error
    return probe.device  # with its index: "cuda" becomes "cuda:0"


def find_devices(names: str) -> tuple[torch.device, ...]:
    """Return the devices of several names with commas between them, each as `find_device` returns it.

    Raises:
        ValueError: If one cannot be used, or they are not all of one kind, such as a GPU and a CPU.
    """
    devices = tuple(find_device(name.strip()) for name in names.split(","))
    if len({device.type for device in devices}) > 1:
        raise ValueError(f"several devices must be of one kind, such as cuda:0,cuda:1, got {names!r}")
    return devices


def find_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype of this name; "auto" is float16 on CUDA and float32 elsewhere.

    On a CPU "auto" stays float32 even if another dtype is several times faster. Only float32 returns FlagEmbedding's
    numbers (to 1e-5), and a store may keep its vectors for years and be read on CPUs without AMX. A faster dtype is
    logged once, at the level INFO. A dtype that the CPU only emulates is used, with a warning.

    Raises:
        ValueError: For a name that is not in `DTYPES`, or for "int8" on other devices than an x86 CPU with AVX2, or if
            torch has no fast products of 8-bit integers there.
    """
    if name == "auto":
        if device.type == "cpu":
            _log_faster_dtype()
        return torch.float16 if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise ValueError(f"dtype must be 'auto' or one of {', '.join(DTYPES)}, got {name!r}")
    if name == "int8" and not (device.type == "cpu" and has_int8_kernel()):
        raise ValueError(f"dtype 'int8' needs fast products on an x86 CPU with AVX2, got {device}: use dtype='auto'")
    if device.type == "cpu" and is_emulated(DTYPES[name]):
        warn_caller(f"this CPU has no instructions for {name} and emulates it: dtype='float32' is several times faster")
    return DTYPES[name]


def faster_dtype(device: torch.device) -> str | None:
    """Return the name of the dtype that is at least twice as fast as float32 on this CPU, or None."""
    if device.type != "cpu":
        return None
    if torch.cpu._is_amx_tile_supported() and can_prepack(torch.bfloat16):
        return "bfloat16"
    return "int8" if torch.cpu._is_vnni_supported() and has_int8_kernel() else None


def is_emulated(dtype: torch.dtype) -> bool:
    """Whether the CPU converts this dtype to float32 to compute; False if unknown, and on processors other than x86."""
    cpu: Any = torch.cpu
    if not cpu._is_avx2_supported():
        return False
    if dtype == torch.bfloat16:
        return not (cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported())
    if dtype == torch.float16:
        has_float16 = getattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", None)
        return has_float16 is not None and not has_float16()
    return False


@cache
def _log_faster_dtype() -> None:
    if (name := faster_dtype(torch.device("cpu"))) is not None:
        _logger.info(
            "dtype='auto' is float32, which returns FlagEmbedding's numbers; here dtype=%r %s, but is less exact",
            name,
            _FASTER[name],
        )
