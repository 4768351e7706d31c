"""Write what the pairs were made from: counts by language, and the packages with their versions and licences."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from tests.small_recipe.packages import PackageFacts
from tests.small_recipe.pairs import TextPair
from tests.small_recipe.reading import family_of
from tests.small_recipe.sections import LANGUAGES


def count_pairs(pairs: Sequence[TextPair]) -> str:
    """Return the counts by language and source, as lines."""
    counts = Counter((pair.language, pair.source) for pair in pairs)
    lines = []
    for language in LANGUAGES:
        own = {source: count for (each, source), count in counts.items() if each == language}
        cross = sum(pair.is_cross for pair in pairs if pair.language == language)
        parts = ", ".join(f"{source} {count}" for source, count in sorted(own.items(), key=lambda item: -item[1]))
        lines.append(f"{language}: {sum(own.values())} ({cross} with English): {parts}")
    return "\n".join(lines) + "\n"


def write_sources(path: Path, pairs: Sequence[TextPair], facts: Sequence[PackageFacts]) -> None:
    """Write the record as Markdown: pairs by language, then every package that gave any."""
    by_language = Counter(pair.language for pair in pairs)
    across = Counter(pair.language for pair in pairs if pair.is_cross)
    by_source = Counter(pair.source for pair in pairs)
    languages = [f"| {each} | {by_language[each]:,} | {across[each]:,} |" for each in LANGUAGES]
    families: dict[str, list[PackageFacts]] = defaultdict(list)
    for fact in facts:
        families[family_of(fact.name)].append(fact)
    packages = [
        f"| {fact.name} | {fact.version} | {', '.join(fact.licences)} | {by_source[family]:,} |"
        for family, members in sorted(families.items())
        for fact in members
        if by_source[family]
    ]
    text = [
        *("# Sources of the small checkpoint's texts", ""),
        "Debian 12. Licences as each package's copyright file names them; they hold for the whole package.",
        f"The package descriptions and their translations gave {by_source['descriptions']:,} of {len(pairs):,} pairs.",
        *("", "| language | pairs | of them with English |", "| --- | ---: | ---: |", *languages),
        *("", "A count is that of the source: packages of one source in several languages share it.", ""),
        *("| package | version | licences | pairs of the source |", "| --- | --- | --- | ---: |", *packages),
    ]
    path.write_text("\n".join(text) + "\n", encoding="utf-8")
