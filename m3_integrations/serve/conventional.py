"""Routes that other servers have too: OpenAI's /v1/embeddings and /v1/models, and /rerank.

Unknown fields, such as `user`, are ignored: OpenAI's clients send them without being asked.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Response
from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from m3_integrations.encoder import M3Encoder
from m3_integrations.scoring import top_rows
from m3_integrations.serve.encoding import ascore_pairs
from m3_integrations.serve.limits import Limits
from m3_integrations.serve.refusal import Refusal
from m3_integrations.serve.shapes import Weights
from m3_integrations.vectors import FloatArray, resolve_weights

_NOT_IDS: Final = (
    "input must be texts, got token ids of another tokenizer: LangChain's OpenAIEmbeddings sends texts with "
    "check_embedding_ctx_length=False"
)


class EmbeddingsQuestion(BaseModel):
    """OpenAI's request for embeddings."""

    model_config = ConfigDict(strict=True)

    input: str | list[str] | list[int] | list[list[int]] = Field(description="A text, or texts. No token ids.")
    model: str
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(
        default=None, description="The length of the model's vectors; any other value is refused."
    )


class Usage(BaseModel):
    """Number of tokens that the network read."""

    prompt_tokens: int
    total_tokens: int


class Embedding(BaseModel):
    """One text's dense vector, unit length, as numbers or as base64 of little-endian float32."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingsAnswer(BaseModel):
    """OpenAI's answer with embeddings."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage


class Model(BaseModel):
    """A model that the server offers."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "m3-integrations"


class ModelsAnswer(BaseModel):
    """The server's only model."""

    object: Literal["list"] = "list"
    data: list[Model]


class DocumentText(BaseModel):
    """A document as an object."""

    text: str


class RerankQuestion(BaseModel):
    """A query, and documents to rank for it.

    A request with `texts`, as TEI calls the documents, is answered in TEI's format.
    """

    model_config = ConfigDict(strict=True)

    query: str
    documents: list[str | DocumentText] | None = None
    texts: list[str] | None = Field(default=None, description="The documents, as TEI calls them.")
    model: str | None = None
    top_n: Annotated[int | None, Field(ge=1, description="How many to return; all by default.")] = None
    return_documents: Annotated[
        bool, Field(validation_alias=AliasChoices("return_documents", "return_text"))
    ] = False  # fmt: skip
    weights: Weights | None = Field(default=None, description="How the modes count; equal by default.")


class RankedDocument(BaseModel):
    """A document with its score: the weighted mean of the three modes' scores, higher is better, not bounded above."""

    index: int
    relevance_score: float
    document: DocumentText | None = None


class RerankAnswer(BaseModel):
    """Documents, best first."""

    model: str
    results: list[RankedDocument]


class RankedText(BaseModel):
    """A document with its score, in TEI's format."""

    index: int
    score: float
    text: str | None = None


def conventional_routes(encoder: M3Encoder, limits: Limits, name: str) -> APIRouter:
    """Return the routes.

    Args:
        encoder: Encodes and scores.
        limits: Limits on each request.
        name: The model's name; requests for another model are refused.
    """
    router = APIRouter()

    @router.get("/v1/models", tags=["OpenAI"])
    async def list_models() -> ModelsAnswer:
        """Return the server's only model."""
        return ModelsAnswer(data=[Model(id=name)])

    @router.post("/v1/embeddings", response_model=EmbeddingsAnswer, tags=["OpenAI"])
    async def embed(question: EmbeddingsQuestion) -> Response:
        """Return the dense vectors of texts, encoded as documents."""
        _check_name(question.model, name)
        texts = _texts_of(question.input)
        if question.dimensions not in {None, encoder.dim}:
            raise Refusal(422, f"this model's vectors cannot be shortened: leave dimensions out, or pass {encoder.dim}")
        limits.check_number(len(texts), "texts")
        (vectors, _), n_tokens = await asyncio.gather(
            encoder.aencode_marked(texts, modes=("dense",)), asyncio.to_thread(_count_tokens, encoder, texts)
        )
        body = await asyncio.to_thread(_embeddings, vectors.dense, name, n_tokens, question.encoding_format)
        return Response(body, media_type="application/json")

    @router.post("/rerank", response_model_exclude_none=True, tags=["rerankers"])
    @router.post("/v1/rerank", response_model_exclude_none=True, tags=["rerankers"])
    @router.post("/v2/rerank", response_model_exclude_none=True, tags=["rerankers"])
    async def rerank(question: RerankQuestion) -> RerankAnswer | list[RankedText]:
        """Return documents ranked for a query by all three modes, best first; equal scores keep their order."""
        if question.model is not None:
            _check_name(question.model, name)
        if (question.documents is None) == (question.texts is None):
            raise Refusal(422, "a request must have either documents or texts")
        given = question.documents if question.texts is None else question.texts
        texts = [each if isinstance(each, str) else each.text for each in given or []]
        limits.check_number(len(texts), "documents")
        weights = resolve_weights(question.weights)
        pairs = [(question.query, text) for text in texts]
        scores = (await ascore_pairs(encoder, pairs, weights))[0].combined
        best = [(row, float(scores[row])) for row in top_rows(scores, question.top_n or len(texts)).tolist()]
        shown = [texts[row] if question.return_documents else None for row, _ in best]
        if question.texts is not None:
            return [RankedText(index=row, score=score, text=t) for (row, score), t in zip(best, shown, strict=True)]
        results = [
            RankedDocument(index=row, relevance_score=score, document=None if t is None else DocumentText(text=t))
            for (row, score), t in zip(best, shown, strict=True)
        ]
        return RerankAnswer(model=name, results=results)

    return router


def _check_name(asked: str, name: str) -> None:
    if asked != name:
        raise Refusal(404, f"this server has only the model {name!r}, got {asked[:80]!r}")


def _texts_of(given: str | Sequence[Any]) -> list[str]:
    texts = [given] if isinstance(given, str) else list(given)
    if not texts:
        raise Refusal(422, "input must be one or more texts, got none")
    if not all(isinstance(text, str) for text in texts):
        raise Refusal(422, _NOT_IDS)
    return texts


def _count_tokens(encoder: M3Encoder, texts: Sequence[str]) -> int:
    return sum(len(tokens) + 1 for tokens in encoder.tokenize(texts))  # + 1: tokenize() leaves [CLS] out


def _embeddings(dense: FloatArray, name: str, n_tokens: int, encoding_format: str) -> bytes:
    """Return OpenAI's answer as JSON. One `json.dumps` a row: a single call would hold the interpreter's lock."""
    rows = (
        json.dumps(
            {
                "object": "embedding",
                "index": i,
                "embedding": row.tolist()
                if encoding_format == "float"
                else base64.b64encode(row.astype("<f4").tobytes()).decode("ascii"),
            }
        )
        for i, row in enumerate(dense)
    )
    usage = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    head = json.dumps({"object": "list", "model": name, "usage": usage})
    return f'{head[:-1]}, "data": [{", ".join(rows)}]}}'.encode("ascii")
