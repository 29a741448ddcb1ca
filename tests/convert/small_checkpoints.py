"""Small random checkpoints with the real models' quirks."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from phicourse.gguf import float32_to_bfloat16

Weights = dict[str, np.ndarray]  # uint16 arrays are bfloat16
Shapes = dict[str, tuple[int, ...]]
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
    """All tensors of a model; LongRoPE's factors are in the config, not here."""
    rng = np.random.default_rng(seed)
    return {
        name: cast(
            rng.standard_normal(shape, np.float32) * np.float32(0.02) + (len(shape) == 1),
            norm_dtype or dtype if len(shape) == 1 else dtype,
        )
        for name, shape in SHAPES[config["model_type"]](config).items()
    }


def phi3_shapes(config: dict[str, Any]) -> Shapes:
    """Name -> shape of a Phi3ForCausalLM."""
    hidden, ffn, kv_rows = sizes(config)
    layer = {
        "self_attn.qkv_proj": (hidden + 2 * kv_rows, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_up_proj": (2 * ffn, hidden),
        "mlp.down_proj": (hidden, ffn),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    return parameters(modules(config, "norm", layer), has_bias=lambda name: False)


def phi2_shapes(config: dict[str, Any]) -> Shapes:
    """Name -> shape of a PhiForCausalLM: a bias everywhere, one norm a layer."""
    hidden, ffn, kv_rows = sizes(config)
    layer = {
        **separate_attention(hidden, kv_rows, "dense"),
        "mlp.fc1": (ffn, hidden),
        "mlp.fc2": (hidden, ffn),
        "input_layernorm": (hidden,),
    }
    return parameters(modules(config, "final_layernorm", layer), has_bias=lambda name: "embed" not in name)


def phimoe_shapes(config: dict[str, Any]) -> Shapes:
    """Name -> shape of a PhiMoEForCausalLM as on the Hub: each expert apart."""
    hidden, ffn, kv_rows = sizes(config)
    layer = {
        **separate_attention(hidden, kv_rows, "o_proj"),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
        "block_sparse_moe.gate": (config["num_local_experts"], hidden),
    }
    for i in range(config["num_local_experts"]):
        for name, shape in {"w1": (ffn, hidden), "w2": (hidden, ffn), "w3": (ffn, hidden)}.items():
            layer[f"block_sparse_moe.experts.{i}.{name}"] = shape
    biased = ["norm"]
    biased += ["self_attn"] if config["attention_bias"] else []
    biased += ["lm_head"] if config["lm_head_bias"] else []
    return parameters(
        modules(config, "norm", layer), has_bias=lambda name: any(part in name for part in biased)
    )


def sizes(config: dict[str, Any]) -> tuple[int, int, int]:
    """Hidden size, size of the feed-forward part, rows of keys."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    return hidden, config["intermediate_size"], kv_heads * (hidden // heads)


def separate_attention(hidden: int, kv_rows: int, output: str) -> Shapes:
    """The four matrices of attention where they are apart."""
    rows = {"q_proj": hidden, "k_proj": kv_rows, "v_proj": kv_rows, output: hidden}
    return {f"self_attn.{name}": (n, hidden) for name, n in rows.items()}


def modules(config: dict[str, Any], last_norm: str, layer: Shapes) -> Shapes:
    """The weights of all modules: what every model has outside its layers, and the layers."""
    embedding = (config["vocab_size"], config["hidden_size"])
    head = {} if config.get("tie_word_embeddings") else {"lm_head": embedding}
    return {
        "model.embed_tokens": embedding,
        f"model.{last_norm}": embedding[1:],
        **head,
        **{
            f"model.layers.{i}.{name}": shape
            for i in range(config["num_hidden_layers"])
            for name, shape in layer.items()
        },
    }


def parameters(modules: Shapes, has_bias: Callable[[str], bool]) -> Shapes:
    """Weights, and biases of as many numbers as the weights have rows."""
    return {
        f"{name}.{kind}": shape if kind == "weight" else shape[:1]
        for name, shape in modules.items()
        for kind in (("weight", "bias") if has_bias(name) else ("weight",))
    }


def fuse_experts(weights: Weights) -> Weights:
    """The same weights as transformers 5 may save them: two tensors with all experts of a layer."""
    fused: Weights = {}
    for name, data in weights.items():
        layer, is_of_moe, rest = name.partition(".block_sparse_moe.")
        if not is_of_moe:
            fused[name] = data
        elif rest == "gate.weight":
            fused[f"{layer}.mlp.router.weight"] = data
        elif rest == "experts.0.w1.weight":
            n = sum(other.startswith(f"{layer}.block_sparse_moe.experts.") for other in weights) // 3
            gate, down, up = (
                np.stack([weights[f"{layer}{is_of_moe}experts.{i}.{kind}.weight"] for i in range(n)])
                for kind in ("w1", "w2", "w3")
            )
            fused[f"{layer}.mlp.experts.gate_up_proj"] = np.concatenate([gate, up], axis=1)
            fused[f"{layer}.mlp.experts.down_proj"] = down
    return fused


SHAPES = {"phi": phi2_shapes, "phi3": phi3_shapes, "phimoe": phimoe_shapes}
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
# Phi-3.5-MoE's config.json, made small: experts of 96, and three so that not all numbers are powers of two.
TINY_MOE: dict[str, Any] = {
    "architectures": ["PhiMoEForCausalLM"],
    "model_type": "phimoe",
    "attention_bias": True,
    "hidden_act": "silu",
    "hidden_size": 256,
    "input_jitter_noise": 0.01,
    "intermediate_size": 96,
    "lm_head_bias": True,
    "max_position_embeddings": 131072,
    "num_attention_heads": 4,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 2,
    "num_key_value_heads": 1,
    "num_local_experts": 3,
    "original_max_position_embeddings": 4096,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "long_factor": np.linspace(1, 64, 32).tolist(),
        "long_mscale": 1.243163121016122,
        "original_max_position_embeddings": 4096,
        "short_factor": np.linspace(1, 3, 32).tolist(),
        "short_mscale": 1.243163121016122,
        "type": "longrope",
    },
    "rope_theta": 10000.0,
    "router_aux_loss_coef": 0.0,
    "router_jitter_noise": 0.01,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "vocab_size": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TINY_PHI2: dict[str, Any] = {
    "architectures": ["PhiForCausalLM"],
    "model_type": "phi",
    "hidden_act": "gelu_new",
    "hidden_size": 64,
    "intermediate_size": 256,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 2048,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "num_key_value_heads": None,
    "partial_rotary_factor": 0.5,
    "rope_theta": 10000.0,
    "vocab_size": 512,
}
# What llama.cpp's converter takes for granted of a PhiForCausalLM, because all released ones are so.
UNLIKE_RELEASED: dict[str, Any] = {
    "intermediate_size": 128,
    "num_key_value_heads": 1,
    "rope_theta": 5e4,
}
