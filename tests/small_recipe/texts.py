"""`python -m tests.small_recipe.texts`: pairs of short and long text in 28 languages, from Debian packages."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from tests.small_recipe.corpus import read_all
from tests.small_recipe.packages import PACKAGES, fetch_packages, read_facts, unpack_packages
from tests.small_recipe.pairs import make_pairs, write_pairs
from tests.small_recipe.record import count_pairs, write_sources
from tests.small_recipe.sections import LOCALES
from tests.tiny_recipe.descriptions import fetch_lists

_logger = logging.getLogger(__name__)


def main() -> None:
    """Read the arguments, make the pairs and write them with the table of their sources."""
    parser = argparse.ArgumentParser(prog="python -m tests.small_recipe.texts", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="gets the pairs, one JSON object a line")
    parser.add_argument("--work", type=Path, required=True, help="for packages, what they hold, and sections read")
    parser.add_argument("--table", type=Path, help="gets the counts by language and source")
    parser.add_argument("--sources", type=Path, help="gets the record of packages, versions and licences (Markdown)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    work: Path = arguments.work
    names = PACKAGES.read_text(encoding="utf-8").split()
    fetch_lists(work / "lists", LOCALES)
    fetch_packages(work / "debs", names)
    unpack_packages(work / "debs", work / "un")
    sections = read_all(work / "un", names, work / "lists", work / "cache")
    _logger.info("%d sections", len(sections))
    pairs = make_pairs(sections, seed=arguments.seed)
    write_pairs(arguments.out, pairs)
    _logger.info("%d pairs", len(pairs))
    if arguments.table:
        arguments.table.write_text(count_pairs(pairs), encoding="utf-8")
    if arguments.sources:
        facts = [read_facts(deb, work / "un") for deb in sorted((work / "debs").glob("*.deb"))]
        write_sources(arguments.sources, pairs, [fact for fact in facts if fact.name in names])


if __name__ == "__main__":
    main()
