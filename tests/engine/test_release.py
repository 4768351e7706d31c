"""A failed pass frees its memory at once, without the garbage collector."""

import asyncio
import gc
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from m3_integrations import M3Encoder
from m3_integrations.engine import Engine


class Activations:
    """Stands for the tensors of a pass: a weak reference to it shows when they are freed."""


@pytest.fixture(autouse=True)
def without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def failing(small: Path, held: list[weakref.ref[Activations]]) -> M3Encoder:
    encoder = M3Encoder(small, shared=False, device="cpu", cache_size_bytes=0)

    def launch(*_: Any, **__: Any) -> None:
        activations = Activations()
        held.append(weakref.ref(activations))
        raise torch.OutOfMemoryError("CUDA out of memory")

    encoder._live_engine().network.launch = launch  # type: ignore[assignment, method-assign]
    return encoder


def is_gone(reference: Callable[[], object]) -> bool:
    """Wait: the worker's thread may need a moment to return from its last pass."""
    end = time.monotonic() + 5
    while reference() is not None and time.monotonic() < end:
        time.sleep(0.001)
    return reference() is None


def test_an_error_that_is_kept_keeps_no_tensors_of_the_pass(small: Path) -> None:
    held: list[weakref.ref[Activations]] = []
    with failing(small, held) as encoder, pytest.raises(torch.OutOfMemoryError) as kept:
        encoder.encode(["a text"])
    assert kept.traceback[-1].name == "launch", "the traceback still shows where the error was raised"
    assert len(held) == 1
    assert is_gone(held[0])


@pytest.mark.parametrize("way", ["encode", "encode_batches", "aencode"])
def test_a_network_goes_with_its_handle_after_an_error_too(small: Path, way: str) -> None:
    def use() -> weakref.ref[Engine]:
        with failing(small, []) as encoder:
            engine = weakref.ref(encoder._live_engine())
            try:
                if way == "aencode":
                    asyncio.run(encoder.aencode(["a text"]))
                list(getattr(encoder, way)(["a text"]))
            except torch.OutOfMemoryError:
                return engine
        raise AssertionError("it did not fail")

    assert is_gone(use())
