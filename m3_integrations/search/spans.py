"""The sentences of a text that match a query best, computed from vectors that exist already."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from m3_integrations.search.reading import ReadTokens, read_tokens, token_vectors
from m3_integrations.search.sentences import sentence_spans
from m3_integrations.store import Record, Store
from m3_integrations.vectors import Encoder, FloatArray, IntArray, M3Vectors, Mode

_RECORDS_AT_ONCE: Final = 16
"""The most records with vectors in memory at a time: one of 8,192 tokens takes 32 MB."""


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence of a text.

    Attributes:
        start: Its first character.
        end: The character after its last.
        score: Its match with the query, higher is better; `Evidence` has the formula. Comparable within one text. 0 if
            the model has not read the sentence.
    """

    start: int
    end: int
    score: float


@dataclass(frozen=True, slots=True)
class Evidence:
    """The sentences of a text, each scored by its match with a query.

    A sentence's score is the sum of two parts. The first is MaxSim within the sentence: for each query token the best
    similarity with a token of the sentence, averaged with the query tokens' lexical weights. The second is the
    sentence's lexical score: the sum over shared tokens of the product of their two weights. If only one of the two
    modes exists, its part is the score.

    Attributes:
        id: The record's id; "" for a text that is in no store.
        text: The text. All offsets count its code points, as Python does.
        sentences: All sentences, in their order.
        modes: The modes of the scores: "multi_vector" and "lexical", or one of them.
        read_to: The number of characters that the model has read; less than the text's length if it was cut.
    """

    id: str
    text: str
    sentences: tuple[Sentence, ...]
    modes: tuple[Mode, ...]
    read_to: int

    @property
    def best(self) -> Sentence | None:
        """The sentence with the highest score, of equal ones the first; None if there is no sentence.

        A sentence that the model has not read comes after all that it has read, whose scores may be below 0.
        """
        return max(self.sentences, key=self._rank, default=None)

    def keep(
        self,
        *,
        max_share: float = 0.5,
        max_characters: int | None = None,
        neighbours: int = 1,
        separator_characters: int = 0,
    ) -> list[tuple[int, int]]:
        """Return the start and the end (exclusive) of the passages to keep, in the order of the text.

        The best sentence is always kept, then the `neighbours` sentences after it, then the next best sentence with
        its neighbours, and so on. Sentences that the model has not read come last. A sentence that does not fit is left
        out. Adjacent sentences become one passage with the white space between them, which counts as kept.

        The sentences after a chosen one are kept because an answer more often goes on after it than begins before it.
        Landmark Embedding is trained to find the last sentence of an answer for the same reason: Luo, Liu, Xiao and
        Liu, 2024, "A chunking-free embedding method for retrieval augmented long-context large language models".

        Args:
            max_share: The largest share of the text's characters to keep, over 0 and up to 1.
            max_characters: The most characters to keep; None for no limit but the share.
            neighbours: The number of sentences after a chosen one that come before the next best, 0 or more.
            separator_characters: The number of characters that the caller writes between two passages, 0 or more. They
                count as kept.

        Raises:
            ValueError: If an argument is out of range.
        """
        _check_keeping(max_share, max_characters, neighbours, separator_characters)
        sentences = self.sentences
        room = max_share * len(self.text) if max_characters is None else min(max_share * len(self.text), max_characters)
        if sentences and sentences[-1].end - sentences[0].start <= room:
            return [(sentences[0].start, sentences[-1].end)]  # all, even if separators would be longer than the gaps
        kept: set[int] = set()
        for best in sorted(range(len(sentences)), key=lambda row: self._rank(sentences[row]), reverse=True):
            for row in range(best, min(best + neighbours + 1, len(sentences))):
                if row not in kept and (not kept or self._cost(row, kept, separator_characters) <= room):
                    room -= self._cost(row, kept, separator_characters)
                    kept.add(row)
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

    def _rank(self, sentence: Sentence) -> tuple[bool, float]:
        """Return a key that is larger for a better sentence: the score 0 of an unread one means nothing."""
        return sentence.start < self.read_to, sentence.score

    def _cost(self, row: int, kept: Set[int], separator_characters: int) -> int:
        """Return the number of characters by which a sentence lengthens what is kept, below 0 if it saves separators.

        A sentence without a kept one beside it needs a separator; one between two kept ones replaces a separator.
        """
        first = self.sentences[row - 1].end if row - 1 in kept else self.sentences[row].start
        last = self.sentences[row + 1].start if row + 1 in kept else self.sentences[row].end
        n_separators = 1 - len({row - 1, row + 1} & kept) if kept else 0
        return last - first + n_separators * separator_characters

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


def _check_keeping(max_share: float, max_characters: int | None, neighbours: int, separator_characters: int) -> None:
    """Raise ValueError if one of the arguments of `Evidence.keep` is out of range."""
    if not 0 < max_share <= 1:
        raise ValueError(f"max_share must be over 0 and up to 1, got {max_share}")
    if max_characters is not None and max_characters < 1:
        raise ValueError(f"max_characters must be at least 1, got {max_characters}")
    if neighbours < 0:
        raise ValueError(f"neighbours must be 0 or more, got {neighbours}")
    if separator_characters < 0:
        raise ValueError(f"separator_characters must be 0 or more, got {separator_characters}")


def find_evidence(
    encoder: Encoder,
    query: str,
    texts: Sequence[str],
    *,
    ids: Sequence[str | None] | None = None,
    store: Store | None = None,
) -> list[Evidence]:
    """Return the scored sentences of each text, in the order of the texts.

    Args:
        encoder: Encodes the query, and the texts that the store does not have.
        query: Encoded as a query.
        texts: Texts of any length.
        ids: The store's id of every text; None for a text without an id.
        store: If its record with a text's id has the same text, the record's vectors are used instead of encoding the
            text.

    Raises:
        TypeError: If query or a text is not a string.
        ValueError: If the store holds another model's vectors, there are not as many ids as texts, or there are only
            dense vectors, which stand for a text as a whole and not for its sentences.
    """
    if ids is not None and len(ids) != len(texts):
        raise ValueError(f"every text needs one id or None, got {len(texts)} texts and {len(ids)} ids")
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
    """Return the scored sentences of stored records, in the order of the ids.

    Raises:
        KeyError: If the store has no record with one of the ids.
        ValueError: If there are only dense vectors.
    """
    found: dict[str, Evidence] = {}
    for start in range(0, len(ids), _RECORDS_AT_ONCE):
        records = store.get(list(dict.fromkeys(ids[start : start + _RECORDS_AT_ONCE])), with_vectors=True)
        found |= {each.id: each for each in evidence_of(encoder, query, records)}
    if absent := [id_ for id_ in ids if id_ not in found]:
        raise KeyError(f"no record {absent[0]!r}")
    return [found[id_] for id_ in ids]


def evidence_of(encoder: Encoder, query: str, records: Sequence[Record]) -> list[Evidence]:
    """Return the scored sentences of records, from the vectors in these records.

    Raises:
        ValueError: If a record has no vectors, or only dense ones.
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
    # (tokens,) the row of each token's sentence; a token before the first sentence counts for the first.
    owners = np.maximum(np.searchsorted([start for start, _ in places], spans[:, 0], side="right") - 1, 0)
    scores = np.zeros(len(places))
    if places and len(tokens):
        if "multi_vector" in modes:
            scores += _best_by_sentence(query, words, token_vectors(record.vectors, len(tokens)), owners, len(places))
        if "lexical" in modes:
            scores += _lexical_by_sentence(query, record.vectors, tokens, owners, len(places))
    sentences = (Sentence(*place, score) for place, score in zip(places, scores.tolist(), strict=True))
    return Evidence(record.id, record.text, tuple(sentences), modes, read.read_to)


def _best_by_sentence(
    query: M3Vectors, words: Sequence[str], vectors: FloatArray, owners: IntArray, n: int
) -> NDArray[np.float64]:
    """Return for each sentence, (n,), the weighted mean of the query tokens' best similarity with one of its tokens."""
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
    """Return each sentence's lexical score, (n,): the products of shared tokens' weights, each token counted once."""
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
            "scoring the sentences of a text needs lexical weights or a multi-vector, but the vectors are only dense"
        )
