"""llama.cpp's own quantizers (ggml 0.25.3, in the llama-cpp-python 0.3.36 wheel) behind plain functions."""

import ctypes
import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from quantize_inputs import TAKE_IMPORTANCE

from phicourse.errors import QuantizeError
from phicourse.gguf import TENSOR_TYPES
from phicourse.quantize import QUANTIZERS, quantize_rows

GGML_VERSION = b"0.25.3"


@cache
def ggml() -> ctypes.CDLL:
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python, the oracle")
    folder = Path(llama_cpp.__file__).parent / "lib"
    path = next((path for path in sorted(folder.glob("*ggml-base*")) if path.is_file()), None)
    if path is None:
        pytest.skip(f"no libggml-base in {folder}")
    library = ctypes.CDLL(str(path))
    library.ggml_version.restype = ctypes.c_char_p
    if library.ggml_version() != GGML_VERSION:
        pytest.skip(f"the oracle is ggml {library.ggml_version()!r}, these tests know {GGML_VERSION!r}")
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        *[ctypes.c_int64] * 3,
        ctypes.c_void_p,
    ]
    library.ggml_validate_row_data.restype = ctypes.c_bool
    library.ggml_validate_row_data.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
    return library


def ggml_quantize(x: np.ndarray, type_name: str, importance: np.ndarray | None = None) -> np.ndarray:
    """(rows, n) float32 and (n,) float32 -> (rows, bytes of a row) uint8."""
    x, type = np.ascontiguousarray(x, np.float32), TENSOR_TYPES[type_name]
    out = np.zeros((len(x), type.row_bytes(x.shape[1])), np.uint8)
    columns = None if importance is None else np.ascontiguousarray(importance, np.float32)
    address = None if columns is None else columns.ctypes.data
    ggml().ggml_quantize_init(type.id)
    ggml().ggml_quantize_chunk(type.id, x.ctypes.data, out.ctypes.data, 0, *x.shape, address)
    return out


def ggml_accepts(packed: np.ndarray, type_name: str) -> bool:
    """Whether llama-quantize would write these blocks: it stops at scales that are not finite."""
    return bool(ggml().ggml_validate_row_data(TENSOR_TYPES[type_name].id, packed.ctypes.data, packed.nbytes))


def numpy_quantize(x: np.ndarray, type_name: str, importance: np.ndarray | None = None) -> np.ndarray:
    """The same by the functions to read, without the checks around them."""
    weighted = importance is not None and type_name in TAKE_IMPORTANCE
    arguments = (importance,) if weighted else ()
    blocks = QUANTIZERS[type_name](np.ascontiguousarray(x, np.float32), *arguments)
    return np.ascontiguousarray(blocks).view(np.uint8).reshape(len(x), -1)


def native_quantize(
    x: np.ndarray, type_name: str, importance: np.ndarray | None = None, threads: int = 1
) -> np.ndarray:
    """The same by the compiled module; skips the test where it leaves the type to NumPy."""
    pytest.importorskip("phicourse.native", reason="the compiled module is not built")
    try:
        return quantize_rows(x, type_name, importance=importance, backend="native", threads=threads)
    except QuantizeError as error:
        if "the compiled module has no" in str(error):
            pytest.skip(str(error))
        raise


@cache
def qsort_is_stable() -> bool:
    """Whether C's qsort, which ggml sorts with, keeps equal numbers in their order, as glibc's does."""
    compare = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_float), ctypes.POINTER(ctypes.c_float))
    pairs = np.stack([np.arange(32) * 7 % 5, np.arange(32)], axis=-1).astype(
        np.float32
    )  # as many as ggml sorts
    expected = pairs[np.argsort(pairs[:, 0], kind="stable")]
    qsort = ctypes.CDLL(None).qsort
    qsort.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, compare]
    qsort(pairs.ctypes.data, 32, 8, compare(lambda a, b: (a[0] > b[0]) - (a[0] < b[0])))
    return np.array_equal(pairs, expected)


def llama_quantize(
    source: Path, out: Path, file_type: int, *, log: Callable[..., None] | None = None, **options: object
) -> None:
    """`llama_model_quantize`; options are fields of its parameters, log gets what it says."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python, the oracle")
    ggml()
    llama_cpp.llama_log_set(log or _quiet(), ctypes.c_void_p())
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = file_type, 2
    for name, value in options.items():
        setattr(parameters, name, value)
    failed = llama_cpp.llama_model_quantize(bytes(source), bytes(out), ctypes.byref(parameters))
    llama_cpp.llama_log_set(_quiet(), ctypes.c_void_p())
    assert failed == 0


def tensor_overrides(*pairs: tuple[str, str]) -> object:
    """The array that `tt_overrides` points to, from (regular expression, type name) pairs."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python, the oracle")
    override = llama_cpp.llama_model_tensor_override
    entries = [override(pattern.encode(), TENSOR_TYPES[name].id) for pattern, name in pairs]
    return (override * (len(pairs) + 1))(*entries, override(None, 0))


@cache
def _quiet() -> Callable[..., None]:
    import llama_cpp

    @llama_cpp.llama_log_callback
    def quiet(level: int, text: bytes, data: object) -> None:
        pass

    return quiet


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
