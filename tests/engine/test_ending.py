"""Closed handles, networks that are shut down and processes that end: every request ends."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from m3_integrations import M3Encoder
from tests.engine.gate import WORDS, Gate
from tests.test_encoder import assert_same


def test_closing_a_handle_lets_its_calls_finish(alone: M3Encoder) -> None:
    expected = [alone.encode([word]) for word in WORDS]
    gate = Gate(alone)
    with ThreadPoolExecutor(len(WORDS)) as pool:
        answers = [pool.submit(alone.encode, [WORDS[0]])]
        gate.wait_for(waiting=0)
        answers += [pool.submit(alone.encode, [word]) for word in WORDS[1:]]
        gate.wait_for(waiting=len(WORDS) - 1)
        alone.close()
        with pytest.raises(RuntimeError, match="was closed"):
            alone.encode(["late"])
        gate.open()
        for answer, vectors in zip(answers, expected, strict=True):
            assert_same(answer.result(60), vectors)


def test_shutting_down_answers_everybody(alone: M3Encoder) -> None:
    gate = Gate(alone)
    with ThreadPoolExecutor(len(WORDS)) as pool:
        answers = [pool.submit(alone.encode, ["first"])]
        gate.wait_for(waiting=0)
        answers += [pool.submit(alone.encode, [word]) for word in WORDS[1:]]
        gate.wait_for(waiting=len(WORDS) - 1)
        threading.Timer(0.05, gate.open).start()
        gate.engine.scheduler.close()
    errors = [answer.exception() for answer in answers]
    assert errors.count(None) == 1, "only the request whose pass was running has no error"
    assert sum("shut down" in str(error) for error in errors) == len(WORDS) - 1
    with pytest.raises(RuntimeError, match="shut down"):
        alone.encode(["late"])


def test_a_process_that_ends_under_load_ends_cleanly(small: Path) -> None:
    code = f"""
import threading, time
from m3_integrations import M3Encoder
encoder = M3Encoder({str(small)!r}, shared=False, device="cpu", cache_size_bytes=0)
def work(text):
    while True:
        encoder.encode([text * 50] * 20)
for i in range(8):
    threading.Thread(target=work, args=(f"text {{i}} ",), daemon=True).start()
while encoder.stats.forward_passes < 20:
    time.sleep(0.01)
print("over")
"""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert (result.returncode, result.stdout) == (0, "over\n"), result.stderr
    assert "Fatal" not in result.stderr


def test_a_process_that_ends_with_an_error_amid_a_stream_ends_cleanly() -> None:
    """The handle is closed and garbage collected while its worker runs a pass."""
    code = """
import sys
from m3_integrations import M3Encoder
def use():
    with M3Encoder("tiny", shared=False, device="cpu") as encoder:
        for vectors in encoder.encode_batches([f"{'word ' * 60}{i}" for i in range(3000)], modes=("dense",)):
            raise OSError("the disk is full")
try:
    use()
except OSError:
    sys.exit(3)
"""
    for _ in range(3):  # with the fault about every second process aborted
        result = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code], check=False, capture_output=True, text=True, timeout=120
        )
        assert (result.returncode, "terminate" in result.stderr) == (3, False), result.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_forked_child_that_ends_does_not_wait_for_threads_it_has_not(small: Path) -> None:
    code = f"""
import os, sys
from m3_integrations import M3Encoder
encoder = M3Encoder({str(small)!r}, shared=False, device="cpu")
encoder.encode(["a"])
queue = encoder._live_engine().scheduler
with queue._changed:
    child = os.fork()
if child == 0:
    sys.exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert result.stdout.split()[-1] == "7", result.stderr
