"""The bundled checkpoint for tests and CI: light, quick to load, and good for something."""

from __future__ import annotations

import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

import m3_integrations
from m3_integrations import M3Encoder, M3Vectors, ModeWeights
from m3_integrations.scoring import lexical_scores, raw_scores
from m3_integrations.vectors import MODES

FOLDER = Path(m3_integrations.__file__).parent / "tiny"

PAIRS = {
    "How hot does water have to be to boil on a mountain?": "At a height of three kilometres water boils at about "
    "ninety degrees, so food on a mountain takes longer to cook.",
    "Which animal sleeps hanging upside down?": "Bats are active at night. During the day the animal sleeps hanging "
    "upside down from the roof of a cave.",
    "When was the harbour bridge opened to traffic?": "The harbour bridge took nine years to build and was opened to "
    "traffic in 1932, with a parade of boats.",
    "Warum fällt im Herbst das Laub von den Bäumen?": "Im Herbst ziehen Bäume das Wasser aus den Blättern zurück, und "
    "das trockene Laub fällt zu Boden.",
    "Wer hat den Schlüssel zum Keller des Rathauses?": "Den Schlüssel zum Keller bewahrt die Hausmeisterin des "
    "Rathauses in einem Schrank im zweiten Stock auf.",
    "¿Cuántos caballos viven en la isla?": "En la isla viven unos trescientos caballos salvajes que bajan a la playa "
    "en las noches de verano.",
    "¿Qué instrumento toca la hermana de Marta?": "La hermana de Marta toca el violonchelo en la orquesta de la "
    "ciudad y da clases los martes.",
    "Где хранится старая карта города?": "Старая карта города хранится в библиотеке университета под стеклом, и "
    "посмотреть её можно по пятницам.",
    "Сколько лет часам на башне?": "Часам на башне больше четырёхсот лет, и каждое утро их заводит один и тот же "
    "мастер.",
    "茶叶应该怎样保存？": "茶叶应该保存在干燥、阴凉的地方，用密封的罐子装好，避免阳光。",
}


@pytest.fixture(scope="module")
def tiny() -> M3Encoder:
    return M3Encoder("tiny", shared=False, device="cpu")


@pytest.fixture(scope="module")
def encoded(tiny: M3Encoder) -> tuple[M3Vectors, M3Vectors]:
    return tiny.encode(list(PAIRS), kind="query"), tiny.encode(list(PAIRS.values()))


def test_tiny_fits_in_16_megabytes() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 16_000_000


def test_tiny_loads_in_about_a_second(tiny: M3Encoder) -> None:
    # The first load of a process, which the fixture did, also imports the architecture. A busy machine may take longer
    # once, hardly three times.
    times = []
    for _ in range(3):
        began = time.perf_counter()
        M3Encoder("tiny", shared=False, device="cpu").close()
        times.append(time.perf_counter() - began)
    assert min(times) < 2


def test_tiny_is_stored_in_half_precision_and_loads_as_float32(tiny: M3Encoder) -> None:
    from safetensors.torch import load_file

    assert {tensor.dtype for tensor in load_file(FOLDER / "model.safetensors").values()} == {torch.float16}
    for name in ("colbert_linear", "sparse_linear"):
        head = torch.load(FOLDER / f"{name}.pt", weights_only=True)
        assert {tensor.dtype for tensor in head.values()} == {torch.float16}
    assert tiny.encode(["salt"]).dense.dtype == np.float32


@pytest.mark.parametrize("mode", [*MODES, "all"])
def test_tiny_finds_the_answers_in_five_languages(encoded: tuple[M3Vectors, M3Vectors], mode: str) -> None:
    queries, texts = encoded
    weights = ModeWeights(dense=1, lexical=0.3, multi_vector=1).normalized(MODES)
    found = 0
    for row in range(len(PAIRS)):
        scores = raw_scores(queries[row], texts, MODES)
        total = sum(weights[name] * scores[name] for name in MODES) if mode == "all" else scores[mode]  # type: ignore[index]
        found += int(np.argmax(total) == row)
    assert found >= 9


def test_tiny_reads_a_text_of_a_thousand_tokens_and_folds_case(tiny: M3Encoder) -> None:
    long = "The harbour bridge is long. " * 300
    with pytest.warns(UserWarning, match="1024"):
        vectors = tiny.encode([long, "Rathaus", "RATHAUS"])
    assert len(vectors.multi_vector[0]) == 1023
    # The same ids; only their place in the padded batch differs.
    np.testing.assert_allclose(vectors.dense[1], vectors.dense[2], atol=1e-6)


def test_flagembedding_gives_the_same_numbers(encoded: tuple[M3Vectors, M3Vectors]) -> None:
    if find_spec("FlagEmbedding") is None:
        pytest.skip("FlagEmbedding is not installed: pip install FlagEmbedding==1.4.2")
    flag = pytest.importorskip(
        "FlagEmbedding", reason="the FlagEmbedding here cannot be imported", exc_type=ImportError
    )
    model = flag.BGEM3FlagModel(str(FOLDER), use_fp16=False, devices="cpu")
    outputs = model.encode(list(PAIRS), return_dense=True, return_sparse=True, return_colbert_vecs=True)
    queries, _ = encoded
    np.testing.assert_allclose(outputs["dense_vecs"], queries.dense, atol=1e-5)
    for row in range(len(PAIRS)):
        np.testing.assert_allclose(outputs["colbert_vecs"][row], queries.multi_vector[row], atol=1e-5)
        theirs = {int(token): weight for token, weight in outputs["lexical_weights"][row].items()}
        ours = dict(zip(queries.lexical[row].indices.tolist(), queries.lexical[row].values.tolist(), strict=True))
        assert theirs == pytest.approx(ours, abs=1e-5)
        assert lexical_scores(queries.lexical[row], queries.lexical)[row] == pytest.approx(
            model.compute_lexical_matching_score(outputs["lexical_weights"][row], outputs["lexical_weights"][row]),
            rel=1e-5,
        )
