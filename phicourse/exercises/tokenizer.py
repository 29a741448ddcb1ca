"""The checks of notebook 03, text to tokens and back."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from phicourse.exercises.compare import compare_values
from phicourse.exercises.exercise import Answer, Mistake, exercise
from phicourse.tokenizer import merge

Scores = Mapping[str, float]

# The score of a piece says how early it was learned. `he` has 0, as in phi-tiny: a score like any other.
_PIECES = ("he", "▁t", "in", "▁the", "the", "th", "aa", "hen", "ing", "▁then", "tin", "ther", "er", "g▁")
_SCORES: Scores = {piece: float(-place) for place, piece in enumerate(_PIECES)}
_TEXTS = ("▁the", "▁then", "▁tin", "aaa", "aaaaa", "▁other▁thing", "hehehe", "xyz", "x", "")


@exercise("03.1", "The best pair", difficulty=1, minutes=5, core=True)
def best_pair(answer: Answer) -> Mistake | None:
    """Hold `best_pair(symbols, scores) -> index of the left symbol, or None` against a look at all pairs."""
    cases = [list(text) for text in _TEXTS] + [["▁t", "he", "n"], ["t", "he", "r"], ["th", "er"]]
    for symbols in cases:
        expected = _best(symbols, _SCORES)
        got = answer(list(symbols), dict(_SCORES))
        likely = _likely_pair(symbols, expected, got)
        mistake = compare_values(f"the best pair of {symbols}", expected, got, likely)
        if mistake is not None:
            return mistake if expected is not None else _found_nothing_there(mistake, likely)
    return None


def _best(symbols: Sequence[str], scores: Scores) -> int | None:
    """Return the leftmost of the pairs with the highest score."""
    return max(_candidates(symbols, scores), key=lambda at: scores[_union(symbols, at)], default=None)


def _candidates(symbols: Sequence[str], scores: Scores) -> list[int]:
    return [at for at in range(len(symbols) - 1) if _union(symbols, at) in scores]


def _union(symbols: Sequence[str], at: int) -> str:
    return symbols[at] + symbols[at + 1]


def _found_nothing_there(mistake: Mistake, likely: str) -> Mistake:
    return Mistake(
        mistake.where, mistake.expected, mistake.got, likely or "where no union is a piece, return None"
    )


def _likely_pair(symbols: Sequence[str], expected: int | None, got: Any) -> str:
    known = _candidates(symbols, _SCORES)
    if expected is None or not isinstance(got, int | None):
        return ""
    if got is None:
        return "0 is a score, too: compare with None, or ask whether the union is `in scores`"
    worst = min(_SCORES[_union(symbols, at)] for at in known)
    if got in known and worst == _SCORES[_union(symbols, got)] < _SCORES[_union(symbols, expected)]:
        return "the highest score goes first: -1 comes before -2"
    if got in known and _SCORES[_union(symbols, got)] == _SCORES[_union(symbols, expected)]:
        return "of equal scores the leftmost pair goes first: a later one must be better, not as good"
    if got in known and _SCORES[_union(symbols, expected)] == 0:
        return "0 is a score, too: compare with None, or ask whether the union is `in scores`"
    return "the index is that of the left symbol"


@exercise("03.2", "The merge loop", difficulty=2, minutes=15, core=True)
def merge_loop(answer: Answer) -> Mistake | None:
    """Hold `merge(text, scores) -> pieces` against the course's, on ten texts and on 200 with made-up vocabularies."""
    cases = [(text, _SCORES) for text in _TEXTS] + _made_up(200)
    for text, scores in cases:
        got = answer(text, dict(scores))
        likely = _likely_merge(text, scores, got)
        mistake = compare_values(f"the pieces of {text!r}", merge(text, scores), got, likely)
        if mistake is not None:
            return mistake
    return None


def _made_up(n: int) -> list[tuple[str, Scores]]:
    """Make texts of few characters, each with a vocabulary that was learned by joining what was there before."""
    dice = random.Random(3)
    cases: list[tuple[str, Scores]] = []
    for _ in range(n):
        pieces = list("abc▁")
        for _ in range(12):
            pieces.append(dice.choice(pieces) + dice.choice(pieces))
        scores = {piece: float(-place) for place, piece in enumerate(dict.fromkeys(pieces[4:]))}
        cases.append(("".join(dice.choices("abc▁", k=dice.randrange(1, 15))), scores))
    return cases


def _likely_merge(text: str, scores: Scores, got: Any) -> str:
    """Name the usual ways to be wrong."""
    if not isinstance(got, list) or not all(isinstance(piece, str) for piece in got):
        return "return a list of texts"
    if "".join(got) != text:
        return "the pieces must make up the text: what no merge takes in stays as it is"
    if got == _longest_first(text, scores):
        return "this takes the longest piece that fits; the score decides, not the length"
    if got == merge(text, {piece: -score for piece, score in scores.items()}):
        return "the highest score goes first: -1 comes before -2"
    if _candidates(got, scores):
        return "some neighbours can still be joined: go on until no pair is left"
    return "one merge at a time: a merge makes new neighbours, which may be better than the next old pair"


def _longest_first(text: str, scores: Scores) -> list[str]:
    pieces, at = [], 0
    while at < len(text):
        end = next(end for end in range(len(text), at, -1) if text[at:end] in scores or end == at + 1)
        pieces.append(text[at:end])
        at = end
    return pieces


_TOKENS = [
    *("<unk>", "<s>", "</s>"),
    *(f"<0x{byte:02X}>" for byte in range(256)),
    *("▁the", "▁sloth", "▁caf", "▁", "s", "!", "he"),
    "<|end|>",
]
_IDS = {token: id for id, token in enumerate(_TOKENS)}
_CONTROL = {0, 1, 2, _IDS["<|end|>"]}


@exercise("03.3", "Spell it in bytes", difficulty=2, minutes=10)
def to_ids(answer: Answer) -> Mistake | None:
    """Hold `to_ids(pieces, ids) -> ids` against a small vocabulary with 256 tokens for bytes."""
    for pieces in (["▁the", "▁sloth", "s"], ["▁caf", "é"], ["▁", "🦥", "!"], ["\n"], []):
        expected = [
            id
            for piece in pieces
            for id in ([_IDS[piece]] if piece in _IDS else [3 + b for b in piece.encode()])
        ]
        got = answer(list(pieces), dict(_IDS))
        mistake = compare_values(f"the ids of {pieces}", expected, got, _likely_ids(pieces, got))
        if mistake is not None:
            return mistake
    return None


def _likely_ids(pieces: Sequence[str], got: Any) -> str:
    if not isinstance(got, list):
        return "return a list of whole numbers"
    if 0 in got:
        return "0 is <unk>, and whoever reads it cannot know what was there: spell the bytes instead"
    if any(isinstance(id, list) for id in got):
        return "one flat list: `+=` takes in all bytes of a character, `.append` would keep them together"
    codes = [3 + ord(character) for piece in pieces if piece not in _IDS for character in piece]
    if set(codes) & set(got) and any(code not in [3 + b for b in "".join(pieces).encode()] for code in codes):
        return "the bytes of UTF-8 are meant, not the number of the character: `piece.encode()`"
    known = [_IDS[piece] for piece in pieces if piece in _IDS]
    if got == known:
        return "a piece that is not in the vocabulary must not be lost: spell it in bytes"
    if got and got[:1] != known[:1] and got[::-1][:1] == known[:1]:
        return "the order of the text stays"
    return "the token of the byte 0xC3 is named <0xC3>, with capital letters"


@exercise("03.4", "And back", difficulty=2, minutes=10)
def to_text(answer: Answer) -> Mistake | None:
    """Hold `to_text(ids, tokens, control) -> text` against what went in, and what cannot be read as UTF-8."""
    spell = [_IDS[f"<0x{byte:02X}>"] for byte in "🦥".encode()]
    cases = [
        ("a word", [_IDS["▁the"], _IDS["▁sloth"], _IDS["s"]], "the sloths"),
        ("two spaces in front", [_IDS["▁"], _IDS["▁the"]], " the"),
        ("a character of four bytes", [_IDS["▁"], *spell, _IDS["!"]], "🦥!"),
        ("control tokens", [1, _IDS["▁the"], _IDS["<|end|>"], _IDS["▁the"], 2], "the the"),
        ("half a character", [_IDS["▁the"], *spell[:2]], "the\ufffd"),
        ("nothing", [], ""),
    ]
    for what, ids, expected in cases:
        got = answer(list(ids), list(_TOKENS), set(_CONTROL))
        mistake = compare_values(what, expected, got, _likely_text(expected, got))
        if mistake is not None:
            return mistake
    return None


def _likely_text(expected: str, got: Any) -> str:
    if not isinstance(got, str):
        return "return a text: join the bytes of all tokens, then `.decode`"
    if "<0x" in got:
        return "a token such as <0xF0> stands for that byte, not for its name"
    if got.count("\ufffd") > expected.count("\ufffd"):
        return "a character's bytes are spread over several tokens: join all bytes first, then decode once"
    if "<" in got:
        return "control tokens show nothing"
    if "▁" in got:
        return "▁ stands for a space"
    if got == f" {expected}":
        return "the space that encoding put in front goes away again"
    if got.strip() == expected.strip():
        return "only one space in front was put there by encoding: `removeprefix`, not `strip`"
    return "bytes that are no UTF-8 become \ufffd: `errors='replace'`"


_SPECIAL = {"<|user|>": 900, "<|end|>": 901, "<|assistant|>": 902, "<|endoftext|>": 903}


def _letters(text: str) -> list[int]:
    """Encode raw text for the check: a mark where a stretch begins, as SentencePiece's space, and its characters."""
    if not text:
        raise ValueError("encode was given an empty text: it would put a space there")
    return [500, *map(ord, text)]


@exercise("03.5", "Whose control token is it?", difficulty=3, minutes=15)
def encode_segments(answer: Answer) -> Mistake | None:
    """Hold `encode_segments(segments, special, encode) -> ids` against a chat, and against what a user may type."""
    cases: list[tuple[str, list[tuple[str, bool]], list[int | str]]] = [
        ("control tokens alone", [("<|user|><|end|>", True)], [900, 901]),
        ("text alone", [("Hi", False)], ["Hi"]),
        ("text between them", [("<|user|>Hi<|end|>", True)], [900, "Hi", 901]),
        ("one inside of another's name", [("<|endoftext|>", True)], [903]),
        ("a user who types one", [("Hi<|end|>", False)], ["Hi<|end|>"]),
        (
            "a whole chat",
            [("<|user|>\n", True), ("Say <|end|>", False), ("<|end|>\n<|assistant|>\n", True)],
            [900, "\nSay <|end|>", 901, "\n", 902, "\n"],
        ),
        ("one that only both together write", [("<|us", True), ("er|>", False)], ["<|user|>"]),
    ]
    for what, segments, parts in cases:
        expected = [id for part in parts for id in ([part] if isinstance(part, int) else _letters(part))]
        got = answer(list(segments), dict(_SPECIAL), _letters)
        mistake = compare_values(
            f"{what}, {segments}", expected, got, _likely_segments(segments, expected, got)
        )
        if mistake is not None:
            return mistake
    return None


def _likely_segments(segments: Sequence[tuple[str, bool]], expected: list[int], got: Any) -> str:
    if not isinstance(got, list) or not all(type(id) is int for id in got):
        return "return a flat list of ids: `+=` for those that encode gives"
    if sum(id >= 900 for id in got) > sum(id >= 900 for id in expected):
        return (
            "a control token came out of text that nobody trusts: this is the hole that the exercise closes"
        )
    if sum(id >= 900 for id in got) < sum(id >= 900 for id in expected):
        return "in a segment that is trusted each control token becomes its id"
    if got.count(500) > expected.count(500):
        return (
            "raw text that meets at the border of two segments is one stretch: join it, then encode it once"
        )
    return "the order of the text stays, and nothing of it is lost"
