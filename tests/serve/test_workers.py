"""A web server of several processes over one `m3 serve`: the model is loaded once, by the server alone."""

import os
import re
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.serve.conftest import wait_until
from tests.serve.test_ending import command

SERVICE = """
import os, sys
from contextlib import asynccontextmanager
from fastapi import FastAPI
from m3_integrations import RemoteEncoder, open_store
from m3_integrations.langchain import M3HybridRetriever

@asynccontextmanager
async def lifespan(app):
    with open_store() as store:
        app.state.retriever = M3HybridRetriever(encoder=RemoteEncoder(os.environ["SERVED_AT"]), store=store)
        texts = ["the drill is left", "the oven cools", "reserve a loom"]
        await app.state.retriever.aadd_texts(texts, ids=["0", "1", "2"])
        yield

app = FastAPI(lifespan=lifespan)

@app.get("/")
async def search(question: str) -> dict[str, str | int | bool]:
    (document,) = await app.state.retriever.ainvoke(question, k=1)
    return {"id": document.id, "process": os.getpid(), "has_torch": "torch" in sys.modules}
"""


@pytest.mark.slow
@pytest.mark.enable_socket
def test_four_workers_over_one_server_load_no_model_and_answer_right(tmp_path: Path) -> None:
    (tmp_path / "service.py").write_text(SERVICE)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with command("tiny") as (process, url, _):
        workers = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "service:app", "--workers", "4", "--port", str(port)],
            cwd=tmp_path, env={**os.environ, "SERVED_AT": url}, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            wait_until(lambda: answers(port))
            asked = ["is the drill left?", "when does the oven cool?", "may I reserve a loom?"]

            def ask(n: int) -> tuple[bool, int, bool]:
                question = f"{asked[n % 3]} ({n})"
                found = httpx.get(f"http://127.0.0.1:{port}/", params={"question": question}, timeout=60).json()
                return found["id"] == str(n % 3), found["process"], found["has_torch"]

            with ThreadPoolExecutor(16) as pool:
                answered = list(pool.map(ask, range(200)))
        finally:
            workers.terminate()
            workers.wait(60)
        assert all(is_right for is_right, _, _ in answered)
        assert len({worker for _, worker, _ in answered}) > 1
        assert not any(has_torch for _, _, has_torch in answered)
        figures = httpx.get(f"{url}/metrics", timeout=60).text
        encoded = re.search(r"^m3_encoder_encoded_texts_total (\d+)", figures, re.MULTILINE)
        assert encoded is not None
        # 200 questions and the one to wait by; the documents at most once for each worker, where two begin together
        assert 204 <= int(encoded[1]) <= 213
        process.terminate()


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/", params={"question": "anyone?"}, timeout=60).status_code == 200
    except httpx.TransportError:
        return False
