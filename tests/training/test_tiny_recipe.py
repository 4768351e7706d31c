"""The parts of the recipe of `tiny`, on a handful of texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from m3_integrations import M3Encoder
from m3_integrations.checkpoint import load_tokenizer
from tests.tiny_recipe.bag import Bag, inverse_document_frequencies, train_bag
from tests.tiny_recipe.descriptions import Description, read_descriptions, split_sentences
from tests.tiny_recipe.pairs import make_check, make_pairs, write_pairs
from tests.tiny_recipe.recipe import TinySettings, make_tiny
from tests.tiny_recipe.start import FACTS, make_config, save_bag_start

LIST = """\
Package: anchor
Description-md5: 11
Description-xx: keeps a boat in its place
 An anchor is thrown into
 the water. It holds.
 .
 It comes with a chain.

Package: anchor-doc
Description-md5: 11
Description-xx: the same text again
 An anchor is thrown into the water. It holds.
 .
 It comes with a chain.

Package: empty
Description-md5: 12
Description-xx: no long text
"""


def descriptions(count: int) -> list[Description]:
    return [
        Description(f"package{i} {i}", language, f"{language} short {i}", (f"first word{i} in {language}. Second.",))
        for i in range(count)
        for language in ("en", "de", "zh_CN")
    ]


def test_a_list_of_apt_is_read_and_a_repeated_text_counts_once(tmp_path: Path) -> None:
    (tmp_path / "some_i18n_Translation-xx").write_text(LIST)
    assert read_descriptions(tmp_path) == [
        Description(
            "anchor 11",
            "xx",
            "keeps a boat in its place",
            ("An anchor is thrown into the water. It holds.", "It comes with a chain."),
        )
    ]


def test_sentences_end_at_stops_of_either_width() -> None:
    assert split_sentences("One is here. Two? And * Three") == ["One is here.", "Two?", "And", "Three"]
    assert split_sentences("第一句。第二句") == ["第一句。", "第二句"]


def test_pairs_are_the_same_for_the_same_seed_and_never_of_a_held_out_text(tmp_path: Path) -> None:
    data = descriptions(200)
    pairs = make_pairs(data, seed=1)
    held_out = {description.long for description in data if description.is_held_out}
    assert pairs == make_pairs(data, seed=1) != make_pairs(data, seed=2)
    assert 3 <= len(held_out) <= 40
    assert not held_out & {pair.passage for pair in pairs}
    assert {pair.passage for pair in make_check(data, seed=1, size=5)} <= held_out
    write_pairs(tmp_path / "pairs.jsonl", pairs)
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert rows[0] == {"query": pairs[0].query, "pos": [pairs[0].passage], "neg": []}
    assert len(rows) == len(pairs)


def test_inverse_document_frequencies_by_hand() -> None:
    texts = [np.array(ids, dtype=np.int32) for ids in ([0, 0, 1], [0], [0, 2])]
    expected = np.log(4 / np.array([4, 2, 2, 1]))
    np.testing.assert_allclose(inverse_document_frequencies(texts, 4), expected)


def test_the_bag_learns_which_tokens_tell_texts_apart() -> None:
    # Token 0 is in every query and in no passage; token i + 1 names pair i.
    queries = [np.array([0, i + 1], dtype=np.int32) for i in range(8)]
    passages = [np.array([i + 1, 9 + i % 2], dtype=np.int32) for i in range(8)]
    losses: list[float] = []
    bag = train_bag(
        queries, passages, np.ones(11), dim=16, seed=0, steps=201, batch_size=8, learning_rate=0.05,
        report=lambda step, loss, bag: losses.append(loss),
    )  # fmt: skip
    assert losses[-1] < losses[0] / 10
    assert bag.logits[0] < bag.logits[1:9].min()
    torch.testing.assert_close(bag.vectors.norm(dim=1), torch.ones(11))


def test_the_start_computes_the_bag(small: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(small)
    size, width = len(tokenizer.vocabulary), 128
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(size, width - FACTS, generator=generator)
    vectors = vectors - vectors.mean(dim=1, keepdim=True)
    bag = Bag(vectors / vectors.norm(dim=1, keepdim=True), torch.randn(size, generator=generator))
    idf = np.linspace(0.1, 9, size)
    config = make_config(size, hidden_size=width, layers=2, max_length=64)
    save_bag_start(tmp_path / "start", small, config, bag, idf, seed=0)
    texts = ["Salt makes water boil at a higher temperature.", "The museum is closed on Mondays.", "a"]
    with M3Encoder(tmp_path / "start", shared=False, device="cpu") as encoder:
        encoded = encoder.encode(texts)
    for row, tokens in enumerate(tokenizer(texts, max_length=64)):
        ids = torch.from_numpy(tokens.ids[1:-1]).long()
        expected = (bag.logits[ids].exp()[:, None] * bag.vectors[ids]).sum(dim=0)
        got = torch.from_numpy(encoded.dense[row][FACTS:])
        assert torch.cosine_similarity(expected, got, dim=0) > 0.98  # the rest is the layers' small random part
        lexical = encoded.lexical[row]
        if len(lexical) > 2:
            assert np.corrcoef(lexical.values, np.sqrt(idf[lexical.indices]))[0, 1] > 0.98


def test_a_language_without_question_words_still_gives_queries() -> None:
    data = [Description(f"p{i} 1", "xx", "short", ("one two three four five six.",)) for i in range(20)]
    pairs = make_pairs(data, seed=0)
    assert all(pair.query for pair in pairs)


@pytest.mark.slow
def test_the_recipe_goes_on_where_it_was_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut off while it saves the random network, the start, the result of training, and the bundled checkpoint."""
    out, lists = tmp_path / "tiny", tmp_path / "work" / "lists"
    lists.mkdir(parents=True)
    entries = [
        f"Package: p{i}\nDescription-md5: {i}\nDescription-en: a short text {i}\n The word{i % 9} is first. "
        f"Then comes number{i} of all.\n"
        for i in range(60)
    ]
    (lists / "x_i18n_Translation-en").write_text("\n".join(entries))
    settings = TinySettings(
        vocab_size=3820, hidden_size=64, layers=1, max_length=64, bag_pairs=40, bag_steps=2, steps=2, batch_size=4
    )
    save, saved = torch.save, list[str]()

    def cut_off(state: Any, path: Any, *arguments: Any, **settings: Any) -> None:
        folder = Path(path).parent.parent.name  # its own is where a checkpoint is written before it is moved
        if Path(path).name == "sparse_linear.pt" and folder not in saved:
            saved.append(folder)
            raise KeyboardInterrupt
        save(state, path, *arguments, **settings)

    monkeypatch.setattr(torch, "save", cut_off)
    for _ in range(5):
        with pytest.raises(KeyboardInterrupt):
            make_tiny(out, tmp_path / "work", settings)
    make_tiny(out, tmp_path / "work", settings)
    assert saved == ["random", "start", "checkpoint-2", "final", "tiny"]
    with M3Encoder(out, shared=False, device="cpu") as encoder:
        assert encoder.modes == ("dense", "lexical", "multi_vector")
    with pytest.raises(FileExistsError, match="holds a checkpoint already"):
        make_tiny(out, tmp_path / "work", settings)
