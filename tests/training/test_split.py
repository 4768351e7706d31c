"""Split-batch and the gradient cache against the whole batch, in float64 and in all modes."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import torch

from m3_integrations.training.losses import LossSettings, compute_loss
from m3_integrations.training.network import TrainingNetwork
from m3_integrations.training.scores import TextViews, score_batch
from m3_integrations.training.split import Split, plan_split

Batch = tuple[torch.Tensor, torch.Tensor]


def make_texts(network: TrainingNetwork, lengths: list[int], seed: int) -> Batch:
    """Random tokens, of so few kinds that texts share some; text i has lengths[i] of them."""
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(5, 25, mask.shape, generator=generator)
    ids = ids.masked_fill(mask == 0, network.tokenizer.pad_id)
    ids[:, 0] = 0
    return ids, mask


def gradients(network: TrainingNetwork, settings: LossSettings | None = None) -> dict[str, torch.Tensor]:
    """Return the gradient of every weight for one batch: queries of 3 passages each, of very different lengths."""
    network.zero_grad()
    query, passage = make_texts(network, [5, 9, 4, 7], 1), make_texts(network, [30, 6, 11, 8, 17, 4] * 2, 2)
    queries, passages = network(*query), network(*passage)
    teacher = torch.randn(4, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    positives = torch.arange(4) * 3
    loss = compute_loss(score_batch(queries, passages), positives, settings, group_size=3, teacher_scores=teacher)
    torch.autograd.backward(loss.total)
    return {name: weight.grad.clone() for name, weight in network.named_parameters() if weight.grad is not None}


@pytest.fixture
def network(without_dropout: Path) -> TrainingNetwork:
    return TrainingNetwork.load(without_dropout).double()


@pytest.mark.parametrize("kind", ["gradient_cache", "checkpointing", "gradient_cache over checkpointing"])
@pytest.mark.parametrize(
    "settings",
    [
        LossSettings(self_distillation=False),
        LossSettings(),
        LossSettings(knowledge_distillation=True, kd_loss_type="kl_div"),
        LossSettings(knowledge_distillation=True, kd_loss_type="m3_kd_loss", in_batch_negatives=False),
    ],
    ids=["contrastive", "distilled", "taught", "taught within groups"],
)
def test_a_split_batch_has_the_gradients_of_the_whole_one(
    network: TrainingNetwork, settings: LossSettings, kind: str
) -> None:
    expected = gradients(network, settings)
    assert len(expected) == len(list(network.parameters()))
    assert all(bool(gradient.any()) for name, gradient in expected.items() if "head" in name or "layer" in name)
    network.train()  # a backbone keeps all activations in evaluation
    if "checkpointing" in kind:
        network.checkpoint_activations()
    network.split = Split(max_tokens=24, kind=kind.partition(" ")[0])
    got = gradients(network, settings)
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, rtol=0, atol=1e-6 * max(1.0, float(gradient.abs().max())))


def test_the_views_of_a_split_batch_stand_in_the_order_of_its_texts(network: TrainingNetwork) -> None:
    ids, mask = make_texts(network, [3, 20, 7, 3, 12], 4)
    whole = network(ids, mask)
    network.split = Split(max_tokens=20)
    parts = network(ids, mask)
    kept = mask.bool()
    assert parts.vector_mask.equal(whole.vector_mask)
    assert parts.token_ids[kept].equal(ids[kept])
    torch.testing.assert_close(parts.dense, whole.dense, rtol=0, atol=1e-12)
    torch.testing.assert_close(parts.token_weights, whole.token_weights, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        parts.token_vectors[whole.vector_mask], whole.token_vectors[whole.vector_mask], rtol=0, atol=1e-12
    )


def test_dropout_falls_alike_in_both_passes_of_the_gradient_cache(small: Path) -> None:
    network = TrainingNetwork.load(small).double().train()
    results = []
    for kind in ("checkpointing", "gradient_cache"):  # without the backbone's own, the first keeps every activation
        network.split = Split(max_tokens=24, kind=kind)
        torch.manual_seed(5)
        results.append(gradients(network))
    torch.manual_seed(6)
    other = gradients(network)
    name = "lexical_head.weight"
    assert not torch.allclose(other[name], results[0][name], rtol=1e-3)
    for name, gradient in results[0].items():
        torch.testing.assert_close(results[1][name], gradient, rtol=1e-9, atol=1e-9)


def test_the_gradient_cache_keeps_the_views_alone(network: TrainingNetwork) -> None:
    """What autograd saves must not grow with the layers: ids, masks, and what joins the views."""
    ids, mask = make_texts(network, [16] * 8, 7)
    views = sum(getattr(network(ids, mask), field.name).numel() for field in fields(TextViews))
    whole = count_saved(network, ids, mask)
    network.split = Split(max_tokens=32)
    assert count_saved(network, ids, mask) < views < whole / 10


def count_saved(network: TrainingNetwork, ids: torch.Tensor, mask: torch.Tensor) -> int:
    """Return how many numbers autograd keeps for the gradient of the views."""
    sizes: list[int] = []

    def keep(values: torch.Tensor) -> torch.Tensor:
        sizes.append(values.numel())
        return values

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda values: values):
        network(ids, mask)
    return sum(sizes)


@pytest.mark.parametrize(
    ("lengths", "max_tokens", "expected"),
    [
        ([3, 9, 5, 4], 10, [[1], [2, 3], [0]]),
        ([3, 9, 5, 4], 8, [[1], [2], [3, 0]]),  # the longest exceeds it alone
        ([2, 2, 2], 100, [[0, 1, 2]]),
    ],
)
def test_sub_batches_are_full_and_longest_first(lengths: list[int], max_tokens: int, expected: list[list[int]]) -> None:
    assert plan_split(lengths, max_tokens) == expected


def test_a_split_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="max_tokens must be at least 1, got 0"):
        Split(max_tokens=0)
    with pytest.raises(ValueError, match="kind must be one of checkpointing, gradient_cache, got 'both'"):
        Split(max_tokens=8, kind="both")
