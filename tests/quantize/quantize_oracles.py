"""llama.cpp's own quantizers (ggml 0.25.3, in the llama-cpp-python 0.3.36 wheel) behind plain functions."""

import ctypes
import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from phicourse.gguf import TENSOR_TYPES
from phicourse.quantize import QUANTIZERS, quantize_rows

# the types of every test here; those of `test_quantize_more_types` are held to account there
TYPES = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")
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


def ggml_quantize(x: np.ndarray, type_name: str) -> np.ndarray:
    """(rows, n) float32 -> (rows, bytes of a row) uint8."""
    x, type = np.ascontiguousarray(x, np.float32), TENSOR_TYPES[type_name]
    out = np.zeros((len(x), type.row_bytes(x.shape[1])), np.uint8)
    ggml().ggml_quantize_init(type.id)
    ggml().ggml_quantize_chunk(type.id, x.ctypes.data, out.ctypes.data, 0, *x.shape, None)
    return out


def ggml_accepts(packed: np.ndarray, type_name: str) -> bool:
    """Whether llama-quantize would write these blocks: it stops at scales that are not finite."""
    return bool(ggml().ggml_validate_row_data(TENSOR_TYPES[type_name].id, packed.ctypes.data, packed.nbytes))


def numpy_quantize(x: np.ndarray, type_name: str) -> np.ndarray:
    """The same by the functions to read, without the checks around them."""
    blocks = np.ascontiguousarray(QUANTIZERS[type_name](np.ascontiguousarray(x, np.float32)))
    return blocks.view(np.uint8).reshape(len(x), -1)


def native_quantize(x: np.ndarray, type_name: str, threads: int = 1) -> np.ndarray:
    native = pytest.importorskip("phicourse.native", reason="the compiled module is not built")
    if type_name not in {"F32", "F16", "BF16", *native.block_layouts()}:
        pytest.skip(f"the compiled module leaves {type_name} to NumPy")
    return quantize_rows(np.ascontiguousarray(x, np.float32), type_name, backend="native", threads=threads)


def llama_quantize(source: Path, out: Path, file_type: int, **options: object) -> None:
    """`llama_model_quantize`; options are fields of its parameters."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python, the oracle")
    ggml()
    llama_cpp.llama_log_set(_quiet(), ctypes.c_void_p())
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = file_type, 2
    for name, value in options.items():
        setattr(parameters, name, value)
    assert llama_cpp.llama_model_quantize(bytes(source), bytes(out), ctypes.byref(parameters)) == 0


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
