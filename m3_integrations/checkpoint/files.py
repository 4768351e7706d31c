"""The names of a checkpoint's files, and the tensors in them."""

from __future__ import annotations

import json
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
_SETTINGS: Final = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "modules.json",
    "sentence_bert_config.json",
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
    """Return the files with the backbone's weights: those in safetensors if there are any, else the `.bin` files.

    As in transformers a single file goes before several, and of several the index names those that belong together:
    files of another revision may be beside them.

    Raises:
        ValueError: If an index is damaged.
    """
    for whole, parts, index in WEIGHTS:
        if (folder / whole).is_file():
            return [folder / whole]
        named = _indexed(folder / index) if (folder / index).is_file() else []
        if any(path.is_file() for path in named):
            return named
        if files := sorted(folder.glob(parts)):
            return files
    return []


def _indexed(index: Path) -> list[Path]:
    """Return the files that an index names, beside it."""
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        if all(Path(name).parts == (Path(name).name,) for name in names):
            return [index.parent / name for name in names]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is damaged: {error!r}") from error
    raise ValueError(f"{index} must name files beside it, got {names}")


def files_stamp(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Return the names, sizes and times of the files that a network is loaded from."""
    patterns = (CONFIG, *VOCABULARIES, *_SETTINGS, *(index for *_, index in WEIGHTS), "*_Pooling/config.json")
    files = {*(path for pattern in patterns for path in folder.glob(pattern)), *weight_files(folder)}
    there = [(str(path.relative_to(folder)), path.stat()) for path in sorted(files | {*head_files(folder)})
             if path.is_file()]  # fmt: skip
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in there)


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
