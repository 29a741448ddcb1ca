"""A Phi with random weights and phi-tiny's tokenizer: seconds to make, no training, every part of a real one."""

import json
import shutil
from pathlib import Path

import numpy as np

TOKENIZER_FILES = (
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
)
VOCAB = 2048
HEAD_SIZE = 64


def write_random_phi(
    folder: Path,
    tokenizer: Path,
    *,
    hidden: int = 256,
    layers: int = 1,
    ffn: int = 256,
    context: int = 512,
    seed: int = 0,
) -> Path:
    """A Phi3ForCausalLM checkpoint in BF16 with LongRoPE; `tokenizer`: a folder with its files."""
    folder.mkdir(parents=True, exist_ok=True)
    heads, head_size = hidden // HEAD_SIZE, HEAD_SIZE
    config = {
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "vocab_size": VOCAB,
        "max_position_embeddings": context,
        "original_max_position_embeddings": context // 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": {
            "type": "longrope",
            "short_factor": [1.0 + 0.01 * i for i in range(head_size // 2)],
            "long_factor": [1.0 + 0.1 * i for i in range(head_size // 2)],
        },
        "hidden_act": "silu",
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2032,
        "pad_token_id": 2032,
    }
    (folder / "config.json").write_text(json.dumps(config))
    for name in TOKENIZER_FILES:
        shutil.copy(tokenizer / name, folder / name)
    write_safetensors(folder / "model.safetensors", random_weights(hidden, layers, ffn, seed))
    return folder


def random_weights(hidden: int, layers: int, ffn: int, seed: int) -> dict[str, np.ndarray]:
    """Weights whose activations neither vanish nor explode, by Hugging Face name, float32."""
    rng = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return (rng.standard_normal((rows, columns), np.float32) / np.sqrt(columns)).astype(np.float32)

    weights = {
        "model.embed_tokens.weight": matrix(VOCAB, hidden) * 16,
        "lm_head.weight": matrix(VOCAB, hidden) * 3,
    }
    weights["model.norm.weight"] = np.ones(hidden, np.float32)
    for i in range(layers):
        layer = f"model.layers.{i}."
        weights[layer + "self_attn.qkv_proj.weight"] = matrix(2 * hidden, hidden)
        weights[layer + "self_attn.o_proj.weight"] = matrix(hidden, hidden)
        weights[layer + "mlp.gate_up_proj.weight"] = matrix(2 * ffn, hidden)
        weights[layer + "mlp.down_proj.weight"] = matrix(hidden, ffn)
        weights[layer + "input_layernorm.weight"] = np.ones(hidden, np.float32)
        weights[layer + "post_attention_layernorm.weight"] = np.ones(hidden, np.float32)
    return weights


def write_safetensors(path: Path, weights: dict[str, np.ndarray]) -> None:
    """Write float32 arrays as BF16, without the safetensors package."""
    header, blobs, at = {}, [], 0
    for name, array in sorted(weights.items()):
        bits = array.view(np.uint32)
        raw = ((bits + 0x8000) >> 16).astype("<u2").tobytes()
        header[name] = {"dtype": "BF16", "shape": list(array.shape), "data_offsets": [at, at + len(raw)]}
        blobs.append(raw)
        at += len(raw)
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    path.write_bytes(len(head).to_bytes(8, "little") + head + b"".join(blobs))
