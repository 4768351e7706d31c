import asyncio
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import pytest

from m3_integrations import M3Encoder, ModeWeights, Record, Searcher, SearchOptions, Store, open_store
from m3_integrations.search import SearchKeywords, rerank
from m3_integrations.search.options import MODES_OF
from m3_integrations.store import Hits, matches, parse_filter
from m3_integrations.store.memory import MemoryStore
from m3_integrations.tokenizer import Pooling
from m3_integrations.vectors import M3Vectors, Mode, MultiVectorRows
from tests.fakes import FakeEncoder
from tests.test_filters import random_filter, random_metadata
from tests.test_fusion_and_bm25 import brute_force as bm25_scores
from tests.test_scoring import brute_force

WORDS = ["keys", "vault", "museum", "rain", "train", "tea", "code", "blue"]


def make_texts(random: np.random.Generator, n: int) -> list[str]:
    return [" ".join(WORDS[i] for i in random.integers(0, 8, 4)) + f" {row}" for row in range(n)]


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


def make_searcher(random: np.random.Generator) -> Searcher:
    """Eighty records behind a fake encoder."""
    searcher = Searcher(FakeEncoder(), open_store())
    searcher.add(
        make_texts(random, 80),
        ids=[f"d{i:02}" for i in range(80)],
        metadatas=[random_metadata(random) for _ in range(80)],
    )
    return searcher


@pytest.fixture
def filled(random: np.random.Generator) -> Searcher:
    return make_searcher(random)


def expected_ranking(
    searcher: Searcher, query: str, **asked: Unpack[SearchKeywords]
) -> tuple[list[tuple[str, float]], dict[str, dict[str, float]]]:
    """The definition in plain words and float64: both legs' pools, their union, exact scores, weights, ties by id."""
    assert isinstance(searcher.store, MemoryStore)
    options = SearchOptions(**asked)
    # In the order of insertion.
    ids = [record.id for record in searcher.store.records() if matches(options.filter, record.metadata)]
    records = searcher.store.get(ids, with_vectors=True)
    raw: dict[str, dict[str, float]] = {}
    vectors = searcher.encoder.encode([query], kind="query")
    for record in records:
        assert record.vectors is not None
        scores = brute_force(vectors, record.vectors)
        raw[record.id] = {mode: values[0] for mode, values in scores.items()}
    modes = MODES_OF[options.mode]
    legs = [m for m in ("dense", "lexical") if m in modes or "multi_vector" in modes]
    union: set[str] = set()
    for leg in legs:
        eligible = [i for i in ids if leg == "dense" or raw[i]["lexical"] > 0]
        union.update(sorted(eligible, key=lambda i: -raw[i][leg])[: max(options.pool_size, options.k)])
    parts = options.weights.normalized(modes)
    final = {i: sum(parts[m] * raw[i][m] for m in modes) for i in union}
    ranked = sorted(final.items(), key=lambda item: (-item[1], item[0]))
    if options.score_threshold is not None:
        ranked = [item for item in ranked if item[1] >= options.score_threshold]
    return ranked[: options.k], raw


def test_every_mode_weight_and_filter_equals_float64_brute_force(filled: Searcher, random: np.random.Generator) -> None:
    one_leg_only = 0
    for trial in range(150):
        asked: SearchKeywords = {
            "k": int(random.integers(1, 12)),
            "mode": list(MODES_OF)[trial % 5],
            "weights": ModeWeights(*random.uniform(0.05, 1, 3)),
            "filter": random_filter(random) if trial % 2 else None,
            "pool_size": int(random.integers(1, 9)),
            "score_threshold": 0.1 if trial % 7 == 0 else None,
        }
        query = make_texts(random, 1)[0]
        ranked, raw = expected_ranking(filled, query, **asked)
        hits = filled.search(query, **asked)
        assert [hit.id for hit in hits] == [id_ for id_, _ in ranked]
        for hit, (_, score) in zip(hits, ranked, strict=True):
            assert hit.score == pytest.approx(score, abs=1e-5)
            assert hit.scores == pytest.approx({m: raw[hit.id][m] for m in MODES_OF[asked["mode"] or "all"]}, abs=1e-5)
            one_leg_only += hit.scores.get("lexical", 1.0) == 0
    assert one_leg_only > 10  # candidates that only the dense leg found were among them


def test_a_score_that_equals_the_threshold_is_enough(filled: Searcher) -> None:
    best = filled.search("keys vault", k=20)
    assert filled.search("keys vault", k=20, score_threshold=best[4].score) == best[:5]


def test_equal_scores_come_in_the_order_of_the_ids() -> None:
    searcher = Searcher(FakeEncoder(), open_store())
    searcher.add(["the same text"] * 5, ids=["d", "b", "e", "c", "a"])
    asked: list[SearchKeywords] = [{}, {"mode": "dense"}, {"mode": "lexical"}, {"fusion": "rrf"}, {"bm25": "extra"}]
    for each in asked:
        assert [hit.id for hit in searcher.search("the same text", **each)] == ["a", "b", "c", "d"], each


def test_results_of_a_batch_are_those_of_single_queries(filled: Searcher, random: np.random.Generator) -> None:
    queries = make_texts(random, 150)
    batch = filled.search_batch(queries, k=3)
    assert [[hit.id for hit in hits] for hits in batch] == [
        [hit.id for hit in filled.search(query, k=3)] for query in queries
    ]


async def test_asearch_gives_what_search_gives(filled: Searcher) -> None:
    assert await filled.asearch("keys vault") == filled.search("keys vault")
    assert (
        await filled.asearch("keys vault", k=2) == filled.search("keys vault", k=2) == filled.search("keys vault")[:2]
    )


def test_records_are_deleted_by_ids_or_by_a_filter(filled: Searcher) -> None:
    assert filled.delete(["d00", "nobody", "d01"]) == 2
    assert filled.delete([]) == 0
    parsed = parse_filter({"size": {"$gte": 3}})
    matching = [record.id for record in filled.store.records() if matches(parsed, record.metadata)]
    assert filled.delete(filter={"size": {"$gte": 3}}) == len(matching) > 0
    assert filled.store.count() == 78 - len(matching)
    assert filled.store.get(matching) == []


async def test_asearch_does_not_block_the_event_loop(filled: Searcher) -> None:
    slow = Searcher(FakeEncoder(delay_s=0.3), filled.store)
    longest_s = 0.0

    async def tick() -> None:
        nonlocal longest_s
        while True:
            start = time.perf_counter()
            await asyncio.sleep(0.001)
            longest_s = max(longest_s, time.perf_counter() - start)

    readings = []
    for _ in range(3):
        longest_s = 0.0
        ticker = asyncio.create_task(tick())
        await slow.asearch("keys")
        await slow.aadd(["another"], ids=["d00"])
        await asyncio.sleep(0.01)  # let the ticker measure the last pause too
        ticker.cancel()
        readings.append(longest_s)
    assert min(readings) < 0.05


def test_the_query_is_encoded_once_and_documents_never_again(filled: Searcher) -> None:
    encoder = filled.encoder
    assert isinstance(encoder, FakeEncoder)
    encoder.encoded.clear()
    filled.search("keys vault", mode="all", k=50, pool_size=80)
    assert encoder.encoded == [("query", "keys vault")]


def test_adding_gives_ids_replaces_and_makes_missing_ones(filled: Searcher) -> None:
    ids = filled.add(["one", "two"], ids=["d00", None])
    assert ids[0] == "d00"
    assert len(ids[1]) == 36
    assert filled.store.count() == 81
    assert filled.store.get(["d00"])[0].text == "one"
    assert filled.add([]) == []


def test_bad_additions_are_refused(filled: Searcher) -> None:
    with pytest.raises(ValueError, match="2 texts and 1 ids"):
        filled.add(["a", "b"], ids=["x"])
    with pytest.raises(ValueError, match="2 texts and 3 metadatas"):
        filled.add(["a", "b"], metadatas=[{}, {}, {}])
    with pytest.raises(TypeError, match="one string"):
        filled.add("text")
    assert filled.store.count() == 80


def test_modes_without_a_head_are_dropped_from_all_and_refused_by_name() -> None:
    with pytest.warns(UserWarning, match="no heads for lexical, multi_vector, only dense"):
        searcher = Searcher(FakeEncoder(modes=("dense",)), open_store())
    searcher.add(["a b", "c d"], ids=["1", "2"])
    (hit, _) = searcher.search("a b")
    assert list(hit.scores) == ["dense"]
    for mode in ("lexical", "dense+lexical", "multi_vector"):
        with pytest.raises(ValueError, match=r"the checkpoint fake has no heads for .*, only dense can be computed"):
            searcher.search("a", mode=mode)


def test_rrf_fuses_the_rankings_of_all_candidates(filled: Searcher) -> None:
    query = "keys vault"
    _, raw = expected_ranking(filled, query, k=80, pool_size=80)
    fused: dict[str, float] = dict.fromkeys(raw, 0.0)
    for mode in ("dense", "lexical", "multi_vector"):
        ranking = sorted((i for i in raw if mode != "lexical" or raw[i][mode] > 0), key=lambda i: -raw[i][mode])
        for rank, id_ in enumerate(ranking, start=1):
            fused[id_] += (1 / 3) / (7 + rank)
    expected = sorted(fused.items(), key=lambda item: (-item[1], item[0]))[:10]
    hits = filled.search(query, k=10, pool_size=80, fusion="rrf", rrf_k=7)
    assert [hit.id for hit in hits] == [id_ for id_, _ in expected]
    assert [hit.score for hit in hits] == pytest.approx([score for _, score in expected])


def test_bm25_adds_candidates_that_the_other_legs_missed(filled: Searcher) -> None:
    assert isinstance(filled.store, MemoryStore)
    texts = {i: record.text.split() for i, record in enumerate(filled.store.records())}
    ((best, score),) = bm25_scores(texts, ["7"]).items()  # the only text with the token
    assert best == 7
    without = filled.search("7", mode="dense", k=1, pool_size=1)
    assert without[0].id != "d07"
    for bm25 in ("extra", "replace"):
        hit = filled.search("7", mode="dense", k=2, pool_size=1, bm25=bm25, fusion="rrf", rrf_k=0)[0]
        assert hit.id == "d07"
        assert hit.scores["bm25"] == pytest.approx(score, rel=1e-5)


def test_bm25_follows_changes_and_filters(filled: Searcher) -> None:
    asked: SearchKeywords = {"mode": "dense", "fusion": "rrf", "bm25": "replace", "k": 80, "pool_size": 80}
    filled.add(["zebra"], ids=["z"], metadatas=[{"kind": "animal"}])
    assert filled.search("zebra", **asked)[0].scores.keys() == {"dense", "bm25"}
    unkind = filled.search("zebra", mode="dense", bm25="extra", filter={"kind": {"$exists": False}}, k=80)
    assert "z" not in {hit.id for hit in unkind}
    filled.store.delete(["z"])
    assert all("bm25" not in hit.scores for hit in filled.search("zebra", **asked))


def test_bm25_tokenizes_only_what_is_new_and_never_copies_for_a_filter(
    filled: Searcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenized: list[list[str]] = []
    tokenize = filled.encoder.tokenize

    def counting(texts: Sequence[str], **kwargs: Any) -> list[list[str]]:
        tokenized.append(list(texts))
        return tokenize(texts, **kwargs)

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("all records were copied")

    monkeypatch.setattr(filled.encoder, "tokenize", counting)
    monkeypatch.setattr(filled.store, "records", refuse)
    asked: SearchKeywords = {"mode": "dense", "bm25": "extra", "filter": {"kind": {"$exists": False}}}
    filled.search("zebra", **asked)
    assert [len(texts) for texts in tokenized] == [80, 1]
    filled.add(["zebra", "other"], ids=["d01", "new"])
    filled.store.delete(["d02", "d03"])
    tokenized.clear()
    for _ in range(2):
        assert [hit.id for hit in filled.search("zebra", **asked) if "bm25" in hit.scores] == ["d01"]
    assert tokenized == [["zebra", "other"], ["zebra"], ["zebra"]]


def test_bm25_equals_brute_force_through_changes_of_the_store(filled: Searcher, random: np.random.Generator) -> None:
    assert isinstance(filled.store, MemoryStore)
    for trial in range(30):
        filled.add(make_texts(random, 3), ids=[f"d{i:02}" for i in random.integers(0, 99, 3)])
        filled.store.delete([f"d{i:02}" for i in random.integers(0, 99, 5)])
        filter_ = parse_filter(random_filter(random)) if trial % 2 else None
        records = list(filled.store.records())
        texts = {i: record.text.split() for i, record in enumerate(records)}
        words = ["keys", "tea", "vault"]
        expected = {
            records[i].id: score
            for i, score in bm25_scores(texts, words).items()
            if matches(filter_, records[i].metadata)
        }
        asked: SearchKeywords = {"mode": "dense", "bm25": "extra", "k": 200, "pool_size": 200, "filter": filter_}
        found = filled.search(" ".join(words), **asked)
        assert {hit.id: hit.scores["bm25"] for hit in found if "bm25" in hit.scores} == pytest.approx(expected)


def test_bm25_alone_finds_in_the_readmes_two_documents() -> None:
    """Every token of one of two texts is in half of them."""
    searcher = Searcher(M3Encoder("tiny", device="cpu"), open_store())
    searcher.add(
        ["Rotate the keys of the vault once a year.", "The museum is closed on Mondays."], ids=["vault", "museum"]
    )
    found = searcher.search("how do I rotate the keys?", bm25="replace", mode="lexical")
    assert found[0].id == "vault"
    found = searcher.search("closed Mondays", bm25="replace", mode="lexical")
    assert [hit.id for hit in found] == ["museum"]


def test_bm25_does_not_look_for_the_words_of_an_instruction(small: Path) -> None:
    found = []
    for instruction in ("", "museum opens on "):
        with M3Encoder(small, shared=False, device="cpu", query_instruction=instruction) as encoder:
            searcher = Searcher(encoder, open_store())
            searcher.add(["The museum opens on Tuesdays.", "Rotate the keys."], ids=["museum", "keys"])
            hits = searcher.search("keys", mode="dense", bm25="extra")
            found.append({hit.id: hit.scores["bm25"] for hit in hits if "bm25" in hit.scores})
    assert found[0] == found[1]


def test_bm25_can_replace_the_learned_lexical_leg(filled: Searcher) -> None:
    """No text has the word; some share a token of the fake's random lexical weights."""
    assert filled.search("zebra", mode="lexical") != []
    assert filled.search("zebra", mode="lexical", bm25="extra") != []
    assert filled.search("zebra", mode="lexical", bm25="replace") == []


def test_bm25_is_refused_where_the_store_is_not_in_memory(filled: Searcher) -> None:
    class Elsewhere:
        """Passes everything on, as an engine elsewhere would."""

        def __getattr__(self, name: str) -> Any:
            return getattr(filled.store, name)

    searcher = Searcher(filled.encoder, Elsewhere())
    with pytest.raises(ValueError, match="bm25='extra' needs a store in memory"):
        searcher.search("a", bm25="extra")
    with pytest.raises(ValueError, match="bm25='replace' needs a store in memory"):
        Searcher(filled.encoder, Elsewhere(), SearchOptions(bm25="replace"))
    with pytest.raises(ValueError, match="bm25='replace' needs a store in memory"):
        searcher.with_options(SearchOptions(bm25="replace"))


def test_a_record_deleted_during_a_search_is_passed_over(filled: Searcher) -> None:
    class Racing(MemoryStore):
        """Loses its best record between the candidates and everything after."""

        def candidates(self, *args: Any, **kwargs: Any) -> dict[Mode, Hits]:
            hits = super().candidates(*args, **kwargs)
            self.delete(hits["dense"].ids[:1])
            return hits

    racing: Store = Racing()
    searcher = Searcher(FakeEncoder(), racing)
    searcher.add(["a b", "c d", "e f"], ids=["1", "2", "3"])
    assert len(searcher.search("a b", k=3)) == 2


def test_the_next_best_take_the_places_of_records_deleted_after_they_were_scored() -> None:
    class Racing(MemoryStore):
        """Loses its best records between the scores and the texts."""

        def get(self, ids: Sequence[str], *, with_vectors: bool = False) -> list[Record]:
            self.delete(gone)
            return super().get(ids, with_vectors=with_vectors)

    gone: list[str] = []
    racing = Racing()
    searcher = Searcher(FakeEncoder(), racing)
    searcher.add([f"a b {i}" for i in range(20)], ids=[f"{i:02}" for i in range(20)])
    best = [hit.id for hit in searcher.search("a b", k=12)]
    gone += [best[0], *best[2:7]]
    found = [hit.id for hit in searcher.search("a b", k=6)]
    assert found == [best[1], *best[7:12]]
    gone += best
    assert len(searcher.search("a b", k=12)) == 8


def test_a_store_of_another_model_is_refused(filled: Searcher) -> None:
    other = FakeEncoder()
    other.fingerprint = "0the7"
    for method, arguments in (("search", ("a",)), ("add", (["a"],)), ("explain", ("a", "d00"))):
        with pytest.raises(ValueError, match="of the model fa4e, not of 0the7"):
            getattr(Searcher(other, filled.store), method)(*arguments)
    with pytest.raises(ValueError, match="of the model fa4e"):
        rerank(other, "a", ["b"], ids=["d00"], store=filled.store)


def test_an_explanation_adds_up_to_the_scores(filled: Searcher) -> None:
    for id_ in ("d00", "d13", "d44"):
        explanation = filled.explain("keys vault museum", id_)
        record = filled.store.get([id_], with_vectors=True)[0]
        assert record.vectors is not None
        query = filled.encoder.encode(["keys vault museum"], kind="query")
        expected = {mode: values[0] for mode, values in brute_force(query, record.vectors).items()}
        assert explanation.scores == pytest.approx(expected, abs=1e-5)
        assert sum(match.score for match in explanation.lexical) == pytest.approx(expected["lexical"], abs=1e-5)
        parts = [match.score for match in explanation.lexical]
        assert parts == sorted(parts, reverse=True)
    with pytest.raises(KeyError, match="no record 'nowhere'"):
        filled.explain("a", "nowhere")


def test_an_explanation_names_the_tokens(encoder: M3Encoder) -> None:
    searcher = Searcher(encoder, open_store())
    searcher.add(["Rotate the keys once a year."], ids=["a"])
    explanation = searcher.explain("rotate keys", "a")
    (words,) = encoder.tokenize(["rotate keys"])
    (others,) = encoder.tokenize(["Rotate the keys once a year."])
    assert [pair.query_token for pair in explanation.multi_vector] == words
    assert {pair.document_token for pair in explanation.multi_vector} <= set(others)
    mean = np.mean([pair.similarity for pair in explanation.multi_vector])
    assert mean == pytest.approx(explanation.scores["multi_vector"], abs=1e-5)
    same = searcher.explain("Rotate the keys once a year.", "a")
    assert [(pair.query_token, pair.document_token) for pair in same.multi_vector] == list(
        zip(others, others, strict=True)
    )


@pytest.mark.parametrize("pooling", ["cls", "mcls"])
@pytest.mark.parametrize("instruction", ["", "find what says: "])
def test_an_explanation_names_the_tokens_whatever_the_limits(pooling: Pooling, instruction: str) -> None:
    """The document is cut at 12 tokens or not at all, and explained by handles with a shorter and a longer limit."""
    text = " ".join(f"word{i} of many" for i in range(150))
    settings: dict[str, Any] = {"device": "cpu", "pooling": pooling}
    query = "many of word2"
    with M3Encoder("tiny", **settings) as whole:
        (tokens,) = whole.tokenize([text])
        (words,) = whole.tokenize([instruction + query])
        for indexed_at in (12, 1022):
            with M3Encoder("tiny", max_length=indexed_at, **settings) as indexing, warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the text is cut
                store = open_store()
                Searcher(indexing, store).add([text], ids=["a"])
                (record,) = store.get(["a"], with_vectors=True)
                assert record.vectors is not None
                rows = record.vectors.multi_vector[0]
            names = [*tokens[: len(rows) - 1], tokens[-1]]
            for asked_at in (8, 300, 1022):
                limits: dict[str, Any] = {
                    "max_length": asked_at,
                    "query_max_length": 60,
                    "query_instruction": instruction,
                }
                with M3Encoder("tiny", **limits, **settings) as asking:
                    explanation = Searcher(asking, store).explain(query, "a")
                    similarities = asking.encode([query], kind="query").multi_vector[0] @ rows.T
                assert [(pair.query_token, pair.document_token) for pair in explanation.multi_vector] == [
                    (word, names[best]) for word, best in zip(words, similarities.argmax(axis=1), strict=True)
                ]
                found = [pair.similarity for pair in explanation.multi_vector]
                assert found == pytest.approx(similarities.max(axis=1), abs=1e-5)
                assert np.mean(found) == pytest.approx(explanation.scores["multi_vector"], abs=1e-5)


def test_an_explanation_says_which_tokens_it_cannot_name(encoder: M3Encoder) -> None:
    """More vectors than the text has tokens for this encoder."""
    store = open_store()
    searcher = Searcher(encoder, store)
    vectors = encoder.encode(["Rotate the keys once a year."])
    searcher.add(["warm up"])
    store.upsert(["a"], ["Rotate"], [{}], vectors)
    (words,), n = encoder.tokenize(["Rotate"]), len(vectors.multi_vector[0])
    names = [*words[:-1], *["?"] * (n - len(words)), words[-1]]
    found = searcher.explain("Rotate the keys once a year.", "a").multi_vector
    assert [pair.document_token for pair in found] == names


def test_a_record_without_token_vectors_is_explained(filled: Searcher) -> None:
    vectors = filled.encoder.encode(["text"])
    empty = MultiVectorRows(np.zeros(2, np.int64), vectors.multi_vector.flat[:0])
    filled.store.upsert(["e"], [""], [{}], M3Vectors(dense=vectors.dense, lexical=vectors.lexical, multi_vector=empty))
    explanation = filled.explain("keys", "e")
    assert (explanation.multi_vector, explanation.scores["multi_vector"]) == ([], 0)


def test_a_fingerprint_is_the_models_whatever_its_name_dtype_or_format(small: Path, wide: Path, tmp_path: Path) -> None:
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    def fingerprint(folder: Path, dtype: str = "float32") -> str:
        return M3Encoder(folder, shared=False, device="cpu", dtype=dtype).fingerprint

    expected = fingerprint(small)
    assert fingerprint(small, "bfloat16") == expected
    assert fingerprint(wide) != expected
    copy = Path(shutil.copytree(small, tmp_path / "another-name"))
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    assert fingerprint(copy) == expected
    trained = Path(shutil.copytree(small, tmp_path / "trained"))
    weights = load_file(trained / "model.safetensors")
    weights["encoder.layer.2.output.dense.bias"] += 0.01
    save_file(weights, trained / "model.safetensors", metadata={"format": "pt"})
    assert fingerprint(trained) != expected
    head = Path(shutil.copytree(small, tmp_path / "head"))
    state = torch.load(head / "sparse_linear.pt", weights_only=True)
    torch.save(state | {"bias": state["bias"] + 0.01}, head / "sparse_linear.pt")
    assert fingerprint(head) != expected


@pytest.mark.parametrize("kind", ["memory", "folder"])
def test_adding_to_a_closed_store_says_so_and_encodes_nothing(kind: str, tmp_path: Path) -> None:
    fake = FakeEncoder()
    searcher = Searcher(fake, open_store(None if kind == "memory" else tmp_path / "store"))
    searcher.add(["a"])
    searcher.close()
    with pytest.raises(RuntimeError, match="this store was closed"):
        searcher.add(["b"])
    assert [text for _, text in fake.encoded] == ["a"]


def test_a_batch_of_queries_may_come_from_a_generator() -> None:
    searcher = Searcher(FakeEncoder(), open_store())
    searcher.add(["a", "b"])
    assert searcher.search_batch(text for text in ["a", "c"]) == searcher.search_batch(["a", "c"])  # type: ignore[arg-type]
