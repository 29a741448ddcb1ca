"""Phi from checkpoint to chat: convert to GGUF, quantize, run; everything once to read and once to run.

>>> import phicourse as phi  # doctest: +SKIP
>>> gguf = phi.convert("data/phi-tiny", "phi-tiny-F16.gguf")  # doctest: +SKIP
>>> small = phi.quantize(gguf, "phi-tiny-Q4_K_M.gguf", "Q4_K_M")  # doctest: +SKIP
>>> llm = phi.load(small)  # doctest: +SKIP

`convert` and `quantize` are functions here, and their packages have the same names: modules inside them are
imported with `from phicourse.quantize.k_quants import …`. Nothing is imported before it is asked for.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from phicourse.convert import convert
    from phicourse.exercises import progress
    from phicourse.generate import load
    from phicourse.quantize import quantize, use

__version__ = "0.1.0"
__all__ = ["__version__", "convert", "load", "progress", "quantize", "use"]

_HOMES = {
    "convert": "phicourse.convert",
    "load": "phicourse.generate",
    "progress": "phicourse.exercises",
    "quantize": "phicourse.quantize",
    "use": "phicourse.quantize",
}


def __getattr__(name: str) -> Any:
    """Fetch one of the functions."""
    if name not in _HOMES:
        raise AttributeError(f"module 'phicourse' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """List the face, also what was not fetched yet."""
    return __all__


class _Face(ModuleType):
    """Keeps Python from putting the packages `convert` and `quantize` in the place of the functions."""

    def __setattr__(self, name: str, value: object) -> None:
        if name not in _HOMES or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Face
