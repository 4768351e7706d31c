"""One network and all who share it: the lock, the cache, the counters, and which networks this process holds."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final
from weakref import WeakValueDictionary

import numpy as np
import torch

from m3_integrations.batching import plan_batches
from m3_integrations.cache import VectorCache, cache_key
from m3_integrations.checkpoint import head_files, load_tokenizer, weight_files
from m3_integrations.fingerprint import checkpoint_fingerprint
from m3_integrations.model import BatchOutput, M3Network
from m3_integrations.tokenizer import Pooling, Tokens
from m3_integrations.vectors import IntArray, LexicalRows, M3Vectors, Mode, MultiVectorRows, offsets_of

# A small working set is faster on a CPU (a feed-forward layer's activations stay near the cache), a large one on a GPU.
_TOKENS_PER_BATCH_ON_CPU: Final = 1024
_TOKENS_PER_BATCH: Final = 16_384


@dataclass(frozen=True, slots=True)
class EncoderStats:
    """What a network has done since it was loaded, for all its handles together.

    Attributes:
        forward_passes: Batches that went through the network.
        encoded_texts: Texts that went through it.
        encoded_tokens: Their tokens, padding not counted.
        cache_hits: Texts that were answered from the cache.
        truncated_texts: Texts asked for that were longer than their limit.
    """

    forward_passes: int = 0
    encoded_texts: int = 0
    encoded_tokens: int = 0
    cache_hits: int = 0
    truncated_texts: int = 0


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


class Engine:
    """A network with its tokenizer, its cache and the lock that lets one forward pass run at a time.

    Args:
        folder: The checkpoint.
        device: Where the network lives.
        dtype: Its weights' type.

    Raises:
        ValueError: If the checkpoint is incomplete or damaged.
    """

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        self.folder, self.device, self.dtype = folder, device, dtype
        self.tokenizer = load_tokenizer(folder)
        self.network = M3Network.load(
            folder, device=device, dtype=dtype, pad_id=self.tokenizer.pad_id, ignored_ids=self.tokenizer.ignored_ids,
        )  # fmt: skip
        if (ids := len(self.tokenizer.vocabulary)) > (rows := self.network.vocabulary_size):
            raise ValueError(f"the tokenizer in {folder} has ids up to {ids - 1}, the network only {rows} embeddings")
        self.cache = VectorCache()
        self._stats = EncoderStats()
        self._network_lock = threading.Lock()
        self._stats_lock = threading.Lock()

    @property
    def stats(self) -> EncoderStats:
        """The counters now."""
        return self._stats

    def count(self, **increments: int) -> None:
        """Add to counters of `EncoderStats`."""
        with self._stats_lock:
            changed = {name: getattr(self._stats, name) + increment for name, increment in increments.items()}
            self._stats = dataclasses.replace(self._stats, **changed)

    @cached_property
    def fingerprint(self) -> str:
        """Says which model it is; see `checkpoint_fingerprint`."""
        return checkpoint_fingerprint(self.folder, self.tokenizer.vocabulary)

    @cached_property
    def executor(self) -> ThreadPoolExecutor:
        """Threads for asynchronous callers, apart from the event loop's own pool, which others need too."""
        return ThreadPoolExecutor(thread_name_prefix="m3-encoder")

    def encode(
        self, texts: Sequence[str], options: EncodeOptions, on_batch: Callable[[int], object] = lambda _: None
    ) -> tuple[M3Vectors, int]:
        """Give the vectors of texts, in their order, and how many of the texts were cut.

        Texts that the cache knows are taken from it; one that occurs twice is encoded once.

        Args:
            texts: Strings, instruction included.
            options: What is asked of them.
            on_batch: Called after every forward pass with its number of texts.

        Raises:
            UnicodeEncodeError: If a text is not valid Unicode.
        """
        keys = [cache_key(text, options.max_length, options.pooling) for text in texts]
        unique = dict(zip(keys, texts, strict=True))
        known = self.cache.get(unique, options.computed_modes) if options.cache_size_bytes else {}
        missing = [key for key in unique if key not in known]
        tokens = self.tokenizer(
            [unique[key] for key in missing], max_length=options.max_length, pooling=options.pooling
        )
        fresh = self._run(tokens, options, on_batch)
        cut = {key for key, entry in known.items() if entry.is_truncated}
        cut.update(key for key, text in zip(missing, tokens, strict=True) if text.is_truncated)
        if options.cache_size_bytes:
            self.cache.put(missing, fresh, cut)
        truncated = sum(key in cut for key in keys)
        self.count(cache_hits=len(known), truncated_texts=truncated)
        if len(missing) == len(keys):
            return fresh.select(options.modes), truncated
        stored = {key: entry.vectors.select(options.modes) for key, entry in known.items()}
        if not missing and keys:
            return M3Vectors.concatenate([stored[key] for key in keys]), truncated
        row = {key: i for i, key in enumerate((*known, *missing))}
        if not known:
            return fresh.select(options.modes).take(np.array([row[key] for key in keys], dtype=np.int64)), truncated
        vectors = M3Vectors.concatenate([*stored.values(), fresh.select(options.modes)])
        return vectors.take(np.array([row[key] for key in keys])), truncated

    def _run(self, texts: Sequence[Tokens], options: EncodeOptions, on_batch: Callable[[int], object]) -> M3Vectors:
        """Give the vectors of tokenized texts, in their order."""
        multi_vector = "multi_vector" in options.computed_modes
        budget = options.max_tokens_per_batch or (
            _TOKENS_PER_BATCH_ON_CPU if self.device.type == "cpu" else _TOKENS_PER_BATCH
        )
        collector = _Collector(self.network, texts, multi_vector=multi_vector)
        for batch in plan_batches([len(tokens) for tokens in texts], budget):
            chosen = [texts[i] for i in batch]
            with self._network_lock:
                output = self.network.launch(chosen, multi_vector=[multi_vector] * len(chosen)).wait()
            if not output.is_finite.all():
                raise FloatingPointError(
                    f"the network gave values that are not finite in {self.dtype}: load it with dtype='float32'"
                )
            self.count(forward_passes=1, encoded_texts=len(batch), encoded_tokens=sum(map(len, chosen)))
            collector.add(batch, output)
            on_batch(len(batch))
        return collector.finish(self.tokenizer.vocabulary)


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

    def add(self, batch: Sequence[int], output: BatchOutput) -> None:
        self._dense[batch] = output.dense
        if output.lexical is not None:
            self._lexical.append((batch, output.lexical))
        if self._multi_vector is not None and output.multi_vector is not None:
            for i, vectors in zip(batch, output.multi_vector, strict=True):
                self._multi_vector[i][:] = vectors

    def finish(self, vocabulary: Sequence[str]) -> M3Vectors:
        lexical = None
        if self._has_lexical:
            row: IntArray = np.empty(len(self._dense), dtype=np.int64)
            row[[i for batch, _ in self._lexical for i in batch]] = np.arange(len(row))
            parts = [rows for _, rows in self._lexical]
            lengths = np.concatenate([np.empty(0, np.int64), *(part.lengths for part in parts)])
            indices = np.concatenate([np.empty(0, np.int32), *(part.indices for part in parts)])
            values = np.concatenate([np.empty(0, np.float32), *(part.values for part in parts)])
            lexical = LexicalRows(offsets_of(lengths), indices, values, vocabulary).take(row)
        return M3Vectors(dense=self._dense, lexical=lexical, multi_vector=self._multi_vector)


_EngineKey = tuple[str, tuple[tuple[str, int, int], ...], str, torch.dtype]
_engines: WeakValueDictionary[_EngineKey, Engine] = WeakValueDictionary()
# One network at a time: while transformers loads one, torch's default dtype is that network's, for the whole process.
_loading_lock = threading.Lock()
_loading_process_ids: list[int] = []


def check_not_forked() -> None:
    """Raise RuntimeError in a process that was forked off one that has loaded a network, or was about to.

    The threads and locks of that process do not exist here, so that a forward pass might wait for ever.
    """
    if _loading_process_ids and os.getpid() not in _loading_process_ids:
        raise RuntimeError(
            f"process {_loading_process_ids[0]} loaded an encoder, and this process was forked off it; encoders do not "
            "work after a fork: start workers with multiprocessing's 'spawn' method (an encoder can be pickled), or "
            "load no encoder before the fork"
        )


def open_engine(folder: Path, device: torch.device, dtype: torch.dtype, *, shared: bool) -> Engine:
    """Load a network, or give the one that this process already holds for the same files, device and dtype.

    A network is dropped when the last handle that uses it has been closed or forgotten. A checkpoint whose files were
    rewritten in place counts as another one.

    Raises:
        RuntimeError: In a process forked off one that has loaded a network.
        ValueError: If the checkpoint is incomplete or damaged.
    """
    check_not_forked()
    _loading_process_ids[:] = [os.getpid()]
    key = (str(folder), _signature(folder), str(device), dtype)
    if shared and (held := _engines.get(key)) is not None:  # without waiting for another network's loading
        return held
    with _loading_lock:
        if not shared:
            return Engine(folder, device, dtype)
        held = _engines.get(key)
        if held is None:
            held = _engines[key] = Engine(folder, device, dtype)
        return held


def _signature(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Give names, sizes and times of the files that make the network; others may come and go."""
    files = [folder / "config.json", *folder.glob("tokenizer*"), *weight_files(folder), *head_files(folder)]
    return tuple((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(files) if path.is_file())
