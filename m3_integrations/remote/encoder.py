"""`RemoteEncoder`: the encoder of an `m3 serve`, for processes that do not load the network.

Long because it has all of `M3Encoder`'s methods, with their arguments and errors.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from types import TracebackType
from typing import Any, Final, Self, cast, get_args, overload

import numpy as np
from tqdm.auto import tqdm

from m3_integrations.remote.answers import (
    ENVELOPE_BYTES,
    About,
    empty_vectors,
    most_vector_bytes,
    read_about,
    read_scores,
    read_spans,
    read_tokens,
    read_vectors,
    read_vocabulary,
)
from m3_integrations.remote.connection import Answer, Connection, check_url
from m3_integrations.remote.requests import RequestsAhead, pair_requests, text_requests
from m3_integrations.remote.tokens import FetchedTokenizer
from m3_integrations.tokenizer import Pooling
from m3_integrations.vectors import (
    IntArray,
    Kind,
    M3Scores,
    M3Vectors,
    Mode,
    WeightsLike,
    check_heads,
    check_length,
    check_modes,
    check_pairs,
    check_stream,
    check_texts,
    resolve_weights,
    warn_of_cut,
)

_PAIR_SCORE_BYTES: Final = 128
_CLOSED: Final = "this encoder was closed: open another with RemoteEncoder(...)"
_VOCABULARY_BYTES: Final = 256 << 20
_TOKEN_BYTES_PER_CHARACTER: Final = 256


class RemoteEncoder:
    """The encoder of an `m3 serve`: returns what `M3Encoder` returns, over HTTP, without a model in this process.

    The server sets the device, the query instruction, the length limits and so on. Any number of threads, tasks and
    event loops may call all methods at once; they share connections. A request is sent again within `timeout_s` if the
    server is busy (429, 503), the connection broke, or a proxy lost the server (500 or 502, not from the server
    itself): encoding twice does no harm. It works after a fork. A pickle holds the URL, the settings with the API key,
    and the server's description of its model. Neither torch nor transformers is imported. Proxies named in the
    environment are not used.

    Args:
        url: The server's URL, such as "http://127.0.0.1:8000".
        api_key: One of the server's keys, if it has any.
        timeout_s: Time limit of one request, repetitions included. A call with many texts sends many requests.

    Raises:
        ConnectionError: If nothing answers. This error and the following may also come from later calls.
        PermissionError: If the server does not accept the key.
        TimeoutError: If an answer takes longer than `timeout_s`.
        ValueError: If url is not a server's URL, or the server is not an m3 serve, has another version of the
            interface, or has changed its model since the encoder was opened.
        RuntimeError: If the server fails.
    """

    def __init__(self, url: str, *, api_key: str | None = None, timeout_s: float = 300.0) -> None:
        self.model = url
        """The URL, as it was passed."""
        self.settings: Mapping[str, Any] = {"api_key": api_key, "timeout_s": timeout_s}
        """The other arguments of the constructor."""
        self._url = check_url(url)
        self._is_closed = False
        self._open()
        try:
            found = self._connection.result(self._connection.start("/v1/encoder", None, max_bytes=ENVELOPE_BYTES))
            self._about: About = read_about(self._url, found.body)
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        self._connection = Connection(self._url, closed=_CLOSED, **self.settings)
        self._vocabulary = _Vocabulary(self._fetch_vocabulary)
        self._tokenizer = FetchedTokenizer(
            self._url, lambda: self._ask("/v1/tokenizer", None, max_bytes=_VOCABULARY_BYTES)
        )

    def close(self) -> None:
        """Close the connections. Running calls and later ones raise RuntimeError."""
        self._is_closed = True
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        self._check_open()
        opened = {"_connection", "_vocabulary", "_tokenizer"}
        return {name: value for name, value in self.__dict__.items() if name not in opened}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __repr__(self) -> str:
        about = self._about
        state = "closed" if self._is_closed else f"{about.model}, {about.dim} dimensions, {'+'.join(about.modes)}"
        return f"{type(self).__name__}({self.model!r}, {state})"

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes that the checkpoint has heads for."""
        return self._about.modes

    @property
    def dim(self) -> int:
        """Length of a dense vector."""
        return self._about.dim

    @property
    def fingerprint(self) -> str:
        """The model's fingerprint, see `M3Encoder.fingerprint`."""
        return self._about.fingerprint

    @property
    def max_length(self) -> int:
        """The most tokens of a document."""
        return self._about.max_length

    @property
    def dtype(self) -> str:
        """The dtype of the server's network. Vectors and scores are always float32."""
        return self._about.dtype

    @property
    def pooling(self) -> str:
        """How a text's tokens become its dense vector at the server: "cls" or "mcls"."""
        return self._about.pooling

    @property
    def vocabulary(self) -> Sequence[str]:
        """The token of every id, fetched from the server at first use."""
        return self._vocabulary

    def encode(
        self,
        texts: Iterable[str],
        *,
        kind: Kind = "document",
        modes: Sequence[Mode] | None = None,
        max_length: int | None = None,
        show_progress: bool = False,
    ) -> M3Vectors:
        """Return the vectors of texts, in their order.

        Arguments, and the warning of texts that were cut, are those of `M3Encoder.encode`. Many texts are sent in
        several requests, up to eight at a time.

        Raises:
            TypeError: If texts is one string, or holds anything but strings.
            ValueError: For an unknown kind or mode, a mode without a head, a length under 3, a text that is not valid
                Unicode, or one that is longer than the server accepts. Also for the reasons of the class.
            RuntimeError: If the encoder was closed or the server failed.
            ConnectionError: If nothing answers. PermissionError and TimeoutError as for the class.
        """
        texts = check_texts(texts)
        wanted = self._checked(kind, modes, max_length)
        parts = list(self._batches(texts, kind, wanted, max_length, show_progress=show_progress))
        return M3Vectors.concatenate(parts) if parts else empty_vectors(self._about, wanted)

    async def aencode(
        self,
        texts: Iterable[str],
        *,
        kind: Kind = "document",
        modes: Sequence[Mode] | None = None,
        max_length: int | None = None,
    ) -> M3Vectors:
        """Return what `encode` returns, without blocking the event loop. A cancelled task cancels its requests."""
        texts = check_texts(texts)
        wanted = self._checked(kind, modes, max_length)
        parts, n_cut = list[M3Vectors](), 0
        requests = self._encode_requests(texts, kind, wanted, max_length)
        try:
            while (request := requests.next()) is not None:
                answer = await self._connection.aresult(request[1])
                requests.done(answer)
                vectors, n_cut_here = await asyncio.to_thread(self._read, answer, request[0], wanted)
                parts.append(vectors)
                n_cut += n_cut_here
        finally:
            requests.cancel()
        self._warn(n_cut, len(texts), kind, max_length)
        if not parts:
            return empty_vectors(self._about, wanted)
        return await asyncio.to_thread(M3Vectors.concatenate, parts)

    def encode_batches(
        self,
        texts: Iterable[str],
        *,
        kind: Kind = "document",
        modes: Sequence[Mode] | None = None,
        max_length: int | None = None,
        show_progress: bool = False,
    ) -> Iterator[M3Vectors]:
        """Yield the vectors of any number of texts, in their order and in bounded memory, at most 256 at a time.

        Arguments and errors are those of `encode`. Texts are read while the batches are taken, up to eight batches
        ahead.
        """
        check_stream(texts)
        wanted = self._checked(kind, modes, max_length)
        return self._batches(texts, kind, wanted, max_length, show_progress=show_progress)

    def _batches(
        self, texts: Iterable[str], kind: Kind, modes: Sequence[Mode], max_length: int | None, *, show_progress: bool
    ) -> Iterator[M3Vectors]:
        n_texts = n_cut = 0
        total = len(texts) if isinstance(texts, Sized) else None
        requests = self._encode_requests(texts, kind, modes, max_length)
        try:
            with _progress(total) if show_progress else nullcontext() as advance:
                while (request := requests.next()) is not None:
                    answer = self._connection.result(request[1])
                    requests.done(answer)
                    vectors, n_cut_here = self._read(answer, request[0], modes)
                    n_texts, n_cut = n_texts + len(vectors), n_cut + n_cut_here
                    if advance is not None:
                        advance(len(vectors))
                    yield vectors
        finally:
            requests.cancel()
        self._warn(n_cut, n_texts, kind, max_length)

    def tokenize(
        self, texts: Iterable[str], *, kind: Kind = "document", max_length: int | None = None
    ) -> list[list[str]]:
        """Return the tokens of texts without [CLS], one for every row of the multi-vector. The last token is [SEP].

        Arguments and errors are those of `encode`. After 256 calls for documents the server's tokenizer is fetched, and
        this process tokenizes documents itself.
        """
        texts = check_texts(texts)
        self._checked(kind, None, max_length)
        if kind == "document" and max_length is None and (tokenizer := self._tokenizer.after_many_calls()) is not None:
            return tokenizer.tokens(texts, max_length=self.max_length, pooling=cast("Pooling", self.pooling))
        tokens: list[list[str]] = []
        for window in text_requests(self._url, self._about, texts, max_length):
            sent = {"texts": window, "kind": kind} | ({} if max_length is None else {"max_length": max_length})
            size = sum(len(text) + 64 for text in window) * _TOKEN_BYTES_PER_CHARACTER
            body = self._ask("/v1/tokenize", sent, max_bytes=ENVELOPE_BYTES + size)
            tokens += read_tokens(self._url, body, len(window))
        return tokens

    def token_spans(
        self, texts: Iterable[str], *, kind: Kind = "document", max_length: int | None = None
    ) -> list[IntArray]:
        """Return where each token of `tokenize` stands in its text, as `M3Encoder.token_spans` does.

        Arguments and errors are those of `tokenize`.
        """
        texts = check_texts(texts)
        self._checked(kind, None, max_length)
        if kind == "document" and max_length is None and (tokenizer := self._tokenizer.after_many_calls()) is not None:
            return tokenizer.spans(texts, max_length=self.max_length, pooling=cast("Pooling", self.pooling))
        spans: list[IntArray] = []
        for window in text_requests(self._url, self._about, texts, max_length):
            sent = {"texts": window, "kind": kind, "with_spans": True}
            sent |= {} if max_length is None else {"max_length": max_length}
            size = 2 * sum(len(text) + 64 for text in window) * _TOKEN_BYTES_PER_CHARACTER
            spans += read_spans(self._url, self._ask("/v1/tokenize", sent, max_bytes=ENVELOPE_BYTES + size), window)
        return spans

    def score(self, query: str, texts: Iterable[str], *, weights: WeightsLike | None = None) -> M3Scores:
        """Score one query against texts in every mode the checkpoint has.

        Arguments and errors are those of `M3Encoder.score` and of `encode`.
        """
        if not isinstance(query, str):
            raise TypeError(f"query must be a string, got {type(query).__name__}")
        return self.score_pairs([(query, text) for text in check_texts(texts)], weights=weights)

    def score_pairs(self, pairs: Iterable[tuple[str, str]], *, weights: WeightsLike | None = None) -> M3Scores:
        """Score pairs of a query and a text, in their order. The server computes the scores and sends no vectors.

        Arguments and errors are those of `score`; the warning of texts that were cut is that of `M3Encoder`.
        """
        self._check_open()
        pairs = check_pairs(pairs)
        chosen = resolve_weights(weights)
        chosen.normalized(self.modes)
        sent_weights = [chosen.dense, chosen.lexical, chosen.multi_vector]
        parts: list[M3Scores] = []
        cut_queries, cut_texts = set[str](), set[str]()
        for window in pair_requests(self._url, self._about, pairs):
            size = ENVELOPE_BYTES + _PAIR_SCORE_BYTES * len(window)
            sent = {"pairs": window, "weights": sent_weights}
            body = self._ask("/v1/score_pairs", sent, max_bytes=size)
            scores, query_rows, text_rows = read_scores(self._url, body, len(window), self.modes)
            parts.append(scores)
            cut_queries.update(window[row][0] for row in query_rows)
            cut_texts.update(window[row][1] for row in text_rows)
        columns = {
            name: np.concatenate([np.empty(0, np.float32), *(getattr(part, name) for part in parts)])
            for name in ("combined", *self.modes)
        }
        if n_cut := len(cut_queries) + len(cut_texts):
            n_distinct = len({query for query, _ in pairs}) + len({text for _, text in pairs})
            warn_of_cut(n_cut, n_distinct, self._about.query_max_length, self.max_length)
        return M3Scores(**columns)

    def _checked(self, kind: Kind, modes: Sequence[Mode] | None, max_length: int | None) -> tuple[Mode, ...]:
        """Check a call's arguments, and return its modes."""
        self._check_open()
        if kind not in get_args(Kind):
            raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {kind!r}")
        if max_length is not None:
            check_length(max_length)
        wanted = self.modes if modes is None else check_modes(modes)
        check_heads(self.model, self.modes, wanted)
        return wanted

    def _check_open(self) -> None:
        if self._is_closed:
            raise RuntimeError(f"this encoder ({self.model}) was closed: open another with RemoteEncoder(...)")

    def _encode_requests(
        self, texts: Iterable[str], kind: Kind, modes: Sequence[Mode], max_length: int | None
    ) -> RequestsAhead[Sequence[str]]:
        def begin(window: Sequence[str]) -> Future[Answer]:
            size = most_vector_bytes(self._about, window, is_query=kind == "query", max_length=max_length)
            sent = {"texts": window, "kind": kind, "modes": modes, "max_length": max_length}
            return self._connection.start("/v1/encode", sent, max_bytes=size)

        return RequestsAhead(text_requests(self._url, self._about, texts, max_length), begin)

    def _read(self, answer: Answer, texts: Sequence[str], modes: Sequence[Mode]) -> tuple[M3Vectors, int]:
        """Return the vectors of texts and how many were cut; raise ValueError if the server's model has changed."""
        if answer.fingerprint is None:
            raise ValueError(f"{self._url} does not state the model of its vectors: is it an m3 serve?")
        self._check_model(answer)
        return read_vectors(self._url, self._about, answer.body, len(texts), modes=modes, vocabulary=self._vocabulary)

    def _check_model(self, answer: Answer) -> None:
        if answer.fingerprint not in {None, self.fingerprint}:
            raise ValueError(
                f"{self._url} now has the model {answer.fingerprint}; it had {self._about.model} ({self.fingerprint}) "
                "when this encoder was opened. Vectors of two models cannot be compared: open another RemoteEncoder"
            )

    def _ask(self, path: str, sent: dict[str, Any] | None, *, max_bytes: int) -> bytes:
        answer = self._connection.result(self._connection.start(path, sent, max_bytes=max_bytes))
        self._check_model(answer)
        return answer.body

    def _fetch_vocabulary(self) -> tuple[str, ...]:
        return read_vocabulary(self._url, self._ask("/v1/vocabulary", None, max_bytes=_VOCABULARY_BYTES))

    def _warn(self, n_cut: int, n: int, kind: Kind, max_length: int | None) -> None:
        if n_cut:
            limit = self._about.query_max_length if kind == "query" else self.max_length
            warn_of_cut(n_cut, n, limit if max_length is None else max_length)


class _Vocabulary(Sequence[str]):
    """The token of every id, fetched at first use: BGE-M3 has 250,002 tokens, and few callers need them."""

    def __init__(self, fetch: Callable[[], tuple[str, ...]]) -> None:
        self._fetch = fetch
        # One for each process: during a fork another thread may hold it, and in the child it would stay locked.
        self._locks: dict[int, threading.Lock] = {}
        self._tokens: tuple[str, ...] | None = None

    def _fetched(self) -> tuple[str, ...]:
        with self._locks.setdefault(os.getpid(), threading.Lock()):
            if self._tokens is None:
                self._tokens = self._fetch()
            return self._tokens

    def __len__(self) -> int:
        return len(self._fetched())

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> tuple[str, ...]: ...
    def __getitem__(self, i: int | slice) -> str | tuple[str, ...]:
        return self._fetched()[i]

    def __repr__(self) -> str:
        return "Vocabulary(not fetched yet)" if self._tokens is None else f"Vocabulary({len(self._tokens)} tokens)"


@contextmanager
def _progress(total: int | None) -> Iterator[Callable[[int], object]]:
    """Show a progress bar, and yield the function that advances it."""
    with tqdm(total=total, desc="encoding", unit="text") as bar:
        yield bar.update
