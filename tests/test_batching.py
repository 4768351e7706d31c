import numpy as np
import pytest

from m3_integrations.batching import plan_batches, windows


def test_texts_of_similar_length_share_a_batch_longest_first() -> None:
    assert plan_batches([2, 9, 3, 10, 1], 20) == [[3, 1], [2, 0, 4]]


def test_equal_lengths_keep_their_order() -> None:
    assert plan_batches([4, 4, 4], 8) == [[0, 1], [2]]


def test_a_text_over_the_budget_is_a_batch_of_its_own() -> None:
    assert plan_batches([50, 1, 1], 10) == [[0], [1, 2]]
    assert plan_batches([], 10) == []


def test_every_text_is_planned_once_and_no_batch_exceeds_the_budget() -> None:
    random = np.random.default_rng(0)
    lengths = np.clip(np.exp(random.normal(4.4, 0.85, 1000)), 8, 512).astype(int).tolist()
    batches = plan_batches(lengths, 1024)
    assert sorted(i for batch in batches for i in batch) == list(range(1000))
    padded = [len(batch) * max(lengths[i] for i in batch) for batch in batches]
    assert max(padded) <= 1024
    assert sum(padded) < 1.1 * sum(lengths)


def test_a_budget_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        plan_batches([1], 0)


def test_windows_hold_bounded_texts_and_tokens_and_keep_the_order() -> None:
    texts = ["aaa", "bb", "c" * 100, "d", "e", "f"]
    limits = {"max_texts": 2, "max_tokens": 8, "max_length": 6}
    assert list(windows(texts, **limits)) == [["aaa", "bb"], ["c" * 100, "d"], ["e", "f"]]
    assert list(windows([], **limits)) == []
    assert list(windows(["g" * 50, "h" * 50], max_texts=9, max_tokens=8, max_length=90)) == [["g" * 50], ["h" * 50]]


def test_windows_read_no_further_than_they_must() -> None:
    taken = []

    def stream() -> object:
        for i in range(100):
            taken.append(i)
            yield "x"

    next(windows(stream(), max_texts=3, max_tokens=99, max_length=9))  # type: ignore[arg-type]
    assert len(taken) == 4
