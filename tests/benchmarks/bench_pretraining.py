"""Gain by RetroMAE for a small network: pre-trained on text and fine-tuned, against fine-tuned alone.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_pretraining --work FOLDER

The text is Debian's package descriptions in English, fetched through apt. Both networks begin with the same random
weights and are fine-tuned in all three modes on the same pairs in the same order; one of them is pre-trained before.
Both are asked for the long texts of descriptions that neither saw, by their short lines: nDCG@10 of every mode, with a
paired randomization test over the queries. The pre-trained network has had more time and more text: that is the
question, not a flaw. What an earlier call left in the folder is used again, so other settings need another folder.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

from m3_integrations import M3Encoder
from m3_integrations.checkpoint import find_checkpoint
from m3_integrations.evaluation import EvaluationResult, evaluate, read_dataset
from m3_integrations.evaluation.statistics import compare_paired
from m3_integrations.training import run_training
from m3_integrations.training.folder import is_whole
from tests.benchmarks.measure import describe_machine, describe_versions
from tests.evaluation.worlds import write_beir
from tests.tiny_recipe.descriptions import Description, fetch_lists, read_descriptions
from tests.tiny_recipe.pairs import make_pairs, write_pairs
from tests.tiny_recipe.start import make_config, save_random_start

COLUMNS = ("dense", "lexical", "multi_vector", "search:all")
METRIC = "nDCG@10"

PRE_TRAINING = """
[retromae]
train_data = "texts.jsonl"
steps = {pretrain_steps}
batch_size = 16
passage_max_length = 64
learning_rate = 1e-3
warmup_steps = {pretrain_warmup}
"""

FINE_TUNING = """
model = "start"
output_dir = "{name}"
device = "cpu"
log_every = 20
save_every = 100
{pre_training}
[unified]
train_data = "pairs.jsonl"
steps = {steps}
batch_size = 32
train_group_size = 1
query_max_length = 24
passage_max_length = 64
learning_rate = 5e-4
warmup_steps = {warmup}
"""


def main() -> None:
    """Train both networks, and compare them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="a folder for data and checkpoints")
    parser.add_argument("--pretrain-steps", type=int, default=360, help="batches of 16 texts")
    parser.add_argument("--steps", type=int, default=300, help="batches of 32 pairs")
    parser.add_argument("--queries", type=int, default=600)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(describe_machine("cpu"), describe_versions("torch", "transformers"), sep="\n")
    prepare(given.work, given)
    results = [train(given.work, name, given) for name in ("alone", "pretrained")]
    compare(results)


def prepare(work: Path, given: argparse.Namespace) -> None:
    """Write texts, pairs, the validation set and the start, once."""
    if (work / "start" / "config.json").exists():
        return
    fetch_lists(work / "lists")
    descriptions = [each for each in read_descriptions(work / "lists") if each.language == "en"]
    held_out = [each for each in descriptions if each.is_held_out]
    seen = [each for each in descriptions if not each.is_held_out]
    print(f"{len(seen):,} descriptions to learn from, {len(held_out):,} held out")
    with (work / "texts.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": f"{each.short}. {each.long}"}) + "\n" for each in seen)
    write_pairs(work / "pairs.jsonl", make_pairs(seen, seed=given.seed)[: given.steps * 32])
    write_questions(work / "questions", held_out, given.queries)
    tiny = find_checkpoint("tiny")
    config = make_config(20_000, hidden_size=given.width, layers=2, max_length=256)
    save_random_start(work / "start", tiny, config, seed=given.seed)


def write_questions(folder: Path, held_out: Sequence[Description], count: int) -> None:
    """Write the held-out texts as a corpus, and the short lines of the first of them as questions."""
    texts = {f"d{i}": each.long for i, each in enumerate(held_out)}
    queries = {f"q{i}": each.short for i, each in enumerate(held_out[:count])}
    write_beir(folder, texts, queries, {query: {f"d{query[1:]}": 1} for query in queries})


def train(work: Path, name: str, given: argparse.Namespace) -> EvaluationResult:
    """Train one network, as far as an earlier call did not, and measure it."""
    stages = PRE_TRAINING.format(pretrain_steps=given.pretrain_steps, pretrain_warmup=given.pretrain_steps // 10)
    text = FINE_TUNING.format(
        name=name, pre_training=stages if name == "pretrained" else "", steps=given.steps, warmup=given.steps // 10
    )
    (work / f"{name}.toml").write_text(text + f"seed = {given.seed}\n", encoding="utf-8")
    final, start = work / name / "unified" / "final", time.perf_counter()
    if not is_whole(final):
        run_training(work / f"{name}.toml")
        print(f"{name}: trained in {time.perf_counter() - start:.0f} s")
    with M3Encoder(final, shared=False, device="cpu") as encoder:
        return evaluate(encoder, read_dataset(work / "questions"), modes=COLUMNS, metrics=[METRIC])


def compare(results: Sequence[EvaluationResult]) -> None:
    """Print both networks' numbers and the paired test of their difference."""
    alone, pretrained = results
    print(f"{METRIC:14} fine-tuned alone   pre-trained   difference [95 % interval]      p")
    for column in alone.columns:
        before, after = (result.values[column][METRIC] for result in (alone, pretrained))
        found = compare_paired(after, before)
        low, high = found.difference.low, found.difference.high
        print(
            f"{column:14} {before.mean():16.4f} {after.mean():13.4f}"
            f"   {found.difference.mean:+.4f} [{low:+.4f}, {high:+.4f}]   {found.p_value:.4f}"
        )


if __name__ == "__main__":
    main()
