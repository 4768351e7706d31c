"""`calibrate`: the probability that the best hit answers, fitted on half of the questions and proven on the other."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from m3_integrations.evaluation.data import Dataset
from m3_integrations.evaluation.encoding import EvaluatedEncoder
from m3_integrations.evaluation.evaluate import encoded_corpus
from m3_integrations.evaluation.modes import Column
from m3_integrations.evaluation.ranking import Candidates
from m3_integrations.evaluation.runs import Protocol, gather_evidence
from m3_integrations.evaluation.tuning import check_tuning, split_queries
from m3_integrations.search import Calibration, answer_features
from m3_integrations.vectors import LexicalWeights, ModeWeights, WeightsLike, resolve_weights

_COLUMN: Final[Column] = "search:all"

_BINS: Final = 10


@dataclass(frozen=True, slots=True)
class Bin:
    """Searches whose probabilities are near to each other.

    Attributes:
        said: The mean of their probabilities.
        right: The share of them whose best hit answers.
        n: How many they are.
    """

    said: float
    right: float
    n: int


@dataclass(frozen=True, slots=True)
class Refusals:
    """What a `min_probability` comes to on questions that nothing was fitted on.

    Attributes:
        min_probability: Searches whose best hit is less likely to answer are refused.
        answers_right: Of the searches that are answered, the share whose best hit answers; 1 if none is answered.
        refusals_right: Of those that are refused, the share whose best hit does not answer; 1 if none is refused.
        absent_refused: Of the questions whose answer is not in the corpus, the share that is refused.
        found_kept: Of the searches whose best hit answers, the share that is answered.
    """

    min_probability: float
    answers_right: float
    refusals_right: float
    absent_refused: float
    found_kept: float


@dataclass(frozen=True, eq=False)
class Trials:
    """Searches of which is known whether their best hit answers.

    Attributes:
        features: (n, 9) float64, of `answer_features`.
        answers: (n,) whether the best hit answers.
        absent: (n,) whether nothing in the corpus could answer, because it was taken out.
    """

    features: NDArray[np.float64]
    answers: NDArray[np.bool_]
    absent: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class FittedCalibration:
    """A calibration, and what it is worth on questions that it was not fitted on.

    Attributes:
        calibration: What a search uses.
        fitted_on: The ids of the questions of one half.
        reported_on: Those of the other.
        fitted: The searches of the first half: each question over the whole corpus, and without what answers it.
        reported: Those of the other half.
    """

    calibration: Calibration
    fitted_on: Sequence[str]
    reported_on: Sequence[str]
    fitted: Trials
    reported: Trials

    def __repr__(self) -> str:
        n_questions = f"{len(self.fitted_on)} questions, reported on {len(self.reported_on)}"
        return f"FittedCalibration({self.calibration.model!r}, fitted on {n_questions})"

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """Return what is said of the searches of the other half: (n,) float64 in [0, 1]."""
        return self.calibration.probabilities(self.reported.features)

    @property
    def brier(self) -> float:
        """Return the mean squared distance of probabilities and outcomes on the other half: 0 is best (Brier, 1950)."""
        return float(np.mean((self.probabilities - self.reported.answers) ** 2))

    @property
    def brier_of_the_rate(self) -> float:
        """Return the Brier score of who always says how many of the first half answer, and knows no score."""
        return float(np.mean((self.fitted.answers.mean() - self.reported.answers) ** 2))

    def reliability(self) -> list[Bin]:
        """Return what was said and what came true on the other half, in ten equal bins; empty ones are left out."""
        said, right = self.probabilities, self.reported.answers
        places = np.minimum((said * _BINS).astype(int), _BINS - 1)
        chosen = [places == place for place in np.unique(places)]
        return [Bin(float(said[i].mean()), float(right[i].mean()), int(i.sum())) for i in chosen]

    def threshold(self, *, answers_right: float | None = None, refusals_right: float | None = None) -> float:
        """Return the `min_probability` at which as many are right as is asked, by the probabilities of the first half.

        Args:
            answers_right: The share of answered searches whose best hit shall answer: the lowest threshold that keeps
                it, which refuses fewest. Above 0, up to 1.
            refusals_right: Instead: the share of refused searches whose best hit does not answer; the highest
                threshold that keeps it, which refuses most.

        Raises:
            ValueError: Unless exactly one of the two is given, or it is out of range.
        """
        given = [share for share in (answers_right, refusals_right) if share is not None]
        if len(given) != 1 or not 0 < given[0] <= 1:
            raise ValueError(f"give one of answers_right and refusals_right, above 0 and up to 1, got {given}")
        said = np.sort(self.calibration.probabilities(self.fitted.features))
        n = np.arange(1, len(said) + 1)
        if answers_right is not None:
            kept = (np.cumsum(said[::-1]) / n)[::-1]  # the mean of this and all higher ones
            places = np.flatnonzero(kept >= answers_right)
            return float(said[places[0]]) if len(places) else 1.0
        places = np.flatnonzero(1 - np.cumsum(said) / n >= given[0])
        # Just above: what equals a threshold is answered.
        return float(np.nextafter(said[places[-1]], 1)) if len(places) else 0.0

    def refusals(self, min_probability: float) -> Refusals:
        """Return what a threshold comes to on the other half."""
        trials, is_answered = self.reported, self.probabilities >= min_probability
        return Refusals(
            min_probability,
            _share(trials.answers[is_answered]),
            _share(~trials.answers[~is_answered]),
            _share(~is_answered[trials.absent]),
            _share(is_answered[trials.answers]),
        )


def _share(flags: NDArray[np.bool_]) -> float:
    return float(flags.mean()) if len(flags) else 1.0


def calibrate(
    encoder: EvaluatedEncoder,
    dataset: Dataset,
    *,
    weights: WeightsLike | None = None,
    seed: int = 0,
    protocol: Protocol | None = None,
    work: str | os.PathLike[str] | None = None,
    show_progress: bool = False,
) -> FittedCalibration:
    """Fit the probability that the best hit answers on a random half of the questions, and report it on the other half.

    Every question is searched twice, as `Searcher` does with mode="all": over the whole corpus, where its best hit is
    right or wrong, and without the documents that answer it, where every hit is wrong.

    Args:
        encoder: The checkpoint.
        dataset: What `read_dataset` returns, with qrels: a document with a gain above 0 answers.
        weights: By which candidates are ranked; equal ones if None. A search with other weights cannot use the fit.
        seed: Of the halves.
        protocol: How candidates are chosen.
        work: Where vectors are kept, as in `evaluate`.
        show_progress: Whether to draw progress bars.

    Raises:
        BlockingIOError: If another process encodes the same into the work folder.
        ValueError: If the checkpoint lacks a head, relevance is decided by answers, there are fewer than two different
            questions, or in one half all best hits answer or none does.
    """
    check_tuning(dataset, encoder.modes, encoder.model)
    chosen, protocol = resolve_weights(weights), protocol or Protocol()
    first, second = split_queries(dataset.queries, seed=seed)
    with encoded_corpus(encoder, dataset, [_COLUMN], protocol, work, show_progress=show_progress) as encoded:
        evidence = gather_evidence(encoder, dataset, encoded, [_COLUMN], protocol, show_progress=show_progress)
    queries = encoder.encode(list(dataset.queries.values()), kind="query", modes=["lexical"])
    known = {
        id_: (evidence.pooled[i], queries.lexical[i], _answering_rows(dataset, id_))
        for i, id_ in enumerate(dataset.queries)
    }
    fitted, reported = (_try_all([known[id_] for id_ in half], chosen) for half in (first, second))
    if len(set(fitted.answers.tolist())) < 2:
        raise ValueError(f"of the {len(first)} questions that were drawn none finds its answer first: ask other ones")
    calibration = fit_calibration(encoder.model, encoder.fingerprint, chosen, fitted, n_questions=len(first))
    return FittedCalibration(
        calibration=calibration, fitted_on=first, reported_on=second, fitted=fitted, reported=reported
    )


def _answering_rows(dataset: Dataset, query: str) -> NDArray[np.int64]:
    answering = {id_ for id_, gain in dataset.qrels[query].items() if gain > 0}
    return np.array([row for row, id_ in enumerate(dataset.corpus.ids) if id_ in answering], dtype=np.int64)


def _try_all(known: Sequence[tuple[Candidates, LexicalWeights, NDArray[np.int64]]], weights: ModeWeights) -> Trials:
    features, answers, absent = [], [], []
    for candidates, query, answering in known:
        rest = np.setdiff1d(candidates.rows, answering)
        for rows, is_absent in ((candidates.rows, not len(answering)), (rest, True)):
            if not len(rows) or (is_absent and not len(answering) and rows is rest):
                continue  # nothing was found, or nothing was taken out
            part = candidates.take(rows)
            best, found = answer_features(part.scores, query, weights)
            features.append(found)
            answers.append(bool(np.isin(part.rows[best], answering)))
            absent.append(is_absent)
    return Trials(np.array(features), np.array(answers), np.array(absent))


def fit_calibration(
    model: str, fingerprint: str, weights: ModeWeights, trials: Trials, *, n_questions: int
) -> Calibration:
    """Fit a logistic regression with a ridge of 1 on standardised features; the intercept is free.

    That is scikit-learn's `LogisticRegression(C=1)` on the features less their mean, divided by their deviation;
    scipy's L-BFGS finds the one minimum there is.

    Args:
        model: What the checkpoint is called.
        fingerprint: Which it is.
        weights: By which candidates were ranked.
        trials: Some whose best hit answers, and some whose does not.
        n_questions: Of how many questions they are.
    """
    means, deviations = trials.features.mean(axis=0), trials.features.std(axis=0)
    scales = np.where(deviations > 0, deviations, 1.0)
    design = np.column_stack([(trials.features - means) / scales, np.ones(len(trials.answers))])
    signs = np.where(trials.answers, 1.0, -1.0)

    def loss(values: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        margins = signs * (design @ values)
        ridge = np.append(values[:-1], 0.0)
        gradient = design.T @ (-signs * expit(-margins)) + ridge
        return float(np.logaddexp(0, -margins).sum() + 0.5 * ridge @ ridge), gradient

    start, options = np.zeros(design.shape[1]), {"gtol": 1e-8, "ftol": 1e-14}
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options=options)
    *coefficients, intercept = found.x.tolist()
    return Calibration(
        model=model,
        fingerprint=fingerprint,
        weights=weights,
        means=tuple(means.tolist()),
        scales=tuple(scales.tolist()),
        coefficients=tuple(coefficients),
        intercept=intercept,
        n_questions=n_questions,
    )
