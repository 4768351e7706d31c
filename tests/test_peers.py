"""Every feature of the comparison names tests that exist, and the page is the script's."""

import re
from pathlib import Path

from tests.peers import FEATURES, comparison

TESTS = Path(__file__).parent


def test_every_feature_names_tests_that_exist() -> None:
    sources = "\n".join(path.read_text() for path in TESTS.rglob("test_*.py"))
    names = set(re.findall(r"^ *(?:async )?def (test_\w+)", sources, re.MULTILINE))
    listed = [test for features in FEATURES.values() for feature in features for test in feature.tests]
    assert [test for test in listed if test not in names] == []
    assert len(listed) > 50


def test_the_page_is_the_scripts() -> None:
    assert (TESTS / "COMPARISON.md").read_text() == comparison()
