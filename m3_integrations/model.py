"""The network: a backbone and three heads, from token ids to vectors in one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from numpy.typing import NDArray
from torch import nn

from m3_integrations.checkpoint import Heads, load_backbone, load_heads
from m3_integrations.tokenizer import Tokens
from m3_integrations.vectors import MODES, FloatArray, IntArray, LexicalRows, Mode, MultiVectorRows, offsets_of

DTYPES: Final = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_MASKLESS: Final = {"xlm-roberta", "roberta", "bert"}


@dataclass(frozen=True, slots=True)
class BatchOutput:
    """What one forward pass gives for a batch of n texts, on the host.

    Attributes:
        is_finite: (n,) bool, whether the network's values for a text are all finite; the others' vectors mean nothing.
        dense: (n, d) float32, unit length.
        lexical: The n texts' lexical weights; None without a head.
        multi_vector: The n texts' multi-vectors, without [CLS]; a row has no tokens where it was not asked for. None
            if nobody asked, or without a head.
    """

    is_finite: NDArray[np.bool_]
    dense: FloatArray
    lexical: LexicalRows | None
    multi_vector: MultiVectorRows | None


@dataclass(frozen=True, slots=True)
class LaunchedBatch:
    """A forward pass that the device has been told to do, and may not have done yet."""

    batch: Sequence[Tokens]
    multi_vector_lengths: Sequence[int]
    ignored_ids: IntArray
    is_finite: torch.Tensor  # (n,)
    dense: torch.Tensor  # (n, d)
    token_weights: torch.Tensor | None  # (tokens,)
    token_vectors: torch.Tensor | None  # (tokens of the texts that asked, d)

    def wait(self) -> BatchOutput:
        """Give the results as soon as the device has them; any thread may wait."""
        lexical = multi_vector = None
        if self.token_weights is not None:
            lexical = self._lexical(_host(self.token_weights))
        if self.token_vectors is not None:
            multi_vector = MultiVectorRows(offsets_of(self.multi_vector_lengths), _host(self.token_vectors))
        return BatchOutput(self.is_finite.cpu().numpy(), _host(self.dense), lexical, multi_vector)

    def _lexical(self, weights: FloatArray) -> LexicalRows:
        n = len(self.batch)
        ids = np.concatenate([tokens.ids for tokens in self.batch]).astype(np.int64)
        rows = np.repeat(np.arange(n), [len(tokens) for tokens in self.batch])
        return LexicalRows.from_tokens(rows, ids, np.where(np.isin(ids, self.ignored_ids), 0, weights), n)


class M3Network(nn.Module):
    """XLM-RoBERTa, or another encoder that transformers knows, with BGE-M3's heads.

    Args:
        backbone: A model of transformers that gives `last_hidden_state`.
        heads: None for a checkpoint that gives dense vectors only.
        pad_id: The token id that fills a padded batch.
        ignored_ids: (ids,) token ids that never carry a lexical weight.
    """

    def __init__(self, backbone: nn.Module, heads: Heads | None, *, pad_id: int, ignored_ids: IntArray) -> None:
        super().__init__()
        self.backbone = backbone
        self.multi_vector_head = heads.multi_vector if heads else None
        self.lexical_head = heads.lexical if heads else None
        self.pad_id = pad_id
        self.ignored_ids = ignored_ids

    @classmethod
    def load(
        cls, folder: Path, *, device: torch.device, dtype: torch.dtype, pad_id: int, ignored_ids: IntArray
    ) -> M3Network:
        """Load from a checkpoint folder; nothing is ever initialised at random.

        Raises:
            ValueError: If anything is missing, damaged or mis-shaped.
        """
        backbone: Any = load_backbone(folder, dtype)
        heads = load_heads(folder, backbone.config.hidden_size, dtype)
        return cls(backbone, heads, pad_id=pad_id, ignored_ids=ignored_ids).to(device).eval()

    @property
    def modes(self) -> tuple[Mode, ...]:
        """All three, or dense alone for a checkpoint without heads."""
        return MODES if self.lexical_head is not None else ("dense",)

    @property
    def heads(self) -> Heads | None:
        """The two heads, or None."""
        if self.multi_vector_head is None or self.lexical_head is None:
            return None
        return Heads(self.multi_vector_head, self.lexical_head)

    @property
    def dim(self) -> int:
        """Length of a dense vector."""
        size: int = self._config.hidden_size
        return size

    @property
    def multi_vector_dim(self) -> int | None:
        """Length of a token's vector; None without heads."""
        return None if self.multi_vector_head is None else self.multi_vector_head.out_features

    @property
    def vocabulary_size(self) -> int:
        """How many token ids the network has embeddings for."""
        size: int = self._config.vocab_size
        return size

    @property
    def _config(self) -> Any:
        return self.backbone.config

    @property
    def max_positions(self) -> int:
        """The most tokens that the checkpoint has positions for: 8192 of BGE-M3's 8194.

        RoBERTa and its kin count from padding_idx + 1, so that many of their positions are never used.
        """
        embeddings = getattr(getattr(self.backbone, "embeddings", None), "position_embeddings", None)
        offset = getattr(embeddings, "padding_idx", None)
        size: int = self._config.max_position_embeddings
        return size if offset is None else size - offset - 1

    @torch.inference_mode()
    def launch(self, batch: Sequence[Tokens], *, multi_vector: Sequence[bool]) -> LaunchedBatch:
        """Start one forward pass.

        Args:
            batch: One or more texts, none longer than `max_positions`.
            multi_vector: (n,) whose token vectors to compute too; lexical weights come in any case.
        """
        lengths = np.array([len(tokens) for tokens in batch])
        device = next(self.backbone.parameters()).device
        hidden = self._hidden(batch, lengths, device)  # (tokens, hidden), no padding
        rows = torch.from_numpy(np.repeat(np.arange(len(batch)), lengths)).to(device)
        bad_values = (~torch.isfinite(hidden)).any(dim=1).int()
        is_finite = bad_values.new_zeros(len(batch)).index_add_(0, rows, bad_values) == 0
        weights = vectors = None
        if self.lexical_head is not None:
            weights = torch.relu(self.lexical_head(hidden)).squeeze(-1).float()  # (tokens,)
        counts = [len(t) - t.n_cls if asked else 0 for t, asked in zip(batch, multi_vector, strict=True)]
        if any(multi_vector) and self.multi_vector_head is not None:
            chosen = torch.from_numpy(_text_positions(batch, lengths, multi_vector)).to(device)
            vectors = F.normalize(self.multi_vector_head(hidden[chosen]).float(), dim=-1)  # (tokens, d)
        dense = self._dense(hidden, batch, lengths)
        return LaunchedBatch(batch, counts, self.ignored_ids, is_finite, dense, weights, vectors)

    def _hidden(self, batch: Sequence[Tokens], lengths: NDArray[np.int64], device: torch.device) -> torch.Tensor:
        """Give the last hidden states of the batch's real tokens, one text after another."""
        mask = np.arange(lengths.max()) < lengths[:, None]
        ids = np.full(mask.shape, self.pad_id, dtype=np.int64)
        ids[mask] = np.concatenate([tokens.ids for tokens in batch])
        on_device = torch.from_numpy(mask).to(device)
        output = self.backbone(
            input_ids=torch.from_numpy(ids).to(device),  # (batch, longest)
            # Without padding there is nothing to mask, and attention without a mask is faster. Other architectures may
            # make a mask of their own from the ids.
            attention_mask=None if mask.all() and self._config.model_type in _MASKLESS else on_device.long(),
        )
        hidden: torch.Tensor = output.last_hidden_state  # (batch, longest, hidden)
        return hidden[on_device]

    @staticmethod
    def _dense(hidden: torch.Tensor, batch: Sequence[Tokens], lengths: NDArray[np.int64]) -> torch.Tensor:
        """Average the [CLS] states of every text: one, or one every `MCLS_INTERVAL` tokens."""
        starts = np.cumsum(lengths) - lengths
        positions = np.concatenate([start + t.cls_positions for start, t in zip(starts, batch, strict=True)])
        counts = torch.tensor([tokens.n_cls for tokens in batch], device=hidden.device)
        states = hidden[torch.from_numpy(positions).to(hidden.device)].float()
        rows = torch.arange(len(batch), device=hidden.device).repeat_interleave(counts)
        sums = states.new_zeros(len(batch), states.shape[1]).index_add_(0, rows, states)
        return F.normalize(sums / counts[:, None], dim=-1)


def _text_positions(batch: Sequence[Tokens], lengths: NDArray[np.int64], wanted: Sequence[bool]) -> NDArray[np.int64]:
    """Give where the wanted texts' tokens lie, but for the [CLS] ones that the tokenizer put in."""
    marks = np.repeat(np.array(wanted, dtype=bool), lengths)
    for start, tokens in zip(np.cumsum(lengths) - lengths, batch, strict=True):
        marks[start + tokens.cls_positions] = False
    return np.flatnonzero(marks)


def _host(tensor: torch.Tensor) -> FloatArray:
    array: FloatArray = tensor.cpu().numpy()
    return array


def find_device(name: str) -> torch.device:
    """Give the device of this name, or with "auto" the best one here: CUDA, Apple's GPU, the CPU.

    Raises:
        ValueError: If torch does not know the name or the device is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        probe = torch.zeros(1, device=device)
        probe.item()
    except (RuntimeError, AssertionError, NotImplementedError, ValueError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"device {name!r} cannot be used here: {reason}") from error
    return probe.device  # with its number: "cuda" is "cuda:0"


def find_devices(names: str) -> tuple[torch.device, ...]:
    """Give the devices of these names, which commas separate, for `find_device`; all of one kind.

    Raises:
        ValueError: If one cannot be used, or a GPU and a CPU are to share the work.
    """
    devices = tuple(find_device(name.strip()) for name in names.split(","))
    if len({device.type for device in devices}) > 1:
        raise ValueError(f"devices that share a queue must be of one kind, got {names!r}")
    return devices


def find_dtype(name: str, device: torch.device) -> torch.dtype:
    """Give the dtype of this name, or with "auto" float16 on CUDA and float32 elsewhere.

    Raises:
        ValueError: For a name other than those in `DTYPES`.
    """
    if name == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise ValueError(f"dtype must be 'auto' or one of {', '.join(DTYPES)}, got {name!r}")
    return DTYPES[name]
