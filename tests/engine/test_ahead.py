"""A stream of texts: the device encodes the next batch while the caller uses the last one."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from m3_integrations import M3Encoder
from tests.engine.gate import Gate
from tests.test_encoder import assert_same


@pytest.fixture
def alone(small: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[M3Encoder]:
    monkeypatch.setattr("m3_integrations.encoder._WINDOW_TEXTS", 2)
    with M3Encoder(small, shared=False, device="cpu", cache_size_bytes=0) as encoder:
        yield encoder


def wait_until(is_true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not is_true():
        assert time.monotonic() < end, "the condition did not become true"
        time.sleep(0.001)


def test_the_next_batch_is_encoded_while_the_caller_uses_the_last(alone: M3Encoder) -> None:
    texts = ["the", "key", "to", "a", "bridge", "in"]
    expected = alone.encode(texts)
    before = alone.stats.encoded_texts
    parts = alone.encode_batches(texts)
    assert_same(next(parts), expected[:2])
    wait_until(lambda: alone.stats.encoded_texts == before + 4)
    assert_same(next(parts), expected[2:4])
    assert_same(next(parts), expected[4:])
    assert next(parts, None) is None


def test_a_stream_that_is_dropped_encodes_no_more_than_it_had_begun(alone: M3Encoder) -> None:
    gate = Gate(alone, is_open=True)
    parts = alone.encode_batches(["the", "key", "to", "a", "bridge", "in"])
    next(parts)
    wait_until(lambda: sum(map(len, gate.batches)) == 4)  # in two passes, or in one if the worker came late
    parts.close()  # type: ignore[attr-defined]
    alone.encode(["it"])
    assert sum(map(len, gate.batches)) == 5


def test_an_error_of_the_source_comes_after_the_batches_before_it(alone: M3Encoder) -> None:
    def source() -> Iterator[str]:
        yield from ("the", "key", "to")
        raise OSError("the disk is gone")

    parts = alone.encode_batches(source())
    assert len(next(parts)) == 2
    with pytest.raises(OSError, match="disk is gone"):
        next(parts)
    gate = Gate(alone, is_open=True)
    alone.encode(["it"])
    assert [len(batch) for batch in gate.batches] == [1], "nothing was left in the queue"


def test_an_error_of_a_pass_ends_the_stream_with_nothing_left_in_the_queue(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("m3_integrations.encoder._WINDOW_TEXTS", 2)
    alone = M3Encoder(small, shared=False, device="cpu", cache_size_bytes=0)
    alone._live_engine().scheduler.max_tokens = 1
    has_ended, n_passes = threading.Event(), 0

    def fault(_: object) -> None:
        nonlocal n_passes
        n_passes += 1
        if n_passes == 1:
            raise ValueError("poison")
        assert has_ended.wait(60)

    gate = Gate(alone, fault)

    def open_it() -> None:
        gate.wait_for(waiting=2)  # the first text stands at the gate, and both parts have others waiting
        gate.open()

    opener = threading.Thread(target=open_it)
    opener.start()
    with pytest.raises(ValueError, match="poison"):
        next(alone.encode_batches(["the", "key", "to", "a"]))
    has_ended.set()
    opener.join()
    alone.encode(["it"])
    assert n_passes == 3, "the failed pass, one of the next part that was queued already, and the last"
