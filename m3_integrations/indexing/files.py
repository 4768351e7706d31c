"""`find_files`: lists the files to index, and the files that are skipped with the reason."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from m3_integrations.indexing.reading import KINDS

_HIDDEN: Final = "."


@dataclass(slots=True)
class FoundFiles:
    """The files under the given paths.

    Attributes:
        roots: The given paths, absolute, including paths that do not exist.
        files: The files to read, absolute, sorted, each once.
        skipped: The skipped paths by the reason, each folder's in sorted order.
        failures: Folders that could not be listed and files that could not be examined, each with the reason.
    """

    roots: list[Path] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    skipped: dict[str, list[Path]] = field(default_factory=dict)
    failures: dict[Path, str] = field(default_factory=dict)

    def skip(self, path: Path, reason: str) -> None:
        """Note a path that is skipped."""
        self.skipped.setdefault(reason, []).append(path)


def find_files(paths: Iterable[str | os.PathLike[str]], *, exclude: Iterable[Path] = ()) -> FoundFiles:
    """Find the files to index: the given files, and the files of a known kind below the given folders.

    Hidden files and folders below a given folder are skipped. Links to folders are skipped too, because they can form a
    loop. A link to a file is read under the link's name.

    Args:
        paths: Files and folders. A path that does not exist is listed in `roots` and has no files.
        exclude: Folders that are never entered, such as the store's own folder.

    Raises:
        ValueError: If no path is given, or a given file is of an unknown kind, a pipe or a device.
    """
    found = FoundFiles()
    left_out = {path.resolve() for path in exclude}
    for path in paths:
        named = Path(path).expanduser()
        # A file keeps the given name, even if it is a link. A link to a folder is resolved.
        root = named.resolve() if named.is_dir() or not named.name else named.parent.resolve() / named.name
        found.roots.append(root)
        if root.is_dir():
            found.files.extend(_below(root, left_out, found))
        elif root.exists():
            if kind_of(root) is None:
                raise ValueError(f"{path}: only {', '.join(KINDS)} files can be indexed: name a folder or such a file")
            if not root.is_file():
                raise ValueError(f"{path}: a pipe or a device cannot be indexed: write its contents into a file first")
            found.files.append(root)
    if not found.roots:
        raise ValueError("name at least one file or folder to index")
    found.files = sorted(set(found.files))
    return found


def kind_of(path: Path) -> str | None:
    """Return a file's ending in lower case; None if files with this ending cannot be read."""
    suffix = path.suffix.lower()
    return suffix if suffix in KINDS else None


def _below(root: Path, left_out: set[Path], found: FoundFiles) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        found.failures[Path(error.filename)] = f"{error.filename}: {error.strerror or error}"

    for name, folders, files in os.walk(root, onerror=fail):
        folder = Path(name)
        for child in sorted(folders):
            if (folder / child).is_symlink() and not child.startswith(_HIDDEN):
                found.skip(folder / child, "links to folders")
        folders[:] = [f for f in sorted(folders) if not f.startswith(_HIDDEN) and folder / f not in left_out]
        for child in sorted(files):
            path = folder / child
            if child.startswith(_HIDDEN):
                continue
            if kind_of(path) is None:
                found.skip(path, f"{path.suffix.lower()} files" if path.suffix else "files without an ending")
                continue
            try:
                is_file = stat.S_ISREG(path.stat().st_mode)
            except FileNotFoundError:
                found.skip(path, "links to nothing")
                continue
            except OSError as error:  # is_file() is False here since Python 3.13: records would be deleted
                found.failures[path] = f"{path}: {error.strerror or error}"
                continue
            if is_file:
                yield path
            else:
                found.skip(path, "special files")
