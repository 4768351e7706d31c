"""The names of the three modes, and how much each counts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Final, Literal, SupportsFloat

Mode = Literal["dense", "lexical", "multi_vector"]
"""One of the model's three views of a text."""

Kind = Literal["document", "query"]
"""The role of a text. A query gets the query instruction and the query's length limit."""

MODES: Final[tuple[Mode, ...]] = ("dense", "lexical", "multi_vector")


def check_modes(modes: Iterable[str]) -> tuple[Mode, ...]:
    """Return the modes in the order of `MODES`, each once.

    Raises:
        TypeError: If modes is one string.
        ValueError: For an empty selection or an unknown mode.
    """
    if isinstance(modes, str):
        raise TypeError(f"modes must be a sequence such as ({modes!r},), got the string {modes!r}")
    wanted = set(modes)
    unknown = wanted.difference(MODES)
    if unknown or not wanted:
        raise ValueError(f"modes must be one or more of {', '.join(MODES)}, got {sorted(map(str, wanted))}")
    return tuple(mode for mode in MODES if mode in wanted)


def check_heads(model: str, there: Sequence[Mode], wanted: Iterable[Mode]) -> None:
    """Raise ValueError if a checkpoint has no head for one of the wanted modes.

    Args:
        model: The checkpoint's name, for the message.
        there: The modes that it has.
        wanted: The modes that the caller asks for.
    """
    if absent := [mode for mode in MODES if mode in set(wanted).difference(there)]:
        raise ValueError(absent_heads(model, there, absent))


def absent_heads(model: str, there: Iterable[Mode], absent: Iterable[Mode]) -> str:
    """Return the error message for modes that a checkpoint has no heads for; every class uses this one."""
    return (
        f"the checkpoint {model} has no heads for {', '.join(absent)}, only {', '.join(there)} can be computed; "
        "BGE-M3's heads are in colbert_linear.pt and sparse_linear.pt, which a download of *.json *.safetensors lacks"
    )


@dataclass(frozen=True, slots=True)
class ModeWeights:
    """How much each mode counts in a combined score.

    Only the proportions matter: absent modes are dropped, then the weights are divided by their sum.

    Raises:
        ValueError: If a weight is negative or not finite, or all are 0.
    """

    dense: float = 1.0
    lexical: float = 1.0
    multi_vector: float = 1.0

    def __post_init__(self) -> None:
        values = (self.dense, self.lexical, self.multi_vector)
        if not all(math.isfinite(value) and value >= 0 for value in values) or not any(values):
            raise ValueError(f"mode weights must be finite, 0 or more and not all 0, got {self}")

    @staticmethod
    def preset(name: str) -> ModeWeights:
        """Return one of the published weightings in `PRESETS`.

        Raises:
            ValueError: For an unknown name.
        """
        if name not in PRESETS:
            raise ValueError(f"unknown weights {name!r}: choose one of {', '.join(PRESETS)} or pass ModeWeights(...)")
        return PRESETS[name]

    def normalized(self, modes: Iterable[Mode] = MODES) -> dict[Mode, float]:
        """Return the weight of each of these modes, summing to 1.

        Raises:
            ValueError: If every one of these modes has weight 0.
        """
        present: dict[Mode, float] = {mode: getattr(self, mode) for mode in check_modes(modes)}
        largest = max(present.values())
        if largest == 0:
            raise ValueError(f"{self} puts all its weight on absent modes: only {', '.join(present)} can be scored")
        # Divided by the largest first: the sum of huge weights would be infinite.
        shares = {mode: value / largest for mode, value in present.items()}
        total = sum(shares.values())
        return {mode: share / total for mode, share in shares.items()}


PRESETS: Final[Mapping[str, ModeWeights]] = {
    "equal": ModeWeights(1.0, 1.0, 1.0),  # FlagEmbedding's compute_score and the users' guides
    "miracl": ModeWeights(1.0, 0.3, 1.0),  # paper v4, section 4.1; also used for MKQA
    "mldr": ModeWeights(0.15, 0.5, 0.35),  # paper v4, section 4.3: long documents
    "mldr_dense_lexical": ModeWeights(0.2, 0.8, 0.0),  # paper v4, section 4.3
    "readme": ModeWeights(0.4, 0.2, 0.4),  # the example in BGE-M3's model card
}
"""Published weightings by name, each with its source beside it."""

WeightsLike = ModeWeights | str | Sequence[float] | Mapping[str, float]
"""Accepted weights: `ModeWeights`, the name of a preset such as "miracl", three numbers (dense, lexical, multi_vector),
or a mapping with a number for each of the three."""


def resolve_weights(weights: WeightsLike | None) -> ModeWeights:
    """Return the weights that a user named or passed; equal ones for None.

    Raises:
        TypeError: For anything else than `WeightsLike`.
        ValueError: For an unknown preset, or weights that `ModeWeights` refuses.
    """
    if weights is None:
        return PRESETS["equal"]
    if isinstance(weights, ModeWeights):
        return weights
    if isinstance(weights, str):
        return ModeWeights.preset(weights)
    if isinstance(weights, Mapping):
        numbers = [weights[mode] for mode in MODES] if set(weights) == set(MODES) else []
    else:
        numbers = list(weights) if isinstance(weights, Iterable) and not isinstance(weights, Set | bytes) else []
    if len(numbers) != len(MODES) or not all(_is_number(number) for number in numbers):
        raise TypeError(
            f"weights must be ModeWeights, the name of a preset ({', '.join(PRESETS)}), or three numbers, as "
            f"[dense, lexical, multi_vector] or as a mapping with these keys, got {weights!r}"
        )
    try:
        return ModeWeights(*(float(number) for number in numbers))
    except OverflowError as error:
        raise ValueError("weights must be finite numbers, got an integer that no float can hold") from error


def _is_number(value: object) -> bool:
    return isinstance(value, SupportsFloat) and not isinstance(value, bool)
