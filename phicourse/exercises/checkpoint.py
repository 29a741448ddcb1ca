"""The checks of notebook 01, a checkpoint from the inside."""

import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phicourse.checkpoint.config import parse_config
from phicourse.convert.weights import count_weights
from phicourse.exercises.compare import compare_arrays, compare_values
from phicourse.exercises.exercise import Answer, Mistake, exercise
from phicourse.gguf.types import bfloat16_to_float32

_BF16 = np.array([[0x3F80, 0xBF80, 0x0000], [0x4049, 0x7F7F, 0x0001]], "<u2")
_GOOD = {
    "late": {"dtype": "F32", "shape": [2, 3], "data_offsets": [12, 36]},
    "early": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]},
}


def safetensors_bytes(entries: Mapping[str, Any], data: bytes) -> bytes:
    """Build a safetensors file of a header, as it is given, and the bytes behind it."""
    header = json.dumps(entries).encode()
    return struct.pack("<Q", len(header)) + header + data


def _example() -> tuple[bytes, dict[str, NDArray[np.float32]]]:
    """A file of two tensors, whose order in the header is not that of the data, and what they hold."""
    late = np.array([[1, -2, 3], [0.5, 1e-30, 7]], "<f4")
    raw = safetensors_bytes({"__metadata__": {"format": "pt"}, **_GOOD}, _BF16.tobytes() + late.tobytes())
    return raw, {"early": bfloat16_to_float32(_BF16), "late": late}


@exercise("01.1", "Open the header", difficulty=1, minutes=5, core=True)
def read_header(answer: Answer) -> Mistake | None:
    """Hold `read_header(raw) -> (header, data_start)` against a small file."""
    raw, _ = _example()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    got = answer(raw)
    if not isinstance(got, tuple) or len(got) != 2:
        return Mistake(
            "what comes back", "a pair: header, data_start", repr(got), "return header, data_start"
        )
    likely = {
        length: "offsets count from behind the header: 8 bytes of length come before it",
        8: "the data begins behind the header, not in front of it",
        8 + int.from_bytes(raw[:4], "big"): "the length is little-endian: its lowest byte comes first",
    }.get(got[1] if isinstance(got[1], int) else -1, "")
    return compare_values("the byte where the data begins", 8 + length, got[1], likely) or compare_values(
        "the header", header, got[0], "parse it with json.loads"
    )


@exercise("01.2", "BF16 by hand", difficulty=2, minutes=10, core=True)
def bf16_to_float32(answer: Answer) -> Mistake | None:
    """Hold `bf16_to_float32(bits)` against ours on chosen numbers, and on all 65,536 patterns but the NaNs."""
    everything = np.arange(1 << 16, dtype="<u2")
    everything = everything[(everything & 0x7FFF) <= 0x7F80]  # a NaN may change its payload on the way
    for where, bits in (("six numbers", _BF16), ("all numbers of BF16", everything)):
        with np.errstate(all="ignore"):
            got = answer(bits.copy())
        mistake = compare_arrays(where, bfloat16_to_float32(bits), got, _likely_bf16(bits, got))
        if mistake is not None:
            return mistake
    return None


def _numbers_not_bits(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    return (bits.astype(np.uint32) << np.uint32(16)).astype(np.float32)


def _likely_bf16(bits: NDArray[np.uint16], got: Any) -> str:
    """Name the usual ways to be wrong."""
    if not isinstance(got, np.ndarray):
        return ""
    if got.dtype != np.float32:
        return "the bits must be read as float32: `.view(np.float32)` keeps them, `.astype` would not"
    with np.errstate(all="ignore"):
        wrong = {
            "these are the bits as whole numbers: use `.view`, not `.astype`": bits.astype(np.float32),
            "F16 has other fields than BF16": bits.view(np.float16).astype(np.float32),
            "the 16 bits are the upper half: shift them left by 16": bits.astype(np.uint32).view(np.float32),
            "a shift in uint16 pushes all bits out: widen to uint32 first": np.zeros(bits.shape, np.float32),
            "`.astype(np.uint32)` comes before the shift, `.view(np.float32)` behind it": _numbers_not_bits(
                bits
            ),
        }
    return next((text for text, values in wrong.items() if np.array_equal(values, got, equal_nan=True)), "")


@exercise("01.3", "A tensor by its name", difficulty=2, minutes=10)
def read_tensor(answer: Answer) -> Mistake | None:
    """Hold `read_tensor(raw, name)` against the tensors of a small file, one BF16 and one F32."""
    raw, tensors = _example()
    for name, expected in tensors.items():
        got = answer(raw, name)
        mistake = compare_arrays(f"tensor {name!r}", expected, got, _likely_tensor(raw, expected, got))
        if mistake is not None:
            return mistake
    return None


def _likely_tensor(raw: bytes, expected: NDArray[np.float32], got: Any) -> str:
    if not isinstance(got, np.ndarray):
        return ""
    if got.shape == (expected.size,):
        return "the bytes are in a row: `.reshape` gives them the shape that the header has"
    if got.shape == expected.shape[::-1]:
        return "rows come first in the header's shape"
    if got.dtype == np.uint16:
        return "BF16 has to be widened: you have written a function for it"
    return "offsets count from the end of the header, and the tensors need not lie in the header's order"


def lies() -> dict[str, bytes]:
    """Build files whose headers lie, each in one way, by what is wrong with them."""
    size = 36

    def changed(**fields: Any) -> bytes:
        return safetensors_bytes({**_GOOD, "late": {**_GOOD["late"], **fields}}, bytes(size))

    good = safetensors_bytes(_GOOD, bytes(size))
    return {
        "a header that is longer than the file": struct.pack("<Q", 1 << 40) + good[8:],
        "a tensor that ends behind the end of the file": good[:-4],
        "a shape that needs more bytes than the offsets give": changed(shape=[1000, 1000]),
        "a tensor that begins before the data": changed(data_offsets=[-12, 12]),
        "a tensor that ends before it begins": changed(shape=[-2, 3], data_offsets=[24, 0]),
        "two tensors that share bytes": changed(data_offsets=[6, 30]),
    }


@exercise("01.4", "Trust nothing", difficulty=3, minutes=15)
def check_header(answer: Answer) -> Mistake | None:
    """Let `check_header(raw)` pass a good file, and expect ValueError for each of six that lie."""
    raw, _ = _example()
    try:
        answer(raw)
    except ValueError as error:
        return Mistake(
            "a good file",
            "no error",
            f"ValueError: {error}",
            "__metadata__ is no tensor; tensors lie in any order",
        )
    for what, lie in lies().items():
        try:
            answer(lie)
        except ValueError:  # json's own error is one, too
            continue
        return Mistake(what, "ValueError", "no error: your check lets it pass", _ADVICE[what])
    return None


_ADVICE = {
    "a header that is longer than the file": "compare 8 + the length with len(raw) before anything is read",
    "a tensor that ends behind the end of the file": "data_start + end may be len(raw) at most",
    "a shape that needs more bytes than the offsets give": "math.prod(shape) times the bytes of a number: end - begin",
    "a tensor that begins before the data": "Python reads a negative index from the end, and says nothing",
    "a tensor that ends before it begins": "two negative numbers agree with each other: check that begin <= end",
    "two tensors that share bytes": "sort by begin: each must begin where the one before ended",
}

# The fields of config.json that the number of weights depends on.
PHI_35_MINI = {
    "architectures": ["Phi3ForCausalLM"],
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32064,
    "tie_word_embeddings": False,
}
PHI_4 = {
    **PHI_35_MINI,
    "hidden_size": 5120,
    "intermediate_size": 17920,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 10,
    "vocab_size": 100352,
}
PHI_4_MINI = {
    **PHI_35_MINI,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "vocab_size": 200064,
    "tie_word_embeddings": True,
}


@exercise("01.5", "Count before you download", difficulty=2, minutes=10)
def count_parameters(answer: Answer) -> Mistake | None:
    """Hold `count_parameters(config)` against the count that the converter's tables give."""
    for name, document in {"Phi-3.5-mini": PHI_35_MINI, "Phi-4": PHI_4, "Phi-4-mini": PHI_4_MINI}.items():
        expected = sum(count_weights(parse_config(document)).values())
        got = answer(dict(document))
        plain = got.item() if isinstance(got, np.generic) else got
        likely = _likely_count(document, expected - plain) if isinstance(plain, int | float) else ""
        mistake = compare_values(f"the weights of {name}", expected, got, likely)
        if mistake is not None:
            return mistake
    return None


def _likely_count(document: Mapping[str, Any], missing: float) -> str:
    """Explain a difference that is just one of the parts."""
    hidden, layers = document["hidden_size"], document["num_hidden_layers"]
    keys = document["num_key_value_heads"] * hidden // document["num_attention_heads"]
    reasons = {
        hidden: "the last norm, behind the layers",
        2 * hidden * layers: "the two norms of each layer",
        (2 * layers + 1) * hidden: "the norms: two in each layer and one behind them",
        document["vocab_size"] * hidden: "the output matrix: its own unless tie_word_embeddings",
        layers * hidden * document["intermediate_size"]: "gate and up are two matrices of the same size",
        layers * hidden * hidden: "o_proj, the matrix behind the attention",
        -2 * layers * hidden * (hidden - keys): "keys and values have num_key_value_heads heads, not all",
        -document["vocab_size"] * hidden: "with tie_word_embeddings the output matrix is the embedding, once",
    }
    return reasons.get(missing, "")
