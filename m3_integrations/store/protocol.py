"""What a store is: records with vectors, primitives to find and score them, and what is checked before it keeps them.

Fusion and weights are not a store's: they are made from its raw scores.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from m3_integrations.store.filters import Filter, FilterLike, parse_filter
from m3_integrations.store.values import check_value
from m3_integrations.vectors import FloatArray, M3Vectors, Mode


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """One text with its vectors.

    Attributes:
        id: Any string; a second record with the same id replaces the first.
        text: What was encoded.
        metadata: What filters look at; `m3_integrations.store.values` says what they may hold.
        vectors: The vectors of this one text; None where they were not asked for.
        is_pooled: Whether its token vectors are means of neighbours, because the store was opened with `token_pooling`
            or the text had more tokens than a store keeps.
    """

    id: str
    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    vectors: M3Vectors | None = None
    is_pooled: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Hits:
    """Ids with their raw scores, best first.

    Attributes:
        ids: n ids.
        scores: (n,) float32, higher is better.
    """

    ids: list[str]
    scores: FloatArray


@runtime_checkable
class Store(Protocol):
    """Primitives of a collection that every engine has; safe to call from many threads."""

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes that the records have vectors of; empty before the first record."""
        ...

    @property
    def kept_modes(self) -> tuple[Mode, ...]:
        """The modes that the store keeps: vectors of another mode need not be computed for it."""
        ...

    @property
    def fingerprint(self) -> str | None:
        """The model that the store is bound to; None before `bind`."""
        ...

    def bind(self, fingerprint: str) -> None:
        """Record which model the vectors are from; the first call decides.

        Raises:
            ValueError: If the store is bound to another model.
        """
        ...

    def upsert(
        self,
        ids: Sequence[str],
        texts: Sequence[str],
        metadatas: Sequence[Mapping[str, Any]],
        vectors: M3Vectors,
        *,
        is_pooled: NDArray[np.bool_] | None = None,
    ) -> None:
        """Add n records, and replace those with the same ids; of two equal ids in one call the later counts.

        Everything is checked before anything is written.

        Args:
            ids: n strings.
            texts: n strings.
            metadatas: n mappings; they are copied, as `values.check_metadata` does.
            vectors: Those of the n texts. A store may keep the arrays: do not change them afterwards.
            is_pooled: (n,) which records another store has pooled already; none if None.

        Raises:
            TypeError: If an id or a text is not a string, or a record's metadata are no mapping.
            ValueError: If the columns differ in length, metadata hold what cannot be kept, a text is not valid Unicode,
                a number in the vectors is not finite, or they have other modes or sizes than those in the store.
        """
        ...

    def delete(self, ids: Sequence[str]) -> int:
        """Delete the records with these ids, and return how many there were; unknown ids are skipped.

        Raises:
            TypeError: If ids is one string, or an id is not a string.
            ValueError: If an id is not valid Unicode.
        """
        ...

    def delete_where(self, filter: FilterLike) -> int:  # noqa: A002 - the word users know
        """Delete the records that match, and return how many there were.

        Raises:
            TypeError: As `parse_filter`.
            ValueError: As `parse_filter`, or if the filter says nothing and so matches everything.
        """
        ...

    def get(self, ids: Sequence[str], *, with_vectors: bool = False) -> list[Record]:
        """Return copies of the records with these ids, in the given order; unknown ids are skipped.

        Raises:
            TypeError: If ids is one string, or an id is not a string.
            ValueError: If an id is not valid Unicode.
        """
        ...

    def page(self, after: str | None = None) -> tuple[list[Record], str | None]:
        """Return the next records without vectors, and the place after them; None in its stead at the end.

        From page to page every record comes once. One that is added or deleted meanwhile may be among them or not.

        Args:
            after: The place that the page before had; None for the first page.

        Raises:
            ValueError: If no page had this place.
        """
        ...

    def records(self) -> Iterator[Record]:
        """Yield every record once, without vectors, in the store's own order.

        A record that is added or deleted meanwhile may be among them or not.
        """
        after, is_more = None, True
        while is_more:
            records, after = self.page(after)
            yield from records
            is_more = after is not None

    def count(self, filter: FilterLike = None) -> int:  # noqa: A002
        """Return the number of records, or of those that match.

        Raises:
            TypeError: As `parse_filter`.
            ValueError: As `parse_filter`.
        """
        ...

    def candidates(
        self, query: M3Vectors, limits: Mapping[Mode, int], filter: FilterLike = None  # noqa: A002
    ) -> dict[Mode, Hits]:  # fmt: skip
        """Return the best records by each of these modes alone.

        Args:
            query: The vectors of one text.
            limits: How many at most for "dense" and for "lexical". A text that shares no token is no lexical hit.
            filter: Only records that match.

        Raises:
            ValueError: For another mode, or a query that does not fit the records.
        """
        ...

    def scores(
        self, query: M3Vectors, ids: Sequence[str], modes: Sequence[Mode], known: Mapping[Mode, Hits] | None = None
    ) -> tuple[list[str], dict[Mode, FloatArray]]:
        """Return those of the ids that are in the store, in order, and their exact raw scores, (n,) float32 a mode.

        Args:
            query: The vectors of one text.
            ids: Of records; unknown ids are skipped.
            modes: What is compared.
            known: What `candidates` has just returned for this query: a store may use it instead of searching again.

        Raises:
            ValueError: If the query does not fit the records.
        """
        ...

    def scores_and_records(
        self,
        query: M3Vectors,
        ids: Sequence[str],
        modes: Sequence[Mode],
        known: Mapping[Mode, Hits] | None = None,
        likely: Iterable[str] = (),  # noqa: ARG002
    ) -> tuple[list[str], dict[Mode, FloatArray], list[Record]]:
        """Return what `scores` does, and records that came along.

        Args:
            query: As for `scores`; so are the next three.
            ids: Of records.
            modes: What is compared.
            known: What `candidates` has returned.
            likely: Those of the ids whose records will probably be asked for next. A store far away returns them here,
                without vectors, which saves a call of `get`; others may return none.

        Raises:
            ValueError: If the query does not fit the records.
        """
        return *self.scores(query, ids, modes, known), []

    def optimize(self) -> None:
        """Do now what makes searching faster; may take long and blocks."""
        ...

    def flush(self) -> None:
        """Return when everything is durable, where the engine is."""
        ...

    def close(self) -> None:
        """Release what the store holds; using it then raises RuntimeError."""
        ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def latest_rows(
    ids: Sequence[str],
    texts: Sequence[str],
    metadatas: Sequence[Mapping[str, Any]],
    vectors: M3Vectors,
    is_pooled: NDArray[np.bool_] | None,
) -> list[int]:
    """Return the rows of a call's columns that count: of equal ids the last, where the first stands.

    Raises:
        TypeError: If an id or a text is not a string.
        ValueError: If the columns differ in length, or an id or a text is not valid Unicode.
    """
    columns: dict[str, Sized] = {"texts": texts, "metadatas": metadatas, "vectors": vectors}
    if is_pooled is not None:
        columns["is_pooled"] = is_pooled
    for name, column in columns.items():
        if len(column) != len(ids):
            raise ValueError(f"every id needs one row of each column, got {len(ids)} ids and {len(column)} {name}")
    for id_, text in zip(ids, texts, strict=True):
        if not isinstance(id_, str) or not isinstance(text, str):
            raise TypeError(f"a record's id and text must be strings, got {id_!r} and {type(text).__name__}")
        check_value(id_, "a record's id")
        check_value(text, f"the text of record {id_!r}")
    return list({id_: row for row, id_ in enumerate(ids)}.values())


def check_ids(ids: Sequence[str]) -> None:
    """Refuse ids that an engine would take for something else.

    Raises:
        TypeError: If ids is one string, or one of them is not a string.
        ValueError: If one of them is not valid Unicode.
    """
    if isinstance(ids, str):
        raise TypeError(f"ids must be a sequence of strings, got the string {ids!r}: pass [{ids!r}]")
    for i, id_ in enumerate(ids):
        if not isinstance(id_, str):
            raise TypeError(f"ids must be strings, got {id_!r} at position {i}")
        check_value(id_, f"the id at position {i}")


def deletion_filter(filter: FilterLike) -> Filter:  # noqa: A002
    """Return the parsed filter of what is to be deleted.

    Raises:
        TypeError: As `parse_filter`.
        ValueError: As `parse_filter`, or if the filter says nothing.
    """
    parsed = parse_filter(filter)
    if parsed is None:
        raise ValueError(f"an empty filter matches everything, got {filter!r}: delete by ids if that is what you want")
    return parsed


def check_vectors(
    what: str, vectors: M3Vectors, stored: Mapping[Mode, int], modes: Sequence[Mode] | None = None
) -> dict[Mode, int]:
    """Return the length of the vectors in every mode (0 for lexical), if they are finite and fit the stored ones.

    Engines accept what is not finite or of another size.

    Args:
        what: Whose vectors they are, for error messages.
        vectors: Of any number of texts.
        stored: What this function returned for the records in the store; empty before the first.
        modes: The modes to check, which must be stored; all, which must be just those in the store, if None.

    Raises:
        ValueError: If the modes or sizes are others, a mode was not computed, or a value is not finite.
    """
    if modes is None and stored and tuple(stored) != vectors.modes:
        raise ValueError(f"{what} has {', '.join(vectors.modes)} vectors, the store {', '.join(stored)}")
    lengths: dict[Mode, int] = {}
    for mode in vectors.modes if modes is None else modes:
        if stored and mode not in stored:
            raise ValueError(f"the records have no {mode} vectors, only {', '.join(stored)}")
        if mode == "lexical":
            values, lengths[mode] = vectors.lexical.values, 0
        else:
            values = vectors.dense if mode == "dense" else vectors.multi_vector.flat
            lengths[mode] = values.shape[1]
        if lengths[mode] != (expected := stored.get(mode, lengths[mode])):
            raise ValueError(f"{what} has {mode} vectors of length {lengths[mode]}, the store of length {expected}")
        if not np.isfinite([values.min(initial=0), values.max(initial=0)]).all():  # makes no array of their size
            raise ValueError(f"{mode} vectors hold values that are not finite")
    return lengths


def check_query(query: M3Vectors, stored: Mapping[Mode, int], modes: Sequence[Mode]) -> None:
    """Raise ValueError if a query is not one text, or lacks one of these modes in the stored size, or is not finite."""
    if len(query) != 1:
        raise ValueError(f"query must hold one text, got {len(query)}")
    check_vectors("the query", query, stored, modes)


def check_model(bound: str | None, fingerprint: str) -> None:
    """Raise ValueError if a store is bound to another model than this."""
    if bound not in {None, fingerprint}:
        raise ValueError(
            f"this store holds vectors of the model {bound}, not of {fingerprint}: vectors of two models cannot be "
            "compared, so use the model it was filled with, or another store"
        )
