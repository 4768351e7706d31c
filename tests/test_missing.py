"""Why a search does not find a record: against brute force, and the page in words."""

from collections.abc import Mapping
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
import pytest

from m3_integrations import M3Encoder, ModeWeights, Searcher, SearchOptions, open_store
from m3_integrations.search import SearchKeywords
from m3_integrations.search.options import MODES_OF
from m3_integrations.store import FilterLike, Hits, matches
from m3_integrations.store.filters import parse_filter
from m3_integrations.store.memory import MemoryStore
from m3_integrations.store.unmet import as_said, unmet_clauses
from m3_integrations.vectors import M3Vectors, Mode
from tests.fakes import FakeEncoder
from tests.test_filters import random_filter, random_metadata
from tests.test_fusion_and_bm25 import brute_force as bm25_scores
from tests.test_scoring import brute_force
from tests.test_search import make_searcher, make_texts


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


class World:
    """The definition of a search in plain words, over all 80 records."""

    def __init__(self, searcher: Searcher, query: str, options: SearchOptions) -> None:
        records = searcher.store.get([f"d{i:02}" for i in range(80)], with_vectors=True)
        vectors = searcher.encoder.encode([query], kind="query")
        self.options, self.modes = options, MODES_OF[options.mode]
        self.raw = {r.id: {m: v[0] for m, v in brute_force(vectors, r.vectors).items()} for r in records if r.vectors}
        self.legs: dict[str, list[str]] = {}
        for leg in ("dense", "lexical"):
            if leg in self.modes or "multi_vector" in self.modes:
                there = [id_ for id_, scores in self.raw.items() if leg == "dense" or scores[leg] > 0]
                self.legs[leg] = sorted(there, key=lambda id_: -self.raw[id_][leg])

    def ranking(self, pool: int, weights: ModeWeights | None = None) -> list[str]:
        parts = (weights or self.options.weights).normalized(self.modes)
        union = {id_ for ids in self.legs.values() for id_ in ids[: max(pool, self.options.k)]}
        final = {id_: sum(parts[mode] * self.raw[id_][mode] for mode in self.modes) for id_ in union}
        return sorted(union, key=lambda id_: (-final[id_], id_))


def test_places_ranks_and_pools_equal_brute_force(random: np.random.Generator) -> None:
    searcher = make_searcher(random)
    n_outside = n_helped = 0
    for trial in range(60):
        asked: SearchKeywords = {
            "k": int(random.integers(1, 6)),
            "mode": list(MODES_OF)[trial % 5],
            "weights": ModeWeights(*random.uniform(0.05, 1, 3)),
            "pool_size": int(random.integers(1, 9)),
        }
        options, id_, query = SearchOptions(**asked), f"d{random.integers(0, 80):02}", make_texts(random, 1)[0]
        world, found = World(searcher, query, options), searcher.explain_missing(query, id_, **asked)
        pool = max(options.pool_size, options.k)
        assert [place.leg for place in found.legs] == list(world.legs)
        for place in found.legs:
            ids = world.legs[place.leg]
            assert place.rank == (ids.index(id_) + 1 if id_ in ids else None)
            assert place.score == pytest.approx(world.raw[id_][place.leg], abs=1e-5)
            assert place.is_in_pool is (id_ in ids[:pool])
            edges = [world.raw[last][place.leg] for last in ids[:pool][-1:]]
            assert place.edge == (pytest.approx(edges[0], abs=1e-5) if edges else None)
        assert found.is_candidate is (id_ in world.ranking(pool))
        smallest = next((n for n in range(1, 81) if id_ in world.ranking(n)), None)
        assert found.needed_pool_size == (None if found.is_candidate else smallest)
        n_outside += not found.is_candidate
        if smallest is None:
            assert found.rank is None
            continue
        then = world.ranking(max(pool, smallest))
        assert (found.rank, found.n_candidates) == (then.index(id_) + 1, len(then))
        last = then[: options.k][-1]
        parts = options.weights.normalized(world.modes)
        for known, of in ((found.score, id_), (found.last_score, last)):
            assert known == pytest.approx(sum(parts[m] * world.raw[of][m] for m in world.modes), abs=1e-5)
        assert found.is_found is (id_ in {hit.id for hit in searcher.search(query, **asked)})
        for mode in world.modes if len(world.modes) > 1 else ():
            alone = ModeWeights(**{m: float(m == mode) for m in ("dense", "lexical", "multi_vector")})
            assert found.rank_by_weights[f"{mode} alone"] == world.ranking(max(pool, smallest), alone).index(id_) + 1
        if (weights := found.needed_weights) is not None:
            n_helped += 1
            assert found.rank is not None
            assert found.rank > options.k
            asked |= {"weights": weights, "pool_size": max(pool, smallest)}
            assert id_ in {hit.id for hit in searcher.search(query, **asked)}
    assert n_outside > 10
    assert n_helped > 1


def test_the_nearest_weights_that_help_are_told(random: np.random.Generator) -> None:
    """By all 66 weights in tenths, in the order of their distance from the asked ones."""
    searcher = make_searcher(random)
    options, query = SearchOptions(k=2, weights="miracl"), make_texts(random, 1)[0]
    world = World(searcher, query, options)
    asked = np.array(list(options.weights.normalized().values()))
    grid = [np.array([a, b, 10 - a - b]) / 10 for a in range(11) for b in range(11 - a)]
    n_helped = 0
    for id_ in world.ranking(100)[2:30]:
        helps = [w for w in grid if id_ in world.ranking(100, ModeWeights(*w))[:2]]
        found = searcher.explain_missing(query, id_, k=2, weights="miracl").needed_weights
        if not helps:
            assert found is None
            continue
        n_helped += 1
        assert found is not None
        distance = np.abs(np.array([found.dense, found.lexical, found.multi_vector]) - asked).sum()
        assert distance == pytest.approx(min(np.abs(w - asked).sum() for w in helps))
    assert n_helped > 3


def test_bm25_is_a_leg(random: np.random.Generator) -> None:
    searcher, query = make_searcher(random), "keys vault"
    texts = {record.id: record.text.split() for record in searcher.store.records()}
    ids = list(texts)
    scores = bm25_scores(dict(enumerate(texts.values())), query.split())
    there = sorted(scores, key=lambda row: -scores[row])
    wanted = ids[there[11]]
    found = searcher.explain_missing(query, wanted, bm25="replace", pool_size=5, fusion="rrf")
    assert [place.leg for place in found.legs] == ["dense", "bm25"]
    assert (found.legs[1].rank, found.legs[1].n_pool) == (12, 5)
    assert found.legs[1].score == pytest.approx(scores[there[11]])
    alone = searcher.explain_missing(query, wanted, bm25="replace", mode="lexical", pool_size=5)
    assert [(place.leg, place.rank) for place in alone.legs] == [("bm25", 12)]
    assert alone.needed_pool_size == 12


def test_a_record_that_a_filter_excludes_is_explained_without_the_filter(random: np.random.Generator) -> None:
    searcher = make_searcher(random)
    n_excluded = 0
    for _ in range(40):
        filter_, id_, query = random_filter(random), f"d{random.integers(0, 80):02}", make_texts(random, 1)[0]
        (record,) = searcher.store.get([id_])
        found = searcher.explain_missing(query, id_, filter=filter_)
        assert bool(found.excluded_by) is not matches(filter_, record.metadata)
        if found.excluded_by:
            n_excluded += 1
            assert not found.is_found
            assert found.legs == searcher.explain_missing(query, id_).legs
            assert found.options.filter == parse_filter(filter_)
    assert n_excluded > 10


def test_the_clauses_are_the_smallest_parts_that_do_not_hold(random: np.random.Generator) -> None:
    """Each clause alone excludes the record, and without all of them the filter would not."""
    n_clauses = 0
    for _ in range(300):
        filter_, metadata = random_filter(random), random_metadata(random)
        clauses = unmet_clauses(filter_, metadata)
        assert bool(clauses) is not matches(filter_, metadata)
        n_clauses += len(clauses)
        for clause in clauses:
            assert not matches(clause.said, metadata)
            assert ("$and" in clause.said) is False
    assert n_clauses > 100


def test_a_filter_is_written_as_users_write_it(random: np.random.Generator) -> None:
    for _ in range(300):
        parsed = parse_filter(random_filter(random))
        if parsed is not None:
            assert parse_filter(as_said(parsed)) == parsed


def test_a_nested_clause_is_named_with_what_the_record_has() -> None:
    filter_ = {
        "$or": [{"title": "x"}, {"n": {"$gt": 5, "$lt": 9}}],
        "tags": {"$nin": ["a", "b"]},
        "day": {"$gte": "2024-01-01"},
    }
    metadata = {"title": "y", "tags": ["b", "c"], "n": 3}
    assert [str(clause) for clause in unmet_clauses(filter_, metadata)] == [
        "{'title': 'x'} in $or: the record has title = 'y'",
        "{'n': {'$gt': 5}} in $or: the record has n = 3",
        "{'tags': {'$nin': ['a', 'b']}}: the record has tags = ['b', 'c']",
        "{'day': {'$gte': '2024-01-01T00:00:00+00:00'}}: the record has no day",
    ]
    assert str(unmet_clauses({"n": {"$in": []}}, metadata)[0]) == "{'$or': []}: nothing fulfils it"
    assert unmet_clauses({"loc.page": {"$not": {"$lt": 4}}}, {"loc": {"page": 3}})[0].found == {"loc.page": [3]}


@pytest.fixture(scope="module")
def tiny() -> M3Encoder:
    return M3Encoder("tiny", device="cpu")


def test_a_page_says_what_keeps_a_record_out(tiny: M3Encoder) -> None:
    searcher = Searcher(tiny, open_store())
    texts = [f"The train number {i} leaves the station at {i} o'clock." for i in range(30)]
    texts.append("Cats sleep.\N{SOFT HYPHEN} ")
    searcher.add(texts, ids=[*map(str, range(30)), "cats"], metadatas=[{"n": i} for i in range(31)])
    assert str(searcher.explain_missing("trains", "nobody")) == "The store has no record 'nobody'."
    found = searcher.explain_missing("when does the train leave?", "cats", pool_size=10, filter={"n": {"$lt": 30}})
    page = str(found)
    assert "{'n': {'$lt': 30}}: the record has n = 30" in page
    assert "dense " in page
    assert "lexical  shares no token with the query" not in page or found.shared == ()
    assert f"pool_size={found.needed_pool_size} would make it a candidate." in page
    assert "The model has read its whole text." in page
    assert all(len(line) <= 100 for line in page.splitlines())
    good = searcher.explain_missing("when does train number 7 leave?", "7")
    assert str(good).startswith(f"It is found: rank {good.rank} of ")
    kept_out = searcher.explain_missing("when does train number 7 leave?", "7", filter={"n": 8})
    assert "so only the filter excludes it" in str(kept_out)
    under = searcher.explain_missing("when does train number 7 leave?", "7", score_threshold=9.0)
    assert not under.is_found
    assert "its score is below score_threshold=9.0" in str(under)


@pytest.mark.filterwarnings("ignore:.*longer than")
def test_what_was_cut_is_told() -> None:
    encoder = M3Encoder("tiny", device="cpu", max_length=16, query_max_length=6, query_instruction="search: ")
    searcher = Searcher(encoder, open_store())
    text = "The museum is closed on Mondays, and open on all other days of the week from nine to five. Ask for Anna."
    searcher.add([text], ids=["a"])
    found = searcher.explain_missing("whom do I ask, Anna or Bert?", "a")
    tokens = encoder.tokenize([text])[0]
    assert (found.text_length, len(tokens)) == (len(text), 15)
    (spans,) = M3Encoder("tiny", device="cpu").token_spans([text])
    assert found.text_read_to == spans[13, 1]  # the fourteenth token is the last, and then comes [SEP]
    assert 0 < found.query_read_to < len(found.query)
    assert f"The model has read {found.text_read_to} of its text's {len(text)} characters" in str(found)
    assert f"The model has read {found.query_read_to} of the query's {len(found.query)} characters." in str(found)


def test_tokens_that_nearly_match_are_told(tiny: M3Encoder) -> None:
    searcher = Searcher(tiny, open_store())
    searcher.add(["Rotate the keys once a year."], ids=["a"])
    found = searcher.explain_missing("who rotates keys, yearly?", "a")
    explanation = searcher.explain("who rotates keys, yearly?", "a")
    shared = {match.token for match in explanation.lexical}
    pairs = {pair.query_token: pair for pair in explanation.multi_vector}
    assert [match.token for match in found.shared] == [match.token for match in explanation.lexical]
    assert {near.query_token for near in found.near} == set(pairs) - shared - {",", "?", "</s>"}
    assert all(near.document_token == pairs[near.query_token].document_token for near in found.near)
    similarities = [near.similarity or 0.0 for near in found.near]
    assert similarities == sorted(similarities, reverse=True)


def test_without_token_vectors_spelling_tells_what_is_near(tiny: M3Encoder, tmp_path: Path) -> None:
    with Searcher(tiny, open_store(tmp_path, multi_vector="none")) as searcher:
        searcher.add(["The colour of the museum."], ids=["a"])
        found = searcher.explain_missing("the musseum of color", "a")
        tokens = {token for token, _ in tiny.encode(["the musseum of color"], kind="query").lexical[0].tokens()}
        shared = {match.token for match in found.shared}
        assert list(found.scores) == ["dense", "lexical"]
        assert {match.query_token for match in found.near} == tokens - shared
        assert all(match.similarity is None for match in found.near)
        for match in found.near:
            like = [
                token
                for token in tiny.tokenize(["The colour of the museum."])[0]
                if SequenceMatcher(None, match.query_token.strip("▁"), token.strip("▁")).ratio() >= 0.75
            ]
            assert bool(match.document_token) is bool(like)
            assert not like or match.document_token in like


def test_a_record_that_an_approximate_index_missed_is_told(random: np.random.Generator) -> None:
    """A store whose dense leg forgets one record, as an index of a graph may."""

    class Forgetful(MemoryStore):
        def candidates(
            self, query: M3Vectors, limits: Mapping[Mode, int], filter: FilterLike = None  # noqa: A002
        ) -> dict[Mode, Hits]:  # fmt: skip
            found = super().candidates(query, {mode: n + 1 for mode, n in limits.items()}, filter)
            rows = {
                mode: [i for i, id_ in enumerate(h.ids) if id_ != "best"][: limits[mode]] for mode, h in found.items()
            }
            return {mode: Hits([h.ids[i] for i in rows[mode]], h.scores[rows[mode]]) for mode, h in found.items()}

    searcher, query = Searcher(FakeEncoder(), Forgetful(), SearchOptions(mode="dense", pool_size=5)), "keys vault tea"
    searcher.add(make_texts(random, 30))
    vectors = searcher.encoder.encode([query], kind="query")
    searcher.store.upsert(["best"], ["a text"], [{}], vectors)
    found = searcher.explain_missing(query, "best")
    assert [place.is_missed for place in found.legs] == [True]
    assert not found.is_candidate
    assert found.needed_pool_size is None
    page = " ".join(str(found).split())
    assert "the approximate index missed it" in page
    assert "a larger pool_size makes the engine search further" in page
