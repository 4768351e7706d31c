"""The sparse embeddings in langchain-milvus's type; that package clashes with others, so most runs skip this."""

import pickle
from importlib.util import find_spec
from pathlib import Path

import pytest

from m3_integrations import M3Encoder
from tests.adapters.drivers import SENTENCES

if find_spec("langchain_milvus") is None:
    pytest.skip("langchain-milvus is not installed", allow_module_level=True)


async def test_sparse_vectors_are_the_lexical_weights(encoder: M3Encoder) -> None:
    from m3_integrations.langchain_milvus import M3SparseEmbeddings

    sparse = M3SparseEmbeddings(encoder=encoder)
    texts = [*SENTENCES, ""]
    expected = [weights.to_dict() for weights in encoder.encode(texts).lexical]
    bases = [f"{base.__module__}.{base.__name__}" for base in type(sparse).__mro__]
    assert "langchain_milvus.utils.sparse.BaseSparseEmbedding" in bases  # by which the store knows a sparse field
    assert sparse.embed_documents(texts) == await sparse.aembed_documents(texts) == expected
    assert [sparse.embed_query(text) for text in texts] == [await sparse.aembed_query(text) for text in texts]
    assert sparse.embed_query(SENTENCES[1]) == expected[1]
    assert sparse.embed_documents([]) == await sparse.aembed_documents([]) == []
    assert {type(value) for row in expected for value in (*row.keys(), *row.values())} == {int, float}
    assert pickle.loads(pickle.dumps(sparse)).embed_query("keys") == sparse.embed_query("keys")
    with pytest.raises(ValueError, match="pass model="):
        M3SparseEmbeddings()


async def test_a_query_is_encoded_as_a_query(small: Path) -> None:
    from m3_integrations.langchain_milvus import M3SparseEmbeddings

    instructed = M3SparseEmbeddings(str(small), model_kwargs={"query_instruction": "find: "})
    plain = M3SparseEmbeddings(str(small))
    expected = plain.embed_query("find: keys")
    assert instructed.embed_query("keys") == await instructed.aembed_query("keys") == expected
    assert instructed.embed_documents(["keys"]) == plain.embed_documents(["keys"])
