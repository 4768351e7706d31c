"""`M3Embedding` alone: its vectors, how texts reach the encoder, its names and its pickles."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks import CallbackManager, CBEventType
from llama_index.core.ingestion import IngestionCache, IngestionPipeline
from llama_index.core.schema import Document, MetadataMode, TextNode
from pydantic import ValidationError, create_model

from m3_integrations import M3Encoder
from m3_integrations.llama_index import (
    M3Embedding,
    M3Excerpt,
    M3HybridRetriever,
    M3Rerank,
    M3SparseEmbedding,
    M3VectorStore,
)
from tests.adapters.drivers import SENTENCES
from tests.fakes import FakeEncoder
from tests.llama_index.conftest import CallbackRecorder, CountingEncoder, ids_of


async def test_vectors_are_the_encoders_dense_ones_as_python_floats(encoder: M3Encoder) -> None:
    embedding = M3Embedding(encoder=encoder)
    expected = encoder.encode(SENTENCES, modes=("dense",)).dense
    texts = list(SENTENCES)
    for rows in (
        embedding.get_text_embedding_batch(texts),
        await embedding.aget_text_embedding_batch(texts),
        [embedding.get_text_embedding(text) for text in texts],
        [await embedding.aget_text_embedding(text) for text in texts],
        [embedding.get_query_embedding(text) for text in texts],
        [await embedding.aget_query_embedding(text) for text in texts],
    ):
        # A query's pass may have another batch than the document's, which changes the rounding.
        np.testing.assert_allclose(np.array(rows, dtype=np.float32), expected, atol=1e-6)
        assert {type(value) for row in rows for value in row} == {float}
    assert embedding.get_text_embedding_batch([]) == await embedding.aget_text_embedding_batch([]) == []


async def test_a_query_is_encoded_as_a_query_and_a_text_as_a_document(fake: CountingEncoder) -> None:
    embedding = M3Embedding(encoder=fake)
    embedding.get_query_embedding("q")
    await embedding.aget_query_embedding("aq")
    embedding.get_text_embedding("d")
    await embedding.aget_text_embedding("ad")
    assert fake.encoded == [("query", "q"), ("query", "aq"), ("document", "d"), ("document", "ad")]


async def test_whole_lists_reach_the_encoder_in_one_call(fake: CountingEncoder) -> None:
    embedding, texts = M3Embedding(encoder=fake), [f"text {i}" for i in range(64)]
    nodes = [TextNode(text=text) for text in texts]
    embedding.get_text_embedding_batch(texts)
    await embedding.aget_text_embedding_batch(texts)
    embedding(nodes)
    await embedding.acall(nodes)
    assert fake.calls == [("document", 64, ("dense",))] * 4
    assert M3Embedding(encoder=fake).embed_batch_size == 2048


async def test_the_text_embedded_is_a_nodes_embed_content(nodes: list[TextNode], fake: CountingEncoder) -> None:
    M3Embedding(encoder=fake)(nodes[:2])
    assert [text for _, text in fake.encoded] == [node.get_content(MetadataMode.EMBED) for node in nodes[:2]]
    assert fake.encoded[1][1].startswith("row: 1\ncolor: blue\n\n")


def test_settings_of_the_model_hold_and_survive_pickling(small: Path) -> None:
    text = " ".join(SENTENCES)
    with (
        M3Encoder(small, shared=False, device="cpu", max_length=8) as short,
        pytest.warns(UserWarning, match="longer than 8"),
    ):
        expected = short.encode([text]).dense[0]
    first = M3Embedding(model_name=str(small), model_kwargs={"max_length": 8}, num_workers=3)
    for embedding in (first, pickle.loads(pickle.dumps(first)), M3Embedding.from_dict(first.to_dict())):
        assert embedding.num_workers == 3
        with pytest.warns(UserWarning, match="longer than 8"):
            assert embedding.get_text_embedding(text) == expected.tolist()


def test_pickling_keeps_an_injected_encoder(fake: CountingEncoder, small: Path) -> None:
    fake.delay_s = 0.25
    twin = pickle.loads(pickle.dumps(M3Embedding(encoder=fake, embed_batch_size=7)))
    assert (type(twin.encoder), twin.encoder.delay_s, twin.embed_batch_size) == (CountingEncoder, 0.25, 7)
    with M3Encoder(small, shared=False, device="cpu", max_length=16) as alone:
        other = pickle.loads(pickle.dumps(M3Embedding(encoder=alone)))
        assert other.encoder.max_length == 16


def test_what_cannot_be_pickled_is_an_error_and_not_left_out(small: Path) -> None:
    encoder = M3Encoder(small, shared=False, device="cpu")
    embedding = M3Embedding(encoder=encoder)
    encoder.close()
    with pytest.raises(RuntimeError, match="was closed"):
        pickle.dumps(embedding)


def test_callback_handlers_stay_in_their_process(fake: CountingEncoder) -> None:
    manager = CallbackManager([CallbackRecorder(CBEventType.EMBEDDING)])
    twin = pickle.loads(pickle.dumps(M3Embedding(encoder=fake, callback_manager=manager)))
    assert twin.callback_manager.handlers == []


def test_the_ingestion_caches_key_does_not_depend_on_the_encoder_object(fake: CountingEncoder, small: Path) -> None:
    assert M3Embedding(encoder=fake).to_dict() == M3Embedding(encoder=CountingEncoder()).to_dict()
    model = str(small.resolve())
    assert M3Embedding(model_name=model).to_dict() == {
        "model_name": model,
        "model": model,
        "model_kwargs": {},
        "embed_batch_size": 2048,
        "num_workers": None,
        "embeddings_cache": None,
        "class_name": "M3Embedding",
    }
    short = M3Embedding(model_name=model, model_kwargs={"max_length": 8})
    assert short.to_dict() != M3Embedding(model_name=model).to_dict()


async def test_the_ingestion_cache_hits(fake: CountingEncoder) -> None:
    cache, documents = IngestionCache(), [Document(id_="d", text="keys and tea")]
    first = IngestionPipeline(transformations=[M3Embedding(encoder=fake)], cache=cache).run(documents=documents)
    assert len(fake.calls) == 1
    again = CountingEncoder()
    second = IngestionPipeline(transformations=[M3Embedding(encoder=again)], cache=cache)
    assert second.run(documents=documents)[0].embedding == first[0].embedding
    assert (await second.arun(documents=documents))[0].embedding == first[0].embedding
    assert again.calls == []


async def test_an_index_of_llama_index_ranks_by_our_vectors(on_network: M3HybridRetriever) -> None:
    nodes = [TextNode(id_=f"s{row}", text=text) for row, text in enumerate(SENTENCES)]
    embedding = M3Embedding(encoder=on_network.encoder)
    index = VectorStoreIndex(nodes, embed_model=embedding).as_retriever(similarity_top_k=6)
    scores = on_network.encoder.score_pairs([("signing keys", text) for text in SENTENCES]).dense
    expected = [f"s{row}" for row in np.argsort(-scores)]
    found = index.retrieve("signing keys")
    assert ids_of(found) == ids_of(await index.aretrieve("signing keys")) == expected
    assert [each.score for each in found] == pytest.approx(sorted(scores.tolist(), reverse=True), abs=1e-6)


def test_embedding_events_are_the_frameworks_own(fake: CountingEncoder) -> None:
    recorder = CallbackRecorder(CBEventType.EMBEDDING)
    M3Embedding(encoder=fake, callback_manager=CallbackManager([recorder])).get_text_embedding_batch(["a", "b"])
    assert [name for name, _ in recorder.events] == ["start", "end"]
    assert recorder.starts[0]["serialized"] == {
        "class_name": "M3Embedding",
        "model_name": "fake",
        "embed_batch_size": 2048,
    }


def test_the_encoder_stays_out_of_the_representation(fake: CountingEncoder) -> None:
    assert "CountingEncoder" not in repr(M3Embedding(encoder=fake)) + repr(M3SparseEmbedding(encoder=fake))
    assert isinstance(M3Embedding(encoder=fake), BaseEmbedding)
    assert [made.class_name() for made in (M3Embedding, M3SparseEmbedding)] == ["M3Embedding", "M3SparseEmbedding"]


@pytest.mark.parametrize("made", [M3Embedding, M3SparseEmbedding])
def test_model_and_model_name_say_the_same(made: type[Any], small: Path) -> None:
    model = str(small.resolve())
    for arguments in ({"model": model}, {"model_name": model}, {"model": model, "model_name": model}):
        assert (made(**arguments).model, made(**arguments).model_name) == (model, model)
    with pytest.raises(ValidationError, match=r"mean the same, got \['a', 'b'\]"):
        made(model="a", model_name="b")
    with pytest.raises(ValidationError, match="less than or equal to 2048"):
        made(encoder=FakeEncoder(), embed_batch_size=2049)


@pytest.mark.parametrize("made", [M3Embedding, M3SparseEmbedding, M3Rerank])
def test_an_instance_fits_into_a_field_of_another_model(made: type[Any], small: Path) -> None:
    settled = made(model=str(small), model_kwargs={"max_length": 8})
    holder = create_model("Holder", part=(made, ...))(part=settled)
    assert holder.part is settled  # type: ignore[attr-defined]


@pytest.mark.parametrize("made", [M3Embedding, M3SparseEmbedding, M3Rerank, M3VectorStore, M3Excerpt])
def test_a_loaded_model_is_changed_by_assigning_an_encoder_alone(made: type[Any], encoder: M3Encoder) -> None:
    one = made(encoder=encoder)
    for field, value in (("model", "small"), ("model_name", "small"), ("model_kwargs", {"max_length": 9})):
        with pytest.raises(ValueError, match=f"{field} cannot be changed, .* assign encoder=M3Encoder"):
            setattr(one, field, value)
    with pytest.raises(AttributeError):
        one.encoder = "tiny"
    assert (one.encoder, one.model) == (encoder, encoder.model)
    one.encoder = M3Encoder("tiny", device="cpu")
    assert (one.model, getattr(one, "model_name", "tiny"), one.model_kwargs["device"]) == ("tiny", "tiny", "cpu")
    assert one.model_dump(exclude_unset=True)["model"] == "tiny"
