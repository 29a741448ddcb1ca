"""The GGUF container: what a file says, where its bytes are, and how to write one."""

from phicourse.gguf.atomic import atomic_output
from phicourse.gguf.describe import describe, summary
from phicourse.gguf.reader import GGUFFile, TensorInfo
from phicourse.gguf.reshard import merge, split
from phicourse.gguf.shards import Split
from phicourse.gguf.types import (
    TENSOR_TYPES,
    Field,
    TensorType,
    Value,
    ValueType,
    bfloat16_to_float32,
    float32_to_bfloat16,
    tensor_type,
)
from phicourse.gguf.verify import verify
from phicourse.gguf.writer import GGUFWriter

__all__ = [
    "TENSOR_TYPES",
    "Field",
    "GGUFFile",
    "GGUFWriter",
    "Split",
    "TensorInfo",
    "TensorType",
    "Value",
    "ValueType",
    "atomic_output",
    "bfloat16_to_float32",
    "describe",
    "float32_to_bfloat16",
    "merge",
    "split",
    "summary",
    "tensor_type",
    "verify",
]
