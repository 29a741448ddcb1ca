r"""Cuts text into words before byte-pair encoding; no merge crosses the border of a word.

Where the borders are is a regular expression, whose alternatives are tried from left to right at each place.
The three that Phi models use differ in what may belong together:

              "we'll"   " 2026"      "HTTPServer"      "x = 3;\n"
    gpt-2     we 'll    _2026        HTTPServer        x _= _3 ; \n         Phi-1, Phi-1.5, Phi-2
    dbrx      we 'll    _ 202 6      HTTPServer        x _= _ 3 ;\n         Phi-4
    gpt-4o    we'll     _ 202 6      HTTPServer        x _= _ 3 ;\n         Phi-4-mini

gpt-4o also cuts where a capital follows a small letter: camelCase is camel Case. The expressions are those of
the models' tokenizer.json, in every script. llama.cpp approximates gpt-4o's: it takes only a to z for small
letters and A to Z for capitals, and cuts before combining marks, so that a word such as हिन्दी gets other ids
there. What is a letter is as new as the `regex` package's Unicode.
"""

from functools import cache
from typing import Any

from phicourse.errors import TokenizerError

ENDINGS = "'s|'t|'re|'ve|'m|'ll|'d"  # of English
UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"  # capitals, and letters and marks of scripts that have none
LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
ONE_IN_FRONT = r"[^\r\n\p{L}\p{N}]?"  # a space, a quote, a bracket, …

GPT_2 = "|".join(
    (
        ENDINGS,
        r" ?\p{L}+",
        r" ?\p{N}+",
        r" ?[^\s\p{L}\p{N}]+",
        r"\s+(?!\S)",  # white space, but its last character goes to the word that follows
        r"\s+",
    )
)
DBRX = "|".join(
    (
        f"(?i:{ENDINGS})",
        ONE_IN_FRONT + r"\p{L}+",
        r"\p{N}{1,3}",  # numbers in groups of three
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
GPT_4O = "|".join(
    (
        f"{ONE_IN_FRONT}{UPPER}*{LOWER}+(?i:{ENDINGS})?",
        f"{ONE_IN_FRONT}{UPPER}+{LOWER}*(?i:{ENDINGS})?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
# By the names that llama.cpp gives them. Phi-2's differs from GPT-2's in its added tokens only.
EXPRESSIONS = {"gpt-2": GPT_2, "phi-2": GPT_2, "dbrx": DBRX, "gpt-4o": GPT_4O}


class PreTokenizer:
    """Cuts text into words by one of the expressions.

    >>> PreTokenizer("gpt-4o").words("camelCase isn't 1234.")
    ['camel', 'Case', " isn't", ' ', '123', '4', '.']
    """

    def __init__(self, name: str) -> None:
        """Take the expression of this name; TokenizerError where there is none."""
        if name not in EXPRESSIONS:
            raise TokenizerError(
                f"pre-tokenizer {name[:40]!r} is not supported; supported are {', '.join(EXPRESSIONS)}"
            )
        self._find_words = _compile(EXPRESSIONS[name]).findall

    def words(self, text: str) -> list[str]:
        """Return the words; together they are the text."""
        words: list[str] = self._find_words(text)
        return words


@cache
def _compile(expression: str) -> Any:
    import regex  # type: ignore[import-untyped]  # Python's own re has no \p{L}; only these models need it

    return regex.compile(expression)


def name_of_pre_tokenizer(description: object) -> str:
    """Return llama.cpp's name for the pre-tokenizer that a tokenizer.json describes.

    description   the value of "pre_tokenizer"
    raises        TokenizerError where it is none of those that Phi models use
    """
    expression = _expression(description)
    name = next((name for name, known in EXPRESSIONS.items() if known == expression), None)
    if name is None:
        raise TokenizerError(
            f"pre_tokenizer cuts text in another way than {', '.join(EXPRESSIONS)}, the ways supported"
        )
    return name


def _expression(description: object) -> str | None:
    """Find the expression in a description: ByteLevel has GPT-2's built in, Split comes before it."""
    match description:
        case {"type": "ByteLevel"} if _is_plain_byte_level(description, use_regex=True):
            return GPT_2
        case {
            "type": "Sequence",
            "pretokenizers": [{"type": "Split", "pattern": {"Regex": str(expression)}} as split, last],
        } if _keeps_matches(split) and _is_plain_byte_level(last, use_regex=False):
            return expression
    return None


def _is_plain_byte_level(description: object, use_regex: bool) -> bool:
    return isinstance(description, dict) and (
        description.get("type"),
        description.get("add_prefix_space", True),
        description.get("use_regex", True),
    ) == ("ByteLevel", False, use_regex)


def _keeps_matches(split: dict[str, Any]) -> bool:
    """Whether each match is a word: no expression leaves a gap, so what becomes of gaps does not matter."""
    return (split.get("behavior"), split.get("invert", False)) in (("Isolated", False), ("Removed", True))
