"""The checks of notebook 04, the converter."""

import json
import math
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phicourse.checkpoint.config import parse_config
from phicourse.convert import convert, phi3
from phicourse.errors import PhiCourseError
from phicourse.exercises import record
from phicourse.exercises.checkpoint import safetensors_bytes
from phicourse.exercises.compare import compare_arrays, compare_values, first_difference, show_bytes
from phicourse.exercises.exercise import Answer, Mistake, exercise
from phicourse.gguf import GGUFFile
from phicourse.gguf.types import float32_to_bfloat16

Config = Mapping[str, Any]


@exercise("04.1", "The name map", difficulty=2, minutes=10, core=True)
def gguf_name(answer: Answer) -> Mistake | None:
    """Hold `gguf_name(name)` against the converter's table, and expect an error for a name that it does not have."""
    for layer in (0, 3, 17):
        for rule in phi3.RULES:
            name, expected = (text.replace(".N.", f".{layer}.") for text in (rule.source, rule.target))
            got = answer(name)
            mistake = compare_values(f"the name of {name}", expected, got, _likely_name(expected, got))
            if mistake is not None:
                return mistake
    for name in ("model.layers.0.self_attn.q_proj.lora_A.weight", "model.layers.0.mlp.experts.3.w1.weight"):
        try:
            got = answer(name)
        except (ValueError, LookupError):
            continue
        return Mistake(name, "ValueError", repr(got), "a tensor that nobody knows must not get into a file")
    return None


def _likely_name(expected: str, got: Any) -> str:
    if not isinstance(got, str):
        return "return the name, a text"
    if (
        "blk." in got
        and got.partition(".")[2].partition(".")[2] == expected.partition(".")[2].partition(".")[2]
    ):
        return "the number of the layer is that of the checkpoint's name"
    if not got.endswith(".weight"):
        return "the names end in .weight in both"
    if "ffn_gate" in got:
        return "gate and up are one matrix, and phi3 calls it ffn_up"
    if expected.endswith("ffn_norm.weight") and "norm" in got:
        return "post_attention_layernorm stands before the feed-forward part, and is named after that"
    if got.startswith(("layers.", "model.", "h.")):
        return "layers are called blk in GGUF"
    return "look at the table again"


@exercise("04.2", "Which type", difficulty=1, minutes=5)
def stored_as(answer: Answer) -> Mistake | None:
    """Hold `stored_as(name, shape)` against the rule: vectors and routers stay F32."""
    cases = {
        "blk.0.attn_qkv.weight": ((768, 256), "F16", "a matrix is stored in 16 bits"),
        "token_embd.weight": ((2048, 256), "F16", "a matrix is stored in 16 bits"),
        "blk.0.attn_norm.weight": ((256,), "F32", "a norm has one dimension, and those stay F32"),
        "blk.0.attn_qkv.bias": ((768,), "F32", "a bias has one dimension, and those stay F32"),
        "rope_factors_long.weight": ((48,), "F32", "it has one dimension, whatever it is called"),
        "blk.0.ffn_gate_inp.weight": (
            (16, 4096),
            "F32",
            "the router chooses between experts: a matrix, but one that stays F32",
        ),
        "blk.0.ffn_up_exps.weight": ((16, 6400, 4096), "F16", "stacked experts are matrices"),
    }
    for name, (shape, expected, likely) in cases.items():
        mistake = compare_values(f"{name} {shape}", expected, answer(name, shape), likely)
        if mistake is not None:
            return mistake
    return None


@exercise("04.3", "Sixteen bits, or an error", difficulty=2, minutes=10)
def to_f16(answer: Answer) -> Mistake | None:
    """Hold `to_f16(weights)` against NumPy's rounding on all that fits, and expect ValueError for what does not."""
    good = np.array([[1, -0.1, 65504], [65519, 6e-8, 1e-30], [2**-14, -(2**-25), 0]], np.float32)
    expected = good.astype(np.float16)
    with np.errstate(all="ignore"):
        got = answer(good.copy())
    mistake = compare_arrays("nine numbers that fit", expected, got, _likely_f16(good, got))
    if mistake is not None:
        return mistake
    for what, weight in {
        "infinity": np.inf,
        "not a number": np.nan,
        "65,536, the first of BF16 that is too large": 65536.0,
        "65,520, which rounds up": 65520.0,
        "-1e30": -1e30,
    }.items():
        try:
            with np.errstate(all="ignore"):
                answer(np.array([[1, weight]], np.float32))
        except ValueError:
            continue
        return Mistake(
            what, "ValueError", "no error", "look at the result: np.isfinite says what became infinite"
        )
    return None


def _likely_f16(weights: NDArray[np.float32], got: Any) -> str:
    if not isinstance(got, np.ndarray):
        return ""
    if got.dtype == np.float32:
        return "`.astype(np.float16)` rounds to the nearest number"
    if got.shape == weights.shape and got.dtype == np.float16 and not got[1, 1]:
        return "below 2^-14 float16 goes on, with fewer and fewer digits, down to 2^-24"
    return "round to the nearest, and change nothing else"


# ---- what config.json says ------------------------------------------------------------------------------

PHI_TINY = {
    "architectures": ["Phi3ForCausalLM"],
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "original_max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "vocab_size": 2048,
    "tie_word_embeddings": False,
}
PHI_35_MINI = {
    **PHI_TINY,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 131072,
    "original_max_position_embeddings": 4096,
    "sliding_window": 262144,
    "vocab_size": 32064,
}
PHI_4_MINI = {
    **PHI_35_MINI,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "partial_rotary_factor": 0.75,
    "vocab_size": 200064,
    "tie_word_embeddings": True,
}
PHI_4 = {
    **PHI_35_MINI,
    "hidden_size": 5120,
    "intermediate_size": 17920,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 10,
    "max_position_embeddings": 16384,
    "original_max_position_embeddings": 16384,
    "rope_theta": 250000.0,
    "sliding_window": None,
    "vocab_size": 100352,
}
CONFIGS: Mapping[str, Config] = {
    "phi-tiny": PHI_TINY,
    "Phi-3.5-mini": PHI_35_MINI,
    "Phi-4-mini": PHI_4_MINI,
    "Phi-4": PHI_4,
}


@exercise("04.4", "LongRoPE's factor", difficulty=2, minutes=10)
def attention_factor(answer: Answer) -> Mistake | None:
    """Hold `attention_factor(config)` against the formula, to six digits."""
    for name, config in {
        **CONFIGS,
        "a context that was made shorter": PHI_35_MINI | {"max_position_embeddings": 2048},
    }.items():
        scale = config["max_position_embeddings"] / config["original_max_position_embeddings"]
        expected = (
            math.sqrt(1 + math.log(scale) / math.log(config["original_max_position_embeddings"]))
            if scale > 1
            else 1.0
        )
        got = answer(dict(config))
        if isinstance(got, int | float | np.floating) and math.isclose(float(got), expected, rel_tol=1e-6):
            continue
        likely = _likely_factor(scale, config["original_max_position_embeddings"], got)
        return Mistake(
            f"the factor of {name}",
            f"{expected:.7g}",
            f"{got:.7g}" if isinstance(got, float) else repr(got),
            likely,
        )
    return None


def _likely_factor(scale: float, original: int, got: Any) -> str:
    if not isinstance(got, int | float | np.floating):
        return "return a number"
    ratio = math.log(scale) / math.log(original)
    wrong = {
        "the square root is missing": 1 + ratio,
        "the 1 is missing below the root": math.sqrt(abs(ratio)),
        "the logarithm of the original context is in the denominator, not that of the new one": math.sqrt(
            abs(1 + math.log(scale) / math.log(original * scale))
        ),
        "where the context did not grow, the factor is 1": math.sqrt(abs(1 + ratio)),
        "s is the new context divided by the original one": math.sqrt(abs(1 - ratio)),
    }
    return next((text for text, value in wrong.items() if math.isclose(value, float(got), rel_tol=1e-6)), "")


@exercise("04.5", "Thirteen numbers", difficulty=3, minutes=15)
def hyperparameters(answer: Answer) -> Mistake | None:
    """Hold `hyperparameters(config)` against the converter's pairs, for four models: keys, order, values, types."""
    for name, config in CONFIGS.items():
        pairs = [(key, value) for key, value, _ in phi3.hyperparameters(parse_config(config), 1)]
        pairs.append(("general.quantization_version", 2))
        got = answer(dict(config))
        if not isinstance(got, list) or not all(isinstance(pair, tuple) and len(pair) == 2 for pair in got):
            return Mistake("what comes back", "a list of pairs", repr(got), "pairs are (key, value)")
        mistake = _compare_keys(name, [key for key, _ in pairs], [key for key, _ in got])
        for (key, expected), (_, value) in zip(pairs, got, strict=False):
            mistake = mistake or _compare_number(f"{key} of {name}", expected, value)
        if mistake is not None:
            return mistake
    return None


def _compare_number(where: str, expected: int | float, got: Any) -> Mistake | None:
    if got is None:
        return Mistake(
            where, repr(expected), "None", "null is no number: write 0, which says that there is none"
        )
    return compare_values(where, expected, got, _likely_number(where, expected, got))


def _compare_keys(name: str, expected: list[str], got: list[str]) -> Mistake | None:
    if got == expected:
        return None
    at = next(
        (at for at, (a, b) in enumerate(zip(expected, got, strict=False)) if a != b),
        min(len(expected), len(got)),
    )
    is_order = sorted(expected) == sorted(got)
    likely = (
        "all keys are there, in another order: the order is part of the bytes"
        if is_order
        else "the keys are those of the table, in its order"
    )
    shown = [(keys[at] if at < len(keys) else "nothing") for keys in (expected, got)]
    return Mistake(f"key {at + 1} of {name}", shown[0], shown[1], likely)


def _likely_number(where: str, expected: int | float, got: Any) -> str:
    if ".rope.dimension_count" in where:
        return "the size of a head, times partial_rotary_factor where there is one; a whole number"
    if isinstance(expected, float) and isinstance(got, int):
        return "whole numbers become UINT32, and this key is a FLOAT32: float(…)"
    if isinstance(expected, int) and isinstance(got, float):
        return "this key is a UINT32: a whole number"
    return "another field of config.json"


# ---- the whole file -------------------------------------------------------------------------------------


@exercise("04.6", "The converter", difficulty=4, minutes=25, core=True)
def converter(answer: Answer) -> Mistake | None:
    """Let `convert(folder, path)` convert two checkpoints, and compare the files with the course's, byte by byte."""
    with tempfile.TemporaryDirectory(dir=record.out_folder()) as scratch:
        tiny = _phi_tiny()
        small = _small_checkpoint(Path(scratch) / "small", tiny)
        for name, folder in (("phi-tiny", tiny), ("a model of 12 layers without LongRoPE, tied", small)):
            expected = convert(
                folder, Path(scratch) / "expected.gguf", compat=True, force=True, progress=False
            )
            got = Path(scratch) / "got.gguf"
            got.unlink(missing_ok=True)
            answer(folder, got)
            mistake = _compare_files(name, expected, got)
            if mistake is not None:
                return mistake
    return None


def _phi_tiny() -> Path:
    out = record.out_folder()
    if out is None:
        raise PhiCourseError("phi-tiny is not here: run this in the folder notebooks/ of the course")
    return out.parent / "data" / "phi-tiny"


def _small_checkpoint(folder: Path, tiny: Path) -> Path:
    """Write a checkpoint whose names sort otherwise than its layers do, and that lacks what some have."""
    config = json.loads((tiny / "config.json").read_text(encoding="utf-8"))
    changes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 12, "num_attention_heads": 2}
    config |= {**changes, "num_key_value_heads": 1, "tie_word_embeddings": True, "sliding_window": None}
    config |= {"max_position_embeddings": 512}
    del config["rope_scaling"]
    folder.mkdir()
    for file in tiny.glob("*token*.*"):
        shutil.copyfile(file, folder / file.name)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    dice = np.random.default_rng(4)
    entries: dict[str, Any] = {}
    data = b""
    parsed = parse_config(config)
    for rule in phi3.RULES:
        if rule.is_optional(parsed):
            continue
        shape = rule.source_shape(parsed)
        for layer in range(rule.n_layers(parsed)):
            raw = float32_to_bfloat16(dice.normal(size=shape).astype(np.float32)).tobytes()
            (name,) = rule.sources(layer, parsed)
            entries[name] = {
                "dtype": "BF16",
                "shape": list(shape),
                "data_offsets": [len(data), len(data) + len(raw)],
            }
            data += raw
    (folder / "model.safetensors").write_bytes(safetensors_bytes(entries, data))
    return folder


def _compare_files(name: str, expected: Path, got: Path) -> Mistake | None:
    """Find the first difference, by what it means."""
    if not got.is_file():
        return Mistake(f"the file of {name}", "a file", "nothing", "write to the path that is given")
    a, b = expected.read_bytes(), got.read_bytes()
    at = first_difference(a, b)
    if at is None:
        return None
    try:
        ours, theirs = GGUFFile.open(expected), GGUFFile.open(got)
    except PhiCourseError as error:
        reason = str(error).removeprefix(f"{got}: ")  # whose folder is nobody's business
        return Mistake(f"the file of {name}", "a GGUF file", reason, "leave the writing to GGUFWriter")
    return (
        _compare_metadata(name, ours, theirs)
        or _compare_order(name, list(ours.tensors), list(theirs.tensors))
        or _compare_tensors(name, ours, theirs)
        or Mistake(f"{name}: byte {at:,}", show_bytes(a, at), show_bytes(b, at))
    )


def _compare_metadata(name: str, expected: GGUFFile, got: GGUFFile) -> Mistake | None:
    mistake = _compare_keys(name, list(expected.metadata), list(got.metadata))
    for key, pair in expected.metadata.items():
        other = got.metadata.get(key, pair)
        mistake = mistake or compare_values(f"the type of {key} of {name}", pair.type.name, other.type.name)
        if mistake is None and repr(pair) != repr(other):
            mistake = Mistake(f"{key} of {name}", str(pair.value), str(other.value))
    return mistake


def _compare_order(name: str, expected: list[str], got: list[str]) -> Mistake | None:
    if expected == got:
        return None
    by_layer = "the checkpoint's names are sorted as texts: layers.10 comes before layers.2"
    likely = (
        by_layer
        if sorted(expected) == sorted(got)
        else "one tensor for each in the checkpoint, and LongRoPE's two before them"
    )
    at = next(
        (at for at, (a, b) in enumerate(zip(expected, got, strict=False)) if a != b),
        min(len(expected), len(got)),
    )
    shown = [(names[at] if at < len(names) else "nothing") for names in (expected, got)]
    return Mistake(f"tensor {at + 1} of {name}", shown[0], shown[1], likely)


_UNTOUCHED = "rows stay where they are: nothing is shuffled, swapped or transposed, only rounded"


def _compare_tensors(name: str, expected: GGUFFile, got: GGUFFile) -> Mistake | None:
    for tensor, info in expected.tensors.items():
        other = got.tensors[tensor]
        mistake = compare_values(
            f"the type of {tensor} of {name}", info.type.name, other.type.name, "`stored_as` knows it"
        )
        mistake = mistake or compare_values(f"the shape of {tensor} of {name}", info.shape, other.shape)
        if mistake is None and not np.array_equal(expected.data(tensor), got.data(tensor)):
            mistake = compare_arrays(
                f"{tensor} of {name}", expected.blocks(tensor), got.blocks(tensor), _UNTOUCHED
            )
        if mistake is not None:
            return mistake
    return None
