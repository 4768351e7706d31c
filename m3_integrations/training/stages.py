"""The stages of a run, read from a TOML file."""

from __future__ import annotations

import dataclasses
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from m3_integrations.training.config import STAGES, TrainingConfig
from m3_integrations.training.losses import LossSettings

FINAL_FOLDER: Final = "final"
"""The folder of the trained checkpoint in a stage's output folder."""

_OF_THE_RUN: Final = ("model", "output_dir")
"""The settings that only the top of a file with several stages may have: each stage begins with the result of the one
before it."""


def load_config(path: str | os.PathLike[str]) -> TrainingConfig:
    """Read a file of one stage: the names of `TrainingConfig`, and a table [loss] with the names of `LossSettings`.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: For the reasons of `load_stages`, or if the file has several stages.
    """
    stages = load_stages(path)
    if len(stages) > 1:
        raise ValueError(f"{path} has {len(stages)} stages: read it with load_stages")
    return stages[0]


def load_stages(path: str | os.PathLike[str]) -> tuple[TrainingConfig, ...]:
    """Read the stages of a run.

    A file without a table of a stage is one stage, named by `stage`. A file with tables runs those of [retromae],
    [contrastive] and [unified] that it has, in this order. Settings at the top are for all stages, and a table can
    change them for its stage. Each stage has a folder with its name in output_dir, and begins with the result of the
    one before it.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it is not TOML, lacks a setting, has an unknown one, or one of the wrong type or range.
    """
    file = Path(path)
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except ValueError as error:  # also of text that is not UTF-8
        raise ValueError(f"{file} is not TOML: {error}") from error
    tables = {stage: values.pop(stage) for stage in STAGES if stage in values}
    if not tables:
        return (_make(file, str(file), values),)
    if "stage" in values:
        raise ValueError(f"{file} has tables of stages, so stage = {values['stage']!r} has no effect: leave it out")
    stages: list[TrainingConfig] = []
    for stage, table in tables.items():
        stages.append(_make(file, f"{file} [{stage}]", _merge(file, stage, values, table)))
        values["model"] = str((stages[-1].output_dir / FINAL_FOLDER).absolute())
    return tuple(stages)


def _merge(file: Path, stage: str, shared: Mapping[str, Any], table: Any) -> dict[str, Any]:
    """Return the settings of one stage: the shared ones, changed by its table."""
    if not isinstance(table, dict):
        raise ValueError(f"{file}: {stage} must be a table, [{stage}], got {table!r}")  # noqa: TRY004 - its content
    if misplaced := [name for name in (*_OF_THE_RUN, "stage") if name in table]:
        raise ValueError(
            f"{file} [{stage}] has {', '.join(misplaced)}, which all stages share: move it above the tables"
        )
    merged = {**shared, **table, "stage": stage}
    if isinstance(shared.get("loss"), dict) and isinstance(table.get("loss"), dict):
        merged["loss"] = {**shared["loss"], **table["loss"]}
    if isinstance(shared.get("output_dir"), str):
        merged["output_dir"] = os.path.join(shared["output_dir"], stage)  # noqa: PTH118 - still as the file has it
    return merged


def _make(file: Path, place: str, values: dict[str, Any]) -> TrainingConfig:
    values = dict(values)
    loss = values.pop("loss", {})
    if not isinstance(loss, dict):
        raise ValueError(f"{place}: loss must be a table, [loss], got {loss!r}")  # noqa: TRY004 - the file's content
    _check(place, values, TrainingConfig)
    _check(place, loss, LossSettings)
    data = values.get("train_data", [])
    values["train_data"] = tuple(file.parent / each for each in ([data] if isinstance(data, str) else data))
    for name in ("output_dir", "eval_data"):
        if name in values:
            values[name] = file.parent / values[name]
    if (file.parent / values["model"]).is_dir():
        values["model"] = str(file.parent / values["model"])
    try:
        return TrainingConfig(**values, loss=LossSettings(**loss))
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def _check(place: str, values: dict[str, Any], kind: type) -> None:
    fields = {each.name: each for each in dataclasses.fields(kind) if each.name != "loss"}
    if unknown := sorted(set(values).difference(fields)):
        raise ValueError(f"{place} has unknown settings: {', '.join(unknown)}. Known: {', '.join(sorted(fields))}")
    required = {name for name, each in fields.items() if _is_required(each)}
    if missing := sorted(required.difference(values)):
        raise ValueError(f"{place} lacks {', '.join(missing)}")
    for name, value in values.items():
        _check_type(place, name, value, str(fields[name].type))


def _is_required(setting: dataclasses.Field[Any]) -> bool:
    return setting.default is dataclasses.MISSING and setting.default_factory is dataclasses.MISSING


def _check_type(place: str, name: str, value: object, kind: str) -> None:
    """Raise ValueError if a value of the file does not have the annotated type of its setting."""
    accepted: dict[str, tuple[type, ...]] = {
        "int": (int,), "float": (int, float), "bool": (bool,), "str": (str,), "Path": (str,), "Path | None": (str,),
        "dict[str, int]": (dict,),
    }  # fmt: skip
    types = accepted.get(kind, (str, list))
    is_misplaced_flag = isinstance(value, bool) and kind != "bool"
    is_misfilled_list = isinstance(value, list) and not all(isinstance(each, str) for each in value)
    is_misfilled_table = isinstance(value, dict) and not all(type(each) is int for each in value.values())
    if not isinstance(value, types) or is_misplaced_flag or is_misfilled_list or is_misfilled_table:
        raise ValueError(f"{place}: {name} must be of type {kind}, got {value!r}")
