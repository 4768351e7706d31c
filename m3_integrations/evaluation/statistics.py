"""Confidence intervals of means over queries, and paired tests of two rankings on the same queries."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

RESAMPLES: Final = 10_000
_BATCH: Final = 500
"""The resamples in memory at a time: bounds the memory for many queries."""

_CONFIDENCE: Final = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over queries with its 95 % interval.

    Attributes:
        mean: The mean.
        low: The lower end of the interval; the mean itself if all values are equal or there is only one.
        high: The upper end, likewise.
    """

    mean: float
    low: float
    high: float


POWER: Final = 0.8
"""The wanted probability that a test shows a real difference, when the number of questions needed is computed."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The difference of two rankings on the same queries.

    Attributes:
        difference: The mean difference, with its interval.
        p_value: The p-value of a two-sided paired randomization test: how often the mean difference would be as large
            or larger if each query's two values were exchanged at random. It is at least 2 / 10,001. If there are at
            most 10,000 different exchanges, all are tried, and it is at least 2 divided by their number.
    """

    difference: Estimate
    p_value: float


def estimate_mean(values: NDArray[np.float64], *, seed: int = 0) -> Estimate:
    """Return the mean with the percentile interval of a bootstrap over queries.

    Args:
        values: (queries,) float64, one value for each query.
        seed: The seed of the resampling.

    Raises:
        ValueError: If there is no query.
    """
    if not len(values):
        raise ValueError("a mean needs at least one query, got none")
    mean = float(values.mean())
    if np.ptp(values) == 0:  # all values are equal, so every resample has the same mean
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
        better: (queries,) float64, one value for each query. The difference is better minus worse.
        worse: (queries,) float64, the same queries in the same order.
        seed: The seed of the resampling.

    Raises:
        ValueError: If their numbers differ, or there is no query.
    """
    if len(better) != len(worse):
        raise ValueError(f"a paired test needs the same queries, got {len(better)} and {len(worse)}")
    differences = better - worse
    estimate = estimate_mean(differences, seed=seed)
    if len(differences) == 1 or not differences.any():  # no exchange changes the size of the mean difference
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
    """Return the number of queries that would show this mean difference with a probability of `POWER`.

    It is ((z₁ + z₂) · s / d)² for a paired two-sided test in the normal approximation (Webber, Moffat and Zobel, 2008,
    "Statistical power in retrieval experimentation"). d is the mean, s the standard deviation over queries, z₁ the
    quantile of 1 - level / 2 and z₂ the quantile of `POWER`.

    Args:
        differences: (queries,) float64, at least two.
        level: The level of significance, in (0, 1): a difference is shown if its p-value is lower.

    Returns:
        The number of queries, 2 or more; None if the mean difference is 0, which no number of queries would show.
    """
    mean = abs(float(differences.mean()))
    if mean < 1e-12:  # the rounding of a sum
        return None
    return max(2, math.ceil((_quantiles(level) * float(differences.std(ddof=1)) / mean) ** 2))


def difference_shown(differences: NDArray[np.float64], level: float) -> float:
    """Return the mean difference, 0 or more, that this number of queries shows with a probability of `POWER`.

    It is the formula of `questions_needed` solved for d; the arguments are the same.
    """
    return _quantiles(level) * float(differences.std(ddof=1)) / math.sqrt(len(differences))


def _quantiles(level: float) -> float:
    return float(stats.norm.ppf(1 - level / 2) + stats.norm.ppf(POWER))
