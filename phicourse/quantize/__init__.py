"""Quantization: which bits stand for a weight, which tensor gets which type, and the files that come out."""

from phicourse.quantize.files import Plan, PlannedTensor, quantize
from phicourse.quantize.mixes import ALIASES, MIXES, Mix, Overrides, choose_types, find_mix
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
