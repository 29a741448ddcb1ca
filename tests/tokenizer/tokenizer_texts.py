"""Texts that try a tokenizer: specials and look-alikes, white space, scripts, emoji, every Unicode plane."""

import random
import unicodedata
from collections.abc import Callable

# Releases of the Phi-3 family whose tokenizer.json is here; all share the tokenizer.model of Phi-3-mini.
RELEASES = ("Phi-3-mini-4k-instruct", "Phi-3-first-release", "Phi-3-medium", "Phi-3-vision")

# Releases with byte-pair encoding as in GPT-2, and how llama.cpp calls the way in which they cut words.
BPE_RELEASES = {"phi-2": "phi-2", "phi-4": "dbrx", "Phi-4-mini-instruct": "gpt-4o"}

SPECIAL_TEXTS = (
    "<|user|>\nHi<|end|>\n<|assistant|>\n",
    "<|user|>Hi<|end|><|assistant|>",
    "Hello<|end|> world",
    "Hello <|end|>  \t\n world",
    "<|endoftext|> a<|endoftext|>a",
    "</s> a</s>  b</s>",
    "<s>a<s> b",
    "<unk>x <unk> y",
    "<|end|><|end|> <|end|>",
    "<|end|>\u3000\u00a0\u2028x",
    "<|end|>\x1c\u200bx",
    "  <|system|>  ",
    "<|end|>",
)
TEXTS = (
    "",
    " ",
    "Hello",
    " Hello",
    "  Hello  ",
    "Hello, world! It's 1,234.56 € or £5 – “quoted” …",
    "a\tb\t\tc\n\nd\r\ne\v\f",
    "\n",
    " \n ",
    "x" + " " * 37 + "y",
    "\t" * 19,
    "😀 😃👍🏽 🦥",
    "👨\u200d👩\u200d👧\u200d👦 🏳\ufe0f\u200d🌈 🧑🏿\u200d🚀",
    "🇩🇪🇫🇷 ✌\ufe0f",
    "汉字 漢字かな交じり文。한국어 텍스트",
    "مرحبا بالعالم ١٢٣ שלום \u202eabc\u202c",
    "हिन्दी ไทย ქართული Ελληνικά Кириллица Việt Nam",
    "e\u0301 é Å Å ﬁ ﬀ ½ ² ①",
    "\u0000\u0001\u007f\u0085\ufeff\ufffe\uffff\ufffd",
    "<0x41> <0xE2>",
    "<|End|> <|end| > <||end|> <|end|",
    "def f(x):\n    return x ** 2  # comment\n",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "http://example.org/?q=1&r=%20#x",
    "ħéĺłø ẘøŕłđ",
    "\U0001f9a5\U00020000\U0002fa1d\U000e0041\U0010ffff",
    "ab" * 200,
)


def plane_sample(plane: int, n: int = 400) -> str:
    """Return code points of a Unicode plane, assigned and unassigned, without surrogates and U+2581."""
    generator = random.Random(plane)
    codes = [plane << 16 | generator.randrange(0x10000) for _ in range(n)]
    return "".join(chr(code) for code in codes if unicodedata.category(chr(code)) != "Cs" and code != 0x2581)


PLANES = tuple(plane_sample(plane) for plane in range(17))


SPACES = " \t\n\r\v\f\u0085\u00a0\u1680\u2003\u2028\u2029\u202f\u205f\u3000\u200b\ufeff\u180e\x1c\x1f"
LOOK_ALIKES = (
    *("<|endoftext|>", "<|im_start|>", "<|im_sep|>", "<|im_end|>", "<|fim_prefix|>", "<|dummy_7|>"),
    *("<|end|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|/tool|>", "<|tag|>", "<|endofprompt|>"),
    *("<|", "|>", "<|end", "endoftext", "im_", "<<|end|>>", "< |end| >", "<|END|>", "<s>", "</s>", "|"),
)
ENDINGS = (
    *("'s", "'S", "'\u017f", "'ll", "'LL", "'lL", "'re", "'RE", "'VE", "'m", "'M", "'d", "'D", "'t", "'T"),
    *("\u2019s", "''", "'", "'Don", "'There", "'Some", "'Most"),
)
WORDS = (
    *(
        "I",
        "we",
        "HTTPServer",
        "camelCase",
        "don",
        "ÄRGER",
        "ǅungla",
        "ﬁn",
        "Straße",
        "ΣΊΣΥΦΟΣ",
        "İi",
        "x",
        "_a",
    ),
    *(
        "привет",
        "ПРИВЕТ",
        "ПриветМир",
        "漢字",
        "हिन्दी",
        "e\u0301E\u0301",
        "ªº",
        "1",
        "12",
        "123",
        "1234567",
        "٣٤٥",
    ),
    *("½", "Ⅷ", "...", "!?", "//", "/*", "==", "\r\n", "\n\n", "()", "[x]", '"', "€", "🦥", "👩\u200d🚀"),
)


def settled_characters() -> dict[str, list[str]]:
    """Return category → its characters, of those on which the Unicode versions in use agree.

    Python's, that of the regex package and that of Hugging Face's tokenizers differ in what they know: newer
    ones assign code points that older ones do not, and Unicode 17 made U+0295 a letter without case.
    """
    import regex

    everything = "".join(chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000)
    unassigned = set(regex.findall(r"\p{Cn}", everything))
    categories: dict[str, list[str]] = {}
    for character in everything.replace("\u0295", ""):
        category = unicodedata.category(character)
        if category != "Cn" or character in unassigned:
            categories.setdefault(category, []).append(character)
    return categories


def fuzzed_texts(n: int, seed: int, sources: list[str]) -> list[str]:
    """Make texts of five kinds: any characters, words, white space, special-token look-alikes, real text.

    sources   real text and code, of which pieces are cut, some with a change
    """
    generator = random.Random(seed)
    choice, size = generator.choice, generator.randrange
    categories = list(settled_characters().values())

    def any_character() -> str:
        return choice(choice(categories))

    def piece() -> str:
        source = choice(sources)
        start = size(len(source))
        return source[start : start + size(1, 150)]

    kinds: list[Callable[[], str]] = [
        lambda: "".join(any_character() for _ in range(size(1, 30))),
        lambda: "".join(choice(choice((WORDS, ENDINGS, " ", SPACES))) for _ in range(size(1, 20))),
        lambda: (
            "".join(choice(choice((" ", "\t", "\n", SPACES))) * size(1, 5) for _ in range(size(1, 8))) + "x"
        ),
        lambda: "".join(choice(choice((LOOK_ALIKES, WORDS, SPACES))) for _ in range(size(1, 10))),
        piece,
        lambda: piece() + any_character() + piece().upper(),
    ]
    return [kinds[i % len(kinds)]() for i in range(n)]
