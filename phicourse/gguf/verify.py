"""Checks the payload of a GGUF file: every scale and every stored float must be a finite number."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phicourse.gguf.reader import GGUFFile, TensorInfo
from phicourse.gguf.types import TensorType
from phicourse.progress_bar import byte_bar

_CHUNK_BYTES = 1 << 24


def verify(file: GGUFFile, progress: bool = False) -> list[str]:
    """Look at every block of every tensor; return one line for each tensor that has a bad one.

    Bad is what no quantizer writes: a scale, minimum or stored weight that is infinite or not a number.
    Reads the file in chunks of 16 MiB.
    """
    damage = []
    with byte_bar(sum(tensor.nbytes for tensor in file.tensors.values()), progress) as bar:
        for tensor in file.tensors.values():
            if (line := _verify_tensor(file, tensor)) is not None:
                damage.append(line)
            bar.update(tensor.nbytes)
    return damage


def _verify_tensor(file: GGUFFile, tensor: TensorInfo) -> str | None:
    seen = 0
    for blocks in _chunks(file, tensor):
        bad = np.flatnonzero(not_finite(blocks, tensor.type))
        if bad.size:
            block = seen + int(bad[0])
            at = tensor.offset + block * tensor.type.bytes
            return f"{tensor.name}: block {block:,} at byte {at:,} has a scale or weight that is not finite"
        seen += len(blocks)
    return None


def _chunks(file: GGUFFile, tensor: TensorInfo) -> Iterator[NDArray[Any]]:
    """Yield the blocks of a tensor as flat arrays of at most 16 MiB."""
    blocks = file.blocks(tensor.name).reshape(-1)
    step = _CHUNK_BYTES // tensor.type.bytes
    for start in range(0, len(blocks), step):
        yield blocks[start : start + step]


# The bits of the exponent; all are set in an infinity and in what is not a number.
_EXPONENTS = {"F16": 0x7C00, "BF16": 0x7F80}


def not_finite(blocks: NDArray[Any], type: TensorType) -> NDArray[np.bool_]:
    """Which blocks have a scale, a minimum or a stored weight that is infinite or not a number.

    blocks   (...) of type.dtype
    returns  (...) bool
    """
    if type.name in _EXPONENTS:
        return _all_ones(blocks, _EXPONENTS[type.name])
    if type.name == "MXFP4":
        return np.asarray(blocks["e"] == 0xFF)
    if type.name == "IQ1_M":
        return ~np.isfinite(_iq1_m_scale(blocks))
    if type.block == 1:
        return np.asarray(~np.isfinite(blocks))
    floats = [field.name for field in type.fields if np.dtype(field.dtype).kind == "f"]
    bad = np.zeros(blocks.shape, dtype=bool)
    for name in floats:
        numbers = blocks[name]
        is_half = numbers.dtype == np.float16
        bad |= _all_ones(numbers, _EXPONENTS["F16"]) if is_half else ~np.isfinite(numbers)
    return bad


def _all_ones(numbers: NDArray[Any], exponent: int) -> NDArray[np.bool_]:
    """Where all bits of the exponent are set, in numbers of 16 bits; np.isfinite of float16 takes far longer."""
    return np.asarray(numbers.view("<u2") & np.uint16(exponent) == np.uint16(exponent))


def _iq1_m_scale(blocks: NDArray[Any]) -> NDArray[np.float16]:
    """Return the float16 scale of IQ1_M blocks: the top four bits of each of a block's 16-bit words."""
    words = np.ascontiguousarray(blocks["scales"]).view("<u2")  # (..., 4)
    bits = (words >> np.uint16(12)) << np.array([0, 4, 8, 12], dtype=np.uint16)
    scales: NDArray[np.float16] = np.bitwise_or.reduce(bits, axis=-1).astype(np.uint16).view(np.float16)
    return scales
