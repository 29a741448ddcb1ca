"""F32, F16 and BF16: the types where a block is one number and "quantizing" is rounding it.

Every quantizer of this package has the same face: (rows, n) float32 -> (rows, n_blocks) blocks, and back.
Source: ggml `ggml_fp32_to_fp16_row`, `ggml_fp32_to_bf16_row_ref`.
"""

import numpy as np

from phicourse.gguf.types import bfloat16_to_float32, float32_to_bfloat16
from phicourse.quantize.blocks import Blocks, Float32


def quantize_f32(x: Float32) -> Blocks:
    """Keep the weights as they are: (..., n) float32 -> (..., n) float32."""
    return np.ascontiguousarray(x, dtype="<f4")


def dequantize_f32(blocks: Blocks) -> Float32:
    """Return the weights themselves: (..., n) float32 -> (..., n) float32."""
    return np.ascontiguousarray(blocks, dtype=np.float32)


@np.errstate(over="ignore")
def quantize_f16(x: Float32) -> Blocks:
    """Round to half precision, nearest, ties to even: (..., n) float32 -> (..., n) float16.

    Weights beyond 65,504 become infinite, as in llama.cpp; `quantize_rows` refuses them.
    """
    return np.ascontiguousarray(x, dtype=np.float32).astype("<f2")


def dequantize_f16(blocks: Blocks) -> Float32:
    """Widen, exactly: (..., n) float16 -> (..., n) float32."""
    return np.ascontiguousarray(blocks).astype(np.float32)


def quantize_bf16(x: Float32) -> Blocks:
    """Keep the high 16 bits of each float32, rounded, ties to even: (..., n) float32 -> (..., n) uint16."""
    return float32_to_bfloat16(x)


def dequantize_bf16(blocks: Blocks) -> Float32:
    """Put 16 zero bits below, exact: (..., n) uint16 -> (..., n) float32."""
    return bfloat16_to_float32(np.ascontiguousarray(blocks))
