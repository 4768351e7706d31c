"""Load a checkpoint's tokenizer as transformers would; transformers itself is imported only for unusual files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import tokenizers
from tokenizers import normalizers, pre_tokenizers

from m3_integrations.checkpoint.files import CONFIG, VOCABULARIES, XLM_ROBERTA
from m3_integrations.tokenizer import Tokenizer

_FILE: Final = "tokenizer.json"
_SETTINGS: Final = ("tokenizer_config.json", "special_tokens_map.json")
_SPECIAL: Final = {"cls_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
"""XLM-RoBERTa's special tokens, for settings that do not name others."""


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load a checkpoint's tokenizer.

    Raises:
        TypeError: If it is a slow one.
        ValueError: If the folder has no readable tokenizer, or the tokenizer does not put one [CLS] before a text.
    """
    if not any(file for pattern in VOCABULARIES for file in folder.glob(pattern)):
        # Without this check transformers returns a tokenizer with an empty vocabulary and does not warn.
        below = next(iter(sorted(folder.glob("*Transformer/tokenizer.json"))), None)
        hint = f"; move the files in {below.parent.name} into the folder itself" if below else ""
        raise ValueError(f"{folder} has no tokenizer: it needs one of {', '.join(VOCABULARIES)}{hint}")
    if (tokenizer := _read(folder)) is not None:
        return Tokenizer(tokenizer)
    from transformers import AutoTokenizer  # noqa: PLC0415 - slower to import than a bundled checkpoint to load

    try:
        found = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the Rust library raises nothing narrower
        raise ValueError(f"the tokenizer in {folder} cannot be read: {error}") from error
    if found.truncation_side != "right":
        raise ValueError(f"the tokenizer in {folder} cuts texts on the left (truncation_side), which is not supported")
    return Tokenizer(found)


class _FileTokenizer:
    """The parts of a transformers tokenizer that this package uses, read from the files.

    Args:
        tokenizer: Read from tokenizer.json.
        special: The special tokens by transformers' names. The vocabulary may lack the mask token.
        settings: The contents of the settings files by their names.
    """

    is_fast = True

    def __init__(
        self, tokenizer: tokenizers.Tokenizer, special: Mapping[str, str], settings: Mapping[str, bytes]
    ) -> None:
        self.backend_tokenizer = tokenizer
        ids = {name: tokenizer.token_to_id(token) for name, token in special.items()}
        self.cls_token_id, self.eos_token_id = ids["cls_token"], ids["eos_token"]
        self.pad_token_id, self.unk_token_id = ids["pad_token"], ids["unk_token"]
        self.mask_token_id = ids["mask_token"]
        self.model_max_length: int | None = None
        """The length limit that `save_pretrained` writes; None keeps the one in the files."""
        self._settings = settings

    def save_pretrained(self, folder: Path) -> None:
        """Write tokenizer.json and the settings files that were read."""
        self.backend_tokenizer.save(str(folder / _FILE))
        for name, content in self._settings.items():
            if name == _SETTINGS[0] and self.model_max_length is not None:
                settings = json.loads(content) | {"model_max_length": self.model_max_length}
                (folder / name).write_text(json.dumps(settings, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
            else:
                (folder / name).write_bytes(content)


def _read(folder: Path) -> _FileTokenizer | None:
    """Read tokenizer.json; return None if transformers must load the tokenizer.

    For XLM-RoBERTa transformers takes only the vocabulary, the special tokens and the charsmap from the file. It
    normalizes and splits by the rules of its own class, and ignores the file's rules. This function does the same.
    """
    try:
        if json.loads((folder / CONFIG).read_bytes())["model_type"] != XLM_ROBERTA:
            return None
        tokenizer = tokenizers.Tokenizer.from_file(str(folder / _FILE))
        flags = {token.content: token for token in tokenizer.get_added_tokens_decoder().values()}
        settings = {name: (folder / name).read_bytes() for name in _SETTINGS if (folder / name).is_file()}
        given: dict[str, Any] = {}
        for content in reversed(settings.values()):  # the values of the first file win
            given |= json.loads(content)
        special = {name: _text(given.get(name, token)) for name, token in _SPECIAL.items()}
        added = {int(i): _text(token) for i, token in given.get("added_tokens_decoder", {}).items()}
    except Exception:  # the Rust library raises nothing narrower; transformers then raises an error for the same file
        return None
    _apply_rules(tokenizer, is_prefixed=bool(given.get("add_prefix_space", True)))
    is_complete = (
        tokenizer.post_processor is not None
        and not (folder / "added_tokens.json").exists()
        and "auto_map" not in given
        and given.get("truncation_side") in {None, "right"}
        and given.get("tokenizer_class", "XLMRobertaTokenizer").removesuffix("Fast") == "XLMRobertaTokenizer"
        and all(tokenizer.token_to_id(token) is not None for token in {*special.values(), *_named(given)})
        and all(tokenizer.token_to_id(token) == i for i, token in added.items())
        and all(_has_flags(flags.get(_text(token)), token) for token in _mappings(given))
    )
    mask = {"mask_token": _text(given.get("mask_token") or "<mask>")}
    return _FileTokenizer(tokenizer, special | mask, settings) if is_complete else None


def _apply_rules(tokenizer: tokenizers.Tokenizer, *, is_prefixed: bool) -> None:
    """Normalize by the charsmap alone, and split at white space, as transformers' XLMRobertaTokenizer does.

    A file converted from sentencepiece's treats blanks in another way: its normalizer shortens runs of them, and blanks
    at the end of a text become a token.
    """
    own = tokenizer.normalizer
    parts = [own[i] for i in range(len(own))] if isinstance(own, normalizers.Sequence) else [own]
    tokenizer.normalizer = next((part for part in parts if isinstance(part, normalizers.Precompiled)), None)
    marks = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always" if is_prefixed else "never")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), marks])


def _mappings(settings: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the special tokens whose flags the settings state."""
    named = (value for name, value in settings.items() if name.endswith("_token"))
    for value in (*named, *settings.get("added_tokens_decoder", {}).values()):
        if isinstance(value, Mapping):
            yield value


def _has_flags(token: tokenizers.AddedToken | None, stated: Mapping[str, Any]) -> bool:
    """Whether a token's flags in the file equal those in the settings.

    The flags about blanks beside a token are not compared: blanks never become tokens.
    """
    names = ("single_word", "normalized")
    return token is not None and all(getattr(token, name) == stated.get(name, False) for name in names)


def _named(settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield every token that the settings name, for any purpose."""
    for name, value in settings.items():
        if name.endswith("_token") and value is not None:
            yield _text(value)
        elif name.endswith("special_tokens"):
            yield from (_text(token) for token in (value.values() if isinstance(value, Mapping) else value or ()))


def _text(token: Any) -> str:
    """Return a token's text: the settings hold a string, or a mapping with the string as "content"."""
    return str(token["content"] if isinstance(token, Mapping) else token)
