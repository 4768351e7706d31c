"""What `add_nodes` does with a document that was added before."""

import copy
import itertools
import json
import warnings
from collections.abc import Iterator, Sequence
from datetime import date
from enum import Enum
from pathlib import Path

import numpy as np
import pytest
from llama_index.core.node_parser import HierarchicalNodeParser, JSONNodeParser, SentenceSplitter, get_leaf_nodes
from llama_index.core.schema import BaseNode, Document, MetadataMode, NodeRelationship, RelatedNodeInfo, TextNode

from m3_integrations import M3Encoder, Searcher, open_store
from m3_integrations.llama_index import M3HybridRetriever, M3Rerank, M3VectorStore
from m3_integrations.llama_index.nodes import REF_DOC_KEY
from m3_integrations.store import Store
from tests.fakes import FakeEncoder, random_vectors
from tests.llama_index.conftest import CountingEncoder, ids_of

PARAGRAPHS = ("Keys rotate monthly.", "Tea is served cold.", "Logs grow in the night.", "Forms are due on Friday.")


@pytest.fixture(params=["in memory", "in a folder"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with open_store(None if request.param == "in memory" else tmp_path / "index") as opened:
        yield opened


@pytest.fixture
def adding(store: Store, fake: CountingEncoder) -> M3HybridRetriever:
    return M3HybridRetriever(encoder=fake, store=store, similarity_top_k=99)


def pieces(name: str, *paragraphs: str, size: int = 1) -> list[BaseNode]:
    """A document cut anew, with new ids, at every so many paragraphs."""
    text = "\n".join(paragraphs)
    source = Document(id_=name, text=text, metadata={"file": name}).as_related_node_info()
    nodes: list[BaseNode] = []
    for start in range(0, len(paragraphs), size):
        piece = "\n".join(paragraphs[start : start + size])
        first = text.index(piece, nodes[-1].start_char_idx + 1 if nodes else 0)  # type: ignore[attr-defined]
        nodes.append(
            TextNode(
                text=piece,
                metadata={"file": name},
                relationships={NodeRelationship.SOURCE: source},
                start_char_idx=first,
                end_char_idx=first + len(piece),
            )
        )
    return nodes


def levels_of(text: str, name: str = "d") -> list[BaseNode]:
    """The three levels of a document that is cut anew; those of a short text are equal."""
    parser = HierarchicalNodeParser.from_defaults(chunk_sizes=[512, 256, 128])
    return parser.get_nodes_from_documents([Document(text=text, id_=name)])


def rows_of(n: int, *names: str) -> list[BaseNode]:
    """Rows of a document that is cut anew: one for each name, so many times over."""
    text = json.dumps([{name: 0} for name in names or "a"] * n)
    return JSONNodeParser().get_nodes_from_documents([Document(id_="d", text=text)])


def stored_in(retriever: M3HybridRetriever) -> list[BaseNode]:
    return M3VectorStore(encoder=retriever.encoder, store=retriever.store).get_nodes()


def contents(retriever: M3HybridRetriever) -> list[str]:
    return sorted(each.node.get_content() for each in retriever.retrieve("keys"))


def ids(nodes: Sequence[BaseNode]) -> list[str]:
    return sorted(node.node_id for node in nodes)


def test_the_same_document_cut_again_leaves_the_same_nodes_and_encodes_nothing(
    adding: M3HybridRetriever, fake: CountingEncoder
) -> None:
    adding.add_nodes(pieces("a", *PARAGRAPHS))
    before = {each.node.get_content(): (each.score, each.m3_scores) for each in adding.retrieve("keys")}  # type: ignore[attr-defined]
    fake.encoded.clear()
    again = pieces("a", *PARAGRAPHS)
    assert adding.add_nodes(again) == [node.node_id for node in again]
    assert fake.encoded == []
    found = adding.retrieve("keys")
    assert sorted(ids_of(found)) == ids(again)
    assert {each.node.get_content(): (each.score, each.m3_scores) for each in found} == before  # type: ignore[attr-defined]


async def test_a_changed_document_loses_what_it_had_and_only_what_is_new_is_encoded(
    adding: M3HybridRetriever, fake: CountingEncoder
) -> None:
    adding.add_nodes([*pieces("a", *PARAGRAPHS[:3]), *pieces("b", PARAGRAPHS[0])])
    fake.encoded.clear()
    await adding.aadd_nodes(pieces("a", PARAGRAPHS[0], PARAGRAPHS[3]))
    assert fake.encoded == [("document", f"file: a\n\n{PARAGRAPHS[3]}")]
    assert contents(adding) == sorted([PARAGRAPHS[0], PARAGRAPHS[3], PARAGRAPHS[0]])
    assert adding.delete_ref_doc("a") == 2


def test_a_text_of_another_document_is_encoded_for_itself_and_stays(
    adding: M3HybridRetriever, fake: CountingEncoder
) -> None:
    node = TextNode(id_="n", text=PARAGRAPHS[0], metadata={"file": "a"})
    adding.add_nodes([node])
    adding.add_nodes(pieces("a", PARAGRAPHS[0]))
    assert len(fake.encoded) == 2
    assert contents(adding) == [PARAGRAPHS[0]] * 2


def test_a_document_that_is_added_in_several_calls_keeps_all_its_nodes(adding: M3HybridRetriever) -> None:
    for _ in range(2):
        nodes = pieces("a", *PARAGRAPHS, *PARAGRAPHS)  # every text twice, which is told apart by its place
        adding.add_nodes(nodes[:3])
        adding.add_nodes(nodes[3:])
        assert sorted(ids_of(adding.retrieve("keys"))) == ids(nodes)


def test_nodes_that_do_not_know_their_documents_hash_are_never_taken_for_outdated(adding: M3HybridRetriever) -> None:
    """An id given by hand has no hash beside it."""

    def node(name: str, hash_: str | None) -> TextNode:
        source = RelatedNodeInfo(node_id="doc", hash=hash_)
        return TextNode(id_=name, text=f"text {name}", relationships={NodeRelationship.SOURCE: source})

    for name, hash_, left in (("a", None, "a"), ("b", "1", "ab"), ("c", None, "abc"), ("d", "2", "acd")):
        adding.add_nodes([node(name, hash_)])
        assert sorted(ids_of(adding.retrieve("text"))) == list(left)


def test_a_document_cut_in_another_way_is_replaced_on_request(adding: M3HybridRetriever) -> None:
    adding.add_nodes(pieces("a", *PARAGRAPHS))
    adding.add_nodes(pieces("a", *PARAGRAPHS, size=2))
    assert len(contents(adding)) == 6
    again = pieces("a", *PARAGRAPHS, size=2)
    adding.add_nodes(again, replace_documents=True)
    assert sorted(ids_of(adding.retrieve("keys"))) == ids(again)


def test_documents_that_are_added_whole_are_replaced(store: Store, fake: CountingEncoder) -> None:
    text = " ".join(PARAGRAPHS * 20)
    for size in (60, 60, 30):
        fake.encoded.clear()
        splitter = SentenceSplitter(chunk_size=size, chunk_overlap=0)
        documents = [Document(id_="a", text=text), Document(id_="b", text=PARAGRAPHS[1])]
        M3HybridRetriever.from_documents(documents, transformations=[splitter], encoder=fake, store=store)
        assert store.count() == len(splitter.get_nodes_from_documents(documents))
    assert ("document", PARAGRAPHS[1]) not in fake.encoded


def test_a_document_that_has_no_nodes_any_more_loses_those_it_had(store: Store, fake: CountingEncoder) -> None:
    for text, count in (('[{"a": 1}]', 2), ("[]", 1)):
        documents = [Document(id_="a", text=text), Document(id_="b", text='[{"b": 1}]')]
        M3HybridRetriever.from_documents(documents, transformations=[JSONNodeParser()], encoder=fake, store=store)
        assert store.count() == count
    M3HybridRetriever.from_documents([Document(id_="a", text="a")], transformations=[], encoder=fake, store=store)
    assert sorted(record.text for record in store.records()) == ["a", "b 1"]


def test_a_document_without_nodes_leaves_the_records_of_other_programs(store: Store, fake: CountingEncoder) -> None:
    Searcher(fake, store).add(["one", "two"], ids=["a", "foreign"], metadatas=[{}, {REF_DOC_KEY: "a"}])
    documents = [Document(id_="a", text="[]")]
    M3HybridRetriever.from_documents(documents, transformations=[JSONNodeParser()], encoder=fake, store=store)
    assert store.count() == 2


@pytest.mark.parametrize("content", [{}, {"_node_content": '{"id_": ', "_node_type": "TextNode"}])
def test_records_of_other_programs_stay_though_they_name_the_document(
    adding: M3HybridRetriever, content: dict[str, str]
) -> None:
    metadata = [{REF_DOC_KEY: "a", **content}]
    Searcher(adding.encoder, adding.store).add(["of another"], ids=["foreign"], metadatas=metadata)
    for replace_documents in (False, True):
        adding.add_nodes(
            [*pieces("a", *PARAGRAPHS[:1]), TextNode(text="alone", id_="n")], replace_documents=replace_documents
        )
        assert sorted(contents(adding)) == sorted([PARAGRAPHS[0], "alone", "of another"])


def test_old_nodes_go_only_after_the_new_are_in(adding: M3HybridRetriever, monkeypatch: pytest.MonkeyPatch) -> None:
    adding.add_nodes(pieces("a", *PARAGRAPHS[:2]))
    monkeypatch.setattr(adding.encoder, "encode", _fail)
    with pytest.raises(MemoryError):
        adding.add_nodes(pieces("a", *PARAGRAPHS[2:]))
    monkeypatch.undo()
    assert contents(adding) == sorted(PARAGRAPHS[:2])


def _fail(*_: object, **__: object) -> None:
    raise MemoryError


def test_nodes_with_ids_of_their_own_keep_the_vectors_of_unchanged_texts(
    adding: M3HybridRetriever, fake: CountingEncoder
) -> None:
    """Ids by the place in the document: a paragraph more at its beginning moves all texts to other ids."""

    def numbered(*paragraphs: str) -> list[TextNode]:
        return [TextNode(id_=f"a-{i}", text=text, metadata={"i": i}) for i, text in enumerate(paragraphs)]

    def excluded(nodes: list[TextNode]) -> list[TextNode]:
        return [node.model_copy(update={"excluded_embed_metadata_keys": ["i"]}) for node in nodes]

    adding.add_nodes(excluded(numbered(*PARAGRAPHS[1:])))
    fake.encoded.clear()
    adding.add_nodes(excluded(numbered(*PARAGRAPHS)))
    assert fake.encoded == [("document", PARAGRAPHS[0])]
    found = {each.node.node_id: each for each in adding.retrieve(PARAGRAPHS[2])}
    assert [found[f"a-{i}"].node.get_content() for i in range(4)] == list(PARAGRAPHS)
    assert [found[f"a-{i}"].node.metadata for i in range(4)] == [{"i": i} for i in range(4)]
    for i, each in enumerate(PARAGRAPHS):
        query, text = fake.encode([PARAGRAPHS[2]], kind="query"), fake.encode([each])
        assert found[f"a-{i}"].m3_scores["dense"] == pytest.approx(float(query.dense[0] @ text.dense[0]), abs=1e-6)  # type: ignore[attr-defined]


def test_metadata_that_changed_are_stored_without_a_pass(adding: M3HybridRetriever, fake: CountingEncoder) -> None:
    for year in (2023, 2024):
        node = TextNode(id_="n", text="text", metadata={"year": year}, excluded_embed_metadata_keys=["year"])
        adding.add_nodes([node])
    assert [kind for kind, _ in fake.encoded] == ["document"]
    assert [each.node.metadata for each in adding.retrieve("text")] == [{"year": 2024}]


@pytest.mark.parametrize("bad", [TextNode(id_="bad", text="half \ud800"), TextNode(id_="half \ud800", text="text")])
def test_a_bad_node_is_named_and_changes_nothing(bad: TextNode, adding: M3HybridRetriever) -> None:
    adding.add_nodes([TextNode(id_="a", text="one", metadata={"n": 1})])
    changed = TextNode(id_="a", text="one", metadata={"n": 2}, excluded_embed_metadata_keys=["n"])
    adding.add_nodes([TextNode(id_="a", text="one", metadata={"n": 1}, excluded_embed_metadata_keys=["n"])])
    with pytest.raises(ValueError, match="not valid Unicode") as refused:
        adding.add_nodes([changed, bad])
    assert "bad" in str(refused.value) or "id at position 1" in str(refused.value)
    assert adding.store.get(["a"])[0].metadata["n"] == 1


def test_nodes_whose_ids_stay_are_left_alone(adding: M3HybridRetriever, fake: CountingEncoder) -> None:
    nodes = [node.model_copy(update={"id_": f"a-{i}"}) for i, node in enumerate(pieces("a", *PARAGRAPHS))]
    for _ in range(2):
        for replace_documents in (False, True):
            adding.add_nodes(nodes, replace_documents=replace_documents)
            assert sorted(ids_of(adding.retrieve("keys"))) == ids(nodes)
    assert [kind for kind, _ in fake.encoded].count("document") == 4


def test_a_piece_is_known_by_its_place_whatever_an_extractor_says_of_it(adding: M3HybridRetriever) -> None:
    for title in ("first", "second"):
        nodes = pieces("a", *PARAGRAPHS)
        for node in nodes:
            node.metadata["title"] = title
        adding.add_nodes(nodes)
        found = adding.retrieve("keys")
        assert sorted(ids_of(found)) == ids(nodes)
        assert {each.node.metadata["title"] for each in found} == {title}


def test_pieces_without_a_place_are_told_apart_by_their_metadata(adding: M3HybridRetriever) -> None:
    def page(number: int) -> TextNode:
        source = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id="doc", hash="1")}
        metadata = {"page": np.int64(number), "day": date(2024, 5, number)}
        return TextNode(text="The same footer.", metadata=metadata, relationships=source)

    for _ in range(2):
        for number in (1, 2):
            adding.add_nodes([page(number)])
    assert sorted(each.node.metadata["page"] for each in adding.retrieve("footer")) == [1, 2]


def test_pieces_of_pieces_are_told_apart_by_what_they_are_pieces_of(adding: M3HybridRetriever) -> None:
    """Their places are those in the larger piece."""
    text = "\n\n\n".join(f"{'The same header stands here. ' * 6}\n\n\n{paragraph * 8}" for paragraph in PARAGRAPHS)
    parser = HierarchicalNodeParser.from_defaults(chunk_sizes=[100, 60], chunk_overlap=0)
    for _ in range(2):
        leaves = get_leaf_nodes(parser.get_nodes_from_documents([Document(id_="doc", text=text)]))
        assert len(leaves) > len({(node.get_content(), node.start_char_idx) for node in leaves})  # type: ignore[attr-defined]
        for leaf in leaves:
            adding.add_nodes([leaf])
        assert sorted(ids_of(adding.retrieve("keys"))) == ids(leaves)


def test_vectors_that_were_pooled_are_not_pooled_again(tmp_path: Path) -> None:
    encoder = FakeEncoder()
    with open_store(tmp_path / "index", token_pooling=2) as store:
        retriever = M3HybridRetriever(encoder=encoder, store=store)
        retriever.add_nodes(pieces("a", "one two three four five six seven"))
        (before,) = [store.get([record.id], with_vectors=True)[0] for record in store.records()]
        retriever.add_nodes(pieces("a", "one two three four five six seven"))
        (after,) = [store.get([record.id], with_vectors=True)[0] for record in store.records()]
    assert before.id != after.id
    assert before.is_pooled
    assert after.is_pooled
    assert before.vectors is not None
    assert after.vectors is not None
    assert np.array_equal(before.vectors.multi_vector.flat, after.vectors.multi_vector.flat)


def test_another_models_vectors_are_not_kept(store: Store) -> None:
    store.bind("another")
    nodes = pieces("a", PARAGRAPHS[0])
    metadata = [{REF_DOC_KEY: "a"}]
    store.upsert(["old"], [f"file: a\n\n{PARAGRAPHS[0]}"], metadata, random_vectors(np.random.default_rng(0), 1))
    with pytest.raises(ValueError, match="another"):
        M3HybridRetriever(encoder=FakeEncoder(), store=store).add_nodes(nodes)
    assert store.count() == 1


@pytest.mark.parametrize("is_optimized", [False, True])
def test_a_document_with_many_nodes_is_replaced_whatever_index_the_store_has(
    tmp_path: Path, is_optimized: bool
) -> None:
    encoder = FakeEncoder()
    with open_store(tmp_path / "index") as store:
        retriever = M3HybridRetriever(encoder=encoder, store=store)
        retriever.add_nodes(pieces("a", *(f"paragraph {i}" for i in range(300))))
        retriever.add_nodes(pieces("b", *(f"paragraph {i}" for i in range(300))))
        if is_optimized:
            store.optimize()
        encoder.encoded.clear()
        retriever.add_nodes(pieces("a", *(f"paragraph {i}" for i in range(1, 301))))
        assert encoder.encoded == [("document", "file: a\n\nparagraph 300")]
        assert store.count() == 600
        assert retriever.delete_ref_doc("a") == 300


def test_what_an_index_passes_over_is_found_all_the_same(
    adding: M3HybridRetriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    adding.add_nodes(pieces("a", *PARAGRAPHS))
    whole = adding.store.candidates
    monkeypatch.setattr(adding.store, "candidates", lambda q, limits, f=None: whole(q, {"dense": 2}, f))
    adding.add_nodes(pieces("a", PARAGRAPHS[3]))
    monkeypatch.undo()
    assert contents(adding) == [PARAGRAPHS[3]]


def test_a_document_that_was_added_whole_is_deleted_by_its_id(adding: M3HybridRetriever) -> None:
    of_another = pieces("b", "keys")[0].model_copy(update={"id_": "c"})
    adding.add_nodes([Document(id_="a", text="text"), Document(id_="b", text="text"), *pieces("a", "keys"), of_another])
    assert adding.delete_ref_doc("a") == 2
    assert adding.delete_ref_doc("c") == 0
    assert sorted(ids_of(adding.retrieve("text"))) == ["b", "c"]


def test_a_script_that_is_run_again_encodes_nothing_on_a_network(small: Path, tmp_path: Path) -> None:
    """Three openings of the folder stand for three runs of the script."""
    documents = [Document(id_=f"d{i}", text=f"{text} " * 40) for i, text in enumerate(PARAGRAPHS)]
    splitter = SentenceSplitter(chunk_size=20, chunk_overlap=0)
    encoder = M3Encoder(small, shared=False, cache_size_bytes=0)
    counts = []
    for _ in range(3):
        with open_store(tmp_path / "index") as store:
            retriever = M3HybridRetriever(encoder=encoder, store=store)
            retriever.add_nodes(splitter.get_nodes_from_documents(documents))
            counts.append((store.count(), encoder.stats.encoded_texts))
    assert len(set(counts)) == 1
    assert counts[0][0] == len(splitter.get_nodes_from_documents(documents))


def test_equal_rows_of_a_document_are_kept_whatever_the_calls(adding: M3HybridRetriever) -> None:
    rows = '[{"total": 0}, {"total": 0}, {"name": "keys"}, {"total": 0}]'

    def cut() -> list[BaseNode]:
        return JSONNodeParser().get_nodes_from_documents([Document(id_="d", text=rows)])

    for node in cut():
        adding.add_nodes([node])
    assert adding.store.count() == 4
    adding.add_nodes(cut())
    assert adding.store.count() == 4  # cut again they are the same rows
    for node in cut():
        adding.add_nodes([node])
    assert adding.store.count() == 4


@pytest.mark.parametrize("kind", ["levels of a short text", "equal rows", "copies"])
def test_a_node_that_is_added_again_by_its_id_deletes_no_other(adding: M3HybridRetriever, kind: str) -> None:
    if kind == "copies":
        piece = pieces("d", PARAGRAPHS[0])[0]
        nodes = [piece.model_copy(update={"id_": f"n{i}", "metadata": {"i": i}}) for i in range(2)]
    else:
        nodes = levels_of("Short note about keys.") if kind == "levels of a short text" else rows_of(5)
    adding.add_nodes(nodes)
    for node in nodes:
        node.metadata["tag"] = 1
        adding.add_nodes([node])
    assert ids(stored_in(adding)) == ids(nodes)
    assert all(node.metadata["tag"] == 1 for node in stored_in(adding))


@pytest.mark.parametrize(
    ("kind", "calls"),
    [
        *itertools.product(["levels", "rows", "rows in turn"], ["one by one", "by three", "backwards"]),
        ("levels", "shuffled"),
    ],
)
def test_equal_nodes_of_one_split_are_kept_and_replaced_when_all_are_in(
    adding: M3HybridRetriever, kind: str, calls: str
) -> None:
    def cut() -> list[BaseNode]:
        if kind == "levels":
            return [node for i in range(3) for node in levels_of(PARAGRAPHS[i], f"d{i}")]
        return rows_of(8) if kind == "rows" else rows_of(4, "a", "b")

    size = 3 if calls == "by three" else 1
    for _ in range(3):
        nodes = cut()
        order = np.random.default_rng(1).permutation(len(nodes)) if calls == "shuffled" else np.arange(len(nodes))
        order = order[::-1] if calls == "backwards" else order
        for start in range(0, len(nodes), size):
            adding.add_nodes([nodes[row] for row in order[start : start + size]])
            assert {nodes[row].node_id for row in order[: start + size]} <= set(ids(stored_in(adding)))
        assert ids(stored_in(adding)) == ids(nodes)


def test_pieces_that_are_alone_in_their_place_are_replaced_though_others_are_missing(adding: M3HybridRetriever) -> None:
    for _ in range(2):
        rows = rows_of(1, "a", "b", "c")
        for row in rows[:2]:
            adding.add_nodes([row])
        assert ids(stored_in(adding)) == ids(rows[:2])


def test_leaves_without_their_parents_are_replaced_by_those_of_the_next_split(adding: M3HybridRetriever) -> None:
    """Also those of a parent whose text comes twice: none of them is linked with the others' parent."""
    text = "\n\n".join(f"{'Rotate the keys of the vault every month. ' * 40}{i // 2}" for i in range(6))
    parser = HierarchicalNodeParser.from_defaults(chunk_sizes=[512, 128])
    for _ in range(3):
        leaves = get_leaf_nodes(parser.get_nodes_from_documents([Document(id_="d", text=text)]))
        adding.add_nodes(leaves)
        assert ids(stored_in(adding)) == ids(leaves)


def test_pieces_whose_parent_is_the_document_are_replaced_by_those_of_the_next_split(
    adding: M3HybridRetriever,
) -> None:
    for _ in range(3):
        nodes = pieces("a", *PARAGRAPHS)
        for node in nodes:
            node.relationships[NodeRelationship.PARENT] = RelatedNodeInfo(node_id="a", hash="of the document")
        adding.add_nodes(nodes)
        assert ids(stored_in(adding)) == ids(nodes)


@pytest.mark.parametrize("replace_documents", [False, True])
def test_a_node_without_a_document_stays_beside_what_is_cut_from_it(
    adding: M3HybridRetriever, *, replace_documents: bool
) -> None:
    base = TextNode(id_="base", text=" ".join(PARAGRAPHS), metadata={"file": "a"})
    parts = SentenceSplitter(chunk_size=30, chunk_overlap=0).get_nodes_from_documents([base])  # type: ignore[list-item]  # as users do
    base.metadata["summary"] = "of keys and tea"
    adding.add_nodes([base], replace_documents=replace_documents)
    adding.add_nodes(parts, replace_documents=replace_documents)
    assert ids(stored_in(adding)) == ids([base, *parts])


def test_equal_nodes_of_which_no_more_is_known_are_kept(adding: M3HybridRetriever) -> None:
    for i in range(3):
        source = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id="d")}
        adding.add_nodes([TextNode(id_=f"n{i}", text="Total: 0", relationships=source)])
    assert ids_of(adding.retrieve("Total")) == ["n0", "n1", "n2"]


def test_documents_that_share_an_id_are_named(adding: M3HybridRetriever) -> None:
    pages = [Document(id_="report.pdf", text=f"page {i} of many") for i in range(3)]
    nodes = SentenceSplitter().get_nodes_from_documents(pages)
    with pytest.warns(UserWarning, match=r"3 different documents have the id 'report\.pdf': a later call"):
        adding.add_nodes(nodes)
    assert adding.store.count() == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adding.add_nodes(SentenceSplitter().get_nodes_from_documents([pages[0], Document(text="another one")]))


class Colour(Enum):
    RED = "red"


def test_the_text_is_encoded_with_the_metadata_that_come_back(adding: M3HybridRetriever, fake: CountingEncoder) -> None:
    metadata = {"pages": (1, 2), "colour": Colour.RED, "share": np.float32(0.1), "on": date(2024, 1, 2)}
    adding.add_nodes([TextNode(id_="n", text="keys", metadata=metadata)])
    (found,) = adding.retrieve("keys")
    assert adding.store.get(["n"])[0].text == found.node.get_content(MetadataMode.EMBED)
    n_encoded = len(fake.encoded)
    again = M3Rerank(encoder=fake, store=adding.store).postprocess_nodes([found], query_str="keys")
    assert fake.encoded[n_encoded:] == [("query", "keys")]  # alone: the node's vectors are the stored ones
    assert again[0].score == pytest.approx(found.score)


def test_a_copy_of_what_uses_a_store_uses_the_same_records(adding: M3HybridRetriever) -> None:
    again = copy.deepcopy(adding)
    adding.add_nodes([TextNode(id_="n", text="keys")])
    assert ids_of(again.retrieve("keys")) == ["n"]
