"""Phi from checkpoint to chat: convert to GGUF, quantize, run; everything once to read and once to run.

>>> import phicourse as phi  # doctest: +SKIP
>>> gguf = phi.convert("data/phi-tiny", "phi-tiny-F16.gguf")  # doctest: +SKIP
>>> small = phi.quantize(gguf, "phi-tiny-Q4_K_M.gguf", "Q4_K_M")  # doctest: +SKIP
>>> llm = phi.load(small)  # doctest: +SKIP

`convert` and `quantize` are functions here, and their packages have the same names: modules inside them are
imported with `from phicourse.quantize.k_quants import …`.
"""

from phicourse.convert import convert
from phicourse.generate import load
from phicourse.quantize import quantize, use

__version__ = "0.1.0"
__all__ = ["__version__", "convert", "load", "quantize", "use"]
