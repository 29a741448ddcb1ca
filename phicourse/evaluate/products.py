"""The product of a matrix with vectors, alone: how long it takes, what memory allows, and llama.cpp's beside it."""

import ctypes
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from phicourse.errors import PhiCourseError
from phicourse.evaluate.llama_library import Signature, load_llama_cpp_library
from phicourse.gguf.types import tensor_type

Float32 = NDArray[np.float32]

_WORK_SPACE = 1 << 29  # bytes for graphs and coded vectors; what is not touched takes no memory


# What other programs take from a thread does not count in its own time; Windows counts that in steps of 16 ms.
THREAD_CLOCK = time.perf_counter if sys.platform == "win32" else time.thread_time


def best_seconds(
    work: Callable[[], object], budget: float = 0.3, clock: Callable[[], float] = THREAD_CLOCK
) -> float:
    """Return the shortest of several times: other programs only ever add to it.

    budget  seconds to spend; the work is done at least twice, and as often as fits
    clock   the time of the calling thread; work of several threads needs `time.perf_counter`
    """
    times: list[float] = []
    while len(times) < 2 or sum(times) < budget:
        start = clock()
        work()
        times.append(clock() - start)
    return min(times)


def read_bandwidth(
    threads: int, n_bytes: int = 1 << 28, budget: float = 1.0, clock: Callable[[], float] | None = None
) -> float:
    """Measure the bytes a second that all threads together read from memory, at best.

    n_bytes  much more than the caches hold; so much memory is taken
    budget   seconds to spend
    clock    None: for one thread its own time, for more `time.perf_counter`
    """
    numbers = np.ones(n_bytes // 8, np.int64)
    if threads == 1:
        return n_bytes / best_seconds(numbers.sum, budget, clock or THREAD_CLOCK)
    parts = np.array_split(numbers, threads)
    with ThreadPoolExecutor(threads) as pool:
        return n_bytes / best_seconds(
            lambda: list(pool.map(np.sum, parts)), budget, clock or time.perf_counter
        )


class _InitParams(ctypes.Structure):
    _fields_ = (
        ("mem_size", ctypes.c_size_t),
        ("mem_buffer", ctypes.c_void_p),
        ("no_alloc", ctypes.c_bool),
    )


_SIGNATURES: dict[str, Signature] = {
    "ggml_init": (ctypes.c_void_p, [_InitParams]),
    "ggml_free": (None, [ctypes.c_void_p]),
    "ggml_get_data": (ctypes.c_void_p, [ctypes.c_void_p]),
    "ggml_new_tensor_2d": (
        ctypes.c_void_p,
        [ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_int64],
    ),
    "ggml_mul_mat": (ctypes.c_void_p, [ctypes.c_void_p] * 3),
    "ggml_new_graph": (ctypes.c_void_p, [ctypes.c_void_p]),
    "ggml_build_forward_expand": (None, [ctypes.c_void_p] * 2),
    "ggml_graph_compute_with_ctx": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int]),
}


@cache
def _ggml() -> ctypes.CDLL | None:
    """Load the library that computes, out of llama-cpp-python; None where that is not installed."""
    return load_llama_cpp_library("ggml-cpu", _SIGNATURES)


def has_llama_cpp() -> bool:
    """Whether `LlamaProduct` can be used here."""
    return _ggml() is not None


class LlamaProduct:
    """llama.cpp's `ggml_mul_mat` with the weights as they lie in the file, without its repacking; a context manager.

    Its work space is good for some hundred products.

    >>> with LlamaProduct("Q8_0", data, tokens=1) as product:  # doctest: +SKIP
    ...     y = product(x, threads=2)
    """

    def __init__(self, type_name: str, data: NDArray[np.uint8], tokens: int) -> None:
        """Copy the weights into ggml's memory.

        data    (rows, bytes of a row) uint8
        tokens  how many vectors a product has
        raises  PhiCourseError where llama-cpp-python is not installed
        """
        library, type = _ggml(), tensor_type(type_name)
        if library is None:
            raise PhiCourseError("llama-cpp-python is not installed here: pip install llama-cpp-python")
        self._library, self.rows, self.tokens = library, len(data), tokens
        self.cols = data.shape[1] // type.bytes * type.block
        self._context = library.ggml_init(_InitParams(data.nbytes + _WORK_SPACE, None, False))
        weights = library.ggml_new_tensor_2d(self._context, type.id, self.cols, self.rows)
        self._x = library.ggml_new_tensor_2d(self._context, tensor_type("F32").id, self.cols, tokens)
        self._y = library.ggml_mul_mat(self._context, weights, self._x)
        self._graph = library.ggml_new_graph(self._context)
        library.ggml_build_forward_expand(self._graph, self._y)
        data = np.ascontiguousarray(data)
        ctypes.memmove(library.ggml_get_data(weights), data.ctypes.data, data.nbytes)

    def __call__(self, x: Float32, threads: int) -> Float32:
        """Multiply x (tokens, cols) float32; returns (tokens, rows), which the next call overwrites."""
        x = np.ascontiguousarray(x, np.float32).reshape(self.tokens, self.cols)
        ctypes.memmove(self._library.ggml_get_data(self._x), x.ctypes.data, x.nbytes)
        self._library.ggml_graph_compute_with_ctx(self._context, self._graph, threads)
        address = ctypes.cast(self._library.ggml_get_data(self._y), ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(address, (self.tokens, self.rows))

    def __enter__(self) -> "LlamaProduct":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._library.ggml_free(self._context)
        self._context = None
