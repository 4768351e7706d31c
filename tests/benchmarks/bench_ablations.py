"""Gain by self-distillation and by mined negatives on the domain of cookbook 6: paired tests on held-out questions.

    python -m tests.benchmarks.bench_ablations --seeds 3

Every run trains `tiny` with the cookbook's settings on its 600 pairs. One thing differs: the ensemble teaches the modes
or not; and a query has the batch's other passages alone as negatives, or three mined ones of its own as well (`m3 mine`
over the runbooks, ranks 3 to 30). Every arm sees the same number of queries. nDCG@10 of 100 questions
about cases that no run saw, the mean over the seeds; equal scores count against the answer. Intervals and p-values are
over the questions.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import nbformat
import numpy as np
from numpy.typing import NDArray

from m3_integrations import M3Encoder, open_store
from m3_integrations.evaluation.statistics import compare_paired
from m3_integrations.scoring import score_vectors
from m3_integrations.training import LossSettings, TrainingConfig, train
from m3_integrations.training.mining import MiningOptions, index_passages, mine_negatives
from tests.benchmarks.measure import describe_machine

COOKBOOK: Final = Path(__file__).parents[2] / "cookbooks" / "6_fine_tune_on_a_domain.ipynb"
MODES: Final = ("dense", "lexical", "multi_vector", "combined")


def cookbook_data() -> dict[str, Any]:
    """Return the names that the cookbook's first three cells of code define: the runbooks and the questions."""
    notebook = nbformat.read(COOKBOOK, as_version=4)  # type: ignore[no-untyped-call]
    names: dict[str, Any] = {}
    for cell in [cell for cell in notebook.cells if cell.cell_type == "code"][:3]:
        exec(cell.source, names)
    return names


def measure(model: str, names: dict[str, Any]) -> dict[str, NDArray[np.float64]]:
    """Return nDCG@10 of every question, (questions,) float64 by mode."""
    with M3Encoder(model, shared=False, device="cpu") as encoder:
        documents = encoder.encode(list(names["runbooks"].values()))
        queries = encoder.encode([question for question, _ in names["unseen"]], kind="query")
    right = [list(names["runbooks"]).index(answer) for _, answer in names["unseen"]]
    gains: dict[str, list[float]] = {mode: [] for mode in MODES}
    for i, answer in enumerate(right):
        scores = score_vectors(queries[i], documents)
        for mode in MODES:
            values = getattr(scores, mode)
            place = np.count_nonzero(values >= values[answer])
            gains[mode].append(1 / np.log2(place + 1) if place <= 10 else 0.0)
    return {mode: np.array(values) for mode, values in gains.items()}


def write_data(folder: Path, names: dict[str, Any]) -> tuple[Path, Path]:
    """Return the file of pairs, and the same with mined negatives."""
    pairs, mined = folder / "pairs.jsonl", folder / "mined.jsonl"
    lines = [json.dumps({"query": question, "pos": [answer]}) for question, answer in names["training"]]
    pairs.write_text("\n".join(lines))
    with M3Encoder("tiny", shared=False, device="cpu") as encoder, open_store() as store:
        index_passages(encoder, store, names["runbooks"].values())
        mine_negatives(encoder, store, pairs, mined, MiningOptions(n=3, first_rank=3, last_rank=30, duplicates=1.0))
    return pairs, mined


def run(data: Path, output: Path, *, seed: int, distils: bool, group_size: int) -> Path:
    """Train with the cookbook's settings, but for what is compared."""
    return train(
        TrainingConfig(
            model="tiny",
            train_data=(data,),
            output_dir=output,
            steps=60,
            batch_size=32,
            train_group_size=group_size,
            query_max_length=48,
            passage_max_length=64,
            learning_rate=1e-3,
            warmup_steps=6,
            freeze_position_embeddings=True,
            device="cpu",
            seed=seed,
            loss=LossSettings(self_distillation=distils),
        ),
        show_progress=False,
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    print(f"machine: {describe_machine('cpu')}; {args.seeds} seeds")
    names = cookbook_data()
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        pairs, mined = write_data(folder, names)
        arms = {
            "distillation": (pairs, True, 1), "no distillation": (pairs, False, 1), "mined negatives": (mined, True, 4),
        }  # fmt: skip
        found: dict[str, dict[str, NDArray[np.float64]]] = {}
        for arm, (data, distils, group_size) in arms.items():
            runs = [
                measure(
                    str(run(data, folder / f"{arm} {seed}", seed=seed, distils=distils, group_size=group_size)), names
                )
                for seed in range(args.seeds)
            ]
            found[arm] = {mode: np.mean([each[mode] for each in runs], axis=0) for mode in MODES}
            print(f"{arm:<18}" + "".join(f"{mode} {found[arm][mode].mean():.4f}  " for mode in MODES), flush=True)
    for new, old in (("distillation", "no distillation"), ("mined negatives", "distillation")):
        for mode in MODES:
            compared = compare_paired(found[new][mode], found[old][mode])
            low, high = compared.difference.low, compared.difference.high
            print(
                f"{new} less {old}, {mode:<13}{compared.difference.mean:+.4f} [{low:+.4f}, {high:+.4f}], "
                f"p = {compared.p_value:.4f}"
            )


if __name__ == "__main__":
    main()
