"""Evaluation of modes, weights and checkpoints on your own data; see README.md beside this file."""

try:
    from m3_integrations.evaluation.calibrating import FittedCalibration, calibrate
    from m3_integrations.evaluation.corpus import Corpus
    from m3_integrations.evaluation.data import Dataset, JudgedQueries, find_folders, read_dataset, read_queries
    from m3_integrations.evaluation.diff import ChangedQuestion, Decision, SearchDiff, diff_searches
    from m3_integrations.evaluation.evaluate import EvaluationResult, evaluate
    from m3_integrations.evaluation.modes import COLUMNS, Column
    from m3_integrations.evaluation.runs import Protocol
    from m3_integrations.evaluation.statistics import Comparison, Estimate
    from m3_integrations.evaluation.tuning import TunedWeights, tune_weights
    from m3_integrations.evaluation.verdict import Verdict, make_verdicts
except ModuleNotFoundError as error:
    if error.name not in {"ir_measures", "scipy", "regex", "rank_bm25"}:
        raise
    raise ModuleNotFoundError(
        f"evaluation needs {error.name}: pip install 'PATH_TO_THE_CLONE[evaluation]'", name=error.name
    ) from error

__all__ = [
    "COLUMNS",
    "ChangedQuestion",
    "Column",
    "Comparison",
    "Corpus",
    "Dataset",
    "Decision",
    "Estimate",
    "EvaluationResult",
    "FittedCalibration",
    "JudgedQueries",
    "Protocol",
    "SearchDiff",
    "TunedWeights",
    "Verdict",
    "calibrate",
    "diff_searches",
    "evaluate",
    "find_folders",
    "make_verdicts",
    "read_dataset",
    "read_queries",
    "tune_weights",
]
