"""Names every byte of quantized blocks, as `anatomy` does for a whole file: the layout table, held against bytes."""

import numpy as np
from numpy.typing import NDArray

from phicourse.errors import GGUFError
from phicourse.gguf.anatomy import Part
from phicourse.gguf.types import Field, tensor_type

_KINDS = {
    "d": "scale",
    "m": "minimum",
    "dmin": "minimum",
    "scales": "sub-scales",
    "qh": "high bits",
    "hmask": "high bits",
}
_SHOWN = 12  # numbers of a field


def field_kind(field: Field) -> str:
    """Say what a field of a block is for; one of `anatomy.KINDS`."""
    return _KINDS.get(field.name, "codes")


def dissect_blocks(raw: bytes, type_name: str) -> list[Part]:
    """Cut blocks of a type, one behind the other, into their fields.

    Raises GGUFError where the bytes are no whole number of blocks, or the type has none.
    """
    type = tensor_type(type_name)
    if type.block == 1 or len(raw) % type.bytes:
        raise GGUFError(
            f"{len(raw)} bytes are no whole number of {type.name} blocks of {type.bytes} bytes each"
        )
    blocks = np.frombuffer(raw, type.dtype)
    return [
        Part(
            i * type.bytes + field.offset,
            field.bytes,
            field_kind(field),
            f"{field.name} of block {i}: {field.meaning}",
            _numbers(blocks[field.name][i]),
        )
        for i in range(len(blocks))
        for field in type.fields
    ]


def _numbers(values: NDArray[np.generic]) -> str:
    shown = [f"{value:.6g}" for value in np.atleast_1d(values)[:_SHOWN].tolist()]
    return " ".join(shown) + (" …" if values.size > _SHOWN else "")
