"""500 texts that tokenizers get wrong most easily: 26 languages, blanks, controls, accents, emoji, special tokens.

All are made from the lists here and one seed, by `random.Random.random` alone, whose numbers are the same in every
version of Python.
"""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

COUNT: Final = 500

WORDS: Final = (
    "The keys of the vault", "Ключи от хранилища", "Τα κλειδιά του θησαυρού", "مفاتيح الخزنة الكبيرة",
    "מפתחות הכספת", "तिजोरी की चाबियाँ", "তিজোরির চাবি", "ਤਿਜੋਰੀ ਦੀਆਂ ਚਾਬੀਆਂ", "தொட்டியின் சாவிகள்",
    "నిధి తాళాలు", "ಕೋಣೆಯ ಕೀಲಿಗಳು", "നിലവറയുടെ താക്കോൽ", "ගබඩාවේ යතුරු", "กุญแจห้องนิรภัย",
    "ກະແຈຕູ້ນິລະໄພ", "ဘဏ်တိုက်သော့များ", "សោរបន្ទប់សុវត្ថិភាព", "საცავის გასაღებები",
    "Պահոցի բանալիները", "የካዝና ቁልፎች", "金库的钥匙每年更换", "金庫の鍵を毎年交換する",
    "금고 열쇠는 매년 교체한다", "Chìa khóa của kho tiền", "ᎦᎸᎳᏗ ᎤᎾᏍᏚᎢ", "ཕྱག་མཛོད་ཀྱི་ལྡེ་མིག",
)  # fmt: skip
ODD: Final = (
    "ﾀﾞｲｱﾙ ﾊﾟｽﾜｰﾄﾞ ｶﾞｷﾞｸﾞ", "ﾊﾞｽ", "①②③ ㍿ ㌔ ㏂", "ﬁne ﬂow ﬃ", "ＦＵＬＬ　ｗｉｄｔｈ１２３",
    "½ + ⅓ = x²", "İstanbul ıI", "ẞ ß ss", "a\u0301e\u0300 i\u0308", "\u00e1\u00e8 \u00ef", "x \u0301y",
    "\u0301start", "n\u0303o", "\ud55c\uae00 \u1112\u1161\u11ab", "zero\u200bwidth\u200djoin\u200cer",
    "soft\u00adhyphen", "\ufeffmark", "rtl\u202eoverride\u202c", "\u2028line\u2029para",
    "nel\u0085here", "nul\x00bell\x07esc\x1b[0m", "tab\tnew\nline\r\nvt\x0bff\x0c",
    "nbsp\u00a0em\u2003ideo\u3000graph", "▁ lower one eighth ▁▁block", "_under_score_", "🔑",
    "👩‍🚀 👨‍👩‍👧‍👦 🏳️‍🌈", "👍🏽👍🏿", "🇫🇷🇩🇪🇯🇵", "❤️ ❤", "¡¿«»„“”‘’…—–",
    "http://example.com/a?b=c&d=%20#e", "key@vault.example", "C:\\keys\\vault.txt",
    "{'a': [1, 2.5e-3]}", "SELECT * FROM t;--", "1,234,567.89", "٣٫١٤ ۱۲۳ १२३", "+49 (0)89 123-456",
    "2026-11-27T01:30:00Z", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "Donaudampfschifffahrtsgesellschaftskapitän", "ٱلسَّلَامُ عَلَيْكُمْ", "كـــتـــاب",
    "क्षत्रिय ज्ञान", "ำ ้ ์", "\U00010330\U00010331 \U000120d0", "\ue000 private \U000f0000",
    "\u0378 unassigned", "\ufffd replacement", "", " ", "\n", "\u3000", "?", "'", "</", "<", "<<s>>",
)  # fmt: skip
SPECIAL: Final = ("<s>", "</s>", "<pad>", "<unk>", "<mask>")
BLANKS: Final = (" ", "  ", "\t", "\n", "\r\n", "\u00a0", "\u3000", "\u2003 ", " \n\n ", "\u200b", "\u0085")

T = TypeVar("T")


def awkward_texts() -> list[str]:
    """The 500 texts, each once, the same always."""
    draw = random.Random(20261127)

    def one_of(values: Sequence[T]) -> T:
        return values[int(draw.random() * len(values))]

    makers: tuple[Callable[[], str], ...] = (
        lambda: one_of(BLANKS) + one_of(WORDS) + one_of(BLANKS),
        lambda: one_of(WORDS) + one_of(BLANKS) + one_of(ODD),
        lambda: one_of(WORDS) + one_of(("", " ")) + one_of(SPECIAL) + one_of(("", " ")) + one_of(WORDS),
        lambda: unicodedata.normalize(one_of(("NFC", "NFD", "NFKC", "NFKD")), one_of((*WORDS, *ODD))).upper(),
        lambda: "".join(one_of((*WORDS, *ODD, *BLANKS, *SPECIAL)) for _ in range(2 + int(draw.random() * 4))),
        lambda: "".join(_code_point(draw) for _ in range(1 + int(draw.random() * 30))),
        lambda: " ".join(one_of(WORDS) for _ in range(3 + int(draw.random() * 20))),
    )
    texts = dict.fromkeys((*WORDS, *ODD, *SPECIAL))
    while len(texts) < COUNT:
        texts.setdefault(makers[len(texts) % len(makers)]())
    return list(texts)


def _code_point(draw: random.Random) -> str:
    """Any character that UTF-8 holds, half of them from the first 12,288, where most scripts are."""
    limit = 0x3000 if draw.random() < 0.5 else 0x110000
    point = int(draw.random() * limit)
    return "?" if 0xD800 <= point < 0xE000 else chr(point)
