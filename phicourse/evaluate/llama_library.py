"""llama.cpp's compiled libraries, for those who call a function of them that Python has no name for."""

import ctypes
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# what a function gives back and takes, as ctypes have it
Signature = tuple[Any, list[Any]]


def llama_cpp_library(name: str) -> Path | None:
    """Return the file of a library, such as "ggml-base"; None where llama-cpp-python is not installed.

    PyPI's package has its libraries in its own folder, conda-forge's in the environment's.
    """
    found = find_spec("llama_cpp")
    if found is None or found.origin is None:
        return None
    prefix = Path(sys.prefix)
    folders = (Path(found.origin).with_name("lib"), prefix / "lib", prefix / "Library" / "bin")
    return next((path for folder in folders for path in sorted(folder.glob(f"*{name}.*"))), None)


def load_llama_cpp_library(name: str, signatures: Mapping[str, Signature]) -> ctypes.CDLL | None:
    """Load a library and give some of its functions their signatures; None where llama-cpp-python is not installed."""
    path = llama_cpp_library(name)
    if path is None:
        return None
    library = ctypes.CDLL(str(path))
    for function, (result, arguments) in signatures.items():
        getattr(library, function).restype = result
        getattr(library, function).argtypes = arguments
    return library
