"""`m3 serve` as a process: how it starts, and how it ends."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from m3_integrations import M3Encoder
from m3_integrations.cli import app
from m3_integrations.serve import Limits, create_app, listening, run_server
from m3_integrations.serve.running import make_server
from tests.engine.gate import Gate as Passes
from tests.langchain.test_imports import outcome
from tests.serve.conftest import serving, wait_until
from tests.serve.test_gate import encode, gauge, wait_for

pytestmark = pytest.mark.enable_socket

M3 = Path(sys.executable).parent / "m3"


@contextmanager
def command(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """Run `m3 serve`, and yield the process, its URL and its log so far."""
    environment = {**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1", "COLUMNS": "200", "NO_COLOR": "1"}
    process = subprocess.Popen(
        [str(M3), "serve", *arguments, "--port", "0", "--device", "cpu"],
        stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    assert process.stderr is not None
    log: list[str] = []
    try:
        for line in process.stderr:
            log.append(line)
            if found := re.search(r"running on (http://[\d.:]+)", line):
                break
        else:
            raise AssertionError("".join(log))
        reader = threading.Thread(target=log.extend, args=(process.stderr,), daemon=True)
        reader.start()
        yield process, found[1], log
        process.wait(60)
        reader.join(60)
    finally:
        process.kill()
        process.wait(60)
        process.stderr.close()


def test_sigterm_lets_what_is_under_way_end_and_tells_what_waits(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with (
        command("tiny", "--store", str(store), "--max-running", "1") as (process, url, log),
        ThreadPoolExecutor(2) as pool,
    ):
        records = {"records": [{"id": "a", "text": "water"}]}
        assert httpx.post(f"{url}/v1/records", json=records, timeout=60).status_code == 200
        long = [f"{'word ' * 400}{i}" for i in range(64)]
        first = pool.submit(encode, url, *long)
        wait_for(url, running=1, waiting=0)
        second = pool.submit(encode, url, "key " * 2000)
        wait_for(url, running=1, waiting=1)
        process.send_signal(signal.SIGTERM)
        assert second.result().status_code == 503  # had the first one ended by then, it would have got its turn
        assert second.result().headers["retry-after"] == "1"
        assert "this server is ending" in second.result().text
        assert first.result().status_code == 200
    assert process.returncode == 0, "".join(log)
    assert "Traceback" not in "".join(log)
    assert "word" not in "".join(log)
    lines = [line for line in log if "POST" in line or "GET" in line]
    assert len([line for line in lines if " POST /v1/encode " in line]) == 2


def test_an_app_that_ends_is_not_ready_and_takes_nothing(alone: M3Encoder) -> None:
    passes = Passes(alone)
    gate = create_app(alone, limits=Limits(max_running=1))
    with serving(gate) as url, ThreadPoolExecutor(2) as pool:
        first = pool.submit(encode, url, "water")
        wait_for(url, running=1, waiting=0)
        gate._is_ending = True  # as `end` in the loop's own thread
        assert httpx.get(f"{url}/ready").status_code == 503
        assert httpx.get(f"{url}/health").status_code == 200
        assert encode(url, "key").status_code == 503
        assert gauge(url, 'm3_refusals_total{status="503"}') == 2
        passes.open()
        assert first.result().status_code == 200


def test_what_does_not_end_in_time_is_given_up(alone: M3Encoder) -> None:
    passes = Passes(alone)
    server = make_server(create_app(alone), port=0, timeout_s=0.1)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(encode, url, "water")
        wait_for(url, running=1, waiting=0)
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()
        assert isinstance(first.exception(), httpx.HTTPError) or first.result().status_code >= 500
    passes.open()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "at 0.0.0.0 other machines could send requests without a key"),
        (["--api-key-file", "absent"], "No such file"),
        (["--collection", "x"], "name it with --store URL"),
        (["--calibration", "absent"], "name it with --store FOLDER_OR_URL"),
        (["--store", "absent", "--calibration", "absent.json"], "no calibration at absent.json"),
        (["--timeout-s", "0"], "timeout_s must be above 0"),
        (["--host", "nohost.invalid", "--without-key"], "cannot listen at nohost.invalid, port 8000"),
    ],
)
def test_the_command_refuses_what_is_wrong_before_it_loads_a_model(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("M3_API_KEYS", raising=False)
    result = CliRunner().invoke(app, ["serve", "no-such-model", *arguments])
    assert result.exit_code == 1
    assert message in result.output.replace("\n", " ")


def test_the_command_refuses_a_port_that_is_taken_in_one_line_before_it_loads_a_model() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        result = CliRunner().invoke(app, ["serve", "no-such-model", "--port", port])
    assert result.exit_code == 1
    assert re.fullmatch(
        rf"error: .*cannot listen at 127.0.0.1, port {port} \(Address already in use\): choose .*\n", result.output
    )


def test_a_server_that_is_later_at_a_port_ends_in_order_and_names_it(small: Path) -> None:
    """Both have bound it while they loaded their models; only one can listen."""
    with M3Encoder(small, device="cpu") as encoder, listening("127.0.0.1", 0) as first:
        port = first[0].getsockname()[1]
        with listening("127.0.0.1", port) as second:
            first[0].listen()
            with pytest.raises(OSError, match=rf"cannot listen at 127.0.0.1, port {port} \(Address already in use\)"):
                run_server(create_app(encoder), sockets=second)


def test_every_address_of_a_host_is_served_without_nagles_algorithm() -> None:
    with listening("localhost", 0) as sockets:
        hosts = {each.getsockname()[0] for each in sockets}
        assert hosts == {address[0] for *_, address in socket.getaddrinfo("localhost", 0, type=socket.SOCK_STREAM)}
        assert {each.proto for each in sockets} == {socket.IPPROTO_TCP}


def test_an_address_that_this_machine_does_not_have_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    here, absent = ("127.0.0.1", 0), ("192.0.2.1", 0)  # the second is reserved for documentation
    found = [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", each) for each in (absent, here, here)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with listening("both", 0) as sockets:
        assert [each.getsockname()[0] for each in sockets] == ["127.0.0.1"]
    del found[1:]
    with pytest.raises(OSError, match="cannot listen at both, port 0"), listening("both", 0):
        pass


def test_a_missing_package_is_named_with_the_command_that_installs_it() -> None:
    assert outcome("serve", "fastapi") == (
        "ImportError m3_integrations.serve needs fastapi, uvicorn and prometheus-client: "
        "pip install 'PATH_TO_THE_CLONE[serve]'"
    )
