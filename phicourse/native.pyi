"""The compiled half of phicourse: quantizers and the engine (C++, native/)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# ---- instruction sets

def isa() -> str:
    """Name of the instruction set in use: scalar, avx2, avx512, neon or neon_i8mm.

    The environment variable PHICOURSE_ISA forces one; RuntimeError where it cannot run here.
    """

def isas() -> list[str]:
    """Names of the instruction sets that can run here, slowest first."""

# ---- quantizers: type is one of F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1,
# Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS, IQ3_S, IQ3_XXS, IQ2_S, IQ2_XS, IQ2_XXS,
# IQ1_M, IQ1_S, TQ1_0, TQ2_0, MXFP4, NVFP4, Q1_0, Q2_0.
# Arrays are C-contiguous; isa forces an instruction set; the GIL is released.

def quantize(
    type: str,
    x: NDArray[np.float32],
    out: NDArray[np.uint8],
    threads: int = 1,
    isa: str | None = None,
    importance: NDArray[np.float32] | None = None,
    best: bool = False,
) -> int | None:
    """Quantize rows.

    x           (rows, n) float32, finite
    out         (rows, row_bytes) uint8, written
    importance  (n,) float32, finite and not negative: how much each column counts
    best        smaller errors than llama.cpp's in the same format, instead of its bytes
    returns     number of the first block with a scale too large for its field, which is infinite; None for none
    raises      ValueError: unknown type, wrong shape, a type that needs importance or has no better search, or
                `row R column C is inf/nan`
    """

def quantize_f16(
    type: str,
    x: NDArray[np.uint16],
    out: NDArray[np.uint8],
    threads: int = 1,
    isa: str | None = None,
    importance: NDArray[np.float32] | None = None,
    best: bool = False,
) -> int | None:
    """As quantize, but x holds the bits of float16 values (`x.view(np.uint16)`)."""

def quantize_bf16(
    type: str,
    x: NDArray[np.uint16],
    out: NDArray[np.uint8],
    threads: int = 1,
    isa: str | None = None,
    importance: NDArray[np.float32] | None = None,
    best: bool = False,
) -> int | None:
    """As quantize, but x holds the bits of bfloat16 values."""

def dequantize(
    type: str, data: NDArray[np.uint8], out: NDArray[np.float32], threads: int = 1, isa: str | None = None
) -> None:
    """Turn (rows, row_bytes) uint8 blocks into (rows, n) float32 values, written to out."""

def better_searches() -> list[str]:
    """The types that can be quantized with `best`."""

def set_grid(type: str, points: NDArray[np.int8]) -> None:
    """Hand over the grid of an i-quant, once, before anything else is done with the type.

    points  (n_points, g) int8, what the blocks' indices stand for
    raises  ValueError: a type without a grid, or points that cannot be its grid
    """

def block_layouts() -> dict[str, dict[str, int | dict[str, int]]]:
    """Size and field offsets of the C++ structs: {type: {"size": bytes, "fields": {name: offset}}}."""

# ---- engine

def multiply(
    type: str,
    data: NDArray[np.uint8],
    x: NDArray[np.float32],
    out: NDArray[np.float32],
    threads: int = 1,
    isa: str | None = None,
) -> None:
    """Multiply a weight matrix with vectors, as the engine does: out[token] = weights @ x[token].

    Where the engine has kernels for the type, the vectors are coded in 8 bits first, with a scale for every 32
    or 256 numbers. The result depends neither on the threads nor on how many vectors come at once.

    data    (rows, row_bytes) uint8, the weights in blocks of `type`
    x       (tokens, cols) float32, finite
    out     (tokens, rows) float32, written
    raises  ValueError: unknown type, wrong shape, an i-quant without its grid, an instruction set that is not here
    """

class Engine:
    """The forward pass of a Phi on weights in the types of a GGUF file, which stay where they are.

    It has several sequences: texts that are read and continued at the same time, each with n_ctx positions of its
    own. Logits depend on their own text alone, not on the threads, nor on how the text was cut into calls, nor on
    what other sequences read. Python's other threads run while it works; those that call it wait for each other.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        tensors: Mapping[str, tuple[str, int, int, NDArray[np.uint8]]],
        n_ctx: int,
        threads: int,
        cache_type: str = "F16",
        n_sequences: int = 1,
    ) -> None:
        """Check everything and make room for n_ctx positions of each sequence.

        config      the fields of PhiConfig under their names: numbers and lists, None where there is none. With
                    "first_layer" the layers before it are computed elsewhere: neither they nor the embedding,
                    unless it is the output matrix, too, may be among the tensors
        tensors     {name in a GGUF file: (type, rows, columns, its bytes)}; a vector is one row
        cache_type  how keys and values are kept: F32, F16, BF16, Q8_0 or Q4_0
        raises      ValueError: a field, a missing, unknown or misshapen tensor, a number, cache_type
                    KeyError, TypeError: a field of config is missing or has another type
        """

    def forward(self, tokens: NDArray[np.int32], all_logits: bool) -> NDArray[np.float32]:
        """Append tokens (n,) to sequence 0; logits after each (n, vocabulary), or after the last (1, vocabulary).

        A text that grows past LongRoPE's switch is computed anew with the long factors. The GIL is released;
        an interrupt is noticed every 512 tokens and leaves the text as it was.
        raises   ValueError without tokens; IndexError: an id outside the vocabulary, or no room left
        """

    def forward_hidden(
        self, hidden: NDArray[np.float32], n_logits: int, text_length: int
    ) -> NDArray[np.float32]:
        """Append what the layers before "first_layer" made of n tokens; logits after the last n_logits of them.

        hidden       (n, hidden_size) float32
        text_length  of the whole text that they are part of: it chooses LongRoPE's factors. Where these change,
                     the caller truncates to 0 first and begins again
        returns      (n_logits, vocabulary) float32
        raises       ValueError: an engine without "first_layer", wrong shape or numbers, other factors in the cache
        """

    def forward_many(
        self, parts: Sequence[tuple[int, NDArray[np.int32]]], all_logits: bool
    ) -> NDArray[np.float32]:
        """Append tokens to several sequences at once, as forward: all weights are read once for all of them.

        parts    (sequence, its tokens (n,)), each sequence at most once
        returns  logits after each token (all tokens of all parts, vocabulary), or after each part's last
                 (parts, vocabulary), in the order of the parts
        raises   as forward, and ValueError without parts or with a sequence twice; IndexError: no such sequence
        """

    def input_squares(
        self, tokens: NDArray[np.int32]
    ) -> dict[str, tuple[NDArray[np.float64], NDArray[np.int64]]]:
        """Forget sequence 0 and read tokens (n,) instead, to see what the weights are multiplied with.

        returns  {name in a GGUF file: (sums, counts)} for every matrix but the embedding: the sums over the
                 tokens of the squares of its input (matrices, columns), one matrix or as many as experts, and
                 how many tokens each met (matrices,)
        raises   as forward
        """

    def truncate(self, length: int, sequence: int = 0) -> None:
        """Forget every position of a sequence from `length` on; IndexError where there are fewer."""

    def copy(self, source: int, target: int, length: int) -> None:
        """Make a sequence the first `length` positions of another; IndexError where that has fewer."""

    def length(self, sequence: int) -> int:
        """How many positions a sequence has."""

    @property
    def position(self) -> int:
        """How many positions sequence 0 has."""

    @property
    def n_ctx(self) -> int:
        """How many positions each sequence has room for."""

    @property
    def n_sequences(self) -> int:
        """How many sequences there are: 0 to n_sequences - 1."""

    @property
    def cache_bytes(self) -> int:
        """Bytes that keys and values take when the contexts of all sequences are full."""

    @property
    def work_bytes(self) -> int:
        """Bytes of everything else that it has made room for: the vectors of a batch, and the threads' scratch."""
