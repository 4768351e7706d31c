"""Trains tokenizer.json, the tokenizer of the random checkpoints. From the root of the repository:

    python -m tests.golden.train_tokenizer

Needs sentencepiece, which no test needs. The trainer gives another vocabulary every time, so the committed file is what
counts, the golden values belong to it, and after a new training the seeds of the checkpoints may have to be chosen
again.
"""

from __future__ import annotations

import json
import tempfile
import unicodedata
from itertools import chain
from pathlib import Path
from typing import cast

from tests.golden.checkpoints import TOKENIZER_FILE
from tests.golden.texts import TEXTS

_VOCAB_SIZE = 1000
_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
_UNSEEN_SCRIPTS = ("CUNEIFORM", "CHEROKEE", "GEORGIAN", "ETHIOPIC")

_MORE_SENTENCES = (
    "She closed the window because the rain was coming in.",
    "A small engine in the basement keeps the whole house warm.",
    "Nobody in the village remembers who planted the chestnut trees.",
    "You can change the password after you have signed in.",
    "The report is due on Friday, and the numbers are not ready.",
    "Salt makes water boil at a slightly higher temperature.",
    "The museum is closed on Mondays and open until nine on Thursdays.",
    "What does the blue light on the front of the machine mean?",
    "If the test fails, read the log before you change the code.",
    "They walked along the river until it was too dark to see the path.",
    "The third chapter explains how sails use the wind.",
    "Das Wetter wird morgen besser, und wir gehen an den See.",
    "Le train de nuit arrive à sept heures du matin.",
    "El mercado abre los domingos por la mañana.",
    "Весной в лесу поют птицы и цветут первые цветы.",
    "我们明天去山上看日出。",
    "この道をまっすぐ行くと海に出ます。",
    "내일은 도서관에서 책을 읽을 거예요.",
    "السوق مزدحم في الصباح وهادئ في المساء.",
)


def train_tokenizer(path: Path) -> None:
    """Train a small Unigram tokenizer with the parts and the special tokens of XLM-RoBERTa's.

    A few scripts are left out of the training text, so that TEXTS has characters the tokenizer does not know.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.Unigram())
    charsmap = _charsmap()
    tokenizer.normalizer = normalizers.Precompiled(charsmap)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    trainer = trainers.UnigramTrainer(
        vocab_size=_VOCAB_SIZE - 1,
        special_tokens=list(_SPECIAL),
        unk_token="<unk>",
        max_piece_length=10,
        show_progress=False,
    )
    beginnings = (text[:120] for text in TEXTS)  # a long text's repetitions would become pieces
    tokenizer.train_from_iterator((_training_text(text) for text in chain(beginnings, _MORE_SENTENCES)), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )

    content = json.loads(tokenizer.to_str())
    pieces = [[piece, round(score, 6)] for piece, score in content["model"]["vocab"]]
    assert [piece for piece, _ in pieces[: len(_SPECIAL)]] == list(_SPECIAL)
    assert len({piece for piece, _ in pieces}) == len(pieces)
    content["model"]["vocab"] = [*pieces, ["<mask>", 0.0]]
    content["model"]["unk_id"] = _SPECIAL.index("<unk>")
    content["added_tokens"] = [
        {
            "id": id_,
            "content": token,
            "single_word": False,
            "lstrip": token == "<mask>",  # as in XLM-RoBERTa: a mask takes the space before it
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for id_, token in [*enumerate(_SPECIAL), (len(pieces), "<mask>")]
    ]
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _training_text(text: str) -> str:
    """The text without special tokens, and without the scripts that the tokenizer shall not know."""
    for token in (*_SPECIAL, "<mask>"):
        text = text.replace(token, " ")
    return "".join(c for c in text if not unicodedata.name(c, "").startswith(_UNSEEN_SCRIPTS))


def _charsmap() -> bytes:
    """SentencePiece's table of a normaliser like XLM-RoBERTa's, for far fewer characters.

    NFKC; control characters vanish; zero-width characters and every kind of space become a space.
    """
    from sentencepiece import SentencePieceNormalizer, sentencepiece_model_pb2

    blocks = ((0xA0, 0x250), (0x1E00, 0x1F00), (0x2460, 0x2474), (0x3041, 0x3100), (0xFB00, 0xFB07), (0xFF01, 0xFFEF))
    characters = {chr(code) for first, end in blocks for code in range(first, end)}.union(*TEXTS)
    rules: dict[str, str] = {}
    for character in characters:
        composed = unicodedata.normalize("NFKC", character)
        rules[unicodedata.normalize("NFD", character)] = composed
        rules[character] = composed
    rules.update({chr(code): "" for code in (*range(1, 9), 0xB, *range(0xE, 0x20), 0x7F, 0xAD)})
    rules.update(dict.fromkeys("\t\n\f\r\u0085\u1680\u200b\u200e\u200f\u2028\u2029\u2581\ufeff\ufffd", " "))
    lines = [f"{_hex(source)}\t{_hex(target)}" for source, target in sorted(rules.items()) if source != target]
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder, "rules.tsv")
        table.write_text("\n".join(lines) + "\n", encoding="utf-8")
        proto = SentencePieceNormalizer(rule_tsv=str(table)).serialized_model_proto()
    model = sentencepiece_model_pb2.ModelProto.FromString(proto)  # type: ignore[attr-defined]
    return cast(bytes, model.normalizer_spec.precompiled_charsmap)


def _hex(text: str) -> str:
    return " ".join(f"{ord(character):X}" for character in text)


if __name__ == "__main__":
    train_tokenizer(TOKENIZER_FILE)
