"""What the tests of the types feed them: rows, importance of columns, and blocks of random bits."""

import os
from functools import cache
from pathlib import Path

import numpy as np

from phicourse.checkpoint import Checkpoint
from phicourse.gguf import TENSOR_TYPES

UNWEIGHTED = ("F32", "F16", "BF16", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4", "NVFP4", "Q1_0", "Q2_0")
WEIGHTED = (
    *("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    *("IQ4_NL", "IQ4_XS"),
)
LATTICE = ("IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S")
TYPES = UNWEIGHTED + WEIGHTED + LATTICE
TAKE_IMPORTANCE = WEIGHTED + LATTICE
NEED_IMPORTANCE = ("IQ2_XS", "IQ2_XXS", "IQ1_S")
# they sort weights with C's qsort, which may put equal ones in any order
SORTING = ("IQ1_M", "IQ1_S")
# ggml sorts up to 2,048 distances 40,000 times before it can quantize to the others: up to half a minute
QUICK_LATTICE = ("IQ3_S", "IQ3_XXS", "IQ2_XXS")
ALL_WANTED = os.environ.get("CI") or os.environ.get("PHICOURSE_ALL_ORACLES")
LIVE_TYPES = TYPES if ALL_WANTED else UNWEIGHTED + WEIGHTED + QUICK_LATTICE

SHAPE = (24, 512)


def kinds() -> dict[str, np.ndarray]:
    """Rows that real models have, and rows that break quantizers."""
    rng = np.random.default_rng(3)
    normal = rng.normal(size=SHAPE)
    one_hot = np.zeros(SHAPE)
    one_hot[np.arange(SHAPE[0]), rng.integers(0, SHAPE[1], SHAPE[0])] = rng.normal(size=SHAPE[0])
    any_bits = rng.integers(0, 1 << 32, SHAPE, dtype=np.uint32).view(np.float32)
    return {
        "gaussian": normal * 0.02,
        "heavy-tailed": rng.standard_t(2, SHAPE) * 0.1,
        "uniform": rng.uniform(-1, 1, SHAPE),
        "positive": rng.uniform(0.1, 1, SHAPE),
        "negative": rng.uniform(-1, -0.1, SHAPE),
        "sparse": normal * (rng.random(SHAPE) < 0.02),
        "constant": np.full(SHAPE, 0.37),
        "negative constant": np.full(SHAPE, -0.37),
        "zero": np.zeros(SHAPE),
        "zeros of both signs": np.where(rng.random(SHAPE) < 0.5, 0.0, -0.0),
        "one-hot": one_hot,
        "outlier": normal * np.where(rng.random(SHAPE) < 0.01, 1e4, 1),
        "few levels": rng.integers(-3, 4, SHAPE) * 0.125,
        "ties": rng.integers(-15, 16, SHAPE) * 0.5,
        "denormal": normal * 1e-42,
        "tiny": normal * 1e-20,
        "around the smallest that counts": normal * 10.0 ** np.linspace(-18, -10, SHAPE[0])[:, None],
        "around float16's smallest": normal * 1e-7,
        "large": normal * 1e4,
        "huge": normal * 1e37,
        "all magnitudes": normal * 10.0 ** rng.uniform(-30, 30, SHAPE),
        "largest floats": rng.choice([3.4e38, -3.4e38, 1, 0], SHAPE),
        "any bits": np.where(np.isfinite(any_bits), any_bits, 0),
    }


KINDS = {name: rows.astype(np.float32) for name, rows in kinds().items()}
# ggml's quantizers of the lattice types end the process where the squares of weights overflow
OVERFLOWING = ("huge", "all magnitudes", "largest floats", "any bits")


def importances() -> dict[str, np.ndarray]:
    """(512,) each: how much the columns of a row count."""
    rng, n = np.random.default_rng(7), SHAPE[1]
    uneven = rng.gamma(0.5, size=n)
    return {
        "uneven": uneven,
        "equal": np.ones(n),
        "some zero": np.where(rng.random(n) < 0.2, 0, uneven),
        "whole blocks zero": np.where(np.arange(n) // 40 % 2, 0, uneven),
        "few not zero": np.where(np.arange(n) % 40 == 5, uneven, 0),
        "zero": np.zeros(n),
        "far apart": 10 ** rng.uniform(-8, 8, n),
        "as far apart as can be": 10 ** rng.uniform(-38, 38, n),
    }


IMPORTANCES = {name: numbers.astype(np.float32) for name, numbers in importances().items()}


@cache
def phi_tiny_rows(folder: Path) -> np.ndarray:
    """(rows, 512) float32: rows from the ends of every matrix of the embedded model."""
    checkpoint = Checkpoint.open(folder)
    matrices = [checkpoint.as_float32(name) for name in checkpoint.tensors]
    ends = [np.concatenate([w[:2], w[-2:]]).reshape(-1, SHAPE[1]) for w in matrices if w.ndim == 2]
    return np.concatenate(ends)


def rows_for(type_name: str, *, weighted: bool) -> dict[str, np.ndarray]:
    """Kind -> (some rows, 512), fewer where the search is slow, without those on which ggml gives up."""
    if type_name in LATTICE:
        return {kind: x[::5] for kind, x in KINDS.items() if kind not in OVERFLOWING}
    return {kind: x[::3] for kind, x in KINDS.items()} if weighted else KINDS


def importances_for(type_name: str) -> list[str | None]:
    """Names of what to try with a type; None stands for none."""
    if type_name in UNWEIGHTED:
        return [None, "uneven"]
    names = [name for name in IMPORTANCES if type_name in WEIGHTED or name != "as far apart as can be"]
    return names if type_name in NEED_IMPORTANCE else [None, *names]


def known_rows() -> np.ndarray:
    """(30, 512) float32 out of integer arithmetic: dense, sparse, tiny, with ties, constant, zero."""
    i, column = np.arange(8 * 512, dtype=np.int64), np.arange(512)
    mixed = (i * 7919 + i * i * 104729) % 65521
    x = ((mixed - 32760) * (mixed % 17 - 8)).reshape(8, 512).astype(np.float32) / np.float32(1 << 22)
    parts = [x, x * (column % 13 == 0), x * (column % 64 < 32), x[:3] * np.float32(2**-24), np.sign(x[:1])]
    return np.concatenate([*parts, np.full((1, 512), 0.375), np.zeros((1, 512))]).astype(np.float32)


def known_importances(type_name: str) -> list[np.ndarray | None]:
    """What goes with `known_rows`: each (512,) float32, or None for none."""
    if type_name in UNWEIGHTED:
        return [None]
    i = np.arange(512)
    numbers: list[np.ndarray | None] = [np.ones(512, np.float32)]
    numbers += [(i * 37 % 101 / 16).astype(np.float32), (i % 7 == 0).astype(np.float32)]
    return numbers if type_name in NEED_IMPORTANCE else [*numbers, None]


def random_blocks(type_name: str) -> np.ndarray:
    """Blocks of 24 rows with every bit random, except that no scale is infinite or not a number."""
    type, rng = TENSOR_TYPES[type_name], np.random.default_rng(5)
    packed = rng.integers(0, 256, (SHAPE[0], type.row_bytes(SHAPE[1])), np.uint8)
    blocks = packed.view(type.dtype)
    floats = [blocks[name] for name in blocks.dtype.names or () if blocks[name].dtype.kind == "f"]
    if type_name in ("F32", "F16"):
        floats = [blocks]
    for values in floats:
        values[~np.isfinite(values)] = 0.5
    if type_name == "BF16":
        blocks[(blocks & 0x7F80) == 0x7F80] = 0x3F80
    return packed
