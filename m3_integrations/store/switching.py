"""The names of stores beside another model's, and the switch of a folder to the new model's store."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from m3_integrations.store.syncing import sync

_NAMED: Final = 8
"""The digits of a fingerprint in the name of a folder or a collection beside another model's."""


def folder_beside(folder: Path, fingerprint: str) -> Path:
    """Return the folder for a model's store while the folder itself has another model's."""
    return folder.with_name(f"{folder.name}.{fingerprint[:_NAMED]}")


def collection_beside(collection: str, fingerprint: str) -> str:
    """Return the name of the collection for a model's store while the collection itself has another model's."""
    return f"{collection}-{fingerprint[:_NAMED]}"


def switch_folder(folder: Path, old: str, new: str) -> Path:
    """Rename a folder's store to a name with its model, and the store beside it to the folder's name.

    Both stores must be closed in all processes. A switch that was killed is completed when the folder is next opened,
    or by `finish_switch`.

    Args:
        folder: The store of the old model.
        old: The fingerprint of the old model.
        new: The fingerprint of the new model, whose store is beside the folder.

    Returns:
        The folder of the old store after the switch.

    Raises:
        FileExistsError: If the name for the old store is taken.
        FileNotFoundError: If there is no store of the new model beside the folder.
    """
    aside, beside, mark = folder_beside(folder, old), folder_beside(folder, new), _mark_of(folder)
    if not beside.is_dir():
        raise FileNotFoundError(f"no migrated store at {beside}")
    if aside.exists():
        raise FileExistsError(f"the old store would be renamed to {aside}, which exists: move that away")
    mark.write_text(f"{beside.name}\n{aside.name}", encoding="utf-8")
    sync(mark)
    sync(folder.parent)
    folder.rename(aside)
    finish_switch(folder)
    return aside


def finish_switch(folder: Path) -> bool:
    """Complete a switch that was killed between its two renames, and return whether there was one to complete.

    A switch that was killed before the first rename is undone.

    Args:
        folder: The folder that was passed to `switch_folder`.
    """
    if (named := _read_mark(folder)) is None:
        return False
    is_begun = is_half_switched(folder)
    if is_begun:
        try:
            named[0].rename(folder)
        except FileNotFoundError:
            if not folder.exists():  # else another process has completed it meanwhile
                raise
        sync(folder.parent)
    _mark_of(folder).unlink(missing_ok=True)
    sync(folder.parent)
    return is_begun


def is_half_switched(folder: Path) -> bool:
    """Return whether a switch of this folder was killed between its two renames.

    Then the folder does not exist, and both stores stand beside it. A mark alone may be left of a switch that was
    killed before its first rename.
    """
    named = _read_mark(folder)
    return named is not None and not folder.exists() and all(each.is_dir() for each in named)


def _read_mark(folder: Path) -> list[Path] | None:
    """Return the folders that a mark names: the new store, and since then the old one; None if there is no mark.

    A file of this name that `switch_folder` did not write is none.
    """
    try:
        names = _mark_of(folder).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError):  # it does not exist, or is a folder, or the name is too long
        return None
    is_ours = all(name.startswith(f"{folder.name}.") and Path(name).name == name for name in names)
    return [folder.with_name(name) for name in names] if is_ours else None


def _mark_of(folder: Path) -> Path:
    """Return the file that exists while a switch is going on."""
    return folder.with_name(f"{folder.name}.switching")
