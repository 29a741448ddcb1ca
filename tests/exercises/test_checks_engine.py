"""Wrong answers to the exercises of notebook 11: the message must name the mistake that was made."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from phicourse.exercises import engine as check
from phicourse.exercises.exercise import Answer, Exercise


def coded(
    round: Callable[[np.ndarray], np.ndarray] = np.rint, peak: Callable[..., Any] | None = None
) -> Answer:
    """A coder with another rounding, or another idea of the largest number."""

    def answer(x: np.ndarray, block: int = 32) -> tuple[np.ndarray, np.ndarray]:
        blocks = x.reshape(-1, block)
        largest = peak(blocks) if peak else np.abs(blocks).max(axis=1)
        inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest != 0)
        return round(blocks * inverse[:, None]).astype(np.int8), largest / np.float32(127)

    return answer


def coded_with(change: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]) -> Answer:
    return lambda x, block=32: change(*check.code_vector(x, block))


def away_from_zero(v: np.ndarray) -> np.ndarray:
    return np.trunc(v + np.copysign(np.float32(0.5), v))


def summed(terms: Callable[..., np.ndarray]) -> Answer:
    """A product whose terms of the blocks are something else."""
    return lambda row, codes, scales: terms(row, codes.astype(np.int64), scales).sum(axis=-1)


def whole(row: np.ndarray, codes: np.ndarray) -> np.ndarray:
    return (row["qs"].astype(np.int64) * codes).sum(axis=-1)


def d_of(row: np.ndarray) -> np.ndarray:
    return row["d"].astype(np.float64)


def narrow(row: np.ndarray, codes: np.ndarray, scales: np.ndarray) -> float:
    return float((d_of(row) * scales * (row["qs"] * codes).sum(axis=-1)).sum())


def unsigned(row: np.ndarray, codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    return d_of(row) * scales * (row["qs"].view(np.uint8) * codes.astype(np.int64)).sum(axis=-1)


def one_scale_for_all(row: np.ndarray, codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    return d_of(row)[..., :1] * scales[:1] * whole(row, codes)


WRONG_DOTS = [
    (narrow, "int8 times int8 stays int8"),
    (summed(lambda row, codes, s: d_of(row) * whole(row, codes)), "scales of the vector are missing"),
    (summed(lambda row, codes, s: s * whole(row, codes)), "scale d of the weights is missing"),
    (summed(lambda row, codes, s: whole(row, codes).astype(float)), "both scales are missing"),
    (summed(one_scale_for_all), "a scale of its own: multiply before you add"),
    (summed(unsigned), "the codes have a sign"),
]


def k_dot(terms: Callable[[check.SuperBlocks, np.ndarray, np.ndarray, np.ndarray], np.ndarray]) -> Answer:
    """A product of super-blocks from its integer sums, put together in another way."""

    def answer(row: check.SuperBlocks, codes: np.ndarray, scales: np.ndarray) -> float:
        x = codes.reshape(-1, 8, 32).astype(np.int64)
        products = (row.scales * (row.codes * x).sum(axis=2)).sum(axis=1)
        offsets = (row.minima * x.sum(axis=2)).sum(axis=1)
        return float(terms(row, scales, products, offsets).sum())

    return answer


def without_group_scales(row: check.SuperBlocks, codes: np.ndarray, scales: np.ndarray) -> float:
    x = codes.reshape(-1, 8, 32).astype(np.int64)
    products, offsets = (row.codes * x).sum(axis=(1, 2)), (row.minima * x.sum(axis=2)).sum(axis=1)
    return float((scales * (row.d * products - row.dmin * offsets)).sum())


WRONG_K_DOTS = [
    (k_dot(lambda r, s, p, o: s * (r.d * p + r.dmin * o)), "the sign"),
    (k_dot(lambda r, s, p, o: s * r.d * p), "the minimum is missing"),
    (k_dot(lambda r, s, p, o: s * (r.d * p - r.dmin * r.minima.sum(axis=1))), "with the sum of its 32 codes"),
    (k_dot(lambda r, s, p, o: s * (r.d * p - r.dmin * 32 * r.minima.sum(axis=1))), "not with their number"),
    (k_dot(lambda r, s, p, o: r.d * p - r.dmin * o), "scales of the vector are missing"),
    (k_dot(lambda r, s, p, o: s * r.d * p - r.dmin * o), "counts for the minimum as well"),
    (k_dot(lambda r, s, p, o: s * r.d * (p - o)), "minimum times dmin"),
    (without_group_scales, "6-bit scale of its own"),
    (lambda row, codes, scales: None, "without `return`"),
]


def parts(*edges: int) -> Answer:
    return lambda n_rows, n_threads: list(pairwise(edges))


def equal_parts(n_rows: int, n_threads: int) -> list[tuple[int, int]]:
    size = n_rows // n_threads
    return [(i * size, (i + 1) * size) for i in range(n_threads)]


def greedy(n_rows: int, n_threads: int) -> list[tuple[int, int]]:
    return [(0, 16), (16, n_rows)] if n_rows > 16 else [(0, n_rows)]


def panels_and_nothing(n_rows: int, n_threads: int) -> list[tuple[int, int]]:
    parts = check.split_rows(n_rows, n_threads)
    return parts + [(n_rows, n_rows)] * (n_threads - len(parts))


@pytest.mark.parametrize(
    ("exercise", "answer", "said"),
    [
        (check.vector_codes, coded(np.trunc), "a cast only drops the fraction"),
        (check.vector_codes, coded(away_from_zero), "halves go to even numbers here, as"),
        (check.vector_codes, coded(lambda v: np.floor(v + np.float32(0.5))), "not floor(v + 0.5)"),
        (check.vector_codes, coded(peak=lambda blocks: blocks.max(axis=1)), "belongs to a negative number"),
        (
            check.vector_codes,
            coded(peak=lambda blocks: np.full(len(blocks), np.abs(blocks).max())),
            "each block has a scale of its own",
        ),
        (check.vector_codes, coded_with(lambda c, s: (c.astype(int), s)), "bytes with a sign"),
        (check.vector_codes, coded_with(lambda c, s: (c, s.astype(np.float16))), "stays float32"),
        (check.vector_codes, coded_with(lambda c, s: (c, s * np.float32(127))), "over 127"),
        (check.vector_codes, coded_with(lambda c, s: (c, 1 / s)), "not its inverse"),
        (check.vector_codes, lambda x, block=32: None, "without `return`"),
        *((check.dot, answer, said) for answer, said in WRONG_DOTS),
        (check.dot, lambda row, codes, scales: None, "without `return`"),
        (check.dot, lambda row, codes, scales: scales, "add up all blocks"),
        *(
            (check.product, lambda b, c, s, a=answer: np.array([a(row, c, s) for row in b], np.float32), said)
            for answer, said in WRONG_DOTS
        ),
        (check.product, lambda b, c, s: check.multiply_q8_0(b, c, s).astype(float), ".astype(np.float32)"),
        (check.product, lambda b, c, s: check.multiply_q8_0(b, c, s)[:, None], "the shape"),
        *((check.super_block_dot, answer, said) for answer, said in WRONG_K_DOTS),
        (check.token_bytes, lambda t, c, n: sum(t.values()) + n * c, "a token reads one row of it"),
        (
            check.token_bytes,
            lambda t, c, n: sum(t.values()) - t["token_embd.weight"] + n * c,
            "the embedding is the output matrix",
        ),
        (
            check.token_bytes,
            lambda t, c, n: check.bytes_per_token(t, c, 0),
            "keys and values of all positions",
        ),
        (check.token_bytes, lambda t, c, n: check.bytes_per_token(t, c, min(n, 1)), "not only the last's"),
        (check.roof, lambda t, s, b, p: b * t / s, "the smaller of the two"),
        (check.roof, lambda t, s, b, p: max(p, b * t / s), "the slower one counts"),
        (check.roof, lambda t, s, b, p: min(p, b * s * t), "divide"),
        (check.roof, lambda t, s, b, p: min(p, b / s), "meets all tokens"),
        (check.roof, lambda t, s, b, p: min(p, b / s / t), "mean more work"),
        (check.roof, lambda t, s, b, p: min(p, 2 * b * t / s), "counts once"),
        (check.roof, lambda t, s, b, p: None, "without `return`"),
        (check.threads, parts(0, 64), "no thread may have more than its share"),
        (check.threads, parts(0, 32, 60), "the last rows have no thread"),
        (check.threads, parts(0, 20, 64), "multiples of 16"),
        (check.threads, parts(0, 32, 48, 32, 64), "a thread without rows"),
        (check.threads, parts(0, 48, 64), "no thread may have more"),
        (check.threads, lambda n_rows, n_threads: [(0, 32), (16, n_rows)], "each row to one thread"),
        (check.threads, lambda n_rows, n_threads: [(16, 32), (32, n_rows)], "begin at 0"),
        (check.threads, equal_parts, "multiples of 16"),
        (check.threads, greedy, "no thread may have more"),
        (check.threads, panels_and_nothing, "a thread without rows"),
        (check.threads, lambda n_rows, n_threads: None, "without `return`"),
    ],
)
def test_a_wrong_answer_is_told_its_mistake(
    exercise: Exercise, answer: Answer, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    exercise(answer)
    message = capsys.readouterr().out
    assert message.startswith("✘") and said in message, message
    assert "\n  expected  " in message and "\n  got       " in message


@pytest.mark.parametrize(
    ("exercise", "answer"),
    [
        (check.vector_codes, check.code_vector),
        (check.dot, check.dot_q8_0),
        (check.product, check.multiply_q8_0),
        (check.product, lambda b, c, s: check._block_terms(b, c, s).sum(axis=1).astype(np.float32)),
        (check.super_block_dot, check.dot_q4_k),
        (check.token_bytes, check.bytes_per_token),
        (check.roof, check.attainable),
        (check.threads, check.split_rows),
    ],
)
def test_the_finished_functions_pass(exercise: Exercise, answer: Answer) -> None:
    assert exercise.judge(answer) is None
