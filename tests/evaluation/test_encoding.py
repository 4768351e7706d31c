"""A corpus is encoded once, and a run that was killed goes on where it was."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m3_integrations import M3Encoder, M3Vectors
from m3_integrations.evaluation import Corpus, Protocol, evaluate, read_dataset, tune_weights
from m3_integrations.evaluation.encoding import encode_corpus
from m3_integrations.vectors import MODES, Mode
from tests.evaluation.worlds import WorldEncoder, write_world


class DyingEncoder(WorldEncoder):
    """Gives some documents and is then cut off."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self._after = after

    def encode_batches(
        self, texts: Iterable[str], *, modes: Sequence[Mode] | None = None, show_progress: bool = False
    ) -> Iterator[M3Vectors]:
        for i, vectors in enumerate(super().encode_batches(texts, modes=modes)):
            if i == self._after:
                raise KeyboardInterrupt
            yield vectors


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return Corpus(write_world(tmp_path / "world") / "corpus.jsonl")


def test_vectors_come_back_as_they_were(corpus: Corpus, tmp_path: Path) -> None:
    encoder = WorldEncoder()
    encoded = encode_corpus(encoder, corpus, tmp_path / "work", MODES)
    expected = encoder.encode(list(corpus.texts()))
    blocks = list(encoded.blocks())
    assert np.concatenate([block.rows for block in blocks]).tolist() == list(range(60))
    vectors = M3Vectors.concatenate([block.vectors for block in blocks])
    np.testing.assert_array_equal(vectors.dense, expected.dense)
    np.testing.assert_array_equal(vectors.lexical.indices, expected.lexical.indices)
    np.testing.assert_array_equal(vectors.lexical.values, expected.lexical.values)
    np.testing.assert_array_equal(vectors.multi_vector.flat, expected.multi_vector.flat)
    np.testing.assert_array_equal(vectors.multi_vector.offsets, expected.multi_vector.offsets)


def test_token_vectors_stay_on_the_disk(corpus: Corpus, tmp_path: Path) -> None:
    block = next(encode_corpus(WorldEncoder(), corpus, tmp_path / "work", MODES).blocks())
    assert isinstance(block.vectors.multi_vector.flat.base, np.memmap)


def test_everything_is_encoded_once_for_all_columns_and_for_tuning(tmp_path: Path) -> None:
    dataset = read_dataset(write_world(tmp_path / "world"))
    encoder = WorldEncoder()
    evaluate(encoder, dataset, work=tmp_path / "work")
    documents = [text for kind, text in encoder.encoded if kind == "document"]
    assert documents == list(dataset.corpus.texts())
    evaluate(encoder, dataset, work=tmp_path / "work")
    tune_weights(encoder, dataset, steps=2, work=tmp_path / "work")
    assert len([kind for kind, _ in encoder.encoded if kind == "document"]) == 60


def test_candidates_alone_are_encoded_again_where_token_vectors_are_not_kept(tmp_path: Path) -> None:
    dataset = read_dataset(write_world(tmp_path / "world", queries=2))
    encoder = WorldEncoder()
    protocol = Protocol(rerank_depth=3, pool_size=2, encode_candidates=True)
    result = evaluate(encoder, dataset, modes=["all"], protocol=protocol, work=tmp_path / "work")
    again = [text for kind, text in encoder.encoded if kind == "document"][60:]
    candidates = np.unique(np.concatenate([found.rows for found in result.rankings["all"]]))
    assert again == list(dataset.corpus.texts(candidates))
    assert not list((tmp_path / "work").rglob("token_vectors.npy"))


def test_a_run_that_was_cut_off_goes_on(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        encode_corpus(DyingEncoder(after=23), corpus, tmp_path / "work", MODES)
    (folder,) = (tmp_path / "work").iterdir()
    (folder / "unfinished").mkdir()  # what a kill in the middle of writing leaves
    (folder / "unfinished" / "dense.npy").write_bytes(b"half")
    encoder = WorldEncoder()
    encoded = encode_corpus(encoder, corpus, tmp_path / "work", MODES)
    assert [text for _, text in encoder.encoded] == list(corpus.texts())[23:]
    assert len(encoded) == 60
    whole = encode_corpus(WorldEncoder(), corpus, tmp_path / "other", MODES)
    for ours, theirs in zip(encoded.blocks(), whole.blocks(), strict=True):
        np.testing.assert_array_equal(ours.vectors.dense, theirs.vectors.dense)


def test_blocks_that_were_deleted_are_encoded_again_and_no_others(corpus: Corpus, tmp_path: Path) -> None:
    expected = WorldEncoder().encode(list(corpus.texts()))
    encode_corpus(WorldEncoder(), corpus, tmp_path / "work", MODES)
    (folder,) = (tmp_path / "work").iterdir()
    blocks = sorted(folder.glob("0*-0*"))
    shutil.copytree(blocks[30], folder / f"{30:012d}-{33:012d}")  # a block over others is of no use, and no obstacle
    for lost in ([0], [59], [20, 21, 40], [31, 32]):
        for row in lost:
            shutil.rmtree(blocks[row])
        encoder = WorldEncoder()
        encoded = encode_corpus(encoder, corpus, tmp_path / "work", MODES)
        assert [text for _, text in encoder.encoded] == list(corpus.texts(np.array(lost)))
        vectors = M3Vectors.concatenate([block.vectors for block in encoded.blocks()])
        np.testing.assert_array_equal(vectors.dense, expected.dense)


def test_two_processes_do_not_encode_the_same_at_once(corpus: Corpus, tmp_path: Path) -> None:
    """They would move each other's half-written blocks in place."""
    refused: list[str] = []

    class Disturbed(WorldEncoder):
        def encode_batches(self, texts: Iterable[str], **settings: Any) -> Iterator[M3Vectors]:
            for vectors in super().encode_batches(texts, **settings):
                if len(refused) < 2:
                    with pytest.raises(BlockingIOError, match="another process encodes into"):
                        encode_corpus(WorldEncoder(), corpus, tmp_path / "work", MODES)
                    refused.append("once")
                yield vectors

    encode_corpus(Disturbed(), corpus, tmp_path / "work", MODES)
    assert len(refused) == 2
    idle = WorldEncoder()
    assert len(encode_corpus(idle, corpus, tmp_path / "work", MODES)) == 60
    assert idle.encoded == []


@pytest.mark.parametrize("change", ["fingerprint", "max_length", "dtype", "pooling"])
def test_vectors_of_another_model_or_setting_are_never_taken(corpus: Corpus, tmp_path: Path, change: str) -> None:
    encode_corpus(WorldEncoder(), corpus, tmp_path / "work", MODES)
    other = WorldEncoder()
    setattr(other, change, 256 if change == "max_length" else "another")
    encode_corpus(other, corpus, tmp_path / "work", MODES)
    assert len(other.encoded) == 60


def test_vectors_of_other_texts_or_modes_are_never_taken(tmp_path: Path) -> None:
    path = write_world(tmp_path / "world") / "corpus.jsonl"
    encode_corpus(WorldEncoder(), Corpus(path), tmp_path / "work", MODES)
    path.write_text(path.read_text().replace('"word 0"', '"word 00"'))
    changed, dense = WorldEncoder(), WorldEncoder()
    encode_corpus(changed, Corpus(path), tmp_path / "work", MODES)
    encode_corpus(dense, Corpus(path), tmp_path / "work", ["dense"])
    assert (len(changed.encoded), len(dense.encoded)) == (60, 60)
    assert len(list((tmp_path / "work").iterdir())) == 3


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from m3_integrations.evaluation import Corpus, encoding
from tests.evaluation.worlds import WorldEncoder
saved, save = [], np.save
def slow(file, *args, **kwargs):
    saved.append(1)
    if len(saved) == int(sys.argv[3]):
        file.write(b"torn"); file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    save(file, *args, **kwargs)
np.save = slow
modes = ("dense", "lexical", "multi_vector")
encoding.encode_corpus(WorldEncoder(), Corpus(Path(sys.argv[1])), Path(sys.argv[2]), modes)
"""


@pytest.mark.parametrize("arrays", [1, 40, 45])
def test_nothing_torn_is_read_after_kill_9(corpus: Corpus, tmp_path: Path, arrays: int) -> None:
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(corpus.path), str(tmp_path / "work"), str(arrays)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    encoder = WorldEncoder()
    encoded = encode_corpus(encoder, corpus, tmp_path / "work", MODES)
    assert len(encoder.encoded) == 60 - (arrays - 1) // 6  # six arrays a block, a block a document
    vectors = M3Vectors.concatenate([block.vectors for block in encoded.blocks()])
    np.testing.assert_array_equal(vectors.dense, WorldEncoder().encode(list(corpus.texts())).dense)


def test_the_folder_says_what_it_holds(corpus: Corpus, tmp_path: Path) -> None:
    encode_corpus(WorldEncoder(), corpus, tmp_path / "work", ["dense"])
    (folder,) = (tmp_path / "work").iterdir()
    about = json.loads((folder / "about.json").read_text())
    assert about == {
        "encoder": "fake", "model": "fa4e", "corpus": corpus.digest, "max_length": 512, "pooling": "cls",
        "dtype": "float32", "modes": ["dense"],
    }  # fmt: skip


def test_the_real_encoder_says_what_its_vectors_depend_on(encoder: M3Encoder, tmp_path: Path) -> None:
    dataset = read_dataset(write_world(tmp_path / "world", documents=10, queries=3))
    first = evaluate(encoder, dataset, work=tmp_path / "work")
    before = encoder.stats.encoded_texts
    second = evaluate(encoder, dataset, work=tmp_path / "work")
    assert encoder.stats.encoded_texts - before <= 3  # the queries, unless the cache has them
    for column in first.columns:
        for a, b in zip(first.rankings[column], second.rankings[column], strict=True):
            assert a.rows.tolist() == b.rows.tolist()
