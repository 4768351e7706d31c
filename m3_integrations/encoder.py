"""`M3Encoder`: texts to dense, lexical and multi-vector views, from one network that a whole process shares."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from tqdm.auto import tqdm

from m3_integrations.batching import windows
from m3_integrations.checkpoint import BUNDLED, find_checkpoint, save_checkpoint
from m3_integrations.engine import EncodeOptions, EncoderStats, Engine, check_not_forked, open_engine
from m3_integrations.model import find_devices, find_dtype
from m3_integrations.scoring import score_pairs
from m3_integrations.settings import DEFAULT_CACHE_SIZE_BYTES, DEFAULT_MAX_LENGTH, EncoderSettings
from m3_integrations.tokenizer import Pooling
from m3_integrations.vectors import (
    IntArray,
    Kind,
    M3Scores,
    M3Vectors,
    Mode,
    ModeWeights,
    check_modes,
)

_WINDOW_TEXTS: Final = 2048
_WINDOW_TOKENS: Final = 65_536
"""Tokens encoded at a time where memory is bounded: 256 MB of multi-vectors at most, for BGE-M3, and as much again for
those that are being encoded while these are used."""

_INTERACTIVE_TOKENS: Final = 4096
"""Queries of up to so many characters in all get their multi-vectors computed and cached unasked (16 MB at most for
BGE-M3), since reranking comes next. By count of operations it is 0.4 % of the pass."""


class M3Encoder:
    """A handle on a network: its own length limits, pooling, instruction and cache size, on weights it may share.

    All methods may be called from any number of threads and tasks at once: their texts share forward passes, short
    requests go before long ones, and an error is its caller's alone. A handle can be pickled: the settings travel, and
    the other side shares its own process's network. It does not survive a fork: a call in the child raises.

    Args:
        model: A checkpoint folder, a repository of the Hugging Face hub such as "BAAI/bge-m3", or "tiny", the
            checkpoint in this package.
        shared: Whether the handle shares the process's one network for this checkpoint, device and dtype. Handles
            that differ in anything else still share it. False loads a network for this handle alone.
        device: Any device name of torch, or "auto": CUDA, Apple's GPU or the CPU, the first that is there. Several
            names with commas between them ("cuda:0,cuda:1") put a copy on each, and all work off one queue.
        dtype: "float32", "float16", "bfloat16", or "auto": float16 on CUDA, else float32. "int8" is for CPUs with
            AVX-512 VNNI: linear layers in 8 bits, more than twice as fast and a little less exact.
        revision: Branch, tag or commit on the hub.
        max_length: The most tokens of a text, special tokens included; never more than the checkpoint's positions.
        query_instruction: Put before every query. BGE-M3 needs none, BGE v1.5 does.
        query_max_length: The same limit for queries; `max_length` if None.
        pooling: "cls", or "mcls" for long documents: the mean of a [CLS] every 256 tokens (paper, appendix B.2).
        max_tokens_per_batch: Tokens of one forward pass, padding included; by default what suits the device.
        cache_size_bytes: Memory for vectors of recent texts, shared by the network's handles; 0 for none.

    Raises:
        FileNotFoundError: If there is no such folder or repository.
        ValueError: If a setting is out of range, the device is not there, or the checkpoint is incomplete or damaged.
        TypeError: If the checkpoint's tokenizer is a slow one.
        RuntimeError: In a process forked off one that has loaded a network.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        shared: bool = True,
        device: str = "auto",
        dtype: str = "auto",
        revision: str | None = None,
        max_length: int = DEFAULT_MAX_LENGTH,
        query_instruction: str = "",
        query_max_length: int | None = None,
        pooling: Pooling = "cls",
        max_tokens_per_batch: int | None = None,
        cache_size_bytes: int = DEFAULT_CACHE_SIZE_BYTES,
    ) -> None:
        self._settings = EncoderSettings(
            model=_name(model), device=device, dtype=dtype, revision=revision, max_length=max_length,
            query_instruction=query_instruction, query_max_length=query_max_length, pooling=pooling,
            max_tokens_per_batch=max_tokens_per_batch, cache_size_bytes=cache_size_bytes,
        )  # fmt: skip
        self._is_shared = shared
        self._is_closed = False
        self._engine: Engine | None = _open(self._settings, is_shared=shared)

    def close(self) -> None:
        """Release this handle; the network goes with its last one. A closed handle raises on use."""
        self._is_closed, self._engine = True, None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        self._live_engine()
        return self.__dict__ | {"_engine": None, "_is_shared": True}  # opened on first use: unpickling cannot fail

    def __copy__(self) -> Self:
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__, _engine=self._live_engine())  # the same network, also one loaded alone
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self.__copy__()

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else "not opened yet"
        if self._engine is not None:
            state = f"{self.device}, {self._engine.dtype}"
        return f"{type(self).__name__}({self.model!r}, {state})"

    def _live_engine(self) -> Engine:
        if self._is_closed:
            raise RuntimeError(f"this encoder ({self.model}) was closed: open another with M3Encoder(...)")
        check_not_forked()
        if self._engine is None:
            self._engine = _open(self._settings, is_shared=self._is_shared)
        return self._engine

    @property
    def model(self) -> str:
        """The folder or the hub's repository that was loaded."""
        return self._settings.model

    @property
    def device(self) -> str:
        """Where the network lives, for instance "cuda:0"; several with commas between them."""
        return ",".join(map(str, self._live_engine().devices))

    @property
    def dtype(self) -> str:
        """Type of the network's weights, for instance "float16". What is returned is float32 always."""
        return str(self._live_engine().dtype).removeprefix("torch.")

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes that the checkpoint has heads for."""
        return self._live_engine().network.modes

    @property
    def dim(self) -> int:
        """Length of a dense vector."""
        return self._live_engine().network.dim

    @property
    def max_length(self) -> int:
        """The most tokens of a document: what was asked for, or the checkpoint's positions if those are fewer."""
        return self._limit("document", None)

    @property
    def pooling(self) -> Pooling:
        """How a text's tokens become its dense vector: "cls" or "mcls"."""
        return self._settings.pooling

    @property
    def vocabulary(self) -> Sequence[str]:
        """The token of every id."""
        return self._live_engine().tokenizer.vocabulary

    @property
    def stats(self) -> EncoderStats:
        """What the network has done so far, for all its handles."""
        return self._live_engine().stats

    @property
    def fingerprint(self) -> str:
        """Says which model it is: 32 hexadecimal digits of its configuration, vocabulary, heads and weights.

        The same for a copy under another name, in another dtype or file format.
        """
        return self._live_engine().fingerprint

    def _limit(self, kind: Kind, max_length: int | None) -> int:
        return self._settings.length_limit(kind, max_length, self._live_engine().network.max_positions)

    def encode(
        self,
        texts: Sequence[str],
        *,
        kind: Kind = "document",
        modes: Sequence[Mode] | None = None,
        max_length: int | None = None,
        show_progress: bool = False,
    ) -> M3Vectors:
        """Give the vectors of texts, in their order.

        A text that occurs twice is encoded once. A text over the length limit is cut; one warning per call says how
        many were. A few short queries get all modes computed, whatever is asked, so that a query that is embedded,
        then sparse-embedded and then reranked costs one pass; they are kept in the cache, not returned.

        Args:
            texts: Strings; empty ones are fine, and so is an empty list.
            kind: "query" puts the query instruction before every text and applies the query's length limit.
            modes: Which views to give; by default all that the checkpoint has.
            max_length: The most tokens of a text in this call.
            show_progress: Whether to draw a progress bar.

        Raises:
            TypeError: If texts is one string, or holds anything but strings.
            ValueError: For an unknown kind or mode, a mode without a head, a length under 3, or a text that is not
                valid Unicode.
            RuntimeError: If the encoder was closed, after a fork, or if the worker's thread was killed.
            FloatingPointError: If half precision overflowed.
            torch.OutOfMemoryError: If a text by itself is too long for the device's memory. (Passes of several texts
                are made smaller until they fit.)
        """
        limit = self._limit(kind, max_length)
        engine, texts, options = self._request(texts, kind, modes, limit)
        with _progress(len(texts), show=show_progress) as advance:
            vectors, truncated = engine.encode(texts, options, advance)
        self._warn_of(truncated, len(texts), limit)
        return vectors

    async def aencode(
        self,
        texts: Sequence[str],
        *,
        kind: Kind = "document",
        modes: Sequence[Mode] | None = None,
        max_length: int | None = None,
    ) -> M3Vectors:
        """Do what `encode` does without blocking the event loop; a task that is cancelled leaves the queue."""
        limit = self._limit(kind, max_length)
        engine, texts, options = self._request(texts, kind, modes, limit)
        vectors, truncated = await engine.aencode(texts, options)
        self._warn_of(truncated, len(texts), limit)
        return vectors

    def tokenize(self, texts: Sequence[str], *, kind: Kind = "document") -> list[list[str]]:
        """Give the tokens of texts as the network reads them, [CLS] left out: one for every row of a multi-vector.

        Arguments and errors are those of `encode`. The last one is [SEP].
        """
        engine, settings = self._live_engine(), self._settings
        instruction = settings.query_instruction if kind == "query" else ""
        tokens = engine.tokenizer(
            [instruction + text for text in _checked(texts)],
            max_length=self._limit(kind, None),
            pooling=settings.pooling,
        )
        vocabulary = engine.tokenizer.vocabulary
        return [[vocabulary[i] for i in np.delete(text.ids, text.cls_positions)] for text in tokens]

    def encode_batches(
        self,
        texts: Iterable[str],
        *,
        kind: Kind = "document",
        modes: Sequence[Mode] | None = None,
        max_length: int | None = None,
        show_progress: bool = False,
    ) -> Iterator[M3Vectors]:
        """Give the vectors of any number of texts, in their order and in bounded memory, some thousand at a time.

        Arguments and errors are those of `encode`; texts may be any iterable and is read as the batches are taken, two
        ahead: the device works on one while the caller uses another.
        """
        if isinstance(texts, str):
            raise TypeError("texts must be an iterable of strings, got one string: pass [text]")
        limit = self._limit(kind, max_length)
        self._wanted(self._live_engine(), modes)
        return self._batches(texts, kind, modes, limit, show_progress=show_progress)

    def _batches(
        self, texts: Iterable[str], kind: Kind, modes: Sequence[Mode] | None, limit: int, *, show_progress: bool
    ) -> Iterator[M3Vectors]:
        has_warned, engine = False, self._live_engine()

        def requests() -> Iterator[tuple[Sequence[str], EncodeOptions]]:
            position = 0
            for window in windows(texts, max_texts=_WINDOW_TEXTS, max_tokens=_WINDOW_TOKENS, max_length=limit):
                _, checked, options = self._request(window, kind, modes, limit, position)
                position += len(window)
                yield checked, options

        with _progress(len(texts) if isinstance(texts, Sized) else None, show=show_progress) as advance:
            for vectors, truncated in engine.encode_ahead(requests(), advance):
                if truncated and not has_warned:
                    self._warn_of(truncated, len(vectors), limit)
                    has_warned = True
                yield vectors
                check_not_forked()  # what was begun is never finished there

    def _request(
        self,
        texts: Sequence[str],
        kind: Kind,
        modes: Sequence[Mode] | None,
        max_length: int | None,
        position: int = 0,
    ) -> tuple[Engine, Sequence[str], EncodeOptions]:
        """Check what is asked, and give the arguments of `Engine.encode`.

        They keep the network, so that closing the handle meanwhile does not matter. Position is what an error calls
        the first text.
        """
        engine, settings = self._live_engine(), self._settings
        wanted = computed = self._wanted(engine, modes)
        limit = self._limit(kind, max_length)
        texts = _checked(texts, position)
        if kind == "query":
            if settings.cache_size_bytes and sum(min(len(text), limit) for text in texts) <= _INTERACTIVE_TOKENS:
                computed = engine.network.modes
            texts = [settings.query_instruction + text for text in texts]
        options = EncodeOptions(
            modes=wanted,
            computed_modes=computed,
            max_length=limit,
            pooling=settings.pooling,
            max_tokens_per_batch=settings.max_tokens_per_batch,
            cache_size_bytes=settings.cache_size_bytes,
        )
        return engine, texts, options

    @staticmethod
    def _wanted(engine: Engine, modes: Sequence[Mode] | None) -> tuple[Mode, ...]:
        wanted = engine.network.modes if modes is None else check_modes(modes)
        if absent := set(wanted).difference(engine.network.modes):
            raise ValueError(
                f"this checkpoint has no heads for {', '.join(sorted(absent))}: it gives "
                f"{', '.join(engine.network.modes)} only, so ask for modes={engine.network.modes}"
            )
        return wanted

    @staticmethod
    def _warn_of(truncated: int, n: int, *limits: int) -> None:
        if truncated:
            tokens = " or ".join(str(limit) for limit in dict.fromkeys(limits))
            warnings.warn(f"{truncated} of {n} texts were longer than {tokens} tokens and were cut", stacklevel=3)

    def score(self, query: str, texts: Sequence[str], *, weights: ModeWeights | None = None) -> M3Scores:
        """Score one query against texts in every mode the checkpoint has. Each text is encoded once.

        Args:
            query: Encoded as `kind="query"`.
            texts: Encoded as documents, some thousand at a time, so that any number of them can be scored.
            weights: How the modes count in `combined`; equal if None.

        Raises:
            TypeError: If query is not a string, texts is one, or texts holds anything but strings.
            ValueError: If a text is not valid Unicode or weights lie only on modes that the checkpoint lacks.
            RuntimeError: If the encoder was closed, or after a fork.
        """
        if not isinstance(query, str):
            raise TypeError(f"query must be a string, got {type(query).__name__}")
        scores, *cut = self._score_pairs([(query, text) for text in _checked(texts)], weights or ModeWeights())
        self._warn_of(*cut)
        return scores

    def score_pairs(self, pairs: Sequence[tuple[str, str]], *, weights: ModeWeights | None = None) -> M3Scores:
        """Score pairs of a query and a text, in their order. Each text is encoded once, however many pairs it is in.

        The vectors of all the different queries are held in memory; the documents' are not.

        Arguments and errors are those of `score`.
        """
        for i, pair in enumerate(pairs):
            if isinstance(pair, str) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
                raise TypeError(f"every pair must be two strings, got {pair!r} at position {i}")
        scores, *cut = self._score_pairs(pairs, weights or ModeWeights())
        self._warn_of(*cut)
        return scores

    def _score_pairs(
        self, pairs: Sequence[tuple[str, str]], weights: ModeWeights
    ) -> tuple[M3Scores, int, int, int, int]:
        """Give the scores, and what `_warn_of` needs: the texts that were cut, all of them, and both limits."""
        weights.normalized(self.modes)
        queries, query_of = _distinct(query for query, _ in pairs)
        documents, document_of = _distinct(text for _, text in pairs)
        engine, instructed, options = self._request(queries, "query", None, None)
        of_query, truncated = engine.encode(instructed, options)
        limit, start = self._limit("document", None), 0
        columns = {mode: np.zeros(len(pairs), dtype=np.float32) for mode in (*self.modes, "combined")}
        for window in windows(documents, max_texts=_WINDOW_TEXTS, max_tokens=_WINDOW_TOKENS, max_length=limit):
            engine, checked, options = self._request(window, "document", None, None)
            vectors, n = engine.encode(checked, options)
            truncated += n
            here = np.flatnonzero((document_of >= start) & (document_of < start + len(window)))
            scores = score_pairs(of_query, vectors, query_of[here], document_of[here] - start, weights)
            for name, column in columns.items():
                column[here] = getattr(scores, name)
            start += len(window)
        return M3Scores(**columns), truncated, len(queries) + len(documents), self._limit("query", None), limit

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the checkpoint in BGE-M3's format, which FlagEmbedding reads too.

        Raises:
            FileExistsError: If the folder holds a checkpoint already.
        """
        engine = self._live_engine()
        save_checkpoint(
            folder, backbone=engine.network.backbone, heads=engine.network.heads, tokenizer=engine.tokenizer
        )


def _name(model: str | os.PathLike[str]) -> str:
    """Give what a pickle calls the checkpoint: a folder's absolute path, otherwise its name."""
    if not os.fspath(model):
        raise ValueError("model must be a folder or the name of a checkpoint, got an empty string")
    folder = Path(model).expanduser()
    if isinstance(model, os.PathLike) or (model != BUNDLED and folder.is_dir()):
        return str(folder.resolve())
    return model


def _open(settings: EncoderSettings, *, is_shared: bool) -> Engine:
    devices = find_devices(settings.device)
    dtype = find_dtype(settings.dtype, devices[0])
    folder = find_checkpoint(settings.model, revision=settings.revision)
    engine = open_engine(folder, devices, dtype, shared=is_shared)
    engine.cache.allow(settings.cache_size_bytes)
    return engine


@contextmanager
def _progress(total: int | None, *, show: bool) -> Iterator[Callable[[int], object]]:
    """Give what moves a progress bar on, or what does nothing: a bar that is not shown starts a thread all the same."""
    if not show:
        yield lambda _: None
        return
    with tqdm(total=total, desc="encoding", unit="text") as bar:
        yield bar.update
        if total is not None:
            bar.update(total - bar.n)  # what the cache gave


def _checked(texts: Sequence[str], position: int = 0) -> Sequence[str]:
    if isinstance(texts, str):
        raise TypeError("texts must be a sequence of strings, got one string: pass [text]")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"every text must be a string, got {type(text).__name__} at position {position + i}")
    return texts


def _distinct(texts: Iterable[str]) -> tuple[list[str], IntArray]:
    """Give the different texts in the order they first occur, and for every text which of them it is."""
    rows: dict[str, int] = {}
    where = [rows.setdefault(text, len(rows)) for text in texts]
    return list(rows), np.array(where, dtype=np.int64)
