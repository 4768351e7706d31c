"""The names of a checkpoint's files, and the tensors in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Final
from zipfile import is_zipfile

import torch
from safetensors import SafetensorError, safe_open

CONFIG: Final = "config.json"
XLM_ROBERTA: Final = "xlm-roberta"
"""`model_type` in the configuration of BGE-M3 and of checkpoints trained from it."""

VOCABULARIES: Final = ("tokenizer.json", "*.model", "vocab.*")
WEIGHTS: Final = (
    ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model-*-of-*.bin", "pytorch_model.bin.index.json"),
)
HEADS: Final = ("colbert_linear", "sparse_linear")

# What torch.load and safetensors raise for a file that is truncated, damaged, or holds more than weights.
DAMAGE: Final = (
    OSError,
    RuntimeError,
    ValueError,
    EOFError,
    LookupError,
    AttributeError,
    TypeError,
    AssertionError,
    UnpicklingError,
    SafetensorError,
)


def weight_files(folder: Path) -> list[Path]:
    """Return the files with the backbone's weights: those in safetensors if there are any, else the `.bin` files."""
    for names in WEIGHTS:
        if files := sorted(path for name in names[:2] for path in folder.glob(name)):
            return files
    return []


def read_tensors(path: Path) -> Iterator[tuple[str, Callable[[], torch.Tensor]]]:
    """Yield the name of every tensor in a weight file, with a function that reads it."""
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dictionary
                yield name, partial(file.get_tensor, name)
    else:
        # Files written by torch before 1.6 are not zip archives: mmap=True would raise.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
        for name, tensor in state.items():
            yield name, partial(torch.Tensor.detach, tensor)


def head_files(folder: Path, name: str = "*_linear") -> list[Path]:
    """Return the files of one head, or of both."""
    return sorted([*folder.glob(f"{name}.safetensors"), *folder.glob(f"{name}.pt")])
