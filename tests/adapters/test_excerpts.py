"""How both frameworks' `M3Excerpt` shortens what was found."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.documents import Document
from llama_index.core.schema import Document as LongNode
from llama_index.core.schema import ImageNode, MediaResource, MetadataMode, Node, NodeWithScore, TextNode
from pydantic import ValidationError

from m3_integrations import M3Encoder, Searcher, langchain, llama_index, open_store
from m3_integrations.langchain import M3HybridRetriever
from m3_integrations.search import find_evidence

QUERY = "how often are the keys rotated?"
TEXTS = [
    "The museum is closed. It opens on Tuesday. Keys are rotated once a year. Anna does that. Tea is at five. So is.",
    "One sentence about keys",
    "",
]


@pytest.fixture(scope="module")
def tiny() -> M3Encoder:
    return M3Encoder("tiny", device="cpu")


Shorten = Callable[..., list[tuple[str, dict[str, Any]]]]


def by_langchain(texts: list[str], **settings: Any) -> list[tuple[str, dict[str, Any]]]:
    documents = [Document(id=str(i), page_content=text, metadata={"row": i}) for i, text in enumerate(texts)]
    before = copy.deepcopy(documents)
    found = langchain.M3Excerpt(**settings).compress_documents(documents, QUERY)
    assert documents == before
    assert [document.id for document in found] == [document.id for document in documents]
    return [(document.page_content, document.metadata) for document in found]


def by_llama_index(texts: list[str], **settings: Any) -> list[tuple[str, dict[str, Any]]]:
    nodes = [
        TextNode(id_=str(i), text=text, metadata={"row": i}, excluded_embed_metadata_keys=["row"])
        for i, text in enumerate(texts)
    ]
    given = [NodeWithScore(node=node, score=1 / (i + 1)) for i, node in enumerate(nodes)]
    before = copy.deepcopy(given)
    found = llama_index.M3Excerpt(**settings).postprocess_nodes(given, query_str=QUERY)
    assert given == before
    assert [(each.node.node_id, each.score) for each in found] == [(each.node.node_id, each.score) for each in given]
    return [(each.node.get_content(), each.node.metadata) for each in found]


@pytest.fixture(params=[by_langchain, by_llama_index], ids=["langchain", "llama_index"])
def shorten(request: pytest.FixtureRequest) -> Shorten:
    made: Shorten = request.param
    return made


def test_the_sentences_that_carry_the_match_are_kept(shorten: Shorten, tiny: M3Encoder) -> None:
    first, whole, nothing = shorten(TEXTS, encoder=tiny, max_share=0.45)
    assert first == ("Keys are rotated once a year. Anna does that.", {"row": 0, "m3_spans": [[43, 88]]})
    assert whole == (TEXTS[1], {"row": 1, "m3_spans": [[0, len(TEXTS[1])]]})
    assert nothing[0] == ""
    wide, *_ = shorten(TEXTS, encoder=tiny, max_share=0.7, separator=" [...] ")
    passages = [TEXTS[0][start:end] for start, end in wide[1]["m3_spans"]]
    assert len(passages) > 1
    assert "Keys are rotated once a year. Anna does that." in passages
    assert wide[0] == " [...] ".join(passages)
    alone, *_ = shorten(TEXTS, encoder=tiny, max_share=0.9, max_characters=30, neighbours=0)
    assert alone[0] == "Keys are rotated once a year."


def test_a_result_is_never_longer_than_the_limit_unless_one_sentence_is(shorten: Shorten, tiny: M3Encoder) -> None:
    text = "Alpha keys gamma." + " " * 30 + "Delta rotated." + "\n" * 20 + "Zeta eta theta iota kappa."
    for separator in (" … ", "", "-" * 40):
        settings: dict[str, Any] = {"encoder": tiny, "max_share": 1.0, "separator": separator}
        lengths = [len(shorten([text], **settings, max_characters=limit)[0][0]) for limit in range(26, len(text) + 1)]
        assert all(length <= limit for limit, length in enumerate(lengths, start=26))
        assert lengths[-1] == len(text)
    assert len(shorten([text], encoder=tiny, max_share=0.5)[0][0]) <= len(text) / 2


def test_stored_vectors_are_read_and_only_other_texts_encoded(shorten: Shorten, tiny: M3Encoder) -> None:
    searcher = Searcher(tiny, open_store())
    texts = [f"{TEXTS[0]} Shelf {shorten.__name__} {i}." for i in range(3)]
    searcher.add(texts, ids=["0", "1", "2"])
    tiny.encode([QUERY], kind="query")
    before = tiny.stats.encoded_texts
    expected = shorten(texts, encoder=tiny, store=searcher.store)
    assert tiny.stats.encoded_texts == before
    changed = [*texts[:2], f"Another text, {shorten.__name__}."]
    assert shorten(changed, encoder=tiny, store=searcher.store)[:2] == expected[:2]
    assert tiny.stats.encoded_texts - before == 1


@pytest.mark.parametrize(
    "settings", [{"max_share": 0}, {"max_share": 1.5}, {"max_characters": 0}, {"neighbours": -1}, {"share": 0.5}]
)
def test_settings_out_of_range_are_refused(shorten: Shorten, tiny: M3Encoder, settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(settings))):
        shorten([], encoder=tiny, **settings)


async def test_a_retrievers_results_keep_their_scores(tiny: M3Encoder) -> None:
    retriever = M3HybridRetriever.from_texts(TEXTS[:2], ids=["a", "b"], encoder=tiny)
    found = retriever.invoke(QUERY)
    excerpt = langchain.M3Excerpt(encoder=tiny, store=retriever.store)
    for shorter in (excerpt.compress_documents(found, QUERY), await excerpt.acompress_documents(found, QUERY)):
        assert [getattr(each, "score", None) for each in shorter] == [getattr(each, "score", None) for each in found]
        assert all(getattr(each, "m3_scores", None) for each in shorter)
    twin = pickle.loads(pickle.dumps(langchain.M3Excerpt(model="tiny", max_share=0.3)))
    assert twin.compress_documents(found, QUERY)[0].metadata["m3_spans"]


async def test_of_a_node_the_text_alone_is_kept_though_its_metadata_are_looked_at(tiny: M3Encoder) -> None:
    node = LongNode(id_="n", text=TEXTS[0], metadata={"subject": "keys"})
    retriever = llama_index.M3HybridRetriever.from_documents([node], transformations=[], encoder=tiny)
    found = retriever.retrieve(QUERY)
    excerpt = llama_index.M3Excerpt(encoder=tiny, store=retriever.store, max_share=0.45)
    before = tiny.stats.encoded_texts
    for (shorter,) in (
        excerpt.postprocess_nodes(found, query_str=QUERY),
        await excerpt.apostprocess_nodes(found, query_str=QUERY),
    ):
        assert shorter.node.get_content(MetadataMode.NONE) == "Keys are rotated once a year. Anna does that."
        assert shorter.node.metadata == {"subject": "keys", "m3_spans": [[43, 88]]}
        assert "m3_spans" not in shorter.node.get_content(MetadataMode.LLM)
        assert (shorter.score, shorter.m3_scores) == (found[0].score, found[0].m3_scores)  # type: ignore[attr-defined]
    assert tiny.stats.encoded_texts == before
    assert found[0].node.get_content(MetadataMode.NONE) == TEXTS[0]
    picture = NodeWithScore(node=ImageNode(image_url="http://nowhere/x.png"))
    assert excerpt.postprocess_nodes([picture], query_str=QUERY) == [picture]
    with pytest.raises(ValueError, match="an excerpt needs a query"):
        excerpt.postprocess_nodes(found)


def test_evidence_within_a_part_has_the_parts_offsets(tiny: M3Encoder) -> None:
    (whole,) = find_evidence(tiny, QUERY, [f"subject: keys\n\n{TEXTS[0]}"])
    part = whole.within(15, len(whole.text))
    assert part.text == TEXTS[0]
    assert [part.text[s.start : s.end] for s in part.sentences] == [
        whole.text[s.start : s.end] for s in whole.sentences[1:]
    ]
    assert part.read_to == len(TEXTS[0])
    assert [(s.start, s.end) for s in whole.within(20, 40).sentences] == [(0, 16), (17, 20)]


@pytest.mark.parametrize("kind", [LongNode, Node, TextNode])
def test_a_node_of_every_kind_is_shortened_in_a_copy(kind: Any, tiny: M3Encoder) -> None:
    text = MediaResource(text=TEXTS[0])
    node = Node(text_resource=text) if kind is Node else kind(text=TEXTS[0])
    (found,) = llama_index.M3Excerpt(encoder=tiny, max_share=0.3).postprocess_nodes(
        [NodeWithScore(node=node)], query_str=QUERY
    )
    spans = found.node.metadata["m3_spans"]
    assert found.node.get_content(MetadataMode.NONE) == " … ".join(TEXTS[0][a:b] for a, b in spans)
    assert len(found.node.get_content(MetadataMode.NONE)) < len(TEXTS[0])
    assert (node.get_content(MetadataMode.NONE), node.metadata) == (TEXTS[0], {})
