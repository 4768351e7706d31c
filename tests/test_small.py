"""The bundled checkpoint that understands: its files, and paraphrases that it answers within and across languages."""

from __future__ import annotations

import json
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import m3_integrations
from m3_integrations import M3Encoder, M3Vectors, ModeWeights
from m3_integrations.scoring import raw_scores
from m3_integrations.vectors import MODES, Mode
from tests.demo.test_paraphrases import content

FOLDER = Path(m3_integrations.__file__).parent / "small"

# Written by hand before there was a checkpoint to try them on. No question has a word in common with its answer.
PAIRS = {
    "What should I do if my laptop gets wet?": "Switch the notebook off, take out the battery and let it dry for two "
    "days before you try again.",
    "How do I get rid of a cold?": "Rest, drink plenty and wait a week: the runny nose passes by itself.",
    "Was hilft gegen Kopfschmerzen?": "Eine Tablette, viel Wasser und ein dunkles Zimmer lindern das Pochen hinter der "
    "Stirn.",
    "Как добраться до аэропорта?": "Самолёты улетают с восточного края города; туда ходит экспресс от вокзала.",
    "How hot is the surface of the sun?": "Außen hat unser Stern etwa fünfeinhalbtausend Grad.",
    "Which bird swims well but never flies?": "企鹅不会飞，但是游泳游得很好。",
    "Who looks after sick animals?": "La veterinaria cura a los perros y gatos enfermos del barrio.",
    "¿A qué hora cierra el museo?": "Die Ausstellung kann man bis achtzehn Uhr besuchen.",
    "Où puis-je acheter du pain ?": "The bakery on the corner opens at six and sells rolls and loaves.",
    "Wie lange dauert die Fahrt mit dem Zug?": "By rail it takes about two hours to get there.",
    "Почему листья осенью желтеют?": "Trees withdraw the green from their foliage before winter, and gold remains.",
    "怎样才能睡得更好？": "A dark, cool bedroom and no coffee in the evening help against insomnia.",
    "歯が痛いときはどうすればいいですか？": "See a dentist at once; until then a cold pack on the cheek eases it.",
    "비가 오면 경기는 어떻게 되나요?": "The match is put off until the next day in rainy weather.",
    "كم عدد سكان المدينة؟": "About eighty thousand people live in the town.",
    "पौधों को कितनी बार पानी देना चाहिए?": "Houseplants are fine with being watered once a week.",
    "ฉันจะเปลี่ยนรหัสผ่านได้อย่างไร": "To choose a new password, open the settings and confirm with your old one.",
    "Πόσο κοστίζει το εισιτήριο του λεωφορείου;": "A ride on the bus is two euros; children travel free.",
    "Kayıp cüzdanımı nerede bulabilirim?": "Wallets and umbrellas that were left behind are kept at the lost property "
    "office.",
    "Jak zrobić ciasto na pizzę?": "Knead flour, water, yeast and a little oil, and let the dough rise for an hour.",
}


@pytest.fixture(scope="module")
def small() -> M3Encoder:
    return M3Encoder("small", shared=False, device="cpu")


@pytest.fixture(scope="module")
def encoded(small: M3Encoder) -> tuple[M3Vectors, M3Vectors]:
    return small.encode(list(PAIRS), kind="query"), small.encode(list(PAIRS.values()))


def test_small_fits_in_36_megabytes() -> None:
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= 36_000_000


def test_small_loads_in_two_seconds_of_cpu_time(small: M3Encoder) -> None:
    began = time.process_time()  # not the clock's: the machine may be busy. The fixture's load imported all modules.
    M3Encoder("small", shared=False, device="cpu").close()
    assert time.process_time() - began < 2


def test_small_is_stored_in_8_bits_and_loads_as_float32(small: M3Encoder) -> None:
    weights = load_file(FOLDER / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values() if tensor.ndim == 2} == {torch.float8_e4m3fn}
    config = json.loads((FOLDER / "config.json").read_text())
    assert (config["model_type"], config["dtype"]) == ("xlm-roberta", "float32")
    assert small.modes == MODES
    assert small.encode(["salt"]).dense.dtype == np.float32


def test_no_question_shares_a_word_with_its_answer() -> None:
    assert {question: words for question, text in PAIRS.items() if (words := content(question) & content(text))} == {}


# Of the 20 questions, how many have their answer in the first place, and in the first three. Chance gives 1 and 3,
# `tiny` 3 and 7 (dense), and the teacher, with all its pieces, 16 in the first place.
FOUND = {"dense": (9, 14), "multi_vector": (8, 12), "all": (9, 13)}


@pytest.mark.parametrize("mode", FOUND)
def test_small_answers_paraphrases_within_and_across_languages(encoded: tuple[M3Vectors, M3Vectors], mode: str) -> None:
    queries, texts = encoded
    weights = ModeWeights(dense=1, lexical=0.3, multi_vector=1).normalized(MODES)
    places = []
    for row in range(len(PAIRS)):
        scores = raw_scores(queries[row], texts, MODES)
        weighted = np.sum([weights[name] * scores[name] for name in MODES], axis=0)
        total = weighted if mode == "all" else scores[mode]  # type: ignore[index]
        places.append(int((total > total[row]).sum()))
    first, third = FOUND[mode]
    assert places.count(0) >= first - 1, places  # one less: processors round differently
    assert sum(place < 3 for place in places) >= third - 1, places


def test_a_text_gets_the_same_vectors_alone_and_among_others(
    small: M3Encoder, encoded: tuple[M3Vectors, M3Vectors]
) -> None:
    alone = small.encode([next(iter(PAIRS.values()))])
    np.testing.assert_allclose(alone.dense[0], encoded[1].dense[0], atol=1e-5)


def test_small_reads_4096_tokens(small: M3Encoder) -> None:
    with pytest.warns(UserWarning, match="longer than 4096 tokens"):
        vectors = small.encode(["The harbour bridge is long. " * 1000])
    assert len(vectors.multi_vector[0]) == 4095


def test_positions_come_again_and_again() -> None:
    table = load_file(FOLDER / "model.safetensors")["embeddings.position_embeddings.weight"].float()
    assert table[2:].reshape(8, 512, 384).eq(table[2:514]).all()


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_a_sentence_is_found_behind_all_of_the_teachers_positions(small: M3Encoder, mode: Mode) -> None:
    sentences = [text for text in PAIRS.values() if text.isascii()]
    before = " ".join(PAIRS) * 4
    assert 900 < len(small.tokenize([before])[0]) < 1200
    vectors = small.encode([f"{before}\n\n{sentence}" for sentence in sentences])
    queries = small.encode(sentences, kind="query")
    scores = np.array([raw_scores(queries[row], vectors, [mode])[mode] for row in range(len(sentences))])
    assert (scores.argmax(axis=1) == np.arange(len(sentences))).mean() > 0.7


def test_the_real_vocabulary_splits_words_as_bge_m3s_does_where_it_has_the_pieces(small: M3Encoder) -> None:
    """BGE-M3's vocabulary keeps case and spaces as pieces of its own; the pieces here are some of them."""
    (tokens,) = small.tokenize(["What is BGE M3?"])
    assert tokens[:3] == ["▁What", "▁is", "▁B"]
    assert small.vocabulary[:4] == ("<s>", "<pad>", "</s>", "<unk>")


def test_flagembedding_gives_the_same_numbers(encoded: tuple[M3Vectors, M3Vectors]) -> None:
    if find_spec("FlagEmbedding") is None:
        pytest.skip("FlagEmbedding is not installed: pip install FlagEmbedding==1.4.2")
    flag = pytest.importorskip(
        "FlagEmbedding", reason="the FlagEmbedding here cannot be imported", exc_type=ImportError
    )
    model = flag.BGEM3FlagModel(str(FOLDER), use_fp16=False, devices="cpu")
    texts = list(PAIRS)
    outputs = model.encode(texts, return_dense=True, return_sparse=True, return_colbert_vecs=True, max_length=512)
    queries, _ = encoded
    np.testing.assert_allclose(outputs["dense_vecs"], queries.dense, atol=1e-5)
    for row in range(len(PAIRS)):
        np.testing.assert_allclose(outputs["colbert_vecs"][row], queries.multi_vector[row], atol=1e-5)
        theirs = {int(token): weight for token, weight in outputs["lexical_weights"][row].items()}
        ours = dict(zip(queries.lexical[row].indices.tolist(), queries.lexical[row].values.tolist(), strict=True))
        assert theirs == pytest.approx(ours, abs=1e-5)
