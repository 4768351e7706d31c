"""Find a checkpoint: in this package, in a folder, or on the Hugging Face hub."""

from __future__ import annotations

import os
from difflib import get_close_matches
from pathlib import Path
from typing import Final

_KNOWN_REPOSITORIES: Final = ("BAAI/bge-m3",)

DEFAULT: Final = "small"
"""The checkpoint that commands use if none is named."""

BUNDLED: Final = (DEFAULT, "tiny")
"""The names of the checkpoints in this package."""


def find_checkpoint(model: str | os.PathLike[str], *, revision: str | None = None) -> Path:
    """Return the folder of a checkpoint. Files of a hub's repository that are not cached yet are downloaded.

    Args:
        model: A folder, a repository of the hub such as "BAAI/bge-m3", or "small" or "tiny", the checkpoints in this
            package (folders of your own with these names are "./small" and "./tiny").
        revision: Branch, tag or commit on the hub.

    Returns:
        The folder, symbolic links resolved. In the hub's cache its name is the commit.

    Raises:
        FileNotFoundError: If the folder or repository does not exist; or if the hub does not answer within 20 seconds
            and the repository is not cached.
        ValueError: If a revision is given for a folder.
    """
    folder = Path(__file__).parent.parent / model if model in BUNDLED else Path(model).expanduser()
    if os.path.isdir(folder):  # noqa: PTH112 - `is_dir` raises OSError for a name that is too long
        if revision is not None:
            raise ValueError(
                f"revision={revision!r} is for a repository of the hub, but {folder} is a folder: leave it out"
            )
        return folder.resolve()
    if isinstance(model, os.PathLike) or str(model).startswith((".", "~", "/")):
        raise FileNotFoundError(f"there is no checkpoint folder {folder}")
    from m3_integrations.checkpoint import hub  # noqa: PLC0415 - importing its client takes twice as long as numpy

    try:
        return hub.download(str(model), revision)
    except hub.NOT_FOUND as error:
        at = f" at revision {revision!r}" if revision else ""
        raise FileNotFoundError(
            f"{str(model)!r}{at} is not a folder here, and the Hugging Face hub did not return it: "
            f"{error or type(error).__name__}. {_ways_out(str(model))}"
        ) from error


def _ways_out(model: str) -> str:
    """Return advice to a user whose checkpoint was not found."""
    names = {name.casefold(): name for name in (*BUNDLED, *_KNOWN_REPOSITORIES)} | {
        name.partition("/")[2].casefold(): name for name in _KNOWN_REPOSITORIES
    }
    close = get_close_matches(model.casefold(), names, n=1, cutoff=0.8)
    meant = f"Did you mean {names[close[0]]!r}? " if close and names[close[0]] != model else ""
    return (
        f"{meant}Without the hub: {' and '.join(map(repr, BUNDLED))} are in this package; or pass a folder with "
        "config.json, the tokenizer, model.safetensors or pytorch_model.bin, colbert_linear.pt and sparse_linear.pt; "
        "files downloaded earlier are read from the cache (HF_HOME); HF_ENDPOINT sets a mirror"
    )
