"""A network on one or more devices with what its handles share, and one call of `encode` on it."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from m3_integrations.checkpoint import files_stamp, load_tokenizer
from m3_integrations.engine.cache import VectorCache, cache_key
from m3_integrations.engine.queue import Request, Scheduler
from m3_integrations.engine.worker import start_worker
from m3_integrations.fingerprint import checkpoint_fingerprint
from m3_integrations.model import M3Network
from m3_integrations.model.prepacked import has_amx
from m3_integrations.tokenizer import Pooling
from m3_integrations.vectors import M3Vectors, Mode

# On a CPU small passes are faster: a feed-forward layer's activations stay near the cache. On a GPU large ones are.
_TOKENS_PER_PASS_ON_CPU: Final = 1024
_TOKENS_PER_PASS: Final = 16_384

_SHORT_CHARACTERS: Final = 640
"""Asynchronous calls up to this size are tokenized and finished in the event loop, which takes 0.2 to 0.5 ms."""

_CHARACTERS_PER_TEXT: Final = 64
"""Added to the size of a call for every text: the cost of a text of any length."""


@dataclass(frozen=True, slots=True)
class EncoderStats:
    """Counters of a network since it was loaded, for all its handles together.

    Attributes:
        forward_passes: Batches that went through the network.
        encoded_texts: Texts in these batches.
        encoded_tokens: Their tokens, without padding.
        cache_hits: Texts whose vectors came from the cache.
        truncated_texts: Texts of calls that were longer than their limit; those from the cache count too.
    """

    forward_passes: int = 0
    encoded_texts: int = 0
    encoded_tokens: int = 0
    cache_hits: int = 0
    truncated_texts: int = 0


@dataclass(frozen=True, slots=True)
class EncodeOptions:
    """The options of one call.

    Attributes:
        modes: The modes to return.
        computed_modes: The modes to compute and to cache, `modes` among them.
        max_length: The most tokens of a text, no more than the network has positions for.
        pooling: How the dense vector is made.
        is_cached: Whether vectors are read from the cache and written to it.
    """

    modes: tuple[Mode, ...]
    computed_modes: tuple[Mode, ...]
    max_length: int
    pooling: Pooling
    is_cached: bool


class Engine:
    """A network with its tokenizer, its cache, and the queue from which the devices take every caller's texts.

    Args:
        folder: The checkpoint.
        devices: Each of them gets a copy of the network and a worker.
        dtype: The dtype that the network computes in.

    Attributes:
        network: The network on the first device.

    Raises:
        ValueError: If the checkpoint is incomplete or damaged, or its tokenizer has more ids than the network.
    """

    def __init__(self, folder: Path, devices: tuple[torch.device, ...], dtype: torch.dtype) -> None:
        self.folder, self.devices, self.dtype = folder, devices, dtype
        self._stamp = files_stamp(folder)
        self.tokenizer = load_tokenizer(folder)
        pad_id, ignored_ids = self.tokenizer.pad_id, self.tokenizer.ignored_ids
        self.networks = [
            M3Network.load(folder, device=device, dtype=dtype, pad_id=pad_id, ignored_ids=ignored_ids)
            for device in devices
        ]
        self.network = self.networks[0]
        if (ids := len(self.tokenizer.vocabulary)) > (rows := self.network.vocabulary_size):
            raise ValueError(
                f"the tokenizer in {folder} has {ids} tokens, but the network has only {rows} embeddings: take both "
                "from one checkpoint"
            )
        self.cache = VectorCache()
        self.counters = _Counters()
        self.process_id = os.getpid()
        is_on_cpu = devices[0].type == "cpu"
        self.scheduler = Scheduler(
            _tokens_per_pass(devices[0], dtype),
            is_packed=self.network.is_packed,
            n_workers=len(devices),
            # It must not refer to the engine: a running worker would then keep a network without handles.
            start_worker=partial(start_worker, is_pipelined=not is_on_cpu, count=self.counters.add),
        )
        weakref.finalize(self, self.scheduler.close)

    @cached_property
    def fingerprint(self) -> str:
        """The result of `checkpoint_fingerprint`. Reading the files takes seconds, so it waits until it is asked for.

        Raises:
            RuntimeError: If the files were changed since the network was loaded.
        """
        changed = RuntimeError(
            f"the files of {self.folder} were changed after this encoder was opened, so the fingerprint of its network "
            "is unknown: open the encoder again"
        )
        if files_stamp(self.folder) != self._stamp:
            raise changed
        try:
            found = checkpoint_fingerprint(self.folder, self.tokenizer.vocabulary)
        except (OSError, ValueError) as error:
            if files_stamp(self.folder) != self._stamp:
                raise changed from error
            raise
        if files_stamp(self.folder) != self._stamp:  # meanwhile
            raise changed
        return found

    @cached_property
    def executor(self) -> ThreadPoolExecutor:
        """Threads for asynchronous callers. The event loop's own pool is left to the rest of the program."""
        return ThreadPoolExecutor(thread_name_prefix="m3-encoder")


def _tokens_per_pass(device: torch.device, dtype: torch.dtype) -> int:
    """Return the most tokens of a pass. With AMX bfloat16 takes a quarter of float32's time, so callers wait less."""
    if device.type != "cpu":
        return _TOKENS_PER_PASS
    return _TOKENS_PER_PASS_ON_CPU * (2 if dtype == torch.bfloat16 and has_amx() else 1)


class _Counters:
    """`EncoderStats` that any thread may add to."""

    def __init__(self) -> None:
        self.stats = EncoderStats()
        self._lock = threading.Lock()

    def add(self, **increments: int) -> None:
        with self._lock:
            changed = {name: getattr(self.stats, name) + increment for name, increment in increments.items()}
            self.stats = dataclasses.replace(self.stats, **changed)


class Call:
    """One call of `encode` in three steps: the constructor tokenizes, `start` queues, `finish` returns the vectors.

    Texts that are in the cache are taken from it; a text that occurs twice is encoded once. The call refers to the
    network, so it works even if the handle is closed meanwhile.

    Args:
        engine: Its network, cache and queue are used.
        texts: Strings, instruction included.
        options: The options of the call.
    """

    def __init__(self, engine: Engine, texts: Sequence[str], options: EncodeOptions) -> None:
        self._engine, self._options = engine, options
        self._keys = [cache_key(text, options.max_length, options.pooling) for text in texts]
        unique = dict(zip(self._keys, texts, strict=True))
        self._known = engine.cache.get(unique, options.computed_modes) if options.is_cached else {}
        self._missing = [key for key in unique if key not in self._known]
        self._tokens = engine.tokenizer(
            [unique[key] for key in self._missing], max_length=options.max_length, pooling=options.pooling
        )
        self._request = Request(self._tokens, engine.networks, multi_vector="multi_vector" in options.computed_modes)

    def start(self) -> Future[None]:
        """Queue the texts that are not in the cache; the future ends when all are encoded, or with the error."""
        if self._missing:
            self._engine.scheduler.add(self._request)
        else:
            self._request.end()
        return self._request.future

    def wait(self, on_pass: Callable[[int], object] | None = None) -> None:
        """Wait until all texts are encoded, or raise the error. If the caller is interrupted, the call is cancelled.

        Args:
            on_pass: Called after every forward pass with the number of this call's texts in it. It runs in the caller's
                thread, so that a blocking terminal does not delay other callers.
        """
        try:
            while (n := self._request.finished_texts.get()) is not None:
                if on_pass is not None:
                    on_pass(n)
            self._request.future.result()
        except BaseException:
            self.cancel()
            raise

    def cancel(self) -> None:
        """Remove the texts that are not encoded yet from the queue; the call then has no results.

        The request is dropped: an error in its future refers to this call by its traceback. The cycle would keep the
        network in memory until the garbage collector runs.
        """
        request = self.__dict__.pop("_request", None)
        if request is not None:
            request.future.cancel()

    def finish(self) -> tuple[M3Vectors, NDArray[np.bool_]]:
        """Return the vectors of the call's texts in their order, and (n,) bool, whether each text was cut."""
        engine, options, known = self._engine, self._options, self._known
        fresh = self._request.vectors(engine.tokenizer.vocabulary)
        cut = {key for key, entry in known.items() if entry.is_truncated}
        cut.update(key for key, text in zip(self._missing, self._tokens, strict=True) if text.is_truncated)
        if options.is_cached:
            engine.cache.put(self._missing, fresh, cut)
        is_cut = np.array([key in cut for key in self._keys], dtype=bool)
        hits = sum(key in known for key in self._keys)
        if hits or cut:
            engine.counters.add(cache_hits=hits, truncated_texts=int(is_cut.sum()))
        wanted = fresh.select(options.modes)
        if len(self._missing) == len(self._keys):
            return wanted, is_cut
        row = {key: i for i, key in enumerate((*known, *self._missing))}
        stored = [entry.vectors.select(options.modes) for entry in known.values()]
        together = M3Vectors.concatenate([*stored, wanted] if self._missing else stored)
        return together.take(np.array([row[key] for key in self._keys], dtype=np.int64)), is_cut


def encode_ahead(
    calls: Iterable[Call], on_pass: Callable[[int], object] | None = None
) -> Iterator[tuple[M3Vectors, NDArray[np.bool_]]]:
    """Yield the results of one call after another; the next call is in the queue before a result is yielded.

    So the device works while the next texts are read and tokenized, and while the caller uses a result. An error in
    reading or tokenizing is raised after the results of the calls before it.
    """
    upcoming = iter(calls)
    current = next(upcoming, None)
    following: Call | None = None
    try:
        if current is not None:
            current.start()
        while current is not None:
            following, problem = None, None
            try:
                following = next(upcoming, None)  # while the device works
                if following is not None:
                    following.start()
            except Exception as error:  # raised below, after the current call's result
                problem = error
            current.wait(on_pass)
            yield current.finish()
            if problem is not None:
                raise problem
            current = following
    finally:
        for call in (current, following):
            if call is not None:
                call.cancel()


async def aencode(engine: Engine, texts: Sequence[str], options: EncodeOptions) -> tuple[M3Vectors, NDArray[np.bool_]]:
    """Make, start and finish a call without a thread that waits. If the task is cancelled, so is the call.

    A short call is tokenized and finished in the event loop: that takes less time than a thread, where it could also
    wait behind other callers' long texts.
    """
    loop = asyncio.get_running_loop()
    is_short = sum(len(text) + _CHARACTERS_PER_TEXT for text in texts) <= _SHORT_CHARACTERS
    call = (
        Call(engine, texts, options)
        if is_short
        else await loop.run_in_executor(engine.executor, Call, engine, texts, options)
    )
    try:
        await asyncio.wrap_future(call.start())
    except BaseException:
        call.cancel()
        del call, engine  # a failed task keeps the error, whose traceback keeps this frame: it would keep the network
        raise
    return call.finish() if is_short else await loop.run_in_executor(engine.executor, call.finish)
