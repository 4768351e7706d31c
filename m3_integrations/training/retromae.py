"""RetroMAE: the encoder learns to put a whole text into [CLS], because a weak decoder must predict the text from it.

Xiao et al. 2022 (arXiv 2205.12035), with enhanced decoding (section 3.3). The encoder reads the text with a moderate
share of its tokens masked. One decoder layer predicts every token from [CLS] and a random share of the other tokens,
drawn for each token. The loss is the sum of the encoder's masked-language loss and the decoder's loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.checkpoint import checkpoint

from m3_integrations.checkpoint import Heads, read_tensors, weight_files
from m3_integrations.tokenizer import Tokenizer
from m3_integrations.training.dense import DenseNetwork
from m3_integrations.training.health import check_finite
from m3_integrations.training.trainer import M3Trainer

_DECODER_FILE: Final = "retromae.safetensors"
"""The file of the decoder in a run's checkpoint, which a resumed run needs. The result does not have it."""

_TOKENS_AT_A_TIME: Final = 1024
"""The tokens whose logits are in memory at a time; they are computed again for the gradient. For XLM-RoBERTa's
vocabulary they take 1 GB; those of a batch of 32 texts of 512 tokens would take 16 GB."""


@dataclass(frozen=True, slots=True)
class RetroMAELoss:
    """The loss of one batch and its two terms, each a scalar.

    Attributes:
        total: The sum of the two terms, which is minimised.
        encoder: The mean cross entropy of the tokens that were masked for the encoder.
        decoder: The mean cross entropy of all tokens, predicted by the decoder.
    """

    total: torch.Tensor
    encoder: torch.Tensor
    decoder: torch.Tensor


class EnhancedDecoder(nn.Module):
    """One transformer layer: its queries are [CLS] at every position, its keys and values the text's embeddings.

    Args:
        config: The configuration of the backbone; the sizes are from it.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        width = config.hidden_size
        self.n_heads = config.num_attention_heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.output = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.widen = nn.Linear(width, config.intermediate_size)
        self.narrow = nn.Linear(config.intermediate_size, width)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        _initialise(self, config.initializer_range)

    def forward(self, queries: torch.Tensor, context: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """Return the hidden states from which the tokens are predicted: (n, tokens, d).

        Args:
            queries: (n, tokens, d): [CLS] with each position, H1 of the paper.
            context: (n, tokens, d): [CLS], then the tokens with their positions, H2.
            visible: (n, tokens, tokens) bool: which of the context each row sees.
        """
        query, key, value = (
            layer(of).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)  # (n, heads, tokens, d / heads)
            for layer, of in ((self.query, queries), (self.key, context), (self.value, context))
        )
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=visible[:, None])
        hidden = self.attention_norm(queries + self.output(found.transpose(1, 2).flatten(2)))
        out: torch.Tensor = self.norm(hidden + self.narrow(F.gelu(self.widen(hidden))))
        return out


class TokenHead(nn.Module):
    """The prediction of tokens from hidden states with the backbone's word embeddings; encoder and decoder share it.

    Args:
        config: The configuration of the backbone; the sizes are from it.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        _initialise(self, config.initializer_range)

    def sum_losses(self, hidden: torch.Tensor, ids: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        """Return the summed cross entropy of tokens: a scalar.

        Args:
            hidden: (tokens, d), the hidden states.
            ids: (tokens,) int64, the right tokens.
            words: (vocabulary, d), the word embeddings.
        """
        logits = F.linear(self.layer_norm(F.gelu(self.dense(hidden))), words, self.bias)
        return F.cross_entropy(logits, ids, reduction="sum")


class RetroMAENetwork(DenseNetwork):
    """A backbone with RetroMAE's decoder and token head, which begin at random.

    Args:
        backbone: A model of transformers with word embeddings and a table of positions, such as XLM-RoBERTa or BERT.
        heads: The checkpoint's heads, which are not changed; None for a checkpoint without heads.
        tokenizer: The checkpoint's tokenizer.

    Raises:
        ValueError: If the backbone has no such embeddings.
    """

    def __init__(self, backbone: nn.Module, heads: Heads | None, tokenizer: Tokenizer) -> None:
        super().__init__(backbone, heads, tokenizer)
        embeddings = getattr(backbone, "embeddings", None)
        if not all(hasattr(embeddings, name) for name in ("word_embeddings", "position_embeddings")):
            raise ValueError(f"RetroMAE needs word and position embeddings, which {type(backbone).__name__} lacks")
        self.decoder = EnhancedDecoder(backbone.config)
        self.token_head = TokenHead(backbone.config)

    @classmethod
    def load(cls, folder: Path) -> RetroMAENetwork:
        """Load a checkpoint. Its masked-language head, which XLM-RoBERTa's files have, becomes the token head.

        Raises:
            ValueError: If anything is missing, damaged or mis-shaped.
        """
        network = super().load(folder)
        prefix = "lm_head."
        tensors = (tensor for path in weight_files(folder) for tensor in read_tensors(path))
        state = {name.removeprefix(prefix): read().float() for name, read in tensors if name.startswith(prefix)}
        # "lm_head.decoder" is a copy of the word embeddings, which the token head uses directly.
        state = {name: value for name, value in state.items() if not name.startswith("decoder.")}
        if state:
            try:
                network.token_head.load_state_dict(state)
            except RuntimeError as error:
                raise ValueError(f"{folder} has another masked-language head than XLM-RoBERTa's: {error}") from error
        return network

    def forward(self, **batch: torch.Tensor) -> RetroMAELoss:  # type: ignore[override]
        """Return the loss of a batch of `MaskedBatches`."""
        ids, embeddings = batch["input_ids"], self._embeddings
        hidden = self.backbone(input_ids=batch["masked_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        sentence = hidden[:, :1]  # (n, 1, d)
        context = torch.cat([sentence, embeddings(input_ids=ids)[:, 1:]], dim=1)
        queries = embeddings(inputs_embeds=sentence.expand(-1, ids.shape[1], -1))
        decoded = self.decoder(queries, context, batch["visible"])
        encoder = self._mean_loss(hidden[batch["is_masked"]], ids[batch["is_masked"]])
        decoder = self._mean_loss(decoded[batch["is_text"]], ids[batch["is_text"]])
        if (shares := batch.get("shares")) is not None:
            encoder, decoder = encoder * shares[0], decoder * shares[1]
        return RetroMAELoss(encoder + decoder, encoder, decoder)

    @property
    def _embeddings(self) -> Any:
        return self.backbone.embeddings

    def _mean_loss(self, hidden: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Return the mean cross entropy of tokens, 0 without tokens; only some logits are in memory at a time."""
        words = self._embeddings.word_embeddings.weight
        parts = zip(torch.split(hidden, _TOKENS_AT_A_TIME), torch.split(ids, _TOKENS_AT_A_TIME), strict=True)
        losses = [
            checkpoint(self.token_head.sum_losses, part, right, words, use_reentrant=False) for part, right in parts
        ]
        return torch.stack(losses).sum() / max(len(ids), 1)

    def save_decoder(self, folder: Path) -> None:
        """Write the decoder and the token head, which `save` does not write."""
        state = {
            f"{name}.{key}": value.detach().cpu().contiguous()
            for name in ("decoder", "token_head")
            for key, value in getattr(self, name).state_dict().items()
        }
        save_file(state, folder / _DECODER_FILE)

    def restore_decoder(self, folder: Path) -> None:
        """Load the decoder and the token head that `save_decoder` wrote.

        Raises:
            ValueError: If its weights do not fit.
        """
        state = load_file(folder / _DECODER_FILE)
        try:
            for name in ("decoder", "token_head"):
                own = {key.partition(".")[2]: value for key, value in state.items() if key.startswith(f"{name}.")}
                getattr(self, name).load_state_dict(own)
        except RuntimeError as error:
            raise ValueError(f"{folder} holds another decoder than the one in training: {error}") from error


class RetroMAETrainer(M3Trainer):
    """A trainer for a `RetroMAENetwork`."""

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,  # noqa: ARG002 - the Trainer's signature
    ) -> Any:
        """Return the loss of a batch.

        Raises:
            HeadDiedError: If the loss is not finite.
        """
        loss: RetroMAELoss = model(**inputs)
        terms = {"encoder": loss.encoder, "decoder": loss.decoder}
        check_finite(loss.total, terms)
        self.note(terms, inputs)
        return (loss.total, terms) if return_outputs else loss.total

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if not self.args.should_save:
            return
        network: RetroMAENetwork = self.accelerator.unwrap_model(self.model)
        network.save_decoder(Path(output_dir or self.args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        network: RetroMAENetwork = self.accelerator.unwrap_model(model or self.model)
        network.restore_decoder(Path(resume_from_checkpoint))


def _initialise(module: nn.Module, spread: float) -> None:
    """Draw weights from a normal distribution of this standard deviation, as for XLM-RoBERTa; set biases to 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=spread)
            nn.init.zeros_(layer.bias)
