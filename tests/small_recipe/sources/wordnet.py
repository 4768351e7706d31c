"""Terms and their glosses, from WordNet's data files."""

from __future__ import annotations

from collections.abc import Iterator


def read_glosses(text: str) -> Iterator[tuple[str, str, str]]:
    """Yield the offset, the terms as "car, auto" and the gloss of each set of synonyms."""
    for line in text.splitlines():
        if line.startswith(" "):  # the licence
            continue
        fields, _, gloss = line.partition(" | ")
        words = fields.split(" ")
        count = int(words[3], 16)
        terms = [words[4 + 2 * i].partition("(")[0].replace("_", " ") for i in range(count)]
        yield words[0], ", ".join(terms), gloss.strip()
