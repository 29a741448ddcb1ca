"""PhiForCausalLM as a table: Phi-1, Phi-1.5 and Phi-2.

One LayerNorm a layer, whose output goes to attention and to the feed-forward part at once, and a bias
everywhere. Queries, keys and values are matrices of their own. Source: llama.cpp `conversion/phi.py`.
"""

from dataclasses import replace

from phicourse.checkpoint import PhiConfig
from phicourse.convert.architecture import Architecture, Number, Rule, weight_and_bias
from phicourse.gguf import ValueType

RULES = (
    Rule("model.embed_tokens.weight", "token_embd.weight", lambda c: (c.vocab_size, c.hidden_size)),
    *weight_and_bias("model.layers.N.input_layernorm", "blk.N.attn_norm", lambda c: (c.hidden_size,)),
    *weight_and_bias(
        "model.layers.N.self_attn.q_proj", "blk.N.attn_q", lambda c: (c.n_heads * c.head_size, c.hidden_size)
    ),
    *weight_and_bias(
        "model.layers.N.self_attn.k_proj",
        "blk.N.attn_k",
        lambda c: (c.n_kv_heads * c.head_size, c.hidden_size),
    ),
    *weight_and_bias(
        "model.layers.N.self_attn.v_proj",
        "blk.N.attn_v",
        lambda c: (c.n_kv_heads * c.head_size, c.hidden_size),
    ),
    *weight_and_bias(
        "model.layers.N.self_attn.dense",
        "blk.N.attn_output",
        lambda c: (c.hidden_size, c.n_heads * c.head_size),
    ),
    *weight_and_bias("model.layers.N.mlp.fc1", "blk.N.ffn_up", lambda c: (c.ffn_size, c.hidden_size)),
    *weight_and_bias("model.layers.N.mlp.fc2", "blk.N.ffn_down", lambda c: (c.hidden_size, c.ffn_size)),
    *weight_and_bias("model.final_layernorm", "output_norm", lambda c: (c.hidden_size,)),
    Rule(
        "lm_head.weight",
        "output.weight",
        lambda c: (c.vocab_size, c.hidden_size),
        is_optional=lambda c: c.tie_embeddings,
    ),
    Rule("lm_head.bias", "output.bias", lambda c: (c.vocab_size,)),
)


def hyperparameters(config: PhiConfig, file_type: int) -> tuple[Number, ...]:
    """List the numbers that describe the model, in the converter's order."""
    u32, f32 = ValueType.UINT32, ValueType.FLOAT32
    usual_theta = config.rope_theta == 10000.0  # which readers take for granted
    return (
        ("phi2.context_length", config.context_length, u32),
        ("phi2.embedding_length", config.hidden_size, u32),
        ("phi2.feed_forward_length", config.ffn_size, u32),
        ("phi2.block_count", config.n_layers, u32),
        ("phi2.attention.head_count", config.n_heads, u32),
        ("phi2.attention.head_count_kv", config.n_kv_heads, u32),
        ("phi2.attention.layer_norm_epsilon", config.norm_eps, f32),
        ("phi2.rope.dimension_count", config.rope_size, u32),
        *(() if usual_theta else (("phi2.rope.freq_base", config.rope_theta, f32),)),
        ("general.file_type", file_type, u32),
        # Stands before the tokenizer's own keys; a tokenizer that says otherwise overrules it.
        ("tokenizer.ggml.add_bos_token", False, ValueType.BOOL),
    )


def as_reference(config: PhiConfig) -> PhiConfig:
    """Take three numbers as llama.cpp's converter does, which knows only those of the released models."""
    return replace(config, ffn_size=4 * config.hidden_size, n_kv_heads=config.n_heads, rope_theta=10000.0)


PHI2 = Architecture("phi2", "PhiForCausalLM", (RULES,), hyperparameters, as_reference=as_reference)
