"""The options of a search: each with its type, default, meaning and check."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any, Final, Literal, SupportsFloat, TypedDict, Unpack, get_args

import numpy as np

from m3_integrations.fusion import DEFAULT_RRF_K
from m3_integrations.search.calibration import Calibration, CalibrationLike, read_calibration
from m3_integrations.store import Filter, FilterLike, Store, parse_filter
from m3_integrations.store.memory import MemoryStore
from m3_integrations.vectors import PRESETS, Encoder, Mode, ModeWeights, WeightsLike, check_heads, resolve_weights

SearchMode = Literal["dense", "lexical", "dense+lexical", "multi_vector", "all"]
"""The modes that rank. The dense and the lexical leg find candidates; if "dense" or "lexical" ranks alone, only its own
leg does."""

Fusion = Literal["weighted", "rrf"]
"""The way to make one score of several modes' scores: their weighted mean, or reciprocal rank fusion."""

Bm25 = Literal["off", "extra", "replace"]
"""The use of BM25 to find candidates: not at all, in addition to the learned lexical leg, or instead of it."""

MODES_OF: Final[Mapping[SearchMode, tuple[Mode, ...]]] = {
    "dense": ("dense",),
    "lexical": ("lexical",),
    "dense+lexical": ("dense", "lexical"),
    "multi_vector": ("multi_vector",),
    "all": ("dense", "lexical", "multi_vector"),
}
"""The modes that rank, for each mode of search."""


class RankingKeywords(TypedDict, total=False):
    """The options that have the same name in both frameworks."""

    mode: SearchMode | None
    weights: WeightsLike | None
    score_threshold: float | None
    pool_size: int | None
    fusion: Fusion | None
    rrf_k: int | None
    bm25: Bm25 | None
    calibration: CalibrationLike | None
    min_probability: float | None


class SearchKeywords(RankingKeywords, total=False):
    """The options as keywords of a call; `SearchOptions` explains each one."""

    k: int | None
    filter: FilterLike


@dataclass(frozen=True, init=False, repr=False)
class SearchOptions:
    """The options of a search, checked and parsed; an option that is not given, or None, has its default.

    Attributes:
        k: The most results.
        mode: The modes that rank the candidates. "all" leaves out modes that the checkpoint has no head for and modes
            that the store does not keep: over a store without multi-vectors it is "dense+lexical".
        weights: The weight of each mode. The name of a preset such as "miracl", three numbers and a mapping are
            accepted too; see `WeightsLike`.
        filter: Only records whose metadata match are found. A mapping such as `{"year": {"$gte": 2024}}` is accepted;
            `parse_filter` describes the language.
        score_threshold: Only results whose final score is at least this are returned. With "weighted" a score is -1 or
            more, and has no upper bound if lexical scores are part of it. With "rrf" it is from 0 to the sum of the
            rankings' weights divided by rrf_k + 1.
        pool_size: The number of candidates that each leg finds; never fewer than k.
        fusion: "weighted" ranks by the weighted mean of the exact scores, "rrf" by reciprocal rank fusion.
        rrf_k: The constant of "rrf": the larger it is, the less the first ranks count more than later ones.
        bm25: Whether BM25 over the model's tokens finds candidates too; only for a store in memory. With "rrf" its
            ranking has the weight of the lexical mode. "replace" drops the learned lexical ranking.
        calibration: A `Calibration`, or the file that `m3 eval --calibrate` wrote. It adds "probability" to the scores
            of the best result: the probability that this result answers. It is used only in searches by all three modes
            with the weights that it was fitted with, "weighted" fusion and no BM25.
        min_probability: Nothing is returned if the best result answers with less than this probability, 0 to 1. It
            needs a calibration for the search; 0 refuses nothing and needs no calibration.

    Raises:
        FileNotFoundError: If the file of a calibration does not exist.
        TypeError: For an unknown option; if k, pool_size or rrf_k is not an integer, score_threshold or min_probability
            not a number, the filter not a mapping, or weights are not a `WeightsLike`.
        ValueError: If an option is out of range or unknown.
    """

    k: int = 4
    mode: SearchMode = "all"
    weights: ModeWeights = PRESETS["equal"]
    filter: Filter | None = None
    score_threshold: float | None = None
    pool_size: int = 100
    fusion: Fusion = "weighted"
    rrf_k: int = DEFAULT_RRF_K
    bm25: Bm25 = "off"
    calibration: Calibration | None = None
    min_probability: float | None = None

    def __init__(self, **keywords: Unpack[SearchKeywords]) -> None:
        check_names(keywords, OPTION_NAMES)
        own = vars(self)  # the class has the defaults
        own.update((name, value) for name, value in keywords.items() if value is not None)
        own.update(weights=resolve_weights(self.weights), filter=parse_filter(self.filter))
        for name, least in (("k", 1), ("pool_size", 1), ("rrf_k", 0)):
            own[name] = value = as_integer(getattr(self, name), name)
            if not least <= value <= _MOST:
                bound = f"at least {least}" if value < least else f"at most {_MOST}"
                raise ValueError(f"{name} must be {bound}, got {value}")
        for name, known in (("mode", SearchMode), ("fusion", Fusion), ("bm25", Bm25)):
            if getattr(self, name) not in get_args(known):
                raise ValueError(f"{name} must be one of {', '.join(get_args(known))}, got {getattr(self, name)!r}")
        if self.score_threshold is not None:
            own["score_threshold"] = as_number(self.score_threshold, "score_threshold")
        if self.calibration is not None:
            own["calibration"] = read_calibration(self.calibration)
        if self.min_probability is not None:
            own["min_probability"] = as_number(self.min_probability, "min_probability", 0, 1)
        self.calibration_for(MODES_OF[self.mode])

    def __repr__(self) -> str:
        """Return the class's name with the options that differ from their defaults."""
        own = [(name, getattr(self, name)) for name in OPTION_NAMES]
        shown = ", ".join(f"{name}={value!r}" for name, value in own if value != getattr(type(self), name))
        return f"{type(self).__name__}({shown})"

    def calibration_for(self, modes: Sequence[Mode]) -> Calibration | None:
        """Return the calibration, or None if it is absent or not for a search that ranks by these modes.

        Raises:
            ValueError: If min_probability is above 0 and the result would be None.
        """
        known, is_plain = self.calibration, self.fusion == "weighted" and self.bm25 == "off"
        if known is not None and is_plain and known.is_for(modes, self.weights):
            return known
        if self.min_probability:
            raise ValueError(
                f"min_probability={self.min_probability} needs a calibration for this search: "
                + (
                    "fit one on your own questions with m3 eval DATA --calibrate FILE and give calibration=FILE"
                    if known is None
                    else f"this one is for all three modes with {known.weights!r}, fusion='weighted' and bm25='off', "
                    f"not for {'+'.join(modes)} with {self.weights!r}, fusion={self.fusion!r} and bm25={self.bm25!r}; "
                    "min_probability=0 searches without it"
                )
            )
        return None

    def changed(self, **keywords: Unpack[SearchKeywords]) -> SearchOptions:
        """Return these options with some changed. None keeps an option, and the filter {} means no filter.

        Raises:
            TypeError: For the reasons of the constructor.
            ValueError: For the reasons of the constructor.
        """
        if not keywords:
            return self
        kept = {name: value for name, value in vars(self).items() if keywords.get(name) is None}
        return SearchOptions(**{**keywords, **kept})


def checked_weights(weights: WeightsLike | None) -> WeightsLike | None:
    """Return a name or None unchanged, and anything else as `ModeWeights`, which cannot be changed later.

    Raises:
        ValueError: If these are not weights. A TypeError of `resolve_weights` becomes a ValueError too, because
            pydantic reports only ValueErrors.
    """
    try:
        chosen = resolve_weights(weights)
    except TypeError as error:
        raise ValueError(str(error)) from error
    return weights if weights is None or isinstance(weights, str) else chosen


def checked_calibration(given: CalibrationLike | None) -> Calibration | None:
    """Return a calibration as `read_calibration` reads it, or None.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no calibration, also if it has a wrong type: pydantic reports a ValueError alone.
    """
    try:
        return None if given is None else read_calibration(given)
    except TypeError as error:
        raise ValueError(str(error)) from error


def no_flag(value: Any) -> Any:
    """Return a value unchanged unless it is a boolean, which pydantic would accept as an integer.

    Raises:
        ValueError: If it is a boolean.
    """
    if isinstance(value, bool):
        raise ValueError(f"must be an integer, got {value!r}")  # noqa: TRY004 - pydantic reports only ValueErrors
    return value


_MOST: Final = 2**63 - 1
"""The largest k, pool_size and rrf_k: engines and servers have integers of 64 bits."""

OPTION_NAMES: Final = tuple(field.name for field in fields(SearchOptions))

_SAME_MEANING: Final = (
    ("k", "similarity_top_k", "top_k", "top_n", "limit", "n_results"),
    ("filter", "filters", "where", "metadata_filters"),
    ("score_threshold", "similarity_cutoff", "similarity_threshold", "threshold", "min_score"),
    ("mode", "search_type", "query_mode", "vector_store_query_mode"),
    ("pool_size", "fetch_k", "sparse_top_k"),
)
"""Groups of names with the same meaning: ours and those of other retrievers."""


def check_names(given: Iterable[str], known: Sequence[str]) -> None:
    """Raise TypeError for an option that does not exist.

    Args:
        given: The names of the options in a call.
        known: The names of all options.

    Raises:
        TypeError: For an unknown name; the message has the known names, and the one that is probably meant.
    """
    if unknown := sorted(set(given).difference(known)):
        name = unknown[0]
        same = [each for group in _SAME_MEANING if name in group for each in group if each in known]
        close = same or get_close_matches(name, known, n=1)
        meant = f"did you mean {close[0]}? It has" if close else "it has"
        raise TypeError(f"a search has no option {name}: {meant} {', '.join(known)}")


def as_integer(value: object, name: str) -> int:
    """Return an integer, such as one of numpy, as an int.

    Raises:
        TypeError: For anything else, a boolean included.
    """
    if not isinstance(value, bool | np.bool_):
        try:
            return operator.index(value)  # type: ignore[arg-type]
        except TypeError:
            pass
    raise TypeError(f"{name} must be an integer, got {value!r}")


def as_number(value: object, name: str, least: float = -math.inf, most: float = math.inf) -> float:
    """Return a number, such as one of numpy, as a float.

    Raises:
        TypeError: For anything else, a boolean or a string included.
        ValueError: If it is not finite, or not from least to most.
    """
    if isinstance(value, bool | np.bool_ | str | bytes) or not isinstance(value, SupportsFloat):
        raise TypeError(f"{name} must be a number, got {value!r}")
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError) as error:  # an array, an integer of 400 digits
        raise TypeError(f"{name} must be a number, got {value!r}") from error
    if not (math.isfinite(number) and least <= number <= most):
        bounds = f"from {least} to {most}" if math.isfinite(most) else "finite"
        raise ValueError(f"{name} must be {bounds}, got {value!r}")
    return number


def check_options(options: SearchOptions, store: Store, encoder: Encoder | None = None) -> None:
    """Raise ValueError for options that this encoder and this store cannot serve.

    Args:
        options: The options of a search.
        store: The store that will be searched.
        encoder: The encoder of the queries; None if it is not open yet.

    Raises:
        ValueError: For BM25 over a store that is not in memory, a mode that the checkpoint has no head for, or weights
            that are 0 for every mode that the search has.
    """
    if options.bm25 != "off" and not isinstance(store, MemoryStore):
        raise ValueError(
            f"bm25={options.bm25!r} needs a store in memory (open_store()), got {store!r}: leave bm25 out, the "
            "lexical mode searches by words too"
        )
    if encoder is None:
        return
    asked = MODES_OF[options.mode]
    if options.mode != "all":
        check_heads(encoder.model, encoder.modes, asked)
    if options.fusion == "weighted":
        options.weights.normalized([mode for mode in asked if mode in encoder.modes])
