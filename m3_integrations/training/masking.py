"""Texts for RetroMAE: read from files, in batches of similar length, with the same masks in every run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from m3_integrations.tokenizer import Tokenizer
from m3_integrations.training.data import pad_texts
from m3_integrations.vectors.texts import titled_text

_POOL_BATCHES: Final = 100
"""Texts are sorted by length within this many batches at a time."""


def read_texts(paths: Sequence[Path]) -> list[str]:
    """Read texts, each once, in the order of the files.

    Args:
        paths: Files, or folders whose .jsonl and .txt files are read in the order of their names. In a .txt file every
            line is a text. In any other file every line is a JSON object: with "text" and optionally "title", as in
            BEIR's corpus.jsonl, or with "pos" and optionally "neg", as in training data of pairs.

    Raises:
        FileNotFoundError: If a path does not exist, or a folder has no such file.
        ValueError: If a line is not such an object (the message names the file and the line), or if there is no text.
    """
    texts: dict[str, None] = {}
    for path in paths:
        files = sorted([*path.glob("*.jsonl"), *path.glob("*.txt")]) if path.is_dir() else [path]
        if not files:
            raise FileNotFoundError(f"{path} has no .jsonl or .txt file")
        for file in files:
            texts.update(dict.fromkeys(text for text in _read(file) if text.strip()))
    if not texts:
        raise ValueError(f"{', '.join(map(str, paths))} hold no text")
    return list(texts)


def _read(path: Path) -> Iterator[str]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                text = line.decode("utf-8-sig").strip()
                yield from [text] if path.suffix == ".txt" or not text else _parse(json.loads(text))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}, line {number}: {error}") from error


def _parse(row: Any) -> list[str]:
    if not isinstance(row, dict) or not {"text", "pos"} & row.keys():
        raise ValueError('needs an object with "text", or with "pos" as in training data')
    if "text" in row:
        texts = [titled_text(row)]
    else:
        positives, negatives = row["pos"], row.get("neg", [])
        for name, values in (("pos", positives), ("neg", negatives)):
            if not isinstance(values, list) or not all(isinstance(text, str) for text in values):
                raise ValueError(f'"{name}" must be a list of strings, got {type(values).__name__}')
        texts = [*positives, *negatives]
    for text in texts:
        text.encode()  # half a surrogate pair raises ValueError here, before training, instead of in the tokenizer
    return texts


class MaskedBatches(Dataset[dict[str, torch.Tensor]]):
    """All batches of a RetroMAE run, in order. Batch i and its masks depend only on the arguments and i.

    Args:
        texts: The data.
        tokenizer: The tokenizer of the network.
        batch_size: Texts in a batch, over all processes.
        max_length: The most tokens of a text, special tokens included; the rest of the text is not read.
        encoder_mask: The share of a text's tokens that is masked for the encoder; at least one token is.
        decoder_mask: The share of the other tokens that the decoder does not see, drawn again for every token that it
            predicts.
        steps: The number of batches.
        seed: The seed of the order and of the masks.
        process: The number of this process, from 0; it gets its part of every batch.
        processes: The number of processes that train together.

    Raises:
        ValueError: If there are fewer texts than a batch needs, a batch has fewer texts than there are processes, or
            the tokenizer has no mask token.
    """

    def __init__(
        self,
        texts: Sequence[str],
        tokenizer: Tokenizer,
        *,
        batch_size: int,
        max_length: int,
        encoder_mask: float,
        decoder_mask: float,
        steps: int,
        seed: int,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        if len(texts) < batch_size:
            raise ValueError(f"{len(texts)} texts do not fill one batch of {batch_size}")
        if batch_size < processes:
            raise ValueError(
                f"a batch of {batch_size} texts is too small for {processes} processes: each needs at least one text"
            )
        self._processes = processes
        self._own = slice(batch_size * process // processes, batch_size * (process + 1) // processes)
        if tokenizer.mask_id is None:
            raise ValueError("RetroMAE needs a mask token, which the tokenizer lacks")
        self._texts, self._tokenizer, self._mask_id = texts, tokenizer, tokenizer.mask_id
        self._batch_size, self._max_length = batch_size, max_length
        self._encoder_mask, self._decoder_mask = encoder_mask, decoder_mask
        self._steps, self._seed = steps, seed
        # Lengths in bytes instead of tokens: tokenizing a large corpus would delay the first step.
        self._lengths = np.array([len(text.encode()) for text in texts], dtype=np.int64)
        self._epoch: int | None = None
        self._plan: NDArray[np.int64] = np.empty((0, batch_size), dtype=np.int64)

    @property
    def batches_per_epoch(self) -> int:
        """The number of batches in a pass over the data."""
        return len(self._texts) // self._batch_size

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        """Return this process's n texts of one batch, padded to the longest of the batch.

        Returns:
            input_ids and masked_ids: (n, tokens) int64, without and with the encoder's masks. attention_mask:
            (n, tokens) int64, 1 at real tokens. is_text: (n, tokens) bool, the tokens that the decoder predicts.
            is_masked: (n, tokens) bool, those of them that the encoder predicts. visible: (n, tokens, tokens) bool, the
            tokens that the decoder sees when it predicts the token of each row: always [CLS], never that token.
            shares: (2,) float32, the weights of the means over these texts' masked tokens and over all their tokens in
            the mean over the processes' means; 1 with one process.
        """
        if not 0 <= step < self._steps:
            raise IndexError(f"batch {step} of {self._steps}")
        epoch, place = divmod(step, self.batches_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._plan = epoch, self._plan_epoch(epoch)
        padded = pad_texts(
            [self._texts[row] for row in self._plan[place]], self._tokenizer, max_length=self._max_length
        )
        ids, is_real = padded.input_ids.numpy(), padded.attention_mask.numpy().astype(bool)
        draw = np.random.default_rng([self._seed, 1, step])
        is_text = is_real & ~np.isin(ids, self._tokenizer.ignored_ids)
        is_masked = _choose(is_text, self._encoder_mask, draw)
        visible = draw.random((*ids.shape, ids.shape[1]), dtype=np.float32) >= self._decoder_mask
        visible &= is_real[:, None, :]
        visible &= ~np.eye(ids.shape[1], dtype=bool)
        visible[:, :, 0] = True
        batch = {
            "input_ids": padded.input_ids,
            "masked_ids": torch.from_numpy(np.where(is_masked, self._mask_id, ids)),
            "attention_mask": padded.attention_mask,
            "is_text": torch.from_numpy(is_text),
            "is_masked": torch.from_numpy(is_masked),
            "visible": torch.from_numpy(visible),
        }
        own = {name: values[self._own] for name, values in batch.items()}
        counted = [(int(own[name].sum()), max(int(batch[name].sum()), 1)) for name in ("is_masked", "is_text")]
        return own | {"shares": torch.tensor([n * self._processes / total for n, total in counted])}

    def _plan_epoch(self, epoch: int) -> NDArray[np.int64]:
        """Return the rows of every batch of an epoch, (batches, batch_size); a batch that is not full is left out."""
        draw = np.random.default_rng([self._seed, 0, epoch])
        order = draw.permutation(len(self._texts))
        pool = self._batch_size * _POOL_BATCHES
        parts = [order[start : start + pool] for start in range(0, len(order), pool)]
        order = np.concatenate([part[np.argsort(self._lengths[part], kind="stable")] for part in parts])
        batches = order[: self.batches_per_epoch * self._batch_size].reshape(-1, self._batch_size)
        return draw.permutation(batches, axis=0)


def _choose(is_text: NDArray[np.bool_], part: float, draw: np.random.Generator) -> NDArray[np.bool_]:
    """Return which tokens are masked, (n, tokens) bool: a random share of each text's tokens, at least one."""
    order = np.where(is_text, draw.random(is_text.shape), 2.0).argsort(axis=1, kind="stable").argsort(axis=1)
    counts = np.maximum(np.rint(part * is_text.sum(axis=1)), 1)
    chosen: NDArray[np.bool_] = (order < counts[:, None]) & is_text
    return chosen
