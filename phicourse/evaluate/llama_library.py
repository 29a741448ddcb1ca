"""Where llama.cpp's compiled libraries lie, for those who call a function of them that Python has no name for."""

import sys
from importlib.util import find_spec
from pathlib import Path


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
