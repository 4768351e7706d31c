"""The network: a backbone with BGE-M3's heads, from token ids to vectors in one forward pass."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from numpy.typing import NDArray
from torch import nn

from m3_integrations.checkpoint import (
    DensePooling,
    Heads,
    check_width,
    count_positions,
    load_heads,
    read_limit,
    read_pooling,
)
from m3_integrations.model.cpu_layers import CpuLayers, prepare_for_cpu
from m3_integrations.model.forward_pass import ForwardPass, largest_weights, to_device
from m3_integrations.model.packing import has_varlen_kernel, packed_attention, packed_positions, padded_attention
from m3_integrations.model.xlm_roberta import XlmRoberta, load_encoder
from m3_integrations.tokenizer import Tokens
from m3_integrations.vectors import MODES, IntArray, Mode, offsets_of

_MASKLESS: Final = {"roberta", "bert"}
_LEAST_NORM: Final = 1e-12
"""The least divisor of a vector, as in `F.normalize`."""


class M3Network(nn.Module):
    """XLM-RoBERTa, or another encoder that transformers knows, with BGE-M3's heads.

    Args:
        backbone: An `XlmRoberta`, or a model of transformers that returns `last_hidden_state`.
        heads: None for a checkpoint that has dense vectors only.
        pad_id: The token id that fills a padded batch.
        ignored_ids: (ids,) token ids that never carry a lexical weight.
        pooling: How the dense vector is made. With "mean" the checkpoint has no heads.
        max_length: The most tokens of a text that the checkpoint was made for; None for all positions.
        is_packed: Whether a batch is one row without padding, which costs the sum of its lengths. Otherwise every text
            has a row, padded to the longest.

    Attributes:
        modes: All three, or only dense for a checkpoint without heads.
        dim: Length of a dense vector.
        multi_vector_dim: Length of a token's vector; None without heads.
        vocabulary_size: How many token ids the network has embeddings for.
        max_positions: The most tokens of a text that the checkpoint has positions for, or was made for.

    Raises:
        ValueError: If is_packed is true and the backbone is not an `XlmRoberta`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        heads: Heads | None,
        *,
        pad_id: int,
        ignored_ids: IntArray,
        pooling: DensePooling = "cls",
        max_length: int | None = None,
        is_packed: bool = False,
    ) -> None:
        super().__init__()
        if is_packed and not isinstance(backbone, XlmRoberta):
            raise ValueError(
                f"is_packed=True needs an XlmRoberta, got {type(backbone).__name__}: only its positions are known"
            )
        config: Any = backbone.config
        self.is_packed = is_packed
        self.backbone = backbone
        self.multi_vector_head = heads.multi_vector if heads else None
        self.lexical_head = heads.lexical if heads else None
        self.heads = heads
        self.pad_id = pad_id
        self.ignored_ids = ignored_ids
        self.modes: tuple[Mode, ...] = MODES if heads else ("dense",)
        self.dim: int = config.hidden_size
        self.multi_vector_dim: int | None = heads.multi_vector.out_features if heads else None
        self.vocabulary_size: int = config.vocab_size
        self.pooling = pooling
        self.max_positions = min(count_positions(backbone), max_length or sys.maxsize)
        self._config = config
        self._stream: torch.cuda.Stream | None = None
        self._cpu_layers: CpuLayers | None = None

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        device: torch.device,
        dtype: torch.dtype,
        pad_id: int,
        ignored_ids: IntArray,
        is_packed: bool | None = None,
    ) -> M3Network:
        """Load a network from a checkpoint folder. No weight is initialised at random.

        Args:
            folder: The checkpoint.
            device: The device that computes.
            dtype: The dtype of the network. With int8 only the backbone's linear layers use it; the rest is float32.
            pad_id: As in the class.
            ignored_ids: As in the class.
            is_packed: As in the class. None packs batches if the backbone is an `XlmRoberta` and has fast attention for
                them on this device.

        Raises:
            ValueError: If anything is missing, damaged or mis-shaped, if the pooling is not supported, or if is_packed
                is true and the backbone is not an `XlmRoberta`.
        """
        pooling = read_pooling(folder)
        stored = torch.float32 if dtype == torch.int8 else dtype
        backbone: Any = load_encoder(folder, stored).to(device)
        cpu_layers = prepare_for_cpu(backbone, dtype) if device.type == "cpu" else None
        heads = load_heads(folder, backbone.config.hidden_size, stored)
        if heads is not None and pooling != "cls":
            raise ValueError(f"{folder} has BGE-M3's heads, whose dense vector is [CLS], but its files name {pooling} "
                             "pooling: correct 1_Pooling/config.json, or delete the heads")  # fmt: skip
        if heads is None:
            check_width(folder, backbone.config.hidden_size)
        if is_packed is None:
            is_packed = cpu_layers is not None or (isinstance(backbone, XlmRoberta) and has_varlen_kernel(backbone))
        network = cls(
            backbone,
            heads,
            pad_id=pad_id,
            ignored_ids=ignored_ids,
            pooling=pooling,
            # BGE-M3's trainers write a number there that is no limit: FlagEmbedding does not read it.
            max_length=None if heads else read_limit(folder),
            is_packed=is_packed,
        )
        network = network.to(device).eval()
        network._cpu_layers = cpu_layers
        if device.type == "cuda":
            network._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        return network

    @torch.inference_mode()
    def launch(self, batch: Sequence[Tokens], *, multi_vector: Sequence[bool]) -> ForwardPass:
        """Start one forward pass. On CUDA it ends later, and this call does not wait for it.

        All indices are made on the host: if the device computed them, the host would have to wait for their number.

        Args:
            batch: One or more texts, none longer than `max_positions`.
            multi_vector: (n,) whether to compute a text's token vectors; lexical weights are always computed.
        """
        lengths = np.array([len(tokens.ids) for tokens in batch], dtype=np.int64)
        ids = np.concatenate([tokens.ids for tokens in batch], dtype=np.int64)
        asked = np.array(multi_vector, dtype=bool) & (self.multi_vector_head is not None)
        arrays = self._arrays(batch, lengths, ids, asked)
        here = to_device(arrays, self.backbone.device, self._stream)  # type: ignore[arg-type]
        hidden = self._packed(here, lengths) if self.is_packed else self._padded(here, lengths)  # (tokens, hidden)
        n_token_vectors = np.where(asked, lengths - arrays["cls_counts"], 0)
        return ForwardPass(self._results(hidden, here, len(batch)), n_token_vectors.tolist(), self._stream)

    def _arrays(
        self, batch: Sequence[Tokens], lengths: IntArray, ids: IntArray, asked: NDArray[np.bool_]
    ) -> dict[str, IntArray]:
        """Return the token ids of all texts, one text after another, and the indices that a pass needs.

        Returns:
            ids: (tokens,) the token ids.
            ignored_ids: The attribute of this name.
            rows: (tokens,) the text of every token.
            cls_positions, cls_rows: (cls,) the [CLS] tokens that the tokenizer added, and their texts.
            cls_counts: (n,) the number of added [CLS] of every text.
            text_positions: The other tokens of the texts for which token vectors were requested.
            positions, boundaries: For a packed batch, see `packed_positions` and `packed_attention`.
            padded_ids, real, lengths: For a padded batch: all ids row by row, and the indices of those that are tokens.
            padded_positions: For a padded batch of an `XlmRoberta`: the positions row by row.
        """
        starts = np.cumsum(lengths) - lengths
        counts = np.array([tokens.n_cls for tokens in batch], dtype=np.int64)
        positions = np.concatenate([start + t.cls_positions for start, t in zip(starts, batch, strict=True)])
        marks = np.repeat(asked, lengths)
        marks[positions] = False
        arrays: dict[str, IntArray] = {
            "ids": ids,
            "ignored_ids": self.ignored_ids,
            "rows": np.repeat(np.arange(len(batch)), lengths),
            "cls_positions": positions,
            "cls_rows": np.repeat(np.arange(len(batch)), counts),
            "cls_counts": counts,
            "text_positions": np.flatnonzero(marks),
        }
        if self.is_packed:
            arrays["positions"] = packed_positions(ids, lengths, self._config.pad_token_id)
            arrays["boundaries"] = offsets_of(lengths)
            return arrays
        mask = np.arange(lengths.max()) < lengths[:, None]
        arrays |= {"padded_ids": _padded(ids, mask, self.pad_id), "real": np.flatnonzero(mask), "lengths": lengths}
        if isinstance(self.backbone, XlmRoberta):
            padding = self._config.pad_token_id
            arrays["padded_positions"] = _padded(packed_positions(ids, lengths, padding), mask, padding)
        return arrays

    def _packed(self, here: Mapping[str, torch.Tensor], lengths: IntArray) -> torch.Tensor:
        """Return the last hidden states of a packed batch, (tokens, hidden)."""
        if self._cpu_layers is not None:
            return self._cpu_layers(here["ids"], here["positions"], lengths.tolist())
        attend = packed_attention(self.backbone, here["boundaries"], lengths.tolist())
        hidden: torch.Tensor = self.backbone(here["ids"][None], here["positions"][None], attend)  # (1, tokens, hidden)
        return hidden[0]

    def _padded(self, here: Mapping[str, torch.Tensor], lengths: IntArray) -> torch.Tensor:
        """Return the last hidden states of a padded batch without its padding, (tokens, hidden)."""
        shape = len(lengths), int(lengths.max())
        is_real = torch.arange(shape[1], device=here["real"].device) < here["lengths"][:, None]
        if isinstance(self.backbone, XlmRoberta):
            attend = padded_attention(None if (lengths == shape[1]).all() else is_real)
            states: torch.Tensor = self.backbone(
                here["padded_ids"].view(shape), here["padded_positions"].view(shape), attend
            )
            return states.flatten(0, 1)[here["real"]]
        mask: torch.Tensor | None = is_real.long()
        if self._config.model_type in _MASKLESS:  # other architectures may build their own mask
            if (lengths == shape[1]).all():
                mask = None  # no padding: attention without a mask is faster
            elif self._config._attn_implementation == "sdpa":
                # The mask that transformers would make; but it first asks the device whether any token is masked.
                mask = is_real[:, None, None, :].expand(-1, 1, shape[1], -1)
        output = self.backbone(input_ids=here["padded_ids"].view(shape), attention_mask=mask)
        hidden: torch.Tensor = output.last_hidden_state  # (batch, longest, hidden)
        return hidden.flatten(0, 1)[here["real"]]

    def _results(self, hidden: torch.Tensor, here: Mapping[str, torch.Tensor], n: int) -> dict[str, torch.Tensor]:
        """Return the results that `ForwardPass` takes, computed on the device from (tokens, hidden) states."""
        rows = here["rows"]
        is_bad = ~torch.isfinite(_norms(hidden))  # (tokens,)
        # The mean of every text's [CLS] states: one, or one every `MCLS_INTERVAL` tokens; or that of all states.
        is_mean = self.pooling == "mean"
        states = (hidden if is_mean else hidden[here["cls_positions"]]).float()
        sums = states.new_zeros(n, states.shape[1]).index_add_(0, rows if is_mean else here["cls_rows"], states)
        results = {"dense": F.normalize(sums / here["cls_counts"][:, None], dim=-1)}
        if self.lexical_head is not None:
            weights = torch.relu(self.lexical_head(hidden)).squeeze(-1).float()  # (tokens,)
            is_bad |= ~torch.isfinite(weights)
            keys, largest = largest_weights(weights, rows, here["ids"], here["ignored_ids"])
            results |= {"lexical_keys": keys, "lexical_weights": largest}
        if self.multi_vector_head is not None and len(here["text_positions"]):
            vectors = self.multi_vector_head(hidden[here["text_positions"]])
            norms = _norms(vectors)
            is_bad[here["text_positions"]] |= ~torch.isfinite(norms)
            # Copied to the host in float32, 4 kB per token; half precision would take 2. At 0.6 million tokens a second
            # that is 2.4 GB/s, and a pinned copy reaches 25 to 55 during the next pass. Converting float16 to float32
            # on the host would keep most of a core busy: numpy converts 0.67 million tokens a second.
            results["token_vectors"] = vectors.float().div_(norms.clamp_min(_LEAST_NORM)[:, None])  # (tokens, d)
        bad_tokens = torch.zeros(n, dtype=torch.int32, device=hidden.device).index_add_(0, rows, is_bad.int())
        return results | {"is_finite": bad_tokens == 0}


def _norms(rows: torch.Tensor) -> torch.Tensor:
    """Return (rows,) float32, the length of every row. It is finite only if all values of the row are.

    Looking at every value takes longer. A row of values above 1e18, which no network has, counts as not finite.
    """
    norms: torch.Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float32)
    return norms


def _padded(values: IntArray, mask: NDArray[np.bool_], filling: int) -> IntArray:
    """Return a flat (n * longest,) array: values where the (n, longest) mask is True, filling elsewhere."""
    rows = np.full(mask.shape, filling, dtype=np.int64)
    rows[mask] = values
    return rows.ravel()
