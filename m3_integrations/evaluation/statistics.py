"""How sure a mean over queries is, and whether two modes differ on the same queries."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

RESAMPLES: Final = 10_000
_BATCH: Final = 500
"""Resamples held at a time, so that many queries fit in memory."""

_CONFIDENCE: Final = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over queries with its interval.

    Attributes:
        mean: The mean.
        low: Lower end of the 95 % interval; the mean itself if there is one query only.
        high: Upper end.
    """

    mean: float
    low: float
    high: float


POWER: Final = 0.8
"""How often a difference that is there shall be shown, where questions are counted."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """How one ranking differs from another on the same queries.

    Attributes:
        difference: The mean difference, with its interval.
        p_value: Of a paired randomization test, two-sided: how often the mean difference would be as large or larger if
            each query's two values were exchanged at random. At least 2 / 10,001, unless
            there are fewer exchanges, which are all tried then.
    """

    difference: Estimate
    p_value: float


def estimate_mean(values: NDArray[np.float64], *, seed: int = 0) -> Estimate:
    """Return the mean with the percentile interval of a bootstrap over queries.

    Args:
        values: (queries,) one number a query.
        seed: Of the resampling.

    Raises:
        ValueError: If there is no query.
    """
    if not len(values):
        raise ValueError("a mean needs at least one query, got none")
    mean = float(values.mean())
    if np.ptp(values) == 0:  # one query, or all alike: every resample gives the same
        return Estimate(mean, mean, mean)
    interval = stats.bootstrap(
        (values,),
        np.mean,
        confidence_level=_CONFIDENCE,
        n_resamples=RESAMPLES,
        batch=_BATCH,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(mean, float(interval.low), float(interval.high))


def compare_paired(better: NDArray[np.float64], worse: NDArray[np.float64], *, seed: int = 0) -> Comparison:
    """Compare two rankings query by query (Smucker, Allan and Carterette, 2007: Fisher's randomization test).

    Args:
        better: (queries,) one number a query; the difference is this less the other.
        worse: (queries,) the same queries in the same order.
        seed: Of the resampling.

    Raises:
        ValueError: If their numbers differ, or there is no query.
    """
    if len(better) != len(worse):
        raise ValueError(f"a paired test needs the same queries, got {len(better)} and {len(worse)}")
    differences = better - worse
    estimate = estimate_mean(differences, seed=seed)
    if len(differences) == 1 or not differences.any():  # an exchange changes nothing, or the sign of all there is
        return Comparison(estimate, 1.0)
    test = stats.permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        n_resamples=RESAMPLES,
        batch=_BATCH,
        rng=np.random.default_rng(seed),
    )
    return Comparison(estimate, float(test.pvalue))


def questions_needed(differences: NDArray[np.float64], level: float) -> int | None:
    """Return how many queries would show a mean difference that is really as large as this one.

    That is ((z₁ + z₂) · s / d)² for a paired two-sided test in the normal approximation (Webber, Moffat and Zobel,
    2008, "Statistical power in retrieval experimentation"): d is the mean, s the standard deviation over queries, z₁
    the quantile of 1 - level / 2 and z₂ that of `POWER`.

    Args:
        differences: (queries,) two or more of them.
        level: A p-value below this one counts as shown, in (0, 1).

    Returns:
        The number of queries, 2 or more; None if there is no difference, which no number of queries would show.
    """
    mean = abs(float(differences.mean()))
    if mean < 1e-12:  # the rounding of a sum
        return None
    return max(2, math.ceil((_quantiles(level) * float(differences.std(ddof=1)) / mean) ** 2))


def difference_shown(differences: NDArray[np.float64], level: float) -> float:
    """Return the mean difference, 0 or more, that as many queries as these show with a probability of `POWER`.

    Arguments and source are those of `questions_needed`, solved for d.
    """
    return _quantiles(level) * float(differences.std(ddof=1)) / math.sqrt(len(differences))


def _quantiles(level: float) -> float:
    return float(stats.norm.ppf(1 - level / 2) + stats.norm.ppf(POWER))
