"""Shared parts of several commands: options, errors as one line, opening stores and models, printing explanations."""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console
from rich.markup import escape as escape_markup

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

    from m3_integrations.encoder import M3Encoder
    from m3_integrations.remote import RemoteEncoder
    from m3_integrations.search import Explanation
    from m3_integrations.store import Store

Model = Annotated[
    str | None,
    typer.Option(help="A checkpoint folder, a repository such as BAAI/bge-m3, or m3 serve's URL; small if none."),
]
ModelOfStore = Annotated[
    str | None,
    typer.Option(
        help="A checkpoint folder, a repository such as BAAI/bge-m3, or m3 serve's URL; if none, the one in this "
        "package that the store is of, small for a new store."
    ),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, ... or auto.")]
Collection = Annotated[
    str | None, typer.Option(help="The collection, on a Qdrant server; its key is in QDRANT_API_KEY.")
]


@contextmanager
def errors_in_one_line(*, stderr: bool = False, after_interrupt: str = "") -> Iterator[None]:
    """End with status 1 and one line for an error that a user can cause. Other errors keep their traceback.

    Ctrl-C ends with status 130, as in shells. If the reader of a pipe ends (`| head`), the status is 141, without a
    message. Warnings for users take one line too, on standard error.

    Args:
        stderr: Whether the line is printed to standard error.
        after_interrupt: The message after Ctrl-C.
    """
    try:
        with _warnings_in_one_line():
            yield
        sys.stdout.flush()  # otherwise a broken pipe would raise later, outside of this block
    except typer.Exit:  # a RuntimeError, which is handled below
        raise
    except BrokenPipeError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes stdout again at exit
        raise typer.Exit(141) from error
    except KeyboardInterrupt as error:
        Console(stderr=True).print(f"interrupted. {after_interrupt}".rstrip(), highlight=False, soft_wrap=True)
        raise typer.Exit(130) from error
    except (ImportError, OSError, ValueError, RuntimeError) as error:
        Console(stderr=stderr).print(f"[red]error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Print warnings that are for users as one line each, without the line of code that gave them."""
    usual = warnings.formatwarning

    def formatted(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> str:
        if category is not UserWarning:
            return usual(message, category, *where, **more)
        return f"warning: {' '.join(str(message).split())}\n".translate(_CONTROLS)

    warnings.formatwarning = formatted
    try:
        yield
    finally:
        warnings.formatwarning = usual


class PipedConsole(Console):
    """A console that raises BrokenPipeError if its reader ends; rich alone would exit with status 1."""

    def on_broken_pipe(self) -> None:
        """Raise BrokenPipeError, which `errors_in_one_line` handles."""
        raise BrokenPipeError


_CONTROLS: Final = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
"""Characters that a terminal takes as commands, each with a visible replacement, such as \\x1b for ESC."""


def escape(text: str) -> str:
    """Return a text for rich to print: without markup, and without commands to the terminal."""
    return escape_markup(text.translate(_CONTROLS))


def counted(n: int, things: str) -> str:
    """Return a number with the files, links or records that it counts: "1 .js file", "2 files without text"."""
    one = re.sub(r"(?<![.])\b(file|link|record)s\b", r"\1", things, count=1)
    return f"{n:,} {one if n == 1 else things}"


def urls_of(where: str) -> list[str]:
    """Return the URLs in a comma-separated list; a place that is not a URL is returned alone, even with commas."""
    return [url.strip() for url in where.split(",")] if where.lower().startswith(("http://", "https://")) else [where]


def folder_of(where: str) -> Path | None:
    """Return the folder of a store, or None if it is on a server.

    Raises:
        ValueError: For the reasons of `open_store`, or if the store would be in memory.
    """
    from m3_integrations.store import is_url

    if where.lower() == ":memory:":
        raise ValueError("a store in memory ends with the command: name a folder")
    places = urls_of(where)
    if len(places) > 1 and not all(is_url(place) for place in places):
        raise ValueError(f"several places must be the URLs of one cluster, got {where!r}")
    return None if is_url(places[0]) else Path(os.path.expanduser(where))  # noqa: PTH111 - leaves unknown users to the store


def is_new(where: str) -> bool:
    """Return whether opening a store would make its folder, or use an empty one."""
    from m3_integrations.store.switching import is_half_switched

    folder = folder_of(where)
    if folder is None or is_half_switched(folder):
        return False
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))


def open_place(where: str, *, collection: str | None, **settings: Any) -> Store:
    """Open the store that a command names.

    The key of a server is in the environment: in M3_API_KEY for an `m3 serve`, in QDRANT_API_KEY for Qdrant.

    Raises:
        ValueError: If a collection is named for a folder, or a setting for an `m3 serve`, whose store has its own.
            Further errors are those of `open_store`.
    """
    from m3_integrations.store import open_store

    folder = folder_of(where)
    if folder is None:
        from m3_integrations.store.served import is_m3_serve

        urls = urls_of(where)
        is_ours = len(urls) == 1 and is_m3_serve(urls[0])
        given = {"collection": collection, **settings}
        if is_ours and (own := [name for name, value in given.items() if value is not None]):
            option = f"--{own[0].replace('_', '-')}"
            raise ValueError(f"{where} is an m3 serve, whose store has its own settings: leave {option} out")
        key = os.environ.get("M3_API_KEY" if is_ours else "QDRANT_API_KEY")
        return open_store(urls, api_key=key, collection=collection, **settings)
    if collection is not None:
        raise ValueError(f"--collection is for a server, and {where} is a folder: leave it out")
    return open_store(folder, **settings)


@contextmanager
def open_place_and_model(
    where: str,
    model: str | None,
    *,
    device: str,
    collection: str | None,
    check: Callable[[M3Encoder | RemoteEncoder], object] | None = None,
    **settings: Any,
) -> Iterator[tuple[Store, M3Encoder | RemoteEncoder]]:
    """Open the store and the encoder that a command names, and close the store at the end.

    Args:
        where: The place of the store.
        model: The model; None for the one of the store.
        device: The device of a checkpoint.
        collection: The collection on a Qdrant server.
        check: Called with the encoder before a new store is made; an error that it raises is raised without a store.
        settings: The settings of a new store.

    Raises:
        ValueError: For the reasons of `open_place`, `open_model` and `open_model_of`.
    """
    # A new store is made after the model was loaded: a mistyped model must not make one.
    encoder = None if model is None and not is_new(where) else open_model(model, device=device)
    if check is not None and encoder is not None:
        check(encoder)
    with open_place(where, collection=collection, **settings) as store:
        yield store, encoder or open_model_of(store, device=device)


def open_model_of(
    store: Store, model: str | None = None, *, device: str, option: str = "--model"
) -> M3Encoder | RemoteEncoder:
    """Open the encoder that a command names for a store; if it names none, the bundled checkpoint of the store.

    Raises:
        ValueError: If no model is named and the store's model is not bundled. Further errors are those of `open_model`.
    """
    from m3_integrations.checkpoint import BUNDLED
    from m3_integrations.fingerprint import bundled_checkpoint

    if model is None and (bound := store.fingerprint) is not None and (model := bundled_checkpoint(bound)) is None:
        raise ValueError(
            f"the store holds vectors of the model {bound}, which is neither {' nor '.join(BUNDLED)}: name the model "
            f"that it was filled with, {option} MODEL"
        )
    return open_model(model, device=device)


def open_model(
    model: str | None, *, device: str, dtype: str | None = None, max_length: int | None = None, shared: bool = True
) -> M3Encoder | RemoteEncoder:
    """Open the encoder that a command names. The key of a server is in the environment, in M3_API_KEY.

    Args:
        model: A checkpoint, or the URL of an `m3 serve`; None for `small`.
        device: The device of a checkpoint; "auto" for a server.
        dtype: The type of a checkpoint's weights; None for the default, and for a server.
        max_length: The most tokens of a text for a checkpoint; None for 8,192, and for a server.
        shared: Whether a checkpoint's network is shared.

    Raises:
        ValueError: If a device, a type or a length is named for a server. Further errors are those of `M3Encoder` or,
            for a URL, of `RemoteEncoder`.
    """
    if model is None or not model.startswith(("http://", "https://")):
        from m3_integrations.checkpoint import DEFAULT
        from m3_integrations.encoder import M3Encoder

        name = DEFAULT if model is None else model
        length = 8192 if max_length is None else max_length
        return M3Encoder(name, device=device, dtype=dtype or "auto", max_length=length, shared=shared)
    from m3_integrations.remote import RemoteEncoder

    if device != "auto" or dtype is not None or max_length is not None:
        raise ValueError(
            f"device, dtype and max-length are settings of m3 serve, which runs at {model}: leave them out"
        )
    return RemoteEncoder(model, api_key=os.environ.get("M3_API_KEY"))


def open_llm(llm: str) -> BaseChatModel:
    """Open a chat model by its name for LangChain's `init_chat_model`.

    Raises:
        ImportError: If langchain is not installed, or the package of the model's provider.
        ValueError: If LangChain knows no such provider.
    """
    try:
        from langchain.chat_models import init_chat_model
    except ModuleNotFoundError as error:
        if error.name != "langchain":
            raise
        raise ImportError("--llm needs langchain and the provider's package: pip install langchain") from error
    chat_model: BaseChatModel = init_chat_model(llm)
    return chat_model


def print_explanation(explanation: Explanation, console: Console) -> None:
    """Print the shared tokens, and the nearest document token of each query token."""
    shared = ", ".join(f"{m.token.strip('▁') or m.token} {m.score:.3f}" for m in explanation.lexical[:6])
    console.print(f"  shared tokens: {escape(shared) or 'none'}")
    pairs = sorted(explanation.multi_vector, key=lambda pair: -pair.similarity)[:6]
    found = ", ".join(f"{p.query_token.strip('▁')}→{p.document_token.strip('▁')} {p.similarity:.2f}" for p in pairs)
    console.print(f"  query tokens and what they found: {escape(found) or 'nothing'}")
