"""A stream of texts: the device works on the next batch while the caller uses the last one."""

import os
import subprocess
import sys
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
    with M3Encoder.load(small, device="cpu", cache_size_bytes=0) as encoder:
        yield encoder


def wait_until(is_true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not is_true():
        assert time.monotonic() < end, "it never came to be"
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


def test_a_stream_that_is_dropped_leaves_the_queue(alone: M3Encoder) -> None:
    gate = Gate(alone, is_open=True)
    parts = alone.encode_batches(["the", "key", "to", "a", "bridge", "in"])
    next(parts)
    wait_until(lambda: len(gate.batches) == 2)
    parts.close()  # type: ignore[attr-defined]
    alone.encode(["it"])
    assert [len(batch) for batch in gate.batches] == [2, 2, 1]


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


def test_an_error_of_a_pass_ends_the_stream_with_nothing_left_in_the_queue(alone: M3Encoder) -> None:
    gate = Gate(alone, is_open=True)
    parts = alone.encode_batches(["the", "key", "to", "a", "bridge", "in"])
    next(parts)

    def fault(_: object) -> None:
        raise ValueError("poison")

    gate.fault = fault
    with pytest.raises(ValueError, match="poison"):
        list(parts)
    gate.fault = lambda _: None
    assert len(alone.encode(["it"])) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_a_stream_that_was_begun_before_a_fork_raises_and_never_hangs(small: Path) -> None:
    code = f"""
import os, signal
from m3_integrations import M3Encoder, encoder as module
from tests.engine.gate import Gate
module._WINDOW_TEXTS = 2
encoder = M3Encoder.load({str(small)!r}, device="cpu", cache_size_bytes=0)
gate = Gate(encoder, is_open=True)
parts = encoder.encode_batches(["the", "key", "to", "a"])
gate.fault = lambda _: gate._is_open.clear()  # the second batch stands at the gate
next(parts)
child = os.fork()
if child == 0:
    signal.alarm(20)
    try:
        next(parts)
    except RuntimeError as error:
        os._exit(7 if "fork" in str(error) else 8)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
gate.open()
print(status)
"""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert result.stdout.split()[-1] == "7", result.stderr
