"""Moving records from one store into another, without encoding anything again."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Final

from m3_integrations.store.protocol import Record, Store

_BATCH: Final = 50
"""Records read with their vectors at a time: bounds the memory."""


def copy_store(source: Store, target: Store) -> int:
    """Copy all records with their vectors into another store; what only the target holds stays there.

    Run again after an interruption it goes on: a record that the target has already, with the same text and metadata,
    is passed over. Both stores are of one model, so its vectors are the same too.

    Args:
        source: Where the records are. It must not change meanwhile.
        target: Where they go; bound to the source's model.

    Returns:
        How many records were copied by this call.

    Raises:
        ValueError: If the target holds another model's vectors, or only one of them says of which model they are, or
            the target keeps a mode that the source has not kept.
    """
    if source.modes and target.modes and (lost := set(target.modes) - set(source.modes)):
        raise ValueError(
            f"the target has {', '.join(sorted(lost))} vectors and the source none: open the target with "
            "multi_vector='none', or encode the texts again"
        )
    _check_model(source, target)
    if source.fingerprint is not None:
        target.bind(source.fingerprint)
    copied = 0
    for batch in _batches(source.records()):
        there = {record.id: record for record in target.get([record.id for record in batch])}
        missing = [record.id for record in batch if not _is_same(record, there.get(record.id))]
        target.upsert(source.get(missing, with_vectors=True))
        copied += len(missing)
    target.flush()
    return copied


def _check_model(source: Store, target: Store) -> None:
    """Refuse to mix vectors of a model with vectors of nobody knows which; `bind` refuses those of two models."""
    for one, other, name in ((source, target, "source"), (target, source, "target")):
        if one.modes and one.fingerprint is None and other.fingerprint is not None:
            raise ValueError(
                f"the {name} holds vectors and does not say of which model, the other store is for the model "
                f"{other.fingerprint}: if they are of that model, bind the {name} to it first"
            )


def _batches(records: Iterator[Record]) -> Iterator[list[Record]]:
    while batch := list(islice(records, _BATCH)):
        yield batch


def _is_same(record: Record, other: Record | None) -> bool:
    return other is not None and record.text == other.text and dict(record.metadata) == dict(other.metadata)
