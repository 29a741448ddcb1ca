"""The vocabulary of the GGUF container: value types, tensor types, and how each block is laid out in bytes.

One table describes every block. The NumPy dtypes, the byte pictures in the notebooks, the sizes that
`phicourse info` prints and the test that holds the C++ structs all come from it.
Source: ggml `ggml-common.h` and `ggml.c` (ggml 0.25), facts only.
"""

from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phicourse.errors import GGUFError


class ValueType(IntEnum):
    """The type of a metadata value; the number is what the file stores."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


# How a number of each type lies in the file. STRING and ARRAY have a length in front instead.
NUMBER_DTYPES: dict[ValueType, str] = {
    ValueType.UINT8: "<u1",
    ValueType.INT8: "<i1",
    ValueType.UINT16: "<u2",
    ValueType.INT16: "<i2",
    ValueType.UINT32: "<u4",
    ValueType.INT32: "<i4",
    ValueType.FLOAT32: "<f4",
    ValueType.BOOL: "<u1",
    ValueType.UINT64: "<u8",
    ValueType.INT64: "<i8",
    ValueType.FLOAT64: "<f8",
}


@dataclass(frozen=True)
class Value:
    """One metadata value with the type that it has in the file.

    value    bool, int, float or str; for arrays an ndarray (numbers) or a list of str
    element  the type of the elements where `type` is ARRAY, else None
    """

    type: ValueType
    value: Any
    element: ValueType | None = None

    @property
    def type_name(self) -> str:
        """The type as people write it: `UINT32`, `ARRAY of STRING`."""
        return self.type.name if self.element is None else f"ARRAY of {self.element.name}"


@dataclass(frozen=True)
class Field:
    """A part of a block: where it starts, how many bytes it has, what its bits say."""

    name: str
    offset: int
    bytes: int
    dtype: str
    bits_per_code: int | None
    meaning: str


@dataclass(frozen=True)
class TensorType:
    """How the weights of a tensor are stored: `block` weights of a row in `bytes` bytes, in `fields`."""

    name: str
    id: int
    block: int
    bytes: int
    fields: tuple[Field, ...]

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """One block as a NumPy dtype: structured, or plain where a block is one number."""
        if self.block == 1:
            return np.dtype(self.fields[0].dtype)
        return np.dtype([(field.name, field.dtype) for field in self.fields])

    @property
    def bits_per_weight(self) -> float:
        """The bits that one weight takes, its share of the scales included."""
        return 8 * self.bytes / self.block

    def row_bytes(self, n: int) -> int:
        """Return the bytes of a row of n weights; GGUFError where n is no whole number of blocks."""
        if n % self.block:
            raise GGUFError(f"rows of {n} weights are no multiple of {self.block}, the block of {self.name}")
        return n // self.block * self.bytes


_Part = tuple[str, str, int | None, str]


def _layout(name: str, id: int, block: int, size: int, *parts: _Part) -> TensorType:
    """Put the parts (name, dtype, bits per code, meaning) one after the other and check their sum."""
    fields, offset = [], 0
    for part, dtype, bits, meaning in parts:
        n_bytes = np.dtype(dtype).itemsize
        fields.append(Field(part, offset, n_bytes, dtype, bits, meaning))
        offset += n_bytes
    if offset != size:
        raise GGUFError(f"the fields of {name} have {offset} bytes, a block has {size}")
    return TensorType(name, id, block, size, tuple(fields))


_D = ("d", "<f2", None, "scale of the block")
_M = ("m", "<f2", None, "minimum of the block, added to every weight")
_SUPER_D = ("d", "<f2", None, "super-block scale: multiplies the codes of the sub-block scales")
_SUPER_MIN = ("dmin", "<f2", None, "super-block minimum: multiplies the codes of the minima, subtracted")
_NIBBLES = ("qs", "(16,)u1", 4, "byte j: code of weight j in the low four bits, of j + 16 in the high four")
_FIFTH = ("qh", "<u4", 1, "bit j: fifth (highest) bit of the code of weight j")
_K_SCALES = (
    "scales",
    "(12,)u1",
    6,
    "8 scales and 8 minima of 6 bits: bytes 0-3 scales 0-3, bytes 4-7 minima 0-3, bytes 8-11 the low four "
    "bits of scale and minimum 4-7, whose two high bits top bytes 0-3 and 4-7",
)
_K_NIBBLES = (
    "qs",
    "(128,)u1",
    4,
    "byte 32g + l: low four bits of the code of weight 64g + l, and above them those of weight 64g + 32 + l",
)
_K_PAIRS = (
    "qs",
    "(64,)u1",
    2,
    "byte 32h + l: two bits each of weights 128h + l, + 32, + 64 and + 96, the first lowest",
)


def _number(name: str, id: int, dtype: str, meaning: str) -> TensorType:
    size = np.dtype(dtype).itemsize
    return _layout(name, id, 1, size, ("x", dtype, 8 * size, meaning))


_ALL_TYPES = (
    _number("F32", 0, "<f4", "the weight"),
    _number("F16", 1, "<f2", "the weight: 1 sign, 5 exponent and 10 mantissa bits"),
    _layout("Q4_0", 2, 32, 18, _D, _NIBBLES),
    _layout("Q4_1", 3, 32, 20, _D, _M, _NIBBLES),
    _layout("Q5_0", 6, 32, 22, _D, _FIFTH, _NIBBLES),
    _layout("Q5_1", 7, 32, 24, _D, _M, _FIFTH, _NIBBLES),
    _layout("Q8_0", 8, 32, 34, _D, ("qs", "(32,)i1", 8, "code of each weight")),
    _layout(
        "Q8_1",
        9,
        32,
        36,
        _D,
        ("s", "<f2", None, "scale times the sum of the codes, ready for a dot product with a minimum"),
        ("qs", "(32,)i1", 8, "code of each activation"),
    ),
    _layout(
        "Q2_K",
        10,
        256,
        84,
        ("scales", "(16,)u1", 4, "byte j: scale of sub-block j in the low four bits, its minimum above"),
        _K_PAIRS,
        _SUPER_D,
        _SUPER_MIN,
    ),
    _layout(
        "Q3_K",
        11,
        256,
        110,
        ("hmask", "(32,)u1", 1, "bit g of byte l: third (highest) bit of the code of weight 32g + l"),
        _K_PAIRS,
        (
            "scales",
            "(12,)u1",
            6,
            "16 scales of 6 bits, 32 too large: byte j (0-7) has the low four bits of scales j and j + 8, "
            "byte 8 + j % 4 the two high bits of scale j at bit 2 (j // 4)",
        ),
        _SUPER_D,
    ),
    _layout("Q4_K", 12, 256, 144, _SUPER_D, _SUPER_MIN, _K_SCALES, _K_NIBBLES),
    _layout(
        "Q5_K",
        13,
        256,
        176,
        _SUPER_D,
        _SUPER_MIN,
        _K_SCALES,
        ("qh", "(32,)u1", 1, "bit g of byte l: fifth (highest) bit of the code of weight 32g + l"),
        _K_NIBBLES,
    ),
    _layout(
        "Q6_K",
        14,
        256,
        210,
        (
            "ql",
            "(128,)u1",
            4,
            "low four bits: byte 64h + l has weights 128h + l and + 64, byte 64h + 32 + l those 32 on",
        ),
        ("qh", "(64,)u1", 2, "byte 32h + l: two high bits each of weights 128h + l, + 32, + 64 and + 96"),
        ("scales", "(16,)i1", 8, "scale of each sub-block of 16 weights"),
        _SUPER_D,
    ),
    _layout(
        "Q8_K",
        15,
        256,
        292,
        ("d", "<f4", None, "scale of the block"),
        ("qs", "(256,)i1", 8, "code of each activation"),
        ("bsums", "(16,)<i2", 16, "sum of the codes of each group of 16"),
    ),
    _layout(
        "IQ2_XXS",
        16,
        256,
        66,
        _D,
        (
            "qs",
            "(32,)<u2",
            16,
            "4 words for each 32 weights: four 8-bit grid indices, four 7-bit sign patterns, a 4-bit scale",
        ),
    ),
    _layout(
        "IQ2_XS",
        17,
        256,
        74,
        _D,
        ("qs", "(32,)<u2", 16, "a word for each 8 weights: 9-bit grid index, 7-bit sign pattern above it"),
        ("scales", "(8,)u1", 4, "two scales a byte, each for 16 weights"),
    ),
    _layout(
        "IQ3_XXS",
        18,
        256,
        98,
        _D,
        (
            "qs",
            "(96,)u1",
            8,
            "64 grid indices, each for 4 weights; then for each 32 weights four bytes: "
            "four 7-bit sign patterns and a 4-bit scale",
        ),
    ),
    _layout(
        "IQ1_S",
        19,
        256,
        50,
        _D,
        ("qs", "(32,)u1", 8, "low eight bits of the grid index of each 8 weights"),
        (
            "qh",
            "(8,)<u2",
            3,
            "for each 32 weights: four times 3 high index bits, a 3-bit scale, the sign of the shift",
        ),
    ),
    _layout(
        "IQ4_NL",
        20,
        32,
        18,
        _D,
        ("qs", "(16,)u1", 4, "as Q4_0, but a code is an index into a table of 16 uneven levels"),
    ),
    _layout(
        "IQ3_S",
        21,
        256,
        110,
        _D,
        ("qs", "(64,)u1", 8, "low eight bits of the grid index of each 4 weights"),
        ("qh", "(8,)u1", 1, "ninth bit of those indices, a byte for each 32 weights"),
        ("signs", "(32,)u1", 1, "a sign bit for each weight"),
        ("scales", "(4,)u1", 4, "two scales a byte, each for 32 weights"),
    ),
    _layout(
        "IQ2_S",
        22,
        256,
        82,
        _D,
        ("qs", "(64,)u1", 8, "32 bytes: low eight bits of the grid index of each 8 weights; 32: their signs"),
        ("qh", "(8,)u1", 2, "two high bits of those indices, a byte for each 32 weights"),
        ("scales", "(8,)u1", 4, "two scales a byte, each for 16 weights"),
    ),
    _layout(
        "IQ4_XS",
        23,
        256,
        136,
        _SUPER_D,
        ("scales_h", "<u2", 2, "two high bits of the scale of each 32 weights"),
        ("scales_l", "(4,)u1", 4, "four low bits of those scales, 32 too large"),
        ("qs", "(128,)u1", 4, "16 bytes for each 32 weights, packed as IQ4_NL"),
    ),
    _number("I8", 24, "<i1", "the number"),
    _number("I16", 25, "<i2", "the number"),
    _number("I32", 26, "<i4", "the number"),
    _number("I64", 27, "<i8", "the number"),
    _number("F64", 28, "<f8", "the weight"),
    _layout(
        "IQ1_M",
        29,
        256,
        56,
        ("qs", "(32,)u1", 8, "low eight bits of the grid index of each 8 weights"),
        ("qh", "(16,)u1", 4, "for each 8 weights three high index bits and the sign of the shift"),
        (
            "scales",
            "(8,)u1",
            3,
            "four 16-bit words: four 3-bit scales of 16 weights each, above them 4 bits of the float16 scale",
        ),
    ),
    _number("BF16", 30, "<u2", "the high half of the weight's float32"),
    _layout(
        "TQ1_0",
        34,
        256,
        54,
        ("qs", "(48,)u1", None, "five ternary digits a byte, as a fraction of 256"),
        ("qh", "(4,)u1", None, "four ternary digits a byte, the last 16 weights"),
        _D,
    ),
    _layout("TQ2_0", 35, 256, 66, _K_PAIRS, _D),
    _layout(
        "MXFP4",
        39,
        32,
        17,
        ("e", "u1", 8, "scale: a power of two, the exponent plus 127"),
        ("qs", "(16,)u1", 4, "packed as Q4_0; a code is a 4-bit float (1 sign, 2 exponent, 1 mantissa bit)"),
    ),
    _layout(
        "NVFP4",
        40,
        64,
        36,
        ("d", "(4,)u1", 8, "scale of each 16 weights: an 8-bit float (4 exponent, 3 mantissa bits, no sign)"),
        ("qs", "(32,)u1", 4, "byte 8s + j: weights 16s + j and 16s + j + 8 as 4-bit floats"),
    ),
    _layout("Q1_0", 41, 128, 18, _D, ("qs", "(16,)u1", 1, "bit j: weight j is positive or zero")),
    _layout("Q2_0", 42, 64, 18, _D, ("qs", "(16,)u1", 2, "byte j: two bits each of weights 4j to 4j + 3")),
)

TENSOR_TYPES: dict[str, TensorType] = {type.name: type for type in _ALL_TYPES}
_BY_ID: dict[int, TensorType] = {type.id: type for type in _ALL_TYPES}


def tensor_type(name_or_id: str | int) -> TensorType:
    """Look a tensor type up by name (any case) or by its id in files; GGUFError lists the known ones."""
    known = TENSOR_TYPES.get(name_or_id.upper()) if isinstance(name_or_id, str) else _BY_ID.get(name_or_id)
    if known is None:
        raise GGUFError(f"unknown tensor type {name_or_id!r}; known are {', '.join(TENSOR_TYPES)}")
    return known


def bfloat16_to_float32(x: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Widen bfloat16, given as its 16 bits: they are the high half of the float32. Exact, same shape."""
    return (x.astype(np.uint32) << np.uint32(16)).view(np.float32)


def float32_to_bfloat16(x: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round to bfloat16 bits: to the nearest, ties to even; NaN stays NaN and becomes quiet. Same shape."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    # 0x7fff, plus one where the kept part is odd, carries into the high half exactly when it must round up.
    rounded = bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
    is_nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    quiet = bits | np.uint32(0x400000)
    return (np.where(is_nan, quiet, rounded) >> np.uint32(16)).astype(np.uint16).reshape(np.shape(x))
