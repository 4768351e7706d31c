"""Which device and which type of numbers a name means here."""

from __future__ import annotations

from typing import Final

import torch

from m3_integrations.model.int8 import has_int8_kernel

DTYPES: Final = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,
}


def find_device(name: str) -> torch.device:
    """Return the device of this name, or with "auto" the best one here: CUDA, Apple's GPU, the CPU.

    Raises:
        ValueError: If torch does not know the name or the device is not there.
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
    return probe.device  # with its number: "cuda" is "cuda:0"


def find_devices(names: str) -> tuple[torch.device, ...]:
    """Return the devices of these names, which commas separate, for `find_device`; all of one kind.

    Raises:
        ValueError: If one cannot be used, or a GPU and a CPU are to share the work.
    """
    devices = tuple(find_device(name.strip()) for name in names.split(","))
    if len({device.type for device in devices}) > 1:
        raise ValueError(f"devices that share a queue must be of one kind, got {names!r}")
    return devices


def find_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype of this name, or with "auto" float16 on CUDA and float32 elsewhere.

    Raises:
        ValueError: For a name other than those in `DTYPES`, or for "int8" anywhere but on a CPU made for it.
    """
    if name == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise ValueError(f"dtype must be 'auto' or one of {', '.join(DTYPES)}, got {name!r}")
    if name == "int8" and not (device.type == "cpu" and has_int8_kernel()):
        raise ValueError(f"dtype 'int8' needs a CPU with AVX-512 VNNI, got {device}: use dtype='auto'")
    return DTYPES[name]
