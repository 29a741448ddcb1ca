"""Quantization: which bits stand for a weight, which tensor gets which type, and the files that come out."""

from phicourse.quantize.files import quantize
from phicourse.quantize.mixes import ALIASES, COPY, MIXES, Mix, Overrides, choose_types, find_mix
from phicourse.quantize.plan import Plan, PlannedTensor
from phicourse.quantize.registry import (
    DEQUANTIZERS,
    QUANTIZERS,
    dequantize_rows,
    quantize_rows,
    supported_type,
    use,
)

__all__ = [
    "ALIASES",
    "COPY",
    "DEQUANTIZERS",
    "MIXES",
    "QUANTIZERS",
    "Mix",
    "Overrides",
    "Plan",
    "PlannedTensor",
    "choose_types",
    "dequantize_rows",
    "find_mix",
    "quantize",
    "quantize_rows",
    "supported_type",
    "use",
]
