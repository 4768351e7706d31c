"""Download checkpoints from the Hugging Face hub. Imported only for the name of a repository: its client is large."""

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
    "config_sentence_transformers.json",
    "colbert_linear.*",
    "sparse_linear.*",
)

_HubError: Final[type[Exception]] = next(b for b in HfHubHTTPError.__mro__ if b.__name__ == "HTTPError")
"""Base class of the errors of huggingface_hub's HTTP client, timeouts included. The client is httpx or httpx2."""

_HUB_TIMEOUT_S: Final = 20.0
"""Time limit of the first request, which asks the hub whether it has the repository."""

NOT_FOUND: Final = (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, _HubError)
"""Errors that `download` raises."""


@cache
def download(repository: str, revision: str | None) -> Path:
    """Download the small files, and the weights in one format: safetensors if the repository has it, else `.bin`.

    The result is kept: a process asks the hub once for each repository and revision. If the hub does not answer within
    `_HUB_TIMEOUT_S`, only the cache is read: `snapshot_download` would wait without a limit.
    """
    try:
        HfApi().repo_info(repository, revision=revision or "main", timeout=_HUB_TIMEOUT_S)
        is_cache_only, silence = False, None
    except (_HubError, OfflineModeIsEnabled) as error:
        if isinstance(error, HfHubHTTPError):
            raise  # the hub answered, so the cache is not read
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
