"""Which texts share a forward pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence


def plan_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Group texts of similar length, longest first, so that a padded batch holds at most max_tokens tokens.

    A text longer than max_tokens is a batch of its own. Longest first, so that what needs the most memory fails at
    the start of a long run and not at its end.

    Args:
        lengths: Tokens of every text.
        max_tokens: Budget of a batch in tokens, padding included: its rows times its longest text.

    Returns:
        Batches of positions in lengths; every position is in exactly one.

    Raises:
        ValueError: If max_tokens is less than 1.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, got {max_tokens}")
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= max_tokens:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def windows(texts: Iterable[str], *, max_texts: int, max_tokens: int, max_length: int) -> Iterator[list[str]]:
    """Cut a stream of texts into lists whose vectors fit in bounded memory.

    A text counts as one token per character, which few texts exceed, and never as more than max_length.

    Args:
        texts: Any iterable; it is read only as far as the lists are taken.
        max_texts: The most texts in a list.
        max_tokens: The most tokens that a list may count; a text that counts more is a list of its own.
        max_length: The length limit of one text, in tokens.
    """
    window: list[str] = []
    tokens = 0
    for text in texts:
        cost = min(len(text), max_length) if isinstance(text, str) else 1  # a wrong type is the encoder's to refuse
        if window and (len(window) == max_texts or tokens + cost > max_tokens):
            yield window
            window, tokens = [], 0
        window.append(text)
        tokens += cost
    if window:
        yield window
