"""`Store`: the protocol of every store, its records and hits, and the checks before a write or a query.

A store returns raw scores. `Searcher` weights and fuses them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from m3_integrations.store.filters import Filter, FilterLike, parse_filter
from m3_integrations.vectors import FloatArray, M3Vectors, Mode


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """One text with its vectors.

    Attributes:
        id: Any string; a second record with the same id replaces the first.
        text: The encoded text.
        metadata: The values that filters compare; `m3_integrations.store.values` lists what they may hold.
        vectors: The vectors of this one text; None if they were not asked for.
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
    """The methods that every store has; all can be called from many threads at a time."""

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes that the records have vectors of; empty before the first record."""
        ...

    @property
    def kept_modes(self) -> tuple[Mode, ...]:
        """The modes that the store keeps; vectors in other modes need not be encoded for it."""
        ...

    @property
    def fingerprint(self) -> str | None:
        """The model that the store is bound to; None before `bind`."""
        ...

    def bind(self, fingerprint: str) -> None:
        """Bind the store to a model; after the first call only the same model is accepted.

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
        """Add n records, or replace the records with the same ids; of two equal ids in one call the later counts.

        Everything is checked before anything is written.

        Args:
            ids: n strings.
            texts: n strings.
            metadatas: n mappings; they are copied, as `values.check_metadata` does.
            vectors: The vectors of the n texts. A store may keep the arrays: do not change them afterwards.
            is_pooled: (n,) bool, whether another store has already pooled a record; all False if None.

        Raises:
            TypeError: If a column is one string or a table, an id or a text is not a string, or a record's
                metadata are not a mapping.
            ValueError: If the columns differ in length, metadata hold a value that cannot be kept, an id or a text is
                not valid Unicode, a number in the vectors is not finite, or the vectors have other modes or sizes than
                those in the store.
        """
        ...

    def delete(self, ids: Sequence[str]) -> int:
        """Delete the records with these ids, and return how many there were; unknown ids are skipped.

        Raises:
            TypeError: If ids is one string or a table, or an id is not a string.
            ValueError: If an id is not valid Unicode.
        """
        ...

    def delete_where(self, filter: FilterLike) -> int:  # noqa: A002 - the word users know
        """Delete the records that match, and return how many there were.

        Raises:
            TypeError: For the reasons of `parse_filter`.
            ValueError: For the reasons of `parse_filter`, or if the filter is empty and so matches everything.
        """
        ...

    def get(self, ids: Sequence[str], *, with_vectors: bool = False) -> list[Record]:
        """Return copies of the records with these ids, in the given order; unknown ids are skipped.

        Raises:
            TypeError: If ids is one string or a table, or an id is not a string.
            ValueError: If an id is not valid Unicode.
        """
        ...

    def page(self, after: str | None = None) -> tuple[list[Record], str | None]:
        """Return a page of records without vectors, and the place after it; on the last page the place is None.

        Over all pages every record comes once. A record that is added or deleted meanwhile may come or not.

        Args:
            after: The place that the page before returned; None for the first page.

        Raises:
            ValueError: If this cannot be a place that a page returned. In a store in memory every string can.
        """
        ...

    def records(self) -> Iterator[Record]:
        """Yield every record once, without vectors, in the store's own order.

        A record that is added or deleted meanwhile may come or not.
        """
        after, is_more = None, True
        while is_more:
            records, after = self.page(after)
            yield from records
            is_more = after is not None

    def count(self, filter: FilterLike = None) -> int:  # noqa: A002
        """Return the number of records, or of those that match.

        Raises:
            TypeError: For the reasons of `parse_filter`.
            ValueError: For the reasons of `parse_filter`.
        """
        ...

    def candidates(
        self, query: M3Vectors, limits: Mapping[Mode, int], filter: FilterLike = None  # noqa: A002
    ) -> dict[Mode, Hits]:  # fmt: skip
        """Return the best records by dense scores, and the best by lexical scores.

        Args:
            query: The vectors of one text.
            limits: The most hits for "dense" and for "lexical". A text that shares no token with the query is not a
                lexical hit.
            filter: Only records that match.

        Raises:
            ValueError: If limits have another mode, or the query does not fit the records.
        """
        ...

    def scores(
        self, query: M3Vectors, ids: Sequence[str], modes: Sequence[Mode], known: Mapping[Mode, Hits] | None = None
    ) -> tuple[list[str], dict[Mode, FloatArray]]:
        """Return the n ids that are in the store, in the given order, and their exact raw scores, (n,) float32 a mode.

        Args:
            query: The vectors of one text.
            ids: The records to score; unknown ids are skipped.
            modes: The modes to score.
            known: The result of `candidates` for this query; a store may read scores from it instead of computing them.

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
        """Return the ids and scores that `scores` returns, and some of the records, without vectors.

        Args:
            query: As for `scores`.
            ids: As for `scores`.
            modes: As for `scores`.
            known: As for `scores`.
            likely: Those of the ids whose records the caller will probably need next. A store on a server returns them
                here, which saves a call of `get`; other stores may return no records.

        Raises:
            ValueError: If the query does not fit the records.
        """
        return *self.scores(query, ids, modes, known), []

    def optimize(self) -> None:
        """Reorganise the data for faster searches; blocks until it is done, which may take long."""
        ...

    def flush(self) -> None:
        """Return when everything is durable on the engine's machine."""
        ...

    def close(self) -> None:
        """Release the store's memory, files and connections; later calls raise RuntimeError."""
        ...

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return this store: the copy of an object that uses it uses the same records."""
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def deletion_filter(filter: FilterLike) -> Filter:  # noqa: A002
    """Parse the filter of a deletion.

    Raises:
        TypeError: For the reasons of `parse_filter`.
        ValueError: For the reasons of `parse_filter`, or if the filter is empty.
    """
    parsed = parse_filter(filter)
    if parsed is None:
        raise ValueError(f"an empty filter matches everything, got {filter!r}: to delete all records, pass their ids")
    return parsed


def check_vectors(
    what: str, vectors: M3Vectors, stored: Mapping[Mode, int], modes: Sequence[Mode] | None = None
) -> dict[Mode, int]:
    """Check that vectors are finite and fit the stored ones, and return their length by mode (0 for lexical).

    Engines do not check this: they accept vectors that are not finite or have another size.

    Args:
        what: The owner of the vectors, for error messages.
        vectors: The vectors of any number of texts.
        stored: The lengths that this function returned for the stored records; empty before the first record.
        modes: The modes to check; the store must have each of them. None checks all modes of the vectors, which must
            equal the store's.

    Raises:
        ValueError: If modes or lengths differ from the stored ones, a mode was not encoded, or a value is not finite.
    """
    if modes is None and stored and tuple(stored) != vectors.modes:
        raise ValueError(f"{what} has {', '.join(vectors.modes)} vectors, but the store has {', '.join(stored)}")
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
            raise ValueError(f"{what} has {mode} vectors of length {lengths[mode]}, but the store has {expected}")
        if not np.isfinite([values.min(initial=0), values.max(initial=0)]).all():  # allocates no array of their size
            raise ValueError(f"{mode} vectors hold infinite or NaN values")
    return lengths


def check_query(query: M3Vectors, stored: Mapping[Mode, int], modes: Sequence[Mode]) -> None:
    """Raise ValueError if a query is not one text, lacks a mode, has another length than stored or is not finite."""
    if len(query) != 1:
        raise ValueError(f"query must hold one text, got {len(query)}")
    check_vectors("the query", query, stored, modes)


def check_model(bound: str | None, fingerprint: str) -> None:
    """Raise ValueError if a store is bound to another model."""
    if bound not in {None, fingerprint}:
        raise ValueError(
            f"this store holds vectors of the model {bound}, not of {fingerprint}. Vectors of two models cannot be "
            "compared: use the store's model, or another store"
        )
