"""The texts and pairs that the golden values are computed on.

Characters that do not show (zero width, control, direction) are written as escapes, over-long texts as repetitions.
"""

from __future__ import annotations

from itertools import cycle, islice

# Each of these is one piece of the committed tokenizer, so a text of n of them has n + 2 tokens with <s> and </s>.
_ONE_TOKEN_WORDS = ("the", "key", "to", "a", "bridge", "in", "it")


def _text_of(tokens: int) -> str:
    """A text that the committed tokenizer turns into exactly this many tokens, <s> and </s> included."""
    return " ".join(islice(cycle(_ONE_TOKEN_WORDS), tokens - 2))


_NAMED: dict[str, str] = {
    # Nothing, or next to nothing
    "empty": "",
    "blank": "   ",
    "newlines_and_tabs": "\n\t\r\n\t",
    "no_break_spaces": "\u00a0\u2003\u3000",
    "one_token": "the",
    "one_letter": "q",
    "one_digit": "7",
    "one_ideograph": "水",
    "one_full_stop": ".",
    # Words that repeat: one lexical weight each, the largest
    "repeated_word": "the the the the the the",
    "repeated_phrase": "bread and butter and bread and butter and bread",
    "repeated_three_cases": "Stone stone STONE stone Stone",
    "repeated_ideograph": "水水水水水",
    # Special tokens typed by a user
    "literal_mask": "The capital of Norway is <mask>, is it not?",
    "literal_mask_twice": "<mask><mask>",
    "literal_mask_spaced": "left   <mask>   right",
    "literal_eos": "first part </s> second part",
    "literal_eos_only": "</s>",
    "literal_bos": "<s> a text that opens itself",
    "literal_pad": "before <pad> after <pad> the end",
    "literal_pad_last": "nothing follows this <pad>",
    "literal_pad_only": "<pad><pad><pad>",
    "literal_unk": "an <unk> word",
    "literal_all": "<s>one</s><pad>two<unk>three<mask>",
    "almost_special": "< s > </ s> <MASK> <<s>> <pad",
    # Characters that the tokenizer has never seen
    "unknown_cuneiform": "𒀀𒁀𒂀",
    "unknown_cherokee": "ᎣᏏᏲ ᎪᎵᎢᏍᏗ",
    "unknown_among_known": "the word ქართული is written in its own letters",
    "unknown_then_known": "ሰላም the ሰላም",
    # Ordinary sentences
    "question_tea": "How long should green tea steep?",
    "answer_tea": "Green tea is best after two to three minutes in water that is well below boiling.",
    "question_bridge": "Why do bridges have expansion joints?",
    "answer_bridge": "Steel and concrete grow when they are warm, and the joints give the bridge room to do so.",
    "question_keys": "how do I rotate the keys of the server",
    "answer_keys": "Create a new key, tell every client to use it, and then revoke the old key.",
    "german": "Der Zug nach Köln fährt heute von Gleis sieben und nicht von Gleis drei.",
    "german_long_words": "Die Wasserstandsvorhersage der Binnenschifffahrt überraschte die Lagerhausverwaltung.",
    "french": "L'été dernier, nous avons mangé des crêpes près du vieux port.",
    "spanish": "¿Dónde está la biblioteca? El niño perdió su sombrero mañana y tarde.",
    "portuguese": "A manhã estava fria, mas o pão ainda vinha quente do forno.",
    "polish": "Zażółć gęślą jaźń, powiedziała ciocia i zamknęła drzwi.",
    "turkish": "İstanbul'da ışıklar söndü, çocuklar eve yürüdü.",
    "vietnamese": "Hôm nay trời mưa to nên chúng tôi ở nhà đọc sách.",
    "russian": "Зимой река замерзает, и дети катаются на коньках до вечера.",
    "ukrainian": "Їжак знайшов у саду яблуко й поніс його додому.",
    "greek": "Ο ψαράς γύρισε στο λιμάνι πριν από την καταιγίδα.",
    # Writing without spaces between words
    "chinese": "今天早上湖面上有一层薄雾，渔夫却已经出发了。",
    "chinese_answer": "雾散了以后，渔夫带着三条大鱼回到了村里。",
    "chinese_traditional": "圖書館的門還沒有開，學生們在雨中等待。",
    "japanese": "駅前のパン屋は朝六時に開いて、いつも行列ができています。",
    "japanese_half_width": "ｶﾀｶﾅ ﾊﾝｶｸ ｶﾞｷﾞｸﾞ と全角ＡＢＣ１２３",
    "thai": "แมวดำนอนหลับอยู่บนหลังคาบ้าน",
    # Other scripts
    "korean": "기차가 늦어서 우리는 역에서 따뜻한 차를 마셨다.",
    "hindi": "बारिश के बाद गाँव की सड़क पर बच्चे खेल रहे थे।",
    "arabic": "ذهب الطبيب إلى القرية قبل شروق الشمس.",
    "arabic_vowels": "كِتَابٌ جَدِيدٌ",
    "hebrew": "הספר הישן נשאר על השולחן ליד החלון.",
    "right_to_left_marks": "price: \u200f١٢٣\u200e \u202bשלום\u202c \u2067abc\u2069",
    "mixed_scripts": "Tokyo 東京 Москва القاهرة Αθήνα 서울 in one line",
    "mixed_in_one_word": "pаypal раураl Ωmega ソft",
    # Emoji
    "emoji": "Good morning ☀️🌻 and good luck 🍀!",
    "emoji_only": "🍎🍎🍐",
    "emoji_joined": "family 👩\u200d👩\u200d👧\u200d👦, pirate 🏴\u200d☠\ufe0f, doctor 👩🏽\u200d⚕\ufe0f",
    "emoji_flags": "🇳🇴🇯🇵🇧🇷 and 🏴\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f",
    # Code, addresses, numbers, punctuation
    "code": "def area(r: float) -> float:\n    return 3.14159 * r ** 2  # circle\n",
    "code_shell": "grep -rn 'TODO' src/ | awk -F: '{print $1\":\"$2}' | sort -u",
    "json": '{"id": 42, "tags": ["a", "b"], "price": null, "nested": {"ok": true}}',
    "html": '<p class="x">1 &lt; 2 &amp;&amp; <br/> <b>bold</b></p>',
    "url": "https://example.org/a/b%20c/?q=tea&lang=en#steeping-time",
    "email": "write to first.last+tag@example.com before 17:30",
    "numbers": "3.14159 -2,718.28 1e-10 0x7F ½ ² Ⅷ 10^100 50% №5 $19.99",
    "long_number": "31415926535897932384626433832795028841971693993751",
    "punctuation": "?!... --- ;;; (((([[[]]]]))) «» „“ ¿¡ …",
    "quotes": "‘single’ “double” 'plain' \"plain\" `tick`",
    # Forms of the same thing
    "composed": "Crème brûlée à l'Île, Ångström, naïve café",
    "decomposed": "Cre\u0300me bru\u0302le\u0301e a\u0300 l'I\u0302le, A\u030angstro\u0308m, nai\u0308ve cafe\u0301",
    "stacked_accents": "z\u0351\u036b\u0343\u036a\u0302a\u0324\u0332l\u0329\u0353\u0345g\u034a\u0306o\u0321",
    "decomposed_hangul": "\u1100\u1175\u110e\u1161",
    "ligatures_and_widths": "eﬃcient ﬁle ™ ㎏ ﬆ ℌ ①②③ Ｆｕｌｌ",
    "zero_width": "zero\u200bwidth\u200cnon\u200djoiner\u2060word\ufeffend",
    "soft_hyphen": "co\u00adop\u00ader\u00ada\u00adtion",
    "control_characters": "bell\u0007 null\u0000 escape\u001b[31m delete\u007f next\u0085line",
    "private_and_replacement": "\ue000 \ufffd \ufffe \U0010fffd",
    "mixed_case": "tHe QuIcK kEy Of ThE sErVeR",
    "upper_case": "GREEN TEA IS BEST AFTER TWO TO THREE MINUTES",
    "trailing_spaces": "   green   tea   ",
    "many_spaces": " " * 5000 + "end",
    "sentencepiece_space": "▁the▁and ▁ the",
    "long_word": "pneumono" + "ultra" * 3 + "microscopic" + "silico" * 2 + "volcanoconiosis",
    # At the limit of 64 tokens and of 128, one below, one above
    "tokens_63": _text_of(63),
    "tokens_64": _text_of(64),
    "tokens_65": _text_of(65),
    "tokens_127": _text_of(127),
    "tokens_128": _text_of(128),
    "tokens_129": _text_of(129),
    # Far above
    "over_english": "The old harbour wall keeps the winter waves away from the fishing boats. " * 40,
    "over_english_late_difference": "The old harbour wall keeps the winter waves away from the fishing boats. " * 40
    + "X",
    "over_inside_word": "Donaudampfschifffahrtsgesellschaftskapitänswitwe " * 60,
    "over_one_word": "incomprehensibility" * 80,
    "over_chinese": "山上的雪在春天慢慢融化，河水也渐渐涨了起来。" * 60,
    "over_japanese": "静かな夜に遠くの汽笛が聞こえてきた。" * 60,
    "over_korean": "바람이부는언덕에서연을날렸다" * 60,
    "over_arabic": "كانت السفينة تبحر ببطء نحو الميناء القديم. " * 60,
    "over_emoji": "🍎 🍐 🌻 " * 80,
    "over_unknown": "𒀀 ᎣᏏᏲ " * 120,
    "over_special": "key </s> <pad> <mask> " * 80,
    "over_one_letter": "q " * 400,
    "over_lines": "line\n\n\t" * 200,
}

NAMES: tuple[str, ...] = tuple(_NAMED)
"""What each text is there for, in the order of TEXTS: good test ids."""

TEXTS: tuple[str, ...] = tuple(_NAMED.values())
"""The texts, over a hundred, all different."""

_PAIRED: tuple[tuple[str, str], ...] = (
    # Question and answer, right and wrong
    ("question_tea", "answer_tea"),
    ("question_tea", "answer_bridge"),
    ("question_tea", "upper_case"),
    ("question_bridge", "answer_bridge"),
    ("question_bridge", "answer_keys"),
    ("question_keys", "answer_keys"),
    ("question_keys", "mixed_case"),
    ("answer_keys", "question_keys"),
    ("chinese", "chinese_answer"),
    ("chinese", "chinese_traditional"),
    ("russian", "ukrainian"),
    ("german", "german_long_words"),
    ("french", "spanish"),
    ("japanese", "over_japanese"),
    ("korean", "decomposed_hangul"),
    ("arabic", "arabic_vowels"),
    ("hebrew", "right_to_left_marks"),
    ("hindi", "thai"),
    ("mixed_scripts", "greek"),
    # A text with itself
    ("question_tea", "question_tea"),
    ("empty", "empty"),
    ("literal_eos", "literal_eos"),
    ("repeated_word", "repeated_word"),
    ("unknown_cuneiform", "unknown_cuneiform"),
    ("over_english", "over_english"),
    ("over_chinese", "over_chinese"),
    # The same text in another form
    ("composed", "decomposed"),
    ("empty", "blank"),
    ("one_token", "repeated_word"),
    ("one_ideograph", "repeated_ideograph"),
    ("repeated_three_cases", "repeated_phrase"),
    # Next to nothing against something
    ("empty", "answer_tea"),
    ("answer_tea", "empty"),
    ("one_full_stop", "punctuation"),
    ("question_bridge", "one_letter"),
    ("over_english", "one_digit"),
    ("emoji_only", "emoji"),
    # Special tokens on either side
    ("literal_mask", "literal_mask_twice"),
    ("literal_pad", "literal_pad_only"),
    ("literal_pad_only", "answer_keys"),
    ("literal_all", "over_special"),
    ("question_keys", "over_special"),
    ("unknown_cherokee", "over_unknown"),
    ("literal_unk", "unknown_among_known"),
    # Around and over the limit
    ("one_token", "tokens_128"),
    ("tokens_63", "tokens_65"),
    ("tokens_127", "tokens_129"),
    ("tokens_64", "over_english"),
    ("over_english", "over_english_late_difference"),
    ("question_bridge", "over_english"),
    ("over_english", "question_bridge"),
    ("over_inside_word", "german_long_words"),
    ("over_one_word", "long_word"),
    ("chinese", "over_chinese"),
    ("over_arabic", "over_emoji"),
    ("code", "code_shell"),
    ("url", "email"),
    ("numbers", "long_number"),
)

PAIRS: tuple[tuple[int, int], ...] = tuple((NAMES.index(query), NAMES.index(document)) for query, document in _PAIRED)
"""(query, document) as positions in TEXTS."""
