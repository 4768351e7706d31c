"""After any fault every request gets its vectors or its own error, and the next request works."""

import asyncio
import logging
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from m3_integrations import M3Encoder
from m3_integrations.engine import Call
from m3_integrations.tokenizer import Tokens
from tests.engine.gate import WORDS, Gate
from tests.test_encoder import assert_same


def contains(encoder: M3Encoder, word: str) -> int:
    """Return the id of a word that is one token."""
    (token,) = encoder._live_engine().tokenizer([word], max_length=9)
    assert len(token) == 3
    return int(token.ids[1])


def ask_behind_the_gate(encoder: M3Encoder, gate: Gate, texts: Sequence[str]) -> list[object]:
    """Send each text from another thread while the gate is closed; return the vectors or the error of each."""

    def ask(text: str) -> object:
        try:
            return encoder.encode([text])
        except BaseException as error:
            return error

    with ThreadPoolExecutor(len(texts) + 1) as pool:
        first = pool.submit(ask, "first")
        gate.wait_for(waiting=0)
        answers = [pool.submit(ask, text) for text in texts]
        gate.wait_for(waiting=len(texts))
        gate.open()
        first.result(60)
        return [answer.result(60) for answer in answers]


def test_callers_share_a_pass(alone: M3Encoder) -> None:
    expected = [alone.encode([word]) for word in WORDS]
    gate = Gate(alone)
    answers = ask_behind_the_gate(alone, gate, WORDS)
    assert len(gate.batches) == 2, "one pass for the first text, one for all the others"
    for answer, vectors in zip(answers, expected, strict=True):
        assert_same(answer, vectors)  # type: ignore[arg-type]


def test_a_poisonous_text_fails_its_caller_alone_with_its_own_error(alone: M3Encoder) -> None:
    expected = [alone.encode([word]) for word in WORDS]
    poison = {contains(alone, "bridge"), contains(alone, "key")}

    def fault(batch: Sequence[Tokens]) -> None:
        for tokens in batch:
            if bad := poison & set(tokens.ids.tolist()):
                raise ValueError(f"token {bad}")

    answers = ask_behind_the_gate(alone, Gate(alone, fault), WORDS)
    for word, answer, vectors in zip(WORDS, answers, expected, strict=True):
        if word in {"bridge", "key"}:
            assert isinstance(answer, ValueError)
            assert str(answer) == f"token {{{contains(alone, word)}}}"
        else:
            assert_same(answer, vectors)  # type: ignore[arg-type]


def test_values_that_are_not_finite_fail_their_caller_alone(alone: M3Encoder) -> None:
    expected = alone.encode(["water"])
    embeddings = alone._live_engine().network.backbone.get_parameter("embeddings.word_embeddings.weight")
    with torch.no_grad():
        embeddings[contains(alone, "bridge")] = torch.inf
    gate = Gate(alone)
    bad, good = ask_behind_the_gate(alone, gate, ["bridge", "water"])
    assert isinstance(bad, FloatingPointError)
    assert_same(good, expected)  # type: ignore[arg-type]
    assert len(gate.batches) == 2, "both were in one pass"


def test_out_of_memory_makes_passes_smaller_and_everybody_is_answered(
    alone: M3Encoder, caplog: pytest.LogCaptureFixture
) -> None:
    texts = [f"{word} " * (5 + i % 20) for i, word in enumerate(WORDS * 12)]
    expected = alone.encode(texts)

    def fault(batch: Sequence[Tokens]) -> None:
        if sum(map(len, batch)) > 200:
            raise torch.OutOfMemoryError("CUDA out of memory")

    gate = Gate(alone, fault, is_open=True)
    with caplog.at_level(logging.INFO):
        assert_same(alone.encode(texts), expected)
        assert_same(alone.encode(texts), expected)
    assert 1 < alone._live_engine().scheduler.max_tokens <= 200
    assert max(len(batch) * max(batch) for batch in gate.batches[-10:]) <= 200
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1


@pytest.mark.parametrize(
    "message",
    [
        "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes",
        "MPS backend out of memory (MPS allocated: 18.0 GB, other allocations: 1 GB, max allowed: 18.1 GB)",
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ],
)
def test_out_of_memory_is_known_under_its_other_names(alone: M3Encoder, message: str) -> None:
    texts = ["bread " * 20] * 8
    expected = alone.encode(texts[:1])

    def fault(batch: Sequence[Tokens]) -> None:
        if len(batch) > 2:
            raise RuntimeError(message)

    Gate(alone, fault, is_open=True)
    vectors = alone.encode([f"{text}{i}" for i, text in enumerate(texts)] + texts[:1])
    assert_same(vectors[-1:], expected)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError("no room")])
def test_a_text_too_large_for_the_memory_fails_its_caller_alone(alone: M3Encoder, error: Exception) -> None:
    expected = alone.encode(["water"])

    def fault(batch: Sequence[Tokens]) -> None:
        if max(map(len, batch)) > 50:
            raise error

    gate = Gate(alone, fault)
    long, short = ask_behind_the_gate(alone, gate, ["bread " * 100, "water"])
    assert long is error
    assert_same(short, expected)  # type: ignore[arg-type]
    assert alone._live_engine().scheduler.max_tokens > 1, "a failed pass of one text must not make others smaller"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("killer", [SystemExit("killed"), KeyboardInterrupt("killed")])
def test_a_dying_worker_answers_everybody_and_the_next_call_works(alone: M3Encoder, killer: BaseException) -> None:
    expected = alone.encode(["water"])
    dying = list(alone._live_engine().scheduler.threads)
    gate = Gate(alone)

    def fault(batch: Sequence[Tokens]) -> None:
        if len(gate.batches) == 2:
            raise killer

    gate.fault = fault
    answers = ask_behind_the_gate(alone, gate, ["bread", "stone", *["long river " * 20] * 8])
    for thread in dying:  # the answers come first; a thread that ends later would fail the next test
        thread.join(60)
    for answer in answers:
        assert isinstance(answer, RuntimeError)
        assert "worker thread ended" in str(answer)
        assert answer.__cause__ is killer
    assert len({id(answer) for answer in answers}) == len(answers), "every request has its own error object"
    assert_same(alone.encode(["water"]), expected)


def test_an_error_in_a_callers_progress_fails_that_caller_alone(alone: M3Encoder) -> None:
    call = Call(alone._live_engine(), *alone._prepared(["bread"], "document", None, None))

    def broken(_: int) -> None:
        raise BrokenPipeError("the terminal went away")

    call.start()
    with pytest.raises(BrokenPipeError, match="went away"):
        call.wait(broken)
    assert len(alone.encode(["water"])) == 1


async def test_many_tasks_share_passes_and_hold_no_threads(alone: M3Encoder) -> None:
    texts = [f"{word} {i}" for i, word in enumerate(WORDS * 20)]
    expected = alone.encode(texts)
    gate = Gate(alone)
    first = asyncio.create_task(alone.aencode(["first"]))
    await asyncio.to_thread(gate.wait_for, waiting=0)
    tasks = [asyncio.create_task(alone.aencode([text])) for text in texts]
    await asyncio.to_thread(gate.wait_for, waiting=len(texts))  # more of them than there are threads for
    gate.open()
    answers = await asyncio.gather(first, *tasks)
    for i, answer in enumerate(answers[1:]):
        assert_same(answer, expected[i : i + 1])
    assert len(gate.batches) <= 4


async def test_a_short_call_does_not_wait_for_a_thread_behind_long_ones(alone: M3Encoder) -> None:
    executor = alone._live_engine().executor
    may_end = threading.Event()
    occupied = [executor.submit(may_end.wait, 60) for _ in range(executor._max_workers)]
    many = [f"bread {i}" for i in range(30)]
    long = asyncio.create_task(alone.aencode(many))
    assert_same(await asyncio.wait_for(alone.aencode(["water"]), 60), alone.encode(["water"]))
    assert not long.done()
    may_end.set()
    assert_same(await long, alone.encode(many))
    assert all(job.result() for job in occupied)


async def test_a_cancelled_task_costs_nobody_else(alone: M3Encoder) -> None:
    expected = alone.encode(["water"])
    gate = Gate(alone)
    first = asyncio.create_task(alone.aencode(["first"]))
    await asyncio.to_thread(gate.wait_for, waiting=0)
    doomed = [asyncio.create_task(alone.aencode(["bread " * 50] * 40)) for _ in range(3)]
    kept = asyncio.create_task(alone.aencode(["water"]))
    await asyncio.to_thread(gate.wait_for, waiting=4)
    for task in (first, *doomed):  # one in the pass that runs, the others in the queue
        task.cancel()
    for task in (first, *doomed):
        with pytest.raises(asyncio.CancelledError):
            await task
    gate.open()
    assert_same(await kept, expected)
    assert sum(len(batch) for batch in gate.batches) == 2, "the cancelled texts were never encoded"


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers on this platform")
def test_an_interrupted_caller_leaves_nothing_in_the_queue(alone: M3Encoder) -> None:
    gate = Gate(alone)
    blocker = threading.Thread(target=alone.encode, args=(["first"],))
    blocker.start()
    gate.wait_for(waiting=0)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(KeyboardInterrupt):
            alone.encode(["bread " * 50] * 40)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    gate.open()
    blocker.join(60)
    alone.encode(["water"])
    assert sum(len(batch) for batch in gate.batches) == 2


def test_two_devices_work_off_one_queue(small: Path) -> None:
    texts = [f"{word} {i} " * 9 for i, word in enumerate(WORDS * 40)]
    expected = M3Encoder(small, device="cpu", cache_size_bytes=0).encode(texts)
    encoder = M3Encoder(small, shared=False, device="cpu, cpu", cache_size_bytes=0)
    assert encoder.device == "cpu,cpu"
    names: set[str] = set()
    gate = Gate(encoder, lambda _: names.add(threading.current_thread().name), is_open=True)
    assert_same(encoder.encode(texts), expected)
    assert names == {"m3-encoder-pass-0", "m3-encoder-pass-1"}
    assert encoder.stats.forward_passes == len(gate.batches) > 4
    assert encoder.stats.encoded_texts == len(texts)


def test_an_unknown_device_among_several_is_refused(small: Path) -> None:
    with pytest.raises(ValueError, match="device 'warp' cannot be used"):
        M3Encoder(small, shared=False, device="cpu,warp")


@pytest.mark.gpu
def test_a_gpu_and_a_cpu_share_no_queue(small: Path) -> None:
    with pytest.raises(ValueError, match=r"of one kind, .* got 'cuda,cpu'"):
        M3Encoder(small, shared=False, device="cuda,cpu")


def test_dense_vectors_of_shared_passes_do_not_mix(alone: M3Encoder) -> None:
    """Every caller asks for other modes, and gets only those, with its own texts' values."""
    gate = Gate(alone)
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(alone.encode, ["first"])
        gate.wait_for(waiting=0)
        dense = pool.submit(alone.encode, ["bread"], modes=["dense"])
        every = pool.submit(alone.encode, ["the", "the key"])
        gate.wait_for(waiting=2)
        gate.open()
        first.result(60)
    assert len(gate.batches) == 2
    assert dense.result().modes == ("dense",)
    np.testing.assert_array_equal(every.result().multi_vector.lengths, [2, 3])
    assert_same(every.result(), alone.encode(["the", "the key"]))
    np.testing.assert_allclose(dense.result().dense, alone.encode(["bread"]).dense, atol=1e-5)
