"""`migrate_store`: a store's records encoded by another model, into a store beside it, while the first is searched.

The new store is the record of what is done: a text that it has already is not encoded again. So a migration that was
killed goes on, and one that is run again brings over only what changed since. `switch_folder` then gives the new folder
the old one's name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
from tqdm.auto import tqdm

from m3_integrations.store.folder import sync
from m3_integrations.store.protocol import Record, Store
from m3_integrations.store.values import is_same
from m3_integrations.vectors import Encoder, M3Vectors, Mode

_BATCH_SIZE: Final = 64
"""Records compared, and encoded, at a time: what a migration that is killed has done in vain at most."""

_MOST_PASSES: Final = 10
"""Of a store that changes all the time, what changed in the last pass is left to the next migration."""

_NAMED: Final = 8
"""Digits of a fingerprint that tell a store's folder, or its collection, from that of another model."""


@dataclass(slots=True)
class MigrationReport:
    """What a migration did.

    Attributes:
        n_encoded: Records whose text the target did not have, or had otherwise.
        n_updated: Records that had other metadata there; they keep their vectors.
        n_kept: Records that were there as they are before it began.
        n_deleted: Records of the target that the source no longer has.
        is_in_step: Whether the last pass over the source found nothing to do. Otherwise the source went on changing.
    """

    n_encoded: int = 0
    n_updated: int = 0
    n_kept: int = 0
    n_deleted: int = 0
    is_in_step: bool = False


def migrate_store(
    source: Store, target: Store, encoder: Encoder, *, delete_absent: bool = True, show_progress: bool = False
) -> MigrationReport:
    """Bring a store of another model into step with a store: same records, encoded by that model.

    The source is only read, and may be searched and changed meanwhile: passes over it are repeated until one finds
    nothing to do. Every batch is in the target before the next is encoded.

    Args:
        source: Where the records are.
        target: A new store, or one that a migration from this source has begun. Bound to the encoder's model.
        encoder: Encodes the texts, in all modes that it has and the target keeps.
        delete_absent: Whether what the source does not have is deleted in the target, as what was deleted since has to
            be. False for a target that holds more than a migration's records.
        show_progress: Whether to draw a progress bar.

    Raises:
        ValueError: If the source is of the encoder's model already, source and target are one store, or the target
            holds a third model's vectors. Nothing was changed then.
    """
    if source is target:
        raise ValueError("a store cannot be migrated into itself: open another one for the new model")
    if source.fingerprint == encoder.fingerprint:
        raise ValueError(f"the source is of {encoder.model} ({encoder.fingerprint}) already: copy_store copies it")
    target.bind(encoder.fingerprint)
    report = MigrationReport()
    modes = [mode for mode in encoder.modes if mode in target.kept_modes]
    with tqdm(total=source.count(), unit="record", desc="migrating", disable=not show_progress) as bar:
        for n_pass in range(_MOST_PASSES):
            before = report.n_encoded, report.n_updated, report.n_deleted
            for batch in _batches(source.records()):
                n_kept = _bring(batch, target, encoder, modes, report)
                if n_pass == 0:
                    report.n_kept += n_kept
                    bar.update(len(batch))
            if delete_absent:
                _delete_absent(source, target, report)
            if before == (report.n_encoded, report.n_updated, report.n_deleted):
                report.is_in_step = True
                break
    target.flush()
    return report


def _batches(records: Iterable[Record]) -> Iterator[list[Record]]:
    records = iter(records)
    while batch := list(islice(records, _BATCH_SIZE)):
        yield batch


def _bring(batch: list[Record], target: Store, encoder: Encoder, modes: list[Mode], report: MigrationReport) -> int:
    """Put into the target what it lacks of these records, or has otherwise; return how many it had as they are."""
    there = {record.id: record for record in target.get([record.id for record in batch])}
    fresh = [record for record in batch if record.id not in there or there[record.id].text != record.text]
    known = [record for record in batch if record.id in there and there[record.id].text == record.text]
    changed = [record for record in known if not is_same(record.metadata, there[record.id].metadata)]
    if fresh:
        _upsert(fresh, encoder.encode([record.text for record in fresh], modes=modes), target)
    if changed:
        own = {record.id: record for record in target.get([record.id for record in changed], with_vectors=True)}
        kept = [record for record in changed if record.id in own]
        parts = [vectors for record in kept if (vectors := own[record.id].vectors) is not None]
        _upsert(kept, M3Vectors.concatenate(parts), target, is_pooled=[own[record.id].is_pooled for record in kept])
    report.n_encoded += len(fresh)
    report.n_updated += len(changed)
    return len(known) - len(changed)


def _upsert(records: list[Record], vectors: M3Vectors, target: Store, *, is_pooled: list[bool] | None = None) -> None:
    target.upsert(
        [record.id for record in records],
        [record.text for record in records],
        [record.metadata for record in records],
        vectors,
        is_pooled=None if is_pooled is None else np.array(is_pooled),
    )


def _delete_absent(source: Store, target: Store, report: MigrationReport) -> None:
    for batch in _batches(target.records()):
        ids = [record.id for record in batch]
        present = {record.id for record in source.get(ids)}
        if absent := [id_ for id_ in ids if id_ not in present]:
            report.n_deleted += target.delete(absent)


def folder_beside(folder: Path, fingerprint: str) -> Path:
    """Return where a folder's store of a model lies while the folder itself holds another's."""
    return folder.with_name(f"{folder.name}.{fingerprint[:_NAMED]}")


def collection_beside(collection: str, fingerprint: str) -> str:
    """Return what a collection's store of a model is called while the collection itself holds another's."""
    return f"{collection}-{fingerprint[:_NAMED]}"


def switch_folder(folder: Path, old: str, new: str) -> Path:
    """Give the store beside a folder the folder's name, and the folder's own store the name of its model.

    `finish_switch` ends one that was killed. Both stores must be closed, here and elsewhere.

    Args:
        folder: The store of the old model.
        old: That model's fingerprint.
        new: The fingerprint of the other, whose store is beside it.

    Returns:
        Where the old store lies now.

    Raises:
        FileExistsError: If something has the name that the old store would get.
        FileNotFoundError: If there is no store beside it.
    """
    aside, beside, mark = folder_beside(folder, old), folder_beside(folder, new), _mark_of(folder)
    if not beside.is_dir():
        raise FileNotFoundError(f"no migrated store at {beside}")
    if aside.exists():
        raise FileExistsError(f"{aside} is in the way of the old store: move it away")
    mark.write_text(beside.name, encoding="utf-8")
    sync(mark)
    sync(folder.parent)
    folder.rename(aside)
    finish_switch(folder)
    return aside


def finish_switch(folder: Path) -> bool:
    """End a switch that was killed between its two steps: return whether there was one. Before the first it is undone.

    Args:
        folder: As for `switch_folder`.
    """
    mark = _mark_of(folder)
    if not mark.exists():
        return False
    is_begun = not folder.exists()
    if is_begun:
        folder.with_name(mark.read_text(encoding="utf-8")).rename(folder)
        sync(folder.parent)
    mark.unlink()
    sync(folder.parent)
    return is_begun


def _mark_of(folder: Path) -> Path:
    """Return the file that is there from before a switch's first step to after its last."""
    return folder.with_name(f"{folder.name}.switching")
