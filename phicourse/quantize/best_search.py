"""A better choice of scales and codes than llama.cpp's, in the same formats: `--search best`.

The reference takes shortcuts: it searches the scale of a sub-block first, and only then rounds it to a few bits;
it tries few scales, or none; for the types with grids it weighs errors by roots. Here every candidate is judged by the
error that a reader of the file will see. The codes of the weights follow from the scales, by rounding, so what is
searched are the scales. From the reference's scales, and others near them, two steps take turns until nothing improves:

1. with d and dmin as they are, each sub-block gets the best scale and minimum nearby;
2. with all codes as they are, let least squares find d and dmin, and round them to float16.

Which error? Each type's own search weighs errors in its way, many by the square of the weight, a guess about what
matters; to lower that sum alone often raises the plain squared error. So the search minimizes the sum of both, each
in units of the reference's, and takes nothing that has either of them higher than the reference has it. Where one
would be higher, it counts more from then on. What is not better in the end stays as the reference has it.

The compiled search, native/src/quantize/best_search.hpp, finds the same bytes, because sums are float32 and in a fixed
order.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from phicourse.gguf.types import TENSOR_TYPES
from phicourse.quantize.blocks import Blocks, Float32, pack, split_rows
from phicourse.quantize.codebooks import Range, Rounding, Table
from phicourse.quantize.formats import FORMATS, Format, Scales
from phicourse.quantize.registry import DEQUANTIZERS, QUANTIZERS, takes_importance
from phicourse.quantize.rounding import quiet, reciprocal, sum_in_order, sum_last
from phicourse.quantize.scale_search import Mask

# Float sums err by less than MARGIN of them, and by less than TINY where terms vanish; from LARGEST on, who knows.
MARGIN, TINY, LARGEST = np.float32(2**-14), np.float32(2**-100), np.float32(2**120)
# Sub-blocks with minima start with d and their scales changed by these.
FACTORS = np.array([0.87, 0.93, 1, 1.07, 1.15], np.float32)
# Where d is all there is, the largest weight meets a number this many half levels beyond the last one …
STRETCHES = range(-2, 14)
# … and where there is a minimum, too, so many half levels are cut off at either end.
CUTS = range(-1, 3)
N_ROUNDS = 4
# How far codes of scales and minima move together, the first time and later.
FIRST_REACH, REACH_WITH_MINIMA = 1, 3
# What the type's own error counts, where the plain one counts 1, each in units of the reference's; and how much more
# one of them does where it is beyond its limit.
OWN_WEIGHT, SHIFT = np.float32(1.5), np.float32(2)


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
    counts = format.counts(rows, importance).reshape(-1, rows.shape[-1])
    best = np.ascontiguousarray(reference).reshape(-1)
    step = max(1, format.codebook.chunk // rows.shape[-1])
    for start in range(0, len(best), step):
        part = slice(start, start + step)
        search = Search.of(
            format, rows.reshape(counts.shape)[part], counts[part], best[part], importance is not None
        )
        found = search.blocks(search.run(format.read(best[part])))
        better = search.limits.hold(search.errors_seen(found))
        best[part] = np.where(better, found, best[part])
    return best.reshape(reference.shape)


# ---- what is better --------------------------------------------------------------------------------------


class Errors(NamedTuple):
    """Of blocks, or of sub-blocks: as the type's own search weighs errors, and the plain sum of squares."""

    own: Float32
    plain: Float32

    @classmethod
    def of(cls, difference: Float32, counts: Float32, absolute: bool) -> "Errors":
        """Those of sub-blocks (n_sub, n_blocks), from what weights miss, and how much each counts."""
        squares = difference * difference
        own = counts * (np.abs(difference) if absolute else squares)
        return cls(sum_in_order(own), sum_in_order(squares))

    def total(self) -> "Errors":
        """Those of the blocks: (n_sub, n_blocks) -> (n_blocks,)."""
        return Errors(sum_in_order(self.own), sum_in_order(self.plain))


class Limits(NamedTuple):
    """How large errors of blocks may be, (n_blocks,)."""

    own: Float32
    plain: Float32

    @classmethod
    def below(cls, reference: Errors, counted: Mask) -> "Limits":
        """Surely smaller than these errors; where it cannot be told, none is. Where nothing counts, 0 is fine."""
        own, plain = (
            np.where(error < LARGEST, error * (np.float32(1) - MARGIN) - TINY, np.float32(-1))
            for error in reference
        )
        return cls(np.where(counted, own, np.float32(0)), plain)

    def hold(self, errors: Errors) -> Mask:
        """Where neither error is larger."""
        return np.asarray((errors.own <= self.own) & (errors.plain <= self.plain))


# ---- what is near ----------------------------------------------------------------------------------------


class Change(NamedTuple):
    """How codes of scales and minima move, those of the opposite scales if `opposite`."""

    scale: int
    minimum: int = 0
    opposite: bool = False

    def of(self, scales: Scales, format: Format) -> Scales:
        """The scales with all sub-blocks' codes moved, as far as there are codes."""
        n_scales, n_minima = len(format.scales), len(format.minima)
        centre = n_scales - scales.scale if self.opposite else scales.scale
        scale = np.clip(centre + self.scale, 0, n_scales - 1)
        return scales._replace(scale=scale, minimum=np.clip(scales.minimum + self.minimum, 0, n_minima - 1))


def changes(format: Format, first: bool, weighted: bool) -> list[Change]:
    """What to try for each sub-block, the first time and later; with or without importance."""
    if format.is_alone:
        return [Change(0)]
    if len(format.minima) > 1:
        reach = _around(FIRST_REACH if first else REACH_WITH_MINIMA)
        return [Change(*both) for both in product(reach, reach)]
    near = [Change(change) for change in _around(format.first_reach if first else format.reach)]
    if first and (format.opposite == "always" or (format.opposite == "weighted" and weighted)):
        near += [change._replace(opposite=True) for change in near]
    return near


def _around(reach: int) -> range:
    return range(-reach, reach + 1)


# ---- the search ------------------------------------------------------------------------------------------


@dataclass
class Progress:
    """How far a search has come. Arrays are (n_blocks,).

    best      the best scales within the limits, and their cost: `smallest`
    current   those with the lowest cost, within the limits or not: the search goes on from there
    """

    best: Scales
    smallest: Float32
    current: Scales
    errors: Errors
    lowest: Float32


@dataclass(frozen=True)
class Search:
    """Some blocks, and how to round them. Arrays are (size, n_sub, n_blocks), those of sub-blocks (n_sub, n_blocks).

    counts     how much an error counts for the type's own search, in units of the block's mean
    weighted   whether importance is known
    reference  the errors of the reference's blocks, (n_blocks,) as all below
    unit       what an own error counts, where a plain one counts 1
    limits     what is better
    """

    format: Format
    x: Float32
    counts: Float32
    weighted: bool
    reference: Errors
    unit: Float32
    limits: Limits
    rounding: Rounding

    @classmethod
    def of(cls, format: Format, x: Float32, counts: Float32, reference: Blocks, weighted: bool) -> "Search":
        """Prepare blocks: weights and counts (n_blocks, block), and what the type's own quantizer made of them."""
        total = sum_last(counts)
        mean = np.where(total != 0, np.float32(counts.shape[-1]) / total, np.float32(0))
        columns, its_counts = (
            np.ascontiguousarray(values.reshape(len(x), format.n_sub, -1).T)
            for values in (x, counts * mean[:, None])
        )
        difference = values_seen(format, reference) - columns
        errors = Errors.of(difference, its_counts, format.absolute and not weighted).total()
        unit = OWN_WEIGHT * (errors.plain * reciprocal(errors.own))
        limits = Limits.below(errors, total != 0)
        rounding = format.codebook.of(columns, its_counts * unit + np.float32(1))
        return cls(format, columns, its_counts, weighted, errors, unit, limits, rounding)

    def run(self, reference: Scales) -> Scales:
        """Improve the reference's scales wherever that is possible."""
        first, later = (changes(self.format, is_first, self.weighted) for is_first in (True, False))
        infinite = np.full_like(self.unit, np.inf)
        smallest = self.cost(self.reference, self.unit)
        now = Progress(reference, smallest, reference, Errors(infinite, infinite), infinite)
        for start in starts(self.format, reference):
            self.attempt(self.fit(start, self.unit) if self.format.is_alone else start, first, self.unit, now)
        weight = self.unit
        for _ in range(N_ROUNDS if self.format.has_d else 0):
            own, plain = now.errors.own > self.limits.own, now.errors.plain > self.limits.plain
            weight = np.where(own & ~plain, weight * SHIFT, np.where(plain & ~own, weight / SHIFT, weight))
            now.lowest = np.where(own ^ plain, infinite, now.lowest)
            lower = self.attempt(self.fit(now.current, weight), later, weight, now)
            if not lower and not (own ^ plain).any():
                break
        return now.best

    def attempt(self, scales: Scales, moves: list[Change], weight: Float32, now: Progress) -> bool:
        """Move scales, and note where the cost is lower than all so far. Returns whether it is anywhere."""
        tried, errors = self.move(scales, moves, weight)
        cost = self.cost(errors, self.unit)
        lower = cost < now.lowest
        better = (cost < now.smallest) & self.limits.hold(errors)
        now.current, now.lowest = _choose(lower, tried, now.current), np.where(lower, cost, now.lowest)
        now.errors = Errors(*(np.where(lower, *pair) for pair in zip(errors, now.errors, strict=True)))
        now.best, now.smallest = _choose(better, tried, now.best), np.where(better, cost, now.smallest)
        return bool(lower.any())

    def cost(self, errors: Errors, weight: Float32) -> Float32:
        """What is minimized, (..., n_blocks): the sum of both errors."""
        return errors.own * weight + errors.plain

    def move(self, scales: Scales, moves: list[Change], weight: Float32) -> tuple[Scales, Errors]:
        """Step 1: give each sub-block the best codes nearby. Returns these, and the errors of blocks."""
        best = scales
        least = Errors(*(np.full(scales.scale.shape, np.inf, np.float32) for _ in range(2)))
        least_cost = least.own
        for change in moves:
            tried = change.of(scales, self.format)
            errors = self.errors(tried)
            cost = self.cost(errors, weight)
            better = cost < least_cost
            least_cost = np.where(better, cost, least_cost)
            least = Errors(*(np.where(better, *pair) for pair in zip(errors, least, strict=True)))
            best = _choose(better, tried, best)
        return best, least.total()

    def fit(self, scales: Scales, weight: Float32) -> Scales:
        """Step 2: the d and dmin with the smallest Σ w (d u + dmin v - x)² for what codes stand for, u and v.

        Setting the derivatives to zero gives
            d Σ w u² + dmin Σ w u v = Σ w u x
            d Σ w u v + dmin Σ w v² = Σ w v x
        where w is what the own error counts, and 1 for the plain one.
        """
        if not self.format.has_d:
            return scales
        if self.is_absolute:
            weight = np.ones_like(weight)  # magnitudes are no squares
        values, weights = self.rounding.values(*self.steps(scales)), self.counts * weight + np.float32(1)
        s, v = self.format.scales[scales.scale], self.format.minima[scales.minimum]  # u = s * value
        weighted = weights * values
        ux = sum_in_order(s * sum_in_order(weighted * self.x))  # (n_blocks,)
        uu = sum_in_order(s * s * sum_in_order(weighted * values))
        if not self.format.has_minima:
            return scales._replace(d=_as_float16(ux / uu))
        uv = sum_in_order(s * v * sum_in_order(weighted))
        vv = sum_in_order(v * v * sum_in_order(weights))
        vx = sum_in_order(v * sum_in_order(weights * self.x))
        determinant = uu * vv - uv * uv
        solvable = determinant > np.float32(1e-6) * uu * vv
        d = np.where(solvable, (ux * vv - vx * uv) / determinant, scales.d)
        dmin = np.where(solvable, (uu * vx - uv * ux) / determinant, scales.dmin)
        return scales._replace(d=_as_float16(d), dmin=_as_float16(dmin))

    # ---- errors, and blocks

    def steps(self, scales: Scales) -> tuple[Float32, Float32]:
        """What a reader multiplies the values with, and what it adds."""
        scale, minimum = self.format.scales[scales.scale], self.format.minima[scales.minimum]
        return scales.d * scale, scales.dmin * minimum

    def errors(self, scales: Scales) -> Errors:
        """Errors of the sub-blocks, with the best codes for these scales."""
        step, offset = self.steps(scales)
        return self._errors_of(self.rounding.values(step, offset) * step + offset)

    def errors_seen(self, blocks: Blocks) -> Errors:
        """Errors of blocks as a reader of the file sees them: (n_blocks,)."""
        return self._errors_of(values_seen(self.format, blocks)).total()

    @property
    def is_absolute(self) -> bool:
        """Whether the own errors are magnitudes."""
        return self.format.absolute and not self.weighted

    def _errors_of(self, values: Float32) -> Errors:
        return Errors.of(values - self.x, self.counts, self.is_absolute)

    def blocks(self, scales: Scales) -> Blocks:
        """Round with these scales, and pack: (n_blocks,)."""
        steps = self.steps(scales)
        codes, values = (
            np.ascontiguousarray(found.T)
            for found in (self.rounding.codes(*steps), self.rounding.values(*steps))
        )
        return pack(self.format.name, **self.format.write(scales, codes, values))


def values_seen(format: Format, blocks: Blocks) -> Float32:
    """What a reader of blocks (n_blocks,) sees: (size, n_sub, n_blocks)."""
    return DEQUANTIZERS[format.name](blocks).reshape(len(blocks), format.n_sub, -1).T


def starts(format: Format, scales: Scales) -> Iterator[Scales]:
    """Scales to start from, near the reference's or the same."""
    codebook = format.codebook
    if len(format.minima) > 1:
        for factor in FACTORS:
            scale = np.clip(np.rint(format.scales[scales.scale] / factor), 0, len(format.scales) - 1)
            yield scales._replace(d=_as_float16(scales.d * factor), scale=scale.astype(np.intp))
    elif not format.is_alone:
        yield scales
    elif isinstance(codebook, Range) and format.has_minima:
        n_steps = np.float32(codebook.last - codebook.first)
        for low, high in product(CUTS, CUTS):
            d = scales.d * (np.float32(1) - np.float32(0.5 * (low + high)) / n_steps)
            yield scales._replace(
                d=_as_float16(d), dmin=_as_float16(scales.dmin + scales.d * np.float32(0.5 * low))
            )
    elif isinstance(codebook, Range | Table):
        first, gap = codebook.lowest_two()
        for sign, beyond in product((1, -1), STRETCHES):
            factor = first / (first - np.float32(0.5 * beyond) * gap)
            yield scales._replace(d=_as_float16(scales.d * (sign * factor)))


def _choose(better: Mask, new: Scales, old: Scales) -> Scales:
    """Take the new scales for some blocks (n_blocks,), or the codes for some sub-blocks (n_sub, n_blocks)."""
    scale, minimum = np.where(better, new.scale, old.scale), np.where(better, new.minimum, old.minimum)
    if better.ndim == 2:
        return old._replace(scale=scale, minimum=minimum)
    d, dmin = np.where(better, new.d, old.d), np.where(better, new.dmin, old.dmin)
    return Scales(d, dmin, scale, minimum)


def _as_float16(d: Float32) -> Float32:
    """What float16 keeps of a number."""
    return d.astype(np.float16).astype(np.float32)
