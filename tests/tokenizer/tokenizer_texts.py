"""Texts that try a tokenizer: specials and look-alikes, white space, scripts, emoji, every Unicode plane."""

import random
import unicodedata

# Releases of the Phi-3 family whose tokenizer.json is here; all share the tokenizer.model of Phi-3-mini.
RELEASES = ("Phi-3-mini-4k-instruct", "Phi-3-first-release", "Phi-3-medium", "Phi-3-vision")

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
