"""ONNX Runtime on the CPU as a contender: the same network exported, in float32, or in int8 by its own tool."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic

from m3_integrations.checkpoint import load_heads, load_tokenizer
from m3_integrations.checkpoint.architectures import load_backbone

if TYPE_CHECKING:
    from m3_integrations.vectors import FloatArray

TEXTS_PER_BATCH = 16


class OnnxRuntime:
    """What somebody has who exports BGE-M3 with torch: padded batches of texts of similar length.

    Args:
        folder: The checkpoint.
        files: Where the exported network is kept.
        dtype: "float32", or "int8" for `quantize_dynamic` at its defaults.
    """

    def __init__(self, folder: Path, files: Path, *, dtype: str) -> None:
        self._tokenizer = load_tokenizer(folder)
        path = files / f"{dtype}.onnx"
        if not path.exists():
            full = files / "float32.onnx"
            if not full.exists():
                _export(folder, full)
            if dtype == "int8":
                quantize_dynamic(full, path, weight_type=QuantType.QInt8, use_external_data_format=True)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def encode(self, texts: list[str], *, max_length: int) -> tuple[FloatArray, list[dict[int, float]], list[Any]]:
        """Return dense vectors, lexical weights by token id, and multi-vectors, in the order of the texts."""
        tokens = self._tokenizer(texts, max_length=max_length)
        order = sorted(range(len(texts)), key=lambda i: -len(tokens[i].ids))
        dense = np.empty((len(texts), 0), dtype=np.float32)
        lexical: list[dict[int, float]] = [{} for _ in texts]
        multi_vector: list[Any] = [None] * len(texts)
        for first in range(0, len(order), TEXTS_PER_BATCH):
            places = order[first : first + TEXTS_PER_BATCH]
            ids = np.full((len(places), len(tokens[places[0]].ids)), self._tokenizer.pad_id, dtype=np.int64)
            mask = np.zeros_like(ids)
            for row, i in enumerate(places):
                ids[row, : len(tokens[i].ids)], mask[row, : len(tokens[i].ids)] = tokens[i].ids, 1
            vectors, weights, of_tokens = self._session.run(None, {"input_ids": ids, "attention_mask": mask})
            if not first:
                dense = np.empty((len(texts), vectors.shape[1]), dtype=np.float32)
            dense[places] = vectors
            for row, i in enumerate(places):
                n = len(tokens[i].ids)
                multi_vector[i] = of_tokens[row, 1:n]
                for token, weight in zip(tokens[i].ids.tolist(), weights[row, :n].tolist(), strict=True):
                    if weight > lexical[i].get(token, 0.0) and token not in self._tokenizer.ignored_ids:
                        lexical[i][token] = weight
        return dense, lexical, multi_vector


class _Exported(torch.nn.Module):
    def __init__(self, folder: Path) -> None:
        super().__init__()
        backbone: Any = load_backbone(folder, torch.float32)
        heads = load_heads(folder, backbone.config.hidden_size, torch.float32)
        if heads is None:
            raise ValueError(f"{folder} has no heads")
        self.backbone, self.multi_vector, self.lexical = backbone, heads.multi_vector, heads.lexical

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        normalize = torch.nn.functional.normalize
        weights = torch.relu(self.lexical(hidden)).squeeze(-1)
        return normalize(hidden[:, 0], dim=-1), weights, normalize(self.multi_vector(hidden), dim=-1)


def _export(folder: Path, path: Path) -> None:
    batch, length = torch.export.Dim("batch", min=1), torch.export.Dim("length", min=2)
    example = torch.ones(2, 8, dtype=torch.int64)
    torch.onnx.export(
        _Exported(folder).eval(),
        (example + 9, example),
        path,
        input_names=["input_ids", "attention_mask"],
        output_names=["dense", "lexical", "multi_vector"],
        dynamic_shapes={"input_ids": {0: batch, 1: length}, "attention_mask": {0: batch, 1: length}},
        external_data=True,
        verbose=False,
    )
