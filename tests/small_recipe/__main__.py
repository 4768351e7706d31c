"""`python -m tests.small_recipe --pairs FILE --out FOLDER`: make the bundled checkpoint `small`."""

from __future__ import annotations

import argparse
import dataclasses
import logging
from pathlib import Path

import torch

from tests.small_recipe.pairs import read_pairs
from tests.small_recipe.recipe import SmallSettings, make_small


def main() -> None:
    """Read the arguments and run the recipe."""
    parser = argparse.ArgumentParser(prog="python -m tests.small_recipe", description=__doc__)
    parser.add_argument("--pairs", type=Path, required=True, help="of python -m tests.small_recipe.texts")
    parser.add_argument("--out", type=Path, required=True, help="an empty folder for the checkpoint")
    parser.add_argument("--work", type=Path, help="for what lies in between; a folder beside out by default")
    parser.add_argument("--threads", type=int, help="of torch")
    for setting in dataclasses.fields(SmallSettings):
        kind = float if setting.type == "float" else int
        parser.add_argument(f"--{setting.name.replace('_', '-')}", type=kind, default=setting.default)
    arguments = vars(parser.parse_args())
    pairs, out, work = arguments.pop("pairs"), arguments.pop("out"), arguments.pop("work")
    if (threads := arguments.pop("threads")) is not None:
        torch.set_num_threads(threads)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    make_small(out, work or out.with_name(f"{out.name}-work"), read_pairs(pairs), SmallSettings(**arguments))


if __name__ == "__main__":
    main()
