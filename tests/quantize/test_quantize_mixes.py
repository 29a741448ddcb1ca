"""The mixes against what llama-quantize (ggml 0.25.3) says about Phi models: only shapes are needed."""

from pathlib import Path

import pytest
from file_oracles import imatrix_options, llama_plan, random_importance
from small_models import write_model

from phicourse.errors import QuantizeError
from phicourse.gguf import TENSOR_TYPES, TensorInfo, tensor_type
from phicourse.quantize import (
    COPY,
    MIXES,
    QUANTIZERS,
    Overrides,
    Plan,
    PlannedTensor,
    choose_types,
    find_mix,
    quantize,
)
from phicourse.quantize.mixes import file_order, read_tensor_types
from phicourse.quantize.rules import FALLBACKS, RULES, needs_importance, role


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


# tensors, layers, query heads for a head of keys and values, experts
MODELS = {
    "Phi-3.5-mini": (phi3(3072, 32, 8192, 32064, 3 * 3072, factors=48), 32, 1, 0),
    "Phi-3-medium": (phi3(5120, 40, 17920, 32064, 60 * 128), 40, 4, 0),
    "phi-4": (phi3(5120, 40, 17920, 100352, 60 * 128), 40, 4, 0),
    "phi-4-mini": (phi3(3072, 32, 8192, 200064, 40 * 128, factors=48, tied=True), 32, 3, 0),
    "phi-2": (phi2(), 32, 1, 0),
    "Phi-3.5-MoE": (phi_moe(), 32, 4, 16),
}
# MiB of all tensors, as llama-quantize --dry-run of ggml 0.25.3 prints them
SOME_MIXES = ("Q2_K", "Q3_K_M", "Q4_0", "IQ4_XS", "Q4_K_S", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0")
SOME_SIZES = {
    "Phi-3-medium": (5255.60, 6611.35, 7530.58, 7422.17, 7604.02, 8175.11, 9507.18, 10922.50, 14146.78),
    "phi-4": (5638.54, 7028.14, 7991.66, 7872.83, 8065.10, 8636.19, 10009.94, 11469.55, 14855.33),
    "phi-4-mini": (1645.57, 2015.32, 2209.57, 2128.57, 2229.07, 2370.44, 2676.44, 3001.57, 3887.52),
    "phi-2": (1056.58, 1358.34, 1526.50, 1463.22, 1542.13, 1655.41, 1908.54, 2177.48, 2819.28),
    "Phi-3.5-MoE": (14557.25, 19103.97, 22504.60, 21530.69, 22706.60, 24171.10, 28338.76, 32766.89, 42437.56),
}
SIZES_OF_MINI = {
    **{"Q4_0": 2074.66, "Q4_1": 2296.53, "Q5_0": 2518.40, "Q5_1": 2740.27, "Q8_0": 3872.38, "Q2_K": 1437.64},
    **{"Q2_K_S": 1265.14, "Q3_K_S": 1603.18, "Q3_K_M": 1870.93, "Q3_K_L": 2098.18, "Q4_K_S": 2100.16},
    **{"Q4_K_M": 2285.04, "Q5_K_S": 2518.40, "Q5_K_M": 2626.78, "Q6_K": 2989.88, "IQ1_S": 916.67},
    **{"IQ1_M": 968.42, "IQ2_XXS": 1054.67, "IQ2_XS": 1132.67, "IQ2_S": 1280.21, "IQ2_M": 1349.21},
    **{"IQ3_XXS": 1531.46, "IQ3_XS": 1549.18, "IQ3_S": 1603.18, "IQ3_M": 1768.93, "IQ4_NL": 2086.66},
    **{"IQ4_XS": 1978.72, "TQ1_0": 859.66, "TQ2_0": 1021.66, "MXFP4_MOE": 3872.38, "Q1_0": 577.03},
    "Q2_0": 1102.66,
}
SIZES_WITH_IMPORTANCE = {"Q4_0": 2080.66, "IQ3_XXS": 1442.21, "IQ4_NL": 2074.66, "IQ4_XS": 1963.72}


def plan(model: str, mix: str, has_importance: bool = False, **overrides: object) -> Plan:
    tensors, n_layers, n_gqa, n_experts = MODELS[model]
    types = choose_types(
        tensors,
        find_mix(mix),
        n_layers=n_layers,
        n_gqa=n_gqa,
        n_experts=n_experts,
        has_importance=has_importance,
        overrides=Overrides.parse(**overrides),
    )
    by_name = {tensor.name: tensor for tensor in tensors}
    return Plan(find_mix(mix), tuple(PlannedTensor(by_name[name], type) for name, type in types.items()))


def types(model: str, mix: str, **overrides: object) -> dict[str, str]:
    return {tensor.source.name: tensor.type.name for tensor in plan(model, mix, **overrides).tensors}


def mib(plan: Plan) -> float:
    return round(plan.nbytes / 2**20, 2)


@pytest.mark.parametrize("model", SOME_SIZES)
def test_size_is_what_llama_quantize_says(model: str) -> None:
    assert tuple(mib(plan(model, mix)) for mix in SOME_MIXES) == SOME_SIZES[model]


def test_size_of_phi_3_5_mini_is_what_llama_quantize_says() -> None:
    assert {mix: mib(plan("Phi-3.5-mini", mix)) for mix in SIZES_OF_MINI} == SIZES_OF_MINI
    weighed = {mix: mib(plan("Phi-3.5-mini", mix, has_importance=True)) for mix in SIZES_OF_MINI}
    assert {mix: size for mix, size in weighed.items() if size != SIZES_OF_MINI[mix]} == {
        **SIZES_WITH_IMPORTANCE,
        "Q5_0": 2524.40,
    }


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
def test_mix_knows_its_bits_and_needs(mix: object) -> None:
    blind = plan("Phi-3.5-mini", mix.name)
    assert mix.needs_importance == bool(blind.blind) == bool(blind.needs())
    chosen = plan("Phi-3.5-mini", mix.name, has_importance=mix.needs_importance)
    assert round(chosen.bits_per_weight, 2) == mix.bits


# ---- every tensor of every mix, as llama_model_quantize chooses -------------------------------------------

# Two rows a matrix are enough; what counts are names, layers, heads, experts and the length of rows.
FILES = {
    "phi3": {"layers": 17},
    "phi3, grouped queries": {"layers": 32, "heads": 8, "kv_heads": 2},
    "phi3, three queries a group, tied": {
        "layers": 8,
        "hidden": 768,
        "heads": 6,
        "kv_heads": 2,
        "tied": True,
    },
    "phi2": {"layers": 24, "architecture": "phi2"},
    "phimoe": {"layers": 16, "architecture": "phimoe", "experts": 16, "heads": 8, "kv_heads": 2},
    "phimoe, eight experts": {"layers": 8, "architecture": "phimoe", "experts": 8},
    "phimoe, three experts": {"layers": 9, "architecture": "phimoe", "experts": 3},
    "rows of 288 and 320": {"layers": 9, "hidden": 288, "ffn": 320},
    "rows of 64 and 160": {"layers": 3, "hidden": 64, "ffn": 160, "tied": True},
    "rows of 48 and 384": {"layers": 3, "hidden": 48, "ffn": 384},
}


@pytest.mark.parametrize("weighed", ["blindly", "with importance"])
@pytest.mark.parametrize("name", FILES)
def test_every_mix_chooses_as_llama_model_quantize(name: str, weighed: str, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model.gguf", rows=2, **FILES[name])
    matrix = random_importance(model) if weighed == "with importance" else None
    options = imatrix_options(matrix, "importance.gguf") if matrix is not None else {}
    for mix in MIXES.values():
        theirs = llama_plan(model, mix.file_type, **options)
        try:
            ours = quantize(model, mix=mix.name, imatrix=matrix, dry_run=True)
        except QuantizeError as error:
            assert theirs is None and "cannot be Q1_0, whose blocks have 128" in str(error)
            continue
        assert isinstance(ours, Plan) and theirs is not None
        chosen = {tensor.source.name: tensor.type.name for tensor in ours.tensors}
        assert list(chosen.items()) == list(theirs.types.items()), mix.name
        assert bool(ours.blind) == theirs.needs_importance, mix.name


@pytest.mark.parametrize(
    ("mix", "pattern"), [("IQ3_XS", "blk.2.*=q8_0"), ("IQ2_S", "blk.1.*=q8_0"), ("Q4_K_M", "blk.[34].*=q5_0")]
)
@pytest.mark.parametrize("name", ["phi3", "phimoe", "phimoe, eight experts"])
def test_layers_are_counted_as_by_llama_model_quantize(
    name: str, mix: str, pattern: str, tmp_path: Path
) -> None:
    """Tensors that a pattern took are not counted, but models of experts go by the number in the name."""
    from quantize_oracles import tensor_overrides

    model = write_model(tmp_path / "model.gguf", rows=2, **FILES[name])
    regex, _, type_name = pattern.partition("=")
    taken = tensor_overrides((regex, type_name.upper()))
    theirs = llama_plan(model, MIXES[mix].file_type, tt_overrides=taken)
    ours = quantize(model, mix=mix, tensor_types=[pattern], dry_run=True)
    assert isinstance(ours, Plan) and theirs is not None
    assert {tensor.source.name: tensor.type.name for tensor in ours.tensors} == theirs.types


def test_rules_speak_of_what_there_is() -> None:
    assert set(RULES) <= set(MIXES)
    named = {case[0] for rules in RULES.values() for cases in rules.values() for case in cases}
    assert named | set(FALLBACKS) | set(FALLBACKS.values()) <= set(QUANTIZERS)
    assert all(TENSOR_TYPES[small].block == 32 for small in FALLBACKS.values())


def test_the_embedding_needs_importance_only_where_its_type_cannot_do_without() -> None:
    assert not needs_importance("token_embd.weight", "IQ2_S", "IQ2_M")
    assert not needs_importance("output.weight", "Q2_K", "Q2_K_S")
    assert needs_importance("token_embd.weight", "IQ2_XS", "IQ2_XS")
    assert needs_importance("blk.0.ffn_up.weight", "Q2_K", "Q2_K_S")
    assert not needs_importance("blk.0.ffn_up.weight", "Q2_K", "Q2_K")


def test_the_fused_matrix_of_phi_3_counts_as_values() -> None:
    assert role("blk.0.attn_qkv.weight") is role("blk.31.attn_v.weight")
    assert role("blk.0.attn_q.weight") is not role("blk.0.attn_v.weight")


# ---- single mixes ------------------------------------------------------------------------------------------


PLAIN_LAYERS = {4, 5, 7, 8, 10, 11, 13, 14, 16, 17, 19, 20, 22, 23, 25, 26}


@pytest.mark.parametrize(("mix", "default"), [("Q4_K_M", "Q4_K"), ("Q5_K_M", "Q5_K")])
def test_medium_mixes_spend_more_on_half_of_the_layers(mix: str, default: str) -> None:
    chosen = types("Phi-3.5-mini", mix)
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
    tensors, n_layers, *_ = MODELS["Phi-3.5-MoE"]
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
        *((mix, 64, "IQ4_NL") for mix in ("IQ1_S", "IQ2_XXS", "IQ2_M", "IQ3_XXS", "IQ3_S", "IQ4_XS")),
        *((mix, 64, "Q4_0") for mix in ("Q2_K", "Q3_K_L", "TQ1_0", "TQ2_0")),
        ("Q2_0", 32, "Q4_0"),
        ("Q2_0", 64, "Q2_0"),
        ("IQ4_NL", 48, "F16"),
        ("TQ2_0", 48, "F16"),
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
        "Phi-3.5-mini",
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
    chosen = types("Phi-3.5-mini", "Q4_K_M", pure=True)
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


def test_a_list_of_types_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "types.txt"
    path.write_text("ffn_down=q8_0  blk.0=f16\n\nblk.1=q4_k\n")
    assert read_tensor_types(path) == ["ffn_down=q8_0", "blk.0=f16", "blk.1=q4_k"]
    for wrong in ("blk.2", "=q8_0", "(=q8_0", "a=q9_0"):
        path.write_text(f"ffn_down=q8_0\n\nblk.1=q4_k {wrong}\n")
        with pytest.raises(QuantizeError, match=r"types\.txt: line 3: "):
            read_tensor_types(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(QuantizeError, match=r"types\.txt: a list of REGEX=TYPE was expected"):
        read_tensor_types(path)


def test_mix_names() -> None:
    assert find_mix("q4_k_m") is find_mix("Q4_K") is MIXES["Q4_K_M"]
    assert find_mix("Q5_K").name == "Q5_K_M" and find_mix("q3_k").name == "Q3_K_M"
    assert find_mix("copy") is COPY
    with pytest.raises(QuantizeError, match=r"unknown mix 'Q4_K_L'; known are F32, .*Q4_K_M.*, Q5_K"):
        find_mix("Q4_K_L")


def test_file_types_are_those_of_llama_cpp() -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python, the oracle")
    for mix in MIXES.values():
        prefix = "LLAMA_FTYPE_ALL_" if mix.name == "F32" else "LLAMA_FTYPE_MOSTLY_"
        assert getattr(llama_cpp, prefix + mix.name) == mix.file_type
