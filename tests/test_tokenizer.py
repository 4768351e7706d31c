from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer

from m3_integrations.checkpoint import load_tokenizer
from m3_integrations.tokenizer import MCLS_INTERVAL, Tokenizer
from tests.golden.texts import TEXTS


@pytest.mark.parametrize("max_length", [3, 4, 17, 128])
def test_ids_equal_those_of_transformers_at_every_limit(small: Path, max_length: int) -> None:
    reference = AutoTokenizer.from_pretrained(small)
    expected = [reference(text, truncation=True, max_length=max_length)["input_ids"] for text in TEXTS]
    tokens = load_tokenizer(small)(TEXTS, max_length=max_length)
    assert [text.ids.tolist() for text in tokens] == expected
    assert [text.is_truncated for text in tokens] == [len(reference(t)["input_ids"]) > max_length for t in TEXTS]


@pytest.mark.parametrize("max_length", [100, 257, 258, 259, 260, 515, 516, 517, 2000])
def test_mcls_puts_a_cls_before_every_interval_within_the_limit(small: Path, max_length: int) -> None:
    tokenizer = load_tokenizer(small)
    text = " ".join(f"word{i}" for i in range(900))
    plain = tokenizer([text], max_length=10**6)[0].ids.tolist()[1:-1]
    (tokens,) = tokenizer([text], max_length=max_length, pooling="mcls")
    positions = tokens.cls_positions.tolist()
    ids = tokens.ids.tolist()
    assert positions == list(range(0, len(ids) - 1, MCLS_INTERVAL + 1))
    assert all(ids[i] == 0 for i in positions)
    kept = [token for i, token in enumerate(ids[:-1]) if i not in positions]
    assert kept == plain[: len(kept)]
    # As long as the limit allows: one more token would not fit, and a [CLS] never stands without text behind it.
    assert len(ids) == min(
        max_length - (max_length % 257 == 2 and max_length > 2), len(plain) + -(-len(plain) // 256) + 1
    )
    assert ids[-1] == 2


def test_mcls_of_a_short_text_is_its_cls_form(small: Path) -> None:
    tokenizer = load_tokenizer(small)
    for text in ("", "a b c"):
        (plain,), (marked,) = tokenizer([text], max_length=50), tokenizer([text], max_length=50, pooling="mcls")
        assert plain.ids.tolist() == marked.ids.tolist()
        assert marked.n_cls == 1


def test_a_limit_without_room_for_text_is_refused(small: Path) -> None:
    with pytest.raises(ValueError, match="at least 3, got 2"):
        load_tokenizer(small)(["a"], max_length=2)


def test_a_slow_tokenizer_is_refused() -> None:
    with pytest.raises(TypeError, match="fast tokenizer"):
        Tokenizer(SimpleNamespace(is_fast=False))


def test_the_vocabulary_names_every_id(small: Path) -> None:
    tokenizer = load_tokenizer(small)
    assert tokenizer.vocabulary[:4] == ("<s>", "<pad>", "</s>", "<unk>")
    assert tokenizer.vocabulary[-1] == "<mask>"
    assert tokenizer.ignored_ids.tolist() == [0, 2, 1, 3]
