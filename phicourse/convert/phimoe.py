"""PhiMoEForCausalLM as a table: Phi-3.5-MoE, sixteen experts in each layer, of which a router picks two.

On the Hub an expert is three matrices: w1 (gate), w2 (down) and w3 (up). transformers 5 keeps all experts of a
layer in two tensors, and may save them so; llama.cpp's converter refuses those. In GGUF each kind is stacked
to [experts, rows, columns]. Norms are LayerNorms with a bias. Source: llama.cpp `conversion/phi.py`.
"""

from phicourse.checkpoint import PhiConfig
from phicourse.convert import phi3
from phicourse.convert.architecture import Architecture, Number, Rule, weight_and_bias
from phicourse.gguf import ValueType


def _has_attention_bias(config: PhiConfig) -> bool:
    return config.attention_bias


COMMON = (
    Rule("model.embed_tokens.weight", "token_embd.weight", lambda c: (c.vocab_size, c.hidden_size)),
    *weight_and_bias("model.layers.N.input_layernorm", "blk.N.attn_norm", lambda c: (c.hidden_size,)),
    *weight_and_bias(
        "model.layers.N.self_attn.q_proj",
        "blk.N.attn_q",
        lambda c: (c.n_heads * c.head_size, c.hidden_size),
        _has_attention_bias,
    ),
    *weight_and_bias(
        "model.layers.N.self_attn.k_proj",
        "blk.N.attn_k",
        lambda c: (c.n_kv_heads * c.head_size, c.hidden_size),
        _has_attention_bias,
    ),
    *weight_and_bias(
        "model.layers.N.self_attn.v_proj",
        "blk.N.attn_v",
        lambda c: (c.n_kv_heads * c.head_size, c.hidden_size),
        _has_attention_bias,
    ),
    *weight_and_bias(
        "model.layers.N.self_attn.o_proj",
        "blk.N.attn_output",
        lambda c: (c.hidden_size, c.n_heads * c.head_size),
        _has_attention_bias,
    ),
    *weight_and_bias("model.layers.N.post_attention_layernorm", "blk.N.ffn_norm", lambda c: (c.hidden_size,)),
    *weight_and_bias("model.norm", "output_norm", lambda c: (c.hidden_size,)),
    Rule(
        "lm_head.weight",
        "output.weight",
        lambda c: (c.vocab_size, c.hidden_size),
        is_optional=lambda c: c.tie_embeddings,
    ),
    Rule("lm_head.bias", "output.bias", lambda c: (c.vocab_size,), is_optional=lambda c: not c.output_bias),
)
HUB = (
    Rule(
        "model.layers.N.block_sparse_moe.gate.weight",
        "blk.N.ffn_gate_inp.weight",
        lambda c: (c.n_experts, c.hidden_size),
    ),
    Rule(
        "model.layers.N.block_sparse_moe.experts.E.w1.weight",
        "blk.N.ffn_gate_exps.weight",
        lambda c: (c.n_experts, c.ffn_size, c.hidden_size),
    ),
    Rule(
        "model.layers.N.block_sparse_moe.experts.E.w2.weight",
        "blk.N.ffn_down_exps.weight",
        lambda c: (c.n_experts, c.hidden_size, c.ffn_size),
    ),
    Rule(
        "model.layers.N.block_sparse_moe.experts.E.w3.weight",
        "blk.N.ffn_up_exps.weight",
        lambda c: (c.n_experts, c.ffn_size, c.hidden_size),
    ),
)
FUSED = (
    Rule(
        "model.layers.N.mlp.router.weight",
        "blk.N.ffn_gate_inp.weight",
        lambda c: (c.n_experts, c.hidden_size),
    ),
    Rule(
        "model.layers.N.mlp.experts.gate_up_proj",
        "blk.N.ffn_gate_exps.weight",
        lambda c: (c.n_experts, c.ffn_size, c.hidden_size),
        part=(0, 2),
    ),
    Rule(
        "model.layers.N.mlp.experts.down_proj",
        "blk.N.ffn_down_exps.weight",
        lambda c: (c.n_experts, c.hidden_size, c.ffn_size),
    ),
    Rule(
        "model.layers.N.mlp.experts.gate_up_proj",
        "blk.N.ffn_up_exps.weight",
        lambda c: (c.n_experts, c.ffn_size, c.hidden_size),
        part=(1, 2),
    ),
)


def hyperparameters(config: PhiConfig, file_type: int) -> tuple[Number, ...]:
    """List the numbers that describe the model, in the converter's order."""
    return (
        *phi3.hyperparameters(config, file_type),
        ("phimoe.expert_used_count", config.n_experts_used, ValueType.UINT32),
        ("phimoe.expert_count", config.n_experts, ValueType.UINT32),
    )


def own(config: PhiConfig) -> tuple[Number, ...]:
    """List what the model's own router and rotation need; llama.cpp's are others (softmax, LongRoPE's formula)."""
    return (
        ("phicourse.phimoe.router_jitter", config.router_jitter, ValueType.FLOAT32),
        *(
            (f"phicourse.phimoe.{name}", value, ValueType.FLOAT32)
            for name, value in (("short_mscale", config.short_mscale), ("long_mscale", config.long_mscale))
            if value is not None
        ),
    )


PHIMOE = Architecture(
    "phimoe",
    "PhiMoEForCausalLM",
    (COMMON + HUB, COMMON + FUSED),
    hyperparameters,
    own=own,
    as_reference=phi3.as_reference,
    # The experts come first in a layer, whatever they are called.
    place=lambda name: name.replace(".mlp.", ".block_sparse_moe."),
)
