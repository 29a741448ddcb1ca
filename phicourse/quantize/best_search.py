"""A better choice of scales and codes than llama.cpp's, in the same formats: `--search best`.

The reference takes shortcuts: it searches the scale of a sub-block first, and only then rounds it to a few bits;
it tries few scales, or none; it asks only near points of a grid. Here every candidate is judged by the error that a
reader of the file will see. The codes of the weights follow from the scales, by rounding, so what is searched
are the scales. From the reference's scales, and others near them, two steps take turns until nothing improves:

1. with d and dmin as they are, sub-block after sub-block gets the best scale and minimum nearby;
2. with all codes as they are, let least squares find d and dmin, and round them to float16.

Which error? Each type's own search weighs errors in its way, many by the square of the weight, a guess about what
matters; to lower that sum alone often raises the plain squared error. So the search minimizes the sum of both, each
in units of the reference's, and takes nothing that has either of them higher than the reference has it. What
is not better in the end stays as the reference has it.

The compiled search, native/src/quantize/best_search.cpp, finds the same bytes, because sums are float32 and in a fixed
order. It has the types of `native.better_searches()`; for MXFP4, NVFP4 and the types with grids there is only this.
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
# How far the codes of scales move at once without minima: less where weights are whole numbers and scales are coarse,
# further where scales have 8 bits; and how far those of both do, the first time and later.
REACH, COARSE_REACH, FINE_REACH, FIRST_REACH, REACH_WITH_MINIMA = 4, 2, 7, 1, 3


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
            format, rows.reshape(counts.shape)[part], counts[part], best[part], importance is None
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

    def __add__(self, other: "Errors") -> "Errors":  # type: ignore[override] # not to be concatenated
        return Errors(self.own + other.own, self.plain + other.plain)

    def __sub__(self, other: "Errors") -> "Errors":
        return Errors(self.own - other.own, self.plain - other.plain)

    def at(self, sub_block: int) -> "Errors":
        """Those of one sub-block: (n_sub, n_blocks) -> (n_blocks,)."""
        return Errors(self.own[sub_block], self.plain[sub_block])

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

    def or_(self, errors: Errors) -> "Limits":
        """The same, but where a block is beyond them already, it may stay so."""
        own = np.where(self.own > errors.own, self.own, errors.own)
        return Limits(own, np.where(self.plain > errors.plain, self.plain, errors.plain))


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


def changes(format: Format, first: bool) -> list[Change]:
    """What to try for each sub-block, the first time and later."""
    if format.is_alone:
        return []
    if len(format.minima) > 1:
        reach = _around(FIRST_REACH if first else REACH_WITH_MINIMA)
        return [Change(*both) for both in product(reach, reach)]
    near = [Change(change) for change in _around(_reach(format))]
    if (
        first and isinstance(format.codebook, Table) and format.scales[0] < 0
    ):  # uneven: the other sign may fit better
        near += [change._replace(opposite=True) for change in near]
    return near


def _reach(format: Format) -> int:
    if not isinstance(format.codebook, Range):
        return REACH
    return FINE_REACH if len(format.scales) > 64 else COARSE_REACH


def _around(reach: int) -> range:
    return range(-reach, reach + 1)


# ---- the search ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Search:
    """Some blocks, and how to round them. Arrays are (size, n_sub, n_blocks), those of sub-blocks (n_sub, n_blocks).

    counts     how much an error counts for the type's own search, in units of the block's mean
    absolute   whether that search adds up magnitudes of errors, not squares
    reference  the errors of the reference's blocks, and below that
    limits     what is better
    """

    format: Format
    x: Float32
    counts: Float32
    rounding: Rounding
    absolute: bool
    reference: Errors
    limits: Limits

    @classmethod
    def of(
        cls, format: Format, x: Float32, counts: Float32, reference: Blocks, equal_columns: bool
    ) -> "Search":
        """Prepare blocks: weights and counts (n_blocks, block), and what the type's own quantizer made of them."""
        total = sum_last(counts)
        unit = np.where(total != 0, np.float32(counts.shape[-1]) / total, np.float32(0))
        columns, its_counts = (
            np.ascontiguousarray(values.reshape(len(x), format.n_sub, -1).T)
            for values in (x, counts * unit[:, None])
        )
        nothing = Errors(*np.zeros((2, len(x)), np.float32))
        rounding = format.codebook.of(columns, its_counts + np.float32(1))
        absolute = format.absolute and equal_columns
        search = cls(format, columns, its_counts, rounding, absolute, nothing, Limits(*nothing))
        errors = search.errors_seen(reference)
        limits = Limits.below(errors, total != 0)
        return cls(format, columns, its_counts, rounding, absolute, errors, limits)

    def run(self, reference: Scales) -> Scales:
        """Improve the reference's scales wherever that is possible."""
        best, smallest = reference, self.cost(self.reference)
        first, later = (changes(self.format, is_first) for is_first in (True, False))
        for start in starts(self.format, reference):
            fitted = self.fit(start) if self.format.is_alone else start
            best, smallest, _ = self.attempt(fitted, first, best, smallest)
        for _ in range(N_ROUNDS):
            best, smallest, better = self.attempt(self.fit(best), later, best, smallest)
            if not better:
                break
        return best

    def attempt(
        self, scales: Scales, moves: list[Change], best: Scales, smallest: Float32
    ) -> tuple[Scales, Float32, bool]:
        """Move scales, and take what is better than all so far: the best, its cost, and whether any block is better."""
        tried, errors = self.move(scales, moves)
        cost = self.cost(errors)
        better = (cost < smallest) & self.limits.hold(errors)
        return _choose(better, tried, best), np.where(better, cost, smallest), bool(better.any())

    def cost(self, errors: Errors) -> Float32:
        """What is minimized, (n_blocks,): the sum of both errors in units of the reference's."""
        return errors.own * reciprocal(self.reference.own) + errors.plain * reciprocal(self.reference.plain)

    def move(self, scales: Scales, moves: list[Change]) -> tuple[Scales, Errors]:
        """Step 1: give sub-block after sub-block the best codes nearby. Returns these, and the errors of blocks.

        No error of a block gets larger than it is and than it may be.
        """
        now = self.errors(scales)
        total = now.total()
        tried = [
            (other, self.errors(other)) for other in (change.of(scales, self.format) for change in moves)
        ]
        scale, minimum = scales.scale.copy(), scales.minimum.copy()
        for j in range(self.format.n_sub if tried else 0):
            before, least, highest = now.at(j), now.at(j), self.limits.or_(total)
            for other, errors in tried:
                found = errors.at(j)
                better = (self.cost(found) < self.cost(least)) & highest.hold(total + (found - before))
                least = Errors(*(np.where(better, new, old) for new, old in zip(found, least, strict=True)))
                scale[j] = np.where(better, other.scale[j], scale[j])
                minimum[j] = np.where(better, other.minimum[j], minimum[j])
            total = total + (least - before)
        return scales._replace(scale=scale, minimum=minimum), total

    def fit(self, scales: Scales) -> Scales:
        """Step 2: the d and dmin with the smallest Σ w (d u + dmin v - x)² for what codes stand for, u and v.

        Setting the derivatives to zero gives
            d Σ w u² + dmin Σ w u v = Σ w u x
            d Σ w u v + dmin Σ w v² = Σ w v x
        where w is what the own search counts, and 1 for the plain error.
        """
        if not self.format.has_d:
            return scales
        values, weights = self.rounding.values(*self.steps(scales)), self.counts + np.float32(1)
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
        values = DEQUANTIZERS[self.format.name](blocks).reshape(len(blocks), self.format.n_sub, -1)
        return self._errors_of(values.T).total()

    def _errors_of(self, values: Float32) -> Errors:
        difference = values - self.x
        squares = difference * difference
        own = self.counts * (np.abs(difference) if self.absolute else squares)
        return Errors(sum_in_order(own), sum_in_order(squares))

    def blocks(self, scales: Scales) -> Blocks:
        """Round with these scales, and pack: (n_blocks,)."""
        steps = self.steps(scales)
        codes, values = (
            np.ascontiguousarray(found.T)
            for found in (self.rounding.codes(*steps), self.rounding.values(*steps))
        )
        return pack(self.format.name, **self.format.write(scales, codes, values))


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
    """Take the new scales for some blocks (n_blocks,)."""
    d, dmin = np.where(better, new.d, old.d), np.where(better, new.dmin, old.dmin)
    scale, minimum = np.where(better, new.scale, old.scale), np.where(better, new.minimum, old.minimum)
    return Scales(d, dmin, scale, minimum)


def _as_float16(d: Float32) -> Float32:
    """What float16 keeps of a number."""
    return d.astype(np.float16).astype(np.float32)
