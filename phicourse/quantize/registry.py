"""Which function quantizes which type, and how rows reach it: checked, in chunks, compiled where that is possible.

Three things can do the work, all with the same bytes: the compiled module, the NumPy functions that one
can read, and a function of the reader's own, put in place with `use`.
"""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, partial
from inspect import signature
from types import ModuleType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from phicourse.errors import QuantizeError
from phicourse.gguf.types import TENSOR_TYPES, TensorType
from phicourse.quantize import (
    float_types,
    grids,
    iq1,
    k_quants,
    lattice,
    legacy,
    low_k_quants,
    nonlinear,
    one_and_two_bits,
    small_floats,
    ternary,
)
from phicourse.quantize.blocks import Blocks, Float32, UInt8
from phicourse.quantize.checks import (
    Where,
    as_bytes,
    check_blocks,
    check_finite,
    check_importance,
    check_rows,
)
from phicourse.quantize.formats import FORMATS

# (rows, n) float32 -> blocks; takes the importance of the columns, too, if it has a parameter of that name
Quantizer = Callable[..., Blocks]
Dequantizer = Callable[[Blocks], Float32]
Backend = Literal["auto", "native", "numpy"]
Search = Literal["reference", "best"]

QUANTIZERS: dict[str, Quantizer] = {
    "F32": float_types.quantize_f32,
    "F16": float_types.quantize_f16,
    "BF16": float_types.quantize_bf16,
    "Q4_0": legacy.quantize_q4_0,
    "Q4_1": legacy.quantize_q4_1,
    "Q5_0": legacy.quantize_q5_0,
    "Q5_1": legacy.quantize_q5_1,
    "Q8_0": legacy.quantize_q8_0,
    "Q4_K": k_quants.quantize_q4_k,
    "Q5_K": k_quants.quantize_q5_k,
    "Q6_K": k_quants.quantize_q6_k,
    "Q2_K": low_k_quants.quantize_q2_k,
    "Q3_K": low_k_quants.quantize_q3_k,
    "IQ4_NL": nonlinear.quantize_iq4_nl,
    "IQ4_XS": nonlinear.quantize_iq4_xs,
    "IQ3_S": lattice.quantize_iq3_s,
    "IQ3_XXS": lattice.quantize_iq3_xxs,
    "IQ2_S": lattice.quantize_iq2_s,
    "IQ2_XS": lattice.quantize_iq2_xs,
    "IQ2_XXS": lattice.quantize_iq2_xxs,
    "IQ1_M": iq1.quantize_iq1_m,
    "IQ1_S": iq1.quantize_iq1_s,
    "TQ1_0": ternary.quantize_tq1_0,
    "TQ2_0": ternary.quantize_tq2_0,
    "MXFP4": small_floats.quantize_mxfp4,
    "NVFP4": small_floats.quantize_nvfp4,
    "Q1_0": one_and_two_bits.quantize_q1_0,
    "Q2_0": one_and_two_bits.quantize_q2_0,
}
DEQUANTIZERS: dict[str, Dequantizer] = {
    "F32": float_types.dequantize_f32,
    "F16": float_types.dequantize_f16,
    "BF16": float_types.dequantize_bf16,
    "Q4_0": legacy.dequantize_q4_0,
    "Q4_1": legacy.dequantize_q4_1,
    "Q5_0": legacy.dequantize_q5_0,
    "Q5_1": legacy.dequantize_q5_1,
    "Q8_0": legacy.dequantize_q8_0,
    "Q4_K": k_quants.dequantize_q4_k,
    "Q5_K": k_quants.dequantize_q5_k,
    "Q6_K": k_quants.dequantize_q6_k,
    "Q2_K": low_k_quants.dequantize_q2_k,
    "Q3_K": low_k_quants.dequantize_q3_k,
    "IQ4_NL": nonlinear.dequantize_iq4_nl,
    "IQ4_XS": nonlinear.dequantize_iq4_xs,
    "IQ3_S": lattice.dequantize_iq3_s,
    "IQ3_XXS": lattice.dequantize_iq3_xxs,
    "IQ2_S": lattice.dequantize_iq2_s,
    "IQ2_XS": lattice.dequantize_iq2_xs,
    "IQ2_XXS": lattice.dequantize_iq2_xxs,
    "IQ1_M": iq1.dequantize_iq1_m,
    "IQ1_S": iq1.dequantize_iq1_s,
    "TQ1_0": ternary.dequantize_tq1_0,
    "TQ2_0": ternary.dequantize_tq2_0,
    "MXFP4": small_floats.dequantize_mxfp4,
    "NVFP4": small_floats.dequantize_nvfp4,
    "Q1_0": one_and_two_bits.dequantize_q1_0,
    "Q2_0": one_and_two_bits.dequantize_q2_0,
}

# Weights that the NumPy path takes at once: what it makes of them still fits into a processor's cache.
_NUMPY_CHUNK = 1 << 17
_MAX_THREADS = 1024  # as the engine has it

_replaced: ContextVar[Mapping[str, Quantizer]] = ContextVar("replaced quantizers")


@contextmanager
def use(**quantizers: Quantizer) -> Iterator[None]:
    """Let functions of your own take the place of ours while the `with` block runs.

    >>> with phicourse.use(q4_k=mine):
    ...     phicourse.quantize("model-f16.gguf", "mine.gguf", "Q4_K_M")

    quantizers  type name (lower case, as `q4_k`) = function from (rows, n) float32 to blocks: the structured
                array (rows, n_blocks) of the type, or its bytes, (rows, bytes of a row) uint8. A second parameter
                `importance=None` gets how much each column counts, (n,) float32, where that is known
    Raises QuantizeError for an unknown type. Other threads keep their quantizers; blocks can be nested.
    """
    for name, function in quantizers.items():
        if not callable(function):
            raise QuantizeError(f"the quantizer of {name} must be a function, got {function!r:.60}")
    replaced = {supported_type(name).name: function for name, function in quantizers.items()}
    token = _replaced.set({**_replaced.get({}), **replaced})
    try:
        yield
    finally:
        _replaced.reset(token)


def supported_type(name: str) -> TensorType:
    """Look up a type that can be quantized to, by name in any case; QuantizeError lists them."""
    if name.upper() not in QUANTIZERS:
        raise QuantizeError(f"cannot quantize to {name!r}; known types are {', '.join(QUANTIZERS)}")
    return TENSOR_TYPES[name.upper()]


def quantize_rows(
    x: Float32,
    type_name: str,
    *,
    importance: NDArray[Any] | None = None,
    backend: Backend = "auto",
    search: Search = "reference",
    threads: int | None = None,
    name: str = "input",
) -> UInt8:
    """Quantize rows of weights.

    x           (rows, n) float32, finite; n a multiple of the type's block size
    type_name   a type of QUANTIZERS, in any case
    importance  (n,) how much an error in each column counts; types that cannot weigh errors take no notice
    backend     "native" the compiled module, "numpy" the functions to read; "auto" takes what `use` put in place,
                else native where it was built, else NumPy. The bytes are the same.
    search      "reference" for llama.cpp's bytes, "best" for smaller errors in the same format; the compiled
                module has the types of `native.better_searches()`, of the others NumPy has some, far slower.
                What `use` put in place comes before either
    threads     for native; None: one for each processor
    name        the tensor, for error messages
    returns     (rows, bytes of a row) uint8
    raises      QuantizeError: unknown type, row length, a weight (with row and column) or a scale not finite,
                importance that does not fit, or none where the type needs it
    """
    source = TENSOR_TYPES["F32"]
    return quantize_data(
        x,
        source,
        type_name,
        importance=importance,
        backend=backend,
        search=search,
        threads=threads,
        name=name,
    )


def quantize_data(
    data: NDArray[Any],
    source: TensorType,
    type_name: str,
    *,
    importance: NDArray[Any] | None = None,
    backend: Backend = "auto",
    search: Search = "reference",
    threads: int | None = None,
    name: str = "input",
    first_row: int = 0,
) -> UInt8:
    """Quantize rows that are stored as another type, as `quantize_rows`; each is widened to float32 first.

    data       (rows, n_blocks) of source.dtype
    source     F32, F16, BF16, or a type of DEQUANTIZERS
    first_row  where in its tensor `data` begins, for error messages
    """
    type = supported_type(type_name)
    where = Where(name, first_row)
    if source.name not in DEQUANTIZERS:
        raise QuantizeError(f"{name}: cannot read {source.name}; known types are {', '.join(DEQUANTIZERS)}")
    rows = check_rows(data, source, type, where)
    if importance is not None:
        importance = check_importance(importance, rows.shape[1] * source.block, where)
    function = _learners(type.name, backend) or _function_for(type.name, search)
    if (native := _native_for(type.name, backend, search)) is not None:
        quantize = _native_function(native, source, type, search)
        return _quantize_native(quantize, rows, source, type, importance, _threads(threads), where)
    weighted = importance is not None and takes_importance(function)
    weigh = partial(function, importance=importance) if weighted else function
    packed = _quantize_chunks(rows, source, type, weigh, where)
    check_blocks(packed.view(type.dtype), type, where)
    return packed


def is_compiled(type_name: str, backend: Backend = "auto", search: Search = "reference") -> bool:
    """Whether `quantize_data` leaves this type to the compiled module."""
    return _native_for(type_name, backend, search) is not None


def takes_importance(function: Quantizer) -> bool:
    """Whether a quantizer has a parameter for the importance of the columns."""
    try:
        return "importance" in signature(function).parameters
    except ValueError:  # some compiled functions do not tell
        return False


def dequantize_rows(
    data: UInt8, type_name: str, *, backend: Backend = "auto", threads: int | None = None
) -> Float32:
    """Turn quantized rows into float32.

    data     (rows, bytes of a row) uint8
    backend  as `quantize_rows`; the values are the same, bit for bit
    returns  (rows, n) float32
    raises   QuantizeError: unknown type, or rows that are no whole number of blocks
    """
    type = supported_type(type_name)
    if data.ndim != 2 or data.dtype != np.uint8 or data.shape[1] % type.bytes:
        raise QuantizeError(
            f"{type.name} rows are (rows, k * {type.bytes}) uint8, got {data.shape} {data.dtype}"
        )
    data = np.ascontiguousarray(data)
    native = _native_for(type.name, backend, "reference")
    if native is None:
        return DEQUANTIZERS[type.name](data.view(type.dtype))
    out = np.empty((len(data), data.shape[1] // type.bytes * type.block), np.float32)
    native.dequantize(type.name, data, out, _threads(threads))
    return out


# ---- which backend ---------------------------------------------------------------------------------------


@cache
def _native() -> ModuleType | None:
    """Import the compiled module once; None, after one line on standard error, where it was not built."""
    try:
        from phicourse import native
    except ImportError as error:
        print(f"phicourse: no compiled module ({error}); NumPy quantizes, slowly", file=sys.stderr)
        return None
    return native


def _learners(type_name: str, backend: Backend) -> Quantizer | None:
    """What `use` put in the place of ours."""
    return _replaced.get({}).get(type_name) if backend == "auto" else None


def _function_for(type_name: str, search: Search) -> Quantizer:
    """The NumPy function for a type; QuantizeError for an unknown search."""
    if search == "best":
        from phicourse.quantize.best_search import best_blocks  # it starts from what this module knows

        return partial(best_blocks, type_name=type_name)
    if search != "reference":
        raise QuantizeError(f"unknown search {search!r}; known are reference, best")
    return QUANTIZERS[type_name]


def _native_for(type_name: str, backend: Backend, search: Search) -> ModuleType | None:
    """The compiled module if it is to do the work, else None; QuantizeError where it is asked for and cannot."""
    if backend not in ("auto", "native", "numpy"):
        raise QuantizeError(f"unknown backend {backend!r}; known are auto, native, numpy")
    if backend == "numpy" or _learners(type_name, backend):
        return None
    native = _native()
    if native is not None and type_name in _native_types(native, search):
        grids.hand_over(native, type_name)
        return native
    if backend == "native":
        of_type = f"better search for {type_name}" if search == "best" else type_name
        lacks = "was not built" if native is None else f"has no {of_type}"
        raise QuantizeError(f"the compiled module {lacks}; use the backend 'numpy'")
    return None


def _native_types(native: ModuleType, search: Search) -> set[str]:
    """The types that the compiled module searches so; QuantizeError where PHICOURSE_ISA asks for what cannot run here.

    Types for which nothing better is known, F16 for one, are the same with either search.
    """
    try:
        native.isa()
    except RuntimeError as error:
        raise QuantizeError(str(error)) from None
    types = {"F32", "F16", "BF16", *native.block_layouts()}
    return types - (FORMATS.keys() - native.better_searches()) if search == "best" else types


def _threads(threads: int | None) -> int:
    if threads is not None and not 1 <= threads <= _MAX_THREADS:
        raise QuantizeError(f"{threads} threads cannot work; give 1 to {_MAX_THREADS}")
    if threads is None and hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return threads or os.cpu_count() or 1


# ---- the work --------------------------------------------------------------------------------------------


def _native_function(
    native: ModuleType, source: TensorType, type: TensorType, search: Search
) -> Callable[..., int | None]:
    """The compiled function that reads this source; other types than F16 and BF16 are widened before."""
    function = {"F16": native.quantize_f16, "BF16": native.quantize_bf16}.get(source.name, native.quantize)
    return partial(function, best=search == "best" and type.name in FORMATS)


def _quantize_native(
    quantize: Callable[..., int | None],
    rows: NDArray[Any],
    source: TensorType,
    type: TensorType,
    importance: Float32 | None,
    threads: int,
    where: Where,
) -> UInt8:
    """Let the compiled module quantize; it widens F16 and BF16 on the way, other types are widened here."""
    if source.name not in ("F32", "F16", "BF16"):
        rows, source = _widen(rows, source), TENSOR_TYPES["F32"]
    bits = rows if source.name == "F32" else rows.view(np.uint16)
    out = np.empty((len(rows), type.row_bytes(rows.shape[1])), np.uint8)
    try:
        bad_block = quantize(type.name, bits, out, threads, importance=importance)
    except ValueError as error:
        check_finite(_widen(rows, source), where)
        raise QuantizeError(f"{where.name}: {error}") from error
    if bad_block is not None:
        check_blocks(out.view(type.dtype), type, where)
    return out


def _quantize_chunks(
    rows: NDArray[Any], source: TensorType, type: TensorType, function: Quantizer, where: Where
) -> UInt8:
    """Quantize a few rows at a time with a function of NumPy arrays."""
    n = rows.shape[1] * source.block
    out = np.empty((len(rows), type.row_bytes(n)), np.uint8)
    step = max(1, _NUMPY_CHUNK // max(n, 1))
    for start in range(0, len(rows), step):
        x = _widen(rows[start : start + step], source)  # (step, n) float32
        check_finite(x, where.below(start))
        out[start : start + step] = as_bytes(function(x), len(x), n, type)
    return out


def _widen(rows: NDArray[Any], source: TensorType) -> Float32:
    """Turn rows of any type into float32: (rows, n_blocks) -> (rows, n)."""
    return DEQUANTIZERS[source.name](rows)
