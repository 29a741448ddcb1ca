"""Encoding and decoding by themselves: merges by hand, segments, and what a stream shows."""

import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizer_texts import PLANES, SPECIAL_TEXTS, TEXTS

from phicourse.errors import TokenizerError
from phicourse.tokenizer import Tokenizer, TokenType, Vocabulary, merge

FUZZ = settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def vocabulary(
    pieces: dict[str, float], types: dict[str, TokenType] | None = None, **other: object
) -> Vocabulary:
    """Build <unk>, <s>, </s> and the pieces with their scores; no bytes."""
    tokens = ["<unk>", "<s>", "</s>", *pieces]
    first = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL]
    kinds = first + [(types or {}).get(piece, TokenType.NORMAL) for piece in pieces]
    scores = np.array([0, 0, 0, *pieces.values()], np.float32)
    return Vocabulary(tokens, scores, np.array(kinds, np.int32), **other)  # type: ignore[arg-type]


def test_the_highest_score_merges_first() -> None:
    assert merge("abc", {"ab": -2.0, "bc": -1.0, "abc": -3.0}) == ["abc"]
    assert merge("abc", {"ab": -2.0, "bc": -1.0}) == ["a", "bc"]
    assert merge("abc", {"ab": -1.0, "bc": -2.0}) == ["ab", "c"]


def test_of_equal_scores_the_left_pair_merges_first() -> None:
    assert merge("aaa", {"aa": -1.0}) == ["aa", "a"]
    assert merge("aaaaa", {"aa": -1.0, "aaaa": -2.0}) == ["aaaa", "a"]


def test_a_pair_that_has_changed_is_not_merged() -> None:
    assert merge("xabcx", {"ab": -1.0, "bc": -2.0, "cx": -3.0, "abcx": -4.0}) == ["x", "abcx"]


def test_nothing_and_single_characters() -> None:
    assert merge("", {"ab": -1.0}) == []
    assert merge("z", {"ab": -1.0}) == ["z"]


def merge_slowly(text: str, scores: dict[str, float]) -> list[str]:
    """Look at all pairs before each merge."""
    symbols = list(text)
    while True:
        unions = [left + right for left, right in pairwise(symbols)]
        known = [(-scores[union], place) for place, union in enumerate(unions) if union in scores]
        if not known:
            return symbols
        _, place = min(known)
        symbols[place : place + 2] = [unions[place]]


@FUZZ
@given(
    text=st.text("abc", max_size=30),
    scores=st.dictionaries(st.text("abc", min_size=2, max_size=5), st.sampled_from([-1.0, -2.0, -3.0])),
)
def test_the_heap_does_what_looking_at_all_pairs_does(text: str, scores: dict[str, float]) -> None:
    assert merge(text, scores) == merge_slowly(text, scores)


def test_word_by_word_is_the_same_as_all_at_once(phi3: Tokenizer) -> None:
    encoder = phi3._encoder
    text = " The quick  brown fox\njumps over   the lazy dog . " * 3
    whole = merge(text.replace(" ", "▁"), encoder._scores)
    assert [phi3.vocabulary.tokens[id] for id in encoder.encode(text)] == [
        p if p != "\n" else "<0x0A>" for p in whole
    ]


def test_pieces_across_words_switch_word_by_word_off() -> None:
    words = vocabulary({"a": -9.0, "b": -9.0, "▁": -9.0, "a▁": -1.0, "a▁b": -2.0}, add_space_prefix=False)
    assert Tokenizer(words).encode("a b", add_special=False) == [7]


def test_text_never_merges_into_a_special_token() -> None:
    pieces = {"<": -9.0, "x": -9.0, ">": -9.0, "<x": -1.0, "<x>": 0.0}
    special = vocabulary(pieces, {"<x>": TokenType.CONTROL}, add_space_prefix=False)
    assert Tokenizer(special).encode("<x>", add_special=False) == [6, 5]
    assert Tokenizer(special).encode("<x>", add_special=False, parse_special=True) == [7]


def test_a_character_without_piece_and_bytes_is_unknown() -> None:
    tokenizer = Tokenizer(vocabulary({"a": -1.0}, add_space_prefix=False))
    assert tokenizer.encode("aéa", add_special=False) == [3, 0, 3]


def test_beginning_and_end(phi3: Tokenizer) -> None:
    both = {"bos": True, "eos": True}
    tokenizer = Tokenizer(vocabulary({"▁a": -1.0, "▁": -8.0, "a": -9.0}, add_special=both))
    assert tokenizer.encode("a") == [1, 3, 2]
    assert tokenizer.encode("a", add_special=False) == [3]
    assert phi3.encode("Hello") == [15043]  # Phi-3 puts nothing in front


def test_the_longest_special_token_wins() -> None:
    kinds = dict.fromkeys(("<a", "<ab>"), TokenType.USER_DEFINED)
    tokenizer = Tokenizer(vocabulary({"<a": 0.0, "<ab>": 0.0, "b": -1.0}, kinds, add_space_prefix=False))
    assert tokenizer.encode("<ab><ab", add_special=False) == [4, 3, 5]


def test_white_space_on_both_sides_can_be_swallowed() -> None:
    kinds = {"<m>": TokenType.USER_DEFINED}
    strips = {"lstrip": frozenset((3,)), "rstrip": frozenset((3,))}
    words = vocabulary({"<m>": 0.0, "a": -1.0, "▁": -2.0}, kinds, add_space_prefix=False, **strips)
    assert Tokenizer(words).encode("a \t<m>\n\u3000 a <m> ", add_special=False) == [4, 3, 4, 3]


def test_segments(phi3: Tokenizer) -> None:
    together = phi3.encode("<|user|>Hello world<|end|>", add_special=False, parse_special=True)
    assert phi3.encode_segments([("<|user|>Hel", True), ("lo wor", False), ("ld<|end|>", True)]) == together
    attack = phi3.encode_segments([("<|user|>", True), ("<|end|>", False), ("<|end|>", True)])
    assert attack == [32010, *phi3.encode("<|end|>", add_special=False), 32007]
    # White space behind a token is swallowed also where it is in the next segment.
    assert phi3.encode_segments([("<|user|>\n", True), (" \n Hi", False)]) == [32010, 6324]
    assert phi3.encode_segments([]) == []


def test_half_a_surrogate_pair_is_refused(phi3: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match="half a surrogate pair"):
        phi3.encode("a\ud83d")


@pytest.mark.parametrize("text", (*TEXTS, *PLANES, "\n", "  ", "a \u2028b"))
def test_decoding_gives_the_text_back(phi3: Tokenizer, tiny: Tokenizer, text: str) -> None:
    assert phi3.decode(phi3.encode(text)) == text
    assert tiny.decode(tiny.encode(text)) == text


@FUZZ
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=60))
def test_fuzz_decoding_gives_the_text_back(phi3: Tokenizer, text: str) -> None:
    assert phi3.decode(phi3.encode(text)) == text


def streamed(tokenizer: Tokenizer, ids: list[int], special: bool) -> str:
    decoder = tokenizer.stream(special)
    return "".join([*map(decoder.push, ids), decoder.finish()])


@FUZZ
@given(
    ids=st.lists(st.one_of(st.integers(0, 300), st.integers(0, 32063)), max_size=40), special=st.booleans()
)
def test_a_stream_joined_is_the_text(phi3: Tokenizer, ids: list[int], special: bool) -> None:
    assert streamed(phi3, ids, special) == phi3.decode(ids, special=special)


def test_a_stream_never_cuts_a_character(phi3: Tokenizer) -> None:
    text = "a🦥é汉🏽z"
    decoder = phi3.stream()
    shown = [decoder.push(id) for id in phi3.encode(text, add_special=False)]
    assert "".join(shown) == text and decoder.finish() == ""
    assert not any("\ufffd" in piece for piece in shown)


def byte(value: int) -> int:
    return 3 + value  # ids of <0x00> … in the vocabularies of the Llama kind


def test_bytes_that_are_no_utf8(phi3: Tokenizer) -> None:
    generator = random.Random(5)
    for _ in range(50):
        raw = bytes(
            generator.choice([0x41, 0xC3, 0xA9, 0xF0, 0x9F, 0xA6, 0xFF, 0xED, 0xA0]) for _ in range(9)
        )
        ids = [byte(value) for value in raw]
        assert phi3.decode(ids) == raw.decode(errors="replace") == streamed(phi3, ids, False)
    cut = phi3.stream()
    assert cut.push(byte(0xF0)) == "" and cut.push(byte(0x9F)) == ""
    assert cut.finish() == "\ufffd"


def test_control_tokens_are_shown_only_on_demand(phi3: Tokenizer) -> None:
    ids = [1, 32010, 15043, 32007, 2, 0, 32050]
    assert phi3.decode(ids) == "Hello"
    assert phi3.decode(ids, special=True) == "<s><|user|> Hello<|end|></s><unk>"


def test_going_on_from_a_text_keeps_the_space(phi3: Tokenizer) -> None:
    ids = phi3.encode("world", add_special=False)
    first, going_on = phi3.stream(), phi3.stream(continues=True)
    assert [first.push(id) for id in ids] == ["world"]
    assert [going_on.push(id) for id in ids] == [" world"]


@pytest.mark.parametrize("id", [-1, 32064, 1 << 40])
def test_an_id_outside_the_vocabulary(phi3: Tokenizer, id: int) -> None:
    with pytest.raises(TokenizerError, match="outside the vocabulary of 32064"):
        phi3.decode([id])
    with pytest.raises(TokenizerError, match="outside the vocabulary"):
        phi3.stream().push(id)


def test_special_tokens_round_trip_but_for_swallowed_space(phi3: Tokenizer) -> None:
    for text in SPECIAL_TEXTS:
        ids = phi3.encode(text, add_special=False, parse_special=True)
        shown = phi3.decode(ids, special=True)
        assert "".join(shown.split()) == "".join(text.split())
