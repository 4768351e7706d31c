"""Adding texts to a store. A whole call is checked before the first pass; a later error names the texts stored."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from m3_integrations.store import Store
from m3_integrations.store.values import check_metadata, check_value
from m3_integrations.vectors import Encoder, Mode
from m3_integrations.vectors.texts import refuse_table

NODE_KEYS: Final = ("_node_content", "_node_type", "_node_ref_doc_id")
"""The keys under which LlamaIndex's convention keeps a whole node in a record's metadata."""


def holds_node(metadata: Mapping[str, Any]) -> bool:
    """Return whether a record's metadata hold a whole node. If not, `NODE_KEYS` in them are the user's own keys."""
    content, kind = (metadata.get(key) for key in NODE_KEYS[:2])
    return isinstance(content, str) and isinstance(kind, str) and '"id_"' in content


class IncompleteAddError(RuntimeError):
    """An error for a call that ended before all its texts were stored; its cause is the error that ended the call.

    Adding all texts again with `ids=error.ids` makes no duplicates. An error that is not an `Exception`, such as
    KeyboardInterrupt, keeps its type and has this one as its cause.

    Attributes:
        ids: The ids of all texts of the call, in their order, including the random ones.
        added: The ids of the texts that are certainly stored. Some of the others may be stored too.
    """

    def __init__(self, ids: Sequence[str], added: Sequence[str]) -> None:
        super().__init__()
        self.ids, self.added = list(ids), list(added)

    def __reduce__(self) -> tuple[Any, ...]:
        return IncompleteAddError, (self.ids, self.added)

    def __str__(self) -> str:
        return (
            f"{len(self.added)} of {len(self.ids)} texts were added before an error: add all of them again with "
            "ids=error.ids, which makes no duplicates; error.added has the ids that are certainly stored"
        )


def add_texts(
    encoder: Encoder,
    store: Store,
    modes: Sequence[Mode],
    texts: Iterable[str],
    *,
    ids: Iterable[str | None] | None,
    metadatas: Iterable[Mapping[str, Any] | None] | None,
    show_progress: bool,
) -> list[str]:
    """Encode texts in these modes and put them into a store; `Searcher.add` describes the arguments and errors."""
    chosen, listed, kept = check_added(texts, ids, metadatas)
    start = 0
    is_writing = False
    try:
        for vectors in encoder.encode_batches(listed, modes=modes, show_progress=show_progress):
            end, is_writing = start + len(vectors), True
            store.upsert(chosen[start:end], listed[start:end], kept[start:end], vectors)
            start, is_writing = end, False
    except BaseException as error:
        if is_nothing_in(error, start, is_writing=is_writing):
            raise
        incomplete = IncompleteAddError(chosen, chosen[:start])
        if isinstance(error, Exception):
            raise incomplete from error
        error.__cause__ = incomplete
        raise
    return chosen


def is_nothing_in(error: BaseException, n_added: int, *, is_writing: bool) -> bool:
    """Return whether a call that failed has certainly stored nothing.

    Args:
        error: The error that ended the call.
        n_added: How many texts were stored before the error.
        is_writing: Whether the store was writing. A store raises TypeError and ValueError before it writes anything.
    """
    return n_added == 0 and (not is_writing or isinstance(error, TypeError | ValueError))


def check_added(
    texts: Iterable[str], ids: Iterable[str | None] | None, metadatas: Iterable[Mapping[str, Any] | None] | None
) -> tuple[list[str], list[str], list[dict[str, Any]]]:
    """Return the ids, the texts, and the metadata as they are kept; a text without an id gets a random one.

    Raises:
        TypeError: For the reasons of `Searcher.add`.
        ValueError: For the reasons of `Searcher.add`.
    """
    for name, column in (("texts", texts), ("ids", ids)):
        if isinstance(column, str):
            raise TypeError(f"{name} must be strings, got one string: pass [{name.removesuffix('s')}]")
        refuse_table(column, name)
    texts = list(texts)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"texts must be strings, got {type(text).__name__} at position {i}")
        texts[i] = check_value(text, f"the text at position {i}")
    given = [None] * len(texts) if ids is None else list(ids)
    if len(given) != len(texts):
        raise ValueError(f"every text needs one id, got {len(texts)} texts and {len(given)} ids")
    for i, id_ in enumerate(given):
        if id_ is not None and not isinstance(id_, str):
            raise TypeError(f"ids must be strings or None, got {id_!r} at position {i}")
        given[i] = check_value(id_, f"the id at position {i}")
    if isinstance(metadatas, Mapping):
        raise TypeError("metadatas must be one mapping for each text, got one mapping: pass [metadata]")
    refuse_table(metadatas, "metadatas", "pass one mapping for each text, such as df.to_dict('records')")
    listed = [None] * len(texts) if metadatas is None else list(metadatas)
    if len(listed) != len(texts):
        raise ValueError(
            f"every text needs one mapping of metadata, got {len(texts)} texts and {len(listed)} metadatas"
        )
    names = (f"text {i}" if id_ is None else f"{id_!r} (text {i})" for i, id_ in enumerate(given))
    kept = [{} if each is None else check_metadata(each, name) for name, each in zip(names, listed, strict=True)]
    return [str(uuid.uuid4()) if id_ is None else id_ for id_ in given], texts, kept
