"""Find, download, load and save a checkpoint: backbone, two heads and tokenizer, in BGE-M3's own format.

Long because what finds, reads and saves a checkpoint shares the names and the formats of its files.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache, partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Final
from zipfile import is_zipfile

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    StrictDataclassError,
)
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn
from transformers import MODEL_FOR_MASKED_LM_MAPPING, MODEL_MAPPING, AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

from m3_integrations.tokenizer import Tokenizer

_SMALL_FILES: Final = (
    "config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "sentencepiece.bpe.model",
    "vocab.*",
    "merges.txt",
    "added_tokens.json",
    "1_Pooling/config.json",
    "colbert_linear.*",
    "sparse_linear.*",
)
_VOCABULARIES: Final = ("tokenizer.json", "*.model", "vocab.*")
_WEIGHTS: Final = (
    ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model-*-of-*.bin", "pytorch_model.bin.index.json"),
)
_CONFIG: Final = "config.json"
_UNFINISHED: Final = ".unfinished"
"""Where a checkpoint is written before its files are moved to their places."""

_HEADS: Final = ("colbert_linear", "sparse_linear")
_KNOWN_REPOSITORIES: Final = ("BAAI/bge-m3",)
_HubError: Final[type[Exception]] = next(b for b in HfHubHTTPError.__mro__ if b.__name__ == "HTTPError")
"""What the hub's transport raises, timeouts too: of httpx or of httpx2, as the hub's version has it."""

_HUB_TIMEOUT_S: Final = 20.0
"""How long the hub may take to answer whether it has a repository."""

BUNDLED: Final = "tiny"
"""The name of the checkpoint in this package."""

# What torch.load and safetensors raise for a file that is cut short, damaged or more than weights.
_DAMAGE: Final = (
    OSError,
    RuntimeError,
    ValueError,
    EOFError,
    LookupError,
    AttributeError,
    TypeError,
    AssertionError,
    StrictDataclassError,
    UnpicklingError,
    SafetensorError,
)


@dataclass(frozen=True, slots=True)
class Heads:
    """The two linear heads that turn a token's hidden state into its vector and its lexical weight.

    Attributes:
        multi_vector: Linear(hidden, d), `colbert_linear` on disk.
        lexical: Linear(hidden, 1), `sparse_linear` on disk.
    """

    multi_vector: nn.Linear
    lexical: nn.Linear


def find_checkpoint(model: str | os.PathLike[str], *, revision: str | None = None) -> Path:
    """Return the folder of a checkpoint, downloading from the Hugging Face hub what is needed and not yet cached.

    Args:
        model: A folder, a repository of the hub such as "BAAI/bge-m3", or "tiny", the checkpoint in this package
            (a folder of your own with that name is "./tiny").
        revision: Branch, tag or commit on the hub.

    Returns:
        The folder, symbolic links resolved. On the hub's cache it names the commit.

    Raises:
        FileNotFoundError: If there is no such folder or repository, or if the hub cannot be reached, or does not answer
            within 20 seconds, and the repository is not cached.
        ValueError: If a revision is asked of a folder.
    """
    folder = Path(__file__).parent / BUNDLED if model == BUNDLED else Path(model).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ValueError(f"revision={revision!r} belongs to a repository of the hub, but {folder} is a folder")
        return folder.resolve()
    if isinstance(model, os.PathLike) or str(model).startswith((".", "~", "/")):
        raise FileNotFoundError(f"no checkpoint folder {folder}")
    try:
        return _download(str(model), revision)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, _HubError) as error:
        at = f" at revision {revision!r}" if revision else ""
        raise FileNotFoundError(
            f"{str(model)!r}{at} is not a folder here, and the Hugging Face hub did not give it: "
            f"{error or type(error).__name__}. {_ways_out(str(model))}"
        ) from error


def _ways_out(model: str) -> str:
    """Return what else somebody can do whose checkpoint is not to be had."""
    names = {name.casefold(): name for name in (BUNDLED, *_KNOWN_REPOSITORIES)} | {
        name.partition("/")[2].casefold(): name for name in _KNOWN_REPOSITORIES
    }
    close = get_close_matches(model.casefold(), names, n=1, cutoff=0.8)
    meant = f"Did you mean {names[close[0]]!r}? " if close and names[close[0]] != model else ""
    return (
        f"{meant}Without the hub: {BUNDLED!r} is in this package; a folder works that has config.json, the tokenizer, "
        "model.safetensors or pytorch_model.bin, colbert_linear.pt and sparse_linear.pt; what was downloaded once is "
        "read from the cache (HF_HOME); HF_ENDPOINT names a mirror"
    )


@cache
def _download(repository: str, revision: str | None) -> Path:
    """Fetch the small files and the weights in one format: safetensors where the repository has it.

    Once in a process: later handles do not ask the hub again. A hub that does not answer within `_HUB_TIMEOUT_S` is
    taken for absent, and the cache is read: `snapshot_download` itself would wait for ever.
    """
    try:
        HfApi().repo_info(repository, revision=revision or "main", timeout=_HUB_TIMEOUT_S)
        is_cache_only, silence = False, None
    except (_HubError, OfflineModeIsEnabled) as error:
        if isinstance(error, HfHubHTTPError):
            raise  # it answered
        is_cache_only, silence = True, error
    folder = Path()
    for names in _WEIGHTS:
        patterns = [*_SMALL_FILES, *names]
        try:
            folder = Path(
                snapshot_download(
                    repository, revision=revision, allow_patterns=patterns, local_files_only=is_cache_only
                )
            )
        except LocalEntryNotFoundError as error:
            raise silence or error from error
        if weight_files(folder):
            break
    return folder.resolve()


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load a checkpoint's tokenizer.

    Raises:
        TypeError: If it is a slow one.
        ValueError: If the folder has none that can be read, or it puts no [CLS] before a text.
    """
    if not any(file for pattern in _VOCABULARIES for file in folder.glob(pattern)):
        # Without this check transformers makes a tokenizer with an empty vocabulary and says nothing.
        raise ValueError(f"{folder} has no tokenizer: none of {', '.join(_VOCABULARIES)}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the Rust library raises nothing narrower
        raise ValueError(f"{folder} has no readable tokenizer: {error}") from error
    return Tokenizer(tokenizer)


def load_backbone(folder: Path, dtype: torch.dtype) -> nn.Module:
    """Load a checkpoint's encoder with every weight from the files, in evaluation mode, on the CPU.

    Raises:
        ValueError: If the folder has no readable configuration or weights, if weights are missing or have another
            shape, or if the checkpoint was trained with another pooling than [CLS].
    """
    _check_pooling(folder)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        _check_architecture(folder, config)
        arguments = {"add_pooling_layer": _has_pooler_weights(folder)} if _takes_pooler(config) else {}
        with _bars_on_terminals_only():
            model, report = AutoModel.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                output_loading_info=True,
                local_files_only=True,
                trust_remote_code=False,
                **arguments,
            )
    except _DAMAGE as error:
        raise ValueError(f"{folder} holds no encoder that can be loaded: {error}") from error
    if deeper := sorted(key for key in report["unexpected_keys"] if re.search(r"\blayers?\.\d+\.", key)):
        raise ValueError(f"{folder} has weights that its config.json has no layer for: {deeper[0]} ({len(deeper)})")
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise ValueError(f"{folder} lacks weights, which would be random: {', '.join(missing[:5])} ({len(missing)})")
    if _takes_pooler(config):
        model.pooler = None  # never used: ours reads the hidden states
    backbone: nn.Module = model.eval()
    return backbone.requires_grad_(False)


@contextmanager
def _bars_on_terminals_only() -> Iterator[None]:
    """Keep transformers' bar "Loading weights" out of logs: a line for every step, in a file."""
    if (sys.stderr is not None and sys.stderr.isatty()) or not transformers_logging.is_progress_bar_enabled():
        yield
        return
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.enable_progress_bar()


def _check_architecture(folder: Path, config: Any) -> None:
    """Refuse what is no bidirectional encoder with a known number of positions: its vectors would mean nothing."""
    positions = getattr(config, "max_position_embeddings", None)
    is_encoder = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_encoder_decoder", False)
    if not is_encoder or not isinstance(positions, int) or positions < 1:
        raise ValueError(
            f"{config.model_type} in {folder} is not an encoder with positions, such as xlm-roberta or bert"
        )


def _takes_pooler(config: Any) -> bool:
    """Whether the architecture can be loaded with and without a pooling layer."""
    return "add_pooling_layer" in inspect.signature(MODEL_MAPPING[type(config)].__init__).parameters


def _has_pooler_weights(folder: Path) -> bool:
    """Whether the files hold a pooling layer: then it is loaded and dropped, so that transformers reports nothing."""
    return any(name.rpartition("pooler.")[1] for path in weight_files(folder) for name, _ in read_tensors(path))


def _check_pooling(folder: Path) -> None:
    path = folder / "1_Pooling" / "config.json"
    if not path.is_file():
        return
    try:
        pooling = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not pooling.get("pooling_mode_cls_token", pooling.get("pooling_mode", "cls") == "cls"):
        raise ValueError(f"{folder} was trained with a pooling other than [CLS] ({path.name}), which is not supported")


def weight_files(folder: Path) -> list[Path]:
    """Return the files with the backbone's weights: safetensors where there are any, as transformers prefers them."""
    for names in _WEIGHTS:
        if files := sorted(path for name in names[:2] for path in folder.glob(name)):
            return files
    return []


def read_tensors(path: Path) -> Iterator[tuple[str, Callable[[], torch.Tensor]]]:
    """Return the tensors of a weight file: their names, and a call that reads one."""
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dictionary
                yield name, partial(file.get_tensor, name)
    else:
        # Files from before torch 1.6 are no zip archives and cannot be mapped.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
        for name, tensor in state.items():
            yield name, partial(torch.Tensor.detach, tensor)


def load_heads(folder: Path, hidden_size: int, dtype: torch.dtype) -> Heads | None:
    """Load the multi-vector and the lexical head, from safetensors or from a `.pt` that holds only weights.

    Returns:
        The heads, or None for a checkpoint that has neither (plain BGE: dense only).

    Raises:
        ValueError: If just one is there, or one cannot be read, holds anything but weights, or has a wrong shape.
    """
    found = {name: paths for name in _HEADS if (paths := head_files(folder, name))}
    if not found:
        return None
    if len(found) == 1:
        (absent,) = set(_HEADS).difference(found)
        raise ValueError(f"{folder} has {next(iter(found))} but no {absent}: both heads are needed, or neither")
    colbert = _load_head(found["colbert_linear"], hidden_size, None, dtype)
    return Heads(colbert, _load_head(found["sparse_linear"], hidden_size, 1, dtype))


def head_files(folder: Path, name: str = "*_linear") -> list[Path]:
    """Return the files of one head, or of both."""
    return sorted([*folder.glob(f"{name}.safetensors"), *folder.glob(f"{name}.pt")])


def _load_head(paths: list[Path], hidden_size: int, rows: int | None, dtype: torch.dtype) -> nn.Linear:
    path = paths[0]
    states = [_read_state(each) for each in paths]
    state = states[0]
    if any(set(other) != set(state) or any(not other[k].equal(state[k]) for k in state) for other in states[1:]):
        raise ValueError(
            f"{', '.join(p.name for p in paths)} in {path.parent} differ: delete the one that is out of date"
        )
    weight, bias = state.get("weight"), state.get("bias")
    if set(state) != {"weight", "bias"} or weight is None or bias is None:
        raise ValueError(f"{path} must hold weight and bias and nothing else, got {sorted(state)}")
    rows = rows or max(bias.numel(), 1)
    if tuple(weight.shape) != (rows, hidden_size) or tuple(bias.shape) != (rows,):
        raise ValueError(
            f"{path} must have weight ({rows}, {hidden_size}) and bias ({rows},), "
            f"got {tuple(weight.shape)} and {tuple(bias.shape)}"
        )
    weight, bias = weight.to(dtype), bias.to(dtype)
    if not (torch.isfinite(weight).all() and torch.isfinite(bias).all()):
        raise ValueError(f"{path} holds weights that are not finite in {dtype}")
    head = nn.Linear(hidden_size, rows, device="meta", dtype=dtype)
    head.load_state_dict({"weight": weight, "bias": bias}, assign=True)
    return head.eval().requires_grad_(False)


def _read_state(path: Path) -> Mapping[str, torch.Tensor]:
    try:
        state = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except _DAMAGE as error:
        raise ValueError(f"{path} is damaged or holds more than weights: {error}") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"{path} must hold a mapping of tensors, got {type(state).__name__}")
    return state


def save_checkpoint(
    folder: str | os.PathLike[str],
    *,
    backbone: nn.Module,
    heads: Heads | None,
    tokenizer: Tokenizer,
    is_replacing: bool = False,
) -> None:
    """Write a checkpoint that `find_checkpoint`, FlagEmbedding and sentence-transformers read.

    The backbone goes to model.safetensors, the heads to colbert_linear.pt and sparse_linear.pt. modules.json and
    1_Pooling tell sentence-transformers that the dense vector is [CLS] at unit length. All files are written aside and
    then moved, config.json last: what a killed process left without it is no checkpoint and can be replaced.

    Args:
        folder: Is made if absent. Nothing else in it is deleted.
        backbone: A model of transformers.
        heads: None for a dense-only checkpoint.
        tokenizer: Its tokenizer.
        is_replacing: Whether a checkpoint that the folder holds is replaced.

    Raises:
        FileExistsError: If the folder holds a checkpoint already, unless it is to be replaced.
        ValueError: If the backbone's weights are rounded to 8 bits: what was lost would be missing for good.
    """
    if any(buffer.dtype == torch.int8 for buffer in backbone.buffers()):
        raise ValueError("a network in int8 cannot be saved: load it with dtype='float32' to save it")
    target = Path(folder)
    if (target / _CONFIG).exists() and not is_replacing:
        raise FileExistsError(f"{target} holds a checkpoint already: choose an empty folder")
    aside = target / _UNFINISHED
    if aside.exists():
        shutil.rmtree(aside)  # what a killed process left
    aside.mkdir(parents=True)
    try:
        backbone.save_pretrained(aside)  # type: ignore[operator]
        tokenizer.source.save_pretrained(aside)
        if heads is not None:
            for name, head in zip(_HEADS, (heads.multi_vector, heads.lexical), strict=True):
                state = {key: value.detach().cpu() for key, value in head.state_dict().items()}
                torch.save(state, aside / f"{name}.pt")
        _write_modules(aside, backbone.config.hidden_size)  # type: ignore[union-attr, arg-type]
        (target / _CONFIG).unlink(missing_ok=True)
        written = [path for path in aside.rglob("*") if path.is_file()]
        for path in sorted(written, key=lambda path: path == aside / _CONFIG):
            place = target / path.relative_to(aside)
            place.parent.mkdir(exist_ok=True)
            path.replace(place)
    finally:
        shutil.rmtree(aside)


def _write_modules(folder: Path, dim: int) -> None:
    """Write how a dense vector is made; without it sentence-transformers would take the mean over the tokens."""
    modules = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
        for i, (path, name) in enumerate(modules)
    ]
    pooling = {"word_embedding_dimension": dim, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (folder / "1_Pooling").mkdir()
    for name, content in (("modules.json", listed), ("1_Pooling/config.json", pooling)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
