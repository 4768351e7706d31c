"""A corpus encoded by all workers of a Ray cluster, into a server's store or into Parquet files."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, Dataset

import m3_integrations
from m3_integrations.parquet import ParquetFolder
from m3_integrations.ray.places import FolderPlace, OpenPlace, StorePlace, check_columns, rows_of
from m3_integrations.vectors import Mode

if TYPE_CHECKING:
    from m3_integrations.encoder import M3Encoder

_CALLS_AT_ONCE: Final = 2
"""Batches that a worker has under way: one is written while the network works on another."""


@dataclass(frozen=True, slots=True)
class EncodeReport:
    """What a run did.

    Attributes:
        n_encoded: Records that were encoded and written.
        n_there: Records that were written before, with the same text and metadata.
    """

    n_encoded: int
    n_there: int


def encode_corpus(
    corpus: Dataset,
    target: str | os.PathLike[str],
    *,
    model: str = "BAAI/bge-m3",
    modes: Sequence[Mode] | None = None,
    n_workers: int | None = None,
    cpus_per_worker: int | None = None,
    batch_size: int = 256,
    encoder_settings: Mapping[str, Any] | None = None,
    store_settings: Mapping[str, Any] | None = None,
) -> EncodeReport:
    """Encode a corpus on all GPUs of the cluster, or its CPUs, and write it where it lasts.

    Each worker has one model on one device. It asks the target which records of a batch are there, encodes the others
    and writes them; vectors travel to the target alone. So a run that was killed goes on when it is called again:
    nothing is encoded twice that was written, and ids make no duplicates. A record whose text or metadata changed is
    encoded again. A worker that dies is replaced, and its batches are done again.

    Args:
        corpus: Columns `id` and `text`, strings, and if you like `metadata`: JSON as a string, or a struct, whose
            absent keys are None to Ray. Ids differ; of two equal ones it is not said which stays.
        target: The URL of a Qdrant server, whose store many processes may write; or a folder for Parquet files, which
            `m3 load` puts into any store: a path that all machines share, or a URI such as `s3://bucket/folder`. One
            run at a time writes into a folder.
        model: A folder that every machine has, a hub's repository, or the name of a bundled checkpoint.
        modes: Which vectors; by default all that the checkpoint has heads for and the target keeps.
        n_workers: By default as many as there are GPUs; one for each machine if there are none.
        cpus_per_worker: CPUs that a worker takes; by default 1 beside a GPU, otherwise all but two of the smallest
            machine.
        batch_size: Records that are written together: what a kill has had done in vain, twice at most for each worker.
        encoder_settings: Further arguments of `M3Encoder`.
        store_settings: Further arguments of `open_store`, for a server.

    Raises:
        ValueError: If columns are missing or no strings, a number is below 1, the cluster is too small for the workers
            and the reading beside them, or the target holds another model's vectors.
        TypeError: For settings that there are not, or settings of a store where the target is a folder.
        OSError: If the target cannot be written.
    """
    known = corpus.schema(fetch_if_missing=False)
    if known is not None and isinstance(known.base_schema, pa.Schema):  # else the workers look
        check_columns(known.base_schema)
    for name, number in (("n_workers", n_workers), ("cpus_per_worker", cpus_per_worker), ("batch_size", batch_size)):
        if number is not None and number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    workers = plan_workers(n_workers, cpus_per_worker)
    open_place = _place(target, store_settings)
    # A block is a batch: one block of a small corpus would keep one worker busy, and a worker's death costs a block.
    counted = corpus.repartition(target_num_rows_per_block=batch_size).map_batches(
        _Worker,
        fn_constructor_args=(model, dict(encoder_settings or {}), open_place, modes),
        batch_size=batch_size,
        batch_format="pyarrow",
        num_gpus=workers.gpus or None,
        num_cpus=workers.cpus,
        compute=ActorPoolStrategy(
            size=workers.n, max_concurrent_calls_per_actor=_CALLS_AT_ONCE, enable_true_multi_threading=True
        ),
    )
    n_encoded = n_there = 0
    with _own_errors(corpus):
        for row in counted.iter_rows():
            n_encoded, n_there = n_encoded + row["n_encoded"], n_there + row["n_there"]
    return EncodeReport(n_encoded, n_there)


@contextmanager
def _own_errors(corpus: Dataset) -> Iterator[None]:
    """Have Ray raise a worker's error as what it is, a ValueError as one, while this lasts."""
    before = corpus.context.raise_original_map_exception
    corpus.context.raise_original_map_exception = True
    try:
        yield
    finally:
        corpus.context.raise_original_map_exception = before


@dataclass(frozen=True, slots=True)
class Workers:
    """How many workers.

    Attributes:
        n: How many.
        cpus: CPUs that each takes.
        gpus: GPUs that each takes: 1, or 0 where there are none.
    """

    n: int
    cpus: int
    gpus: int


def plan_workers(n: int | None, cpus: int | None) -> Workers:
    """Return the workers that were asked for, or those that fit the cluster, as `encode_corpus` says.

    Raises:
        ValueError: If the cluster is too small for them and for the reading beside them.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    n_gpus = int(sum(node.get("GPU", 0) for node in nodes))
    n_cpus = int(sum(node.get("CPU", 0) for node in nodes))
    smallest = int(min((node["CPU"] for node in nodes if node.get("CPU", 0) > 0), default=0))
    workers = Workers(n or n_gpus or len(nodes), cpus or (1 if n_gpus else max(smallest - 2, 1)), 1 if n_gpus else 0)
    # Reading takes a CPU beside the workers: without one both would wait for ever, and without a word.
    if workers.n * workers.cpus >= n_cpus or workers.n * workers.gpus > n_gpus:
        raise ValueError(
            f"{workers.n} workers with {workers.cpus} CPUs each, and a CPU for reading, do not fit into a cluster of "
            f"{n_cpus} CPUs and {n_gpus} GPUs: ask for fewer, or raise ray.init(num_cpus=...)"
        )
    return workers


def _place(where: str | os.PathLike[str], settings: Mapping[str, Any] | None) -> OpenPlace:
    if isinstance(where, str) and where.lower().startswith(("http://", "https://")):
        return partial(StorePlace, where, dict(settings or {}))
    if settings:
        raise TypeError(
            f"{where} is a folder for Parquet files and has no {', '.join(settings)}: these are settings of the store "
            "that m3 load fills"
        )
    folder = ParquetFolder(where)
    folder.prepare()
    return partial(FolderPlace, folder, ray.put(folder.read_done()))


class _Worker:
    """A model on a device, and where it writes: encodes of a batch what is not there, and returns the numbers."""

    def __init__(
        self, model: str, settings: dict[str, Any], open_place: OpenPlace, modes: Sequence[Mode] | None
    ) -> None:
        self._model, self._settings, self._open_place, self._modes = model, settings, open_place, modes
        self._lock = threading.Lock()
        self._opened: tuple[M3Encoder, StorePlace | FolderPlace] | None = None

    def __call__(self, batch: pa.Table) -> pa.Table:
        rows = rows_of(batch)
        encoder, place = self._open()
        missing = rows.take(place.missing(rows))
        if len(missing):
            place.write(missing, encoder.encode(missing.texts, modes=place.modes))
        return pa.table({"n_encoded": [len(missing)], "n_there": [len(rows) - len(missing)]})

    def _open(self) -> tuple[M3Encoder, StorePlace | FolderPlace]:
        """Open both at the first batch: an error in the constructor would reach the caller as an actor's death."""
        with self._lock:
            if self._opened is None:
                encoder = m3_integrations.M3Encoder(self._model, **self._settings)  # the processes that read need none
                self._opened = encoder, self._open_place(encoder, self._modes)
            return self._opened
