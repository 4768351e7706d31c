"""`M3Encoder`: texts to dense, lexical and multi-vector views, from one network that the whole process shares.

Long because it explains every argument, property and error of the package's main class.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, SupportsFloat, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from m3_integrations.checkpoint import BUNDLED, default_prompt, find_checkpoint, save_checkpoint
from m3_integrations.engine import (
    Call,
    EncodeOptions,
    EncoderStats,
    Engine,
    aencode,
    check_not_forked,
    encode_ahead,
    open_engine,
)
from m3_integrations.model import find_devices, find_dtype
from m3_integrations.scoring import score_pairs
from m3_integrations.tokenizer import Pooling
from m3_integrations.vectors import (
    Kind,
    M3Scores,
    M3Vectors,
    Mode,
    ModeWeights,
    WeightsLike,
    check_heads,
    check_length,
    check_modes,
    check_pairs,
    check_stream,
    check_texts,
    distinct_texts,
    resolve_weights,
    warn_caller,
    warn_of_cut,
    windows,
)

_WINDOW_TEXTS: Final = 2048
_WINDOW_TOKENS: Final = 65_536
"""Tokens of a batch of a stream: for BGE-M3 about 256 MB of multi-vectors, and as much again for the next batch, which
is encoded while the caller uses this one."""

_INTERACTIVE_CHARACTERS: Final = 4096
"""Queries of at most this many characters in all get all modes computed and cached, for a later reranking. Of each
query as many characters count as its limit has tokens. That is about 16 MB of multi-vectors for BGE-M3, and adds 0.3 %
to the operations of the pass."""


class M3Encoder:
    """A handle on a network. Length limits, pooling and instruction belong to the handle; handles may share weights.

    Any number of threads and tasks may call all methods at once: their texts share forward passes, short requests go
    before long ones, and an error reaches only the caller whose text caused it. A pickle holds the settings, and the
    process that loads it shares its own network. After a fork, a call in the child raises.

    Args:
        model: A checkpoint folder, a repository of the Hugging Face hub such as "BAAI/bge-m3", or "small" or
            "tiny", the checkpoints in this package.
        shared: Whether the handle shares the process's network for this checkpoint, device and dtype. All other
            settings may differ between the handles of one network. False loads a network for this handle alone.
        device: Any device of torch or its name. "auto" or None is the first available of CUDA, Apple's GPU and the CPU.
            Several names with commas between them ("cuda:0,cuda:1") put a copy on each device; all take texts from one
            queue.
        dtype: "float32", "float16", "bfloat16" or "int8". "auto" or None is float16 on CUDA, else float32, which has
            FlagEmbedding's numbers. On a CPU with AMX "bfloat16" takes about a third of the time. "int8" is for x86
            CPUs: with VNNI, and mostly with AVX2 alone, it takes less than half of the time, and it is less exact than
            bfloat16. A dtype that is faster than "auto" is logged once (INFO). A dtype that the CPU only emulates
            causes a warning.
        revision: Branch, tag or commit on the hub.
        max_length: The most tokens of a text, special tokens included. The checkpoint's positions are a second limit.
        query_instruction: Put before every query; nothing if None. BGE-M3 needs none, BGE v1.5 does.
        query_max_length: The same limit for queries; `max_length` if None.
        pooling: How a dense vector is made. None uses the pooling that the checkpoint's files state: "cls" for BGE-M3,
            "mean" for many dense-only checkpoints. "mcls" is for long documents, if the files state "cls": the mean of
            a [CLS] every 256 tokens (paper, appendix B.2).
        cache_size_bytes: Memory for vectors of recent texts, shared by the network's handles; 0 for none.

    Raises:
        FileNotFoundError: If the folder or repository does not exist.
        ValueError: If a setting is out of range, the device cannot be used, or the checkpoint is incomplete, damaged or
            trained with another pooling.
        TypeError: If the checkpoint's tokenizer is a slow one.
        RuntimeError: In a process forked from one that has loaded a network.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        shared: bool = True,
        device: str | torch.device | None = "auto",
        dtype: str | torch.dtype | None = "auto",
        revision: str | None = None,
        max_length: int = 8192,
        query_instruction: str | None = "",
        query_max_length: int | None = None,
        pooling: Pooling | None = None,
        cache_size_bytes: int = 64 << 20,
    ) -> None:
        if pooling is not None and pooling not in get_args(Pooling):
            raise ValueError(f"pooling must be one of {', '.join(get_args(Pooling))}, got {pooling!r}")
        if not isinstance(cache_size_bytes, SupportsFloat):
            raise TypeError(f"cache_size_bytes must be a number, got {cache_size_bytes!r}")
        if cache_size_bytes < 0:
            raise ValueError(f"cache_size_bytes must be 0 or more, got {cache_size_bytes}")
        if not isinstance(query_instruction, str | None):
            raise TypeError(f"query_instruction must be a string, got {query_instruction!r}")
        self.model = _name(model)
        """The folder or the hub's repository that was loaded."""
        self.settings: Mapping[str, Any] = {
            "shared": shared, "device": device, "dtype": dtype, "revision": revision, "max_length": max_length,
            "query_instruction": query_instruction, "query_max_length": query_max_length, "pooling": pooling,
            "cache_size_bytes": cache_size_bytes,
        }  # fmt: skip
        """The further arguments that it was opened with."""
        self._pooling = pooling
        self._is_shared, self._revision = shared, revision
        self._device = "auto" if device is None else str(device)
        self._dtype = "auto" if dtype is None else str(dtype).removeprefix("torch.")
        self._max_length: dict[Kind, int] = {
            "document": check_length(max_length),
            "query": check_length(max_length if query_max_length is None else query_max_length),
        }
        self._query_instruction, self._cache_size_bytes = query_instruction or "", cache_size_bytes
        self._is_closed = False
        self._engine: Engine | None = self._open()

    def close(self) -> None:
        """Release this handle; the network is freed with its last handle. Later calls raise RuntimeError."""
        self._is_closed, self._engine = True, None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        self._live_engine()
        return self.__dict__ | {"_engine": None, "_is_shared": True}  # opened at first use: unpickling cannot fail

    def __copy__(self) -> Self:
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__, _engine=self._live_engine())  # the same network, even if shared=False
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self.__copy__()

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else "not opened yet"
        if self._engine is not None:
            state = f"{self.dim} dimensions, {'+'.join(self.modes)}, {self.device}, {self.dtype}"
        return f"{type(self).__name__}({self.model!r}, {state})"

    def _open(self) -> Engine:
        devices = find_devices(self._device)
        dtype = find_dtype(self._dtype, devices[0])
        folder = find_checkpoint(self.model, revision=self._revision)
        engine = open_engine(folder, devices, dtype, shared=self._is_shared)
        own = engine.network.pooling
        if self._pooling not in {None, own, "mcls"} or (self._pooling == "mcls" and own != "cls"):
            raise ValueError(
                f"{self.model} was trained with pooling={own!r}, so pooling={self._pooling!r} would return meaningless "
                "vectors: leave pooling out"
            )
        if engine.network.heads is None and (prompt := default_prompt(folder)) not in {"", self._query_instruction}:
            warn_caller(
                f"sentence-transformers puts the prompt {prompt!r} before every text of {self.model}, and this package "
                f"does not: pass query_instruction={prompt!r} if it is for queries"
            )
        engine.cache.allow(self._cache_size_bytes)
        return engine

    def _live_engine(self) -> Engine:
        if self._is_closed:
            raise RuntimeError(f"this encoder ({self.model}) was closed: open another with M3Encoder(...)")
        if self._engine is None or self._engine.process_id != os.getpid():
            check_not_forked()
            self._engine = self._open()
        return self._engine

    @property
    def device(self) -> str:
        """The network's device, for instance "cuda:0"; several with commas between them."""
        return ",".join(map(str, self._live_engine().devices))

    @property
    def dtype(self) -> str:
        """The dtype of the network, for instance "float16". Vectors and scores are always float32."""
        return str(self._live_engine().dtype).removeprefix("torch.")

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes that the checkpoint has heads for."""
        return self._live_engine().network.modes

    @property
    def pooling(self) -> Pooling:
        """How a text's tokens become its dense vector: "cls", "mcls" or "mean"."""
        return self._pooling or self._live_engine().network.pooling

    @property
    def dim(self) -> int:
        """Length of a dense vector."""
        return self._live_engine().network.dim

    @property
    def max_length(self) -> int:
        """The most tokens of a document: the setting, or the checkpoint's positions if those are fewer."""
        return self._limit("document")

    @property
    def query_max_length(self) -> int:
        """The most tokens of a query: the setting, or the checkpoint's positions if those are fewer."""
        return self._limit("query")

    @property
    def vocabulary(self) -> Sequence[str]:
        """The token of every id."""
        return self._live_engine().tokenizer.vocabulary

    @property
    def stats(self) -> EncoderStats:
        """The network's counters so far, for all its handles together."""
        return self._live_engine().counters.stats

    @property
    def fingerprint(self) -> str:
        """32 hexadecimal digits that identify the model by its configuration, pooling, vocabulary, heads and weights.

        A copy under another name, in another file format or rounded to float16 has the same fingerprint.

        Raises:
            RuntimeError: If the checkpoint's files were changed after the encoder was opened.
        """
        return self._live_engine().fingerprint

    def _limit(self, kind: Kind, max_length: int | None = None) -> int:
        """Return the most tokens of a text: max_length, or the setting if None; at most the checkpoint's positions."""
        if kind not in get_args(Kind):
            raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {kind!r}")
        limit = self._max_length[kind] if max_length is None else check_length(max_length)
        return min(limit, self._live_engine().network.max_positions)

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

        A text that occurs twice is encoded once. A text over the length limit is cut; one warning per call states how
        many were. For a few short queries all modes are computed and cached, and the requested ones returned: a query
        that is embedded, then sparse-embedded and then reranked costs one pass.

        Args:
            texts: Any iterable of strings, read once; it may be empty, and so may the strings.
            kind: "query" puts the query instruction before every text and applies the query's length limit.
            modes: The modes to return; by default all that the checkpoint has.
            max_length: The most tokens of a text in this call.
            show_progress: Whether to draw a progress bar.

        Raises:
            TypeError: If texts is one string, or holds anything but strings.
            ValueError: For an unknown kind or mode, a mode without a head, a length under 3, or a text that is not
                valid Unicode.
            RuntimeError: If the encoder was closed, after a fork, or if the worker's thread was killed.
            FloatingPointError: If the network's values are not finite, as after an overflow in half precision.
            torch.OutOfMemoryError: If a single text is too long for the device's memory. (Passes of several texts are
                made smaller until they fit.)
        """
        prepared, options = self._prepared(texts, kind, modes, max_length)
        call = Call(self._live_engine(), prepared, options)
        call.start()
        if show_progress:
            with _progress(len(prepared)) as advance:
                call.wait(advance)
        else:
            call.wait()
        vectors, is_cut = call.finish()
        if n_cut := int(is_cut.sum()):
            warn_of_cut(n_cut, len(prepared), options.max_length)
        return vectors

    async def aencode(
        self,
        texts: Iterable[str],
        *,
        kind: Kind = "document",
        modes: Sequence[Mode] | None = None,
        max_length: int | None = None,
    ) -> M3Vectors:
        """Return what `encode` returns, without blocking the event loop. If the task is cancelled, so is the call."""
        limit = self._limit(kind, max_length)
        vectors, is_cut = await self.aencode_marked(texts, kind=kind, modes=modes, max_length=max_length)
        if n_cut := int(is_cut.sum()):
            warn_of_cut(n_cut, len(vectors), limit)
        return vectors

    async def aencode_marked(
        self,
        texts: Iterable[str],
        *,
        kind: Kind = "document",
        modes: Sequence[Mode] | None = None,
        max_length: int | None = None,
    ) -> tuple[M3Vectors, NDArray[np.bool_]]:
        """Return what `aencode` returns, and (n,) bool, whether each text was cut, instead of a warning."""
        prepared, options = self._prepared(texts, kind, modes, max_length)
        return await aencode(self._live_engine(), prepared, options)

    def tokenize(
        self, texts: Iterable[str], *, kind: Kind = "document", max_length: int | None = None
    ) -> list[list[str]]:
        """Return the tokens of texts without [CLS], one for every row of the multi-vector. The last token is [SEP].

        Arguments and errors are those of `encode`.
        """
        instructed, options = self._prepared(texts, kind, None, max_length)
        return self._live_engine().tokenizer.tokens(instructed, max_length=options.max_length, pooling=self.pooling)

    def token_spans(
        self, texts: Iterable[str], *, kind: Kind = "document", max_length: int | None = None
    ) -> list[NDArray[np.int64]]:
        """Return where each token of `tokenize` stands in its text, without a pass of the network.

        Arguments and errors are those of `encode`. The tokens of a query instruction are empty and at 0.

        Returns:
            (tokens, 2) int64 for each text: the first character of a token and the one after its last. The last token
            is [SEP], which is empty: where it stands is where the network stops reading.
        """
        texts = check_texts(texts)
        instructed, options = self._prepared(texts, kind, None, max_length)
        before = [len(whole) - len(text) for whole, text in zip(instructed, texts, strict=True)]
        found = self._live_engine().tokenizer.spans(instructed, max_length=options.max_length, pooling=self.pooling)
        return [np.maximum(spans - n, 0) for spans, n in zip(found, before, strict=True)]

    def tokenizer_json(self) -> str:
        """Return the content of the tokenizer's tokenizer.json, with which another process can count tokens."""
        return self._live_engine().tokenizer.to_json()

    def encode_batches(
        self,
        texts: Iterable[str],
        *,
        kind: Kind = "document",
        modes: Sequence[Mode] | None = None,
        max_length: int | None = None,
        show_progress: bool = False,
    ) -> Iterator[M3Vectors]:
        """Yield the vectors of any number of texts, in their order and in bounded memory, at most 2,048 at a time.

        Arguments and errors are those of `encode`. Texts are read while the batches are taken: the device encodes the
        next batch while the caller uses one.
        """
        check_stream(texts)
        self._prepared([], kind, modes, max_length)  # raises for a wrong argument now, not at the first batch
        return self._batches(texts, kind, modes, max_length, show_progress=show_progress)

    def _batches(
        self, texts: Iterable[str], kind: Kind, modes: Sequence[Mode] | None, max_length: int | None, *,
        show_progress: bool,
    ) -> Iterator[M3Vectors]:  # fmt: skip
        n_texts, n_cut, limit = 0, 0, self._limit(kind, max_length)

        def calls() -> Iterator[Call]:
            position = 0
            for window in windows(texts, max_texts=_WINDOW_TEXTS, max_tokens=_WINDOW_TOKENS, max_length=limit):
                yield Call(self._live_engine(), *self._prepared(window, kind, modes, limit, position))
                position += len(window)

        total = len(texts) if isinstance(texts, Sized) else None
        with _progress(total) if show_progress else nullcontext() as advance:
            for vectors, is_cut in encode_ahead(calls(), advance):
                n_texts, n_cut = n_texts + len(vectors), n_cut + int(is_cut.sum())
                yield vectors
                check_not_forked()  # a forked child cannot finish the pass that its parent began
        if n_cut:
            warn_of_cut(n_cut, n_texts, limit)

    def _prepared(
        self,
        texts: Iterable[str],
        kind: Kind,
        modes: Sequence[Mode] | None,
        max_length: int | None,
        position: int = 0,
    ) -> tuple[Sequence[str], EncodeOptions]:
        """Check a call's arguments; return its texts with the instruction, and its options.

        Position is the number of the first text in error messages.
        """
        limit = self._limit(kind, max_length)
        texts = check_texts(texts, position)
        there = self._live_engine().network.modes
        wanted = computed = there if modes is None else check_modes(modes)
        check_heads(self.model, there, wanted)
        is_cached = self._cache_size_bytes > 0
        if kind == "query":
            if is_cached and sum(min(len(text), limit) for text in texts) <= _INTERACTIVE_CHARACTERS:
                computed = there
            texts = [self._query_instruction + text for text in texts]
        return texts, EncodeOptions(wanted, computed, limit, self.pooling, is_cached)

    def score(self, query: str, texts: Iterable[str], *, weights: WeightsLike | None = None) -> M3Scores:
        """Score one query against texts in every mode the checkpoint has. Each text is encoded once.

        Args:
            query: Encoded as `kind="query"`.
            texts: Encoded as documents, in batches, so that any number of them fits in memory.
            weights: How the modes count in `combined`: any `WeightsLike`; equal if None.

        Raises:
            TypeError: If query is not a string, texts is one string or holds anything but strings, or weights are not a
                `WeightsLike`.
            ValueError: If a text is not valid Unicode, weights are unknown or negative, or lie only on modes that the
                checkpoint lacks.
            RuntimeError: If the encoder was closed, or after a fork.
        """
        if not isinstance(query, str):
            raise TypeError(f"query must be a string, got {type(query).__name__}")
        return self._score_pairs([(query, text) for text in check_texts(texts)], resolve_weights(weights))

    def score_pairs(self, pairs: Iterable[tuple[str, str]], *, weights: WeightsLike | None = None) -> M3Scores:
        """Score pairs of a query and a text, in their order. Each text is encoded once, however many pairs it is in.

        The vectors of all distinct queries are in memory at once, those of the documents batch by batch.

        Arguments and errors are those of `score`.
        """
        return self._score_pairs(check_pairs(pairs), resolve_weights(weights))

    def _score_pairs(self, pairs: Sequence[tuple[str, str]], weights: ModeWeights) -> M3Scores:
        weights.normalized(self.modes)
        queries, query_of = distinct_texts(query for query, _ in pairs)
        documents, document_of = distinct_texts(text for _, text in pairs)
        query_limit, limit = self._limit("query"), self._limit("document")
        of_query, n_cut = self._encoded(queries, "query", query_limit)
        columns = {mode: np.zeros(len(pairs), dtype=np.float32) for mode in (*self.modes, "combined")}
        start = 0
        for window in windows(documents, max_texts=_WINDOW_TEXTS, max_tokens=_WINDOW_TOKENS, max_length=limit):
            vectors, n_cut_here = self._encoded(window, "document", limit)
            n_cut += n_cut_here
            here = np.flatnonzero((document_of >= start) & (document_of < start + len(window)))
            scores = score_pairs(of_query, vectors, query_of[here], document_of[here] - start, weights)
            for name, column in columns.items():
                column[here] = getattr(scores, name)
            start += len(window)
        if n_cut:
            warn_of_cut(n_cut, len(queries) + len(documents), query_limit, limit)
        return M3Scores(**columns)

    def _encoded(self, texts: Sequence[str], kind: Kind, limit: int) -> tuple[M3Vectors, int]:
        call = Call(self._live_engine(), *self._prepared(texts, kind, None, limit))
        call.start()
        call.wait()
        vectors, is_cut = call.finish()
        return vectors, int(is_cut.sum())

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the checkpoint in BGE-M3's format, which FlagEmbedding and sentence-transformers read too.

        Raises:
            FileExistsError: If the folder holds a checkpoint already.
            ValueError: If the encoder computes in int8: its weights are rounded.
        """
        engine = self._live_engine()
        save_checkpoint(
            folder,
            backbone=engine.network.backbone,
            heads=engine.network.heads,
            tokenizer=engine.tokenizer,
            pooling=engine.network.pooling,
            max_length=engine.network.max_positions,
        )


def _name(model: str | os.PathLike[str]) -> str:
    """Return the model's name for pickles: a folder's absolute path, otherwise the name as it was passed.

    Raises:
        ValueError: If the name is empty or a URL.
    """
    if not os.fspath(model):
        raise ValueError("model must be a folder or the name of a checkpoint, got an empty string")
    if os.fspath(model).startswith(("http://", "https://")):
        raise ValueError(
            f"{model} is a server's URL, and M3Encoder loads a model into this process: open RemoteEncoder({model!r}), "
            "which works wherever an M3Encoder does"
        )
    folder = Path(model).expanduser()
    if isinstance(model, os.PathLike) or (model not in BUNDLED and os.path.isdir(folder)):  # noqa: PTH112 - as in `find_checkpoint`
        return str(folder.resolve())
    return model


@contextmanager
def _progress(total: int | None) -> Iterator[Callable[[int], object]]:
    """Show a progress bar, and yield the function that advances it."""
    with tqdm(total=total, desc="encoding", unit="text") as bar:
        yield bar.update
        if total is not None:
            bar.update(total - bar.n)  # the texts from the cache
