"""`calibrate`: the probability that the best hit answers, fitted on half of the questions and tested on the other."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
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
    """Searches with similar probabilities.

    Attributes:
        said: The mean of their probabilities.
        right: The share of them whose best hit answers.
        n: The number of these searches.
    """

    said: float
    right: float
    n: int


@dataclass(frozen=True, slots=True)
class Refusals:
    """The effect of a `min_probability` on questions that the calibration was not fitted on.

    Every share is 1 if it is a share of no searches.

    Attributes:
        min_probability: The threshold: a search is refused if the probability of its best hit is lower.
        answers_right: The share of the answered searches whose best hit answers.
        refusals_right: The share of the refused searches whose best hit does not answer.
        absent_refused: The share refused, of the searches whose answer is not in the corpus.
        found_kept: The share answered, of the searches whose best hit answers.
    """

    min_probability: float
    answers_right: float
    refusals_right: float
    absent_refused: float
    found_kept: float


@dataclass(frozen=True, eq=False)
class Trials:
    """Searches for which it is known whether the best hit answers.

    Attributes:
        features: (n, 9) float64, the features of `answer_features`.
        answers: (n,) bool, whether the best hit answers.
        absent: (n,) bool, whether no document of the corpus answers.
    """

    features: NDArray[np.float64]
    answers: NDArray[np.bool_]
    absent: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class FittedCalibration:
    """A calibration, with its quality on questions that it was not fitted on.

    Attributes:
        calibration: The calibration for `SearchOptions`.
        fitted_on: The ids of the questions of the first half, on which it was fitted.
        reported_on: The ids of the questions of the other half.
        fitted: The searches of the first half: each question over the whole corpus, and over the corpus without the
            documents that answer it.
        reported: The searches of the other half.
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
        """The probabilities for the searches of the other half: (n,) float64 in [0, 1]."""
        return self.calibration.probabilities(self.reported.features)

    @property
    def brier(self) -> float:
        """The mean squared difference of probability and outcome on the other half: 0 is best (Brier, 1950)."""
        return float(np.mean((self.probabilities - self.reported.answers) ** 2))

    @property
    def brier_of_the_rate(self) -> float:
        """The Brier score on the other half of one constant probability: the share of answers in the first half."""
        return float(np.mean((self.fitted.answers.mean() - self.reported.answers) ** 2))

    def reliability(self) -> list[Bin]:
        """Return the probabilities and the outcomes on the other half, in ten equal bins without the empty ones."""
        said, right = self.probabilities, self.reported.answers
        places = np.minimum((said * _BINS).astype(int), _BINS - 1)
        chosen = [places == place for place in np.unique(places)]
        return [Bin(float(said[i].mean()), float(right[i].mean()), int(i.sum())) for i in chosen]

    def threshold(self, *, answers_right: float | None = None, refusals_right: float | None = None) -> float:
        """Return the `min_probability` that reaches a wanted share, by the probabilities of the first half.

        Args:
            answers_right: The wanted share of answered searches whose best hit answers, above 0 and up to 1. The result
                is the lowest threshold that reaches it, which refuses the fewest searches.
            refusals_right: Instead of answers_right, the wanted share of refused searches whose best hit does not
                answer. The result is the highest threshold that reaches it, which refuses the most searches.

        Raises:
            ValueError: If not exactly one of the two is given, or it is out of range.
        """
        given = [share for share in (answers_right, refusals_right) if share is not None]
        if len(given) != 1 or not 0 < given[0] <= 1:
            raise ValueError(f"pass one of answers_right and refusals_right, above 0 and up to 1, got {given}")
        said = np.sort(self.calibration.probabilities(self.fitted.features))
        n = np.arange(1, len(said) + 1)
        if answers_right is not None:
            kept = (np.cumsum(said[::-1]) / n)[::-1]  # the mean of this and all higher ones
            places = np.flatnonzero(kept >= answers_right)
            return float(said[places[0]]) if len(places) else 1.0
        places = np.flatnonzero(1 - np.cumsum(said) / n >= given[0])
        # Just above this probability: a search whose probability equals the threshold is answered.
        return float(np.nextafter(said[places[-1]], 1)) if len(places) else 0.0

    def refusals(self, min_probability: float) -> Refusals:
        """Return the effect of a threshold on the other half."""
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
    right or wrong, and over the corpus without the documents that answer it, where every hit is wrong.

    Args:
        encoder: The checkpoint.
        dataset: A dataset of `read_dataset` with qrels: a document with a gain above 0 answers.
        weights: The weights that rank the candidates; equal if None. A search with other weights cannot use the fit.
        seed: The seed of the random halves.
        protocol: The choice of candidates.
        work: The folder for vectors, as in `evaluate`.
        show_progress: Whether to draw progress bars.

    Raises:
        BlockingIOError: If another process encodes the same into the work folder.
        ValueError: If the checkpoint lacks a head, relevance is decided by answers, there are fewer than two different
            questions, or in the first half all best hits answer or none does.
    """
    check_tuning(dataset, encoder.modes, encoder.model)
    chosen, protocol = resolve_weights(weights), protocol or Protocol()
    first, second = split_queries(dataset.queries, seed=seed)
    with encoded_corpus(encoder, dataset, [_COLUMN], protocol, work, show_progress=show_progress) as encoded:
        evidence = gather_evidence(encoder, dataset, encoded, [_COLUMN], protocol, show_progress=show_progress)
    queries = encoder.encode(list(dataset.queries.values()), kind="query", modes=["lexical"])
    rows = {id_: row for row, id_ in enumerate(dataset.corpus.ids)}  # once: a corpus has many documents
    known = {
        id_: (evidence.pooled[i], queries.lexical[i], _answering_rows(dataset.qrels[id_], rows))
        for i, id_ in enumerate(dataset.queries)
    }
    fitted, reported = (_try_all([known[id_] for id_ in half], chosen) for half in (first, second))
    if len(set(fitted.answers.tolist())) < 2:
        raise ValueError(
            f"none of the {len(first)} questions that were drawn finds its answer first: use other questions"
        )
    calibration = fit_calibration(encoder.model, encoder.fingerprint, chosen, fitted, n_questions=len(first))
    return FittedCalibration(
        calibration=calibration, fitted_on=first, reported_on=second, fitted=fitted, reported=reported
    )


def _answering_rows(gains: Mapping[str, int], rows: Mapping[str, int]) -> NDArray[np.int64]:
    return np.array([rows[id_] for id_, gain in gains.items() if gain > 0 and id_ in rows], dtype=np.int64)


def _try_all(known: Sequence[tuple[Candidates, LexicalWeights, NDArray[np.int64]]], weights: ModeWeights) -> Trials:
    features, answers, absent = [], [], []
    for candidates, query, answering in known:
        rest = np.setdiff1d(candidates.rows, answering)
        for rows, is_absent in ((candidates.rows, not len(answering)), (rest, True)):
            if not len(rows) or (is_absent and not len(answering) and rows is rest):
                continue  # no candidates, or no document was taken out, so the second search is the first again
            part = candidates.take(rows)
            best, found = answer_features(part.scores, query, weights)
            features.append(found)
            answers.append(bool(np.isin(part.rows[best], answering)))
            absent.append(is_absent)
    return Trials(np.array(features), np.array(answers), np.array(absent))


def fit_calibration(
    model: str, fingerprint: str, weights: ModeWeights, trials: Trials, *, n_questions: int
) -> Calibration:
    """Fit a logistic regression with a ridge of 1 on standardised features; the intercept has no penalty.

    It equals scikit-learn's `LogisticRegression(C=1)` after the mean of each feature is subtracted and it is divided by
    its standard deviation. The loss is convex, so scipy's L-BFGS finds its only minimum.

    Args:
        model: The name of the checkpoint.
        fingerprint: The fingerprint of the checkpoint.
        weights: The weights that ranked the candidates.
        trials: Searches, of which some best hits answer and some do not.
        n_questions: The number of questions of these searches.
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
