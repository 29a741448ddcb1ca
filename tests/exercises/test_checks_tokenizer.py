"""Wrong answers to the exercises of notebook 03: the message must name the mistake that was made."""

import re
from collections.abc import Callable

import pytest

from phicourse.exercises import tokenizer as check
from phicourse.exercises.exercise import Answer, Exercise
from phicourse.tokenizer import merge

Scores = dict[str, float]
Ids = list[int]
Segments = list[tuple[str, bool]]


def unions(symbols: list[str], scores: Scores) -> list[int]:
    return [at for at in range(len(symbols) - 1) if symbols[at] + symbols[at + 1] in scores]


def picks(best: Callable[[list[int], Callable[[int], float]], int]) -> Answer:
    """Make an answer of the function that chooses among the pairs that can be joined."""

    def best_pair(symbols: list[str], scores: Scores) -> int | None:
        known = unions(symbols, scores)
        return best(known, lambda at: scores[symbols[at] + symbols[at + 1]]) if known else None

    return best_pair


def zero_is_nothing(symbols: list[str], scores: Scores) -> int | None:
    return picks(lambda known, score: max(known, key=score))(
        symbols, {piece: score for piece, score in scores.items() if score}
    )


def always_an_index(symbols: list[str], scores: Scores) -> int:
    return picks(lambda known, score: max(known, key=score))(symbols, scores) or 0


def one_pass(text: str, scores: Scores) -> list[str]:
    symbols = list(text)
    for at in sorted(unions(symbols, scores), key=lambda at: -scores[symbols[at] + symbols[at + 1]])[:1]:
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
    return symbols


def pieces_only(text: str, scores: Scores) -> list[str]:
    return [piece for piece in merge(text, scores) if piece in scores]


def code_points(pieces: list[str], ids: dict[str, int]) -> Ids:
    return [id for piece in pieces for id in ([ids[piece]] if piece in ids else [3 + ord(piece) % 250])]


def bytes_kept_together(pieces: list[str], ids: dict[str, int]) -> list:
    return [ids[piece] if piece in ids else [3 + byte for byte in piece.encode()] for piece in pieces]


def text_of(ids: Ids, tokens: list[str], control: set[int]) -> bytes:
    """Do it right, but for the end."""
    raw = b""
    for id in ids:
        if re.fullmatch("<0x..>", tokens[id]):
            raw += bytes([int(tokens[id][3:5], 16)])
        elif id not in control:
            raw += tokens[id].replace("▁", " ").encode()
    return raw


def each_by_itself(ids: Ids, tokens: list[str], control: set[int]) -> str:
    return "".join(text_of([id], tokens, control).decode(errors="replace") for id in ids).removeprefix(" ")


def shows_control(ids: Ids, tokens: list[str], control: set[int]) -> str:
    return text_of(ids, tokens, set()).decode(errors="replace").removeprefix(" ")


def trusts_all(segments: Segments, special: dict[str, int], encode: Callable[[str], Ids]) -> Ids:
    return encode_each([("".join(text for text, _ in segments), True)], special, encode)


def encode_each(segments: Segments, special: dict[str, int], encode: Callable[[str], Ids]) -> Ids:
    """Encode each segment for itself, so that a stretch over a border is cut."""
    pattern = re.compile(f"({'|'.join(map(re.escape, special))})")
    ids: Ids = []
    for text, is_trusted in segments:
        for part in pattern.split(text) if is_trusted else [text]:
            ids += [special[part]] if is_trusted and part in special else encode(part) if part else []
    return ids


@pytest.mark.parametrize(
    ("exercise", "answer", "said"),
    [
        (check.best_pair, picks(lambda known, score: min(known, key=score)), "-1 comes before -2"),
        (
            check.best_pair,
            picks(lambda known, score: max(known, key=lambda at: (score(at), at))),
            "the leftmost",
        ),
        (check.best_pair, zero_is_nothing, "0 is a score, too"),
        (check.best_pair, always_an_index, "return None"),
        (
            check.best_pair,
            lambda symbols, scores: (
                None if (at := picks(lambda k, s: max(k, key=s))(symbols, scores)) is None else at + 1
            ),
            "of the left symbol",
        ),
        (check.merge_loop, check._longest_first, "not the length"),
        (
            check.merge_loop,
            lambda text, scores: merge(text, {p: -s for p, s in scores.items()}),
            "-1 comes before -2",
        ),
        (check.merge_loop, one_pass, "until no pair is left"),
        (check.merge_loop, pieces_only, "must make up the text"),
        (check.merge_loop, lambda text, scores: " ".join(merge(text, scores)), "a list of texts"),
        (check.to_ids, code_points, "the bytes of UTF-8"),
        (check.to_ids, lambda pieces, ids: [ids.get(piece, 0) for piece in pieces], "0 is <unk>"),
        (check.to_ids, bytes_kept_together, "`+=`"),
        (
            check.to_ids,
            lambda pieces, ids: [ids[piece] for piece in pieces if piece in ids],
            "must not be lost",
        ),
        (check.to_text, each_by_itself, "join all bytes first"),
        (check.to_text, shows_control, "control tokens show nothing"),
        (check.to_text, text_of, "return a text"),
        (
            check.to_text,
            lambda *given: text_of(*given).decode(errors="replace").strip(),
            "`removeprefix`, not `strip`",
        ),
        (check.to_text, lambda *given: text_of(*given).decode(errors="replace"), "goes away again"),
        (
            check.to_text,
            lambda *given: text_of(*given).decode(errors="ignore").removeprefix(" "),
            "errors='replace'",
        ),
        (check.to_text, lambda ids, tokens, control: "".join(tokens[id] for id in ids), "stands for a space"),
        (check.encode_segments, trusts_all, "the hole that the exercise closes"),
        (check.encode_segments, encode_each, "is one stretch"),
        (check.encode_segments, lambda segments, special, encode: encode("Hi"), "becomes its id"),
        (check.encode_segments, lambda segments, special, encode: encode(""), "an empty text"),
    ],
)
def test_a_wrong_answer_is_told_its_mistake(
    exercise: Exercise, answer: Answer, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    exercise(answer)
    message = capsys.readouterr().out
    assert message.startswith("✘") and said in message, message
