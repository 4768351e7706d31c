"""Keys, limits, time limits, clients that go away, the log and the metrics."""

import logging
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from m3_integrations import M3Encoder
from m3_integrations.serve import Limits, check_host, create_app, read_keys
from tests.engine.gate import Gate as Passes
from tests.serve.conftest import serving, wait_until

pytestmark = pytest.mark.enable_socket


def encode(url: str, *texts: str) -> httpx.Response:
    return httpx.post(f"{url}/v1/encode", json={"texts": texts, "modes": ["dense"]}, timeout=60)


def gauge(url: str, name: str) -> float:
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(f"{name} "))


def wait_for(url: str, *, running: int, waiting: int) -> None:
    wait_until(lambda: (gauge(url, "m3_requests_running"), gauge(url, "m3_requests_waiting")) == (running, waiting))


def test_a_request_needs_one_of_the_keys(served: M3Encoder) -> None:
    with serving(create_app(served, api_keys=["first-key", "second-key"])) as url:
        headers: list[tuple[dict[str, str], int]] = [
            ({}, 401),
            ({"Authorization": "Bearer first"}, 401),
            ({"Authorization": "Bearer"}, 401),
            ({"Authorization": "first-key"}, 401),
            ({"Authorization": "Basic first-key"}, 401),
            ({"Authorization": "Bearer first-key"}, 200),
            ({"authorization": "bearer second-key"}, 200),
        ]
        for sent, status in headers:
            for path in ("/v1/encoder", "/v1/models", "/metrics", "/v1/vocabulary"):
                assert httpx.get(url + path, headers=sent).status_code == status, (sent, path)
        refused = httpx.post(f"{url}/v1/encode", json={"texts": ["a"]})
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        assert refused.json()["error"]["type"] == "authentication_error"
        assert httpx.get(f"{url}/health").json() == {"status": "ok"}
        assert httpx.get(f"{url}/ready").json() == {"status": "ready"}


def test_without_keys_only_this_machines_own_names_are_answered(served: M3Encoder) -> None:
    with serving(create_app(served)) as url, serving(create_app(served, local_only=False)) as open_url:
        for host, status in (
            ("localhost", 200),
            ("LOCALHOST:8000", 200),
            ("me.localhost", 200),
            ("127.0.0.1:8000", 200),
            ("[::1]:8000", 200),
            ("10.0.0.7", 200),
            ("evil.example", 403),
            ("evil.example:8000", 403),
            ("localhost.evil.example", 403),
            ("127.0.0.1.evil.example", 403),
        ):
            for path in ("/v1/encoder", "/health", "/docs"):
                assert httpx.get(url + path, headers={"Host": host}).status_code == status, (host, path)
            assert httpx.get(f"{open_url}/v1/encoder", headers={"Host": host}).status_code == 200
    with serving(create_app(served, api_keys=["key"])) as url:
        headers = {"Host": "proxy.example", "Authorization": "Bearer key"}
        assert httpx.get(f"{url}/v1/encoder", headers=headers).status_code == 200


def test_keys_come_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("M3_API_KEYS", raising=False)
    assert read_keys() == ()
    monkeypatch.setenv("M3_API_KEYS", "one, two")
    assert read_keys() == ("one", "two")
    file = tmp_path / "keys"
    file.write_text("# of the web servers\nthree\n\n four \n")
    assert read_keys(file) == ("three", "four")
    for empty in ("", "# none\n"):
        file.write_text(empty)
        with pytest.raises(ValueError, match="has no API key"):
            read_keys(file)
    monkeypatch.setenv("M3_API_KEYS", " ")
    with pytest.raises(ValueError, match="M3_API_KEYS has no API key"):
        read_keys()
    file.write_text("fine\nwith blank\n")
    with pytest.raises(ValueError, match=r"^API key number 2 must be printable ASCII without blanks$"):
        read_keys(file)


def test_only_loopback_is_served_without_a_key() -> None:
    for host in ("127.0.0.1", "::1", "localhost", "127.8.8.8"):
        check_host(host, has_keys=False)
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org", ""):
        with pytest.raises(ValueError, match=r"--api-key-file.*M3_API_KEYS.*--without-key"):
            check_host(host, has_keys=False)
        check_host(host, has_keys=True)
        check_host(host, has_keys=False, may_be_open=True)


def test_too_large_a_body_is_refused_with_and_without_its_length(served: M3Encoder) -> None:
    with serving(create_app(served, limits=Limits(max_body_bytes=2_000_000))) as url:
        large = b'{"texts": ["' + b"a" * 7_000_000 + b'"]}'
        headers = {"content-type": "application/json"}
        for content in (large, iter([large[:1_000_000], large[1_000_000:]])):  # the second is sent in chunks
            answer = httpx.post(f"{url}/v1/encode", content=content, headers=headers)
            assert answer.status_code == 413
            assert "2000000 bytes" in answer.json()["error"]["message"]
        assert encode(url, "a" * 90_000).status_code == 200
        assert encode(url, "a").status_code == 200


def test_a_client_that_sends_all_before_it_reads_sees_its_refusal(served: M3Encoder) -> None:
    with serving(create_app(served, api_keys=["a-key"])) as url:
        address = httpx.URL(url)
        with socket.create_connection((address.host, address.port or 0), timeout=30) as connection:
            connection.sendall(b"POST /v1/encode HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20000000\r\n\r\n")
            for _ in range(20):
                connection.sendall(b"a" * 1_000_000)
            assert connection.recv(100).startswith(b"HTTP/1.1 401")


def test_too_many_texts_or_tokens_are_refused(served: M3Encoder) -> None:
    with serving(create_app(served, limits=Limits(max_texts=3, max_tokens=200))) as url:
        asked: list[tuple[str, dict[str, Any], int]] = [
            ("/v1/encode", {"texts": ["a"] * 3}, 200),
            ("/v1/encode", {"texts": ["a"] * 4}, 422),
            ("/v1/encode", {"texts": ["a" * 150] * 2}, 413),
            ("/v1/tokenize", {"texts": ["a"] * 4}, 422),
            ("/v1/score_pairs", {"pairs": [["a", "b"]] * 4}, 422),
            ("/v1/embeddings", {"model": "small", "input": ["a"] * 4}, 422),
            ("/rerank", {"query": "a", "documents": ["a"] * 4}, 422),
        ]
        for path, body, status in asked:
            assert httpx.post(url + path, json=body).status_code == status, path
        assert "may hold at most 3 texts, got 4" in httpx.post(f"{url}/v1/encode", json={"texts": ["a"] * 4}).text


def test_what_comes_when_too_much_waits_is_told_when_to_ask_again(alone: M3Encoder) -> None:
    passes = Passes(alone)
    limits = Limits(max_running=1, max_waiting=1)
    with serving(create_app(alone, limits=limits)) as url, ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(encode, url, "water")]
        wait_for(url, running=1, waiting=0)
        answers.append(pool.submit(encode, url, "key"))
        wait_for(url, running=1, waiting=1)
        refused = encode(url, "bridge")
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert httpx.get(f"{url}/ready").status_code == 200
        assert gauge(url, "m3_oldest_request_seconds") > 0
        passes.open()
        assert [answer.result().status_code for answer in answers] == [200, 200]
        wait_for(url, running=0, waiting=0)


def test_a_short_request_does_not_wait_behind_long_ones(alone: M3Encoder) -> None:
    passes = Passes(alone)
    limits, long = Limits(max_running=1, max_waiting=1), "water " * 1000
    with serving(create_app(alone, limits=limits)) as url, ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(encode, url, long)]
        wait_for(url, running=1, waiting=0)
        answers.append(pool.submit(encode, url, long + "key"))
        wait_for(url, running=1, waiting=1)
        assert encode(url, long + "bridge").status_code == 429
        answers.append(pool.submit(encode, url, "key"))
        wait_for(url, running=2, waiting=1)
        passes.open()
        assert [answer.result().status_code for answer in answers] == [200, 200, 200]


def test_a_request_that_takes_too_long_leaves_the_queue(alone: M3Encoder) -> None:
    passes = Passes(alone)
    with serving(create_app(alone, limits=Limits(timeout_s=0.3))) as url, ThreadPoolExecutor(2) as pool:
        first = pool.submit(encode, url, "water")
        passes.wait_for(waiting=0)
        second = pool.submit(encode, url, "key")
        passes.wait_for(waiting=1)
        for answer in (first, second):
            assert answer.result().status_code == 504
            assert "no answer within 0.3 s" in answer.result().json()["error"]["message"]
        assert passes._n_waiting() == 0
        passes.open()
        assert encode(url, "bridge").status_code == 200
    assert sum(map(len, passes.batches)) == 2, "the second text was never encoded"


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/v1/encode", {"texts": ["key"]}),
        ("/v1/score_pairs", {"pairs": [["key", "bridge"]]}),
        ("/v1/embeddings", {"model": "small", "input": "key"}),
        ("/rerank", {"query": "key", "documents": ["bridge"]}),
    ],
)
def test_a_client_that_goes_away_takes_its_work_along(path: str, asked: dict[str, Any], alone: M3Encoder) -> None:
    passes = Passes(alone)
    with serving(create_app(alone)) as url, ThreadPoolExecutor(1) as pool:
        first = pool.submit(encode, url, "water")
        passes.wait_for(waiting=0)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(url + path, json=asked, timeout=0.3)
        wait_for(url, running=1, waiting=0)
        assert passes._n_waiting() == 0
        passes.open()
        assert first.result().status_code == 200
        assert gauge(url, f'm3_requests_total{{path="{path}",status="499"}}') == 1
    assert sum(map(len, passes.batches)) == 1


def test_a_client_that_goes_away_while_it_waits_gives_its_place_to_the_next(alone: M3Encoder) -> None:
    passes = Passes(alone)
    with serving(create_app(alone, limits=Limits(max_running=1))) as url, ThreadPoolExecutor(2) as pool:
        first = pool.submit(encode, url, "water")
        wait_for(url, running=1, waiting=0)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/v1/encode", json={"texts": ["key"]}, timeout=0.3)
        last = pool.submit(encode, url, "bridge")
        wait_for(url, running=1, waiting=1)
        passes.open()
        assert (first.result().status_code, last.result().status_code) == (200, 200)


def test_a_body_that_never_ends_is_given_up(served: M3Encoder) -> None:
    with serving(create_app(served, limits=Limits(timeout_s=0.3))) as url:
        address = httpx.URL(url)
        with socket.create_connection((address.host, address.port or 0), timeout=30) as connection:
            connection.sendall(b"POST /v1/encode HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{")
            assert connection.recv(100).startswith(b"HTTP/1.1 408")
        with socket.create_connection((address.host, address.port or 0), timeout=30) as connection:
            connection.sendall(b"POST /v1/encode HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{")
        wait_until(lambda: gauge(url, 'm3_requests_total{path="/v1/encode",status="499"}') == 1)


def test_a_request_is_one_line_in_the_log_without_its_texts(
    served: M3Encoder, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "m3_integrations.serve")
    with serving(create_app(served)) as url:
        assert encode(url, "a secret").status_code == 200
        assert httpx.get(f"{url}/a-secret?q=secret").status_code == 404
        assert httpx.post(f"{url}/v1/encode", json={"texts": ["a secret"], "kind": "secret"}).status_code == 422
    lines = [record.getMessage() for record in caplog.records if record.name == "m3_integrations.serve"]
    assert [line.split(" ")[:3] for line in lines] == [
        ["POST", "/v1/encode", "200"],
        ["GET", "other", "404"],
        ["POST", "/v1/encode", "422"],
    ]
    assert "secret" not in caplog.text


def test_a_failure_shows_neither_its_trace_nor_a_text(alone: M3Encoder, caplog: pytest.LogCaptureFixture) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("a secret")

    passes = Passes(alone, fail, is_open=True)
    with serving(create_app(alone)) as url:
        answer = encode(url, "a secret")
        assert answer.status_code == 500
        assert answer.json()["error"] == {
            "message": "the server failed: its log names the place in the code", "type": "server_error", "code": 500,
        }  # fmt: skip
    assert passes.batches
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("m3_integrations.serve")]
    assert any("failed with RuntimeError" in line and "encoding.py" in line for line in ours)
    assert not any("a secret" in line for line in ours)


def test_the_metrics_count_requests_refusals_and_what_the_network_did(served: M3Encoder) -> None:
    with serving(create_app(served)) as url:
        before = served.stats
        assert encode(url, "water", "key").status_code == 200
        assert encode(url, *["a"] * 3000).status_code == 422
        assert gauge(url, "m3_encoder_encoded_texts_total") == before.encoded_texts + 2
        assert gauge(url, 'm3_requests_total{path="/v1/encode",status="200"}') == 1
        assert gauge(url, 'm3_refusals_total{status="422"}') == 1
        assert gauge(url, 'm3_request_seconds_count{path="/v1/encode"}') == 2


@pytest.mark.parametrize("wrong", [{"max_texts": 0}, {"timeout_s": float("nan")}, {"max_waiting": -1}])
def test_limits_must_be_above_nothing(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be above 0"):
        Limits(**wrong)


def test_one_string_is_not_many_keys(served: M3Encoder) -> None:
    with pytest.raises(TypeError, match=r"pass \[key\]"):
        create_app(served, api_keys="secret")
