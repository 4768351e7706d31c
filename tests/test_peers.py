"""Every claim about a peer names a test that exists, and the README's table is the script's."""

import re
from pathlib import Path

from tests.peers import DEFECTS, peer_table

TESTS = Path(__file__).parent


def test_every_claim_names_tests_that_exist() -> None:
    sources = "\n".join(path.read_text() for path in TESTS.rglob("test_*.py"))
    names = set(re.findall(r"^ *(?:async )?def (test_\w+)", sources, re.MULTILINE))
    assert [test for _, _, tests in DEFECTS for test in tests if test not in names] == []


def test_the_readme_has_the_scripts_table() -> None:
    assert peer_table() in (TESTS.parent / "README.md").read_text()
