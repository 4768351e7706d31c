"""`migrate_store`: encoding a store's records with another model into a second store, while the first is searched.

A text that the new store has already is not encoded again. So a killed migration continues, and one that is run
again copies only what changed since. `switch_folder` of switching.py then renames the new folder to the old one's name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final

import numpy as np
from tqdm.auto import tqdm

from m3_integrations.store.protocol import Record, Store
from m3_integrations.store.values import is_same
from m3_integrations.vectors import Encoder, M3Vectors, Mode

_BATCH_SIZE: Final = 64
"""The records that are compared and encoded at a time. A migration that is killed loses at most the work on these."""

_MOST_PASSES: Final = 10
"""The most passes over a source that keeps changing; changes after the last one are left to the next migration."""


@dataclass(slots=True)
class MigrationReport:
    """The numbers of a migration.

    Attributes:
        n_encoded: The records that the target did not have, or had with another text.
        n_updated: The records that the target had with other metadata; they kept their vectors.
        n_kept: The records that the target had already, unchanged.
        n_deleted: The records of the target that the source no longer has.
        is_in_step: Whether the last pass over the source found nothing to do. If not, the source kept changing.
    """

    n_encoded: int = 0
    n_updated: int = 0
    n_kept: int = 0
    n_deleted: int = 0
    is_in_step: bool = False


def migrate_store(
    source: Store, target: Store, encoder: Encoder, *, delete_absent: bool = True, show_progress: bool = False
) -> MigrationReport:
    """Copy a store's records into another store, encoded by another model.

    The source is only read, and may be searched and changed meanwhile: passes over it are repeated until one finds
    nothing to do, at most 10. Every batch is in the target before the next one is encoded.

    Args:
        source: The store of the records.
        target: A new store, or the target of an earlier migration from this source. It is bound to the encoder's model.
        encoder: Encodes the texts, in all modes that it has and the target keeps.
        delete_absent: Whether records that the source does not have are deleted from the target. False for a target
            with other records too; then records that were deleted from the source stay in the target.
        show_progress: Whether to draw a progress bar.

    Raises:
        ValueError: If the source is of the encoder's model already, source and target are one store, or the target has
            a third model's vectors. Then nothing was changed.
    """
    if source is target:
        raise ValueError("source and target are the same store: open another store for the new model")
    if source.fingerprint == encoder.fingerprint:
        raise ValueError(
            f"the source already has vectors of {encoder.model} ({encoder.fingerprint}): copy it with copy_store"
        )
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
    """Write the records that the target lacks or has differently, and return the number that it had already."""
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
