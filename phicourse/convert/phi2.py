"""PhiForCausalLM as a table: Phi-1, Phi-1.5 and Phi-2.

One LayerNorm a layer, whose output goes to attention and to the feed-forward part at once, and a bias
everywhere. Queries, keys and values are matrices of their own. Source: llama.cpp `conversion/phi.py`.
"""

from dataclasses import replace

from phicourse.checkpoint import PhiConfig
from phicourse.convert.architecture import Architecture, Number, Rule
from phicourse.gguf import ValueType

RULES = (
    Rule("model.embed_tokens.weight", "token_embd.weight", lambda c: (c.vocab_size, c.hidden_size)),
    Rule("model.layers.N.input_layernorm.weight", "blk.N.attn_norm.weight", lambda c: (c.hidden_size,)),
    Rule("model.layers.N.input_layernorm.bias", "blk.N.attn_norm.bias", lambda c: (c.hidden_size,)),
    Rule(
        "model.layers.N.self_attn.q_proj.weight",
        "blk.N.attn_q.weight",
        lambda c: (c.n_heads * c.head_size, c.hidden_size),
    ),
    Rule("model.layers.N.self_attn.q_proj.bias", "blk.N.attn_q.bias", lambda c: (c.n_heads * c.head_size,)),
    Rule(
        "model.layers.N.self_attn.k_proj.weight",
        "blk.N.attn_k.weight",
        lambda c: (c.n_kv_heads * c.head_size, c.hidden_size),
    ),
    Rule(
        "model.layers.N.self_attn.k_proj.bias", "blk.N.attn_k.bias", lambda c: (c.n_kv_heads * c.head_size,)
    ),
    Rule(
        "model.layers.N.self_attn.v_proj.weight",
        "blk.N.attn_v.weight",
        lambda c: (c.n_kv_heads * c.head_size, c.hidden_size),
    ),
    Rule(
        "model.layers.N.self_attn.v_proj.bias", "blk.N.attn_v.bias", lambda c: (c.n_kv_heads * c.head_size,)
    ),
    Rule(
        "model.layers.N.self_attn.dense.weight",
        "blk.N.attn_output.weight",
        lambda c: (c.hidden_size, c.n_heads * c.head_size),
    ),
    Rule("model.layers.N.self_attn.dense.bias", "blk.N.attn_output.bias", lambda c: (c.hidden_size,)),
    Rule("model.layers.N.mlp.fc1.weight", "blk.N.ffn_up.weight", lambda c: (c.ffn_size, c.hidden_size)),
    Rule("model.layers.N.mlp.fc1.bias", "blk.N.ffn_up.bias", lambda c: (c.ffn_size,)),
    Rule("model.layers.N.mlp.fc2.weight", "blk.N.ffn_down.weight", lambda c: (c.hidden_size, c.ffn_size)),
    Rule("model.layers.N.mlp.fc2.bias", "blk.N.ffn_down.bias", lambda c: (c.hidden_size,)),
    Rule("model.final_layernorm.weight", "output_norm.weight", lambda c: (c.hidden_size,)),
    Rule("model.final_layernorm.bias", "output_norm.bias", lambda c: (c.hidden_size,)),
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
