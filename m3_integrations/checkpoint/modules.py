"""How a checkpoint makes its dense vector, as sentence-transformers' files say it: read, and written.

They are modules.json, which lists the steps, 1_Pooling/config.json, which says how the states of tokens become one
vector, and sentence_bert_config.json, which says where texts are cut. LlamaIndex's HuggingFaceEmbedding reads all of
them, Text Embeddings Inference the last two.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, Literal

DensePooling = Literal["cls", "mean"]
"""How the states of a text's tokens become its dense vector: the first one, or the mean of all, [CLS] and [SEP] too."""

_MODULES: Final = "modules.json"
_POOLING: Final = "1_Pooling"
_LIMIT: Final = "sentence_bert_config.json"
_TOKENIZER: Final = "tokenizer_config.json"
_KNOWN: Final = ("Transformer", "Pooling", "Normalize")
_FLAGS: Final[dict[str, DensePooling]] = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}


def read_pooling(folder: Path) -> DensePooling:
    """Return how a checkpoint pools; "cls" where no file says it, as for BGE-M3's kin.

    A vector has unit length here, whether or not the files list a step that normalizes.

    Raises:
        ValueError: If it pools in another way, has a step that is not known here, or a file is damaged.
    """
    path = folder / _POOLING / "config.json"
    if (listed := _read(folder / _MODULES)) is not None:
        path = folder / _pooling_folder(folder, listed) / "config.json"
        if not path.is_file():
            raise ValueError(f"{folder} lists a pooling in {_MODULES}, but {path.relative_to(folder)} is not there")
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
            f"{folder} was trained with a pooling other than [CLS] or the mean of all tokens, which is not supported: "
            f"{path.relative_to(folder)} names {said}"
        )
    if stated.get("include_prompt", True) is False:
        raise ValueError(f"{folder} leaves its prompt out of the pooling ({path.relative_to(folder)}), which is not "
                         "supported")  # fmt: skip
    return "cls" if found[0] == "cls" else "mean"


def _pooling_folder(folder: Path, listed: Any) -> str:
    """Return the path of the pooling's step, once every step is known."""
    try:
        steps = [(str(each["type"]).rpartition(".")[2], str(each["path"])) for each in listed]
    except (TypeError, KeyError) as error:
        raise ValueError(f"{folder / _MODULES} must list steps with type and path: {error!r}") from error
    if other := [f"{kind} ({path})" for kind, path in steps if kind not in _KNOWN]:
        raise ValueError(
            f"{folder} makes its dense vectors by a further step, {', '.join(other)}, which is not supported"
        )
    poolings = [path for kind, path in steps if kind == "Pooling"]
    if len(poolings) != 1:
        raise ValueError(f"{folder / _MODULES} lists {len(poolings)} poolings, and one is needed")
    return poolings[0]


def read_limit(folder: Path) -> int | None:
    """Return the most tokens of a text that the files allow, [CLS] and [SEP] included; None where they say nothing.

    It is max_seq_length in sentence_bert_config.json, or else the tokenizer's model_max_length, as in
    sentence-transformers, whose version 6 writes the second alone.

    Raises:
        ValueError: If a file is damaged, or has texts put in lower case before its tokenizer, which is not supported.
    """
    stated = _read_object(folder / _LIMIT)
    if stated.get("do_lower_case"):
        raise ValueError(f"{folder} puts texts in lower case before its tokenizer ({_LIMIT}), which is not supported")
    for path, limit in (
        (folder / _LIMIT, stated.get("max_seq_length")),
        (folder / _TOKENIZER, _read_object(folder / _TOKENIZER).get("model_max_length")),
    ):
        if limit is not None:
            if not isinstance(limit, int | float) or limit < 1:
                raise ValueError(f"{path} must name a number of tokens, got {limit!r}")
            return int(limit)
    return None


def _read_object(path: Path) -> dict[str, Any]:
    """Return the object that a file of JSON holds, an empty one if it is not there."""
    stated = _read(path)
    if stated is not None and not isinstance(stated, dict):
        raise ValueError(f"{path} must hold an object, got {type(stated).__name__}")
    return stated or {}


def _read(path: Path) -> Any:
    """Return what a file of JSON holds, None if it is not there."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def write_modules(folder: Path, *, dim: int, pooling: DensePooling, limit: int) -> None:
    """Write how a dense vector is made; without it sentence-transformers would take the mean over the tokens.

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

    RoBERTa and its kin count from padding_idx + 1, so that many of their positions are never used.
    """
    embeddings = getattr(getattr(backbone, "embeddings", None), "position_embeddings", None)
    offset = getattr(embeddings, "padding_idx", None)
    size: int = backbone.config.max_position_embeddings
    return size if offset is None else size - offset - 1
