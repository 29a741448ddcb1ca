"""What llama.cpp (ggml 0.25.3, llama-cpp-python 0.3.36) does with whole files: its plan, and its way with a matrix."""

import ctypes
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from quantize_oracles import llama_quantize

from phicourse.gguf import GGUFFile
from phicourse.quantize.importance import ImportanceMatrix, Squares

_LINE = re.compile(r"\] (\S+) +- \[.*?\], type = +(\S+), (?:size = +[\d.]+ MiB -> +[\d.]+ MiB \((\S+)\))?")


class LlamaPlan(NamedTuple):
    """Tensor name -> type, in the order of the file, and whether it could not be made without an imatrix."""

    types: dict[str, str]
    needs_importance: bool


def llama_plan(source: Path, file_type: int, **options: object) -> LlamaPlan | None:
    """What a dry run of llama_model_quantize prints; None where it gives up."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python, the oracle")
    said: list[bytes] = []

    @llama_cpp.llama_log_callback
    def listen(level: int, text: bytes, data: object) -> None:
        said.append(text)

    try:
        llama_quantize(source, source, file_type, dry_run=True, log=listen, **options)
    except AssertionError:
        return None
    text = b"".join(said).decode()
    types = {name: (after or before).upper() for name, before, after in _LINE.findall(text)}
    return LlamaPlan(types, "will require an imatrix" in text)


def random_importance(source: Path, *, seed: int = 8, path: Path | None = None) -> ImportanceMatrix:
    """A matrix for every matrix in the layers of a file; of a stack of experts the second was never hit."""
    rng = np.random.default_rng(seed)
    squares = {}
    with GGUFFile.open(source) as file:
        for name, tensor in file.tensors.items():
            if not name.startswith("blk.") or len(tensor.shape) < 2 or "gate_inp" in name:
                continue
            shape = (int(np.prod(tensor.shape[:-2])), tensor.shape[-1])
            counts = np.full(shape[0], 100)
            counts[1:2] = 0
            squares[name] = Squares.of(rng.gamma(0.5, size=shape).astype(np.float32), counts, name)
    return ImportanceMatrix(path, ("texts/für-alle.txt",), 7, 512, squares)


def imatrix_options(matrix: ImportanceMatrix, file: str) -> dict[str, object]:
    """The parameters that llama-quantize makes of an importance matrix."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python, the oracle")
    data = llama_cpp.llama_model_imatrix_data
    entries = [np.ascontiguousarray(entry, np.float32).reshape(-1) for entry in matrix.entries.values()]
    pointer = ctypes.POINTER(ctypes.c_float)
    items = [
        data(name.encode(), entry.ctypes.data_as(pointer), entry.size)
        for name, entry in zip(matrix.entries, entries, strict=True)
    ]
    array = (data * (len(items) + 1))(*items, data(None, None, 0))
    array.kept = entries  # type: ignore[attr-defined]  # as long as the array lives
    pairs = {
        "file": file,
        "dataset": matrix.datasets[0] if matrix.datasets else None,
        "entries_count": len(entries),
        "chunks_count": matrix.n_chunks or None,
    }
    overrides = [kv_override(key, value) for key, value in pairs.items() if value is not None]
    end = llama_cpp.llama_model_kv_override()
    return {
        "imatrix": array,
        "kv_overrides": (llama_cpp.llama_model_kv_override * (len(overrides) + 1))(*overrides, end),
    }


def kv_override(key: str, value: str | int) -> object:
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python, the oracle")
    override = llama_cpp.llama_model_kv_override()
    override.key = f"quantize.imatrix.{key}".encode()
    if isinstance(value, str):
        override.tag = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_STR
        override.value.val_str = value.encode()[:127]
    else:
        override.tag = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_INT
        override.value.val_i64 = value
    return override
