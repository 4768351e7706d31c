"""Hard negatives for a training file, from the store that a `Searcher` would search.

As in ANCE (Xiong et al., 2021), negatives are passages that the model itself ranks high, and training with
them and mining with the new checkpoint may alternate. ANCE knows one ranking; here every mode has its own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tqdm.auto import tqdm

from m3_integrations.search import Searcher, SearchMode, SearchOptions
from m3_integrations.search.options import MODES_OF
from m3_integrations.store import Store
from m3_integrations.training.data import Example, read_examples
from m3_integrations.training.mining.choosing import MiningOptions, choose_negatives, margin_limits
from m3_integrations.training.mining.progress import ProgressFile, replace_lines
from m3_integrations.vectors import MODES, Encoder, absent_heads

Teacher = Callable[[Sequence[tuple[str, str]]], Sequence[float]]
"""Scores pairs of a query and a passage, higher is better: a `CrossEncoder`, or the `score` of one of LangChain's."""

_BLOCK: Final = 64
"""Examples that are mined and written together. A run that goes on begins at a block, so that queries share forward
passes with the same others, and scores are the same to the bit."""


@dataclass(frozen=True, slots=True)
class MiningReport:
    """What was mined.

    Attributes:
        examples: How many queries the file has.
        negatives: How many negatives they have got together.
        short: How many of them have got fewer than was asked for, those with none included.
        without: How many have got none; `m3 train` takes them only with `train_group_size = 1`.
        resumed: How many an earlier run had mined already.
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
    """Write a training file anew, with passages of a store as negatives.

    Every ranking is that of a `Searcher`: by token vectors and by several modes it holds what the two legs have found.
    What an example had as "neg" is replaced; other keys stay, but for "pos_scores" and "neg_scores", which go unless a
    teacher writes new ones. What a killed run had mined lies in OUT.progress, and the same call goes on from there. The
    result appears as a whole, in the order of the data; it depends on the options and the seed alone.

    Args:
        encoder: Encodes the queries; without a query instruction of its own.
        store: The passages, encoded by the same model.
        data: A file in FlagEmbedding's JSONL; "neg" may be absent.
        out: Where the new file goes.
        options: Which passages are chosen.
        teacher: Scores every query with its positives and negatives, for "pos_scores" and "neg_scores".
        teacher_name: What the teacher is called; a run that goes on is held to it.
        show_progress: Whether to draw a bar.

    Raises:
        FileExistsError: If there is such a file already.
        FileNotFoundError: If the data are not there.
        BlockingIOError: If another process mines into the same file.
        ValueError: If a line of the data is no example, the store is empty, holds another model's vectors or lacks a
            mode that is asked for, or the run in OUT.progress was begun with something else.
    """
    options = options or MiningOptions()
    if out.exists():
        raise FileExistsError(f"{out} is there already: choose another file")
    examples, rows = read_examples([data]), _read_rows(data)
    modes = _modes(encoder, store, options)
    miner = _Miner(Searcher(encoder, store, SearchOptions(mode=modes[0])), modes, options, teacher)
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
    """Return the rankings, held to what the checkpoint and the store have."""
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
    """All that a run keeps from block to block.

    Attributes:
        searcher: The encoder and the store.
        modes: The rankings.
        options: Which passages are chosen.
        teacher: Scores them; None for no scores.
    """

    searcher: Searcher
    modes: Sequence[SearchMode]
    options: MiningOptions
    teacher: Teacher | None

    def mine(self, examples: Sequence[Example], rows: Sequence[dict[str, Any]], start: int) -> list[dict[str, Any]]:
        """Return rows with new negatives.

        Args:
            examples: The rows as training reads them.
            rows: The rows as the file has them.
            start: The place of the first one in the file.
        """
        queries = [
            (self.options.query_instruction if example.instruction is None else example.instruction) + example.query
            for example in examples
        ]
        # One more than the ranks and the positives: the query itself may be a passage.
        k = self.options.last_rank + 1 + max(len(example.positives) for example in examples)
        found = {
            mode: self.searcher.search_batch(queries, mode=mode, k=k, pool_size=k, weights=self.options.weights)
            for mode in self.modes
        }
        limits = self._limits(queries, examples)
        mined: list[dict[str, Any]] = []
        for i in range(len(rows)):
            draw = random.Random(f"{self.options.seed} {start + i}")  # noqa: S311 - a choice that anyone may foresee
            own = (examples[i].query, *examples[i].positives)
            hits = {mode: found[mode][i] for mode in self.modes}
            negatives = choose_negatives(hits, own, limits[i], self.options, draw)
            row = {name: value for name, value in rows[i].items() if name not in {"pos_scores", "neg_scores"}}
            mined.append({**row, "neg": negatives})
        if self.teacher is not None:
            _add_teacher_scores(mined, self.teacher)
        return mined

    def _limits(self, queries: Sequence[str], examples: Sequence[Example]) -> list[dict[SearchMode, float]]:
        """Return the most that a negative of each query may score in each ranking."""
        if self.options.margin is None:
            return [dict.fromkeys(self.modes, math.inf)] * len(queries)
        return [
            margin_limits(
                self.searcher.encoder.score_pairs([(query, text) for text in example.positives]),
                self.modes,
                self.options,
            )
            for query, example in zip(queries, examples, strict=True)
        ]


def _add_teacher_scores(rows: Sequence[dict[str, Any]], teacher: Teacher) -> None:
    """Write a teacher's scores into rows: of the query as it stands, which a cross-encoder knows no instruction for.

    Raises:
        ValueError: If the teacher does not score every pair.
    """
    pairs = [(row["query"], text) for row in rows for text in (*row["pos"], *row["neg"])]
    scores = [float(score) for score in teacher(pairs)]
    if len(scores) != len(pairs):
        raise ValueError(f"the teacher was given {len(pairs)} pairs and returned {len(scores)} scores")
    taken = iter(scores)
    for row in rows:
        row["pos_scores"] = [next(taken) for _ in row["pos"]]
        row["neg_scores"] = [next(taken) for _ in row["neg"]]
