"""The recipe of `small`: the last layers and the heads learn, and what they must not change."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from m3_integrations.checkpoint import find_checkpoint
from m3_integrations.training.losses import compute_loss
from m3_integrations.training.network import TrainingNetwork
from m3_integrations.training.scores import score_batch
from tests.small_recipe.distill import round_matrices
from tests.small_recipe.held_out import choose_held_out, mean_reciprocal_rank
from tests.small_recipe.pairs import TextPair
from tests.small_recipe.recipe import SmallSettings, teach_last_layers
from tests.small_recipe.tokens import LastLayers, iterate_batches, read_states, root_frequencies, teach_tokens

WORDS = ("salt", "bread", "iron key", "snow", "river", "clock", "lamp", "horse")
PAIRS = [
    TextPair(
        language, "made-up", f"{word}{n}", f"the {word} {n}", f"Here is a {word}, number {n} of many.", False, False
    )
    for language in ("en", "de")
    for n in range(3)
    for word in WORDS
]
LENGTH = 32
NEAR = 2e-3
"""States are kept in float16."""


def load() -> TrainingNetwork:
    network = TrainingNetwork.load(find_checkpoint("tiny"))
    network.backbone.set_attn_implementation("eager")  # type: ignore[operator]
    return network.eval()


@torch.no_grad()
def test_the_last_layers_on_kept_states_give_the_views_of_the_whole_network() -> None:
    network = load()
    texts = [pair.passage for pair in PAIRS[:5]] + ["salt"]
    layers = len(network.backbone.encoder.layer) - 1  # type: ignore[union-attr, arg-type]
    states = read_states(network.backbone, network.tokenizer, texts, layers=layers, max_length=LENGTH)
    found, ids, weights = LastLayers(network, layers)(states, range(len(texts)))
    padded = torch.nn.utils.rnn.pad_sequence(list(states.ids), batch_first=True, padding_value=1)
    wanted = network(padded, (padded != 1).long())
    torch.testing.assert_close(found.dense, wanted.dense, atol=NEAR, rtol=0)
    torch.testing.assert_close(found.token_weights, wanted.token_weights, atol=NEAR, rtol=0)
    torch.testing.assert_close(
        found.token_vectors[found.vector_mask], wanted.token_vectors[wanted.vector_mask], atol=NEAR, rtol=0
    )
    assert torch.equal(found.token_ids, wanted.token_ids)
    assert torch.equal(ids, padded[padded > 3])
    torch.testing.assert_close(torch.relu(weights), found.token_weights[padded > 3])


def test_root_frequencies_are_those_worked_by_hand() -> None:
    found = root_frequencies([torch.tensor([0, 1, 1]), torch.tensor([1]), torch.tensor([2, 1])], 4)
    wanted = torch.tensor([4 / 2, 4 / 4, 4 / 2, 4 / 1]).log().sqrt()
    torch.testing.assert_close(found, wanted)


def test_a_batch_has_one_language_and_texts_of_about_one_length() -> None:
    languages, lengths = ["en", "de"] * 8, list(range(16))
    batches = iterate_batches(languages, lengths, 4, seed=0)
    first = [next(batches).tolist() for _ in range(4)]
    assert sorted(row for batch in first for row in batch) == list(range(16))  # every pair once before any twice
    assert all(len({languages[row] for row in batch}) == 1 for batch in first)
    assert all(max(batch) - min(batch) == 6 for batch in first)  # four neighbours of one language
    with pytest.raises(ValueError, match="no language has 9 pairs"):
        next(iterate_batches(languages, lengths, 9, seed=0))


def views(network: TrainingNetwork) -> Any:
    parts = []
    for texts in ([pair.query for pair in PAIRS[:24]], [pair.passage for pair in PAIRS[:24]]):
        ids = [torch.from_numpy(t.ids.astype("int64")) for t in network.tokenizer(texts, max_length=LENGTH)]
        padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=1)
        with torch.no_grad():
            parts.append(network(padded, (padded != 1).long()))
    return parts


def test_teaching_lowers_the_lexical_loss_keeps_cls_and_leaves_the_first_layers() -> None:
    network, before = load(), load()
    for each in (network, before):
        torch.nn.init.zeros_(each.lexical_head.weight)  # every token weighs the same
        torch.nn.init.constant_(each.lexical_head.bias, 0.2)
    teach_tokens(
        network, PAIRS, free_layers=1, steps=30, batch_size=8, learning_rate=1e-3, frequency_steps=10,
        rounded_share=0.2, seed=0,
    )  # fmt: skip
    old, new = views(before), views(network.eval())

    def lexical_loss(parts: Any) -> float:
        return float(compute_loss(score_batch(*parts), torch.arange(24)).lexical)

    assert lexical_loss(new) < lexical_loss(old) / 2
    assert (old[1].dense * new[1].dense).sum(dim=1).min() > 0.9
    kept, trained = dict(before.backbone.named_parameters()), dict(network.backbone.named_parameters())
    last = f"encoder.layer.{len(network.backbone.encoder.layer) - 1}."  # type: ignore[union-attr, arg-type]
    changed = {name.startswith(last) for name in kept if not torch.equal(kept[name], trained[name])}
    assert changed == {True}


def test_the_start_is_mixed_in_and_lexical_scores_are_scaled() -> None:
    network, start = load(), load()
    round_matrices(start.backbone)
    settings = SmallSettings(
        token_pairs_per_language=24, token_steps=2, token_batch_size=8, free_layers=1, frequency_steps=0,
        token_learning_rate=1e-2, start_weight=1.0, lexical_scale=0.25,
    )  # fmt: skip
    teach_last_layers(network, PAIRS, settings)  # of the trained weights nothing remains
    for name, value in network.state_dict().items():
        expected = start.state_dict()[name] * (0.5 if name.startswith("lexical_head") else 1)
        torch.testing.assert_close(value, expected, msg=name)
    half = load()
    teach_last_layers(half, PAIRS, replace(settings, start_weight=0.5))
    assert not torch.equal(half.lexical_head.weight, network.lexical_head.weight)


def test_equal_scores_share_the_mean_of_their_ranks() -> None:
    scores = np.array([[3.0, 1, 2], [5, 4, 4], [7, 8, 6]])  # ranks 1, 2 and 3 shared by two, 3
    assert mean_reciprocal_rank(scores) == pytest.approx((1 + 1 / 2.5 + 1 / 3) / 3)


def test_only_held_out_pairs_are_measured_on() -> None:
    pairs = [replace(pair, held_out=n % 2 == 0) for n, pair in enumerate(PAIRS)]
    chosen = choose_held_out(pairs)
    assert sorted(pair.key for pair in chosen["en"]) == sorted(
        p.key for p in pairs if p.held_out and p.language == "en"
    )
    assert chosen["ru"] == []
