"""Which sentences carry a match: against plain loops, offsets to the character, and what is kept of a text."""

from pathlib import Path

import numpy as np
import pytest

from m3_integrations import M3Encoder, M3Vectors, Searcher, open_store
from m3_integrations.search import Evidence, Sentence, find_evidence
from m3_integrations.search.sentences import sentence_spans
from m3_integrations.store import Store
from m3_integrations.tokenizer import Pooling, Tokenizer
from m3_integrations.vectors import Kind

TEXT = (
    "The museum is closed. Keys are rotated once a year, in the vault! Dr. J. Smith has them. Tea is served at 5."
    "\n\nBye"
)
QUERY = "how often are the keys rotated?"


@pytest.fixture(scope="module")
def tiny() -> M3Encoder:
    return M3Encoder("tiny", device="cpu")


def cut(text: str) -> list[str]:
    return [text[start:end] for start, end in sentence_spans(text)]


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("", []),
        (" \n ", []),
        ("No end", ["No end"]),
        ("One. Two! Three?  Four…", ["One.", "Two!", "Three?", "Four…"]),
        ('He said "no." Then he left.', ['He said "no."', "Then he left."]),
        (
            "Dr. J. Smith met z. B. Anna, e.g. at 3.5 p.m. Yes.",
            ["Dr. J. Smith met z. B. Anna, e.g. at 3.5 p.m. Yes."],
        ),
        (
            "He left St. Gallen, in the US. Then rain. No. 7 won.",
            ["He left St. Gallen, in the US.", "Then rain.", "No. 7 won."],
        ),
        ("Im 19. Jahrhundert war das so. 1999. Ja.", ["Im 19. Jahrhundert war das so.", "1999.", "Ja."]),
        ("He was 39. The end.", ["He was 39.", "The end."]),
        ("是的。不是！“好。”完", ["是的。", "不是！", "“好。”", "完"]),
        ("यह है। वह था।", ["यह है।", "वह था।"]),
        ("First\n\nSecond line\ngoes on", ["First", "Second line\ngoes on"]),
        ("List\n- one\n- two\n3 three", ["List", "- one", "- two", "3 three"]),
        ("www.example.org is up. ok", ["www.example.org is up. ok"]),
        ("J... Went. Wait...x... Dr.. (So?!) No.", ["J...", "Went.", "Wait...x...", "Dr..", "(So?!)", "No."]),
        ("什么！?！。?x！?! y", ["什么！?！。", "?x！?!", "y"]),
    ],
)
def test_sentences_are_cut_where_a_reader_would(text: str, sentences: list[str]) -> None:
    assert cut(text) == sentences


def test_a_stretch_without_an_end_is_cut_at_spaces_and_nothing_is_lost() -> None:
    text = "word " * 700 + "x" * 2500
    pieces = cut(text)
    assert max(map(len, pieces)) <= 1000
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert all(piece.endswith("word") for piece in pieces[:3])


@pytest.mark.parametrize("marks", [".", "!", "…", "!?", ".)", "。」x"])
def test_a_long_run_of_end_marks_takes_steps_in_proportion_to_its_length(marks: str) -> None:
    """Steps in proportion to the square of 200,000 would take minutes."""
    text = marks * 200_000 + "x"
    assert "".join(cut(text)) == text


@pytest.mark.parametrize("pooling", ["cls", "mcls"])
@pytest.mark.parametrize("kind", ["document", "query"])
def test_the_places_of_tokens_spell_the_tokens(pooling: Pooling, kind: Kind) -> None:
    encoder = M3Encoder("tiny", device="cpu", pooling=pooling, query_instruction="find: ", query_max_length=9)
    texts = [TEXT, "Ｆull-width ½ ﬁne", "", "黑豹队的防守丢了多少分？是的。", "rain " * 700]
    all_tokens, all_spans = encoder.tokenize(texts, kind=kind), encoder.token_spans(texts, kind=kind)
    for text, tokens, spans in zip(texts, all_tokens, all_spans, strict=True):
        assert spans.shape == (len(tokens), 2)
        assert (spans[:-1, 0] <= spans[:-1, 1]).all()
        assert spans[-1].tolist() == ([spans[-2, 1]] * 2 if len(tokens) > 1 else [0, 0])
        for token, (start, end) in zip(tokens[:-1], spans[:-1].tolist(), strict=True):
            if text == TEXT and end and token != "▁":
                assert text[start:end].lower() == token.strip("▁")
    whole, short = encoder.token_spans([TEXT])[0].tolist(), encoder.token_spans([TEXT], max_length=6)[0].tolist()
    assert short == [*whole[:-1][: len(short) - 1], [short[-2][1]] * 2]
    assert len(short) == 5


def test_a_tokens_place_is_of_no_use_without_one_text_each(tiny: M3Encoder) -> None:
    with pytest.raises(TypeError, match="strings"):
        tiny.token_spans("a text")
    assert tiny.token_spans([]) == []
    tokenizer = tiny._live_engine().tokenizer
    assert isinstance(tokenizer, Tokenizer)
    with pytest.raises(ValueError, match="max_length must be at least 3"):
        tokenizer.spans(["a"], max_length=2)


def scores_by_hand(encoder: M3Encoder, query: str, text: str, vectors: M3Vectors) -> list[float]:
    """In loops over tokens: weighted MaxSim in each sentence, and the lexical weights of distinct shared tokens."""
    asked = encoder.encode([query], kind="query")
    words, tokens = encoder.tokenize([query], kind="query")[0], encoder.tokenize([text])[0]
    spans = encoder.token_spans([text])[0].tolist()
    of_query, of_text = dict(asked.lexical[0].tokens()), vectors.lexical[0].to_dict()
    names = dict(zip(tokens, [0] * len(tokens), strict=True))
    weight_of = {name: of_text.get(list(encoder.vocabulary).index(name), 0.0) for name in names}
    scores: list[float] = []
    for start, end in sentence_spans(text):
        rows = [i for i, (a, _) in enumerate(spans[:-1]) if start <= a < end]
        best = 0.0
        if "multi_vector" in vectors.modes:
            total = sum(of_query.get(word, 0.0) for word in words)
            for word, vector in zip(words, asked.multi_vector[0], strict=True):
                similar = max(float(vector @ vectors.multi_vector[0][row]) for row in rows)
                best += of_query.get(word, 0.0) * similar / total
        scores.append(best + sum(of_query.get(name, 0.0) * weight_of[name] for name in {tokens[row] for row in rows}))
    return scores


@pytest.mark.parametrize("storage", ["memory", "float16", "turbo8", "none", "pooled"])
def test_scores_equal_loops_over_tokens_whatever_is_stored(tiny: M3Encoder, tmp_path: Path, storage: str) -> None:
    settings = {"token_pooling": 2} if storage == "pooled" else {"multi_vector": storage}
    store: Store = open_store() if storage == "memory" else open_store(tmp_path, **settings)
    with Searcher(tiny, store) as searcher:
        searcher.add([TEXT], ids=["a"])
        (record,) = store.get(["a"], with_vectors=True)
        assert record.vectors is not None
        (found,) = searcher.spans(QUERY, ["a"])
        assert found.modes == (("lexical",) if storage == "none" else ("lexical", "multi_vector"))
        assert [TEXT[s.start : s.end] for s in found.sentences] == cut(TEXT)
        assert found.read_to == len(TEXT)
        if storage != "pooled":
            expected = scores_by_hand(tiny, QUERY, TEXT, record.vectors)
            assert [s.score for s in found.sentences] == pytest.approx(expected, abs=1e-5)
        assert found.best == found.sentences[1]
        assert found == searcher.spans(QUERY, searcher.search(QUERY))[0]


def test_stored_vectors_are_read_and_only_other_texts_are_encoded(tiny: M3Encoder) -> None:
    searcher = Searcher(tiny, open_store())
    texts = [f"{TEXT} And the number is {i}." for i in range(20)]
    searcher.add(texts, ids=[str(i) for i in range(20)])
    before = tiny.stats
    found = find_evidence(tiny, "number", texts, ids=[str(i) for i in range(20)], store=searcher.store)
    assert tiny.stats.encoded_texts - before.encoded_texts == 1  # the query
    assert [each.id for each in found] == [str(i) for i in range(20)]
    changed = [texts[0], texts[1] + " More.", "New."]
    mixed = find_evidence(tiny, "number", changed, ids=["0", "1", None], store=searcher.store)
    assert tiny.stats.encoded_texts - before.encoded_texts == 3
    assert [(each.id, each.text) for each in mixed] == [("0", changed[0]), ("1", changed[1]), ("", "New.")]
    assert mixed[0] == found[0]
    assert find_evidence(tiny, "number", []) == []
    with pytest.raises(ValueError, match="got 1 texts and 2 ids"):
        find_evidence(tiny, "number", ["a"], ids=["a", "b"])
    with pytest.raises(KeyError, match="no record 'x'"):
        searcher.spans("number", ["0", "x"])


@pytest.mark.filterwarnings("ignore:.*longer than")
def test_a_record_that_was_cut_says_how_far_it_was_read(tiny: M3Encoder) -> None:
    short = M3Encoder("tiny", device="cpu", max_length=12)
    searcher = Searcher(short, open_store())
    searcher.add([TEXT], ids=["a"])
    for asking in (short, tiny):
        (found,) = Searcher(asking, searcher.store).spans("vault tea", ["a"])
        assert found.read_to == tiny.token_spans([TEXT])[0][9, 1]
        assert TEXT[: found.read_to].startswith("The museum is closed. Keys")
        assert [s.score for s in found.sentences[-2:]] == [0.0, 0.0]


def evidence(*scores: float, gap: int = 1, read_to: int = 1000) -> Evidence:
    """Sentences of 10 characters with white space between."""
    size = 10 + gap
    sentences = tuple(Sentence(i * size, i * size + 10, score) for i, score in enumerate(scores))
    return Evidence("a", (" " * gap).join(["x" * 10] * len(scores)), sentences, ("lexical",), read_to)


def test_what_is_kept_is_the_best_and_what_follows_it_within_the_room() -> None:
    found = evidence(0.1, 0.2, 0.9, 0.3, 0.8, 0.0)  # 65 characters
    assert found.best == found.sentences[2]
    assert found.keep(max_share=0.1) == [(22, 32)]  # the best alone, though it is longer
    assert found.keep(max_share=0.33) == [(22, 43)]  # and its neighbour
    assert found.keep(max_share=0.5) == [(22, 54)]  # and the next best
    assert found.keep(max_share=0.31, neighbours=0) == [(22, 32), (44, 54)]
    assert found.keep(max_share=1.0) == [(0, 65)]
    assert found.keep(max_share=1.0, max_characters=20, neighbours=0) == [(22, 32), (44, 54)]
    assert evidence().keep() == []
    assert evidence().best is None
    assert evidence(0.0, 0.0).keep(neighbours=0, max_share=0.5) == [(0, 10)]


def test_a_sentence_that_was_not_read_comes_after_all_that_were() -> None:
    found = evidence(-0.3, -0.1, 0.0, 0.0, read_to=21)
    assert found.best == found.sentences[1]
    assert found.keep(max_share=0.3, neighbours=0) == [(11, 21)]
    assert found.keep(max_share=0.5, neighbours=0) == [(0, 21)]
    part = found.within(11, 43)
    assert part.best == part.sentences[0]
    assert evidence(-0.3, 0.0, read_to=0).best == Sentence(11, 21, 0.0)


def test_white_space_and_separators_count_as_kept() -> None:
    found = evidence(0.2, 0.9, 0.1, 0.8, gap=30)  # at 0, 40, 80 and 120
    assert found.keep(max_share=1, max_characters=49) == [(40, 50), (120, 130)]
    assert found.keep(max_share=1, max_characters=50) == [(40, 90)]
    assert found.keep(max_share=1, max_characters=89) == [(40, 90)]
    assert found.keep(max_share=1, max_characters=90) == [(40, 130)]
    assert found.keep(max_share=1, max_characters=22, separator_characters=3) == [(40, 50)]
    assert found.keep(max_share=1, max_characters=23, separator_characters=3) == [(40, 50), (120, 130)]
    # The third sentence saves the separator of 70 between its neighbours: 10 + 2 * 30 - 70.
    assert found.keep(max_share=1, max_characters=90, separator_characters=70, neighbours=0) == [(40, 130)]
    assert found.keep(max_share=1, separator_characters=1000) == [(0, 130)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_share": 0.0}, "max_share must be over 0 and up to 1, got 0.0"),
        ({"max_share": 1.1}, "got 1.1"),
        ({"max_characters": 0}, "max_characters must be at least 1, got 0"),
        ({"neighbours": -1}, "neighbours must be 0 or more, got -1"),
        ({"separator_characters": -1}, "separator_characters must be 0 or more, got -1"),
    ],
)
def test_keeping_refuses_what_has_no_meaning(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evidence(1.0).keep(**arguments)  # type: ignore[arg-type]


def test_an_answer_deep_in_a_long_record_is_found_by_its_evidence(tiny: M3Encoder) -> None:
    filler = [f"Point {i} of the minutes was about chairs, lamps and windows." for i in range(40)]
    decision = "Lost library cards are replaced for four euros. The reader pays at the desk."
    text = " ".join([*filler[:30], decision, *filler[30:]])
    searcher = Searcher(tiny, open_store())
    searcher.add([text], ids=["minutes"])
    (found,) = searcher.spans("what does a new card cost when I lost mine?", ["minutes"])
    assert [text[a:b] for a, b in found.keep(max_characters=len(decision))] == [decision]


def test_dense_vectors_alone_say_nothing_of_places(tiny: M3Encoder) -> None:
    store = open_store()
    store.upsert(["a"], [TEXT], [{}], tiny.encode([TEXT], modes=("dense",)))
    with pytest.raises(ValueError, match="the vectors are only dense"):
        Searcher(tiny, store).spans(QUERY, ["a"])
    assert np.isclose(store.get(["a"], with_vectors=True)[0].vectors.dense[0] @ tiny.encode([TEXT]).dense[0], 1)  # type: ignore[union-attr]
