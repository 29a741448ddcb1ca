"""GGUF files of random weights, with the tensors and keys of the Phi architectures, in the converter's order."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from phicourse.gguf import GGUFWriter, ValueType, float32_to_bfloat16
from phicourse.quantize import QUANTIZERS

Shapes = list[tuple[str, tuple[int, ...]]]


def write_model(
    path: Path,
    *,
    architecture: str = "phi3",
    hidden: int = 256,
    ffn: int = 256,
    vocab: int = 40,
    layers: int = 9,
    heads: int = 4,
    kv_heads: int = 4,
    experts: int = 0,
    rows: int | None = None,
    type: str = "F16",
    tied: bool = False,
    extra: tuple[tuple[str, object, ValueType], ...] = (),
    spoil: Callable[[str, np.ndarray], None] = lambda name, x: None,
) -> Path:
    """Write a model; rows: at most so many in a matrix, for tests that look at names and columns only."""
    rng = np.random.default_rng(4)
    inside = {"phi3": phi3_layer, "phi2": phi2_layer, "phimoe": phimoe_layer}[architecture]
    kv = hidden * kv_heads // heads
    tensors: Shapes = [] if tied else [("output.weight", (vocab, hidden))]
    tensors.append(("token_embd.weight", (vocab, hidden)))
    for i in sorted(range(layers), key=str):  # layer 1, 10, 2, …
        tensors += [(f"blk.{i}.{name}", shape) for name, shape in inside(hidden, kv, ffn, experts)]
    tensors.append(("output_norm.weight", (hidden,)))
    tensors = [
        (name, (*shape[:-2], *(min(n, rows or n) for n in shape[-2:-1]), shape[-1]))
        for name, shape in tensors
    ]
    types = {name: type if len(shape) > 1 and "gate_inp" not in name else "F32" for name, shape in tensors}
    with GGUFWriter(path) as writer:
        for key, value, kind in metadata(architecture, hidden, ffn, layers, heads, kv_heads, experts) + list(
            extra
        ):
            writer.add(key, value, kind)
        for name, shape in tensors:
            writer.declare(name, shape, types[name])
        for name, shape in tensors:
            x = (rng.normal(size=shape) * 0.05).astype(np.float32)
            spoil(name, x)
            writer.write(name, stored(x, types[name]))
    return path


def stored(x: np.ndarray, type_name: str) -> np.ndarray:
    if type_name == "F32":
        return x
    return float32_to_bfloat16(x) if type_name == "BF16" else QUANTIZERS[type_name](x)


def phi3_layer(hidden: int, kv: int, ffn: int, experts: int) -> Shapes:
    return [
        ("attn_norm.weight", (hidden,)),
        ("ffn_down.weight", (hidden, ffn)),
        ("ffn_up.weight", (2 * ffn, hidden)),
        ("ffn_norm.weight", (hidden,)),
        ("attn_output.weight", (hidden, hidden)),
        ("attn_qkv.weight", (hidden + 2 * kv, hidden)),
    ]


def phi2_layer(hidden: int, kv: int, ffn: int, experts: int) -> Shapes:
    matrices = {
        "attn_q": (hidden, hidden),
        "attn_k": (kv, hidden),
        "attn_v": (kv, hidden),
        "attn_output": (hidden, hidden),
        "ffn_up": (ffn, hidden),
        "ffn_down": (hidden, ffn),
    }
    shapes: Shapes = [("attn_norm.weight", (hidden,)), ("attn_norm.bias", (hidden,))]
    for name, shape in matrices.items():
        shapes += [(f"{name}.weight", shape), (f"{name}.bias", shape[:1])]
    return shapes


def phimoe_layer(hidden: int, kv: int, ffn: int, experts: int) -> Shapes:
    return [
        *phi2_layer(hidden, kv, ffn, experts)[:-4],
        ("ffn_norm.weight", (hidden,)),
        ("ffn_norm.bias", (hidden,)),
        ("ffn_gate_inp.weight", (experts, hidden)),
        ("ffn_gate_exps.weight", (experts, ffn, hidden)),
        ("ffn_up_exps.weight", (experts, ffn, hidden)),
        ("ffn_down_exps.weight", (experts, hidden, ffn)),
    ]


def metadata(
    architecture: str, hidden: int, ffn: int, layers: int, heads: int, kv_heads: int, experts: int
) -> list[tuple[str, object, ValueType]]:
    numbers = {
        "context_length": 64,
        "embedding_length": hidden,
        "feed_forward_length": ffn,
        "block_count": layers,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "rope.dimension_count": hidden // heads,
    }
    if experts:
        numbers |= {"expert_count": experts, "expert_used_count": 2}
    epsilon = "layer_norm_epsilon" if architecture == "phi2" else "layer_norm_rms_epsilon"
    return [
        ("general.architecture", architecture, ValueType.STRING),
        ("general.file_type", 1, ValueType.UINT32),
        ("general.quantization_version", 2, ValueType.UINT32),
        *((f"{architecture}.{key}", value, ValueType.UINT32) for key, value in numbers.items()),
        (f"{architecture}.attention.{epsilon}", 1e-5, ValueType.FLOAT32),
        ("general.name", "Phi für Tests", ValueType.STRING),
    ]
