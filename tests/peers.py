"""Prints the README's table of peers' defects, each with the tests that show what this package does instead.

python -m tests.peers
"""

from __future__ import annotations

import sys

import pytest


class _Collector:
    """Gathers the tests that are marked with a peer's defect."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], list[str]] = {}

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            for mark in item.iter_markers("peer"):
                tests = self.rows.setdefault((mark.args[0], mark.args[1]), [])
                name = getattr(item, "originalname", item.name)
                if name not in tests:
                    tests.append(name)


def peer_table() -> str:
    """Give the table in Markdown: peer, its defect, the tests of what ours does."""
    collector = _Collector()
    pytest.main(["--collect-only", "-q", "-p", "no:terminal", "tests"], plugins=[collector])
    lines = ["| peer | its defect | shown not to be ours by |", "|---|---|---|"]
    for (peer, defect), tests in sorted(collector.rows.items()):
        lines.append(f"| {peer} | {defect} | {', '.join(f'`{test}`' for test in tests)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(peer_table() + "\n")
