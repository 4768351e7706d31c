"""The probability that the best hit of a search answers: a logistic regression on the scores of all three modes.

`m3_integrations.evaluation.calibrate` fits a calibration on questions whose answers are known.
`m3 eval DATA --calibrate FILE` writes it as JSON. `SearchOptions(calibration=FILE, min_probability=0.9)` uses it: a
search returns nothing if its best hit is less likely to answer. A calibration belongs to one model and to the weights
that it was fitted with, and is valid for questions like those that it was fitted on.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from m3_integrations.scoring import combine, top_rows
from m3_integrations.vectors import MODES, FloatArray, LexicalWeights, Mode, ModeWeights, resolve_weights

FEATURES: Final = (*MODES, *(f"{mode}_gap" for mode in MODES), "gap", "agreement", "coverage")
"""The names of the features of the best candidate; `answer_features` defines them."""

_FORMAT: Final = 1

_COLUMNS: Final = ("means", "scales", "coefficients")


def answer_features(
    scores: Mapping[Mode, FloatArray], query: LexicalWeights, weights: ModeWeights
) -> tuple[int, NDArray[np.float64]]:
    """Return the row of the best candidate, and its features for a calibration.

    Args:
        scores: (n,) float32 for each of the three modes, n being 1 or more.
        query: The query's lexical weights.
        weights: The weights that rank the candidates.

    Returns:
        The row of the best candidate, the first of equal ones, and its features, (9,) float64, named by `FEATURES`:

        - its score in every mode (3);
        - in every mode, its score minus the best score of the others, below 0 if another is better there (3);
        - the same difference for the weighted mean;
        - the number of modes in which it is the best, 0 to 3;
        - its lexical score divided by the query's score with itself: the share of the query's words that it has.

        If there is only one candidate, a difference is its score.
    """
    final = combine(scores, weights)
    best = int(top_rows(final, 1)[0])
    own = [float(scores[mode][best]) for mode in MODES]
    gaps = [_gap(scores[mode], best) for mode in MODES]
    words = float(np.square(query.values, dtype=np.float64).sum())
    coverage = own[MODES.index("lexical")] / words if words else 0.0
    agreement = float(sum(gap >= 0 for gap in gaps))
    return best, np.array([*own, *gaps, _gap(final, best), agreement, coverage])


def _gap(scores: FloatArray, row: int) -> float:
    others = np.delete(scores, row)
    return float(scores[row]) - (float(others.max()) if len(others) else 0.0)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A fitted model that turns the scores of a search into the probability that its best hit answers.

    It was fitted on questions half of which had no answer in the store. If fewer of your questions have no answer, more
    best hits answer than the probability says.

    Attributes:
        model: The name of the checkpoint.
        fingerprint: The fingerprint of the checkpoint; the scores of another one mean something else.
        weights: The weights that ranked the candidates; any `WeightsLike`.
        means: The mean of every feature over the questions that it was fitted on.
        scales: Their standard deviations, more than 0.
        coefficients: The coefficient of every feature after its mean is subtracted and it is divided by its scale.
        intercept: The log odds if every feature has its mean.
        n_questions: The number of questions that it was fitted on.

    Raises:
        ValueError: If there is not one finite number for every feature.
    """

    model: str
    fingerprint: str
    weights: ModeWeights
    means: tuple[float, ...]
    scales: tuple[float, ...]
    coefficients: tuple[float, ...]
    intercept: float
    n_questions: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", resolve_weights(self.weights))
        for name in _COLUMNS:
            values = tuple(float(value) for value in getattr(self, name))
            if len(values) != len(FEATURES) or not all(map(math.isfinite, values)):
                raise ValueError(f"{name} must be {len(FEATURES)} finite numbers, got {getattr(self, name)!r}")
            object.__setattr__(self, name, values)
        if min(self.scales) <= 0 or not math.isfinite(self.intercept):
            raise ValueError(f"scales must be above 0 and the intercept finite, got {self.scales}, {self.intercept}")

    def probabilities(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the probabilities that the best hits of n searches answer: (n,) float64 in [0, 1].

        Args:
            features: (n, 9) float64, the features that `answer_features` returned for each search.
        """
        standardised = (features - np.array(self.means)) / np.array(self.scales)
        odds = standardised @ np.array(self.coefficients) + self.intercept
        return np.asarray(1 / (1 + np.exp(-np.clip(odds, -500, 500))))

    def of_best(
        self, ids: Sequence[str], scores: Mapping[Mode, FloatArray], query: LexicalWeights
    ) -> tuple[str, float]:
        """Return the best candidate's id and the probability that it answers, 0 to 1.

        Args:
            ids: The ids of the candidates, at least one.
            scores: (n,) float32 for every mode.
            query: The query's lexical weights.
        """
        best, features = answer_features(scores, query, self.weights)
        return ids[best], float(self.probabilities(features[None])[0])

    def is_for(self, modes: Sequence[Mode], weights: ModeWeights) -> bool:
        """Return whether it was fitted for searches with these modes and weights (equal within 1e-6)."""
        if set(modes) != set(MODES):
            return False
        own, other = self.weights.normalized(), weights.normalized()
        return all(math.isclose(own[mode], other[mode], abs_tol=1e-6) for mode in MODES)

    def check_model(self, fingerprint: str, model: str) -> None:
        """Raise ValueError if it was fitted for another checkpoint than this."""
        if fingerprint != self.fingerprint:
            raise ValueError(
                f"the calibration was fitted for {self.model} ({self.fingerprint}), and this model is {model} "
                f"({fingerprint}): fit another with m3 eval DATA --model MODEL --calibrate FILE"
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON. An existing file is replaced in one step: no reader sees half a file."""
        file = Path(path)
        new = file.with_name(f"{file.name}.new")
        document = {"format": _FORMAT, "features": FEATURES, **asdict(self)}
        new.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        new.replace(file)


CalibrationLike = Calibration | str | os.PathLike[str] | Mapping[str, Any]
"""A calibration, the path of its file, or a mapping with its attributes, as dumps have it."""


def read_calibration(given: CalibrationLike) -> Calibration:
    """Return a calibration as it is, or read it from its file or from a mapping.

    Raises:
        TypeError: If given is not a `CalibrationLike`.
        FileNotFoundError: If the file does not exist.
        ValueError: If the file or the mapping is not a calibration, or has another version.
    """
    if isinstance(given, Calibration):
        return given
    if not isinstance(given, str | os.PathLike | Mapping):
        raise TypeError(f"calibration must be a Calibration or the file of one, got {given!r}")
    where = "the calibration" if isinstance(given, Mapping) else os.fspath(given)
    try:
        document = dict(given if isinstance(given, Mapping) else json.loads(Path(given).read_bytes()))
        known = document.pop("format", _FORMAT), tuple(document.pop("features", FEATURES))
        if known != (_FORMAT, FEATURES):
            raise ValueError(f"it has format {known[0]} with features {', '.join(map(str, known[1]))}")  # noqa: TRY301
        return Calibration(**document)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no calibration at {where}: m3 eval DATA --calibrate {where} writes one") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where} is not a calibration that this version can read: {error}") from error
