"""The tables' conclusions in sentences: the best mode, weights and checkpoint, and whether the difference is shown.

A difference of two modes is shown if its p-value, multiplied by the number of pairs that could have been compared, is
below 0.05 (Bonferroni). Eight modes make 28 pairs, and each pair is another chance of a difference by luck.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from m3_integrations.evaluation.calibrating import FittedCalibration, Refusals
from m3_integrations.evaluation.evaluate import EvaluationResult
from m3_integrations.evaluation.modes import Column
from m3_integrations.evaluation.statistics import (
    Comparison,
    compare_paired,
    difference_shown,
    questions_needed,
)
from m3_integrations.evaluation.tables import compared_results, model_names
from m3_integrations.evaluation.tuning import TUNED, TunedWeights

_LEVEL: Final = 0.05
"""The level of significance: a difference is shown if its p-value is lower."""

_DIGITS: Final = 9
"""The decimals of a mean that are compared: the order of adding up changes later ones."""

_ANY: Final = 1_000_000
"""The largest number of questions that a sentence recommends."""

_RIGHT: Final = 0.95
"""The wanted share of right answers, or of right refusals, for the two thresholds of a calibration."""

_ONE_QUESTION: Final = "One question shows nothing: ask a hundred or more."

_OF_THE_PRODUCT: Final[tuple[Column, ...]] = ("search:all", "all", "dense+lexical", "dense")
"""The columns by which two checkpoints are compared: the first of these that was measured counts."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Sentences about one thing.

    Attributes:
        about: The subject of the sentences: a model on a dataset, or two models.
        sentences: The sentences, in the order of reading.
    """

    about: str
    sentences: Sequence[str]


def make_verdicts(results: Sequence[EvaluationResult], tuned: Sequence[TunedWeights] = ()) -> Iterator[Verdict]:
    """Yield a verdict on every model and dataset, then on every later model compared with the first.

    Args:
        results: One result for every model and dataset, with the same columns and metrics; the oldest model first.
        tuned: Weights found on each of the results' datasets, in their order, or none.
    """
    names = model_names(results)
    for i, result in enumerate(results):
        of_weights = _weights_sentences(tuned[i]) if tuned else _weights_hint(result)
        sentences = [*_mode_sentences(result), *of_weights]
        yield Verdict(f"{names[result.model]} on {result.dataset.name}", sentences)
    for old, new in compared_results(results):
        about = f"{names[new.model]} less {names[old.model]} on {old.dataset.name}"
        yield Verdict(about, [*_model_sentences(old, new, names)])


def _mode_sentences(result: EvaluationResult) -> Iterator[str]:
    """Yield which mode is best, which others it is shown to beat, and how many questions would show the rest."""
    metric, values = result.metrics[0], result.values
    means = {column: round(float(values[column][metric].mean()), _DIGITS) for column in result.columns}
    best, *others = sorted(means, key=lambda column: -means[column])  # stable: of equal ones the first
    if not means[best]:
        yield f"No mode is better than another here: {metric} is 0 in each."
        if not any(each.any() for of_column in values.values() for each in of_column.values()):
            yield "Nothing relevant was found by any measure: do the judgements belong to this corpus?"
        return
    tied = [column for column in others if means[column] == means[best]]
    yield from _first_sentences(best, tied, others, f"{metric} {means[best]:.3f}", n=len(values[best][metric]))
    if len(tied) == len(others):
        return
    others = [column for column in others if column not in tied]
    pairs = len(means) * (len(means) - 1) // 2
    p_values = {column: result.compare(best, column, metric).p_value for column in others}
    open_ = [column for column in others if p_values[column] * pairs >= _LEVEL]
    shown = [column for column in others if column not in open_]
    it = best if tied else "it"
    if not open_:
        yield f"That {it} beats {_listed(shown)} is shown."
    elif not shown:
        yield f"That {it} beats {_listed(open_)} is within chance: take whichever is cheapest."
    else:
        verb = "are" if len(open_) > 1 else "is"
        yield f"{_listed(open_)} {verb} within chance of {it}; that {it} beats {_listed(shown)} is shown."
    nearest = (open_ or others)[0]
    differences = values[best][metric] - values[nearest][metric]
    yield _enough(differences, _LEVEL / pairs, f"between {best} and {nearest}", is_shown=not open_)


def _first_sentences(
    best: Column, tied: Sequence[Column], others: Sequence[Column], value: str, *, n: int
) -> Iterator[str]:
    """Yield which mode is best, or that several are alike.

    Args:
        best: A mode with the highest mean.
        tied: The other modes with this mean.
        others: All modes but best.
        value: The metric and its highest mean.
        n: The number of questions.
    """
    if not tied:
        yield f"{best} ranks best here: {value}."
    elif len(tied) < len(others):
        yield f"{_listed([best, *tied])} rank best here, and alike: {value}."
    else:
        yield f"{_listed([best, *tied])} rank alike here: {value}. Take whichever is cheapest."
        if n < 2:
            yield _ONE_QUESTION


def _enough(differences: NDArray[np.float64], level: float, between: str, *, is_shown: bool) -> str:
    """Return whether the questions are enough to show a difference, and if not, how many would be enough."""
    n = len(differences)
    if n < 2:
        return _ONE_QUESTION
    needed, least = questions_needed(differences, level), difference_shown(differences, level)
    mean = abs(float(differences.mean()))
    if is_shown:
        return f"The {n:,} questions are enough: they show a difference of {least:.3f} {between}, and it is {mean:.3f}."
    if needed is None or needed > _ANY:
        return f"More questions would hardly show a difference {between}: on these {n:,} it is {mean:.3f}."
    if needed <= n:
        return f"The {n:,} questions are barely too few to show the difference {between}, which is {mean:.3f}."
    return (
        f"The {n:,} questions are too few: they show a difference of {least:.3f} {between}, and it is {mean:.3f}, "
        f"which about {_rounded(needed):,} would show."
    )


def _weights_sentences(found: TunedWeights) -> Iterator[str]:
    """Yield whether to use the tuned weights, by the half of the questions that they were not found on."""
    weights = found.weights.normalized(("dense", "lexical", "multi_vector"))
    shown = " / ".join(f"{value:.2f}" for value in weights.values())
    comparison, n = found.compare("equal"), len(found.reported_on)
    gain = comparison.difference.mean
    text = _difference(comparison)
    if not (differences := found.values[TUNED] - found.values["equal"]).any():
        yield f"Keep the equal weights: the tuned ones ({shown}) rank the {n:,} questions of the other half alike."
    elif gain <= 0:
        yield f"Keep the equal weights: the tuned ones ({shown}) do no better on the other half, {text}."
    elif comparison.p_value < _LEVEL:
        yield f"Use the tuned weights ({shown}): the gain on the half they were not found on is shown, {text}."
    else:
        yield f"Keep the equal weights: the tuned ones' ({shown}) gain on the other half is within chance, {text}."
        needed = questions_needed(differences, _LEVEL) if n > 1 else None
        if needed is not None and n < needed <= _ANY:
            yield f"About {_rounded(2 * needed):,} questions would show it: half to find weights, half to judge them."


def _weights_hint(result: EvaluationResult) -> Iterator[str]:
    if "search:all" in result.columns:
        yield "Whether other weights are worth it was not measured: --tune does."


def _model_sentences(old: EvaluationResult, new: EvaluationResult, names: Mapping[str, str]) -> Iterator[str]:
    """Yield whether a checkpoint is better than an older one."""
    column = next((column for column in _OF_THE_PRODUCT if column in old.columns), old.columns[0])
    metric = old.metrics[0]
    differences = new.values[column][metric] - old.values[column][metric]
    comparison = compare_paired(new.values[column][metric], old.values[column][metric])
    is_shown = comparison.p_value < _LEVEL
    better, worse = (new, old) if comparison.difference.mean > 0 else (old, new)
    if not differences.any():
        yield f"Both rank alike by {column}."
        return
    if not round(comparison.difference.mean, _DIGITS):
        yield f"Neither is better than the other by {column}: {metric} {_difference(comparison)}."
        return
    said = "shown" if is_shown else "within chance"
    yield (
        f"That {names[better.model]} is better than {names[worse.model]} by {column} is {said}: "
        f"{metric} {_difference(comparison)}."
    )
    yield _enough(differences, _LEVEL, "between the two", is_shown=is_shown)


def judge_calibration(fitted: FittedCalibration) -> Verdict:
    """Return the quality of a calibration, and the effect of two thresholds, on the half it was not fitted on."""
    n, rate = len(fitted.reported_on), fitted.brier_of_the_rate
    said = "better" if fitted.brier < rate else "no better"
    asked = f"the {n:,} questions that it was not fitted on, with and without what answers them"
    by_answers = fitted.refusals(fitted.threshold(answers_right=_RIGHT))
    by_refusals = fitted.refusals(fitted.threshold(refusals_right=_RIGHT))
    sentences = [
        f"Brier score {fitted.brier:.3f} on {asked}: {said} than {rate:.3f}, which always saying the rate has.",
        _threshold_sentence("answers", by_answers.answers_right, by_answers),
        _threshold_sentence("refusals", by_refusals.refusals_right, by_refusals),
    ]
    return Verdict(f"{fitted.calibration.model}: whether the best hit answers", sentences)


def _threshold_sentence(of: str, right: float, found: Refusals) -> str:
    return (
        f"For {_RIGHT:.0%} right {of} min_probability={found.min_probability:.3f}: {right:.1%} of the {of} are right, "
        f"{found.absent_refused:.1%} of the questions without an answer are refused, and {found.found_kept:.1%} of the "
        "right best hits are kept."
    )


def _difference(comparison: Comparison) -> str:
    found = comparison.difference
    return f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}], p = {comparison.p_value:.4f}"


def _rounded(n: int) -> int:
    """Return a number of questions rounded up to two digits, because it is an estimate."""
    step = int(10 ** max(len(str(n)) - 2, 0))
    return -(-n // step) * step


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
