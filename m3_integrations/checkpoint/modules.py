"""Read and write the files of sentence-transformers that state how a checkpoint makes its dense vector.

modules.json lists the steps. 1_Pooling/config.json states how the states of tokens become one vector.
sentence_bert_config.json states where texts are cut. LlamaIndex's HuggingFaceEmbedding reads all three, Text Embeddings
Inference the last two.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Final, Literal

DensePooling = Literal["cls", "mean"]
"""How the states of a text's tokens become its dense vector: the first one, or the mean of all, [CLS] and [SEP] too."""

_MODULES: Final = "modules.json"
_POOLING: Final = "1_Pooling"
_LIMIT: Final = "sentence_bert_config.json"
_TOKENIZER: Final = "tokenizer_config.json"
_PROMPTS: Final = "config_sentence_transformers.json"
_KNOWN: Final = ("Transformer", "Pooling", "Normalize")
_LEAST_LIMIT: Final = 3  # [CLS], one token, [SEP]
_FLAGS: Final[dict[str, DensePooling]] = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}


def read_pooling(folder: Path) -> DensePooling:
    """Return how a checkpoint pools. It is "cls" if no file states it, as for many checkpoints like BGE-M3.

    A vector always has unit length in this package, whether or not the files list a step that normalizes.

    Raises:
        ValueError: If the checkpoint pools in another way, has an unknown step, or a file is damaged.
    """
    path = folder / _POOLING / "config.json"
    if (listed := _read(folder / _MODULES)) is not None:
        path = folder / _pooling_folder(folder, listed) / "config.json"
        if not path.is_file():
            raise ValueError(f"{folder} lists a pooling in {_MODULES}, but {path.relative_to(folder)} does not exist")
    if not path.is_file():
        return "cls"
    stated = _read_object(path)
    flags = [name for name, value in stated.items() if name.startswith("pooling_mode_") and value]
    found: list[str] = [_FLAGS.get(name, name) for name in flags]
    named = stated.get("pooling_mode", [])
    found += [str(name) for name in (named if isinstance(named, list) else [named])]
    if len(found) != 1 or found[0] not in _FLAGS.values():
        said = " and ".join(name.removeprefix("pooling_mode_") for name in found) or "none"
        raise ValueError(
            f"the pooling of {folder} is not supported: {path.relative_to(folder)} names {said}, and this package "
            "supports [CLS] and the mean of all tokens"
        )
    if stated.get("include_prompt", True) is False:
        raise ValueError(
            f"the pooling of {folder} is not supported: it leaves the prompt out ({path.relative_to(folder)})"
        )
    return "cls" if found[0] == "cls" else "mean"


def _pooling_folder(folder: Path, listed: Any) -> str:
    """Return the path of the pooling step. Raise ValueError if any step is unknown."""
    try:
        steps = [(str(each["type"]).rpartition(".")[2], str(each["path"])) for each in listed]
    except (TypeError, KeyError) as error:
        raise ValueError(f"{folder / _MODULES} must list steps with type and path: {error!r}") from error
    if other := [f"{kind} ({path})" for kind, path in steps if kind not in _KNOWN]:
        raise ValueError(f"the dense vectors of {folder} need a step that is not supported: {', '.join(other)}")
    poolings = [path for kind, path in steps if kind == "Pooling"]
    if len(poolings) != 1:
        raise ValueError(f"{folder / _MODULES} must list one pooling, got {len(poolings)}")
    return poolings[0]


def read_limit(folder: Path) -> int | None:
    """Return the most tokens of a text that the files allow, [CLS] and [SEP] included; None if they state no limit.

    It is max_seq_length in sentence_bert_config.json, or else the tokenizer's model_max_length. sentence-transformers
    reads both, and its version 6 writes only the second.

    Raises:
        ValueError: If a file is damaged, the limit leaves no room for a token between [CLS] and [SEP], or the files ask
            for texts in lower case before the tokenizer, which is not supported.
    """
    stated = _read_object(folder / _LIMIT)
    if stated.get("do_lower_case"):
        raise ValueError(f"{folder} needs texts in lower case before its tokenizer ({_LIMIT}), which is not supported")
    for path, limit in (
        (folder / _LIMIT, stated.get("max_seq_length")),
        (folder / _TOKENIZER, _read_object(folder / _TOKENIZER).get("model_max_length")),
    ):
        if limit is not None:
            if not isinstance(limit, int | float) or limit < _LEAST_LIMIT:
                raise ValueError(f"the limit in {path} must be at least {_LEAST_LIMIT} tokens, got {limit!r}")
            return int(limit) if math.isfinite(limit) else None
    return None


def check_width(folder: Path, dim: int) -> None:
    """Raise ValueError if sentence-transformers would cut the network's vectors of dim numbers."""
    wanted = _read_object(folder / _PROMPTS).get("truncate_dim")
    if wanted is not None and wanted != dim and not (isinstance(wanted, int) and wanted > dim):
        raise ValueError(
            f"{folder} asks for the first {wanted!r} of {dim} numbers of its vectors (truncate_dim in {_PROMPTS}), "
            "which is not supported: remove it, or use a copy of the folder without it"
        )


def default_prompt(folder: Path) -> str:
    """Return what sentence-transformers puts before every text of a dense-only checkpoint; mostly nothing."""
    stated = _read_object(folder / _PROMPTS)
    prompts, default = stated.get("prompts"), stated.get("default_prompt_name")
    return str(prompts.get(default) or "") if isinstance(prompts, dict) and isinstance(default, str) else ""


def _read_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; an empty one if the file does not exist."""
    stated = _read(path)
    if stated is not None and not isinstance(stated, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(stated).__name__}")
    return stated or {}


def _read(path: Path) -> Any:
    """Return the value in a JSON file; None if the file does not exist."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def write_modules(folder: Path, *, dim: int, pooling: DensePooling, limit: int) -> None:
    """Write how a dense vector is made. Without these files sentence-transformers would use the mean of the tokens.

    Args:
        folder: The checkpoint.
        dim: Length of the vector.
        pooling: How it is pooled.
        limit: The most tokens of a text.
    """
    steps = (("", "Transformer"), (_POOLING, "Pooling"), ("2_Normalize", "Normalize"))
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
        for i, (path, name) in enumerate(steps)
    ]
    flags = {name: value == pooling for name, value in _FLAGS.items()}
    (folder / _POOLING).mkdir(exist_ok=True)
    for name, content in (
        (_MODULES, listed),
        (f"{_POOLING}/config.json", {"word_embedding_dimension": dim, **flags}),
        (_LIMIT, {"max_seq_length": limit, "do_lower_case": False}),
    ):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def count_positions(backbone: Any) -> int:
    """Return the most tokens that a backbone has positions for: 8192 of BGE-M3's 8194.

    RoBERTa and models like it count from padding_idx + 1, so padding_idx + 1 of their positions are never used.
    """
    embeddings = getattr(getattr(backbone, "embeddings", None), "position_embeddings", None)
    offset = getattr(embeddings, "padding_idx", None)
    size: int = backbone.config.max_position_embeddings
    return size if offset is None else size - offset - 1
