"""Routes for encoding, scoring, tokens, and the model's description. Every answer names the model in a header.

Vectors are sent as safetensors: a checked header and raw little-endian arrays, without pickle. The package depends on
safetensors anyway. An npz file is a zip archive and slower; Arrow would be one more dependency.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, Final

import numpy as np
from fastapi import APIRouter, Depends, Response
from numpy.typing import NDArray
from safetensors.numpy import save

from m3_integrations.encoder import M3Encoder
from m3_integrations.scoring import score_pairs
from m3_integrations.serve.limits import Limits
from m3_integrations.serve.shapes import (
    EncodeQuestion,
    EncoderAnswer,
    EncoderLimits,
    ScoreAnswer,
    ScoreQuestion,
    TokenizeAnswer,
    TokenizeQuestion,
    VocabularyAnswer,
)
from m3_integrations.vectors import (
    M3Scores,
    M3Vectors,
    ModeWeights,
    distinct_texts,
    resolve_weights,
    to_tensors,
    windows,
)

_API: Final = 1
"""Version of the answers' format. It rises when an older client would misread an answer."""

_SMALL_BYTES: Final = 1 << 18
"""Up to this size an answer is copied in the event loop, which takes less time than handing it to a thread."""

_BINARY: Final = "application/octet-stream"


def encoding_routes(encoder: M3Encoder, limits: Limits, name: str) -> APIRouter:
    """Return the routes.

    Args:
        encoder: Encodes and scores.
        limits: Limits on each request.
        name: The model's name.
    """
    fingerprint, about = encoder.fingerprint, _about(encoder, limits, name)

    async def name_model(response: Response) -> None:
        """Put the model into the headers; a route that returns a `Response` puts it there itself."""
        response.headers["X-M3-Fingerprint"] = fingerprint

    router = APIRouter(tags=["three views"], dependencies=[Depends(name_model)])

    @router.get("/v1/encoder")
    async def describe() -> EncoderAnswer:
        """Return the server's model, its settings and the limits on a request."""
        return about

    @router.post(
        "/v1/encode",
        response_class=Response,
        responses={200: {"content": {_BINARY: {"schema": {"type": "string", "format": "binary"}}}}},
    )
    async def encode(question: EncodeQuestion) -> Response:
        """Return the vectors of texts as safetensors.

        The tensors, only for the modes that were asked for: `dense` (n, d) float32; `lexical.offsets` (n + 1) int64,
        `lexical.indices` int32 and `lexical.values` float32; `multi_vector.offsets` (n + 1) int64 and
        `multi_vector.flat` (tokens, d) float32. `truncated` in the metadata is the number of texts that were cut. The
        header `X-M3-Fingerprint` identifies the model.
        """
        limits.check_number(len(question.texts), "texts")
        limits.check_tokens(question.texts, question.max_length or encoder.max_length)
        vectors, is_cut = await encoder.aencode_marked(
            question.texts, kind=question.kind, modes=question.modes, max_length=question.max_length
        )
        n_cut = int(is_cut.sum())
        if vectors.nbytes > _SMALL_BYTES:
            body = await asyncio.to_thread(to_safetensors, vectors, n_cut)
        else:
            body = to_safetensors(vectors, n_cut)
        return Response(body, media_type=_BINARY, headers={"X-M3-Fingerprint": fingerprint})

    @router.post("/v1/tokenize", response_model_exclude_none=True)
    async def tokenize(question: TokenizeQuestion) -> TokenizeAnswer:
        """Return the tokens of texts as the network reads them, without [CLS]; if asked, with their places."""
        limits.check_number(len(question.texts), "texts")
        asked: dict[str, Any] = {"kind": question.kind, "max_length": question.max_length}
        tokens = await asyncio.to_thread(encoder.tokenize, question.texts, **asked)
        if not question.with_spans:
            return TokenizeAnswer(tokens=tokens)
        spans = await asyncio.to_thread(encoder.token_spans, question.texts, **asked)
        return TokenizeAnswer(tokens=tokens, spans=[each.tolist() for each in spans])

    @router.get("/v1/vocabulary")
    async def vocabulary() -> VocabularyAnswer:
        """Return the token of every id; the ids are those of the lexical weights."""
        return VocabularyAnswer(tokens=list(encoder.vocabulary))

    @router.get("/v1/tokenizer", response_class=Response, responses={200: {"content": {"application/json": {}}}})
    async def tokenizer() -> Response:
        """Return the model's tokenizer.json, for a client that counts the tokens of many texts.

        The library `tokenizers` reads it. The header `X-M3-Fingerprint` identifies the model.
        """
        body = await asyncio.to_thread(encoder.tokenizer_json)
        return Response(body, media_type="application/json", headers={"X-M3-Fingerprint": fingerprint})

    @router.post("/v1/score_pairs", response_model_exclude_none=True)
    async def score(question: ScoreQuestion) -> ScoreAnswer:
        """Return the scores of pairs of a query and a text: in every mode, and their weighted mean."""
        limits.check_number(len(question.pairs), "pairs")
        scores, *cut = await ascore_pairs(encoder, question.pairs, resolve_weights(question.weights))
        truncated_queries, truncated_texts = (np.flatnonzero(is_cut).tolist() for is_cut in cut)
        return ScoreAnswer(
            combined=scores.combined.tolist(),
            **{mode: getattr(scores, mode).tolist() for mode in scores.modes},
            truncated_queries=truncated_queries,
            truncated_texts=truncated_texts,
        )

    return router


def _about(encoder: M3Encoder, limits: Limits, name: str) -> EncoderAnswer:
    has_tokens = "multi_vector" in encoder.modes
    return EncoderAnswer(
        api=_API,
        model=name,
        fingerprint=encoder.fingerprint,
        dim=encoder.dim,
        token_dim=encoder.encode([]).multi_vector.flat.shape[1] if has_tokens else 0,
        modes=list(encoder.modes),
        max_length=encoder.max_length,
        query_max_length=encoder.query_max_length,
        dtype=encoder.dtype,
        pooling=encoder.pooling,
        version=version("m3-integrations"),
        limits=EncoderLimits(texts=limits.max_texts, body_bytes=limits.max_body_bytes, tokens=limits.max_tokens),
    )


def to_safetensors(vectors: M3Vectors, n_cut: int) -> bytes:
    """Return vectors as the bytes that /v1/encode answers with."""
    return save(to_tensors(vectors), metadata={"truncated": str(n_cut)})


async def ascore_pairs(
    encoder: M3Encoder, pairs: Sequence[tuple[str, str]], weights: ModeWeights
) -> tuple[M3Scores, NDArray[np.bool_], NDArray[np.bool_]]:
    """Return the scores of n pairs as `M3Encoder.score_pairs` does, and which queries and which texts were cut.

    A cancelled task leaves the encoder's queue.

    Args:
        encoder: Encodes each different query and text once. Texts are encoded in windows, which bounds the memory.
        pairs: Pairs of a query and a text.
        weights: How much each mode counts.

    Returns:
        The scores; (n,) bool, whether a pair's query was cut; (n,) bool, whether its text was cut.

    Raises:
        ValueError: If the weights lie only on modes that the model lacks.
    """
    weights.normalized(encoder.modes)
    queries, query_of = distinct_texts(query for query, _ in pairs)
    documents, document_of = distinct_texts(text for _, text in pairs)
    of_query, is_query_cut = await encoder.aencode_marked(queries, kind="query")
    columns = {name: np.zeros(len(pairs), dtype=np.float32) for name in (*encoder.modes, "combined")}
    is_document_cut = np.zeros(len(documents), dtype=bool)
    start = 0
    for window in windows(documents, max_texts=2048, max_tokens=65_536, max_length=encoder.max_length):
        vectors, is_cut = await encoder.aencode_marked(window)
        is_document_cut[start : start + len(window)] = is_cut
        here = np.flatnonzero((document_of >= start) & (document_of < start + len(window)))
        scores = await asyncio.to_thread(
            score_pairs, of_query, vectors, query_of[here], document_of[here] - start, weights
        )
        for name, column in columns.items():
            column[here] = getattr(scores, name)
        start += len(window)
    return M3Scores(**columns), is_query_cut[query_of], is_document_cut[document_of]
