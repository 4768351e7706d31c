"""Training examples: FlagEmbedding's JSONL, cut into batches of similar length that are the same on every run."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from m3_integrations.tokenizer import Tokenizer

_POOL_BATCHES: Final = 100
"""Examples are sorted by length within this many batches at a time, so that a batch is alike, another each epoch."""


@dataclass(frozen=True, slots=True)
class Example:
    """One query with texts that answer it and texts that do not.

    Attributes:
        query: Its text.
        positives: At least one.
        negatives: May be empty.
        instruction: Put before the query, and before none of its passages; None for the run's own.
    """

    query: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...]
    instruction: str | None = None


def read_examples(paths: Sequence[Path]) -> list[Example]:
    """Read FlagEmbedding's training data: one JSON object per line with query, pos, neg and maybe prompt.

    Other keys that FlagEmbedding knows (pos_scores, neg_scores, type, batch_size and so on) may be there and are not
    used: the teacher here is the ensemble of the three modes.

    Args:
        paths: Files, or folders whose .jsonl files are read in the order of their names.

    Raises:
        FileNotFoundError: If a path is not there, or a folder has no .jsonl file.
        ValueError: If a line is not such an object; the message names the file and the line.
    """
    examples: list[Example] = []
    for path in paths:
        files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        if not files:
            raise FileNotFoundError(f"{path} has no .jsonl file")
        for file in files:
            examples.extend(_read(file))
    return examples


def _read(path: Path) -> Iterator[Example]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    yield _parse(json.loads(line.decode("utf-8-sig")))
                except ValueError as error:
                    raise ValueError(f"{path}, line {number}: {error}") from error


def _parse(row: Any) -> Example:
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
    for text in (row["query"], *positives, *negatives, prompt or ""):
        text.encode()  # half a surrogate pair is a ValueError here, and would be one of the tokenizer's at its batch
    return Example(row["query"], tuple(positives), tuple(negatives), prompt)


@dataclass(frozen=True, slots=True)
class PaddedTexts:
    """Texts as the network takes them: (n, tokens) int64 each."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor


class TrainingBatches(Dataset[dict[str, torch.Tensor]]):
    """All batches of a run, in order: batch i is decided by the seed and i alone.

    So a run that was killed goes on with exactly the batches that it had not seen, whatever was drawn before.

    Args:
        examples: The data.
        tokenizer: Of the network.
        batch_size: Queries in a batch.
        group_size: Passages per query: one positive and group_size - 1 negatives, some twice if there are too few.
        query_max_length: The most tokens of a query, special tokens included.
        passage_max_length: The same for passages.
        instruction: Put before queries whose example has no prompt.
        steps: How many batches.
        seed: For the order and for which positive and negatives are taken.

    Raises:
        ValueError: If there are fewer examples than a batch needs, or negatives are wanted and an example has none.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        tokenizer: Tokenizer,
        *,
        batch_size: int,
        group_size: int,
        query_max_length: int,
        passage_max_length: int,
        instruction: str = "",
        steps: int,
        seed: int,
    ) -> None:
        if len(examples) < batch_size:
            raise ValueError(f"{len(examples)} examples do not fill one batch of {batch_size}")
        if group_size > 1 and any(not example.negatives for example in examples):
            raise ValueError(f"group_size {group_size} needs negatives, and an example has none: use 1, or mine some")
        self._examples, self._tokenizer = examples, tokenizer
        self._batch_size, self._group_size = batch_size, group_size
        self._query_max_length, self._passage_max_length = query_max_length, passage_max_length
        self._instruction = instruction
        self._steps, self._seed = steps, seed
        self._lengths = self._measure()
        self._epoch: int | None = None
        self._plan: NDArray[np.int64] = np.empty((0, batch_size), dtype=np.int64)

    def _measure(self) -> NDArray[np.int64]:
        """Return about how many tokens the first positive of every example has: (examples,)."""
        firsts = [example.positives[0] for example in self._examples]
        tokens = self._tokenizer(firsts, max_length=self._passage_max_length)
        return np.array([len(text) for text in tokens], dtype=np.int64)

    @property
    def batches_per_epoch(self) -> int:
        """How many batches are a pass over the data."""
        return len(self._examples) // self._batch_size

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        """Return one batch: the padded queries and passages; passage i * group_size answers query i."""
        if not 0 <= step < self._steps:
            raise IndexError(f"batch {step} of {self._steps}")
        epoch, place = divmod(step, self.batches_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._plan = epoch, self._plan_epoch(epoch)
        draw = random.Random(f"{self._seed} {step}")  # noqa: S311 - a choice that anyone may foresee
        queries: list[str] = []
        passages: list[str] = []
        for row in self._plan[place]:
            example = self._examples[row]
            instruction = self._instruction if example.instruction is None else example.instruction
            queries.append(instruction + example.query)
            passages.extend(self._choose(example, draw))
        query = pad_texts(queries, self._tokenizer, max_length=self._query_max_length)
        passage = pad_texts(passages, self._tokenizer, max_length=self._passage_max_length)
        return {
            "query_ids": query.input_ids,
            "query_mask": query.attention_mask,
            "passage_ids": passage.input_ids,
            "passage_mask": passage.attention_mask,
        }

    def _plan_epoch(self, epoch: int) -> NDArray[np.int64]:
        """Return the rows of every batch of an epoch: (batches, batch_size). A batch that is not full is left out."""
        generator = np.random.default_rng([self._seed, epoch])
        order = generator.permutation(len(self._examples))
        pool = self._batch_size * _POOL_BATCHES
        parts = [order[start : start + pool] for start in range(0, len(order), pool)]
        order = np.concatenate([part[np.argsort(self._lengths[part], kind="stable")] for part in parts])
        count = len(order) // self._batch_size
        batches = order[: count * self._batch_size].reshape(count, self._batch_size)
        return generator.permutation(batches, axis=0)

    def _choose(self, example: Example, draw: random.Random) -> list[str]:
        wanted = self._group_size - 1
        pool = list(example.negatives)
        if wanted > len(pool) > 0:
            pool *= -(-wanted // len(pool))
        return [draw.choice(example.positives), *draw.sample(pool, wanted)]


def pad_texts(texts: Sequence[str], tokenizer: Tokenizer, *, max_length: int) -> PaddedTexts:
    """Tokenize texts, cut each to max_length tokens and pad all to the longest."""
    tokens = tokenizer(texts, max_length=max_length)
    shape = len(tokens), max(len(text) for text in tokens)
    ids, mask = np.full(shape, tokenizer.pad_id, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    for row, text in enumerate(tokens):
        ids[row, : len(text)] = text.ids
        mask[row, : len(text)] = 1
    return PaddedTexts(torch.from_numpy(ids), torch.from_numpy(mask))
