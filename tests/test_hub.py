"""Checkpoints from the hub, tested against a loopback server with the few requests of the hub that are needed."""

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub.errors import OfflineModeIsEnabled

from m3_integrations import M3Encoder
from m3_integrations.checkpoint import find_checkpoint
from m3_integrations.checkpoint import hub as hub_module

UNNEEDED = ("onnx/model.onnx", "onnx/model.onnx_data", "imgs/bm25.jpg", "flax_model.msgpack", "README.md")
SHA = "c0ffee" + "0" * 34


class FakeHub(ThreadingHTTPServer):
    """Serves one repository, `lab/m3`, at revision `main` and remembers which files were fetched."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.fetched = folder, list[str]()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def log_message(self, format: str, *args: object) -> None: ...  # noqa: A002

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path, files = self.path.partition("?")[0], sorted(p for p in self.server.folder.rglob("*") if p.is_file())
        if path == "/api/models/lab/m3/revision/main":
            self._send(json.dumps({"id": "lab/m3", "sha": SHA, "siblings": []}).encode())
        elif path.startswith(f"/api/models/lab/m3/tree/{SHA}"):
            tree = [
                {
                    "type": "file",
                    "path": str(f.relative_to(self.server.folder)),
                    "size": f.stat().st_size,
                    "oid": hashlib.sha1(f.read_bytes()).hexdigest(),
                }
                for f in files
            ]
            self._send(json.dumps(tree).encode())
        elif path.startswith(f"/lab/m3/resolve/{SHA}/"):
            name = path.removeprefix(f"/lab/m3/resolve/{SHA}/")
            if self.command == "GET":
                self.server.fetched.append(name)
            self._send((self.server.folder / name).read_bytes())
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RevisionNotFound" if "/lab/m3/" in path else "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _send(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", SHA)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@pytest.fixture
def hub(small: Path, tmp_path: Path, socket_enabled: None) -> Iterator[FakeHub]:
    folder = Path(shutil.copytree(small, tmp_path / "repository"))
    for unneeded in UNNEEDED:
        (folder / unneeded).parent.mkdir(exist_ok=True)
        (folder / unneeded).write_bytes(b"large and not needed")
    server = FakeHub(folder)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def run(code: str, home: Path, endpoint: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run in a new process: huggingface_hub reads its settings at import."""
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", **environment}
    return subprocess.run(
        [sys.executable, "-c", f"from m3_integrations import M3Encoder\n{code}"],
        capture_output=True, text=True, check=False, env=os.environ | settings, timeout=300,
    )  # fmt: skip


ENCODE = "print(M3Encoder('lab/m3', shared=False, device='cpu').encode(['a text']).dense.tolist())"


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_only_needed_files_are_downloaded_once_and_then_offline_works(
    hub: FakeHub, small: Path, tmp_path: Path, weights: str
) -> None:
    if weights == "pytorch_model.bin":  # as BAAI/bge-m3 has it
        import torch
        from safetensors.torch import load_file

        torch.save(load_file(hub.folder / "model.safetensors"), hub.folder / "pytorch_model.bin")
        (hub.folder / "model.safetensors").unlink()
    online = run(ENCODE, tmp_path / "home", hub.url)
    assert online.returncode == 0, online.stderr
    np.testing.assert_allclose(
        json.loads(online.stdout), M3Encoder(small, device="cpu").encode(["a text"]).dense, atol=1e-6
    )
    offered = {str(path.relative_to(hub.folder)) for path in hub.folder.rglob("*") if path.is_file()}
    assert set(hub.fetched) == offered - set(UNNEEDED)
    hub.fetched.clear()
    again = run(ENCODE, tmp_path / "home", hub.url)
    assert (again.stdout, hub.fetched) == (online.stdout, [])
    offline = run(ENCODE, tmp_path / "home", hub.url, HF_HUB_OFFLINE="1")
    assert offline.stdout == online.stdout, offline.stderr


def test_an_unknown_repository_revision_or_an_empty_cache_offline_is_a_clear_error(
    hub: FakeHub, tmp_path: Path
) -> None:
    code = """
try:
    M3Encoder({!r}, shared=False, revision={!r})
except FileNotFoundError as error:
    print(error)
"""
    for model, revision, offline in (("lab/nothing", None, "0"), ("lab/m3", "v9", "0"), ("lab/m3", None, "1")):
        result = run(code.format(model, revision), tmp_path / "home", hub.url, HF_HUB_OFFLINE=offline)
        assert result.returncode == 0, result.stderr
        assert f"'{model}'" in result.stdout
        assert "hub did not return it" in result.stdout
        assert (f"at revision '{revision}'" in result.stdout) == (revision is not None)


def test_a_name_that_no_repository_can_have_is_a_clear_error() -> None:
    with pytest.raises(FileNotFoundError, match="is not a folder here"):
        find_checkpoint("not/a/repository")


@pytest.fixture
def silent(socket_enabled: None) -> Iterator[str]:
    """The address of a host that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=50) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.slow
def test_a_hub_that_does_not_answer_is_given_up_and_the_ways_out_are_named(
    hub: FakeHub, silent: str, tmp_path: Path
) -> None:
    limit = "from m3_integrations.checkpoint import hub; hub._HUB_TIMEOUT_S = 1.0\n"
    result = run(f"{limit}M3Encoder('lab/m3')", tmp_path / "home", silent)
    assert "FileNotFoundError" in result.stderr.splitlines()[-1], result.stderr
    assert "'small' and 'tiny' are in this package; or pass a folder with config.json" in result.stderr
    filled = run(ENCODE, tmp_path / "home", hub.url)
    assert run(limit + ENCODE, tmp_path / "home", silent).stdout == filled.stdout, "the cache is read"


@pytest.mark.parametrize(
    ("typed", "meant"), [("bge-m3", "BAAI/bge-m3"), ("Tiny", "tiny"), ("smal", "small"), ("baai/bge-m3", "BAAI/bge-m3")]
)
def test_a_name_that_is_nearly_right_is_answered_with_the_right_one(
    typed: str, meant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OfflineModeIsEnabled("offline")

    monkeypatch.setattr(hub_module, "download", refuse)
    with pytest.raises(FileNotFoundError, match=f"Did you mean '{meant}'"):
        find_checkpoint(typed)


@pytest.mark.hub
@pytest.mark.enable_socket
def test_the_real_checkpoint_gives_the_scores_of_its_model_card() -> None:
    """The expected values are from BGE-M3's model card. They were computed in float16, hence the tolerance."""
    queries = ("What is BGE M3?", "Defination of BM25")
    documents = (
        "BGE M3 is an embedding model supporting dense retrieval, lexical matching and multi-vector interaction.",
        "BM25 is a bag-of-words retrieval function that ranks a set of documents based on the query terms "  # noqa: ISC004
        "appearing in each document",
    )
    scores = M3Encoder("BAAI/bge-m3", shared=False).score_pairs([(q, d) for q in queries for d in documents])
    np.testing.assert_allclose(scores.dense, [0.6259765625, 0.347412109375, 0.349853515625, 0.67822265625], atol=2e-3)
    np.testing.assert_allclose(scores.lexical, [0.195556640625, 0.00879669, 0.0, 0.1802978515625], atol=2e-3)
    np.testing.assert_allclose(scores.multi_vector, [0.7796499729, 0.4621465802, 0.4523794651, 0.7898575068], atol=2e-3)
