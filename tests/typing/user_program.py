"""What a user writes, checked by mypy strict and pyright and never run: every public name, with the types it gives."""

from __future__ import annotations

import asyncio
from typing import assert_type

import numpy as np
from numpy.typing import NDArray

from m3_integrations import (
    PRESETS,
    Encoder,
    EncoderStats,
    Hit,
    LexicalWeights,
    M3Encoder,
    M3Scores,
    M3Vectors,
    ModeWeights,
    Record,
    Searcher,
    SearchOptions,
    Store,
    open_store,
)


def encode(texts: list[str]) -> None:
    with M3Encoder.shared("BAAI/bge-m3", device="cpu", pooling="mcls", query_max_length=64) as encoder:
        vectors = encoder.encode(texts, kind="query", modes=("dense", "lexical"))
        assert_type(vectors, M3Vectors)
        assert_type(vectors.dense, NDArray[np.float32])
        assert_type(vectors.lexical[0], LexicalWeights)
        assert_type(vectors.lexical[0].tokens(), list[tuple[str, float]])
        assert_type(vectors.multi_vector[0], NDArray[np.float32])
        assert_type(vectors[0:2], M3Vectors)
        scores = encoder.score("query", texts, weights=PRESETS["miracl"])
        assert_type(scores, M3Scores)
        assert_type(scores.combined, NDArray[np.float32])
        assert_type(encoder.stats, EncoderStats)
        for part in encoder.encode_batches(iter(texts), show_progress=True):
            assert_type(part, M3Vectors)


def search(encoder: Encoder) -> list[Hit]:
    store = open_store()
    assert_type(store, Store)
    searcher = Searcher(encoder, store)
    ids = searcher.add(["a", "b"], ids=["1", None], metadatas=[{"year": 2024}, {}])
    assert_type(ids, list[str])
    assert_type(store.get(ids), list[Record])
    options = SearchOptions(k=3, mode="dense+lexical", weights=ModeWeights(1, 2, 0), filter={"year": {"$gte": 2020}})
    hits = asyncio.run(searcher.asearch("query", options))
    assert_type(hits[0].scores, dict[str, float])
    assert_type(searcher.explain("query", ids[0]).lexical[0].token, str)
    return hits


def accepts_an_encoder(encoder: M3Encoder) -> list[Hit]:
    return search(encoder)
