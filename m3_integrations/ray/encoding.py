"""`encode_corpus`: all workers of a Ray cluster encode a corpus into a server's store or into Parquet files."""

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
"""Batches that a worker handles at a time: it writes one while the network encodes the other."""


@dataclass(frozen=True, slots=True)
class EncodeReport:
    """Counts of a run.

    Attributes:
        n_encoded: Records that were encoded and written.
        n_there: Records that the target already had with the same text and metadata.
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
    """Encode a corpus on all GPUs of the cluster, or on its CPUs, and write the vectors to a server or a folder.

    Each worker has one model on one device. For each batch it asks the target which records are missing, encodes these
    and writes them. Vectors are sent only to the target. After a killed run, call this function again: it encodes only
    the records that were not written, and makes no duplicates of an id. A record whose text or metadata changed is
    encoded again. Ray replaces a worker that dies, and does its batches again.

    Args:
        corpus: Columns `id` and `text`, strings. Optional column `metadata`: JSON as a string, or a struct; Ray sets a
            struct's absent keys to None. Ids must differ; of two records with the same id either may stay.
        target: The URL of a Qdrant server, into which many processes may write at a time. Or a folder for Parquet
            files, which `m3 load` puts into any store: a path that all machines share, or a URI such as
            `s3://bucket/folder`. Only one run at a time may write into a folder.
        model: A folder that every machine has, a repository of the hub, or the name of a bundled checkpoint.
        modes: The modes to encode; by default all that the checkpoint has heads for and the target keeps.
        n_workers: The number of workers; by default one per GPU, or one per machine if the cluster has no GPU.
        cpus_per_worker: CPUs that a worker takes. Default: 1 with a GPU, otherwise all but two of the smallest
            machine's CPUs.
        batch_size: Records that are written together. A killed run loses the work on at most two batches per worker.
        encoder_settings: Further arguments of `M3Encoder`.
        store_settings: Further arguments of `open_store`, for a server.

    Raises:
        ValueError: If a column is missing or does not hold strings, a record has no id or text, a number is below 1,
            the cluster has too few CPUs or GPUs for the workers and the reading, or the target holds another model's
            vectors.
        TypeError: For unknown settings, for store_settings if the target is a folder, or for metadata that are not an
            object.
        OSError: If the target cannot be written.
    """
    known = corpus.schema(fetch_if_missing=False)
    if known is not None and isinstance(known.base_schema, pa.Schema):  # otherwise the workers check the columns
        check_columns(known.base_schema)
    for name, number in (("n_workers", n_workers), ("cpus_per_worker", cpus_per_worker), ("batch_size", batch_size)):
        if number is not None and number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    workers = plan_workers(n_workers, cpus_per_worker)
    open_place = _place(target, store_settings)
    # Make every block one batch: one large block would occupy a single worker, and a worker's death costs a block.
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
    """Make Ray raise a worker's error with its own type, such as ValueError, while this context lasts."""
    before = corpus.context.raise_original_map_exception
    corpus.context.raise_original_map_exception = True
    try:
        yield
    finally:
        corpus.context.raise_original_map_exception = before


@dataclass(frozen=True, slots=True)
class Workers:
    """The number of workers and their resources.

    Attributes:
        n: The number of workers.
        cpus: CPUs that each worker takes.
        gpus: GPUs that each worker takes: 1, or 0 if the cluster has no GPU.
    """

    n: int
    cpus: int
    gpus: int


def plan_workers(n: int | None, cpus: int | None) -> Workers:
    """Return the workers for these arguments of `encode_corpus`; None means its default.

    Raises:
        ValueError: If the cluster is too small for the workers and one CPU for reading.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    n_gpus = int(sum(node.get("GPU", 0) for node in nodes))
    n_cpus = int(sum(node.get("CPU", 0) for node in nodes))
    smallest = int(min((node["CPU"] for node in nodes if node.get("CPU", 0) > 0), default=0))
    workers = Workers(n or n_gpus or len(nodes), cpus or (1 if n_gpus else max(smallest - 2, 1)), 1 if n_gpus else 0)
    # Reading needs a CPU that no worker takes: without it Ray would wait without end and without a message.
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
    """Encodes the missing records of a batch, writes them to the target, and returns their counts."""

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
        """Open both at the first batch: an error in the constructor reaches the caller as an actor's death."""
        with self._lock:
            if self._opened is None:
                encoder = m3_integrations.M3Encoder(self._model, **self._settings)  # imports torch
                self._opened = encoder, self._open_place(encoder, self._modes)
            return self._opened
