"""The columns that can be evaluated, the vectors that each needs, and their weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal, get_args

from m3_integrations.vectors import MODES, Mode, ModeWeights, WeightsLike, absent_heads, resolve_weights

Column = Literal["dense", "lexical", "multi_vector", "dense+lexical", "all", "search:all", "bm25", "bm25:words"]
"""One way to rank a corpus.

These follow the paper's protocol (v4, sections 4.1 to 4.3). `dense` and `lexical` rank the whole corpus.
`dense+lexical` ranks the union of the 1,000 best of both; a document that is missing from one of them scores 0 there.
`multi_vector` and `all` rerank the 200 best by dense. `bm25` is BM25 over the model's tokens, `bm25:words` over words
in lower case.

`search:all` ranks as `Searcher` does with mode="all": the union of the best of both legs, all of them scored exactly in
all three modes.
"""

COLUMNS: Final[tuple[Column, ...]] = get_args(Column)

NEEDED: Final[Mapping[Column, tuple[Mode, ...]]] = {
    "dense": ("dense",),
    "lexical": ("lexical",),
    "multi_vector": ("dense", "multi_vector"),
    "dense+lexical": ("dense", "lexical"),
    "all": MODES,
    "search:all": MODES,
    "bm25": (),
    "bm25:words": (),
}
"""The vectors that each column needs."""

DEFAULT_WEIGHTS: Final[Mapping[Column, str]] = {"dense+lexical": "miracl", "all": "miracl", "search:all": "equal"}
"""The default weights of every column that has weights: the paper's, and for `search:all` those of `SearchOptions`."""

DEPTH: Final = 1000
"""The most documents of a query in a first stage and in a ranking."""


def check_columns(columns: Iterable[str], modes: Sequence[Mode], model: str = "") -> tuple[Column, ...]:
    """Return the columns in their usual order, each once.

    Args:
        columns: The wanted columns.
        modes: The modes that the checkpoint has heads for.
        model: The name of the checkpoint, for messages.

    Raises:
        TypeError: If columns is one string.
        ValueError: If columns is empty, one is unknown, or the checkpoint lacks a head that one needs.
    """
    if isinstance(columns, str):
        raise TypeError(f"modes must be a sequence such as ({columns!r},), got the string {columns!r}")
    wanted = set(columns)
    if not wanted or wanted.difference(COLUMNS):
        raise ValueError(f"modes must be one or more of {', '.join(COLUMNS)}, got {sorted(wanted)}")
    for column in (column for column in COLUMNS if column in wanted):
        if absent := [mode for mode in NEEDED[column] if mode not in modes]:
            raise ValueError(f"{column} needs {', '.join(absent)} vectors: {absent_heads(model, modes, absent)}")
    return tuple(column for column in COLUMNS if column in wanted)


def possible_columns(modes: Sequence[Mode]) -> tuple[Column, ...]:
    """Return the columns that a checkpoint with these heads can fill."""
    return tuple(column for column in COLUMNS if set(NEEDED[column]) <= set(modes))


def check_weights(weights: Mapping[str, WeightsLike] | None) -> dict[Column, ModeWeights]:
    """Return the weights of every column that has weights.

    Args:
        weights: Any `WeightsLike` for a column; the others have `DEFAULT_WEIGHTS`.

    Raises:
        TypeError: If the weights of a column are not a `WeightsLike`.
        ValueError: For a column that cannot have weights, an unknown preset, or weights that are 0 for every mode of
            the column.
    """
    given = weights or {}
    if unknown := sorted(set(given).difference(DEFAULT_WEIGHTS)):
        raise ValueError(f"{', '.join(unknown)} cannot be weighted, only {', '.join(DEFAULT_WEIGHTS)}")
    chosen: dict[Column, ModeWeights] = {}
    for column, preset in DEFAULT_WEIGHTS.items():
        chosen[column] = resolve_weights(given.get(column, preset))
        chosen[column].normalized(NEEDED[column])
    return chosen
