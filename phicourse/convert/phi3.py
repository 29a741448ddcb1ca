"""Phi3ForCausalLM as a table: which tensor goes where, which key gets which number.

Phi-3-mini, Phi-3-medium, Phi-3.5-mini, phi-4 and phi-4-mini all are of this class. No weight changes its place
within a tensor: the rows of qkv_proj (queries, keys, values) and of gate_up_proj (gate, up) stay in this order,
which llama.cpp's phi3 graph expects. Source: llama.cpp `conversion/phi.py`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phicourse.checkpoint import Checkpoint, PhiConfig
from phicourse.convert.metadata import Pair
from phicourse.errors import ConvertError
from phicourse.gguf import ValueType

ARCHITECTURE = "phi3"


@dataclass(frozen=True)
class Rule:
    """A tensor of the checkpoint, its name in GGUF ("N" stands for the layer), and the shape the config asks for."""

    source: str
    target: str
    shape: Callable[[PhiConfig], tuple[int, ...]]
    is_optional: Callable[[PhiConfig], bool] = lambda config: False


RULES = (
    Rule("model.embed_tokens.weight", "token_embd.weight", lambda c: (c.vocab_size, c.hidden_size)),
    Rule("model.layers.N.input_layernorm.weight", "blk.N.attn_norm.weight", lambda c: (c.hidden_size,)),
    Rule(
        "model.layers.N.self_attn.qkv_proj.weight",
        "blk.N.attn_qkv.weight",
        lambda c: ((c.n_heads + 2 * c.n_kv_heads) * c.head_size, c.hidden_size),
    ),
    Rule(
        "model.layers.N.self_attn.o_proj.weight",
        "blk.N.attn_output.weight",
        lambda c: (c.hidden_size, c.n_heads * c.head_size),
    ),
    Rule(
        "model.layers.N.post_attention_layernorm.weight", "blk.N.ffn_norm.weight", lambda c: (c.hidden_size,)
    ),
    Rule(
        "model.layers.N.mlp.gate_up_proj.weight",
        "blk.N.ffn_up.weight",
        lambda c: (2 * c.ffn_size, c.hidden_size),
    ),
    Rule(
        "model.layers.N.mlp.down_proj.weight", "blk.N.ffn_down.weight", lambda c: (c.hidden_size, c.ffn_size)
    ),
    Rule("model.norm.weight", "output_norm.weight", lambda c: (c.hidden_size,)),
    # With tied embeddings the file has no output matrix: readers take the embedding.
    Rule(
        "lm_head.weight",
        "output.weight",
        lambda c: (c.vocab_size, c.hidden_size),
        is_optional=lambda c: c.tie_embeddings,
    ),
)
_RULES = {rule.source: rule for rule in RULES}
# Buffers that old versions of transformers saved among the weights; they follow from the config.
_DERIVED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")
_LAYER = re.compile(r"model\.layers\.(0|[1-9]\d{0,4})\.")


@dataclass(frozen=True)
class Tensor:
    """A tensor of the GGUF file: from the checkpoint's tensor `source`, or else `values` that the config gives."""

    name: str
    shape: tuple[int, ...]
    source: str | None = None
    values: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))

    @property
    def is_always_f32(self) -> bool:
        """Whether the tensor stays F32 in every file: vectors, which are small and sensitive."""
        return len(self.shape) == 1


def tensors(checkpoint: Checkpoint) -> list[Tensor]:
    """List the file's tensors in its order: the rope factors, then the checkpoint's, shard by shard, by name.

    Raises ConvertError for a tensor that is missing, that Phi-3 does not have, or whose shape is not the config's.
    """
    config = checkpoint.config
    found = [
        _from_checkpoint(checkpoint, name, config)
        for name in checkpoint.tensors
        if not _DERIVED.fullmatch(name)
    ]
    _check_complete(checkpoint, {tensor.source for tensor in found}, config)
    return _rope_tensors(config) + found


def _from_checkpoint(checkpoint: Checkpoint, name: str, config: PhiConfig) -> Tensor:
    layer = _LAYER.match(name)
    rule = _RULES.get(name if layer is None else f"model.layers.N.{name[layer.end() :]}")
    if rule is None or (layer is not None and int(layer[1]) >= config.n_layers):
        raise ConvertError(
            f"{checkpoint.folder}: the tensor {name[:100]!r} is none of a Phi3ForCausalLM with {config.n_layers} "
            "layers; adapters, quantized and multimodal checkpoints cannot be converted"
        )
    shape, expected = checkpoint.tensors[name][1].shape, rule.shape(config)
    if shape != expected:
        raise ConvertError(
            f"{checkpoint.folder}: {name} has the shape {shape}, config.json asks for {expected}"
        )
    return Tensor(rule.target if layer is None else rule.target.replace("N", layer[1], 1), shape, name)


def _check_complete(checkpoint: Checkpoint, found: set[str | None], config: PhiConfig) -> None:
    missing = [
        name
        for rule in RULES
        if not rule.is_optional(config)
        for name in (
            [rule.source.replace("N", str(layer), 1) for layer in range(config.n_layers)]
            if ".N." in rule.source
            else [rule.source]
        )
        if name not in found
    ]
    if missing:
        more = f" and {len(missing) - 1} more tensors are" if len(missing) > 1 else " is"
        raise ConvertError(f"{checkpoint.folder}: {missing[0]}{more} missing; incomplete download?")


def _rope_tensors(config: PhiConfig) -> list[Tensor]:
    """LongRoPE's factors are weights in GGUF, one divisor for each rotated pair."""
    return [
        Tensor(name, (len(factors),), values=np.array(factors, dtype=np.float32))
        for name, factors in (
            ("rope_factors_long.weight", config.long_factor),
            ("rope_factors_short.weight", config.short_factor),
        )
        if factors is not None
    ]


def leading_pairs(config: PhiConfig) -> list[Pair]:
    """List the pairs that come before `general.type`."""
    pairs: list[Pair] = [("general.architecture", ARCHITECTURE, ValueType.STRING, None)]
    if config.long_factor is not None:
        pairs.append(("phi3.rope.scaling.attn_factor", config.attention_factor, ValueType.FLOAT32, None))
    return pairs


def hyperparameter_pairs(config: PhiConfig, file_type: int) -> list[Pair]:
    """List the numbers that describe the model, in the converter's order."""
    u32, f32 = ValueType.UINT32, ValueType.FLOAT32
    numbers: tuple[tuple[str, Any, ValueType], ...] = (
        ("phi3.context_length", config.context_length, u32),
        ("phi3.rope.scaling.original_context_length", config.original_context_length, u32),
        ("phi3.embedding_length", config.hidden_size, u32),
        ("phi3.feed_forward_length", config.ffn_size, u32),
        ("phi3.block_count", config.n_layers, u32),
        ("phi3.attention.head_count", config.n_heads, u32),
        ("phi3.attention.head_count_kv", config.n_kv_heads, u32),
        ("phi3.attention.layer_norm_rms_epsilon", config.norm_eps, f32),
        ("phi3.rope.dimension_count", config.rope_size, u32),
        ("phi3.rope.freq_base", config.rope_theta, f32),
        ("general.file_type", file_type, u32),
        # 0 says that there is no window: some readers take a missing key for one of 2047, as in Phi-3-mini-4k.
        ("phi3.attention.sliding_window", config.sliding_window or 0, u32),
        ("general.quantization_version", 2, u32),
    )
    return [(key, value, type, None) for key, value, type in numbers]
