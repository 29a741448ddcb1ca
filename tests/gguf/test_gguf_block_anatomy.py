"""Blocks cut into their fields: every byte has a name, and the numbers are those of the block."""

from itertools import pairwise

import numpy as np
import pytest

from phicourse.errors import GGUFError
from phicourse.gguf import TENSOR_TYPES
from phicourse.gguf.anatomy import KINDS
from phicourse.gguf.block_anatomy import dissect_blocks
from phicourse.quantize import QUANTIZERS

BLOCKS = [type.name for type in TENSOR_TYPES.values() if type.block > 1]


@pytest.mark.parametrize("name", BLOCKS)
def test_every_byte_of_every_type_has_one_part(name: str) -> None:
    n_bytes = 2 * TENSOR_TYPES[name].bytes
    parts = dissect_blocks(bytes(n_bytes), name)
    assert parts[0].offset == 0 and parts[-1].end == n_bytes
    assert all(a.end == b.offset for a, b in pairwise(parts))
    assert {part.kind for part in parts} <= set(KINDS)


def test_the_parts_say_the_numbers() -> None:
    x = np.linspace(-1, 1, 32, dtype=np.float32)[None]
    x[0, 0] = -127
    scale, codes = dissect_blocks(QUANTIZERS["Q8_0"](x).tobytes(), "Q8_0")
    assert (scale.kind, scale.value) == ("scale", "1")
    assert codes.kind == "codes" and codes.value.startswith("-127 -1 -1 ") and codes.value.endswith(" …")


@pytest.mark.parametrize(("n_bytes", "name"), [(33, "Q8_0"), (4, "F32")])
def test_what_is_no_whole_block_is_refused(n_bytes: int, name: str) -> None:
    with pytest.raises(GGUFError, match="no whole number"):
        dissect_blocks(bytes(n_bytes), name)
