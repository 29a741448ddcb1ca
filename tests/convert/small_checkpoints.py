"""Small random checkpoints with the real models' quirks."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from phicourse.gguf import float32_to_bfloat16

Weights = dict[str, np.ndarray]  # uint16 arrays are bfloat16
WriteCheckpoint = Callable[..., Path]


def write_safetensors(path: Path, weights: Weights) -> None:
    """Write tensors in the order given, whatever their names."""
    names = {np.dtype("<u2"): "BF16", np.dtype("<f2"): "F16", np.dtype("<f4"): "F32", np.dtype("<f8"): "F64"}
    header, offset = {}, 0
    for name, data in weights.items():
        dtype = names.get(data.dtype, str(data.dtype).upper().replace("INT", "I"))
        header[name] = {"dtype": dtype, "shape": data.shape, "data_offsets": [offset, offset + data.nbytes]}
        offset += data.nbytes
    raw = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    raw += b" " * (-len(raw) % 8)
    path.write_bytes(
        struct.pack("<Q", len(raw)) + raw + b"".join(data.tobytes() for data in weights.values())
    )


def cast(x: np.ndarray, dtype: str) -> np.ndarray:
    """Round float32 to BF16 (as its bits), F16, F32 or F64."""
    return (
        float32_to_bfloat16(x)
        if dtype == "BF16"
        else x.astype({"F16": "<f2", "F32": "<f4", "F64": "<f8"}[dtype])
    )


def random_weights(
    config: dict[str, Any], dtype: str = "BF16", norm_dtype: str | None = None, seed: int = 0
) -> Weights:
    """All tensors of a Phi3ForCausalLM; LongRoPE's factors are in the config, not here."""
    rng = np.random.default_rng(seed)
    hidden, ffn, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    kv_rows = config["num_key_value_heads"] * (hidden // heads)
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], hidden), "model.norm.weight": (hidden,)}
    if not config.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    for i in range(config["num_hidden_layers"]):
        shapes |= {
            f"model.layers.{i}.{name}.weight": shape
            for name, shape in {
                "self_attn.qkv_proj": (hidden + 2 * kv_rows, hidden),
                "self_attn.o_proj": (hidden, hidden),
                "mlp.gate_up_proj": (2 * ffn, hidden),
                "mlp.down_proj": (hidden, ffn),
                "input_layernorm": (hidden,),
                "post_attention_layernorm": (hidden,),
            }.items()
        }
    return {
        name: cast(
            rng.standard_normal(shape, np.float32) * np.float32(0.02) + (len(shape) == 1),
            norm_dtype or dtype if len(shape) == 1 else dtype,
        )
        for name, shape in shapes.items()
    }


TINY: dict[str, Any] = {
    "architectures": ["Phi3ForCausalLM"],
    "model_type": "phi3",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 11,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 512,
    "max_position_embeddings": 256,
    "original_max_position_embeddings": 64,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [1.0, 2.0, 4.0, 8.0],
    },
    "rms_norm_eps": 1e-6,
    "sliding_window": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": True,
}
