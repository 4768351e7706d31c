"""How every class of both frameworks comes by its encoder."""

import copy
import json
import pickle
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from m3_integrations import M3Encoder, langchain, langchain_qdrant, llama_index
from m3_integrations.search import check_store, open_encoder
from tests.fakes import FakeEncoder

MADE = [
    langchain.M3Embeddings,
    langchain.M3HybridRetriever,
    langchain.M3Rerank,
    langchain.M3CrossEncoder,
    langchain_qdrant.M3SparseEmbeddings,
    llama_index.M3Embedding,
    llama_index.M3SparseEmbedding,
    llama_index.M3HybridRetriever,
    llama_index.M3Rerank,
]


def network(holder: Any) -> object:
    return cast("M3Encoder", holder.encoder)._live_engine().network


def test_everything_in_the_process_holds_one_network(small: Path) -> None:
    """Whatever the framework, the other settings of the encoder, and whether it was copied or pickled."""
    model = str(small)
    first = langchain.M3Embeddings(model=model, model_kwargs={"max_length": 32})
    second = llama_index.M3Embedding(model_name=model, model_kwargs={"cache_size_bytes": 0})
    holders = [
        *(made(model=model) for made in MADE),
        llama_index.M3Rerank(encoder=first.encoder),
        *(copy.deepcopy(each) for each in (first, second)),
        *(pickle.loads(pickle.dumps(each)) for each in (first, second)),
    ]
    assert {id(network(holder)) for holder in (second, *holders)} == {id(network(first))}


def test_a_deep_copy_shares_even_a_network_that_was_loaded_alone(encoder: M3Encoder) -> None:
    embeddings = langchain.M3Embeddings(encoder=encoder)
    twin = copy.deepcopy(embeddings)
    assert network(twin) is network(embeddings)
    assert twin.encoder is not encoder
    twin.encoder.close()  # type: ignore[attr-defined]
    assert embeddings.embed_query("keys")


@pytest.mark.parametrize("made", MADE, ids=lambda made: f"{made.__module__.split('.')[1]}.{made.__name__}")
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, r"pass model= .* or encoder=, got neither"),
        ({"encoder": FakeEncoder(), "model": "other"}, ValueError, r"encoder= \(fake\) already has a model"),
        ({"encoder": FakeEncoder(), "model_kwargs": {"device": "cpu"}}, ValueError, "cannot change them"),
        ({"encoder": "BAAI/bge-m3"}, TypeError, r"encoder must be an encoder.*'BAAI/bge-m3'.*no aencode\(\)"),
        ({"model": "/no/such/folder", "modle_kwargs": {}}, (TypeError, ValueError), "modle_kwargs"),
        ({"model": "/no/such/folder"}, FileNotFoundError, "/no/such/folder"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_loaded(
    made: type[Any], arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        made(**arguments)


@pytest.mark.parametrize("made", MADE, ids=lambda made: f"{made.__module__.split('.')[1]}.{made.__name__}")
def test_a_misspelt_setting_of_the_model_is_refused(made: type[Any], small: Path) -> None:
    with pytest.raises(TypeError, match="devise"):
        made(model=str(small), model_kwargs={"devise": "cpu"})


def test_an_encoder_may_come_with_its_own_name() -> None:
    fake = FakeEncoder()
    assert open_encoder("fake", encoder=fake, model_kwargs={}) is fake
    for made in (langchain.M3Embeddings, langchain.M3HybridRetriever, langchain.M3Rerank):
        assert made(**dict(made(encoder=fake))).encoder is fake  # as LangChain makes one anew from another's fields
    assert check_store(None) is None


MODELS = [each for each in MADE if hasattr(each, "model_dump")]


@pytest.mark.parametrize("made", MODELS, ids=lambda made: f"{made.__module__.split('.')[1]}.{made.__name__}")
def test_what_is_made_anew_of_a_dump_or_of_the_fields_has_the_same_settings(made: type[Any], small: Path) -> None:
    settings = {"max_length": 32, "query_instruction": "search: ", "device": "cpu"}
    named = made(model=str(small), model_kwargs=settings)
    given = made(encoder=M3Encoder(small, **settings))  # type: ignore[arg-type]
    for first in (named, given):
        assert first.model_dump()["model_kwargs"] == settings
        for other in (made(**first.model_dump()), made(**dict(first)), copy.copy(first)):
            assert other.encoder.max_length == 32
            assert other.model_kwargs == settings
            assert other.encoder.settings == first.encoder.settings
    with pytest.raises(ValueError, match="cannot change them"):
        made(encoder=named.encoder, model_kwargs={"max_length": 33})


@pytest.mark.parametrize("made", MODELS, ids=lambda made: f"{made.__module__.split('.')[1]}.{made.__name__}")
def test_torchs_own_settings_are_dumped_by_their_names(made: type[Any], small: Path) -> None:
    first = made(encoder=M3Encoder(small, device=torch.device("cpu"), dtype=torch.float32))
    dumped = json.loads(first.model_dump_json())
    assert dumped["model_kwargs"] == {"device": "cpu", "dtype": "float32"}
    assert made(**dumped).encoder.dtype == made(**dict(first)).encoder.dtype == "float32"
