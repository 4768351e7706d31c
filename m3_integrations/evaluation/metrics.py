"""Metrics of rankings for every query, computed by ir-measures, which uses trec_eval."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from functools import cache
from subprocess import SubprocessError
from typing import Any, Final

import ir_measures
import numpy as np
from numpy.typing import NDArray

DEFAULT_METRICS: Final = ("nDCG@10", "Recall@100", "MRR@10", "MAP")

MOST_GAIN: Final = 1_000_000
"""The largest gain of a document: trec_eval's memory grows with it, and above 2**31 its values are wrong."""

_MOST_GDEVAL_GAIN: Final = 4
"""The largest gain of ERR and of nDCG with powers of 2: gdeval, which computes them, ends at a larger one."""

_QUERIES_AT_A_TIME: Final = 500
"""The most queries in one call of ir-measures: bounds the memory of its dictionaries."""


def measure_queries(
    ranked: Mapping[str, Sequence[str]], qrels: Mapping[str, Mapping[str, int]], metrics: Sequence[str]
) -> dict[str, NDArray[np.float64]]:
    """Measure every query that has judgements.

    Args:
        ranked: For each query the ids of its documents, best first. This order is kept; trec_eval alone would sort
            documents with equal scores by descending id.
        qrels: For each query the gain of its judged documents, as `check_gains` takes it. Only these queries are
            measured. As in trec_eval, a query without results or without a relevant document scores 0. A gain below -1
            counts as -1, which is "not judged" there.
        metrics: The metrics as ir-measures spells them, such as "nDCG@10", "Recall@100", "MRR@10", "MAP" or
            "Success@20".

    Returns:
        For each metric (queries,) float64 in [0, 1], in the order of qrels.

    Raises:
        ValueError: For a metric that ir-measures does not know, or for the reasons of `check_gains` and
            `check_judgements`.
    """
    qrels = check_gains(qrels)
    check_judgements(metrics, qrels)
    measures = {name: parse_metric(name) for name in metrics}
    values = {name: np.zeros(len(qrels)) for name in metrics}
    ids = list(qrels)
    for start in range(0, len(ids), _QUERIES_AT_A_TIME):
        chunk = range(start, min(start + _QUERIES_AT_A_TIME, len(ids)))
        # Numbers in place of ids: gdeval refuses a query's id such as "q1", and reads a document's up to a blank.
        numbered = {str(i): _numbered(ranked[ids[i]], qrels[ids[i]]) for i in chunk if len(ranked.get(ids[i], ()))}
        judged, run = ({number: pair[side] for number, pair in numbered.items()} for side in (0, 1))
        for result in ir_measures.iter_calc(set(measures.values()), judged, run):
            for name in (name for name, measure in measures.items() if measure == result.measure):
                values[name][int(result.query_id)] = result.value
    return values


def _numbered(ranked: Sequence[str], gains: Mapping[str, int]) -> tuple[dict[str, int], dict[str, float]]:
    """Return a query's judgements and its run, as ir-measures takes them, with numbers in place of documents' ids."""
    numbers = {document: str(i) for i, document in enumerate(ranked)}
    judged = {numbers.get(id_, f"{len(ranked) + i}"): max(gain, -1) for i, (id_, gain) in enumerate(gains.items())}
    return judged, {number: -float(number) for number in numbers.values()}


def check_judgements(metrics: Sequence[str], qrels: Mapping[str, Mapping[str, int]]) -> None:
    """Raise ValueError if a metric cannot be computed with one of the gains."""
    of_gdeval = [name for name in metrics if ir_measures.gdeval.supports(parse_metric(name))]
    for query, gains in qrels.items() if of_gdeval else ():
        for document, gain in gains.items():
            if gain > _MOST_GDEVAL_GAIN:
                raise ValueError(
                    f"{of_gdeval[0]} is for gains of at most {_MOST_GDEVAL_GAIN}, and query {query!r} has the gain "
                    f"{gain} for {document!r}: use another metric, such as nDCG@10"
                )


def check_gains(qrels: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Return judgements with gains that are Python's whole numbers, such as 1 for numpy's or a data frame's 1.0.

    Raises:
        ValueError: If a gain is not a whole number, or is above `MOST_GAIN`.
    """
    return {
        query: {document: _whole(gain, query, document) for document, gain in gains.items()}
        for query, gains in qrels.items()
    }


def _whole(gain: Any, query: str, document: str) -> int:
    try:
        whole = None if isinstance(gain, str) else int(gain)
    except (TypeError, ValueError, OverflowError):
        whole = None
    if whole is None or whole != gain:
        raise ValueError(f"query {query!r} has the gain {gain!r} for {document!r}: a gain must be a whole number")
    if whole > MOST_GAIN:
        raise ValueError(f"query {query!r} has the gain {whole} for {document!r}: a gain may be at most {MOST_GAIN:,}")
    return whole


def check_metrics(metrics: Sequence[str] | None, *, default: Sequence[str] = DEFAULT_METRICS) -> Sequence[str]:
    """Return the metrics, or the default if None.

    Raises:
        TypeError: If metrics is one string.
        ValueError: If metrics is empty, or one is unknown.
    """
    if metrics is None:
        return default
    if isinstance(metrics, str):
        raise TypeError(f"metrics must be a sequence such as ({metrics!r},), got the string {metrics!r}")
    metrics = tuple(metrics)
    if not metrics:
        raise ValueError("metrics must be one or more, got none")
    for metric in metrics:
        parse_metric(metric)
    return metrics


@cache
def parse_metric(name: str) -> ir_measures.measures.Measure:
    """Return ir-measures' object for a metric.

    Raises:
        ValueError: If ir-measures does not know the name, or cannot compute the metric: some need a cutoff or another
            package.
    """
    known = ", ".join((*DEFAULT_METRICS, "Success@20", "Success@100"))
    try:
        measure = _read(name)
    except (KeyError, TypeError, ValueError, SyntaxError, RecursionError) as error:
        raise ValueError(f"unknown metric {name!r}: use a name of ir-measures, such as {known}") from error
    try:  # a missing cutoff or package shows only when the metric is computed
        _check_numbers(measure)
        list(ir_measures.iter_calc([measure], {"1": {"2": 1}}, {"1": {"2": 1.0}}))
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
        SubprocessError,
        OSError,
    ) as error:
        reason = " ".join(str(error).rstrip(".").split())  # some have several lines
        if isinstance(error, ZeroDivisionError):
            reason = "it has no value for a query that finds only relevant documents"
        raise ValueError(f"ir-measures cannot compute {name!r}: {reason}. Use one such as {known}") from error
    return measure


def _check_numbers(measure: ir_measures.measures.Measure) -> None:
    """Check the numbers with which trec_eval would end the process."""
    for key in ("cutoff", "rel"):
        number = measure.params.get(key)
        if isinstance(number, int) and not 1 <= number <= MOST_GAIN:
            raise ValueError(f"{key} must be from 1 to {MOST_GAIN:,}, got {number}")
    for key, gain in (measure.params.get("gains") or {}).items():
        if not isinstance(key, int):
            raise TypeError(f"the keys of gains must be whole numbers, got {key!r}")
        if not isinstance(gain, int) or not 0 <= gain <= MOST_GAIN:
            raise ValueError(f"gains must be whole numbers from 0 to {MOST_GAIN:,}, got {gain}")


def _read(name: str) -> ir_measures.measures.Measure:
    """Return what `ir_measures.parse_measure` returns for a name such as "P(rel=2)@5".

    That function, in version 0.4.3, uses classes of `ast` that are deprecated and that Python 3.14 lacks.
    """
    node: Any = ast.parse(name, mode="eval").body
    cutoff, settings = None, dict[Any, Any]()
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
        node, cutoff = node.left, ast.literal_eval(node.right)
    if isinstance(node, ast.Call) and not node.args:
        node, settings = node.func, {each.arg: ast.literal_eval(each.value) for each in node.keywords}
    measure: ir_measures.measures.Measure = ir_measures.measures.registry[getattr(node, "id", "")](**settings)
    return measure if cutoff is None else measure @ cutoff


def cutoff_of(name: str) -> int | None:
    """Return the number of the best documents that a metric uses, or None for all of them."""
    return parse_metric(name).params.get("cutoff")
