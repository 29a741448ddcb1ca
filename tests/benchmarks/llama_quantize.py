"""llama.cpp's quantizer as a program of its own, with little else in memory.

    python tests/benchmarks/llama_quantize.py IN OUT FILE_TYPE THREADS

FILE_TYPE is a number, as in general.file_type: 15 is Q4_K_M.
"""

import ctypes
import sys

import llama_cpp


def main() -> None:
    """Quantize one file; exit status 1 where that fails."""
    source, out, file_type, threads = sys.argv[1:]
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = int(file_type), int(threads)
    sys.exit(llama_cpp.llama_model_quantize(source.encode(), out.encode(), ctypes.byref(parameters)))


if __name__ == "__main__":
    main()
