"""Which characters of a text carry its match with a query, by sentence, read off vectors that are there already."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from m3_integrations.search.sentences import sentence_spans
from m3_integrations.store import Record, Store
from m3_integrations.vectors import Encoder, FloatArray, IntArray, M3Vectors, Mode
from m3_integrations.vectors.pooling import group_starts

NO_LIMIT: Final = 1 << 30
"""More tokens than any checkpoint has positions for."""

_RECORDS_AT_ONCE: Final = 16
"""Records with vectors that are held at a time: one of 8,192 tokens takes 32 MB."""


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence of a text.

    Attributes:
        start: Its first character.
        end: The character after its last.
        score: How much of the match it carries, higher is better; `Evidence` has the formula. Comparable within one
            text. 0 where the model has not read it.
    """

    start: int
    end: int
    score: float


@dataclass(frozen=True, slots=True)
class Evidence:
    """Which sentences of a text carry its match with a query.

    A sentence's score is the mean over the query's tokens of the best similarity with one of its tokens (MaxSim within
    the sentence), each query token counted by its lexical weight; and to that is added the sentence's own lexical
    score, the products of the weights of the tokens that it shares with the query. Where only one of the two views is
    there, it decides alone.

    Attributes:
        id: The record's id; "" for a text that is in no store.
        text: The text, to which all offsets refer, in code points as Python counts.
        sentences: All of them, in their order.
        modes: What the scores were read off: "multi_vector" and "lexical", or one of them.
        read_to: How many characters the model has read; less than the text has where it was cut.
    """

    id: str
    text: str
    sentences: tuple[Sentence, ...]
    modes: tuple[Mode, ...]
    read_to: int

    @property
    def best(self) -> Sentence | None:
        """The sentence with the highest score, of equal ones the first; None if there is no sentence."""
        return max(self.sentences, key=lambda sentence: sentence.score, default=None)

    def keep(
        self, *, max_share: float = 0.5, max_characters: int | None = None, neighbours: int = 1
    ) -> list[tuple[int, int]]:
        """Return the passages to keep: first characters and those after the last, in the order of the text.

        The best sentence is always kept. Each chosen one brings those after it, since an answer goes on more often than
        it began before (Landmark Embedding is trained to find the last sentence of an answer for that reason: Luo, Liu,
        Xiao and Liu, 2024, "A chunking-free embedding method for retrieval augmented long-context large language
        models"); then comes the next best. What does not fit any more is left out. Sentences side by side are one
        passage.

        Args:
            max_share: The most of the text's characters to keep, over 0 and up to 1.
            max_characters: The most characters to keep; None for no limit but the share.
            neighbours: How many sentences after a chosen one are preferred to the next best, 0 or more.

        Raises:
            ValueError: If an argument is out of range.
        """
        _check_keeping(max_share, max_characters, neighbours)
        sentences = self.sentences
        room = max_share * len(self.text) if max_characters is None else min(max_share * len(self.text), max_characters)
        order = sorted(range(len(sentences)), key=lambda row: -sentences[row].score)
        kept: set[int] = set()
        for best in order:
            for row in range(best, min(best + neighbours + 1, len(sentences))):
                size = sentences[row].end - sentences[row].start
                if row not in kept and (not kept or size <= room):
                    kept.add(row)
                    room -= size
        return list(self._passages(sorted(kept)))

    def within(self, start: int, end: int) -> Evidence:
        """Return the evidence in a part of the text, with offsets into the part.

        Args:
            start: The part's first character.
            end: The character after its last.
        """
        sentences = (
            Sentence(max(each.start, start) - start, min(each.end, end) - start, each.score)
            for each in self.sentences
            if each.end > start and each.start < end
        )
        read_to = max(min(self.read_to, end) - start, 0)
        return Evidence(self.id, self.text[start:end], tuple(sentences), self.modes, read_to)

    def _passages(self, rows: Sequence[int]) -> Iterator[tuple[int, int]]:
        start = before = -1
        for row in rows:
            if before < 0 or row != before + 1:
                if before >= 0:
                    yield start, self.sentences[before].end
                start = self.sentences[row].start
            before = row
        if before >= 0:
            yield start, self.sentences[before].end


def _check_keeping(max_share: float, max_characters: int | None, neighbours: int) -> None:
    """Raise ValueError if one of the arguments of `Evidence.keep` is out of range."""
    if not 0 < max_share <= 1:
        raise ValueError(f"max_share must be over 0 and up to 1, got {max_share}")
    if max_characters is not None and max_characters < 1:
        raise ValueError(f"max_characters must be at least 1, got {max_characters}")
    if neighbours < 0:
        raise ValueError(f"neighbours must be 0 or more, got {neighbours}")


def find_evidence(
    encoder: Encoder,
    query: str,
    texts: Sequence[str],
    *,
    ids: Sequence[str | None] | None = None,
    store: Store | None = None,
) -> list[Evidence]:
    """Return which sentences of each text carry its match with a query, in the order of the texts.

    Args:
        encoder: Encodes the query, and the texts that the store does not know.
        query: Encoded as a query.
        texts: Of any length.
        ids: The store's id of every text; None for a text that has none.
        store: Where a record has the same id and the same text, its stored vectors are used and nothing is encoded.

    Raises:
        TypeError: If query or a text is no string.
        ValueError: If the store holds another model's vectors, there are not as many ids as texts, or there are dense
            vectors only, which do not say where in a text something is.
    """
    if ids is not None and len(ids) != len(texts):
        raise ValueError(f"{len(texts)} texts, but {len(ids)} ids")
    found: dict[int, Evidence] = {}
    known = {} if ids is None else {row: id_ for row, id_ in enumerate(ids) if id_ is not None}
    if store is not None and known:
        store.bind(encoder.fingerprint)
        for start in range(0, len(known), _RECORDS_AT_ONCE):
            part = list(known.items())[start : start + _RECORDS_AT_ONCE]
            records = {r.id: r for r in store.get([id_ for _, id_ in part], with_vectors=True)}
            rows = [row for row, id_ in part if id_ in records and records[id_].text == texts[row]]
            there = [records[known[row]] for row in rows]
            found |= zip(rows, evidence_of(encoder, query, there), strict=True)
    rest = [row for row in range(len(texts)) if row not in found]
    modes: list[Mode] = [mode for mode in encoder.modes if mode != "dense"]
    _check_modes(modes)
    start = 0
    for vectors in encoder.encode_batches([texts[row] for row in rest], modes=modes):
        rows = rest[start : start + len(vectors)]
        records_here = [Record(known.get(row, ""), texts[row], {}, vectors[i]) for i, row in enumerate(rows)]
        found |= zip(rows, evidence_of(encoder, query, records_here), strict=True)
        start += len(rows)
    return [found[row] for row in range(len(texts))]


def stored_evidence(encoder: Encoder, store: Store, query: str, ids: Sequence[str]) -> list[Evidence]:
    """Return which sentences of stored records carry their match with a query, in the order of the ids.

    Raises:
        KeyError: If there is no such record.
        ValueError: If there are dense vectors only.
    """
    found: dict[str, Evidence] = {}
    for start in range(0, len(ids), _RECORDS_AT_ONCE):
        records = store.get(list(dict.fromkeys(ids[start : start + _RECORDS_AT_ONCE])), with_vectors=True)
        found |= {each.id: each for each in evidence_of(encoder, query, records)}
    if absent := [id_ for id_ in ids if id_ not in found]:
        raise KeyError(f"no record {absent[0]!r}")
    return [found[id_] for id_ in ids]


def evidence_of(encoder: Encoder, query: str, records: Sequence[Record]) -> list[Evidence]:
    """Return which sentences of records carry their match with a query, from the vectors that came with them.

    Raises:
        ValueError: If a record has no vectors, or dense ones only.
    """
    if not records:
        return []
    vectors = encoder.encode([query], kind="query")
    (words,) = encoder.tokenize([query], kind="query")
    read = read_tokens(encoder, records)
    return [_evidence(vectors, words, record, tokens) for record, tokens in zip(records, read, strict=True)]


def _evidence(query: M3Vectors, words: Sequence[str], record: Record, read: ReadTokens) -> Evidence:
    if record.vectors is None:
        raise ValueError(f"record {record.id!r} came without vectors: get it with with_vectors=True")
    modes: tuple[Mode, ...] = tuple(m for m in record.vectors.modes if m != "dense" and m in query.modes)
    _check_modes(modes)
    tokens, spans = read.tokens, read.spans
    places = sentence_spans(record.text)
    # (tokens,) which sentence each stands in; a token before the first sentence is of the first.
    owners = np.maximum(np.searchsorted([start for start, _ in places], spans[:, 0], side="right") - 1, 0)
    scores = np.zeros(len(places))
    if places and len(tokens):
        if "multi_vector" in modes:
            scores += _best_by_sentence(query, words, token_vectors(record.vectors, len(tokens)), owners, len(places))
        if "lexical" in modes:
            scores += _lexical_by_sentence(query, record.vectors, tokens, owners, len(places))
    sentences = (Sentence(*place, score) for place, score in zip(places, scores.tolist(), strict=True))
    return Evidence(record.id, record.text, tuple(sentences), modes, read.read_to)


@dataclass(frozen=True, slots=True, eq=False)
class ReadTokens:
    """What the model has read of a text.

    Attributes:
        tokens: The tokens that its vectors were made of, [SEP] left out.
        spans: (tokens, 2) int64, the first character of each and the one after its last.
        read_to: How many characters were read.
    """

    tokens: list[str]
    spans: IntArray
    read_to: int


def read_tokens(encoder: Encoder, records: Sequence[Record]) -> list[ReadTokens]:
    """Return what was read of records, without a pass of the network.

    A record may have been cut at another limit than this encoder's. How long it was shows in the number of its token
    vectors; where these are pooled, or there are none, the limit is taken to be the same.
    """
    lengths = [_n_read(record) for record in records]
    found: dict[int, ReadTokens] = {}
    for limit in (NO_LIMIT, None):
        rows = [row for row, n in enumerate(lengths) if (n is None) is (limit is None)]
        texts = [records[row].text for row in rows]
        if texts:
            tokens = encoder.tokenize(texts, max_length=limit)
            spans = encoder.token_spans(texts, max_length=limit)
            for row, text, words, places in zip(rows, texts, tokens, spans, strict=True):
                found[row] = _cut(text, words, places, lengths[row])
    return [found[row] for row in range(len(records))]


def _n_read(record: Record) -> int | None:
    """Return how many tokens a record's vectors stand for, [SEP] included; None where they do not tell."""
    if record.vectors is None or record.is_pooled or "multi_vector" not in record.vectors.modes:
        return None
    return len(record.vectors.multi_vector[0])


def _cut(text: str, tokens: list[str], spans: IntArray, n_read: int | None) -> ReadTokens:
    n = (len(tokens) if n_read is None else min(n_read, len(tokens))) - 1
    end = int(spans[n - 1, 1]) if n > 0 else 0
    is_whole = n == len(tokens) - 1 and not text[end:].strip()
    return ReadTokens(tokens[:n], spans[:n], len(text) if is_whole else end)


def token_vectors(vectors: M3Vectors, n: int) -> FloatArray:
    """Return a vector for each of n tokens of a record, (n, d) float32; pooled tokens share theirs."""
    rows = vectors.multi_vector[0]
    if len(rows) > n:  # the last is [SEP]'s
        return rows[:n]
    return rows[np.searchsorted(group_starts(n + 1, len(rows)), np.arange(n), side="right") - 1]


def _best_by_sentence(
    query: M3Vectors, words: Sequence[str], vectors: FloatArray, owners: IntArray, n: int
) -> NDArray[np.float64]:
    """Return the weighted mean over query tokens of their best similarity with a token of each sentence: (n,)."""
    weights = np.ones(len(words))
    if "lexical" in query.modes:
        of_query = dict(zip(query.lexical[0].token_names(), query.lexical[0].values.tolist(), strict=True))
        weights = np.array([of_query.get(word, 0.0) for word in words])
    if not weights.any():
        weights = np.ones(len(words))
    similarities = query.multi_vector[0] @ vectors.T  # (query tokens, tokens)
    there, starts = np.unique(owners, return_index=True)
    best = np.zeros((len(words), n))
    best[:, there] = np.maximum.reduceat(similarities, starts, axis=1)
    return np.asarray(weights @ best / weights.sum(), dtype=np.float64)


def _lexical_by_sentence(
    query: M3Vectors, document: M3Vectors, tokens: Sequence[str], owners: IntArray, n: int
) -> NDArray[np.float64]:
    """Return the lexical score of each sentence, (n,): products of the weights of shared tokens, each token once."""
    of_query, of_document = query.lexical[0], document.lexical[0].to_dict()
    products = {
        name: value * of_document[index]
        for index, value, name in zip(
            of_query.indices.tolist(), of_query.values.tolist(), of_query.token_names(), strict=True
        )
        if index in of_document
    }
    scores = np.zeros(n)
    for owner, token in dict.fromkeys(zip(owners.tolist(), tokens, strict=True)):
        scores[owner] += products.get(token, 0.0)
    return scores


def _check_modes(modes: Sequence[Mode]) -> None:
    if not modes:
        raise ValueError(
            "there are dense vectors only, one for a whole text: where in it something is, lexical weights or a "
            "multi-vector say"
        )
