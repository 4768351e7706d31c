"""Training examples: FlagEmbedding's JSONL, in batches of similar length that are the same in every run."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from m3_integrations.tokenizer import Tokenizer
from m3_integrations.training.plan import BatchPlan

_LEAST_SHUFFLED: Final = 100
"""In characters: a text that is not longer is never cut into segments."""

MOST_SCORE: Final = float(np.finfo(np.float32).max)
"""The largest score of a teacher, up or down: the loss is in float32."""

_MEASURED_AT_ONCE: Final = 1000
"""The examples whose texts are tokenized together to measure their lengths."""


@dataclass(frozen=True, slots=True)
class Example:
    """One query with texts that answer it and texts that do not.

    Attributes:
        query: The text of the query.
        positives: The texts that answer it, at least one.
        negatives: The texts that do not answer it; may be empty.
        instruction: Put before the query, never before passages; None for the run's instruction.
        positive_scores: A teacher's scores, one for each positive; empty without a teacher.
        negative_scores: A teacher's scores, one for each negative; empty without a teacher.
        source: The number of the file among all files that were read.
    """

    query: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...]
    instruction: str | None = None
    positive_scores: tuple[float, ...] = ()
    negative_scores: tuple[float, ...] = ()
    source: int = 0

    @property
    def has_scores(self) -> bool:
        """Whether a teacher scored every passage."""
        return bool(self.positive_scores) and len(self.negative_scores) == len(self.negatives)

    def instructed(self, instruction: str) -> str:
        """Return the query with its own instruction before it, or with this one if it has none."""
        return (instruction if self.instruction is None else self.instruction) + self.query


def read_examples(paths: Sequence[Path]) -> list[Example]:
    """Read FlagEmbedding's training data: one JSON object per line with query, pos and neg, without blank texts.

    An object may have a prompt, and a teacher's pos_scores and neg_scores. Other keys that FlagEmbedding knows (type,
    batch_size and so on) are allowed and not used.

    Args:
        paths: Files, or folders whose .jsonl files are read in the order of their names.

    Raises:
        FileNotFoundError: If a path does not exist, or a folder has no .jsonl file.
        ValueError: If a line is not such an object, and the message names the file and the line; or there is no line.
    """
    files: list[Path] = []
    for path in paths:
        found = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        if not found:
            raise FileNotFoundError(f"{path} has no .jsonl file")
        files.extend(found)
    examples = [example for source, file in enumerate(files) for example in _read(file, source)]
    if not examples:
        raise ValueError(f"there are no examples in {', '.join(map(str, files))}")
    return examples


def _read(path: Path, source: int) -> Iterator[Example]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    yield _parse(json.loads(line.decode("utf-8-sig")), source)
                except (ValueError, RecursionError) as error:
                    raise ValueError(f"{path}, line {number}: {error}") from error


def _parse(row: Any, source: int) -> Example:
    if not isinstance(row, dict) or not isinstance(row.get("query"), str):
        raise ValueError('needs an object with "query", a string')  # noqa: TRY004 - the file's content is wrong
    positives, negatives, prompt = row.get("pos"), row.get("neg", []), row.get("prompt")
    for name, texts in (("pos", positives), ("neg", negatives)):
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f'"{name}" must be a list of strings, got {type(texts).__name__}')
    if not positives:
        raise ValueError('"pos" must hold at least one text')
    if prompt is not None and not isinstance(prompt, str):
        raise ValueError(f'"prompt" must be a string, got {type(prompt).__name__}')
    for name, texts in (("query", [row["query"]]), ("pos", positives), ("neg", negatives)):
        if blank := [text for text in texts if not text.strip()]:
            raise ValueError(f'"{name}" must not be blank, got {blank[0]!r}: remove it, or the line')
    for text in (row["query"], *positives, *negatives, prompt or ""):
        text.encode()  # half a surrogate pair raises ValueError here, before training, instead of in the tokenizer
    scores = [_parse_scores(row, name, len(row.get(name) or ())) for name in ("pos", "neg")]
    return Example(row["query"], tuple(positives), tuple(negatives), prompt, scores[0], scores[1], source)


def _parse_scores(row: dict[str, Any], name: str, count: int) -> tuple[float, ...]:
    scores = row.get(f"{name}_scores")
    if scores is None or scores == []:
        return ()
    if not isinstance(scores, list) or len(scores) != count or not all(map(_is_score, scores)):
        raise ValueError(
            f'"{name}_scores" must be a list of {count} finite numbers of float32, as "{name}" has, got {scores!r}'
        )
    return tuple(float(score) for score in scores)


def _is_score(value: object) -> bool:
    """Return whether a value is a number that the loss can compute with; JSON's true is none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MOST_SCORE


def join_answers(examples: Sequence[Example], instruction: str) -> dict[str, tuple[str, ...]]:
    """Return all answers to each query that has several examples, such as a line for each of its answers.

    Queries are with their instruction. Queries with one example are left out, which saves memory.

    Args:
        examples: The data.
        instruction: Put before queries whose example has no prompt.
    """
    counts = Counter(example.instructed(instruction) for example in examples)
    answers: dict[str, dict[str, None]] = {}
    for example in examples:
        if counts[query := example.instructed(instruction)] > 1:
            answers.setdefault(query, {}).update(dict.fromkeys(example.positives))
    return {query: tuple(texts) for query, texts in answers.items()}


@dataclass(frozen=True, slots=True)
class PaddedTexts:
    """Padded texts for the network, each tensor (n, tokens) int64."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor


class TrainingBatches(Dataset[dict[str, torch.Tensor]]):
    """All batches of a run, in order. Batch i depends only on the arguments and i.

    So a killed run continues with exactly the batches that it had not seen. Every process of a run on several
    devices plans the same batches and returns its own share of the queries of each.

    Args:
        examples: The data.
        tokenizer: The tokenizer of the network.
        batch_size: Queries in a batch, over all processes. Or a mapping from the most tokens of a length group to the
            queries in its batches.
        group_size: Passages per query: one positive and group_size - 1 negatives, some twice if there are too few.
        query_max_length: The most tokens of a query, special tokens included.
        passage_max_length: The most tokens of a passage, special tokens included.
        instruction: Put before queries whose example has no prompt.
        steps: The number of batches.
        seed: The seed of the order and of the choice of positives and negatives.
        one_source: Whether a batch has examples of one file only.
        keeps_last: Whether the examples of an epoch that do not fill a batch form a smaller one, if there is at least
            one example for each process.
        shuffle_ratio: The share of the passages longer than 100 characters that are cut into three segments and joined
            in another order; the paper has 0.002.
        needs_scores: Whether a teacher's scores are used.
        process: The number of this process, from 0.
        processes: The number of processes that train together.
        is_gathered: Whether the network scores its queries with the passages of all processes, not only with its own.

    Raises:
        ValueError: If there are fewer examples than a batch needs, a batch has fewer queries than there are processes,
            negatives are needed and an example has none, or scores are needed and an example has none.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        tokenizer: Tokenizer,
        *,
        batch_size: int | Mapping[int, int],
        group_size: int,
        query_max_length: int,
        passage_max_length: int,
        instruction: str = "",
        steps: int,
        seed: int,
        one_source: bool = False,
        keeps_last: bool = False,
        shuffle_ratio: float = 0.0,
        needs_scores: bool = False,
        process: int = 0,
        processes: int = 1,
        is_gathered: bool = True,
    ) -> None:
        if group_size > 1 and (bare := [example for example in examples if not example.negatives]):
            raise ValueError(
                f"{len(bare)} of {len(examples)} examples have no negatives, such as {bare[0].query[:80]!r}, and "
                f"train_group_size {group_size} needs some: mine them, leave these examples out, or set it to 1"
            )
        if needs_scores and (unscored := next((each for each in examples if not each.has_scores), None)):
            raise ValueError(f"an example has no pos_scores and neg_scores, which a teacher needs: {unscored.query!r}")
        smallest = batch_size if isinstance(batch_size, int) else min(batch_size.values(), default=0)
        if smallest < processes:
            raise ValueError(
                f"a batch of {smallest} queries is too small for {processes} processes: each needs at least one query"
            )
        self._examples, self._tokenizer, self._group_size = examples, tokenizer, group_size
        self._query_max_length, self._passage_max_length = query_max_length, passage_max_length
        self._instruction, self._steps, self._seed = instruction, steps, seed
        self._shuffle_ratio, self._needs_scores = shuffle_ratio, needs_scores
        self._process, self._processes, self._is_gathered = process, processes, is_gathered
        self._answers = join_answers(examples, instruction)
        self._plan = BatchPlan(
            self._measure(),
            np.array([example.source for example in examples], dtype=np.int64),
            batch_size,
            one_source=one_source,
            keeps_last=keeps_last,
            least=processes,
            seed=seed,
        )

    def _measure(self) -> NDArray[np.int64]:
        """Return the number of tokens of the longest passage that each example may use: (examples,) int64."""
        lengths: list[int] = []
        for start in range(0, len(self._examples), _MEASURED_AT_ONCE):
            part = self._examples[start : start + _MEASURED_AT_ONCE]
            texts = [each.positives + (each.negatives if self._group_size > 1 else ()) for each in part]
            flat = [text for own in texts for text in own]
            tokens = iter(self._tokenizer(flat, max_length=self._passage_max_length))
            lengths.extend(max(len(next(tokens)) for _ in own) for own in texts)
        return np.array(lengths, dtype=np.int64)

    @property
    def batches_per_epoch(self) -> int:
        """The number of batches in a pass over the data."""
        return self._plan.batches_per_epoch

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        """Return this process's part of one batch, a mapping with these keys.

        query_ids, query_mask, passage_ids, passage_mask: the padded texts; passage i * group_size answers query i.
        positives: (queries,) int64, the column of each query's positive among the passages that it is scored with.
        known_answers: (queries, passages that it is scored with) bool, whether any example of the query calls the
            passage an answer.
        share: scalar, the weight of the mean over these queries in the mean over the processes' means.
        teacher_scores: (queries, group_size), if needed.
        """
        if not 0 <= step < self._steps:
            raise IndexError(f"batch {step} of {self._steps}")
        rows = [self._examples[row] for row in self._plan.rows(step)]
        draw = random.Random(f"{self._seed} {step}")  # noqa: S311 - not for security
        groups = [self._choose(example, draw) for example in rows]
        first, last = (len(rows) * process // self._processes for process in (self._process, self._process + 1))
        own, seen = range(first, last), range(len(rows)) if self._is_gathered else range(first, last)
        queries = [rows[i].instructed(self._instruction) for i in own]
        query = pad_texts(queries, self._tokenizer, max_length=self._query_max_length)
        passages = [text for i in own for text in self._shuffle(groups[i][0], f"{self._seed} {step} {i}")]
        passage = pad_texts(passages, self._tokenizer, max_length=self._passage_max_length)
        batch = {
            "query_ids": query.input_ids,
            "query_mask": query.attention_mask,
            "passage_ids": passage.input_ids,
            "passage_mask": passage.attention_mask,
            "positives": torch.tensor([(i - seen.start) * self._group_size for i in own]),
            "known_answers": self._find_answers(rows, groups, own, seen),
            "share": torch.tensor(len(own) * self._processes / len(rows)),
        }
        if self._needs_scores:
            batch["teacher_scores"] = torch.tensor([groups[i][1] for i in own])
        return batch

    def _choose(self, example: Example, draw: random.Random) -> tuple[list[str], list[float]]:
        """Return a random positive and random negatives, and their teacher's scores if the example has some."""
        positive = draw.choice(range(len(example.positives)))
        wanted, pool = self._group_size - 1, list(range(len(example.negatives)))
        if wanted > len(pool) > 0:
            pool *= -(-wanted // len(pool))
        negatives = draw.sample(pool, wanted)
        texts = [example.positives[positive], *(example.negatives[i] for i in negatives)]
        if not example.has_scores:
            return texts, []
        return texts, [example.positive_scores[positive], *(example.negative_scores[i] for i in negatives)]

    def _find_answers(
        self, rows: Sequence[Example], groups: Sequence[tuple[list[str], list[float]]], own: range, seen: range
    ) -> torch.Tensor:
        """Return which passages answer each query, by all examples with the same query, in the batch or not."""
        columns: dict[str, list[int]] = {}
        for column, text in enumerate(text for i in seen for text in groups[i][0]):
            columns.setdefault(text, []).append(column)
        known = torch.zeros(len(own), len(seen) * self._group_size, dtype=torch.bool)
        for row, i in enumerate(own):
            texts = self._answers.get(rows[i].instructed(self._instruction), rows[i].positives)
            known[row, [column for text in texts for column in columns.get(text, ())]] = True
        return known

    def _shuffle(self, texts: list[str], seed: str) -> list[str]:
        """Return the texts; a random share of the longer ones has its segments in another order."""
        if not self._shuffle_ratio:
            return texts
        draw = random.Random(seed)  # noqa: S311 - not for security
        return [shuffle_segments(text, draw) if draw.random() < self._shuffle_ratio else text for text in texts]


def shuffle_segments(text: str, draw: random.Random) -> str:
    """Return a text's three segments of equal length in a random order; a text of up to 100 characters is unchanged."""
    if len(text) <= _LEAST_SHUFFLED:
        return text
    cuts = [0, len(text) // 3, 2 * len(text) // 3, len(text)]
    segments = [text[start:end] for start, end in itertools.pairwise(cuts)]
    draw.shuffle(segments)
    return " ".join(segments)


def pad_texts(texts: Sequence[str], tokenizer: Tokenizer, *, max_length: int) -> PaddedTexts:
    """Tokenize texts, cut each to max_length tokens and pad all to the longest."""
    tokens = tokenizer(texts, max_length=max_length)
    shape = len(tokens), max(len(text) for text in tokens)
    ids, mask = np.full(shape, tokenizer.pad_id, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    for row, text in enumerate(tokens):
        ids[row, : len(text)] = text.ids
        mask[row, : len(text)] = 1
    return PaddedTexts(torch.from_numpy(ids), torch.from_numpy(mask))
