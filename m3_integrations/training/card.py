"""The record of a checkpoint's training for programs, m3_training.json, and its model card for people, README.md.

If a stage begins with a checkpoint that has a record, the stage is added to it: the last card describes all stages.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from importlib.metadata import version
from itertools import chain, count
from pathlib import Path
from typing import Any, Final

CARD: Final = "README.md"
RECORD: Final = "m3_training.json"

_MARK: Final = "<!-- Written by m3 train. Remove this line to keep your changes. -->"
_FORMAT: Final = "m3-integrations"
_PACKAGES: Final = ("m3-integrations", "torch", "transformers", "tokenizers", "accelerate")
_PATHS: Final = ("model", "train_data", "output_dir", "eval_data", "stage", "steps")
_TITLES: Final = {
    "retromae": "RetroMAE pre-training",
    "contrastive": "Contrastive pre-training of the dense mode",
    "unified": "Unified training of all three modes",
}


def describe_stage(
    settings: Mapping[str, Any],
    *,
    model: str,
    data: Sequence[Path],
    examples: int,
    history: Sequence[Mapping[str, Any]],
    best_by: str,
    best_step: int | None,
) -> dict[str, Any]:
    """Return the description of one stage, as values for JSON.

    Args:
        settings: The settings that differ from their defaults; model, paths, stage and steps have entries of their own.
        model: The checkpoint that the stage began with. Only the name of a folder is kept, or the name of its run.
        data: The files of the training data; only their names are kept.
        examples: The number of examples or texts.
        history: The Trainer's log.
        best_by: The mode that decides which checkpoint is the best.
        best_step: The step of the checkpoint that was kept; None for the last one.
    """
    lines = [entry for entry in history if "loss" in entry]
    evaluations = [entry for entry in history if any(name.startswith("eval_") for name in entry)]
    return {
        "stage": settings.get("stage", "unified"),
        "model": _name(Path(model)) if Path(model).is_dir() else model,
        "data": [path.name for path in data],
        "examples": examples,
        "eval_data": settings["eval_data"].name if "eval_data" in settings else None,
        "steps": max((entry["step"] for entry in history), default=0),
        "epochs": round(max((entry["epoch"] for entry in history), default=0.0), 4),
        "settings": {name: _plain(value) for name, value in settings.items() if name not in _PATHS},
        "losses": {name: lines[-1][name] for name in _names(lines, "loss")},
        "evaluations": [
            {"step": entry["step"]} | {name.removeprefix("eval_"): entry[name] for name in _names([entry], "eval_")}
            for entry in evaluations
        ],
        "best_by": best_by,
        "best_step": best_step,
        "versions": {name: version(name) for name in _PACKAGES} | {"python": platform.python_version()},
    }


def _names(entries: Sequence[Mapping[str, Any]], part: str) -> list[str]:
    """Return the names in the last entry that contain this part, sorted, because entries from a file are sorted too."""
    return sorted(name for name in (entries[-1] if entries else {}) if part in name)


def compare_with_start(stage: Mapping[str, Any]) -> str | None:
    """Return a sentence if the checkpoint that a stage kept is worse than the one it began with.

    None if it is not worse, and if one of them was not evaluated.
    """
    measured = {entry["step"]: entry for entry in stage["evaluations"]}
    mode, best = stage.get("best_by"), stage["best_step"]  # records of earlier versions have no best_by
    if mode is None or best is None or 0 not in measured or measured[best][mode] >= measured[0][mode]:
        return None
    return (
        f"No checkpoint was as good as the start: nDCG@10 of {mode} is {measured[best][mode]:.4f} at step {best:,}, "
        f"and was {measured[0][mode]:.4f} before the first step."
    )


def extend_record(base: Path, stage: Mapping[str, Any], *, hub_name: str | None) -> dict[str, Any]:
    """Return the record of a checkpoint with one more stage; the record is empty if the checkpoint has none.

    Args:
        base: The folder of the checkpoint that the stage began with.
        stage: The stage, as `describe_stage` returns it.
        hub_name: The checkpoint's name on the hub; None if it is not from the hub.
    """
    before: dict[str, Any] = {}
    if (base / RECORD).is_file():
        found = json.loads((base / RECORD).read_bytes())
        before = found if found.get("format") == _FORMAT else {}
    stages = [*before.get("stages", []), stage]
    return {"format": _FORMAT, "base_model": hub_name or before.get("base_model"), "stages": stages}


def write_card(folder: Path, record: Mapping[str, Any]) -> Path:
    """Write the record and the model card into the folder of a checkpoint.

    A README.md without our mark is somebody else's and stays as it is; then the card is TRAINING.md, TRAINING-2.md and
    so on.

    Args:
        folder: The folder; made if it does not exist.
        record: The record, as `extend_record` returns it.

    Returns:
        The path of the card.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    names = chain((CARD, "TRAINING.md"), (f"TRAINING-{number}.md" for number in count(2)))
    card = next(path for path in map(folder.joinpath, names) if not path.exists() or _is_ours(path))
    card.write_text("\n".join(_lines(folder, record["stages"], record["base_model"])) + "\n", encoding="utf-8")
    return card


def _is_ours(card: Path) -> bool:
    return _MARK in card.read_text(encoding="utf-8", errors="replace")


def _lines(folder: Path, stages: Sequence[Mapping[str, Any]], base: str | None) -> Iterator[str]:
    tags = ["sentence-transformers", "feature-extraction", "sentence-similarity", "bge-m3"]
    yield from ("---", "library_name: sentence-transformers", "pipeline_tag: sentence-similarity", "tags:")
    yield from (f"- {tag}" for tag in tags)
    if base is not None:
        yield f"base_model: {json.dumps(base)}"
    yield from ("---", _MARK, "", f"# {_name(folder)}", "")
    stages_of = "1 stage" if len(stages) == 1 else f"{len(stages)} stages"
    yield f"Trained from {_code(base or stages[0]['model'])} in {stages_of} with `m3 train`."
    yield from ("", "```python", "from m3_integrations import M3Encoder", "", "encoder = M3Encoder(FOLDER)", "```", "")
    yield "FlagEmbedding reads the same folder, and sentence-transformers its dense mode."
    for number, stage in enumerate(stages, 1):
        yield from ("", f"## {number}. {_TITLES.get(stage['stage'], stage['stage'])}", "")
        yield from _stage_lines(stage)


def _stage_lines(stage: Mapping[str, Any]) -> Iterator[str]:
    data = ", ".join(_code(name) for name in stage["data"])
    things = "texts" if stage["stage"] == "retromae" else "examples"
    yield f"Data: {data} ({stage['examples']:,} {things})."
    yield f"{stage['steps']:,} steps, {stage['epochs']:.2f} epochs."
    if stage["losses"]:
        losses = ", ".join(f"{_words(name)} {value:.3f}" for name, value in stage["losses"].items())
        yield f"At the end: {losses}."
    if stage["evaluations"]:
        yield from ("", f"nDCG@10 on {_code(stage['eval_data'])}, the validation set:", "")
        yield from _table(_chosen(stage["evaluations"], stage["best_step"]), stage["best_step"])
        if (sentence := compare_with_start(stage)) is not None:
            yield from ("", f"**{sentence}**")
    yield from ("", "| setting | value |", "|---|---|")
    for name, value in stage["settings"].items():
        yield f"| {name} | {_code(json.dumps(value, ensure_ascii=False).replace('|', chr(92) + '|'))} |"
    yield from ("", "Versions: " + ", ".join(f"{name} {number}" for name, number in stage["versions"].items()) + ".")


def _chosen(evaluations: Sequence[Mapping[str, Any]], best_step: int | None) -> list[Mapping[str, Any]]:
    """Return the first, the best and the last evaluation."""
    steps = {evaluations[0]["step"], best_step, evaluations[-1]["step"]}
    return [entry for entry in evaluations if entry["step"] in steps]


def _table(evaluations: Sequence[Mapping[str, Any]], best_step: int | None) -> Iterator[str]:
    columns = [name for name in evaluations[0] if name != "step"]
    yield f"| step | {' | '.join(columns)} |"
    yield f"|---|{'---|' * len(columns)}"
    for entry in evaluations:
        kept = " (kept)" if entry["step"] == best_step else ""
        yield f"| {entry['step']:,}{kept} | {' | '.join(f'{entry[name]:.4f}' for name in columns)} |"


def _name(folder: Path) -> str:
    """Return the name of a checkpoint: of its folder, or of the run if the folder is `final` or a stage's."""
    parts = [part for part in folder.resolve().parts if part not in {"final", *_TITLES}]
    return parts[-1]


def _plain(value: Any) -> Any:
    """Return a setting as a value for JSON."""
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def _words(name: str) -> str:
    return name.replace("_", " ").replace("multi vector", "multi-vector")


def _code(text: str) -> str:
    return f"`{text}`"
