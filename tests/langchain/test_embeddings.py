import copy
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from m3_integrations import M3Encoder
from m3_integrations.langchain import M3Document, M3Embeddings, M3HybridRetriever
from tests.adapters.drivers import SENTENCES
from tests.fakes import FakeEncoder


def test_vectors_are_the_encoders_dense_ones_as_python_floats(encoder: M3Encoder) -> None:
    embeddings = M3Embeddings(encoder=encoder)
    expected = encoder.encode(SENTENCES, modes=("dense",)).dense
    documents, query = embeddings.embed_documents(list(SENTENCES)), embeddings.embed_query(SENTENCES[2])
    np.testing.assert_array_equal(np.array(documents, dtype=np.float32), expected)
    np.testing.assert_array_equal(np.array(query, dtype=np.float32), expected[2])
    assert {type(value) for row in [*documents, query] for value in row} == {float}


async def test_async_gives_the_same_vectors(encoder: M3Encoder) -> None:
    for embeddings in (M3Embeddings(encoder=encoder), M3Embeddings(encoder=encoder, show_progress=True)):
        assert await embeddings.aembed_documents(list(SENTENCES)) == embeddings.embed_documents(list(SENTENCES))
        assert await embeddings.aembed_query("tea") == embeddings.embed_query("tea")


async def test_no_texts_give_no_vectors(encoder: M3Encoder) -> None:
    embeddings = M3Embeddings(encoder=encoder)
    assert embeddings.embed_documents([]) == await embeddings.aembed_documents([]) == []


async def test_a_query_is_encoded_as_a_query_and_a_document_as_a_document(fake: FakeEncoder) -> None:
    embeddings = M3Embeddings(encoder=fake)
    embeddings.embed_query("q")
    await embeddings.aembed_query("aq")
    embeddings.embed_documents(["d"])
    await embeddings.aembed_documents(["ad"])
    assert fake.encoded == [("query", "q"), ("query", "aq"), ("document", "d"), ("document", "ad")]


def test_texts_reach_the_encoder_as_they_are(fake: FakeEncoder) -> None:
    M3Embeddings(encoder=fake).embed_documents(["two\nlines ", ""])
    assert [text for _, text in fake.encoded] == ["two\nlines ", ""]


def test_a_text_has_the_same_vector_as_query_and_as_document(encoder: M3Encoder) -> None:
    embeddings = M3Embeddings(encoder=encoder)
    query, document = embeddings.embed_query("rotate the keys"), embeddings.embed_documents(["rotate the keys"])[0]
    assert np.dot(query, document) == pytest.approx(1.0, abs=1e-6)


def test_an_instruction_that_was_asked_for_is_put_before_queries_only(small: Path) -> None:
    plain = M3Embeddings(model=str(small))
    instructed = M3Embeddings(model=str(small), model_kwargs={"query_instruction": "find: "})
    assert instructed.embed_query("keys") == plain.embed_query("find: keys")
    assert instructed.embed_documents(["keys"]) == plain.embed_documents(["keys"])


async def test_settings_hold_on_every_path_and_survive_pickling(small: Path) -> None:
    text = " ".join(SENTENCES)
    short = M3Encoder(small, shared=False, device="cpu", max_length=8)
    with pytest.warns(UserWarning, match="longer than 8"):
        expected = short.encode([text]).dense
    first = M3Embeddings(model=str(small), model_kwargs={"max_length": 8}, show_progress=True)
    for embeddings in (first, pickle.loads(pickle.dumps(first)), copy.deepcopy(first)):
        assert embeddings.show_progress
        with pytest.warns(UserWarning, match="longer than 8"):
            rows = [
                *embeddings.embed_documents([text]),
                *await embeddings.aembed_documents([text]),
                embeddings.embed_query(text),
                await embeddings.aembed_query(text),
            ]
        np.testing.assert_array_equal(np.array(rows, dtype=np.float32), np.repeat(expected, 4, axis=0))


async def test_a_checkpoint_without_heads_is_enough(small: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    shutil.copytree(small, plain, ignore=shutil.ignore_patterns("*_linear.pt"))
    embeddings, complete = M3Embeddings(model=str(plain)), M3Embeddings(model=str(small))
    texts = list(SENTENCES)
    assert embeddings.embed_documents(texts) == complete.embed_documents(texts)
    assert await embeddings.aembed_documents(texts) == complete.embed_documents(texts)
    assert embeddings.embed_query("keys") == await embeddings.aembed_query("keys") == complete.embed_query("keys")
    retriever = M3HybridRetriever.from_texts(texts, encoder=embeddings.encoder, k=1, mode="dense")
    (found,) = retriever.invoke(texts[4])
    assert isinstance(found, M3Document)
    assert (found.page_content, list(found.m3_scores)) == (texts[4], ["dense"])


def test_a_progress_bar_is_drawn_only_on_request(encoder: M3Encoder, capsys: pytest.CaptureFixture[str]) -> None:
    M3Embeddings(encoder=encoder).embed_documents(["a", "b"])
    assert capsys.readouterr().err == ""
    M3Embeddings(encoder=encoder, show_progress=True).embed_documents(["c", "d"])
    assert "2/2" in capsys.readouterr().err


def test_the_model_is_named_and_the_encoder_stays_out_of_repr_and_dump(small: Path) -> None:
    embeddings = M3Embeddings(model=str(small), model_kwargs={"device": "cpu"})
    assert embeddings.model == embeddings.encoder.model == str(small.resolve())
    assert repr(embeddings) == f"M3Embeddings(model={str(small.resolve())!r}, show_progress=False)"
    assert embeddings.model_dump() == {
        "model": str(small.resolve()),
        "model_kwargs": {"device": "cpu"},
        "show_progress": False,
    }


def test_one_string_in_the_place_of_texts_is_refused(encoder: M3Encoder) -> None:
    with pytest.raises(TypeError, match="one string"):
        M3Embeddings(encoder=encoder).embed_documents("text")  # type: ignore[arg-type]
