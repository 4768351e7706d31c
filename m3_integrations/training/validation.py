"""A validation set during training: the package's own evaluation of the network as it would be written."""

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
"""What is measured."""


class Validation:
    """Measures a network on a data set, by the checkpoint that it would be saved as.

    That checkpoint is written and loaded for each evaluation, so the disk and the device need room for another one.

    Args:
        data: A folder that `read_dataset` reads.
        columns: Which modes.
        work: A folder in which a checkpoint has room for the time of an evaluation.
        device: As `M3Encoder` has it.
        dtype: As `M3Encoder` has it.
        query_instruction: Put before every query.

    Raises:
        FileNotFoundError: If a file of the data set is not there.
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
        """32 hexadecimal digits of the documents, the queries and the judgements."""
        content = [self._dataset.corpus.digest, dict(self._dataset.queries), dict(self._dataset.qrels)]
        return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()

    def __call__(self, network: TrainingNetwork) -> Mapping[str, float]:
        """Return nDCG@10 of every mode, from 0 to 1. What is drawn at random afterwards is as without this call."""
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
