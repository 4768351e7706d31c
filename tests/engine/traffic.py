"""Callers of every kind at once, with random faults, and a check of every answer."""

from __future__ import annotations

import asyncio
import copy
import itertools
import random
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from m3_integrations import M3Encoder, M3Vectors
from m3_integrations.tokenizer import Tokens
from m3_integrations.vectors import MODES, Mode
from tests.engine.gate import Gate
from tests.test_encoder import assert_same

POISON = "bridge"
TEXTS = [f"{word} {i} " * (1 + i % 7) for i, word in enumerate(("stone", "water", "key", "the", "letter", "it") * 12)]


class Faults:
    """Raises in random passes, and in some certain ones; a text with the poison fails every pass that it is in.

    Args:
        seed: The seed of the random numbers.
        poison: The token id that fails a pass.
    """

    def __init__(self, seed: int, poison: int) -> None:
        self._chance, self._poison = random.Random(seed), poison
        self._n_large_passes, self._n_passes = itertools.count(), itertools.count(1)
        self.n_raised: Counter[str] = Counter()

    def __call__(self, batch: Sequence[Tokens]) -> None:
        if any(self._poison in tokens.ids for tokens in batch):
            raise ValueError("poison")
        # The first large pass always fails: after a lack of memory passes are small, and large ones may be few.
        if sum(map(len, batch)) > 300 and (self._happens(0.05) or next(self._n_large_passes) == 0):
            self.n_raised["out of memory"] += 1
            raise torch.OutOfMemoryError("injected: out of memory")
        if self._happens(0.01) or next(self._n_passes) % 200 == 0:
            self.n_raised["killed"] += 1
            raise SystemExit("injected: killed")

    def _happens(self, probability: float) -> bool:
        return self._chance.random() < probability


@dataclass
class Tally:
    """Counts of the callers' outcomes, and a list of wrong answers."""

    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    most_passes_waited: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class Caller:
    """One thread's requests, each checked.

    Args:
        encoder: The shared network; no cache.
        expected: The vectors of `TEXTS`, encoded beforehand.
        gate: Counts the passes.
        tally: Counts the outcomes.
        seed: The seed of the random numbers.
        tolerance: The largest allowed difference from an expected number.
    """

    def __init__(
        self, encoder: M3Encoder, expected: M3Vectors, gate: Gate, tally: Tally, *, seed: int, tolerance: float
    ) -> None:
        self._encoder, self._expected, self._gate, self._tally = encoder, expected, gate, tally
        self._tolerance = tolerance
        self._chance = random.Random(seed)

    def run(self, n_requests: int) -> None:
        kinds = [self._ask, self._ask, self._ask, self._ask_many, self._ask_poison, self._ask_wrong_type]
        kinds += [self._ask_half_a_character, self._ask_closed, self._ask_in_a_task, self._ask_in_a_task]
        for _ in range(n_requests):
            kind = self._chance.choice(kinds)
            before = len(self._gate.batches)
            try:
                outcome = kind()
            except BaseException as error:  # no caller may get any other error
                with self._tally.lock:
                    self._tally.wrong.append(f"{kind.__name__}: {error!r}")
                return
            with self._tally.lock:
                self._tally.outcomes[outcome] += 1
                if kind == self._ask:
                    waited = len(self._gate.batches) - before
                    self._tally.most_passes_waited = max(self._tally.most_passes_waited, waited)

    def _ask(self) -> str:
        return self._check([self._chance.randrange(len(TEXTS))], self._encoder.encode)

    def _ask_many(self) -> str:
        return self._check(self._chance.choices(range(len(TEXTS)), k=self._chance.randint(5, 60)), self._encoder.encode)

    def _check(self, rows: list[int], encode: Callable[..., M3Vectors]) -> str:
        modes: Sequence[Mode] = self._chance.choice([MODES, ("dense",), ("dense", "lexical")])
        try:
            vectors = encode([TEXTS[i] for i in rows], modes=modes)
        except RuntimeError as error:
            return _killed(error)
        for row, i in enumerate(rows):
            assert_same(vectors[row : row + 1], self._expected[i : i + 1].select(modes), self._tolerance)
        return "right vectors"

    def _ask_poison(self) -> str:
        texts = [*self._chance.choices(TEXTS, k=self._chance.randint(0, 3)), POISON]
        try:
            self._encoder.encode(texts)
        except ValueError as error:
            return _own_error(error, "poison")
        except RuntimeError as error:
            return _killed(error)
        raise AssertionError("poison was encoded")

    def _ask_wrong_type(self) -> str:
        try:
            self._encoder.encode(["fine", None])  # type: ignore[list-item]
        except TypeError as error:
            return _own_error(error, "at position 1")
        raise AssertionError("None was encoded")

    def _ask_half_a_character(self) -> str:
        try:
            self._encoder.encode(["fine", "\ud800"])
        except ValueError as error:
            return _own_error(error, "at position 1 is not valid Unicode")
        raise AssertionError("half a character was encoded")

    def _ask_closed(self) -> str:
        """Another thread closes this caller's handle meanwhile: it gets its vectors, or a closed handle's error."""
        handle = copy.copy(self._encoder)
        closing = threading.Thread(target=handle.close)
        closing.start()
        try:
            return self._check([self._chance.randrange(len(TEXTS))], handle.encode)
        except RuntimeError as error:
            _own_error(error, "was closed")
            return "closed"
        finally:
            closing.join()

    def _ask_in_a_task(self) -> str:
        row = self._chance.randrange(len(TEXTS))
        patience_s = self._chance.choice([0.0, 0.001, 0.01, 60.0])
        try:
            vectors = asyncio.run(_with_patience(self._encoder, TEXTS[row], patience_s))
        except TimeoutError:
            return "cancelled"
        except RuntimeError as error:
            return _killed(error)
        assert_same(vectors, self._expected[row : row + 1], self._tolerance)
        return "right vectors"


async def _with_patience(encoder: M3Encoder, text: str, patience_s: float) -> M3Vectors:
    return await asyncio.wait_for(encoder.aencode([text]), patience_s)


def _own_error(error: Exception, message: str) -> str:
    if message not in str(error):
        raise error
    return "its own error"


def _killed(error: RuntimeError) -> str:
    if "worker thread ended" not in str(error):
        raise error
    return "its worker was killed"


def run_traffic(
    encoder: M3Encoder, *, n_threads: int, n_requests: int, seed: int, tolerance: float = 1e-5
) -> tuple[Tally, Faults, Gate]:
    """Send n_requests from each of n_threads, all at once, and check every answer; the encoder must have no cache."""
    expected = encoder.encode(TEXTS)
    (poison,) = encoder._live_engine().tokenizer([POISON], max_length=9)
    faults, tally = Faults(seed, int(poison.ids[1])), Tally()
    gate = Gate(encoder, faults, is_open=True)
    callers = [
        Caller(encoder, expected, gate, tally, seed=seed * 100_003 + i, tolerance=tolerance) for i in range(n_threads)
    ]
    # Daemons: a thread that blocks without end must not stop the test from failing.
    threads = [threading.Thread(target=caller.run, args=(n_requests,), daemon=True) for caller in callers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
        assert not thread.is_alive(), "a caller has not returned"
    return tally, faults, gate
