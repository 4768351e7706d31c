"""Opening a store behind `m3 serve`: by URL, by the command line, with a key, in another process, for reading."""

import os
import pickle
import socket
import subprocess
import sys
import threading
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from m3_integrations import M3Encoder, Searcher, open_store
from m3_integrations.cli import app
from m3_integrations.serve import create_app
from m3_integrations.store import served
from m3_integrations.store.edge import EdgeStore
from m3_integrations.store.memory import MemoryStore
from m3_integrations.store.served import ServedStore, is_m3_serve, is_silent
from tests.fakes import FakeEncoder
from tests.serve.conftest import serving, serving_store
from tests.store.oracle import add, records, vectors

pytestmark = pytest.mark.enable_socket


def test_the_command_line_fills_and_searches_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "keys.txt").write_text("Rotate the keys once a year.")
    (tmp_path / "docs" / "museum.txt").write_text("The museum is closed on Mondays.")
    monkeypatch.setenv("QDRANT_API_KEY", "another server's")
    run = CliRunner().invoke
    with (
        EdgeStore(tmp_path / "s") as folder,
        M3Encoder("tiny", device="cpu") as encoder,
        serving(create_app(encoder, store=folder, api_keys=["k"])) as url,
    ):
        index = ["index", str(tmp_path / "docs"), "--store", url, "--model", "tiny", "--device", "cpu"]
        assert "does not accept the API key" in run(app, index).output
        monkeypatch.setenv("M3_API_KEY", "k")
        for said in ("2 added", "2 unchanged"):
            done = run(app, index)
            assert (done.exit_code, said in done.output) == (0, True), done.output
        found = run(app, ["search", url, "when is the museum closed?", "--k", "1", "--device", "cpu", "--json"])
        assert "closed on Mondays" in found.output
        assert folder.count() == 2


def test_a_key_is_needed_where_there_are_some() -> None:
    with serving_store(MemoryStore(), api_keys=["secret"]) as url:
        for key in (None, "wrong"):
            with pytest.raises(PermissionError, match="does not accept the API key"):
                open_store(url, api_key=key)
        with open_store(url, api_key="secret", timeout_s=5) as store:
            assert store.count() == 0
            assert "secret" not in repr(store)
            with pickle.loads(pickle.dumps(store)) as twin:
                assert twin.count() == 0


def test_a_pickle_works_in_another_process_and_a_fork_too(random: np.random.Generator) -> None:
    with serving_store(MemoryStore()) as url, open_store(url) as store:
        add(store, records(random, ["a"]))
        program = (
            "import os, pickle, sys\n"
            "store = pickle.load(sys.stdin.buffer); assert store.count() == 1\n"
            "child = os.fork()\n"
            "if child == 0: os._exit(0 if store.count() == 1 else 3)\n"
            "assert os.waitpid(child, 0)[1] == 0; assert store.count() == 1\n"
        )
        command = [sys.executable, "-W", "ignore:.*fork:DeprecationWarning", "-c", program]
        subprocess.run(command, input=pickle.dumps(store), check=True, timeout=60)


def test_the_store_of_another_model_is_refused(encoder: M3Encoder) -> None:
    with serving(create_app(encoder, store=open_store())) as url, open_store(url) as store:
        assert store.fingerprint == encoder.fingerprint
        with pytest.raises(ValueError, match=f"of the model {encoder.fingerprint}, not of fa4e"):
            Searcher(FakeEncoder(), store).search("a")


def test_a_server_without_a_store_says_how_to_start_one(encoder: M3Encoder) -> None:
    with serving(create_app(encoder)) as url:
        assert is_m3_serve(url)
        with pytest.raises(ValueError, match="m3 serve without a store: start it with m3 serve MODEL --store FOLDER"):
            open_store(url)


def test_an_open_store_says_so_too_if_its_server_was_started_again_without_one(encoder: M3Encoder) -> None:
    with serving_store(MemoryStore()) as url:
        store = open_store(url)
        assert isinstance(store, ServedStore)
    with serving(create_app(encoder)) as url, closing(ServedStore.__new__(ServedStore)) as again:
        again.__setstate__(store.__getstate__() | {"url": url})  # the same store at the port of the new server
        for call in (again.count, again.flush, lambda: again.delete(["a"]), again.page):
            with pytest.raises(ValueError, match="is an m3 serve without a store: start it with"):
                call()
    store.close()


def test_settings_that_it_does_not_have_are_refused_by_name() -> None:
    with serving_store(MemoryStore()) as url:
        with pytest.raises(TypeError, match="behind m3 serve has no setting multi_vector, token_pooling: leave it out"):
            open_store(url, multi_vector="none", token_pooling=2)
        with pytest.raises(TypeError, match="behind m3 serve has no setting collection, prefer_grpc"):
            open_store(url, collection="c", prefer_grpc=False)


def test_where_nothing_answers_the_error_names_both_servers_that_may_be_meant() -> None:
    assert not is_m3_serve("http://127.0.0.1:9")
    with pytest.raises(ConnectionError, match=r"no Qdrant server answers .* No m3 serve answers .* either: start it"):
        open_store("http://127.0.0.1:9", timeout_s=2)
    assert not is_silent("http://127.0.0.1:9?x=1")  # Qdrant takes URLs that an m3 serve cannot have


def test_a_server_that_is_silent_is_not_called_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "_PROBE_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(
            TimeoutError, match=r"accepts connections, but .* unknown whether it is an m3 serve"
        ) as said:
            open_store(url, timeout_s=1)
        assert "no Qdrant server" not in str(said.value)


def test_a_server_that_was_too_busy_for_the_first_question_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([False, True])
    monkeypatch.setattr(served, "is_m3_serve", lambda _: next(answers))
    with serving_store(MemoryStore()) as url, open_store(url, timeout_s=1) as store:
        assert isinstance(store, ServedStore)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b'{"title": "qdrant - vector search engine"}'),
        (200, b"<html>"),
        (404, b""),
        (401, b"Must provide an API key or an Authorization bearer token"),
        (404, b'{"status": {"error": "Not found"}}'),
        (403, b'{"error": "no"}'),
    ],
)
def test_another_server_is_told_apart(status: int, body: bytes) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert "Authorization" not in self.headers
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        assert not is_m3_serve(f"http://127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_folder_that_may_only_be_read_is_searched_and_not_changed(
    tmp_path: Path, random: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, may = tmp_path / "r", os.access
    with EdgeStore(place) as store:
        add(store, records(random, ["a", "b"]))
    monkeypatch.setattr(os, "access", lambda path, mode, **given: path != place and may(path, mode, **given))
    with EdgeStore(place) as inner, serving_store(inner) as url, open_store(url) as store:
        assert len(store.candidates(vectors(random, 1), {"dense": 5})["dense"].ids) == 2
        for change in (lambda: add(store, records(random, ["c"])), lambda: store.delete(["a"]), store.optimize):
            with pytest.raises(PermissionError, match="opened for reading"):
                change()
        assert store.count() == 2
