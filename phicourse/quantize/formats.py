"""What each block format can say: which scales, which minima, which values, and how they become bits.

A reader of any of these files computes `weight = d * scale * value + dmin * minimum`, where d and dmin are
float16 numbers of the block, scale and minimum are picked from a short list by the codes of the sub-block,
and the value is picked from a codebook by the code of the weight, or of its group. A search that
knows this much of a format can improve all of them.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from phicourse.quantize import iq1, k_quants, lattice, legacy, low_k_quants, nonlinear, small_floats, ternary
from phicourse.quantize.blocks import Blocks, Float32, UInt8, join_rows, pack_nibbles
from phicourse.quantize.codebooks import Codebook, Range, ShiftedGrid, SignedGrid, Table
from phicourse.quantize.error_weights import error_weights, split_importance
from phicourse.quantize.grids import Indices
from phicourse.quantize.rounding import sum_last

SUPER_BLOCK = 256
ONE, NO_MINIMA = np.ones(1, np.float32), np.zeros(1, np.float32)


class Scales(NamedTuple):
    """All that blocks store except the codes of their weights."""

    d: Float32  # (n_blocks,) as float16 keeps it
    dmin: Float32  # (n_blocks,) the same
    scale: Indices  # (n_sub, n_blocks) index into the scales of the format
    minimum: Indices  # (n_sub, n_blocks) index into its minima


# weights (..., n_blocks, block), importance of their columns (n,) or None -> what errors count, as the weights
Counts = Callable[[Float32, ArrayLike | None], Float32]
# blocks (n_blocks,) -> their scales
Read = Callable[[Blocks], Scales]
# scales, codes (n_blocks, n_sub, codes in a sub-block), values (n_blocks, n_sub, size) -> the fields of the blocks
Fields = dict[str, Blocks]
Write = Callable[[Scales, Blocks, Float32], Fields]


class Format(NamedTuple):
    """A block format, and what its own quantizer thinks of errors.

    n_sub     sub-blocks of equal size in a block
    codebook  what codes of weights stand for
    counts    how much errors count in the search of the type's own quantizer
    scales    (n,) what codes of scales stand for
    minima    (n,) what codes of minima stand for; a single 0 where there are none
    has_d     whether there is a float16 to multiply them with; if not, d is 1
    absolute  whether the type's own search, without importance, adds up magnitudes of errors, not squares

    And how a search is to move codes of scales, where there are no minima:

    first_reach, reach  how far at once, the first time and later: as far as time allows
    opposite            whether to try those of the other sign, too: always, or only where importance is known.
                        Where there are more values below zero than above, another sign may fit better
    """

    name: str
    n_sub: int
    codebook: Codebook
    read: Read
    write: Write
    counts: Counts
    scales: Float32 = ONE
    minima: Float32 = NO_MINIMA
    has_d: bool = True
    absolute: bool = False
    first_reach: int = 2
    reach: int = 2
    opposite: Literal["never", "weighted", "always"] = "never"

    @property
    def is_alone(self) -> bool:
        """Whether a block has one d and nothing that could be chosen for a sub-block."""
        return len(self.scales) == 1

    @property
    def has_minima(self) -> bool:
        """Whether anything is added to the weights."""
        return bool(self.minima.any())


# ---- how much errors count -------------------------------------------------------------------------------


def _equally(blocks: Float32, importance: ArrayLike | None) -> Float32:
    return np.ones_like(blocks)


def _by_square(name: str) -> Counts:
    """As the square of the weight, where no importance is known."""

    def counts(blocks: Float32, importance: ArrayLike | None) -> Float32:
        return blocks * blocks if importance is None else error_weights(blocks, importance, 2, name)

    return counts


def _by_row(name: str) -> Counts:
    """Equally, or with the mean square of the whole row."""

    def counts(blocks: Float32, importance: ArrayLike | None) -> Float32:
        if importance is None:
            return np.ones_like(blocks)
        rows = join_rows(blocks)[..., None, :]
        return error_weights(rows, importance, 1, name).reshape(blocks.shape)

    return counts


def _by_magnitude(name: str) -> Counts:
    """As the magnitude of the weight, and the root mean square of its 32."""

    def counts(blocks: Float32, importance: ArrayLike | None) -> Float32:
        if importance is not None:
            return error_weights(blocks, importance, 2, name)
        subs = blocks.reshape(*blocks.shape[:-1], 8, 32)
        root = np.sqrt(sum_last(subs * subs) / np.float32(32))[..., None]
        return np.asarray(root + np.abs(subs)).reshape(blocks.shape)

    return counts


def _as_q2_k(blocks: Float32, importance: ArrayLike | None) -> Float32:
    return np.abs(blocks) if importance is None else error_weights(blocks, importance, 1, "Q2_K")


def _as_q6_k(blocks: Float32, importance: ArrayLike | None) -> Float32:
    if importance is None:
        return blocks * blocks
    return np.broadcast_to(split_importance(importance, blocks, "Q6_K"), blocks.shape)


# ---- one scale in a block --------------------------------------------------------------------------------


def _read_d(blocks: Blocks) -> Scales:
    d = blocks["d"].astype(np.float32)
    zeros = np.zeros((1, len(d)), np.intp)
    return Scales(d, np.zeros_like(d), zeros, zeros)


def _read_d_m(blocks: Blocks) -> Scales:
    return _read_d(blocks)._replace(dmin=blocks["m"].astype(np.float32))


def _write_nibbles(scales: Scales, codes: UInt8, values: Float32) -> Fields:
    """Q4_0 and IQ4_NL."""
    return {"d": scales.d, "qs": pack_nibbles(codes[:, 0])}


def _write_q4_1(scales: Scales, codes: UInt8, values: Float32) -> Fields:
    return {"d": scales.d, "m": scales.dmin, "qs": pack_nibbles(codes[:, 0])}


def _write_q5_0(scales: Scales, codes: UInt8, values: Float32) -> Fields:
    return {"d": scales.d, "qh": legacy.pack_fifth_bits(codes[:, 0]), "qs": pack_nibbles(codes[:, 0])}


def _write_q5_1(scales: Scales, codes: UInt8, values: Float32) -> Fields:
    return {"m": scales.dmin, **_write_q5_0(scales, codes, values)}


def _write_q8_0(scales: Scales, codes: UInt8, values: Float32) -> Fields:
    return {"d": scales.d, "qs": values[:, 0]}


def _write_q2_0(scales: Scales, codes: UInt8, values: Float32) -> Fields:
    fours = codes.reshape(-1, 16, 4) << np.array([0, 2, 4, 6], np.uint8)
    return {"d": scales.d, "qs": np.bitwise_or.reduce(fours, axis=-1)}


def _write_tq1_0(scales: Scales, codes: UInt8, values: Float32) -> Fields:
    first, second, last = (ternary.pack_trits(part) for part in ternary.split_trits(codes[:, 0]))
    return {"d": scales.d, "qs": np.concatenate([first, second], axis=-1), "qh": last}


def _write_tq2_0(scales: Scales, codes: UInt8, values: Float32) -> Fields:
    return {"d": scales.d, "qs": low_k_quants.pack_two_bits(codes[:, 0])}


# ---- super-blocks of whole numbers -----------------------------------------------------------------------


def _read_super(blocks: Blocks, scale: NDArray[Any], minimum: NDArray[Any] | None = None) -> Scales:
    """Read d and, where there is one, dmin; scale and minimum are the codes (n_blocks, n_sub)."""
    scale = scale.T.astype(np.intp)
    if minimum is None:
        return Scales(blocks["d"].astype(np.float32), np.zeros(len(blocks), np.float32), scale, scale * 0)
    d, dmin = (blocks[name].astype(np.float32) for name in ("d", "dmin"))
    return Scales(d, dmin, scale, minimum.T.astype(np.intp))


def _read_q2_k(blocks: Blocks) -> Scales:
    return _read_super(blocks, blocks["scales"] & 15, blocks["scales"] >> 4)


def _read_q3_k(blocks: Blocks) -> Scales:
    return _read_super(blocks, low_k_quants.unpack_signed_scales(blocks["scales"]).astype(np.intp) + 32)


def _read_q4_k(blocks: Blocks) -> Scales:
    """Q4_K and Q5_K."""
    return _read_super(blocks, *k_quants.unpack_scales_and_minima(blocks["scales"]))


def _read_q6_k(blocks: Blocks) -> Scales:
    return _read_super(blocks, blocks["scales"].astype(np.intp) + 128)


def _read_iq4_xs(blocks: Blocks) -> Scales:
    return _read_super(blocks, nonlinear.unpack_scales(blocks["scales_h"], blocks["scales_l"]))


def _write_q2_k(scales: Scales, codes: UInt8, values: Float32) -> Fields:
    both = scales.scale.T | scales.minimum.T << 4
    return {
        "d": scales.d,
        "dmin": scales.dmin,
        "scales": both,
        "qs": low_k_quants.pack_two_bits(codes.reshape(-1, 256)),
    }


def _write_q3_k(scales: Scales, codes: UInt8, values: Float32) -> Fields:
    codes = codes.reshape(-1, 256)
    return {
        "d": scales.d,
        "scales": low_k_quants.pack_signed_scales((scales.scale.T - 32).astype(np.int8)),
        "hmask": low_k_quants.pack_third_bits(codes),
        "qs": low_k_quants.pack_two_bits(codes),
    }


def _write_q4_k(scales: Scales, codes: UInt8, values: Float32) -> Fields:
    both = (numbers.T.astype(np.uint8) for numbers in (scales.scale, scales.minimum))
    return {
        "d": scales.d,
        "dmin": scales.dmin,
        "scales": k_quants.pack_scales_and_minima(*both),
        "qs": k_quants.pack_pairs(codes.reshape(-1, 256)),
    }


def _write_q5_k(scales: Scales, codes: UInt8, values: Float32) -> Fields:
    return _write_q4_k(scales, codes, values) | {"qh": k_quants.pack_fifth_bits(codes.reshape(-1, 256))}


def _write_q6_k(scales: Scales, codes: UInt8, values: Float32) -> Fields:
    ql, qh = k_quants.pack_six_bits(codes.reshape(-1, 256))
    return {"d": scales.d, "scales": scales.scale.T - 128, "ql": ql, "qh": qh}


def _write_iq4_xs(scales: Scales, codes: UInt8, values: Float32) -> Fields:
    high, low = nonlinear.pack_scales(_codes(scales))
    return {"d": scales.d, "scales_h": high, "scales_l": low, "qs": pack_nibbles(codes).reshape(-1, 128)}


# ---- scales that are numbers by themselves ---------------------------------------------------------------


def _read_mxfp4(blocks: Blocks) -> Scales:
    return _read_alone(blocks["e"][:, None])


def _read_nvfp4(blocks: Blocks) -> Scales:
    return _read_alone(blocks["d"])


def _read_alone(codes: UInt8) -> Scales:
    """With a d that is always 1: codes (n_blocks, n_sub)."""
    one = np.ones(len(codes), np.float32)
    scale = codes.T.astype(np.intp)
    return Scales(one, one, scale, scale * 0)


def _write_mxfp4(scales: Scales, codes: UInt8, values: Float32) -> Fields:
    return {"e": scales.scale[0], "qs": pack_nibbles(codes[:, 0])}


def _write_nvfp4(scales: Scales, codes: UInt8, values: Float32) -> Fields:
    return {"d": scales.scale.T, "qs": pack_nibbles(codes).reshape(-1, 32)}


# ---- grids -----------------------------------------------------------------------------------------------


def _read_pairs(blocks: Blocks) -> Scales:
    """IQ2_XS, IQ2_S and IQ3_S."""
    return _read_super(blocks, lattice.unpack_neighbours(blocks["scales"]))


def _read_iq2_xxs(blocks: Blocks) -> Scales:
    words = np.ascontiguousarray(blocks["qs"]).view("<u4").reshape(-1, 8, 2)
    return _read_super(blocks, words[..., 1] >> np.uint32(28))


def _read_iq3_xxs(blocks: Blocks) -> Scales:
    words = np.ascontiguousarray(blocks["qs"][:, 64:]).view("<u4")
    return _read_super(blocks, words >> np.uint32(28))


def _read_iq1_s(blocks: Blocks) -> Scales:
    return _read_super(blocks, blocks["qh"] >> 12 & 7)


def _read_iq1_m(blocks: Blocks) -> Scales:
    d, codes = iq1.unpack_scales(blocks["scales"])
    return Scales(d.astype(np.float32), np.zeros(len(d), np.float32), codes.T, codes.T * 0)


def _codes(scales: Scales) -> UInt8:
    """The codes of the scales of the sub-blocks: (n_blocks, n_sub)."""
    return scales.scale.T.astype(np.uint8)


def _signs(values: Float32) -> UInt8:
    """Collect the signs of 8 weights in a byte: (n_blocks, n_sub, size) -> (n_blocks, 32)."""
    return np.packbits(values < 0, axis=-1, bitorder="little").reshape(-1, 32)


def _write_iq2_xxs(scales: Scales, points: Indices, values: Float32) -> Fields:
    words = lattice.pack_signs_and_scale(_signs(values) & np.uint8(127), _codes(scales))
    both = np.stack([points.astype(np.uint8).view("<u4")[..., 0], words], axis=-1)
    return {"d": scales.d, "qs": lattice.as_words(both.reshape(-1, 16), "<u2")}


def _write_iq2_xs(scales: Scales, points: Indices, values: Float32) -> Fields:
    words = points.reshape(-1, 32) | (_signs(values) & np.uint8(127)).astype(np.intp) << 9
    return {"d": scales.d, "qs": words, "scales": lattice.pack_neighbours(_codes(scales))}


def _write_iq2_s(scales: Scales, points: Indices, values: Float32) -> Fields:
    fours = points.reshape(-1, 8, 4) >> 8 << np.array([0, 2, 4, 6])
    return {
        "d": scales.d,
        "qs": np.concatenate([points.reshape(-1, 32) & 255, _signs(values)], axis=-1),
        "qh": np.bitwise_or.reduce(fours, axis=-1),
        "scales": lattice.pack_neighbours(_codes(scales)),
    }


def _write_iq3_xxs(scales: Scales, points: Indices, values: Float32) -> Fields:
    words = lattice.pack_signs_and_scale(_signs(values) & np.uint8(127), _codes(scales))
    return {
        "d": scales.d,
        "qs": np.concatenate([points.reshape(-1, 64), lattice.as_words(words, "u1")], axis=-1),
    }


def _write_iq3_s(scales: Scales, points: Indices, values: Float32) -> Fields:
    return {
        "d": scales.d,
        "qs": points.reshape(-1, 64) & 255,
        "qh": np.packbits(points >> 8, axis=-1, bitorder="little")[..., 0],
        "signs": _signs(values),
        "scales": lattice.pack_neighbours(_codes(scales)),
    }


def _write_iq1_s(scales: Scales, points: Indices, values: Float32) -> Fields:
    high = np.bitwise_or.reduce((points >> 8 & 7) << np.array([0, 3, 6, 9]), axis=-1)  # (n_blocks, 8)
    down = points[..., 0] >> 11
    return {
        "d": scales.d,
        "qs": points.reshape(-1, 32) & 255,
        "qh": high | scales.scale.T << 12 | down << 15,
    }


def _write_iq1_m(scales: Scales, points: Indices, values: Float32) -> Fields:
    fours = points >> 8 << np.array([0, 4])  # three bits of the index, and above them the shift
    return {
        "qs": points.reshape(-1, 32) & 255,
        "qh": np.bitwise_or.reduce(fours, axis=-1),
        "scales": iq1.pack_scales(scales.d.astype("<f2"), scales.scale.T),
    }


# ---- the table -------------------------------------------------------------------------------------------


def _numbers(first: int, last: int) -> Float32:
    return np.arange(first, last + 1, dtype=np.float32)


def _grid(type: lattice.Lattice, read: Read, write: Write, scales: Float32) -> Format:
    """A format with signs apart."""
    counts = partial(lattice.lattice_error_weights, type=type)
    codebook = SignedGrid(type.name, type.even_signs)
    format = Format(type.name, SUPER_BLOCK // type.size, codebook, read, write, counts, scales)
    return format._replace(first_reach=4)


def _shifted_grid(name: str, n_sub: int, shared: bool, read: Read, write: Write) -> Format:
    """IQ1_S and IQ1_M."""
    codebook = ShiftedGrid("IQ1_S", shared)
    format = Format(name, n_sub, codebook, read, write, _by_square(name), _ODD[:8])
    return format._replace(first_reach=3, reach=1)


_TRITS, _UNEVEN = Range(-1, 1), Table(nonlinear.LEVELS)
_ODD = np.float32(2) * _numbers(0, 15) + np.float32(1)
_QUARTERS, _EIGHTHS = _ODD / np.float32(4), _ODD / np.float32(8)
_4_BITS, _6_BITS = _numbers(0, 15), _numbers(0, 63)
_6_BITS_SIGNED, _8_BITS_SIGNED = _numbers(-32, 31), _numbers(-128, 127)
_POWERS = small_floats.half_of_power(np.arange(255, dtype=np.uint8))
_SMALL_FLOATS = small_floats.half_of_ue4m3(np.arange(127, dtype=np.uint8))
_E2M1 = Table(small_floats.LEVELS)

_ALL = (
    Format("Q4_0", 1, Range(-8, 7), _read_d, _write_nibbles, _by_row("Q4_0")),
    Format("Q5_0", 1, Range(-16, 15), _read_d, _write_q5_0, _by_row("Q5_0")),
    Format("Q8_0", 1, Range(-128, 127), _read_d, _write_q8_0, _equally),
    Format("Q4_1", 1, Range(0, 15), _read_d_m, _write_q4_1, _by_row("Q4_1"), minima=ONE),
    Format("Q5_1", 1, Range(0, 31), _read_d_m, _write_q5_1, _by_row("Q5_1"), minima=ONE),
    Format("Q2_0", 1, Range(-1, 2), _read_d, _write_q2_0, _equally),
    Format("TQ1_0", 1, _TRITS, _read_d, _write_tq1_0, _equally),
    Format("TQ2_0", 1, _TRITS, _read_d, _write_tq2_0, _equally),
    Format("Q2_K", 16, Range(0, 3), _read_q2_k, _write_q2_k, _as_q2_k, _4_BITS, -_4_BITS, absolute=True),
    Format("Q3_K", 16, Range(-4, 3), _read_q3_k, _write_q3_k, _by_square("Q3_K"), _6_BITS_SIGNED)._replace(
        first_reach=7, reach=3, opposite="weighted"
    ),
    Format("Q4_K", 8, Range(0, 15), _read_q4_k, _write_q4_k, _by_magnitude("Q4_K"), _6_BITS, -_6_BITS),
    Format("Q5_K", 8, Range(0, 31), _read_q4_k, _write_q5_k, _by_magnitude("Q5_K"), _6_BITS, -_6_BITS),
    Format("Q6_K", 16, Range(-32, 31), _read_q6_k, _write_q6_k, _as_q6_k, _8_BITS_SIGNED)._replace(
        first_reach=7, reach=7
    ),
    Format("IQ4_NL", 1, _UNEVEN, _read_d, _write_nibbles, _by_square("IQ4_NL")),
    Format("IQ4_XS", 8, _UNEVEN, _read_iq4_xs, _write_iq4_xs, _by_square("IQ4_XS"), _6_BITS_SIGNED)._replace(
        first_reach=4, reach=4, opposite="always"
    ),
    Format("MXFP4", 1, _E2M1, _read_mxfp4, _write_mxfp4, _equally, _POWERS)._replace(
        first_reach=1, has_d=False
    ),
    Format("NVFP4", 4, _E2M1, _read_nvfp4, _write_nvfp4, _equally, _SMALL_FLOATS)._replace(
        first_reach=7, has_d=False
    ),
    _grid(lattice.IQ2_XXS, _read_iq2_xxs, _write_iq2_xxs, _EIGHTHS),
    _grid(lattice.IQ2_XS, _read_pairs, _write_iq2_xs, _EIGHTHS),
    _grid(lattice.IQ2_S, _read_pairs, _write_iq2_s, _EIGHTHS),
    _grid(lattice.IQ3_XXS, _read_iq3_xxs, _write_iq3_xxs, _QUARTERS),
    _grid(lattice.IQ3_S, _read_pairs, _write_iq3_s, _ODD),
    _shifted_grid("IQ1_S", 8, True, _read_iq1_s, _write_iq1_s),
    _shifted_grid("IQ1_M", 16, False, _read_iq1_m, _write_iq1_m),
)
FORMATS = {format.name: format for format in _ALL}
