"""Reading passages from a file, and adding each of them to a store once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final

from m3_integrations.search import Searcher, SearchOptions
from m3_integrations.store import Store
from m3_integrations.vectors import Encoder
from m3_integrations.vectors.texts import titled_text

_CHUNK: Final = 1000
"""The passages that are looked up and added at a time."""


def read_passages(path: Path, *, titles: bool = True) -> Iterator[str]:
    """Yield the texts of a file with a JSON object in each line, such as corpus.jsonl in BEIR's layout.

    Args:
        path: The file. Every object has "text", and optionally "title".
        titles: Whether a title and a space are put before the text, as BEIR joins them.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If a line is not such an object.
    """
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    yield _parse(json.loads(line.decode("utf-8-sig")), titles=titles)
                except (ValueError, RecursionError) as error:
                    raise ValueError(f"{path}, line {number}: {error}") from error


def _parse(row: Any, *, titles: bool) -> str:
    text = titled_text(row if isinstance(row, dict) else {}, titles=titles)
    text.encode()  # half a surrogate pair raises ValueError here, instead of later in the tokenizer
    return text


def passage_id(text: str) -> str:
    """Return the id of a text: its hash, 32 hexadecimal digits."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def index_passages(encoder: Encoder, store: Store, texts: Iterable[str], *, show_progress: bool = False) -> int:
    """Add every text to a store once, under `passage_id`; a text that is stored already is not encoded again.

    So a call that was killed continues when it is repeated.

    Args:
        encoder: Encodes the texts in every mode that it has a head for and the store keeps.
        store: The store of the passages.
        texts: The texts; read once, some at a time. Blank ones are left out.
        show_progress: Whether to draw a progress bar for every thousand.

    Returns:
        The number of texts that were added.

    Raises:
        ValueError: If the store has another model's vectors.
    """
    store.bind(encoder.fingerprint)
    searcher = Searcher(encoder, store, SearchOptions(mode="dense"))  # "all" would warn of absent heads
    added, unread = 0, iter(texts)
    while chunk := list(islice(unread, _CHUNK)):
        found = {passage_id(text): text for text in chunk if text.strip()}
        there = {record.id for record in store.get(list(found))}
        new = {id_: text for id_, text in found.items() if id_ not in there}
        if new:
            searcher.add(new.values(), ids=new, show_progress=show_progress)
        added += len(new)
    return added
