"""Two processes over gloo against one: the passages of both are negatives of the queries of both, in all modes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from m3_integrations.training.gathering import gather_rows, gather_views, is_distributed, sum_over_processes
from m3_integrations.training.losses import LossSettings, compute_loss
from m3_integrations.training.network import TrainingNetwork
from m3_integrations.training.scores import score_batch
from m3_integrations.training.split import Split
from tests.training.test_split import make_texts

GROUP = 3
LENGTHS = [[5, 9, 4], [7, 3]]
"""Tokens of the queries of each process; there are as many passages as lengths times GROUP."""

SETTINGS = {
    "contrastive": LossSettings(self_distillation=False),
    "distilled": LossSettings(),
    "taught": LossSettings(knowledge_distillation=True, kd_loss_type="m3_kd_loss"),
    "masked": LossSettings(false_negative_margin=0.0),
}


def texts_of(network: TrainingNetwork, process: int) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
    """Return the queries and the passages of one process: of other numbers and lengths than the other's."""
    lengths = LENGTHS[process]
    passages = [4 + (7 * i + 11 * process) % (13 + 9 * process) for i in range(len(lengths) * GROUP)]
    return make_texts(network, lengths, process), make_texts(network, passages, 10 + process)


def teacher_of(process: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(20 + process)
    return torch.randn(len(LENGTHS[process]), GROUP, generator=generator, dtype=torch.float64)


def join(parts: list[torch.Tensor]) -> torch.Tensor:
    """Return the rows of all parts, with padding behind the shorter ones."""
    longest = max(part.shape[1] for part in parts)
    return torch.cat([torch.nn.functional.pad(part, (0, longest - part.shape[1])) for part in parts])


def train_one_step(process: int, folder: Path, checkpoint: Path) -> None:
    """Write the sum over the processes of this step's gradients, for every loss."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=process, world_size=2)
    network = TrainingNetwork.load(checkpoint).double()
    network.split = Split(max_tokens=20)
    queries, passages = texts_of(network, process)
    first = sum(len(lengths) for lengths in LENGTHS[:process])
    positives = (first + torch.arange(len(LENGTHS[process]))) * GROUP
    results = {}
    for name, settings in SETTINGS.items():
        network.zero_grad()
        scores = score_batch(network(*queries), gather_views(network(*passages)))
        terms = compute_loss(scores, positives, settings, group_size=GROUP, teacher_scores=teacher_of(process))
        part = terms.total * len(positives) / sum(map(len, LENGTHS))
        torch.autograd.backward(part)
        results[name] = {
            weight: sum_over_processes(value.grad)
            for weight, value in network.named_parameters()
            if value.grad is not None
        } | {"loss": sum_over_processes(part)}
    assert is_distributed()
    numbers = torch.full((process + 1, 2 - process), process + 1)
    results["numbers"] = {"numbers": gather_rows(numbers)}
    torch.save(results, folder / f"{process}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(small: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, torch.Tensor]]]:
    folder = tmp_path_factory.mktemp("gathered")
    spawn(train_one_step, args=(folder, small), nprocs=2)  # type: ignore[no-untyped-call]
    return [torch.load(folder / f"{process}.pt", weights_only=True) for process in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("name", list(SETTINGS))
def test_two_processes_have_the_gradient_of_the_joined_batch_in_all_modes(
    name: str, results: list[dict[str, dict[str, torch.Tensor]]], small: Path
) -> None:
    network = TrainingNetwork.load(small).double()
    parts = [texts_of(network, process) for process in range(2)]
    queries, passages = ([join([part[side][item] for part in parts]) for item in range(2)] for side in range(2))
    teacher = torch.cat([teacher_of(process) for process in range(2)])
    terms = compute_loss(
        score_batch(network(*queries), network(*passages)),
        torch.arange(len(teacher)) * GROUP,
        SETTINGS[name],
        group_size=GROUP,
        teacher_scores=teacher,
    )
    torch.autograd.backward(terms.total)
    got = results[0][name]
    assert got["loss"].item() == pytest.approx(terms.total.item(), rel=1e-9)
    weights = dict(network.named_parameters())
    assert got.keys() == {*weights, "loss"}
    for weight, value in weights.items():
        assert value.grad is not None
        tolerance = 1e-6 * max(1.0, float(value.grad.abs().max()))
        torch.testing.assert_close(got[weight], value.grad, rtol=0, atol=tolerance)
        assert got[weight].equal(results[1][name][weight])


def test_rows_of_other_numbers_and_lengths_are_gathered_in_the_order_of_the_processes(
    results: list[dict[str, dict[str, torch.Tensor]]],
) -> None:
    expected = torch.tensor([[1, 1], [2, 0], [2, 0]])
    assert [result["numbers"]["numbers"].tolist() for result in results] == [expected.tolist()] * 2


def test_a_process_alone_gathers_its_own_rows() -> None:
    values = torch.ones(2, 3)
    assert not is_distributed()
    assert gather_rows(values) is values
    assert sum_over_processes(values) is values
