"""A network on one or more devices, with what all its handles share."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Final

import torch

from m3_integrations.cache import VectorCache
from m3_integrations.checkpoint import load_tokenizer
from m3_integrations.engine.call import Call, EncodeOptions
from m3_integrations.engine.scheduler import Scheduler
from m3_integrations.engine.worker import Answers, start_worker
from m3_integrations.fingerprint import checkpoint_fingerprint
from m3_integrations.model import M3Network
from m3_integrations.vectors import M3Vectors

# A small working set is faster on a CPU (a feed-forward layer's activations stay near the cache), a large one on a GPU.
_TOKENS_PER_BATCH_ON_CPU: Final = 1024
_TOKENS_PER_BATCH: Final = 16_384

_SHUT_DOWN_TIMEOUT_S: Final = 30.0
"""How long the end of the process waits for a forward pass."""


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


class Engine:
    """A network with its tokenizer, its cache, and the queue through which every caller's texts reach the devices.

    Args:
        folder: The checkpoint.
        devices: Where the network lives; a copy, and a worker, on each of them.
        dtype: Its weights' type.

    Raises:
        ValueError: If the checkpoint is incomplete or damaged.
    """

    def __init__(self, folder: Path, devices: tuple[torch.device, ...], dtype: torch.dtype) -> None:
        self.folder, self.devices, self.dtype = folder, devices, dtype
        self.tokenizer = load_tokenizer(folder)
        self.networks = [
            M3Network.load(
                folder, device=device, dtype=dtype, pad_id=self.tokenizer.pad_id, ignored_ids=self.tokenizer.ignored_ids
            )
            for device in devices
        ]
        if (ids := len(self.tokenizer.vocabulary)) > (rows := self.network.vocabulary_size):
            raise ValueError(f"the tokenizer in {folder} has ids up to {ids - 1}, the network only {rows} embeddings")
        self.cache = VectorCache()
        self._stats = EncoderStats()
        self._stats_lock = threading.Lock()
        self._process_id = os.getpid()
        self._threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
        is_on_cpu = devices[0].type == "cpu"
        self.scheduler: Scheduler[Answers] = Scheduler(
            _TOKENS_PER_BATCH_ON_CPU if is_on_cpu else _TOKENS_PER_BATCH,
            is_packed=self.network.is_packed,
            n_workers=len(devices),
            # It must not hold the engine, which would then never go.
            start_worker=partial(_start_worker, self._threads, is_pipelined=not is_on_cpu),
        )
        weakref.finalize(self, self.scheduler.close)

    @property
    def network(self) -> M3Network:
        """The network on the first device."""
        return self.networks[0]

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
        """Give the vectors of texts, in their order, and how many of the texts were cut; see `Call`."""
        call = Call(self, texts, options, on_batch)
        call.start()
        call.wait()
        return call.finish()

    def encode_ahead(
        self, requests: Iterable[tuple[Sequence[str], EncodeOptions]], on_batch: Callable[[int], object]
    ) -> Iterator[tuple[M3Vectors, int]]:
        """Do what `encode` does for one request after another, each in the queue before the last one's are taken.

        So the device works while the next texts are read and tokenized, and while the caller uses what it was given. An
        error in reading or tokenizing comes after the vectors of the requests before.
        """
        upcoming = iter(requests)
        current = self._next_call(upcoming, on_batch)
        following: Call | None = None
        try:
            if current is not None:
                current.start()
            while current is not None:
                following, problem = None, None
                try:
                    following = self._next_call(upcoming, on_batch)  # while the device works
                    if following is not None:
                        following.start()
                except Exception as error:  # raised below, in its turn
                    problem = error
                current.wait()
                yield current.finish()
                if problem is not None:
                    raise problem
                current = following
        finally:
            for call in (current, following):
                if call is not None:
                    call.cancel()

    def _next_call(
        self, requests: Iterator[tuple[Sequence[str], EncodeOptions]], on_batch: Callable[[int], object]
    ) -> Call | None:
        request = next(requests, None)
        return None if request is None else Call(self, *request, on_batch)

    async def aencode(self, texts: Sequence[str], options: EncodeOptions) -> tuple[M3Vectors, int]:
        """Do what `encode` does; no thread waits meanwhile. A task that is cancelled leaves the queue."""
        loop = asyncio.get_running_loop()
        call = await loop.run_in_executor(self.executor, Call, self, texts, options, lambda _: None)
        await asyncio.wrap_future(call.start())
        return await loop.run_in_executor(self.executor, call.finish)

    def shut_down(self) -> None:
        """Give every waiting request an error, and wait for the passes that are running."""
        if os.getpid() == self._process_id:
            self.scheduler.close()
            for thread in list(self._threads):
                thread.join(_SHUT_DOWN_TIMEOUT_S)


def _start_worker(
    threads: weakref.WeakSet[threading.Thread], scheduler: Scheduler[Answers], number: int, *, is_pipelined: bool
) -> None:
    threads.add(start_worker(scheduler, number, is_pipelined=is_pipelined))
