"""Checkpoints from the Hugging Face hub. Only what names a repository imports this: the client is large."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Final

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

from m3_integrations.checkpoint.files import WEIGHTS, weight_files

_SMALL_FILES: Final = (
    "config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "sentencepiece.bpe.model",
    "vocab.*",
    "merges.txt",
    "added_tokens.json",
    "modules.json",
    "*_Pooling/config.json",
    "sentence_bert_config.json",
    "colbert_linear.*",
    "sparse_linear.*",
)

_HubError: Final[type[Exception]] = next(b for b in HfHubHTTPError.__mro__ if b.__name__ == "HTTPError")
"""Base class of what the hub's HTTP client raises, timeouts included. The client is httpx or httpx2, by its version."""

_HUB_TIMEOUT_S: Final = 20.0
"""How long the hub may take to answer whether it has a repository."""

NOT_FOUND: Final = (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, _HubError)
"""Errors that `download` raises."""


@cache
def download(repository: str, revision: str | None) -> Path:
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
    for names in WEIGHTS:
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
