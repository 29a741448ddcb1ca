"""A better choice of scales and codes than llama.cpp's, in the same formats: `--search best`.

The reference takes shortcuts: it searches the scale of a sub-block first, and only then rounds it to a few bits;
it tries few scales, or none; it asks only near points of a grid. Here every candidate is judged by the error that a
reader of the file will see. The codes of the weights follow from the scales, by rounding, so what is searched
are the scales. From the best of several starts, two steps take turns until nothing improves:

1. with d and dmin as they are, try other codes for the scale and the minimum of each sub-block;
2. with all codes as they are, let least squares find d and dmin, and round them to float16.

Which error? Each type's own search weighs errors in its way, many by the square of the weight, a guess about what
matters; to lower that sum alone often raises the plain squared error. So the search minimizes a blend of
both, and a block is taken only where neither is higher than the reference's. Where that fails, the search runs
again with a larger share of the type's own weights. What is not better in the end stays as the reference has it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import ArrayLike, NDArray

from phicourse.gguf.types import TENSOR_TYPES
from phicourse.quantize.blocks import Blocks, Float32, pack, split_rows
from phicourse.quantize.codebooks import Range, Rounding
from phicourse.quantize.formats import FORMATS, Format, Scales
from phicourse.quantize.grids import Indices
from phicourse.quantize.registry import DEQUANTIZERS, QUANTIZERS, takes_importance
from phicourse.quantize.rounding import quiet
from phicourse.quantize.scale_search import Mask

# The share of the type's own weights in the blend, one attempt after the other.
SHARES = (0.5, 0.75, 1.0)
# How far codes of scales and of minima are moved at once: at the starts, and later.
START_REACH, REACH = (1, 1), (2, 1)
# Starts: d and dmin times each of these, and the codes of the sub-blocks divided by it …
FACTORS = np.array([0.87, 0.93, 1, 1.07, 1.15], np.float32)
# … or, where d is all there is, d times each of these, and of their negatives …
FACTORS_ALONE = np.concatenate([np.arange(0.3, 0.8, 0.05), np.arange(0.8, 1.1, 0.01)]).astype(np.float32)
# … or, with a minimum of its own, the range of the levels cut by these shares at either end.
CUTS = np.array([-0.02, 0, 0.02, 0.05, 0.08, 0.12], np.float32)
MAX_ROUNDS = 8

Float64 = NDArray[np.float64]


@quiet
def best_blocks(x: Float32, type_name: str, importance: ArrayLike | None = None) -> Blocks:
    """Quantize rows better than the type's own quantizer does.

    x            (rows, n) float32, finite; n a multiple of the type's block size
    type_name    a type of QUANTIZERS; those that FORMATS has not are as always: nothing is to be gained
    importance   (n,) float32, how much each column counts; None: not known. Types that cannot weigh errors ignore it
    returns      (rows, n_blocks) blocks, none with a larger error than the reference's, neither plain nor weighted
                 as the type's own search weighs errors
    raises       QuantizeError, as the type's own quantizer
    """
    quantize = QUANTIZERS[type_name]
    if not takes_importance(quantize):
        importance = None
    reference = quantize(x) if importance is None else quantize(x, importance)
    if type_name not in FORMATS:
        return reference
    format = FORMATS[type_name]
    rows = split_rows(x, TENSOR_TYPES[type_name].block, type_name)  # (rows, n_blocks, block)
    own = format.counts(rows, importance).reshape(-1, rows.shape[-1])
    rule = Rule(format, format.absolute and importance is None)
    best = np.ascontiguousarray(reference).reshape(-1)
    step = max(1, format.codebook.chunk // rows.shape[-1])
    for start in range(0, len(best), step):
        part = slice(start, start + step)
        best[part] = _improve(rule, rows.reshape(own.shape)[part], own[part], best[part])
    return best.reshape(reference.shape)


# ---- what is better --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """When a block may take the place of the reference's.

    absolute  whether the type's own search adds up magnitudes of errors, not squares
    """

    format: Format
    absolute: bool

    def errors(self, x: Float32, own: Float32, blocks: Blocks) -> Float64:
        """The type's own error and the plain one, as a reader of the file sees them: (2, n_blocks)."""
        values = DEQUANTIZERS[self.format.name](blocks).reshape(x.shape)
        magnitudes = np.abs(values.astype(np.float64) - x)
        squares = magnitudes * magnitudes
        own_error = (own * (magnitudes if self.absolute else squares)).sum(axis=-1)
        return np.stack([own_error, squares.sum(axis=-1)])

    def better(self, x: Float32, own: Float32, new: Blocks, old: Blocks) -> Mask:
        """Where none of the two errors is higher, and one is lower: (n_blocks,)."""
        ours, theirs = self.errors(x, own, new), self.errors(x, own, old)
        return np.asarray((ours <= theirs).all(axis=0) & (ours < theirs).any(axis=0))


def _improve(rule: Rule, x: Float32, own: Float32, reference: Blocks) -> Blocks:
    """Search better blocks than these: (n_blocks, block) twice, and (n_blocks,)."""
    best = reference.copy()
    left = np.arange(len(best))
    for share in SHARES:
        search = Search.of(rule.format, x[left], _blend(own[left], share))
        found = search.blocks(search.descend(search.best_start(rule.format.read(best[left]))))
        better = rule.better(x[left], own[left], found, best[left])
        best[left[better]] = found[better]
        left = left[~better]
        if not len(left):
            break
    return best


def _blend(own: Float32, share: float) -> Float32:
    """Mix the type's own weights, in units of their mean, with equal ones: (n_blocks, block)."""
    mean = own.mean(axis=-1, keepdims=True)
    relative = np.divide(own, mean, out=np.ones_like(own), where=mean > 0)
    return np.asarray(np.float32(share) * relative + np.float32(1 - share))


# ---- the search ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Search:
    """Some blocks, and how to round them. Arrays are (size, n_sub, n_blocks), those of sub-blocks (n_sub, n_blocks)."""

    format: Format
    x: Float32
    weights: Float32
    rounding: Rounding

    @classmethod
    def of(cls, format: Format, x: Float32, weights: Float32) -> "Search":
        """Prepare blocks (n_blocks, block)."""
        columns, counts = (
            np.ascontiguousarray(values.reshape(len(x), format.n_sub, -1).T) for values in (x, weights)
        )
        return cls(format, columns, counts, format.codebook.of(columns, counts))

    def blocks(self, scales: Scales) -> Blocks:
        """Round with these scales, and pack: (n_blocks,)."""
        steps = self.steps(scales)
        codes, values = (
            np.ascontiguousarray(found.T)
            for found in (self.rounding.codes(*steps), self.rounding.values(*steps))
        )
        return pack(self.format.name, **self.format.write(scales, codes, values))

    def steps(self, scales: Scales) -> tuple[Float32, Float32]:
        """What a reader multiplies the values with, and what it adds."""
        scale, minimum = self.format.scales[scales.scale], self.format.minima[scales.minimum]
        return scales.d * scale, scales.dmin * minimum

    def errors(self, scales: Scales) -> Float32:
        """Weighted squared errors of the sub-blocks, with the best codes for these scales."""
        step, offset = self.steps(scales)
        difference = self.rounding.values(step, offset) * step
        difference += offset
        difference -= self.x
        difference *= difference
        difference *= self.weights
        return np.asarray(difference.sum(axis=0))

    def best_start(self, reference: Scales) -> Scales:
        """Choose for each block from the reference's scales and others."""
        best, smallest = reference, self.errors(reference).sum(axis=0)
        for start in starts(self.format, reference):
            scales = self.fit(start) if self.format.is_alone else start
            scales, error = self.move(scales, START_REACH)
            better = error < smallest
            best, smallest = _choose(better, scales, best), np.where(better, error, smallest)
        return best

    def descend(self, scales: Scales) -> Scales:
        """Take turns until no block improves."""
        scales, smallest = self.move(scales, REACH)
        for _ in range(MAX_ROUNDS):
            tried, error = self.move(self.fit(scales), REACH)
            better = error < smallest
            if not better.any():
                break
            scales, smallest = _choose(better, tried, scales), np.where(better, error, smallest)
        return scales

    def move(self, scales: Scales, reach: tuple[int, int]) -> tuple[Scales, Float32]:
        """Step 1: the best codes nearby for each sub-block, and the errors of the blocks (n_blocks,)."""
        best, smallest = scales, self.errors(scales)
        for tried in neighbours(self.format, scales, *reach):
            error = self.errors(tried)
            better = error < smallest
            smallest = np.where(better, error, smallest)
            scale = np.where(better, tried.scale, best.scale)
            best = best._replace(scale=scale, minimum=np.where(better, tried.minimum, best.minimum))
        return best, smallest.sum(axis=0)

    def fit(self, scales: Scales) -> Scales:
        """Step 2: the d and dmin with the smallest Σ w (d u + dmin v - x)² for what codes stand for, u and v.

        Setting the derivatives to zero gives
            d Σ w u² + dmin Σ w u v = Σ w u x
            d Σ w u v + dmin Σ w v² = Σ w v x
        """
        if not self.format.has_d:
            return scales
        u = self.rounding.values(*self.steps(scales)) * self.format.scales[scales.scale]
        v = self.format.minima[scales.minimum]
        wu = self.weights * u
        ux, uu = (wu * self.x).sum(axis=(0, 1)), (wu * u).sum(axis=(0, 1))  # (n_blocks,)
        if not v.any():
            return scales._replace(d=_as_float16(ux / uu))
        uv = (wu.sum(axis=0) * v).sum(axis=0)
        vv = (self.weights.sum(axis=0) * v * v).sum(axis=0)
        vx = ((self.weights * self.x).sum(axis=0) * v).sum(axis=0)
        determinant = uu * vv - uv * uv
        solvable = determinant > np.float32(1e-6) * uu * vv
        d, dmin = (ux * vv - vx * uv) / determinant, (uu * vx - uv * ux) / determinant
        d, dmin = np.where(solvable, d, scales.d), np.where(solvable, dmin, scales.dmin)
        return scales._replace(d=_as_float16(d), dmin=_as_float16(dmin))


def starts(format: Format, scales: Scales) -> Iterator[Scales]:
    """Scales to start from, other than the reference's."""
    if not format.has_d:
        return
    if not format.is_alone:
        others = FACTORS if len(format.minima) > 1 else FACTORS[2:3]
        for factor, other in product(FACTORS, others):
            scale = _closest(format.scales, format.scales[scales.scale] / factor)
            minimum = _closest(format.minima, format.minima[scales.minimum] / other)
            yield Scales(_as_float16(scales.d * factor), _as_float16(scales.dmin * other), scale, minimum)
    elif isinstance(format.codebook, Range) and format.minima.any():
        n_steps = np.float32(format.codebook.last - format.codebook.first)
        for low, high in product(CUTS, CUTS):
            d, m = scales.d * (1 - low - high), scales.dmin + scales.d * low * n_steps
            yield scales._replace(d=_as_float16(d), dmin=_as_float16(m))
    else:
        for factor in (*FACTORS_ALONE, *-FACTORS_ALONE):
            yield scales._replace(d=_as_float16(scales.d * factor))


def neighbours(format: Format, scales: Scales, reach: int, reach_minimum: int) -> Iterator[Scales]:
    """Scales whose codes differ by a little; if scales can be negative, around the opposite ones, too."""
    if format.is_alone:
        return
    n_scales, n_minima = len(format.scales), len(format.minima)
    minima = range(-reach_minimum, reach_minimum + 1) if n_minima > 1 else (0,)
    around = (scales.scale, n_scales - scales.scale) if format.scales[0] < 0 else (scales.scale,)
    for centre, change, change_minimum in product(around, range(-reach, reach + 1), minima):
        scale = np.clip(centre + change, 0, n_scales - 1)
        yield scales._replace(scale=scale, minimum=np.clip(scales.minimum + change_minimum, 0, n_minima - 1))


def _closest(table: Float32, wanted: Float32) -> Indices:
    """The codes of the numbers nearest to those wanted, any shape."""
    return np.asarray(np.abs(table - wanted[..., None]).argmin(axis=-1))


def _choose(better: Mask, new: Scales, old: Scales) -> Scales:
    """Take the new scales for some blocks (n_blocks,)."""
    d, dmin = np.where(better, new.d, old.d), np.where(better, new.dmin, old.dmin)
    scale, minimum = np.where(better, new.scale, old.scale), np.where(better, new.minimum, old.minimum)
    return Scales(d, dmin, scale, minimum)


def _as_float16(d: Float32) -> Float32:
    """What float16 keeps of a number."""
    return d.astype(np.float16).astype(np.float32)
