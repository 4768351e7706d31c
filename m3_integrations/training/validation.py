"""A validation set during training: the network is saved and evaluated with `m3_integrations.evaluation`."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from m3_integrations.encoder import M3Encoder
from m3_integrations.evaluation import evaluate, read_dataset
from m3_integrations.training.network import TrainingNetwork

METRIC = "nDCG@10"
"""The metric that is measured."""


class Validation:
    """A function that measures a network on a data set, through the checkpoint that it would be saved as.

    The checkpoint is written and loaded for each evaluation, so the disk and the device need room for another one.

    Args:
        data: A folder that `read_dataset` reads.
        columns: The modes to measure.
        work: The folder for the temporary checkpoint of an evaluation.
        device: The device, as `M3Encoder` takes it.
        dtype: The type of the weights, as `M3Encoder` takes it.
        query_instruction: Put before every query.

    Raises:
        FileNotFoundError: If a file of the data set does not exist.
        ModuleNotFoundError: If the extra `evaluation` is not installed.
        ValueError: If the data set is not in the layout.
    """

    def __init__(
        self,
        data: Path,
        *,
        columns: Sequence[str],
        work: Path,
        device: str,
        dtype: str,
        query_instruction: str = "",
    ) -> None:
        self._dataset = read_dataset(data)
        self._columns, self._work = columns, work
        self._device, self._dtype, self._query_instruction = device, dtype, query_instruction

    @property
    def digest(self) -> str:
        """A hash of the documents, the queries and the judgements, 32 hexadecimal digits."""
        content = [self._dataset.corpus.digest, dict(self._dataset.queries), dict(self._dataset.qrels)]
        return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()

    def __call__(self, network: TrainingNetwork) -> Mapping[str, float]:
        """Return nDCG@10 of every mode, from 0 to 1. torch's random state is restored, so training is not changed."""
        self._work.mkdir(parents=True, exist_ok=True)
        devices = list(range(torch.cuda.device_count()))
        with tempfile.TemporaryDirectory(prefix=".validation-", dir=self._work) as name, torch.random.fork_rng(devices):
            folder = Path(name) / "checkpoint"
            network.save(folder)
            with M3Encoder(
                folder,
                shared=False,
                device=self._device,
                dtype=self._dtype,
                query_instruction=self._query_instruction,
            ) as encoder:
                result = evaluate(encoder, self._dataset, modes=self._columns, metrics=[METRIC], work=Path(name))
        return {column: float(values[METRIC].mean()) for column, values in result.values.items()}
