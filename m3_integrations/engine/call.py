"""One call of `encode`: from texts, over the cache and the queue, to vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING

import numpy as np

from m3_integrations.cache import cache_key
from m3_integrations.engine.scheduler import Request
from m3_integrations.engine.worker import Answers
from m3_integrations.model import BatchOutput, M3Network
from m3_integrations.tokenizer import Pooling, Tokens
from m3_integrations.vectors import IntArray, LexicalRows, M3Vectors, Mode, MultiVectorRows, offsets_of

if TYPE_CHECKING:
    from m3_integrations.engine.core import Engine


@dataclass(frozen=True, slots=True)
class EncodeOptions:
    """What is asked of one call.

    Attributes:
        modes: The modes to give.
        computed_modes: The modes to compute and to cache, `modes` among them.
        max_length: The most tokens of a text, no more than the network has positions for.
        pooling: How the dense vector is read off.
        max_tokens_per_batch: Tokens of one forward pass, padding included; None for what suits the device.
        cache_size_bytes: 0 leaves the cache alone.
    """

    modes: tuple[Mode, ...]
    computed_modes: tuple[Mode, ...]
    max_length: int
    pooling: Pooling
    max_tokens_per_batch: int | None
    cache_size_bytes: int


class Call:
    """One call of `encode` in three steps: made (which tokenizes), started, finished.

    Texts that the cache knows are taken from it; one that occurs twice is encoded once.

    Args:
        engine: Whose network, cache and queue are used.
        texts: Strings, instruction included.
        options: What is asked of them.
        on_batch: Called by `wait` after every forward pass, with the number of this call's texts in it.

    Raises:
        UnicodeEncodeError: If a text is not valid Unicode.
    """

    def __init__(
        self, engine: Engine, texts: Sequence[str], options: EncodeOptions, on_batch: Callable[[int], object]
    ) -> None:
        self._engine, self._options, self._on_batch = engine, options, on_batch
        self._future: Future[None] = Future()
        self._done_texts: SimpleQueue[int | None] = SimpleQueue()  # None comes last
        self._keys = [cache_key(text, options.max_length, options.pooling) for text in texts]
        unique = dict(zip(self._keys, texts, strict=True))
        self._known = engine.cache.get(unique, options.computed_modes) if options.cache_size_bytes else {}
        self._missing = [key for key in unique if key not in self._known]
        self.texts: Sequence[Tokens] = engine.tokenizer(
            [unique[key] for key in self._missing], max_length=options.max_length, pooling=options.pooling
        )
        self.wants_multi_vector = "multi_vector" in options.computed_modes
        self._collector = _Collector(engine.network, self.texts, multi_vector=self.wants_multi_vector)

    def start(self) -> Future[None]:
        """Queue what the cache does not know; the future ends when all of it has been encoded, or with the error."""
        if self.texts:
            lengths = [len(text) for text in self.texts]
            request = Request[Answers](lengths, self, max_tokens=self._options.max_tokens_per_batch)
            self._engine.scheduler.add(request)
            self._future = request.future
        else:
            self._future.set_result(None)
        self._future.add_done_callback(partial(_put_none, self._done_texts))
        return self._future

    def wait(self) -> None:
        """Return when all has been encoded, or raise the error; a caller who is interrupted leaves the queue.

        Progress is told here, in the caller's thread: a terminal that blocks must not hold up anybody else.
        """
        try:
            while (n := self._done_texts.get()) is not None:
                self._on_batch(n)
            self._future.result()
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Take what has not been encoded out of the queue.

        It also forgets the future: an error in it holds this call by its traceback, and the two would keep each other.
        """
        future, self._future = self._future, Future()
        future.cancel()

    def network(self, worker: int) -> M3Network:
        """The network on this worker's device."""
        return self._engine.networks[worker]

    def receive(self, positions: Sequence[int], output: BatchOutput, first: int) -> None:
        """Take over the results of these texts, which are rows first and following of a batch's output."""
        self._collector.add(positions, output, first)
        self._done_texts.put(len(positions))

    def count_pass(self, batch: Sequence[Tokens]) -> None:
        """Count a pass that was run."""
        self._engine.count(forward_passes=1, encoded_texts=len(batch), encoded_tokens=sum(map(len, batch)))

    def finish(self) -> tuple[M3Vectors, int]:
        """Give the vectors of the call's texts in their order, and how many of the texts were cut."""
        engine, options, known = self._engine, self._options, self._known
        fresh = self._collector.finish(engine.tokenizer.vocabulary)
        cut = {key for key, entry in known.items() if entry.is_truncated}
        cut.update(key for key, text in zip(self._missing, self.texts, strict=True) if text.is_truncated)
        if options.cache_size_bytes:
            engine.cache.put(self._missing, fresh, cut)
        truncated = sum(key in cut for key in self._keys)
        engine.count(cache_hits=len(known), truncated_texts=truncated)
        return self._in_order(fresh.select(options.modes)), truncated

    def _in_order(self, fresh: M3Vectors) -> M3Vectors:
        if len(self._missing) == len(self._keys):
            return fresh
        stored = {key: entry.vectors.select(self._options.modes) for key, entry in self._known.items()}
        if not self._missing and self._keys:
            return M3Vectors.concatenate([stored[key] for key in self._keys])
        row = {key: i for i, key in enumerate((*self._known, *self._missing))}
        rows = np.array([row[key] for key in self._keys], dtype=np.int64)
        return (M3Vectors.concatenate([*stored.values(), fresh]) if stored else fresh).take(rows)


def _put_none(queue: SimpleQueue[int | None], _: Future[None]) -> None:
    queue.put(None)


class _Collector:
    """Puts the outputs of batches, which come in any order, into arrays in the order of the texts."""

    def __init__(self, network: M3Network, texts: Sequence[Tokens], *, multi_vector: bool) -> None:
        self._has_lexical = "lexical" in network.modes
        self._dense = np.empty((len(texts), network.dim), dtype=np.float32)
        self._lexical: list[tuple[Sequence[int], LexicalRows]] = []
        self._multi_vector: MultiVectorRows | None = None
        if multi_vector and network.multi_vector_dim is not None:
            offsets = offsets_of([len(tokens) - tokens.n_cls for tokens in texts])
            flat = np.empty((offsets[-1], network.multi_vector_dim), dtype=np.float32)
            self._multi_vector = MultiVectorRows(offsets, flat)

    def add(self, positions: Sequence[int], output: BatchOutput, first: int) -> None:
        self._dense[positions] = output.dense[first : first + len(positions)]
        if output.lexical is not None:
            self._lexical.append((positions, output.lexical[first : first + len(positions)]))
        if self._multi_vector is not None and output.multi_vector is not None:
            for row, i in enumerate(positions, first):
                self._multi_vector[i][:] = output.multi_vector[row]

    def finish(self, vocabulary: Sequence[str]) -> M3Vectors:
        lexical = None
        if self._has_lexical:
            row: IntArray = np.empty(len(self._dense), dtype=np.int64)
            row[[i for positions, _ in self._lexical for i in positions]] = np.arange(len(row))
            parts = [rows for _, rows in self._lexical]
            lengths = np.concatenate([np.empty(0, np.int64), *(part.lengths for part in parts)])
            indices = np.concatenate([np.empty(0, np.int32), *(part.indices for part in parts)])
            values = np.concatenate([np.empty(0, np.float32), *(part.values for part in parts)])
            lexical = LexicalRows(offsets_of(lengths), indices, values, vocabulary).take(row)
        return M3Vectors(dense=self._dense, lexical=lexical, multi_vector=self._multi_vector)
