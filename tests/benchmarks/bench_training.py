"""The memory of one training step for long texts: the batch whole, and split in the ways that `Split` knows.

    python -m tests.benchmarks.bench_training

One step is the views of the queries and the passages, the scores in all modes, the loss with distillation, and the
gradients of all weights. The network is XLM-RoBERTa of a small size with random weights and no dropout. The peak is
what a step holds at once beyond the network and the texts, its gradients included, counted from every allocation that
torch makes. Seconds are those of that one step, counting included, beside whatever else runs. The last column is the
greatest difference of a gradient from the whole batch's, relative to the greatest gradient.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers import XLMRobertaConfig, XLMRobertaModel

from m3_integrations.checkpoint import Heads, find_checkpoint, load_tokenizer
from m3_integrations.training.losses import compute_loss
from m3_integrations.training.network import TrainingNetwork
from m3_integrations.training.scores import score_batch
from m3_integrations.training.split import Split
from tests.benchmarks.measure import describe_machine, describe_versions

VOCABULARY = 1000


@dataclass(frozen=True)
class Way:
    name: str
    kind: str | None
    is_checkpointed: bool


WAYS = (
    Way("whole", None, False),
    Way("whole, gradient checkpointing", None, True),
    Way("split-batch (checkpointing)", "checkpointing", True),
    Way("gradient cache", "gradient_cache", False),
    Way("gradient cache, checkpointing", "gradient_cache", True),
)


def make_network(args: argparse.Namespace) -> TrainingNetwork:
    torch.manual_seed(0)
    config = XLMRobertaConfig(
        vocab_size=VOCABULARY,
        hidden_size=args.width,
        num_hidden_layers=args.layers,
        num_attention_heads=args.width // 32,
        intermediate_size=4 * args.width,
        max_position_embeddings=args.tokens + 2,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    heads = Heads(multi_vector=nn.Linear(args.width, args.width), lexical=nn.Linear(args.width, 1))
    backbone = XLMRobertaModel(config, add_pooling_layer=False)
    return TrainingNetwork(backbone, heads, load_tokenizer(find_checkpoint("tiny"))).to(args.device).train()


def draw_texts(count: int, tokens: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(5, VOCABULARY, (count, tokens))
    return ids.to(device), torch.ones_like(ids).to(device)


def step(network: TrainingNetwork, queries: tuple[torch.Tensor, ...], passages: tuple[torch.Tensor, ...]) -> None:
    scores = score_batch(network(*queries), network(*passages))
    torch.autograd.backward(compute_loss(scores, torch.arange(len(queries[0]), device=queries[0].device)).total)


def count_peak_bytes(call: Callable[[], None], device: str) -> int:
    """Return the most bytes that torch's tensors hold at once during a call, beyond those held before it."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        call()
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(accumulate(int(event.nbytes()) for event in events))


def measure_ways(args: argparse.Namespace) -> Iterator[tuple[str, int, float, float]]:
    """Yield the name, the peak in bytes, the seconds and the gradients' difference of every way."""
    torch.manual_seed(1)
    queries, passages = (draw_texts(args.texts, tokens, args.device) for tokens in (32, args.tokens))
    expected: list[torch.Tensor] = []
    for way in WAYS:
        network = make_network(args)  # the same weights
        if way.is_checkpointed:
            network.checkpoint_activations()
        network.split = Split(max_tokens=args.sub_batch_tokens, kind=way.kind) if way.kind else None
        started = time.perf_counter()
        peak = count_peak_bytes(partial(step, network, queries, passages), args.device)
        seconds = time.perf_counter() - started
        gradients = [weight.grad for weight in network.parameters() if weight.grad is not None]
        expected = expected or gradients
        greatest = max(float(each.abs().max()) for each in expected)
        difference = max(float((a - b).abs().max()) for a, b in zip(gradients, expected, strict=True)) / greatest
        yield way.name, peak, seconds, difference


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=64, help="queries of 32 tokens, and passages")
    parser.add_argument("--tokens", type=int, default=2048, help="of each passage")
    parser.add_argument("--sub-batch-tokens", type=int, default=4096)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    print(describe_machine(args.device))
    print(describe_versions("torch", "transformers"), "float32")
    print(f"{args.texts} passages of {args.tokens:,} tokens, width {args.width}, {args.layers} layers, "
          f"{args.sub_batch_tokens:,} tokens a sub-batch")  # fmt: skip
    print(f"{'way':<34}{'peak bytes':>16}{'of whole':>10}{'seconds':>9}{'difference':>12}")
    whole = 0
    for name, peak, seconds, difference in measure_ways(args):
        whole = whole or peak
        print(f"{name:<34}{peak:>16,.0f}{peak / whole:>10.3f}{seconds:>9.1f}{difference:>12.1e}", flush=True)


if __name__ == "__main__":
    main()
