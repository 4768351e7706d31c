import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

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


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word"])
def test_a_special_token_is_found_as_the_settings_say_whatever_its_file_says(
    flag: str, small: Path, tmp_path: Path
) -> None:
    """BGE-M3's settings say that <mask> takes the blanks before it; not every tokenizer.json of its kind does."""
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((small / name).read_bytes())
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    flags = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False, flag: True}
    settings["mask_token"] = {"__type": "AddedToken", "content": "<mask>", **flags}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    texts = ["a <mask> b", "the  <mask>\n", "the<mask> key", "<mask>the"]
    reference, tokenizer = AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)
    assert [text.ids.tolist() for text in tokenizer(texts, max_length=99)] == [
        reference(text)["input_ids"] for text in texts
    ]
    # Without transformers' code only where the flag changes nothing.
    assert isinstance(tokenizer.source, PreTrainedTokenizerBase) == (flag == "single_word")


def test_blanks_are_split_at_whatever_the_file_says_of_them(small: Path, tmp_path: Path) -> None:
    """As transformers does with files that were made of sentencepiece's, which have another way with blanks."""
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((small / name).read_bytes())
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    runs = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
    content["normalizer"] = {"type": "Sequence", "normalizers": [runs, content["normalizer"]]}
    content["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    texts = ["the key ", " the", "the\n\nkey\n", "the <mask> key", "a\u0085b", "ＫＥＹ ½", ""]
    expected = [text.ids.tolist() for text in load_tokenizer(small)(texts, max_length=99)]
    assert [text.ids.tolist() for text in load_tokenizer(tmp_path)(texts, max_length=99)] == expected
    reference = AutoTokenizer.from_pretrained(tmp_path)
    assert [reference(text)["input_ids"] for text in texts] == expected


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
    # The text is as long as the limit allows: no further token fits, and every [CLS] has text behind it.
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
