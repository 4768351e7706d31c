"""Numbers on XQuAD, where its folders lie beside the repository; measured only, never trained on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import m3_integrations
from m3_integrations import M3Encoder
from m3_integrations.evaluation import Protocol, evaluate, read_dataset
from tests.evaluation.worlds import WorldEncoder

XQUAD = Path(__file__).parents[3] / "shared" / "data" / "xquad"
CARD = Path(m3_integrations.__file__).parent / "tiny" / "README.md"

pytestmark = pytest.mark.skipif(not XQUAD.is_dir(), reason=f"XQuAD in BEIR's layout is not at {XQUAD}")


@pytest.mark.parametrize(("language", "expected"), [("en", 0.9586), ("de", 0.9156), ("ru", 0.8714)])
def test_bm25_over_words_has_the_ndcg_that_was_measured_independently(language: str, expected: float) -> None:
    dataset = read_dataset(XQUAD / language, titles=False)
    assert (len(dataset.queries), len(dataset.corpus)) == (1190, 240)
    result = evaluate(WorldEncoder(), dataset, modes=["bm25:words"], metrics=["nDCG@10"])
    assert result.estimate("bm25:words", "nDCG@10").mean == pytest.approx(expected, abs=5e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*longer than")
def test_the_models_card_has_the_numbers_that_evaluation_gives() -> None:
    row = re.search(r"^\| en \|(.*)\|$", CARD.read_text(encoding="utf-8"), re.MULTILINE)
    assert row is not None
    stated = [float(cell) for cell in re.findall(r"\b0\.\d{3}\b(?= |$|\*)", row[1])]
    dataset = read_dataset(XQUAD / "en", titles=False)
    columns = ["dense", "lexical", "multi_vector", "dense+lexical", "all", "search:all", "bm25", "bm25:words"]
    with M3Encoder("tiny", shared=False, device="cpu") as encoder:
        result = evaluate(encoder, dataset, metrics=["nDCG@10"], protocol=Protocol(rerank_depth=1000))
    measured = [result.estimate(column, "nDCG@10").mean for column in result.columns]
    assert list(result.columns) == columns
    assert stated == pytest.approx(measured, abs=6e-4)
