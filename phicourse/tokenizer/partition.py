"""Cuts special tokens out of a text, before the rest is encoded."""

import re
from collections.abc import Iterable, Sequence

from phicourse.tokenizer.vocabulary import SPECIAL_TYPES, Vocabulary

# What counts as white space next to a special token: Unicode's White_Space, as in Hugging Face's tokenizers.
WHITE_SPACE = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)


class Partition:
    """Finds special tokens in texts: of all that start at a place, the longest; of overlapping ones, the first."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Prepare two searches: for all special tokens, and for those that a user may write too."""
        special = [id for type in SPECIAL_TYPES for id in vocabulary.ids_of_type(type)]
        everything = set(special) | vocabulary.control
        self._vocabulary = vocabulary
        self._all = self._pattern(everything)
        self._harmless = self._pattern(everything - vocabulary.control)

    def _pattern(self, ids: Iterable[int]) -> re.Pattern[str]:
        texts = sorted(filter(None, (self._vocabulary.tokens[id] for id in ids)), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, texts)) or r"(?!)")

    def cut(self, segments: Iterable[tuple[str, bool]]) -> list[int | str]:
        """Cut texts into ids of special tokens and raw text between them.

        segments   texts that follow each other; the flag says whether control tokens are looked for in it
        returns    ids and texts; no text is empty, none follows another, and white space that a special token
                   swallows is gone
        """
        parts: list[int | str] = []
        for text, parse_special in segments:
            end = 0
            for match in (self._all if parse_special else self._harmless).finditer(text):
                _append_text(parts, text[end : match.start()])
                parts.append(self._vocabulary.ids[match[0]])
                end = match.end()
            _append_text(parts, text[end:])
        return self._swallow_white_space(parts)

    def _swallow_white_space(self, parts: Sequence[int | str]) -> list[int | str]:
        stripped: list[int | str] = []
        for place, part in enumerate(parts):
            if isinstance(part, str):
                if place > 0 and parts[place - 1] in self._vocabulary.rstrip:
                    part = part.lstrip(WHITE_SPACE)
                if place + 1 < len(parts) and parts[place + 1] in self._vocabulary.lstrip:
                    part = part.rstrip(WHITE_SPACE)
            if part != "":
                stripped.append(part)
        return stripped


def _append_text(parts: list[int | str], text: str) -> None:
    """Append raw text; text of neighbouring segments is encoded as one."""
    if text and parts and isinstance(parts[-1], str):
        parts[-1] += text
    elif text:
        parts.append(text)
