"""A corpus encoded once for all modes, in a folder: after a run was killed, the next one continues its work."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from m3_integrations.evaluation.corpus import Corpus
from m3_integrations.store.syncing import sync
from m3_integrations.vectors import Encoder, IntArray, LexicalRows, M3Vectors, Mode, MultiVectorRows, offsets_of

_UNFINISHED: Final = "unfinished"


class EvaluatedEncoder(Encoder, Protocol):
    """An encoder with the settings that its vectors depend on; `M3Encoder` is one."""

    @property
    def max_length(self) -> int:
        """The most tokens of a document."""
        ...

    @property
    def dtype(self) -> str:
        """The type of the network's weights."""
        ...

    @property
    def pooling(self) -> str:
        """The pooling that makes one dense vector of a text's tokens."""
        ...


@dataclass(frozen=True, eq=False)
class Block:
    """Documents with their vectors.

    Attributes:
        rows: (n,) int64 rows of the corpus, ascending.
        vectors: The vectors of these documents.
    """

    rows: IntArray
    vectors: M3Vectors


class EncodedCorpus:
    """The vectors of a corpus, read from a folder a block at a time.

    Args:
        folder: The folder of the blocks; each block is a folder in it.
        modes: The encoded modes.
    """

    def __init__(self, folder: Path, modes: Sequence[Mode]) -> None:
        self.folder, self.modes = folder, tuple(modes)

    def __len__(self) -> int:
        """Return the number of encoded documents."""
        spans = _spans(self.folder)
        return spans[-1][1] if spans else 0

    def blocks(self) -> Iterator[Block]:
        """Yield all documents in the order of the corpus. Token vectors are memory-mapped: read when they are used."""
        for start, end in _spans(self.folder):
            yield Block(np.arange(start, end), _load(self.folder / _span_name(start, end), self.modes))


def encode_corpus(
    encoder: EvaluatedEncoder, corpus: Corpus, work: Path, modes: Sequence[Mode], *, show_progress: bool = False
) -> EncodedCorpus:
    """Encode the documents of a corpus that are not in the work folder yet.

    Every block is durable before the next one begins: it is written under another name, synced, then renamed. Each
    combination of model, length, pooling, precision, modes and texts has its own folder.

    Args:
        encoder: Encodes the texts as documents.
        corpus: The corpus to encode.
        work: The folder for the vectors. Every number takes 4 bytes, and every token has a vector.
        modes: The modes to encode.
        show_progress: Whether to draw a progress bar.

    Raises:
        BlockingIOError: If another process is encoding the same.
    """
    key = {
        "model": encoder.fingerprint,
        "corpus": corpus.digest,
        "max_length": encoder.max_length,
        "pooling": encoder.pooling,
        "dtype": encoder.dtype,
        "modes": list(modes),
    }
    name = hashlib.blake2b(json.dumps(key).encode(), digest_size=8).hexdigest()
    folder = work / f"{corpus.path.parent.resolve().name}-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "about.json").write_text(json.dumps({"encoder": encoder.model, **key}, indent=1) + "\n")
    encoded = EncodedCorpus(folder, modes)
    if len(encoded) == len(corpus):
        return encoded
    try:
        with FileLock(folder / "lock", timeout=0):
            for reached, end in _gaps(folder, len(corpus)):
                texts, start = corpus.texts(np.arange(reached, end)), reached
                for vectors in encoder.encode_batches(texts, modes=modes, show_progress=show_progress):
                    _save(folder, start, vectors)
                    start += len(vectors)
    except Timeout as error:
        raise BlockingIOError(
            f"another process encodes into {folder}: wait until it ends, and its vectors are reused"
        ) from error
    return encoded


def _span_name(start: int, end: int) -> str:
    return f"{start:012d}-{end:012d}"


def _all_spans(folder: Path) -> list[tuple[int, int]]:
    """Return the first row and the row after the last of every block, in their order."""
    names = (path.name.split("-") for path in folder.glob("[0-9]*-[0-9]*"))
    return sorted((int(start), int(end)) for start, end in names)


def _spans(folder: Path) -> list[tuple[int, int]]:
    """Return the first row and the row after the last of every block, up to the first gap."""
    spans, reached = [], 0
    for start, end in _all_spans(folder):
        if start == reached:
            spans.append((start, end))
            reached = end
    return spans


def _gaps(folder: Path, n: int) -> list[tuple[int, int]]:
    """Return the first row and the row after the last of every run of the n rows that no block has.

    Blocks may be missing before others, as vectors may be deleted at any time.
    """
    gaps, reached = [], 0
    for start, end in [*_all_spans(folder), (n, n)]:
        if start > reached:
            gaps.append((reached, start))
        if start >= reached:
            reached = end
    return gaps


def _save(folder: Path, start: int, vectors: M3Vectors) -> None:
    unfinished = folder / _UNFINISHED
    if unfinished.exists():
        shutil.rmtree(unfinished)  # from a run that was killed
    unfinished.mkdir()
    for name, array in _arrays(vectors).items():
        path, content = unfinished / f"{name}.npy", BytesIO()
        np.save(content, array, allow_pickle=False)  # into a file it would not say that the disk is full
        try:
            with path.open("wb") as file:
                file.write(content.getbuffer())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error
    sync(unfinished)
    unfinished.rename(folder / _span_name(start, start + len(vectors)))
    sync(folder)


def _arrays(vectors: M3Vectors) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {}
    if "dense" in vectors.modes:
        arrays["dense"] = vectors.dense
    if "lexical" in vectors.modes:
        rows = vectors.lexical
        arrays |= {"lexical_lengths": rows.lengths, "lexical_indices": rows.indices, "lexical_values": rows.values}
    if "multi_vector" in vectors.modes:
        arrays |= {"token_lengths": vectors.multi_vector.lengths, "token_vectors": vectors.multi_vector.flat}
    return arrays


def _load(folder: Path, modes: Sequence[Mode]) -> M3Vectors:
    def read(name: str, *, lazily: bool = False) -> NDArray[Any]:
        array: NDArray[Any] = np.load(folder / f"{name}.npy", mmap_mode="r" if lazily else None, allow_pickle=False)
        return array

    return M3Vectors(
        dense=read("dense") if "dense" in modes else None,
        lexical=LexicalRows(offsets_of(read("lexical_lengths")), read("lexical_indices"), read("lexical_values"))
        if "lexical" in modes
        else None,
        multi_vector=MultiVectorRows(offsets_of(read("token_lengths")), read("token_vectors", lazily=True))
        if "multi_vector" in modes
        else None,
    )
