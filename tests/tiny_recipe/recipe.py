"""The recipe of the bundled checkpoint `tiny`, from Debian's descriptions to half-precision weights."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from m3_integrations.checkpoint import load_tokenizer
from m3_integrations.tokenizer import Tokenizer
from m3_integrations.training.folder import is_whole
from m3_integrations.training.network import TrainingNetwork
from m3_integrations.training.run import run_training
from tests.tiny_recipe.bag import inverse_document_frequencies, train_bag
from tests.tiny_recipe.descriptions import Description, fetch_lists, read_descriptions
from tests.tiny_recipe.pairs import Pair, make_pairs, write_pairs
from tests.tiny_recipe.start import FACTS, make_config, save_bag_start, save_random_start
from tests.tiny_recipe.vocabulary import train_tokenizer

_logger = logging.getLogger(__name__)

_BAG_QUERY_TOKENS: Final = 64
_BAG_PASSAGE_TOKENS: Final = 160


@dataclass(frozen=True, slots=True, kw_only=True)
class TinySettings:
    """The sizes and lengths of the recipe.

    Attributes:
        vocab_size: Pieces, special tokens included.
        hidden_size: Width; a multiple of 64.
        layers: Of the network.
        max_length: Tokens that it has positions for.
        bag_pairs: Pairs that the bag learns from.
        bag_steps: Batches of 1,024 that the bag learns from.
        steps: Batches that the network learns from.
        batch_size: Pairs in a batch.
        query_max_length: Tokens of a query in training.
        passage_max_length: Tokens of a passage in training.
        learning_rate: Its peak.
        seed: For all.
    """

    vocab_size: int = 20_000
    hidden_size: int = 256
    layers: int = 2
    max_length: int = 1024
    bag_pairs: int = 300_000
    bag_steps: int = 400
    steps: int = 160
    batch_size: int = 48
    query_max_length: int = 24
    passage_max_length: int = 80
    learning_rate: float = 1e-4
    seed: int = 0


def make_tiny(out: Path, work: Path, settings: TinySettings) -> None:
    """Run the recipe; what an earlier run left in the work folder is used again.

    Args:
        out: Gets the checkpoint in half precision.
        work: For everything in between.
        settings: Sizes and lengths.

    Raises:
        FileExistsError: If out holds a checkpoint already.
        RuntimeError: If apt cannot fetch the descriptions.
    """
    if (out / "config.json").exists():
        raise FileExistsError(f"{out} holds a checkpoint already: choose an empty folder")
    final = work / "run" / "final"
    if not is_whole(final):
        _prepare(work, settings)
        run_training(work / "tiny.toml")
    network = TrainingNetwork.load(final).half()
    network.save(out)
    # What others load it in: transformers widens the stored half precision, which CPUs only emulate.
    config = out / "config.json"
    config.write_text(config.read_text().replace('"dtype": "float16"', '"dtype": "float32"'))
    size = sum(path.stat().st_size for path in out.iterdir())
    _logger.info("%s: %.1f MB in half precision", out, size / 1e6)


def _prepare(work: Path, settings: TinySettings) -> None:
    """Write what the trainer needs: the start, the pairs and the configuration. Each part once."""
    if (work / "tiny.toml").exists():  # it is written last
        return
    _logger.info("descriptions")
    fetch_lists(work / "lists")
    descriptions = read_descriptions(work / "lists")
    _logger.info("tokenizer, from %d descriptions", len(descriptions))
    if not (work / "tokenizer" / "tokenizer_config.json").exists():
        train_tokenizer(
            work / "tokenizer", descriptions, vocab_size=settings.vocab_size, max_length=settings.max_length
        )
    pairs = make_pairs(descriptions, seed=settings.seed)
    # Pairs that the bag has not learned: on its own it is nearly always right, and there is nothing left to learn.
    unseen = pairs[settings.bag_pairs :]
    write_pairs(work / "pairs.jsonl", unseen[: settings.steps * settings.batch_size])
    _save_starts(work, descriptions, pairs[: settings.bag_pairs], settings)
    _write_config(work, settings)


def _save_starts(
    work: Path, descriptions: Sequence[Description], pairs: Sequence[Pair], settings: TinySettings
) -> None:
    """Learn the bag and write the network that computes it, and the same network at random to compare with."""
    tokenizer = load_tokenizer(work / "tokenizer")
    _logger.info("bag, from %d pairs", len(pairs))
    passages = _tokenize(tokenizer, [pair.passage for pair in pairs], _BAG_PASSAGE_TOKENS)
    queries = _tokenize(tokenizer, [pair.query for pair in pairs], _BAG_QUERY_TOKENS)
    long_texts = [description.long for description in descriptions if not description.is_held_out]
    idf = inverse_document_frequencies(_tokenize(tokenizer, long_texts, _BAG_PASSAGE_TOKENS), settings.vocab_size)
    filled = [row for row in range(len(pairs)) if len(queries[row]) and len(passages[row])]
    bag = train_bag(
        [queries[row] for row in filled],
        [passages[row] for row in filled],
        idf,
        dim=settings.hidden_size - FACTS,
        seed=settings.seed,
        steps=settings.bag_steps,
        report=lambda step, loss, _: _logger.info("bag, step %d: loss %.3f", step, loss),
    )
    config = make_config(
        settings.vocab_size,
        hidden_size=settings.hidden_size,
        layers=settings.layers,
        max_length=settings.max_length,
    )
    save_random_start(work / "random", work / "tokenizer", config, seed=settings.seed)
    save_bag_start(work / "start", work / "tokenizer", config, bag, idf, seed=settings.seed)


def _tokenize(tokenizer: Tokenizer, texts: Sequence[str], room: int) -> list[NDArray[np.int32]]:
    """Return the tokens of every text without the special ones; equal texts share them."""
    distinct = list(dict.fromkeys(texts))
    tokens = tokenizer(distinct, max_length=room + 2)
    by_text = {text: each.ids[1:-1] for text, each in zip(distinct, tokens, strict=True)}
    return [by_text[text] for text in texts]


def _write_config(work: Path, settings: TinySettings) -> None:
    lines = f"""\
model = "start"
train_data = ["pairs.jsonl"]
output_dir = "run"
device = "cpu"
steps = {settings.steps}
batch_size = {settings.batch_size}
train_group_size = 1
query_max_length = {settings.query_max_length}
passage_max_length = {settings.passage_max_length}
learning_rate = {settings.learning_rate}
warmup_steps = {settings.steps // 20}
freeze_position_embeddings = true
seed = {settings.seed}
log_every = 10
save_every = 100
"""
    new = work / "tiny.toml.new"
    new.write_text(lines, encoding="utf-8")
    new.replace(work / "tiny.toml")


def use_threads(threads: int | None) -> None:
    """Limit torch to so many threads; None leaves them as they are. Another number rounds sums differently."""
    if threads is not None:
        torch.set_num_threads(threads)
