"""`m3 serve`: an encoder, and a store, over HTTP."""

from __future__ import annotations

import logging
import signal
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from m3_integrations.cli.shared import Collection, Device, errors_in_one_line, open_place


@errors_in_one_line(stderr=True)
def serve(
    model: Annotated[str, typer.Argument(help="A checkpoint folder, or a repository such as BAAI/bge-m3.")],
    *,
    host: Annotated[str, typer.Option(help="The address to listen at; others than loopback need a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for one that is free.")] = 8000,
    store: Annotated[
        str | None, typer.Option(help="A folder, or the URL of a Qdrant server: adds search and records.")
    ] = None,
    collection: Collection = None,
    calibration: Annotated[
        Path | None, typer.Option(help="The file of m3 eval --calibrate; then searches may name min_probability.")
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(help="A file with API keys, one a line; or put them into M3_API_KEYS.")
    ] = None,
    without_key: Annotated[
        bool, typer.Option("--without-key", help="Serve other machines, and everybody on them, without a key.")
    ] = False,
    name: Annotated[str | None, typer.Option(help="The model's name; by default its repository or folder.")] = None,
    device: Device = "auto",
    dtype: Annotated[str, typer.Option(help="float32, float16, bfloat16, int8 or auto.")] = "auto",
    max_length: Annotated[int, typer.Option(min=3, help="The most tokens of a text.")] = 8192,
    max_texts: Annotated[int, typer.Option(min=1, help="The most texts of a request.")] = 2048,
    max_body_bytes: Annotated[int, typer.Option(min=1, help="The most bytes of a request.")] = 8 << 20,
    max_running: Annotated[
        int, typer.Option(min=1, help="Requests of up to 4 KB under way at a time; longer: 1/8.")
    ] = 64,
    max_waiting: Annotated[int, typer.Option(min=0, help="Further requests that wait; others get 429.")] = 256,
    timeout_s: Annotated[float, typer.Option(help="Seconds that a request may take; then it gets 504.")] = 60.0,
) -> None:
    """Serve a model, and a store if one is named, to every process and language over HTTP.

    POST /v1/embeddings works as OpenAI's, /rerank as Cohere's, Jina's and TEI's, and /v1/encode returns all three
    views. GET /docs describes all routes.
    """
    from m3_integrations.encoder import M3Encoder
    from m3_integrations.search import read_calibration
    from m3_integrations.serve import Limits, check_host, create_app, listening, read_keys, run_server

    keys = read_keys(api_key_file)
    check_host(host, has_keys=bool(keys), may_be_open=without_key)
    limits = Limits(
        max_body_bytes=max_body_bytes, max_texts=max_texts, max_running=max_running, max_waiting=max_waiting,
        timeout_s=timeout_s,
    )  # fmt: skip
    if store is None and collection is not None:
        raise ValueError("--collection is for a store on a server: name it with --store URL")
    if store is None and calibration is not None:
        raise ValueError("--calibration is for searches in a store: name it with --store FOLDER_OR_URL")
    known = None if calibration is None else read_calibration(calibration)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    # SIGTERM ends the command as `exit` does, so the store is closed. While serving, running requests end first.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with (
        listening(host, port) as sockets,  # first: to load a model takes seconds
        nullcontext() if store is None else open_place(store, collection=collection) as opened,
        M3Encoder(model, device=device, dtype=dtype, max_length=max_length) as encoder,
    ):
        app = create_app(
            encoder, store=opened, calibration=known, api_keys=keys, limits=limits, name=name,
            local_only=False if without_key else None,
        )  # fmt: skip
        run_server(app, host=host, port=port, timeout_s=timeout_s, sockets=sockets)
