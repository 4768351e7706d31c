"""The tokenizer of `tiny`: a Unigram model of its own with the parts and special tokens of XLM-RoBERTa's."""

from __future__ import annotations

import io
import json
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from tests.tiny_recipe.descriptions import Description

_SPECIAL: Final = ("<s>", "<pad>", "</s>", "<unk>")
_MASK: Final = "<mask>"
_TEXTS_PER_LANGUAGE: Final = 12_000
"""English has sixty times the texts of Chinese; without a cap the pieces would be English."""

_MAX_CHARACTERS: Final = 600


def train_tokenizer(folder: Path, descriptions: Sequence[Description], *, vocab_size: int, max_length: int) -> None:
    """Train a Unigram model and write it as tokenizer.json and tokenizer_config.json.

    SentencePiece's own trainer is used because it gives the same vocabulary each time; that of the tokenizers library
    does not. The normaliser folds case: a small network has no room to learn that "Who" and "who" are one word.

    Args:
        folder: Where to write; made if it is missing.
        descriptions: The texts.
        vocab_size: Pieces, special tokens included.
        max_length: The most tokens that the network has positions for.
    """
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=_sample(descriptions),
        model_writer=model,
        model_type="unigram",
        vocab_size=vocab_size - 1,  # <mask> comes last
        normalization_rule_name="nmt_nfkc_cf",
        required_chars=common_hanzi(),
        character_coverage=0.9998,
        max_sentence_length=16_384,
        max_sentencepiece_length=16,
        num_threads=1,
        bos_id=0, pad_id=1, eos_id=2, unk_id=3,
        bos_piece="<s>", pad_piece="<pad>", eos_piece="</s>", unk_piece="<unk>",
        minloglevel=2,
    )  # fmt: skip
    proto = sentencepiece_model_pb2.ModelProto.FromString(model.getvalue())  # type: ignore[attr-defined]
    pieces = [[piece.piece, round(piece.score, 4)] for piece in proto.pieces]
    charsmap = proto.normalizer_spec.precompiled_charsmap
    write_tokenizer(folder, [*pieces, [_MASK, 0.0]], charsmap, max_length=max_length)


def write_tokenizer(folder: Path, pieces: list[list[Any]], charsmap: bytes, *, max_length: int) -> None:
    """Write tokenizer.json and tokenizer_config.json of a Unigram model in XLM-RoBERTa's form.

    Args:
        folder: Where to write; made if it is missing.
        pieces: Every piece and its log probability; the four special tokens first, <mask> last.
        charsmap: SentencePiece's normalizer, compiled.
        max_length: The most tokens that the network has positions for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = _tokenizer_json(pieces, charsmap)
    (folder / "tokenizer.json").write_text(
        json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8"
    )
    _write_config(folder, max_length)


def _sample(descriptions: Sequence[Description]) -> Iterator[str]:
    """Yield texts of every language, the small languages whole and the large ones capped."""
    by_language: dict[str, list[Description]] = defaultdict(list)
    for description in descriptions:
        if not description.is_held_out:
            by_language[description.language].append(description)
    for language, members in sorted(by_language.items()):
        chosen = random.Random(language).sample(members, min(len(members), _TEXTS_PER_LANGUAGE))
        for description in chosen:
            yield f"{description.short}. {description.long}"[:_MAX_CHARACTERS]


def common_hanzi() -> str:
    """Return the 3,755 most used simplified characters: level 1 of GB 2312, most of which the texts lack."""
    codes = (bytes((row, cell)) for row in range(0xB0, 0xD8) for cell in range(0xA1, 0xFF))
    return "".join(code.decode("gb2312", errors="ignore") for code in codes)


def _tokenizer_json(pieces: list[list[Any]], charsmap: bytes) -> dict[str, Any]:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Precompiled(charsmap)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    content: dict[str, Any] = json.loads(tokenizer.to_str())
    content["model"].update(vocab=pieces, unk_id=_SPECIAL.index("<unk>"))
    processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    content["post_processor"] = json.loads(processor.__getstate__())
    content["added_tokens"] = [
        {
            "id": id_,
            "content": token,
            "single_word": False,
            "lstrip": token == _MASK,  # as in XLM-RoBERTa: a mask takes the space before it
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for id_, token in [*enumerate(_SPECIAL), (len(pieces) - 1, _MASK)]
    ]
    return content


def _write_config(folder: Path, max_length: int) -> None:
    config = {
        "tokenizer_class": "XLMRobertaTokenizer",
        "model_max_length": max_length,
        "bos_token": "<s>",
        "cls_token": "<s>",
        "eos_token": "</s>",
        "sep_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
