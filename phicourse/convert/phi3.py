"""Phi3ForCausalLM as a table: which tensor goes where, which key gets which number.

Phi-3-mini, Phi-3-medium, Phi-3.5-mini, phi-4 and phi-4-mini all are of this class. No weight changes its place
within a tensor: the rows of qkv_proj (queries, keys, values) and of gate_up_proj (gate, up) stay in this order,
which llama.cpp's phi3 graph expects. Source: llama.cpp `conversion/phi.py`.
"""

from dataclasses import replace

from phicourse.checkpoint import PhiConfig
from phicourse.checkpoint.config import attention_factor_of
from phicourse.convert.architecture import Architecture, Number, Rule
from phicourse.gguf import ValueType

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


def hyperparameters(config: PhiConfig, file_type: int) -> tuple[Number, ...]:
    """List the numbers that describe the model, in the converter's order; phimoe has them, too."""
    u32, f32 = ValueType.UINT32, ValueType.FLOAT32
    name = config.architecture
    return (
        (f"{name}.context_length", config.context_length, u32),
        (f"{name}.rope.scaling.original_context_length", config.original_context_length, u32),
        (f"{name}.embedding_length", config.hidden_size, u32),
        (f"{name}.feed_forward_length", config.ffn_size, u32),
        (f"{name}.block_count", config.n_layers, u32),
        (f"{name}.attention.head_count", config.n_heads, u32),
        (f"{name}.attention.head_count_kv", config.n_kv_heads, u32),
        (f"{name}.attention.layer_norm_rms_epsilon", config.norm_eps, f32),
        (f"{name}.rope.dimension_count", config.rope_size, u32),
        (f"{name}.rope.freq_base", config.rope_theta, f32),
        ("general.file_type", file_type, u32),
        # 0 says that there is no window: some readers take a missing key for one of 2047, as in Phi-3-mini-4k.
        (f"{name}.attention.sliding_window", config.sliding_window or 0, u32),
    )


def as_reference(config: PhiConfig) -> PhiConfig:
    """Take the factor on cosine and sine as llama.cpp's converter does: by formula, whatever the config gives."""
    by_formula = attention_factor_of(config.rope_type, config.context_length, config.original_context_length)
    return replace(config, attention_factor=by_formula)


PHI3 = Architecture("phi3", "Phi3ForCausalLM", (RULES,), hyperparameters, as_reference=as_reference)
