"""Loading never guesses: a file that is missing, damaged or hostile ends in an error that names it."""

import io
import json
import pickle
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, SqueezeBertConfig, SqueezeBertModel

from m3_integrations import M3Encoder

TEXTS = ["how do I rotate the keys?", "", "Ключи меняют раз в год."]


@pytest.fixture
def copy(small: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small, tmp_path / "checkpoint"))


def load(folder: Path) -> M3Encoder:
    return M3Encoder(folder, shared=False, device="cpu")


class Planted:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return Path.touch, (Path("planted"),)  # type: ignore[return-value]


def put_linear(path: Path, rows: int, columns: int) -> None:
    torch.save({"weight": torch.ones(rows, columns), "bias": torch.ones(rows)}, path)


def put_planted_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Planted()))


def put_backbone(folder: Path, content: bytes) -> None:
    """Replace the weights by a file with this content, under BAAI/bge-m3's file name."""
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(content)


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def put_pooling(folder: Path, content: str) -> None:
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(content)


def change_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def change_file(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def new_folder(path: Path) -> Path:
    path.mkdir()
    return path


def change_weights(folder: Path, name: str) -> None:
    """Make all values of a weight NaN. Torch's attention would hide them in short texts."""
    state = load_file(folder / "model.safetensors")
    state[name][:] = torch.nan
    save_file(state, folder / "model.safetensors")


def split_weights(
    folder: Path, names: tuple[str, ...], *, is_whole: bool = False, index: str | None = None
) -> dict[str, str]:
    """Divide the weights among files, or put them all into each; return the file of every weight."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    place = {name: f"{names[i % len(names)]}.safetensors" for i, name in enumerate(sorted(state))}
    for file in names:
        part = {name: state[name] for name in state if is_whole or place[name] == f"{file}.safetensors"}
        save_file(part, folder / f"{file}.safetensors")
    if index is not None:
        (folder / "model.safetensors.index.json").write_text(index)
    return place


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "one head missing": (lambda f: (f / "sparse_linear.pt").unlink(), "no sparse_linear: add it"),
    "the other head missing": (lambda f: (f / "colbert_linear.pt").unlink(), "no colbert_linear: add it"),
    "head cut short": (
        lambda f: (f / "colbert_linear.pt").write_bytes((f / "colbert_linear.pt").read_bytes()[:900]),
        "colbert_linear.pt is damaged",
    ),
    "empty head": (lambda f: (f / "colbert_linear.pt").write_bytes(b""), "colbert_linear.pt is damaged"),
    "head of another width": (lambda f: put_linear(f / "colbert_linear.pt", 64, 32), r"got \(64, 32\)"),
    "lexical head of two rows": (
        lambda f: put_linear(f / "sparse_linear.pt", 2, 64),
        r"weight \(1, 64\).*got \(2, 64\)",
    ),
    "no bias": (lambda f: torch.save({"weight": torch.ones(1, 64)}, f / "sparse_linear.pt"), "weight and bias"),
    "not tensors": (lambda f: torch.save({"weight": 1}, f / "sparse_linear.pt"), "mapping of tensors"),
    "not finite": (
        lambda f: torch.save({"weight": torch.full((1, 64), torch.nan), "bias": torch.ones(1)}, f / "sparse_linear.pt"),
        "infinite or NaN in",
    ),
    "a pickle that runs code": (lambda f: put_planted_pickle(f / "sparse_linear.pt"), "sparse_linear.pt is damaged"),
    "unknown format": (lambda f: (f / "sparse_linear.pt").rename(f / "sparse_linear.onnx"), "no sparse_linear: add it"),
    "scalar bias": (
        lambda f: torch.save({"weight": torch.ones(1, 64), "bias": torch.tensor(1.0)}, f / "sparse_linear.pt"),
        r"got \(1, 64\) and \(\)",
    ),
    "head without rows": (lambda f: put_linear(f / "colbert_linear.pt", 0, 64), r"weight \(1, 64\).*got \(0, 64\)"),
    "backbone that is a pickle that runs code": (
        lambda f: put_backbone(f, pickle.dumps(Planted())),
        "the encoder in .* cannot be loaded",
    ),
    "empty backbone": (
        lambda f: put_backbone(f, b""),
        "the encoder in .* cannot be loaded",
    ),
    "backbone that is a list": (
        lambda f: put_backbone(f, saved([1])),
        "the encoder in .* cannot be loaded",
    ),
    "fewer layers than weights": (
        lambda f: change_config(f, num_hidden_layers=2),
        "layers that its config.json does not count",
    ),
    "a size that is no number": (lambda f: change_config(f, hidden_size="x"), "x"),
    "a decoder": (lambda f: change_config(f, model_type="llama"), "holds a llama model: use an encoder"),
    "an encoder-decoder": (lambda f: change_config(f, model_type="t5"), "holds a t5 model: use an encoder"),
    "garbled pooling": (
        lambda f: put_pooling(f, "{"),
        "is not valid JSON",
    ),
    "tokenizer of an unknown kind": (
        lambda f: (f / "tokenizer.json").write_text(
            (f / "tokenizer.json").read_text().replace('"Unigram"', '"Quantum"')
        ),
        "the tokenizer in .* cannot be read",
    ),
    "two heads that differ": (
        lambda f: save_file({"weight": torch.ones(1, 64), "bias": torch.ones(1)}, f / "sparse_linear.safetensors"),
        "differ: delete the one",
    ),
    "weights cut short": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:5000]),
        "the encoder in .* cannot be loaded",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "the encoder in .* cannot be loaded"),
    "no configuration": (lambda f: (f / "config.json").unlink(), "the encoder in .* cannot be loaded"),
    "garbled configuration": (lambda f: (f / "config.json").write_text("{"), "config.json"),
    "no tokenizer": (
        lambda f: (f / "tokenizer.json").unlink(),
        "no tokenizer: it needs one of tokenizer.json",
    ),
    "garbled tokenizer": (lambda f: (f / "tokenizer.json").write_text("{}"), "the tokenizer in .* cannot be read"),
    "tokenizer that is a list": (lambda f: (f / "tokenizer.json").write_text("[1]"), "the tokenizer in .* cannot be"),
    "configuration that is a list": (lambda f: (f / "config.json").write_text("[1]"), "cannot be"),
    "texts cut on the left": (
        lambda f: change_file(f / "tokenizer_config.json", truncation_side="left"),
        "cuts texts on the left",
    ),
    "files of the transformer below": (
        lambda f: (f / "tokenizer.json").rename(new_folder(f / "0_Transformer") / "tokenizer.json"),
        "move the files in 0_Transformer into the folder itself",
    ),
    "weights of the backbone that are not finite": (
        lambda f: change_weights(f, "encoder.layer.0.attention.self.query.weight"),
        "has 4096 weights that are infinite or NaN in torch.float32, in encoder.layer.0.attention.self.query.weight",
    ),
    "two files with one weight": (
        lambda f: split_weights(f, ("model-00001-of-00002", "model-00002-of-00002"), is_whole=True),
        "the encoder in .* cannot be loaded",
    ),
    "a garbled index": (
        lambda f: split_weights(f, ("model-00001-of-00001",), index='{"weight_map": 1}'),
        "model.safetensors.index.json is damaged",
    ),
    "an index that leads elsewhere": (
        lambda f: split_weights(f, ("model-00001-of-00001",), index='{"weight_map": {"a": "../model.safetensors"}}'),
        r"must name files beside it, got \['../model.safetensors'\]",
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused_with_the_reason(
    copy: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(copy)
    inflict, message = DAMAGES[damage]
    inflict(copy)
    with pytest.raises(ValueError, match=message):
        load(copy)
    assert not (copy / "planted").exists()


def test_of_several_files_those_that_the_index_names_are_loaded(copy: Path, small: Path) -> None:
    other = {name: tensor + 1 for name, tensor in load_file(copy / "model.safetensors").items()}
    place = split_weights(copy, ("model-00001-of-00002", "model-00002-of-00002"))
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": place}))
    save_file(other, copy / "model-00003-of-00003.safetensors")  # left by another revision
    with load(copy) as encoder, load(small) as expected:
        np.testing.assert_array_equal(encoder.encode(["keys"]).dense, expected.encode(["keys"]).dense)
        assert encoder.fingerprint == expected.fingerprint
        (copy / "model.safetensors").write_bytes((small / "model.safetensors").read_bytes())
    save_file(other, copy / "model-00001-of-00002.safetensors")
    with load(copy) as encoder, load(small) as expected:  # a single file goes first, as in transformers
        np.testing.assert_array_equal(encoder.encode(["keys"]).dense, expected.encode(["keys"]).dense)
        state = load_file(copy / "model.safetensors")
    for path in copy.glob("model*.safetensors"):
        path.unlink()
    torch.save(state, copy / "pytorch_model.bin")  # and an index without its files is none
    with load(copy) as encoder, load(small) as expected:
        np.testing.assert_array_equal(encoder.encode(["keys"]).dense, expected.encode(["keys"]).dense)


def test_a_checkpoint_cannot_be_saved_over_a_file_and_a_name_can_be_too_long(small: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match=r"a checkpoint must be a folder, but .*file is a file"):
        load(small).save(tmp_path / "file")
    with pytest.raises(FileNotFoundError, match="there is no checkpoint folder"):
        M3Encoder("/" + "a" * 5000)


@pytest.mark.filterwarnings("ignore")
def test_missing_weights_are_refused_and_never_random(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks \d+ weights.*encoder\.layer\.1\.output\.dense\.weight"):
        load(copy)


def test_a_pooling_layer_in_the_files_is_dropped_without_a_word(
    copy: Path, small: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    weights = load_file(copy / "model.safetensors")
    pooler = {"pooler.dense.weight": torch.ones(64, 64), "pooler.dense.bias": torch.ones(64)}
    torch.save(weights | pooler, copy / "pytorch_model.bin")  # BAAI/bge-m3's file holds a pooler too
    (copy / "model.safetensors").unlink()
    with load(copy) as encoder:
        np.testing.assert_array_equal(encoder.encode(TEXTS).dense, load(small).encode(TEXTS).dense)
        assert not any("pooler" in name for name, _ in encoder._live_engine().network.named_parameters())
        assert encoder.fingerprint == load(small).fingerprint
    output = capfd.readouterr()
    assert output.out == ""
    assert "LOAD REPORT" not in output.err


@pytest.mark.filterwarnings("ignore")
def test_a_tokenizer_with_more_tokens_than_the_network_is_refused(copy: Path) -> None:
    change_config(copy, vocab_size=500)
    weights = load_file(copy / "model.safetensors")
    name = "embeddings.word_embeddings.weight"
    save_file(weights | {name: weights[name][:500].clone()}, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="only 500 embeddings"):
        load(copy)


@pytest.mark.filterwarnings("ignore")
def test_weights_of_another_shape_are_refused(copy: Path) -> None:
    change_config(copy, intermediate_size=99)
    with pytest.raises(ValueError, match=r"the encoder in .* cannot be loaded"):
        load(copy)


def test_code_in_a_checkpoint_is_never_run(copy: Path) -> None:
    change_config(copy, auto_map={"AutoModel": "planted.Planted", "AutoConfig": "planted.Planted"})
    (copy / "planted.py").write_text("raise SystemExit('ran')")
    assert load(copy).encode(TEXTS).dense.shape == (3, 64)


def test_an_architecture_that_always_pools_loads(small: Path, tmp_path: Path) -> None:
    config = SqueezeBertConfig(
        vocab_size=1000, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        embedding_size=32, max_position_embeddings=40,
    )  # fmt: skip
    SqueezeBertModel(config).save_pretrained(tmp_path)
    for path in small.glob("tokenizer*"):
        shutil.copy(path, tmp_path)
    assert load(tmp_path).encode(TEXTS).dense.shape == (3, 32)


def test_stray_files_beside_the_heads_are_passed_over(copy: Path, small: Path) -> None:
    (copy / "colbert_linear.pt.bak").write_bytes(b"old")
    (copy / "sparse_linear.onnx").write_bytes(b"other")
    np.testing.assert_array_equal(load(copy).encode(TEXTS).dense, load(small).encode(TEXTS).dense)


def test_a_tokenizers_own_truncation_and_padding_are_switched_off(copy: Path, small: Path) -> None:
    content = json.loads((copy / "tokenizer.json").read_text())
    content["truncation"] = {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {
        "strategy": {"Fixed": 40}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 1, "pad_type_id": 0,
        "pad_token": "<pad>",
    }  # fmt: skip
    (copy / "tokenizer.json").write_text(json.dumps(content))
    np.testing.assert_allclose(load(copy).encode(TEXTS).dense, load(small).encode(TEXTS).dense, atol=1e-6)


def test_nothing_of_a_network_can_be_trained_by_accident(small: Path) -> None:
    assert not any(p.requires_grad for p in load(small)._live_engine().network.parameters())


def test_heads_load_from_safetensors_as_from_pt(small: Path, copy: Path) -> None:
    for name in ("colbert_linear", "sparse_linear"):
        save_file(torch.load(copy / f"{name}.pt", weights_only=True), copy / f"{name}.safetensors")
        (copy / f"{name}.pt").unlink()
    expected, vectors = load(small).encode(TEXTS), load(copy).encode(TEXTS)
    np.testing.assert_array_equal(vectors.multi_vector.flat, expected.multi_vector.flat)
    np.testing.assert_array_equal(vectors.lexical.values, expected.lexical.values)


def test_a_checkpoint_without_heads_gives_dense_vectors_only(small: Path, copy: Path) -> None:
    for path in copy.glob("*_linear.pt"):
        path.unlink()
    encoder = load(copy)
    assert encoder.modes == ("dense",)
    np.testing.assert_allclose(encoder.encode(TEXTS).dense, load(small).encode(TEXTS).dense, atol=1e-6)
    with pytest.raises(ValueError, match="no heads for multi_vector, only dense can be computed"):
        encoder.encode(TEXTS, modes=("dense", "multi_vector"))
    scores = encoder.score("keys", TEXTS)
    assert scores.modes == ("dense",)
    np.testing.assert_array_equal(scores.combined, scores.dense)
    with pytest.raises(ValueError, match="lexical scores"):
        _ = scores.lexical


def test_another_architecture_loads_and_respects_its_own_positions(small: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=2000, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=20, pad_token_id=1,
    )  # fmt: skip
    BertModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
    for path in small.glob("tokenizer*"):
        shutil.copy(path, tmp_path)
    encoder = load(tmp_path)
    assert encoder.max_length == 20
    with pytest.warns(UserWarning, match="1 of 1 texts were longer than 20 tokens"):
        vectors = encoder.encode(["word " * 50])
    assert np.linalg.norm(vectors.dense) == pytest.approx(1)


def test_a_saved_checkpoint_gives_the_same_vectors(small: Path, tmp_path: Path) -> None:
    encoder = load(small)
    encoder.save(tmp_path / "saved")
    expected, vectors = encoder.encode(TEXTS), load(tmp_path / "saved").encode(TEXTS)
    np.testing.assert_array_equal(vectors.dense, expected.dense)
    np.testing.assert_array_equal(vectors.lexical.values, expected.lexical.values)
    np.testing.assert_array_equal(vectors.multi_vector.flat, expected.multi_vector.flat)
    with pytest.raises(FileExistsError, match="holds a checkpoint already"):
        encoder.save(tmp_path / "saved")


@pytest.mark.parametrize("model", ["./nothing-here", "~/nothing-here", "/nothing/here", Path("nothing-here")])
def test_a_folder_that_is_not_there_is_never_asked_of_the_hub(model: str | Path) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint folder"):
        M3Encoder(model, shared=False)


def test_a_revision_of_a_folder_is_refused(small: Path) -> None:
    with pytest.raises(ValueError, match=r"is for a repository of the hub.*leave it out"):
        M3Encoder(small, shared=False, revision="main")


def test_loading_and_encoding_give_no_warning(small: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(small).encode(TEXTS)
