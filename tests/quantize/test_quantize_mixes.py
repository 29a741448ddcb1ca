"""The mixes against what llama-quantize says about real Phi models: only shapes are needed."""

import pytest

from phicourse.errors import QuantizeError
from phicourse.gguf import TensorInfo, tensor_type
from phicourse.quantize import MIXES, Overrides, choose_types, find_mix
from phicourse.quantize.files import Plan, PlannedTensor
from phicourse.quantize.mixes import file_order


def info(name: str, *shape: int) -> TensorInfo:
    n_weights = 1
    for size in shape:
        n_weights *= size
    type = tensor_type("F16" if len(shape) > 1 else "F32")
    return TensorInfo(name, shape, type, 0, n_weights * type.bytes)


def phi3(
    hidden: int,
    layers: int,
    ffn: int,
    vocab: int,
    qkv: int,
    *,
    factors: int = 0,
    tied: bool = False,
) -> list[TensorInfo]:
    """A Phi-3 model's tensors; factors: numbers in each of the two LongRoPE tables."""
    tensors = [info("token_embd.weight", vocab, hidden), info("output_norm.weight", hidden)]
    if not tied:
        tensors.append(info("output.weight", vocab, hidden))
    if factors:
        tensors += [info(f"rope_factors_{which}.weight", factors) for which in ("long", "short")]
    for i in range(layers):
        tensors += [
            info(f"blk.{i}.attn_norm.weight", hidden),
            info(f"blk.{i}.attn_qkv.weight", qkv, hidden),
            info(f"blk.{i}.attn_output.weight", hidden, hidden),
            info(f"blk.{i}.ffn_norm.weight", hidden),
            info(f"blk.{i}.ffn_up.weight", 2 * ffn, hidden),
            info(f"blk.{i}.ffn_down.weight", hidden, ffn),
        ]
    return tensors


def phi2() -> list[TensorInfo]:
    tensors = [info("token_embd.weight", 51200, 2560), info("output.weight", 51200, 2560)]
    tensors += [info("output.bias", 51200), info("output_norm.weight", 2560), info("output_norm.bias", 2560)]
    for i in range(32):
        matrices = {name: (2560, 2560) for name in ("attn_q", "attn_k", "attn_v", "attn_output")}
        matrices |= {"ffn_up": (10240, 2560), "ffn_down": (2560, 10240)}
        tensors += [info(f"blk.{i}.attn_norm.{part}", 2560) for part in ("weight", "bias")]
        for name, shape in matrices.items():
            tensors += [info(f"blk.{i}.{name}.weight", *shape), info(f"blk.{i}.{name}.bias", shape[0])]
    return tensors


def phi_moe() -> list[TensorInfo]:
    hidden, ffn, experts, vocab = 4096, 6400, 16, 32064
    tensors = [info("token_embd.weight", vocab, hidden), info("output.weight", vocab, hidden)]
    tensors += [
        info("output.bias", vocab),
        info("output_norm.weight", hidden),
        info("output_norm.bias", hidden),
    ]
    tensors += [info(f"rope_factors_{which}.weight", 64) for which in ("long", "short")]
    for i in range(32):
        matrices = {"attn_q": hidden, "attn_k": 1024, "attn_v": 1024, "attn_output": hidden}
        for name, rows in matrices.items():
            tensors += [info(f"blk.{i}.{name}.weight", rows, hidden), info(f"blk.{i}.{name}.bias", rows)]
        for name in ("attn_norm", "ffn_norm"):
            tensors += [info(f"blk.{i}.{name}.{part}", hidden) for part in ("weight", "bias")]
        gate = info(f"blk.{i}.ffn_gate_inp.weight", experts, hidden)
        tensors.append(TensorInfo(gate.name, gate.shape, tensor_type("F32"), 0, 2 * gate.nbytes))
        for name, shape in {"gate": (ffn, hidden), "up": (ffn, hidden), "down": (hidden, ffn)}.items():
            tensors.append(info(f"blk.{i}.ffn_{name}_exps.weight", experts, *shape))
    return tensors


MODELS = {
    "Phi-3-mini": (phi3(3072, 32, 8192, 32064, 3 * 3072), 32),  # Phi-3.5-mini has 384 bytes of factors more
    "Phi-3-medium": (phi3(5120, 40, 17920, 32064, 60 * 128), 40),
    "phi-4": (phi3(5120, 40, 17920, 100352, 60 * 128), 40),
    "phi-4-mini": (phi3(3072, 32, 8192, 200064, 40 * 128, factors=48, tied=True), 32),
    "phi-2": (phi2(), 32),
    "Phi-3.5-MoE": (phi_moe(), 32),
}
# MiB of all tensors, as llama-quantize --dry-run of ggml 0.25.3 prints them
SIZES = {
    "Phi-3-mini": {
        "Q4_0": 2074.66,
        "Q4_1": 2296.53,
        "Q5_0": 2518.40,
        "Q5_1": 2740.27,
        "Q8_0": 3872.38,
        "Q4_K_S": 2100.16,
        "Q4_K_M": 2285.03,
        "Q5_K_S": 2518.40,
        "Q5_K_M": 2626.78,
        "Q6_K": 2989.88,
    },
    "Phi-3-medium": {
        "Q4_0": 7530.58,
        "Q4_K_S": 7604.02,
        "Q4_K_M": 8175.11,
        "Q5_K_M": 9507.18,
        "Q6_K": 10922.50,
        "Q8_0": 14146.78,
    },
    "phi-4": {
        "Q4_0": 7991.66,
        "Q4_K_S": 8065.10,
        "Q4_K_M": 8636.19,
        "Q5_K_M": 10009.94,
        "Q6_K": 11469.55,
        "Q8_0": 14855.33,
    },
    "phi-4-mini": {
        "Q4_0": 2209.57,
        "Q4_K_S": 2229.07,
        "Q4_K_M": 2370.44,
        "Q5_K_M": 2676.44,
        "Q6_K": 3001.57,
        "Q8_0": 3887.52,
    },
    "phi-2": {
        "Q4_0": 1526.50,
        "Q4_K_S": 1542.13,
        "Q4_K_M": 1655.41,
        "Q5_K_M": 1908.54,
        "Q6_K": 2177.48,
        "Q8_0": 2819.28,
    },
    "Phi-3.5-MoE": {
        "Q4_0": 22504.60,
        "Q4_K_S": 22706.60,
        "Q4_K_M": 24171.10,
        "Q5_K_M": 28338.76,
        "Q6_K": 32766.89,
        "Q8_0": 42437.56,
    },
}


def plan(model: str, mix: str, **overrides: object) -> Plan:
    tensors, n_layers = MODELS[model]
    n_experts = 16 if model == "Phi-3.5-MoE" else 0
    types = choose_types(
        tensors, find_mix(mix), n_layers=n_layers, n_experts=n_experts, overrides=Overrides.parse(**overrides)
    )
    by_name = {tensor.name: tensor for tensor in tensors}
    return Plan(find_mix(mix), tuple(PlannedTensor(by_name[name], type) for name, type in types.items()))


def types(model: str, mix: str, **overrides: object) -> dict[str, str]:
    return {tensor.source.name: tensor.type.name for tensor in plan(model, mix, **overrides).tensors}


@pytest.mark.parametrize(("model", "mix"), [(model, mix) for model in SIZES for mix in SIZES[model]])
def test_size_is_what_llama_quantize_says(model: str, mix: str) -> None:
    assert round(plan(model, mix).nbytes / 2**20, 2) == SIZES[model][mix]


@pytest.mark.parametrize(("mix", "bits"), [("Q4_0", 4.55), ("Q8_0", 8.50), ("Q4_K_M", 5.02)])
def test_bits_per_weight_of_phi_3_mini(mix: str, bits: float) -> None:
    assert round(plan("Phi-3-mini", mix).bits_per_weight, 2) == bits


PLAIN_LAYERS = {4, 5, 7, 8, 10, 11, 13, 14, 16, 17, 19, 20, 22, 23, 25, 26}


@pytest.mark.parametrize(("mix", "default"), [("Q4_K_M", "Q4_K"), ("Q5_K_M", "Q5_K")])
def test_medium_mixes_spend_more_on_half_of_the_layers(mix: str, default: str) -> None:
    chosen = types("Phi-3-mini", mix)
    for part in ("attn_qkv", "ffn_down"):
        plain = {i for i in range(32) if chosen[f"blk.{i}.{part}.weight"] == default}
        assert plain == PLAIN_LAYERS
        assert {chosen[f"blk.{i}.{part}.weight"] for i in range(32)} == {default, "Q6_K"}
    assert chosen["output.weight"] == "Q6_K" and chosen["token_embd.weight"] == default
    assert chosen["blk.0.attn_output.weight"] == chosen["blk.0.ffn_up.weight"] == default
    assert chosen["blk.0.attn_norm.weight"] == "F32"


def test_small_mix_spends_more_on_the_first_layers() -> None:
    chosen = types("Phi-3-medium", "Q4_K_S")
    better = {part: [i for i in range(40) if chosen[f"blk.{i}.{part}.weight"] == "Q5_K"] for part in PARTS}
    assert better == {"attn_qkv": [0, 1, 2, 3], "ffn_down": [0, 1, 2, 3, 4], "ffn_up": []}


PARTS = ("attn_qkv", "ffn_down", "ffn_up")


def test_token_embedding_takes_the_output_rule_where_it_is_tied() -> None:
    assert types("phi-4-mini", "Q4_K_M")["token_embd.weight"] == "Q6_K"
    assert types("phi-4-mini", "Q8_0")["token_embd.weight"] == "Q8_0"
    assert types("phi-4-mini", "Q4_K_M", output_tensor_type="q5_k")["token_embd.weight"] == "Q5_K"
    assert types("phi-4-mini", "Q4_K_M", pure=True)["token_embd.weight"] == "Q4_K"


def test_eight_experts_get_bigger_attention() -> None:
    tensors, n_layers = MODELS["Phi-3.5-MoE"]
    chosen = choose_types(tensors, find_mix("Q4_K_M"), n_layers=n_layers, n_experts=8)
    assert chosen["blk.5.attn_v.weight"].name == chosen["blk.5.attn_k.weight"].name == "Q8_0"
    assert chosen["blk.5.attn_output.weight"].name == "Q5_K"
    assert chosen["blk.5.attn_q.weight"].name == "Q4_K"
    assert chosen["blk.5.ffn_gate_inp.weight"].name == "F32"


@pytest.mark.parametrize(
    ("mix", "columns", "expected"),
    [
        ("Q4_K_M", 64, "Q5_0"),
        ("Q5_K_M", 64, "Q5_1"),
        ("Q6_K", 64, "Q8_0"),
        ("Q4_0", 48, "F16"),
        ("Q4_K_M", 48, "F16"),
        ("F16", 48, "F16"),
    ],
)
def test_rows_that_blocks_do_not_divide_fall_back(mix: str, columns: int, expected: str) -> None:
    tensors = [info("blk.0.ffn_up.weight", 8, columns), info("output.weight", 8, 256)]
    chosen = choose_types(tensors, find_mix(mix), n_layers=4)
    assert chosen["blk.0.ffn_up.weight"].name == expected


def test_matrices_of_one_row_and_small_tensors_stay() -> None:
    names = {
        "blk.0.attn_q.weight": (1, 256),
        "blk.0.attn_q_norm.weight": (4, 256),
        "blk.0.ffn_gate_inp.weight": (4, 256),
        "blk.0.ffn_up.scale": (4, 256),
        "blk.0.attn_q.bias": (256,),
        "rope_factors_long.weight": (48,),
    }
    tensors = [info(name, *shape) for name, shape in names.items()]
    chosen = choose_types(tensors, find_mix("Q4_K_M"), n_layers=1)
    assert {name: type for name, type in chosen.items()} == {t.name: t.type for t in tensors}


def test_order_is_by_number_then_name() -> None:
    names = [
        "output.weight",
        "blk.10.attn_q.weight",
        "blk.2.ffn_up.weight",
        "blk.2.attn_q.weight",
        "a.weight",
    ]
    assert sorted(names, key=file_order) == [names[4], names[0], names[3], names[2], names[1]]


def test_overrides_decide_in_order() -> None:
    chosen = types(
        "Phi-3-mini",
        "Q4_K_M",
        tensor_types=["ffn_down=q8_0", r"\.[0-3]\..*=Q5_K", "output=f16"],
        token_embedding_type="q4_0",
        leave_output_tensor=True,
    )
    assert chosen["blk.2.ffn_down.weight"] == "Q8_0"
    assert chosen["blk.2.attn_qkv.weight"] == "Q5_K"
    assert chosen["blk.20.attn_output.weight"] == "F16"
    assert chosen["token_embd.weight"] == "Q4_0"
    assert chosen["output.weight"] == "F16"


def test_pure_has_no_exceptions() -> None:
    chosen = types("Phi-3-mini", "Q4_K_M", pure=True)
    assert {type for name, type in chosen.items() if "norm" not in name and "rope" not in name} == {"Q4_K"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"tensor_types": ["ffn_down"]}, "expected REGEX=TYPE"),
        ({"tensor_types": ["=q8_0"]}, "expected REGEX=TYPE"),
        ({"tensor_types": ["(=q8_0"]}, "no regular expression"),
        ({"tensor_types": ["ffn=q9_0"]}, "'q9_0'; known types are F32, F16"),
        ({"output_tensor_type": "Q4_K_M"}, "'Q4_K_M'; known types are"),
        ({"token_embedding_type": "Q8_K"}, "'Q8_K'; known types are"),
    ],
)
def test_bad_overrides_are_named(overrides: dict[str, object], message: str) -> None:
    with pytest.raises(QuantizeError, match=message.replace("(", r"\(")):
        Overrides.parse(**overrides)


def test_type_that_was_asked_for_must_divide() -> None:
    with pytest.raises(QuantizeError, match=r"output\.weight: rows of 64 weights cannot be Q6_K"):
        choose_types(
            [info("output.weight", 8, 64)],
            find_mix("Q4_0"),
            n_layers=1,
            overrides=Overrides.parse(output_tensor_type="q6_k"),
        )


def test_mix_names() -> None:
    assert find_mix("q4_k_m") is find_mix("Q4_K") is MIXES["Q4_K_M"]
    assert find_mix("Q5_K").name == "Q5_K_M"
    with pytest.raises(QuantizeError, match=r"unknown mix 'Q4_K_L'; known are F32, .*Q4_K_M.*, Q5_K"):
        find_mix("Q4_K_L")


def test_file_types_are_those_of_llama_cpp() -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python, the oracle")
    for mix in MIXES.values():
        prefix = "LLAMA_FTYPE_ALL_" if mix.name == "F32" else "LLAMA_FTYPE_MOSTLY_"
        assert getattr(llama_cpp, prefix + mix.name) == mix.file_type
