"""Hard negatives for a training file, from the store that a `Searcher` would search.

As in ANCE (Xiong et al., 2021), negatives are passages that the model itself ranks high, and training with them and
mining with the new checkpoint may alternate. ANCE has one ranking; here every mode has its own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tqdm.auto import tqdm

from m3_integrations.search import Searcher, SearchMode, SearchOptions
from m3_integrations.search.options import MODES_OF
from m3_integrations.store import Store
from m3_integrations.training.data import MOST_SCORE, Example, join_answers, read_examples
from m3_integrations.training.mining.choosing import MiningOptions, choose_negatives, margin_limits
from m3_integrations.training.mining.progress import ProgressFile, replace_lines
from m3_integrations.vectors import MODES, Encoder, absent_heads

Teacher = Callable[[Sequence[tuple[str, str]]], Sequence[float]]
"""A function that scores pairs of a query and a passage, higher is better: a `CrossEncoder`, or the method `score` of a
cross-encoder of LangChain."""

_BLOCK: Final = 64
"""The examples that are mined and written together. A resumed run begins at a block: queries share forward passes with
the same other queries as without the interruption, so their scores are the same to the bit."""


@dataclass(frozen=True, slots=True)
class MiningReport:
    """The numbers of a mining run.

    Attributes:
        examples: The number of queries in the file.
        negatives: The number of negatives of all queries together.
        short: The number of queries with fewer negatives than asked for, including those without any.
        without: The number of queries without negatives; `m3 train` accepts them only with `train_group_size = 1`.
        resumed: The number of queries that an earlier run had mined already.
    """

    examples: int
    negatives: int
    short: int
    without: int
    resumed: int


def mine_negatives(
    encoder: Encoder,
    store: Store,
    data: Path,
    out: Path,
    options: MiningOptions | None = None,
    *,
    teacher: Teacher | None = None,
    teacher_name: str = "",
    show_progress: bool = False,
) -> MiningReport:
    """Write a copy of a training file with passages of a store as negatives.

    The rankings are those of a `Searcher`: "multi_vector" and several modes together rank the candidates of the two
    legs. The positives of a query are those of all its examples; none is drawn, and `margin` is about all of them. The
    "neg" of an example is replaced. Its "pos_scores" and "neg_scores" are removed, and written again if there is a
    teacher. Other keys are kept. The file OUT.progress keeps what a killed run had mined, and the same call goes on
    from there. The result is written in one step, in the order of the data; a resumed run writes the same result.

    Args:
        encoder: Encodes the queries; it must have no query instruction.
        store: The passages, encoded by the same model.
        data: A file in FlagEmbedding's JSONL; "neg" may be absent.
        out: The new file.
        options: The options for choosing negatives.
        teacher: Scores every query with its positives and negatives, for "pos_scores" and "neg_scores".
        teacher_name: The name of the teacher; a resumed run must have the same one.
        show_progress: Whether to draw a progress bar.

    Raises:
        FileExistsError: If the new file exists already.
        FileNotFoundError: If the data do not exist.
        BlockingIOError: If another process mines into the same file.
        ValueError: If a line of the data is not an example, the store is empty, has another model's vectors or lacks a
            mode that is asked for, the run in OUT.progress was begun with other arguments, or the teacher does not
            score every pair with a number that is finite in float32; what was mined before is kept then.
    """
    options = options or MiningOptions()
    if out.exists():
        raise FileExistsError(f"{out} exists already: choose another file")
    examples, rows = read_examples([data]), _read_rows(data)
    modes = _modes(encoder, store, options)
    store.bind(encoder.fingerprint)  # raises if it has another model's vectors, before OUT.progress is begun
    searcher = Searcher(encoder, store, SearchOptions(mode=modes[0]))
    miner = _Miner(searcher, modes, options, teacher, join_answers(examples, options.query_instruction))
    begun_with = {
        "data": hashlib.blake2b(data.read_bytes(), digest_size=16).hexdigest(),
        "model": encoder.fingerprint,
        "passages": store.count(),
        "teacher": teacher_name or (None if teacher is None else type(teacher).__name__),
        "options": {**dataclasses.asdict(options), "modes": list(modes)},
    }
    progress_path = out.with_name(f"{out.name}.progress")
    with ProgressFile.open(progress_path, begun_with, block=_BLOCK) as progress:
        done = len(progress.rows)
        with tqdm(total=len(rows), initial=done, desc="mining", unit="query", disable=not show_progress) as bar:
            for start in range(done, len(rows), _BLOCK):
                block = slice(start, start + _BLOCK)
                progress.append(miner.mine(examples[block], rows[block], start))
                bar.update(len(rows[block]))
        replace_lines(out, progress.rows)
        progress_path.unlink()
    counts = [len(row["neg"]) for row in progress.rows]
    return MiningReport(
        examples=len(rows),
        negatives=sum(counts),
        short=sum(count < options.n for count in counts),
        without=counts.count(0),
        resumed=done,
    )


def _read_rows(data: Path) -> list[dict[str, Any]]:
    """Return the objects of a file that `read_examples` has accepted."""
    return [json.loads(line.decode("utf-8-sig")) for line in data.read_bytes().split(b"\n") if line.strip()]


def _modes(encoder: Encoder, store: Store, options: MiningOptions) -> tuple[SearchMode, ...]:
    """Return the rankings; raise ValueError if the checkpoint or the store lacks one of their modes."""
    if not store.count():
        raise ValueError(f"{store!r} holds no passages to mine: index some first")
    present = [mode for mode in MODES if mode in encoder.modes and mode in store.modes]
    asked: tuple[SearchMode, ...] = options.modes or tuple(present)
    for ranking in asked:
        if absent := [mode for mode in MODES_OF[ranking] if mode not in present]:
            raise ValueError(
                f"negatives cannot be drawn from mode {ranking!r}: "
                + (
                    absent_heads(encoder.model, encoder.modes, absent)
                    if any(mode not in encoder.modes for mode in absent)
                    else f"{store!r} keeps {', '.join(store.modes)} vectors only"
                )
            )
    return tuple(dict.fromkeys(asked))


@dataclass(frozen=True, slots=True)
class _Miner:
    """The parts of a run that are the same for all blocks.

    Attributes:
        searcher: The encoder and the store.
        modes: The rankings.
        options: The options for choosing negatives.
        teacher: Scores positives and negatives; None for no scores.
        answers: All answers to each query, with its instruction, that has several examples.
    """

    searcher: Searcher
    modes: Sequence[SearchMode]
    options: MiningOptions
    teacher: Teacher | None
    answers: Mapping[str, Sequence[str]]

    def mine(self, examples: Sequence[Example], rows: Sequence[dict[str, Any]], start: int) -> list[dict[str, Any]]:
        """Return rows with new negatives.

        Args:
            examples: The rows as training reads them.
            rows: The rows as the file has them.
            start: The number of the first row in the file, from 0.
        """
        queries = [example.instructed(self.options.query_instruction) for example in examples]
        positives = [
            self.answers.get(query, example.positives) for query, example in zip(queries, examples, strict=True)
        ]
        # The positives and the query itself may be hits without a rank, so that many more hits are needed.
        k = self.options.last_rank + 1 + max(map(len, positives))
        found = {
            mode: self.searcher.search_batch(queries, mode=mode, k=k, pool_size=k, weights=self.options.weights)
            for mode in self.modes
        }
        limits = self._limits(queries, positives)
        mined: list[dict[str, Any]] = []
        for i in range(len(rows)):
            draw = random.Random(f"{self.options.seed} {start + i}")  # noqa: S311 - not for security
            own = (examples[i].query, *positives[i])
            hits = {mode: found[mode][i] for mode in self.modes}
            negatives = choose_negatives(hits, own, limits[i], self.options, draw)
            row = {name: value for name, value in rows[i].items() if name not in {"pos_scores", "neg_scores"}}
            mined.append({**row, "neg": negatives})
        if self.teacher is not None:
            _add_teacher_scores(mined, self.teacher)
        return mined

    def _limits(self, queries: Sequence[str], positives: Sequence[Sequence[str]]) -> list[dict[SearchMode, float]]:
        """Return for each query the highest score that a negative may have in each ranking."""
        if self.options.margin is None:
            return [dict.fromkeys(self.modes, math.inf)] * len(queries)
        return [
            margin_limits(
                self.searcher.encoder.score_pairs([(query, text) for text in texts]),
                self.modes,
                self.options,
            )
            for query, texts in zip(queries, positives, strict=True)
        ]


def _add_teacher_scores(rows: Sequence[dict[str, Any]], teacher: Teacher) -> None:
    """Write a teacher's scores into rows. The query is scored without an instruction: a cross-encoder takes none.

    Raises:
        ValueError: If the teacher does not score every pair, or a score is not finite in float32.
    """
    pairs = [(row["query"], text) for row in rows for text in (*row["pos"], *row["neg"])]
    scores = [float(score) for score in teacher(pairs)]
    if len(scores) != len(pairs):
        raise ValueError(f"the teacher was given {len(pairs)} pairs and returned {len(scores)} scores")
    for (query, text), score in zip(pairs, scores, strict=True):
        if not abs(score) <= MOST_SCORE:  # also NaN
            raise ValueError(
                f"the teacher's score of {query[:80]!r} with {text[:80]!r} is {score}, and m3 train needs a finite "
                "float32: use another teacher, or leave these texts out. What was mined before is kept"
            )
    taken = iter(scores)
    for row in rows:
        row["pos_scores"] = [next(taken) for _ in row["pos"]]
        row["neg_scores"] = [next(taken) for _ in row["neg"]]
