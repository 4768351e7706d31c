"""`python -m tests.tiny_recipe --out FOLDER`: make the bundled checkpoint `tiny`."""

from __future__ import annotations

import argparse
import dataclasses
import logging
from pathlib import Path

from tests.tiny_recipe.recipe import TinySettings, make_tiny, use_threads


def main() -> None:
    """Read the arguments and run the recipe."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.tiny_recipe",
        description="Make the bundled checkpoint tiny from Debian's package descriptions.",
    )
    parser.add_argument("--out", type=Path, required=True, help="an empty folder for the checkpoint")
    parser.add_argument("--work", type=Path, help="for what lies in between; a folder beside out by default")
    parser.add_argument("--threads", type=int, help="of torch")
    for setting in dataclasses.fields(TinySettings):
        kind = float if setting.type == "float" else int
        parser.add_argument(f"--{setting.name.replace('_', '-')}", type=kind, default=setting.default)
    arguments = vars(parser.parse_args())
    out, work, threads = arguments.pop("out"), arguments.pop("work"), arguments.pop("threads")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    use_threads(threads)
    make_tiny(out, work or out.with_name(f"{out.name}-work"), TinySettings(**arguments))


if __name__ == "__main__":
    main()
