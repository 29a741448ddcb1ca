"""The badge: a learner's blocks beside those of llama.cpp's own library, byte by byte."""

import ctypes
import html
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phicourse.evaluate.llama_library import load_llama_cpp_library
from phicourse.gguf.types import TensorType, tensor_type
from phicourse.plots.layout import draw_byte_differences
from phicourse.plots.style import png_of, size_of
from phicourse.quantize.checks import as_bytes

UInt8 = NDArray[np.uint8]
_JUDGE = "llama.cpp"


@cache
def _ggml() -> ctypes.CDLL | None:
    """Load ggml's library out of llama-cpp-python; None where that is not installed."""
    sizes = [ctypes.c_int64] * 3
    arguments = [ctypes.c_int, *[ctypes.c_void_p] * 2, *sizes, ctypes.c_void_p]
    return load_llama_cpp_library("ggml-base", {"ggml_quantize_chunk": (ctypes.c_size_t, arguments)})


def llama_cpp_quantize(x: NDArray[np.float32], type_name: str) -> UInt8 | None:
    """Let llama.cpp's library quantize rows, without importance.

    x        (rows, n) float32
    returns  (rows, bytes of a row) uint8; None where llama-cpp-python is not installed
    """
    library, type = _ggml(), tensor_type(type_name)
    if library is None:
        return None
    x = np.ascontiguousarray(x, np.float32)
    out = np.zeros((len(x), type.row_bytes(x.shape[1])), np.uint8)
    library.ggml_quantize_init(type.id)
    library.ggml_quantize_chunk(type.id, x.ctypes.data, out.ctypes.data, 0, *x.shape, None)
    return out


@dataclass(frozen=True)
class Badge:
    """How many blocks differ; shown as a line, and with a map of the bits where there are any.

    mine, theirs  (n_blocks, bytes of a block) uint8; theirs is None where there is no judge
    """

    type: TensorType
    mine: UInt8
    theirs: UInt8 | None

    @property
    def n_different(self) -> int:
        """Blocks with at least one bit that is not theirs."""
        return 0 if self.theirs is None else int((self.mine != self.theirs).any(axis=1).sum())

    def __str__(self) -> str:
        if self.theirs is None:
            return f"llama-cpp-python is not installed here: nobody judges your {self.type.name}"
        return (
            f"your {self.type.name}: {self.n_different:,} of {len(self.mine):,} blocks differ from {_JUDGE}'s"
        )

    __repr__ = __str__

    def _repr_html_(self) -> str:
        right = self.theirs is not None and not self.n_different
        sign, edge = ("✔", "#009E73") if right else ("○", "#666") if self.theirs is None else ("✘", "#D55E00")
        style = f"border:2px solid {edge};border-left-width:14px;padding:.4em 1em;display:inline-block"
        line = f"<div style='{style}'><b>{sign} {html.escape(str(self))}</b></div>"
        return line + (self._map() if self.n_different else "")

    def _map(self) -> str:
        assert self.theirs is not None
        figure = draw_byte_differences(self.mine, self.theirs, self.type)
        picture, width = b64encode(png_of(figure)).decode(), size_of(figure)["width"]
        return f"<br><img alt='which bits differ' width='{width}' src='data:image/png;base64,{picture}'>"


def badge(quantizer: Callable[..., Any], x: NDArray[np.float32], type_name: str) -> Badge:
    """Quantize rows with a learner's function and with llama.cpp's library, and compare the bytes.

    quantizer  (rows, n) float32 -> (rows, n_blocks) blocks of the type, or their bytes
    x          (rows, n) float32
    raises     QuantizeError where what comes back has another shape or type
    """
    type = tensor_type(type_name)
    mine = as_bytes(quantizer(x), x.shape[0], x.shape[1], type).reshape(-1, type.bytes)
    theirs = llama_cpp_quantize(x, type_name)
    return Badge(type, mine, None if theirs is None else theirs.reshape(-1, type.bytes))
