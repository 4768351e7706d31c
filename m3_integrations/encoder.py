"""`M3Encoder`: texts to dense, lexical and multi-vector views, from one network that a whole process shares."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from tqdm.auto import tqdm

from m3_integrations.batching import windows
from m3_integrations.checkpoint import find_checkpoint, save_checkpoint
from m3_integrations.engine import EncodeOptions, EncoderStats, Engine, check_not_forked, open_engine
from m3_integrations.model import find_device, find_dtype
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
_WINDOW_TOKENS: Final = 131_072
"""Tokens encoded at a time where memory is bounded: at most 512 MB of multi-vectors of BGE-M3's width."""

_INTERACTIVE_QUERIES: Final = 64
"""A call with up to this many queries computes and caches their multi-vectors unasked: reranking comes next."""


class M3Encoder:
    """A handle on a network: its own length limits, pooling, instruction and cache size, on weights it may share.

    Make one with `load` or `shared`. All methods may be called from any number of threads and tasks at once. A handle
    can be pickled: the settings travel, and the other side shares its own process's network. It does not survive a
    fork: a call in the child raises RuntimeError.
    """

    def __init__(self, engine: Engine, settings: EncoderSettings) -> None:
        self._engine: Engine | None = engine
        self._settings = settings

    @classmethod
    def load(
        cls,
        model: str | os.PathLike[str],
        *,
        device: str = "auto",
        dtype: str = "auto",
        revision: str | None = None,
        max_length: int = DEFAULT_MAX_LENGTH,
        query_instruction: str = "",
        query_max_length: int | None = None,
        pooling: Pooling = "cls",
        max_tokens_per_batch: int | None = None,
        cache_size_bytes: int = DEFAULT_CACHE_SIZE_BYTES,
    ) -> Self:
        """Load a network of its own.

        Args:
            model: A checkpoint folder, or a repository of the Hugging Face hub such as "BAAI/bge-m3".
            device: Any device name of torch, or "auto": CUDA, Apple's GPU or the CPU, the first that is there.
            dtype: "float32", "float16", "bfloat16", or "auto": float16 on CUDA, else float32.
            revision: Branch, tag or commit on the hub.
            max_length: The most tokens of a text, special tokens included; never more than the checkpoint's positions.
            query_instruction: Put before every query. BGE-M3 needs none, BGE v1.5 does.
            query_max_length: The same limit for queries; `max_length` if None.
            pooling: "cls", or "mcls" for long documents: the mean of a [CLS] every 256 tokens (paper, appendix B.2).
            max_tokens_per_batch: Tokens of one forward pass, padding included; by default what suits the device.
            cache_size_bytes: Memory for vectors of recent texts, shared by the network's handles; 0 for none.

        Raises:
            FileNotFoundError: If there is no such folder or repository.
            ValueError: If a setting is out of range, the device is not there, or the checkpoint is incomplete or
                damaged.
            RuntimeError: In a process forked off one that held a network.
        """
        settings = EncoderSettings(
            model=_name(model), device=device, dtype=dtype, revision=revision, max_length=max_length,
            query_instruction=query_instruction, query_max_length=query_max_length, pooling=pooling,
            max_tokens_per_batch=max_tokens_per_batch, cache_size_bytes=cache_size_bytes,
        )  # fmt: skip
        return cls(_open(model, settings, shared=False), settings)

    @classmethod
    def shared(
        cls,
        model: str | os.PathLike[str],
        *,
        device: str = "auto",
        dtype: str = "auto",
        revision: str | None = None,
        max_length: int = DEFAULT_MAX_LENGTH,
        query_instruction: str = "",
        query_max_length: int | None = None,
        pooling: Pooling = "cls",
        max_tokens_per_batch: int | None = None,
        cache_size_bytes: int = DEFAULT_CACHE_SIZE_BYTES,
    ) -> Self:
        """Give a handle on the process's one network for this checkpoint, device and dtype, loading it if need be.

        Arguments and errors are those of `load`. Handles that differ in anything else still share the network.
        """
        settings = EncoderSettings(
            model=_name(model), device=device, dtype=dtype, revision=revision, max_length=max_length,
            query_instruction=query_instruction, query_max_length=query_max_length, pooling=pooling,
            max_tokens_per_batch=max_tokens_per_batch, cache_size_bytes=cache_size_bytes,
        )  # fmt: skip
        return cls(_open(model, settings, shared=True), settings)

    def close(self) -> None:
        """Release this handle; the network goes with its last one. A closed handle raises on use."""
        self._engine = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        self._live_engine()
        return _restore, (dataclasses.asdict(self._settings),)

    def __copy__(self) -> Self:
        return type(self)(self._live_engine(), self._settings)  # another handle on the same network

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self.__copy__()

    def __repr__(self) -> str:
        state = "closed" if self._engine is None else f"{self._engine.device}, {self._engine.dtype}"
        return f"M3Encoder({self.model!r}, {state})"

    def _live_engine(self) -> Engine:
        if self._engine is None:
            raise RuntimeError(f"this encoder ({self.model}) was closed: open another with M3Encoder.shared")
        self._engine.check_process()
        return self._engine

    @property
    def model(self) -> str:
        """The folder or the hub's repository that was loaded."""
        return self._settings.model

    @property
    def device(self) -> str:
        """Where the network lives, for instance "cuda:0"."""
        return str(self._live_engine().device)

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
        many were.

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
            RuntimeError: If the encoder was closed, or after a fork.
        """
        with tqdm(total=len(texts), desc="encoding", unit="text", disable=not show_progress) as bar:
            vectors, truncated = self._encode(texts, kind, modes, max_length, bar.update)
            bar.update(len(texts) - bar.n)  # what the cache gave
        self._warn_of(truncated, len(texts), kind, max_length)
        return vectors

    async def aencode(
        self,
        texts: Sequence[str],
        *,
        kind: Kind = "document",
        modes: Sequence[Mode] | None = None,
        max_length: int | None = None,
    ) -> M3Vectors:
        """Do what `encode` does without blocking the event loop."""
        engine = self._live_engine()
        call = lambda: self.encode(texts, kind=kind, modes=modes, max_length=max_length)  # noqa: E731
        return await asyncio.get_running_loop().run_in_executor(engine.executor, call)

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

        Arguments and errors are those of `encode`; texts may be any iterable and is read as the batches are taken.
        """
        if isinstance(texts, str):
            raise TypeError("texts must be an iterable of strings, got one string: pass [text]")
        has_warned = False
        parts = windows(
            texts, max_texts=_WINDOW_TEXTS, max_tokens=_WINDOW_TOKENS, max_length=self._limit(kind, max_length)
        )
        with tqdm(desc="encoding", unit="text", disable=not show_progress) as bar:
            for window in parts:
                vectors, truncated = self._encode(window, kind, modes, max_length, bar.update)
                if truncated and not has_warned:
                    self._warn_of(truncated, len(window), kind, max_length)
                    has_warned = True
                yield vectors

    def _encode(
        self,
        texts: Sequence[str],
        kind: Kind,
        modes: Sequence[Mode] | None,
        max_length: int | None,
        on_batch: Callable[[int], object] = lambda _: None,
    ) -> tuple[M3Vectors, int]:
        """Give the vectors of texts and how many of the texts were cut."""
        engine, settings = self._live_engine(), self._settings
        wanted = computed = self._wanted(engine, modes)
        if kind == "query" and len(texts) <= _INTERACTIVE_QUERIES and settings.cache_size_bytes:
            computed = engine.network.modes
        options = EncodeOptions(
            modes=wanted,
            computed_modes=computed,
            max_length=self._limit(kind, max_length),
            pooling=settings.pooling,
            max_tokens_per_batch=settings.max_tokens_per_batch,
            cache_size_bytes=settings.cache_size_bytes,
        )
        instruction = settings.query_instruction if kind == "query" else ""
        return engine.encode([instruction + text for text in _checked(texts)], options, on_batch)

    @staticmethod
    def _wanted(engine: Engine, modes: Sequence[Mode] | None) -> tuple[Mode, ...]:
        wanted = engine.network.modes if modes is None else check_modes(modes)
        if absent := set(wanted).difference(engine.network.modes):
            raise ValueError(
                f"this checkpoint has no heads for {', '.join(sorted(absent))}: it gives "
                f"{', '.join(engine.network.modes)} only, so ask for modes={engine.network.modes}"
            )
        return wanted

    def _warn_of(self, truncated: int, n: int, kind: Kind, max_length: int | None) -> None:
        if truncated:
            warnings.warn(
                f"{truncated} of {n} texts were longer than {self._limit(kind, max_length)} tokens and were cut",
                stacklevel=3,
            )

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
        scores, truncated = self._score_pairs([(query, text) for text in _checked(texts)], weights or ModeWeights())
        self._warn_of(truncated, len(texts) + 1, "document", None)
        return scores

    def score_pairs(self, pairs: Sequence[tuple[str, str]], *, weights: ModeWeights | None = None) -> M3Scores:
        """Score pairs of a query and a text, in their order. Each text is encoded once, however many pairs it is in.

        Arguments and errors are those of `score`.
        """
        for i, pair in enumerate(pairs):
            if len(pair) != 2 or not all(isinstance(text, str) for text in pair):
                raise TypeError(f"every pair must be two strings, got {pair!r} at position {i}")
        scores, truncated = self._score_pairs(pairs, weights or ModeWeights())
        self._warn_of(truncated, 2 * len(pairs), "document", None)
        return scores

    def _score_pairs(self, pairs: Sequence[tuple[str, str]], weights: ModeWeights) -> tuple[M3Scores, int]:
        """Give the scores and how many of the different texts were cut."""
        modes = self.modes
        weights.normalized(modes)
        queries, query_of = _distinct(query for query, _ in pairs)
        documents, document_of = _distinct(text for _, text in pairs)
        columns = {mode: np.zeros(len(pairs), dtype=np.float32) for mode in (*modes, "combined")}
        truncated = 0
        for query_rows, query_vectors, n in self._encode_rows(queries, np.arange(len(queries)), "query"):
            truncated += n
            asked = np.flatnonzero(np.isin(query_of, query_rows))
            for rows, vectors, m in self._encode_rows(documents, np.unique(document_of[asked]), "document"):
                truncated += m
                here = asked[np.isin(document_of[asked], rows)]
                of_queries = np.searchsorted(query_rows, query_of[here])
                of_documents = np.searchsorted(rows, document_of[here])
                scores = score_pairs(query_vectors, vectors, of_queries, of_documents, weights)
                for name, column in columns.items():
                    column[here] = getattr(scores, name)
        return M3Scores(**columns), truncated

    def _encode_rows(
        self, texts: Sequence[str], rows: IntArray, kind: Kind
    ) -> Iterator[tuple[IntArray, M3Vectors, int]]:
        """Encode the chosen texts in bounded memory; each part comes with its rows and how many texts were cut."""
        start = 0
        parts = windows(
            (texts[row] for row in rows),
            max_texts=_WINDOW_TEXTS,
            max_tokens=_WINDOW_TOKENS,
            max_length=self._limit(kind, None),
        )
        for window in parts:
            vectors, truncated = self._encode(window, kind, None, None)
            yield rows[start : start + len(window)], vectors, truncated
            start += len(window)

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
    """Give what a pickle calls the checkpoint: a folder's absolute path, a repository's name."""
    folder = Path(model).expanduser()
    return str(folder.resolve()) if folder.is_dir() else os.fspath(model)


def _open(model: str | os.PathLike[str], settings: EncoderSettings, *, shared: bool) -> Engine:
    check_not_forked()
    device = find_device(settings.device)
    dtype = find_dtype(settings.dtype, device)
    return open_engine(find_checkpoint(model, revision=settings.revision), device, dtype, shared=shared)


def _restore(settings: dict[str, Any]) -> M3Encoder:
    return M3Encoder.shared(**settings)


def _checked(texts: Sequence[str]) -> Sequence[str]:
    if isinstance(texts, str):
        raise TypeError("texts must be a sequence of strings, got one string: pass [text]")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"every text must be a string, got {type(text).__name__} at position {i}")
    return texts


def _distinct(texts: Iterable[str]) -> tuple[list[str], IntArray]:
    """Give the different texts in the order they first occur, and for every text which of them it is."""
    rows: dict[str, int] = {}
    where = [rows.setdefault(text, len(rows)) for text in texts]
    return list(rows), np.array(where, dtype=np.int64)
