"""RetroMAE: its loss, its masks, its texts."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import XLMRobertaConfig, XLMRobertaForMaskedLM

from m3_integrations.checkpoint import load_tokenizer
from m3_integrations.training import retromae
from m3_integrations.training.masking import MaskedBatches, read_texts
from m3_integrations.training.retromae import RetroMAENetwork

TEXTS = [
    "The ferry is late.",
    "Salt, water and salt again in the old harbour",
    "no",
    "Nobody in the village remembers it",
]


def batches_of(folder: Path, texts: list[str] = TEXTS, **settings: Any) -> MaskedBatches:
    settings = {"encoder_mask": 0.3, "decoder_mask": 0.5, "batch_size": 4, "steps": 50, "seed": 0} | settings
    return MaskedBatches(texts, load_tokenizer(folder), max_length=40, **settings)


def network_of(folder: Path) -> RetroMAENetwork:
    torch.manual_seed(0)
    network = RetroMAENetwork.load(folder).double().eval()
    for layer in network.modules():  # so that biases and norms count
        if isinstance(layer, torch.nn.LayerNorm | torch.nn.Linear):
            torch.nn.init.normal_(layer.bias, std=0.3)
    torch.nn.init.normal_(network.token_head.bias, std=0.5)
    return network


def array(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    return tensor.detach().numpy()


def norm(x: Any, layer: Any) -> Any:
    x = x - x.mean()
    return x / math.sqrt((x * x).mean() + layer.eps) * array(layer.weight) + array(layer.bias)


def linear(x: Any, layer: Any) -> Any:
    return array(layer.weight) @ x + array(layer.bias)


def gelu(x: Any) -> Any:
    return np.array([value * 0.5 * (1 + math.erf(value / math.sqrt(2))) for value in x])


def cross_entropy(network: RetroMAENetwork, hidden: Any, right: int) -> float:
    head, words = network.token_head, array(network._embeddings.word_embeddings.weight)
    logits = words @ norm(gelu(linear(hidden, head.dense)), head.layer_norm) + array(head.bias)
    return float(np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[right])


def embed(network: RetroMAENetwork, vector: Any, place: int) -> Any:
    tables = network._embeddings
    position = array(tables.position_embeddings.weight)[tables.padding_idx + 1 + place]
    return norm(vector + position + array(tables.token_type_embeddings.weight)[0], tables.LayerNorm)


def decode(network: RetroMAENetwork, sentence: Any, ids: list[int], place: int, seen: list[int]) -> Any:
    """The decoder's hidden state of one token, from [CLS] and the tokens at the places that it sees."""
    layer, words = network.decoder, array(network._embeddings.word_embeddings.weight)
    query_state = embed(network, sentence, place)
    context = {at: sentence if at == 0 else embed(network, words[ids[at]], at) for at in seen}
    heads = []
    width = len(sentence) // layer.n_heads
    for head in range(layer.n_heads):
        part = slice(head * width, (head + 1) * width)
        query = linear(query_state, layer.query)[part]
        scores = {at: linear(state, layer.key)[part] @ query / math.sqrt(width) for at, state in context.items()}
        total = sum(math.exp(score) for score in scores.values())
        heads.append(sum(math.exp(scores[at]) / total * linear(context[at], layer.value)[part] for at in seen))
    hidden = norm(query_state + linear(np.concatenate(heads), layer.output), layer.attention_norm)
    return norm(hidden + linear(gelu(linear(hidden, layer.widen)), layer.narrow), layer.norm)


def test_the_loss_equals_a_form_worked_one_token_and_one_head_at_a_time(small: Path) -> None:
    network, batch = network_of(small), batches_of(small)[0]
    got = network(**batch)
    encoder, decoder = [], []
    for row in range(4):
        count = int(batch["attention_mask"][row].sum())
        ids = batch["input_ids"][row, :count].tolist()
        with torch.no_grad():  # alone, so without padding
            hidden = array(network.backbone(input_ids=batch["masked_ids"][row : row + 1, :count]).last_hidden_state[0])
        for place in range(count):
            if batch["is_masked"][row, place]:
                encoder.append(cross_entropy(network, hidden[place], ids[place]))
            if batch["is_text"][row, place]:
                seen = [at for at in range(count) if batch["visible"][row, place, at]]
                decoded = decode(network, hidden[0], ids, place, seen)
                decoder.append(cross_entropy(network, decoded, ids[place]))
    assert len(encoder) >= 4
    assert len(decoder) > 20
    assert got.encoder.item() == pytest.approx(np.mean(encoder), rel=1e-9)
    assert got.decoder.item() == pytest.approx(np.mean(decoder), rel=1e-9)
    assert got.total.item() == pytest.approx(np.mean(encoder) + np.mean(decoder), rel=1e-9)


def test_a_token_is_predicted_without_itself(small: Path) -> None:
    network, batch = network_of(small), batches_of(small)[0]
    decoded = []
    network.decoder.register_forward_hook(lambda module, given, result: decoded.append(result.detach()))
    row, place = 0, int(batch["is_masked"][0].nonzero()[0])
    network(**batch)
    batch["input_ids"][row, place] = int(batch["input_ids"][1, 1])
    network(**batch)
    before, after = decoded
    assert before[row, place].equal(after[row, place])
    readers = batch["visible"][row, :, place].nonzero().flatten().tolist()
    assert readers
    assert all(not before[row, reader].equal(after[row, reader]) for reader in readers)


def test_logits_a_part_at_a_time_give_the_same_loss_and_gradients(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for tokens in (1024, 3):
        monkeypatch.setattr(retromae, "_TOKENS_AT_A_TIME", tokens)
        network = network_of(small)
        loss = network(**batches_of(small)[0]).total
        loss.backward()
        trained = {name: weight for name, weight in network.named_parameters() if weight.requires_grad}
        results.append((loss.item(), {name: weight.grad for name, weight in trained.items()}))
    (expected, gradients), (got, others) = results
    assert got == pytest.approx(expected, rel=1e-12)
    for name, gradient in gradients.items():
        assert gradient is not None
        torch.testing.assert_close(others[name], gradient, atol=1e-10, rtol=1e-10)


def test_masks_have_their_parts_and_spare_the_special_tokens(small: Path) -> None:
    batches = batches_of(small, decoder_mask=0.7)
    tokenizer = load_tokenizer(small)
    shares = []
    for step in range(50):
        batch = batches[step]
        ids, is_real = batch["input_ids"], batch["attention_mask"].bool()
        is_special = torch.isin(ids, torch.from_numpy(tokenizer.ignored_ids))
        assert batch["is_text"].equal(is_real & ~is_special)
        expected = [max(1, round(0.3 * count)) for count in batch["is_text"].sum(dim=1).tolist()]
        assert batch["is_masked"].sum(dim=1).tolist() == expected
        assert not (batch["is_masked"] & ~batch["is_text"]).any()
        assert batch["masked_ids"].equal(torch.where(batch["is_masked"], tokenizer.mask_id or -1, ids))
        visible = batch["visible"]
        assert visible[:, :, 0].all()
        assert not visible.diagonal(dim1=1, dim2=2)[:, 1:].any()
        assert not (visible & ~is_real[:, None, :]).any()
        others = is_real[:, None, :] & ~torch.eye(ids.shape[1], dtype=torch.bool)
        others[:, :, 0] = False
        shares.append(visible[others].double().mean().item())
    assert np.mean(shares) == pytest.approx(0.3, abs=0.01)  # 60,000 draws: 0.002 is one standard deviation


def test_a_batch_is_decided_by_the_seed_and_its_number(small: Path) -> None:
    texts = [f"{text} {i}" for i in range(5) for text in TEXTS]
    batches = batches_of(small, texts)
    seen = [row for step in range(5) for row in batches[step]["input_ids"].tolist()]
    assert batches.batches_per_epoch == 5
    tokenizer = load_tokenizer(small)
    known = {tuple(tokens.ids.tolist()) for tokens in tokenizer(texts, max_length=40)}
    assert {tuple(i for i in row if i != tokenizer.pad_id) for row in seen} == known  # an epoch has each text once
    again = batches_of(small, texts)
    for step in (7, 2):
        assert all(again[step][name].equal(value) for name, value in batches[step].items())
    other = batches_of(small, texts, seed=1)
    assert not np.array_equal(other[2]["visible"].numpy(), batches[2]["visible"].numpy())
    with pytest.raises(ValueError, match="3 texts do not fill one batch of 4"):
        batches_of(small, TEXTS[:3])
    with pytest.raises(IndexError):
        batches[50]


def test_a_tokenizer_without_a_mask_is_refused(small: Path) -> None:
    tokenizer = load_tokenizer(small)
    tokenizer.source.mask_token_id = None
    with pytest.raises(ValueError, match="needs a mask token"):
        MaskedBatches(
            TEXTS, tokenizer, batch_size=4, max_length=40, encoder_mask=0.3, decoder_mask=0.5, steps=1, seed=0
        )


def test_texts_are_read_from_lines_corpora_and_pairs_each_once(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"_id": "1", "title": "Salt", "text": "is white"}\n\n{"text": "alone"}\n'
        '{"query": "q", "pos": ["p"], "neg": ["n"]}\n'
    )
    (tmp_path / "b.txt").write_text("\ufeffa line\nalone\n\n  \nof text {\n", encoding="utf-8")
    assert read_texts([tmp_path]) == ["Salt is white", "alone", "p", "n", "a line", "of text {"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1]", 'a.jsonl, line 2: needs an object with "text"'),
        ('{"query": "q"}', 'needs an object with "text"'),
        ('{"text": 3}', 'needs an object with "text", a string'),
        ('{"text": "a", "title": ["b"]}', '"title" must be a string or null'),
        ('{"pos": "p"}', '"pos" must be a list of strings, got str'),
        ('{"pos": ["p"], "neg": [null]}', '"neg" must be a list of strings'),
        ('{"text": "\\ud800"}', "surrogates not allowed"),
        ("{", "a.jsonl, line 2: "),
        ("[" * 100_000, "a.jsonl, line 2: maximum recursion depth"),
    ],
)
def test_a_wrong_line_of_texts_is_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "right"}\n' + line)
    with pytest.raises(ValueError, match=message):
        read_texts([tmp_path / "a.jsonl"])


def test_a_folder_or_file_without_texts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no \.jsonl or \.txt file"):
        read_texts([tmp_path])
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(ValueError, match="hold no text"):
        read_texts([tmp_path])


def test_the_head_that_xlm_robertas_files_have_is_taken(small: Path, tmp_path: Path) -> None:
    config = XLMRobertaConfig(**json.loads((small / "config.json").read_text()))
    model = XLMRobertaForMaskedLM(config)
    torch.nn.init.normal_(model.lm_head.bias)
    model.save_pretrained(tmp_path)
    load_tokenizer(small).source.save_pretrained(tmp_path)
    network = RetroMAENetwork.load(tmp_path).eval()
    ids = torch.tensor([[0, 17, 23, 42, 2]])
    with torch.no_grad():
        hidden = network.backbone(input_ids=ids).last_hidden_state[0]
        expected = torch.nn.functional.cross_entropy(model.eval()(ids).logits[0], ids[0])
        assert network._mean_loss(hidden, ids[0]).item() == pytest.approx(expected.item(), rel=1e-6)
    network.save(tmp_path / "saved")
    assert not list((tmp_path / "saved").glob("*_linear*"))
