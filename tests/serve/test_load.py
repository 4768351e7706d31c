"""Many connections with right and wrong requests at once, and SIGTERM in the middle."""

import sys

import pytest

from tests.benchmarks.load_serve import main


@pytest.mark.slow
@pytest.mark.enable_socket
@pytest.mark.skipif(sys.platform != "linux", reason="reads the server's memory from /proc")
def test_under_load_no_answer_is_wrong_and_none_is_lost(capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["--seconds", "20"])
    assert status == 0, capsys.readouterr().out
