"""Misses explained and answers kept on real questions: XQuAD, where its folders lie beside the repository."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from m3_integrations import M3Encoder, Searcher, open_store
from tests.benchmarks.bench_spans import Language, evidence_of_answers, holds, places, read_answers, read_language

XQUAD = Path(__file__).parents[2] / "shared" / "data" / "xquad"

pytestmark = [
    pytest.mark.skipif(not XQUAD.is_dir(), reason=f"XQuAD in BEIR's layout is not at {XQUAD}"),
    pytest.mark.filterwarnings("ignore:.*longer than"),
]


@pytest.fixture(scope="module")
def english() -> Language:
    return read_language(XQUAD / "en")


@pytest.fixture(scope="module")
def encoder() -> Iterator[M3Encoder]:
    with M3Encoder("tiny", device="cpu") as made:
        yield made


def test_half_of_a_paragraph_holds_the_answer(english: Language, encoder: M3Encoder) -> None:
    """Of the questions read by hand: 257 of 286 found paragraphs, and 262 where half is kept on average."""
    rows = [
        (answer, evidence)
        for answer, evidence in evidence_of_answers(encoder, english, english, read_answers())
        if evidence is not None
    ]
    assert len(rows) == pytest.approx(286, abs=1)
    for max_share, hits, most in ((0.5, 257, 0.5), (0.55, 262, 0.505)):
        kept = [evidence.keep(max_share=max_share) for _, evidence in rows]
        n = sum(holds(each, places(answer, english, english)) for each, (answer, _) in zip(kept, rows, strict=True))
        assert n == pytest.approx(hits, abs=2)  # rounding differs between processors
        shares = [
            sum(b - a for a, b in each) / len(evidence.text) for each, (_, evidence) in zip(kept, rows, strict=True)
        ]
        assert sum(shares) / len(shares) <= most


def test_ten_misses_are_explained_and_what_would_help_does(english: Language, encoder: M3Encoder) -> None:
    searcher = Searcher(encoder, open_store())
    searcher.add(english.texts.values(), ids=english.texts)
    n_misses = n_outside = n_helped = 0
    for question, wanted in english.paragraph_of.items():
        query = english.questions[question]
        if wanted in {hit.id for hit in searcher.search(query, pool_size=10)}:
            continue
        found = searcher.explain_missing(query, wanted, pool_size=10)
        assert not found.is_found
        if (needed := found.needed_pool_size) is not None:
            n_outside += 1
            vectors = encoder.encode([query], kind="query")
            for pool, is_in in ((needed - 1, False), (needed, True)):
                legs = searcher.store.candidates(vectors, {"dense": pool, "lexical": pool})
                assert any(wanted in hits.ids for hits in legs.values()) is is_in
        pool_size = needed or 10
        if found.rank is not None and found.rank <= pool_size:
            ids = [hit.id for hit in searcher.search(query, pool_size=pool_size, k=found.rank)]
            assert ids[-1] == wanted
        if found.needed_weights is not None:
            n_helped += 1
            hits = searcher.search(query, pool_size=pool_size, weights=found.needed_weights)
            assert wanted in {hit.id for hit in hits}
        assert 0 < len(str(found).splitlines()) <= 40
        n_misses += 1
        if n_misses == 20:
            break
    assert n_misses >= 10
    assert n_outside
    assert n_helped
