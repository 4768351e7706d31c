"""All sections of all packages, and the descriptions: each text of a language once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from multiprocessing import Pool
from pathlib import Path
from typing import Final

from tests.small_recipe.reading import english_texts, family_of, read_package
from tests.small_recipe.sections import Section, is_written_in, language_of
from tests.tiny_recipe.descriptions import read_descriptions

_ENGLISH: Final = {
    "libreoffice-help": "libreoffice-help-en-us",
    "debian-reference": "debian-reference-en",
    "gimp-help": "gimp-help-en",
    "installation-guide-amd64": "installation-guide-amd64",
    "debian-handbook": "debian-handbook",
}


def read_all(unpacked: Path, names: Sequence[str], lists: Path, cache: Path) -> list[Section]:
    """Return the sections of every unpacked package and the descriptions, each text of a language once.

    Args:
        unpacked: Holds a folder for each package.
        names: Of the packages.
        lists: Holds the translations of the descriptions.
        cache: Gets what is read from each package; a later run takes it from there.
    """
    cache.mkdir(parents=True, exist_ok=True)
    folders = sorted(unpacked / name for name in names)
    known: dict[str, frozenset[str]] = {}
    jobs = []
    for folder in folders:
        family = family_of(folder.name)
        is_read = (cache / f"{folder.name}.jsonl").exists()  # then nothing is left to compare with English
        if family not in known and not is_read:
            name = _ENGLISH.get(family, folder.name)
            known[family] = english_texts(unpacked / name) if (unpacked / name).exists() else frozenset()
        jobs.append((folder, known.get(family, frozenset()), cache))
    found: dict[tuple[str, str, str], Section] = {}
    with Pool(2) as pool:
        results = pool.starmap(_read_cached, jobs, chunksize=1)
    for section in [*_descriptions(lists), *(section for result in results for section in result)]:
        if _is_usable(section):
            found.setdefault((section.language, section.title, section.text), section)
    return list(found.values())


def _read_cached(folder: Path, known: frozenset[str], cache: Path) -> list[Section]:
    """Read a package, or what an earlier run has read from it; only sections that meet the rules stay."""
    path = cache / f"{folder.name}.jsonl"
    if not path.exists():
        sections = [section for section in read_package(folder, known) if _is_usable(section)]
        unfinished = path.with_suffix(".unfinished")
        with unfinished.open("w", encoding="utf-8") as file:
            file.writelines(f"{json.dumps(asdict(section), ensure_ascii=False)}\n" for section in sections)
        unfinished.rename(path)
        return sections
    with path.open(encoding="utf-8") as file:
        return [Section(**json.loads(line)) for line in file]


def _is_usable(section: Section) -> bool:
    least = 8 if section.language in ("ja", "ko", "zh") else 20
    if section.source == "wordnet-base":
        least = 12
    return len(section.text) >= least and is_written_in(f"{section.title} {section.text}", section.language)


def _descriptions(lists: Path) -> Iterator[Section]:
    for each in read_descriptions(lists):
        language = language_of(each.language)
        if language is not None:
            paragraphs = [paragraph for paragraph in each.paragraphs if "http" not in paragraph]
            yield Section(language, "descriptions", f"description {each.key}", each.short, " ".join(paragraphs)[:900])
