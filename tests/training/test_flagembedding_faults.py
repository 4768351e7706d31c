"""What FlagEmbedding's trainer gets wrong and this one must not: one test for each fault.

That its negatives across devices are dense alone has its test in test_gathering.py.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from m3_integrations.checkpoint import load_tokenizer
from m3_integrations.training.data import Example, TrainingBatches, pad_texts, read_examples
from m3_integrations.training.losses import LossSettings, compute_loss
from m3_integrations.training.network import TrainingNetwork
from m3_integrations.training.scores import BatchScores, TextViews, lexical_scores
from m3_integrations.training.split import Split
from tests.training.conftest import write_examples


def test_batches_of_one_file_do_not_put_none_before_queries_without_a_prompt(small: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(small)
    examples = read_examples([write_examples(tmp_path / name, count=4) for name in ("a.jsonl", "b.jsonl")])
    batches = TrainingBatches(
        examples, tokenizer, batch_size=4, group_size=1, query_max_length=32, passage_max_length=64,
        steps=2, seed=0, one_source=True,
    )  # fmt: skip
    expected = pad_texts([example.query for example in examples[:4]], tokenizer, max_length=32)
    for step in range(2):
        assert sorted(batches[step]["query_ids"].tolist()) == sorted(expected.input_ids.tolist())


def test_sub_batches_of_different_lengths_join_in_all_modes(small: Path) -> None:
    network = TrainingNetwork.load(small)
    texts = pad_texts(["salt", "water and salt and water", "engine", "a river " * 9], network.tokenizer, max_length=40)
    whole = network(texts.input_ids, texts.attention_mask)
    network.split = Split(max_tokens=16)
    parts = network(texts.input_ids, texts.attention_mask)
    kept = whole.vector_mask
    torch.testing.assert_close(parts.token_vectors[kept], whole.token_vectors[kept], rtol=0, atol=1e-5)
    torch.testing.assert_close(parts.token_weights, whole.token_weights, rtol=0, atol=1e-5)


@pytest.mark.parametrize("queries", [1, 2, 3, 5], ids=lambda count: f"{count} queries with groups of 3")
def test_without_in_batch_negatives_every_loss_is_over_a_querys_own_group(queries: int) -> None:
    """The fault's ensemble is 0 for as many queries as a group has passages, or fewer, and fails for more."""
    generator = torch.Generator().manual_seed(queries)
    scores = BatchScores(*(torch.rand(queries, queries * 3, generator=generator) / 10 for _ in range(3)))
    settings = LossSettings(in_batch_negatives=False)
    terms = compute_loss(scores, torch.arange(queries) * 3, settings, group_size=3)
    logits = {name: getattr(scores, name) / 0.02 for name in ("dense", "lexical", "multi_vector")}
    logits["ensemble"] = logits["dense"] + 0.3 * logits["lexical"] + logits["multi_vector"]
    for name, each in logits.items():
        rows = [row[3 * i : 3 * i + 3] for i, row in enumerate(each.tolist())]
        losses = [math.log(math.fsum(math.exp(value) for value in row)) - row[0] for row in rows]
        assert getattr(terms, name).item() == pytest.approx(math.fsum(losses) / queries, rel=1e-5), name


def test_lexical_scores_in_training_keep_nothing_of_the_vocabularys_size() -> None:
    ids = torch.tensor([[5, 250_001, 7], [9, 7, 11]])
    weights = torch.rand(2, 3, requires_grad=True)
    views = TextViews(torch.rand(2, 4), ids, weights, torch.rand(2, 3, 4), torch.ones(2, 3, dtype=torch.bool))
    sizes: list[int] = []

    def keep(values: torch.Tensor) -> torch.Tensor:
        sizes.append(values.untyped_storage().nbytes())
        return values

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda values: values):
        scores = lexical_scores(views, views)
    assert 0 < max(sizes) < 1000  # bytes
    torch.autograd.backward(scores.sum())
    assert weights.grad is not None
    assert bool(weights.grad.any())


def test_the_last_batch_may_be_kept_and_its_queries_are_seen(small: Path) -> None:
    examples = [Example(f"query {i}", (f"answer {i}",), ()) for i in range(7)]
    batches = TrainingBatches(
        examples, load_tokenizer(small), batch_size=4, group_size=1, query_max_length=16, passage_max_length=16,
        steps=2, seed=0, keeps_last=True,
    )  # fmt: skip
    assert sorted(len(batches[step]["query_ids"]) for step in range(2)) == [3, 4]
