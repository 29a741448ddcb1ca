"""The C++ engine against the readable model in PyTorch: the same logits, on every instruction set.

Tolerances, as parts of the largest logit:

    weights and cache F32   1e-5: only the order of sums differs (measured 2e-6); also for types without kernels
                                  for their codes, whose rows the engine turns into floats
    cache F16               2e-3: keys and values are rounded to 11 bits (measured 1.1e-3); of models with
                            experts the median of the tokens, as a rounding may pick another expert
    quantized weights       0.1:  activations are rounded to 8 bits before they meet these weights, torch on the
                                  same weights keeps them in float32 (measured 0.06)

In a trained model, where weights have 4 bits or more, distributions change by less than 1e-3 in the mean
Kullback-Leibler divergence (measured 5e-4). Among experts a rounding may send a token to another one, and random
experts have nothing in common: there all of them are made nearly alike, and 5e-3 is the bound (measured 3e-3, and
1.5e-3 for a Phi-3 of such weights, which hand every rounding on).
"""

import gc
import os
import subprocess
import sys
import threading
from collections import defaultdict
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
native = pytest.importorskip("phicourse.native", reason="the compiled module is not built")

from phicourse.checkpoint import Checkpoint, PhiConfig  # noqa: E402
from phicourse.generate.backends import ENGINE_TYPES  # noqa: E402
from phicourse.gguf import tensor_type  # noqa: E402
from phicourse.model import Phi  # noqa: E402
from phicourse.model.load import gguf_places, load_checkpoint  # noqa: E402
from phicourse.quantize.grids import hand_over  # noqa: E402

EXACT, HALVES, CODES = 1e-5, 2e-3, 0.1
ROUNDED = 2e-2  # AVX-512, as llama.cpp, rounds vectors that meet BF16 weights to BF16: 8 bits
DIVERGENCE = 1e-3
DEQUANTIZED = ("NVFP4", "Q1_0", "Q2_0")  # the engine turns rows of these into floats
QUANTIZED = tuple(sorted(ENGINE_TYPES - {"F32", "F16", "BF16", *DEQUANTIZED}))
FAMILIES = (
    "Q8_0",
    "Q4_1",
    "Q2_K",
    "Q3_K",
    "Q4_K",
    "Q6_K",
    "IQ4_XS",
    "TQ2_0",
)  # one of each kind, not slow to make

PLAIN = PhiConfig(
    architecture="phi3",
    hidden_size=256,
    n_layers=2,
    n_heads=8,
    n_kv_heads=8,
    head_size=32,
    ffn_size=512,
    vocab_size=300,
    context_length=256,
    original_context_length=64,
    norm_eps=1e-5,
    rope_theta=10000.0,
    rope_size=32,
)
LONGROPE = replace(
    PLAIN,
    short_factor=tuple(1 + 0.05 * i for i in range(16)),
    long_factor=tuple(1 + 0.9 * i for i in range(16)),
    attention_factor=1.19,
)
PHI2 = replace(PLAIN, architecture="phi2", rope_size=12, attention_bias=True, output_bias=True)
PHIMOE = replace(
    LONGROPE,
    architecture="phimoe",
    n_kv_heads=2,
    ffn_size=256,
    attention_bias=True,
    output_bias=True,
    n_experts=6,
    n_experts_used=2,
    router_jitter=0.1,
    short_mscale=1.1,
    long_mscale=1.3,
)
CONFIGS = {
    "plain": PLAIN,
    "grouped queries": replace(PLAIN, n_kv_heads=2),
    "partial rotary": replace(PLAIN, rope_size=24),
    "longrope": LONGROPE,
    "window": replace(PLAIN, sliding_window=11),
    "tied": replace(PLAIN, tie_embeddings=True),
    "all": replace(LONGROPE, n_kv_heads=4, sliding_window=50),
    "odd sizes": replace(
        PLAIN, hidden_size=66, n_heads=3, n_kv_heads=1, head_size=22, rope_size=10, ffn_size=75
    ),
    "phi2": PHI2,
    "phi2 tied, grouped queries": replace(PHI2, n_kv_heads=2, tie_embeddings=True),
    "phimoe": PHIMOE,
    "phimoe without biases, window": replace(
        PHIMOE, attention_bias=False, output_bias=False, router_jitter=0.01, sliding_window=11
    ),
    "phimoe, one of six, odd sizes": replace(
        PHIMOE,
        hidden_size=66,
        n_heads=3,
        n_kv_heads=1,
        head_size=22,
        rope_size=10,
        ffn_size=75,
        n_experts_used=1,
        short_factor=None,
        long_factor=None,
        short_mscale=None,
        long_mscale=None,
    ),
}


def bound_of(type_name: str) -> float:
    """How far logits may be from those of the same weights as floats, relative to the largest."""
    if type_name == "BF16" and native.isa() == "avx512":
        return ROUNDED
    return CODES if type_name in QUANTIZED else EXACT


def random_model(config: PhiConfig) -> Phi:
    """Weights at which logits reach about 5 and attention is neither flat nor one token."""
    generator = torch.Generator().manual_seed(0)
    model = Phi(config).eval()
    for name, parameter in model.named_parameters():
        scale = 1.0 if "embed" in name else 1.5 / parameter.shape[-1] ** 0.5
        mean, scale = (float("norm.weight" in name), 0.1) if parameter.ndim == 1 else (0.0, scale)
        with torch.no_grad():
            parameter.normal_(mean, scale, generator=generator)
    return model


def quantized(array: np.ndarray, type_name: str) -> np.ndarray:
    """(rows, cols) float32 to (rows, row_bytes) uint8."""
    out = np.empty((array.shape[0], tensor_type(type_name).row_bytes(array.shape[1])), np.uint8)
    hand_over(native, type_name)
    native.quantize(
        type_name, array, out, importance=np.ones(array.shape[1], np.float32)
    )  # some types ask for it
    return out


def tensors(model: Phi, type_name: str = "F32") -> dict[str, tuple[str, int, int, np.ndarray]]:
    """The parameters as a GGUF file has them: experts stacked, matrices but the router's in the type."""
    places, stacks = gguf_places(model.config), defaultdict[str, list[np.ndarray]](list)
    for name, parameter in model.state_dict().items():
        assert len(stacks[places[name].tensor]) == places[name].part
        stacks[places[name].tensor].append(parameter.numpy().reshape(-1, parameter.shape[-1]))
    out = {}
    for name, parts in stacks.items():
        rows = np.concatenate(parts)
        stored_as = type_name if len(rows) > 1 and "ffn_gate_inp" not in name else "F32"
        out[name] = (stored_as, *rows.shape, quantized(rows, stored_as).reshape(-1))
    return out


def dequantized(model: Phi, type_name: str) -> Phi:
    """The same model with the weights that the quantized ones stand for."""
    copy = deepcopy(model)
    for name, parameter in copy.named_parameters():
        if parameter.ndim == 2 and not name.endswith("moe.gate.weight"):
            rows = parameter.detach().numpy()
            native.dequantize(type_name, quantized(rows, type_name), rows)  # in place
    return copy


def engine(
    model: Phi, type_name: str = "F32", *, n_ctx: int = 128, threads: int = 2, cache: str = "F32"
) -> Any:
    return native.Engine(asdict(model.config), tensors(model, type_name), n_ctx, threads, cache)


def random_ids(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 300, n).astype(np.int32)


def torch_logits(model: Phi, ids: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return model(torch.from_numpy(ids.astype(np.int64))[None])[0].numpy()


def relative_error(got: np.ndarray, expected: np.ndarray) -> float:
    assert got.shape == expected.shape and got.dtype == np.float32
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def mean_divergence(expected: np.ndarray, got: np.ndarray) -> float:
    """Mean Kullback-Leibler divergence in nats of the distributions of logits (n, vocabulary)."""
    log_p, log_q = (torch.log_softmax(torch.from_numpy(logits).double(), -1) for logits in (expected, got))
    return float((log_p.exp() * (log_p - log_q)).sum(-1).mean())


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("n", [1, 40, 100])  # with LongRoPE 100 is beyond the switch
def test_logits_are_those_of_the_torch_model(name: str, n: int) -> None:
    model, ids = random_model(CONFIGS[name]), random_ids(n)
    expected = torch_logits(model, ids)
    assert relative_error(engine(model).forward(ids, True), expected) < EXACT
    halves = engine(model, cache="F16").forward(ids, True)
    if model.config.n_experts:  # a rounding may send a token to another expert, but not most of them
        errors = np.abs(halves - expected).max(axis=1) / np.abs(expected).max()  # (n,)
        assert np.median(errors) < HALVES
    else:
        assert relative_error(halves, expected) < HALVES


@pytest.mark.parametrize("name", ["plain", "all", "phi2", "phimoe"])
def test_token_by_token_is_one_fresh_pass(name: str) -> None:
    model, ids = random_model(CONFIGS[name]), random_ids(70)
    running = engine(model)
    for end in range(1, 71):  # the switch is between 64 and 65
        got = running.forward(ids[end - 1 : end], False)
        assert got.shape == (1, 300) and running.position == end
        if end in (1, 2, 30, 63, 64, 65, 66, 70):
            assert relative_error(got, torch_logits(model, ids[:end])[-1:]) < EXACT
            assert np.array_equal(got, engine(model).forward(ids[:end], False))


def test_back_and_forth_over_the_switch() -> None:
    model, ids = random_model(LONGROPE), random_ids(90)
    running = engine(model)
    running.forward(ids, False)
    running.truncate(50)
    text = np.concatenate([ids[:50], random_ids(5, seed=1)])
    assert relative_error(running.forward(text[50:], True), torch_logits(model, text)[50:]) < EXACT
    text = np.concatenate([text, random_ids(30, seed=2)])
    assert relative_error(running.forward(text[55:], True), torch_logits(model, text)[55:]) < EXACT


def test_the_factors_matter() -> None:
    """What the tests above compare must depend on which factors are used."""
    ids = random_ids(70)
    short_only = replace(LONGROPE, long_factor=LONGROPE.short_factor)
    difference = torch_logits(random_model(LONGROPE), ids) - torch_logits(random_model(short_only), ids)
    assert np.abs(difference).max() > 0.1


@pytest.mark.parametrize("type_name", ["F16", "BF16", *QUANTIZED, *DEQUANTIZED])
def test_every_type_against_torch_on_the_same_weights(type_name: str) -> None:
    config = replace(PLAIN, n_kv_heads=4)
    model, ids = random_model(config), random_ids(50)
    expected = torch_logits(dequantized(model, type_name), ids)
    got = engine(model, type_name).forward(ids, True)
    bound = bound_of(type_name)
    assert relative_error(got, expected) < bound


@pytest.fixture(scope="module")
def trained() -> Phi:
    return load_checkpoint(Checkpoint.open(Path(__file__).parents[2] / "data" / "phi-tiny"))


def sampled_ids(model: Phi, n: int) -> np.ndarray:
    """A text (n,) that the model itself may write."""
    running, rng, ids = engine(model, n_ctx=n), np.random.default_rng(0), [1]
    while len(ids) < n:
        logits = running.forward(np.array(ids[-1:], np.int32), False)[0].astype(np.float64)
        weights = np.exp(logits - logits.max())
        ids.append(int(rng.choice(len(weights), p=weights / weights.sum())))
    return np.array(ids, np.int32)


def test_distributions_of_a_trained_model(trained: Phi) -> None:
    ids = sampled_ids(trained, 120)
    for type_name in FAMILIES:
        if tensor_type(type_name).bits_per_weight < 4:
            continue
        expected = torch_logits(dequantized(trained, type_name), ids)
        assert mean_divergence(expected, engine(trained, type_name).forward(ids, True)) < DIVERGENCE, (
            type_name
        )


@pytest.mark.parametrize("type_name", ["Q8_0", "Q4_K", "IQ4_XS"])
def test_phi2_in_a_quantized_type(type_name: str) -> None:
    model, ids = random_model(PHI2), random_ids(50)
    got, expected = (
        engine(model, type_name).forward(ids, True),
        torch_logits(dequantized(model, type_name), ids),
    )
    bound = bound_of(type_name)
    assert relative_error(got, expected) < bound
    assert mean_divergence(expected, got) < 1e-3


def make_alike(model: Phi) -> Phi:
    """All experts of a layer become the first one, give or take a little."""
    for layer in model.model.layers:
        first, *others = layer.block_sparse_moe.experts
        for parameter, expert in (
            (name, expert) for expert in others for name, _ in first.named_parameters()
        ):
            with torch.no_grad():
                weight = expert.get_parameter(parameter)
                weight.mul_(0.05).add_(first.get_parameter(parameter))
    return model


@pytest.mark.parametrize("type_name", [name for name in FAMILIES if tensor_type(name).bits_per_weight >= 4])
def test_experts_in_a_quantized_type(type_name: str) -> None:
    """A hard router, jitter near 0, lets the experts' weights be 1. Fewer bits would make alike experts unlike."""
    model, ids = make_alike(random_model(replace(PHIMOE, router_jitter=1e-4))), random_ids(100)
    got, expected = (
        engine(model, type_name).forward(ids, True),
        torch_logits(dequantized(model, type_name), ids),
    )
    assert mean_divergence(expected, got) < 5e-3


@pytest.mark.parametrize("config", [PHI2, PHIMOE], ids=["phi2", "phimoe"])
def test_types_that_want_different_codings_of_the_same_vector(config: PhiConfig) -> None:
    """Queries, keys and values, gates and ups: the tensors of a layer that read the same vector."""
    model, ids = random_model(config), random_ids(30)
    in_type = {name: tensors(model, name) for name in ("Q8_0", "Q6_K", "F16", "F32")}
    types = {
        "attn_q.": "Q8_0",
        "attn_k.": "Q6_K",
        "attn_v.": "F16",
        "ffn_up": "Q6_K",
        "ffn_gate_exps": "Q8_0",
    }
    mixed = {
        name: in_type[next((type for part, type in types.items() if part in name), "F32")][name]
        for name in in_type["F32"]
    }
    got = native.Engine(asdict(config), mixed, 30, 2, "F32").forward(ids, True)
    error = np.abs(got - torch_logits(model, ids)) / np.abs(got).max()
    assert np.median(error) < 0.02  # not the largest: some token may meet another expert


@pytest.mark.parametrize(
    ("name", "type_name"),
    [
        *(("longrope", type_name) for type_name in ("F32", "F16", *QUANTIZED, *DEQUANTIZED)),
        *((name, type_name) for name in ("phi2", "phimoe") for type_name in ("F32", "Q4_K", "IQ2_XS")),
    ],
)
def test_same_bits_with_any_threads_and_any_cut(name: str, type_name: str) -> None:
    model, ids = random_model(CONFIGS[name]), random_ids(80)
    expected = engine(model, type_name, threads=1).forward(ids, True)
    for threads in (2, 3, 5, 8):
        assert np.array_equal(engine(model, type_name, threads=threads).forward(ids, True), expected)
    running = engine(model, type_name)
    pieces = [running.forward(piece, True) for piece in np.split(ids, [66, 67, 71])]
    assert np.array_equal(np.concatenate(pieces[1:]), expected[66:])


@pytest.mark.parametrize(
    ("name", "type_name"),
    [
        *(("all", type_name) for type_name in ("F32", "F16", *FAMILIES, *DEQUANTIZED)),
        *((name, type_name) for name in ("phi2", "phimoe") for type_name in ("F32", "Q4_K")),
    ],
)
def test_same_bits_alone_and_among_other_sequences(name: str, type_name: str) -> None:
    """Prompts of many lengths at once, then a token for each of nine, of two and of one of them."""
    config = CONFIGS[name]
    weights = tensors(random_model(config), type_name)
    texts = [random_ids(n + 3, seed=n) for n in (1, 2, 3, 5, 8, 13, 40, 62, 90)]  # the switch is at 64
    many = native.Engine(asdict(config), weights, 128, 3, "F16", len(texts))
    alone = native.Engine(asdict(config), weights, 128, 1)
    got = {
        i: [row] for i, row in enumerate(many.forward_many([(i, t[:-3]) for i, t in enumerate(texts)], False))
    }
    for step, some in ((-3, range(9)), (-2, (7, 3)), (-1, (7,))):
        rows = many.forward_many([(i, texts[i][step:][:1]) for i in some], False)
        for i, row in zip(some, rows, strict=True):
            got[i].append(row)
    for i, text in enumerate(texts):
        alone.truncate(0)
        expected = [alone.forward(text[:-3], False)[0]]
        expected += [alone.forward(text[at : at + 1], False)[0] for at in range(len(text) - 3, len(text))]
        assert np.array_equal(got[i], expected[: len(got[i])]), i


def test_types_may_differ_from_tensor_to_tensor() -> None:
    model, ids = random_model(PLAIN), random_ids(20)
    mixed = {}
    types = ["F16", "Q8_0", "Q4_0", "Q4_K", "Q5_K", "Q6_K"]
    for i, name in enumerate(tensors(model)):
        chosen = tensors(model, types[i % len(types)])[name]
        mixed[name] = chosen
    got = native.Engine(asdict(PLAIN), mixed, 20, 2).forward(ids, True)
    assert relative_error(got, torch_logits(model, ids)) < 0.5  # 4-bit weights: near, not equal


SCRIPT = """
import sys
import numpy as np
sys.path.insert(0, sys.argv[1])
import test_engine as t
assert t.native.isa() == sys.argv[2]
np.save(sys.argv[3], [
    t.engine(t.random_model(t.CONFIGS[name]), type_name).forward(t.random_ids(70), True)
    for name, type_name in t.ON_EVERY_SET
])
"""
ON_EVERY_SET = [
    *(("all", type_name) for type_name in ("F32", "F16", *FAMILIES)),
    ("phi2", "F32"),
    ("phimoe", "F32"),
]


@pytest.mark.parametrize("isa", native.isas())
def test_every_instruction_set(isa: str, tmp_path: Path) -> None:
    out = tmp_path / "logits.npy"
    subprocess.run(
        [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), isa, str(out)],
        env=os.environ | {"PHICOURSE_ISA": isa},
        check=True,
    )
    for (name, type_name), got in zip(ON_EVERY_SET, np.load(out), strict=True):
        expected = torch_logits(dequantized(random_model(CONFIGS[name]), type_name), random_ids(70))
        assert relative_error(got, expected) < (CODES if type_name in QUANTIZED else EXACT), (name, type_name)


def test_a_forced_instruction_set_that_is_not_there() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import phicourse.native as n; n.isa()"],
        env=os.environ | {"PHICOURSE_ISA": "abacus"},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0 and "RuntimeError: PHICOURSE_ISA=abacus cannot run here" in done.stderr


def test_weights_stay_where_they_are_and_alive(tmp_path: Path) -> None:
    model, ids = random_model(PLAIN), random_ids(10)
    mapped = {}
    for name, (type_name, rows, cols, data) in tensors(model).items():
        data.tofile(tmp_path / name)
        mapped[name] = (type_name, rows, cols, np.memmap(tmp_path / name, np.uint8, "r"))
    running = native.Engine(asdict(PLAIN), mapped, 10, 1, "F32")
    del mapped, data
    gc.collect()
    assert relative_error(running.forward(ids, True), torch_logits(model, ids)) < EXACT


def test_other_threads_run_while_it_works() -> None:
    """Python never takes the turn from the main thread here: only the engine can hand it over."""
    running, ids = engine(random_model(PLAIN), n_ctx=256, threads=1), random_ids(250)
    turns, stop = [], threading.Event()

    def other() -> None:
        while not stop.wait(1e-4):
            turns.append(1)

    interval, thread = sys.getswitchinterval(), threading.Thread(target=other)
    thread.start()
    try:
        sys.setswitchinterval(1000)
        before = len(turns)
        for i in range(len(ids)):
            running.forward(ids[i : i + 1], False)
        after = len(turns)
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        thread.join()
    assert after > before


def refused(error: type[Exception], text: str, config: dict[str, Any] | None = None, **changes: Any) -> None:
    model = random_model(PLAIN)
    weights = tensors(model) | changes.pop("tensors", {})
    arguments = {"n_ctx": 16, "threads": 1} | changes
    with pytest.raises(error, match=text):
        native.Engine(asdict(PLAIN) | (config or {}), {k: v for k, v in weights.items() if v}, **arguments)


def test_what_does_not_fit_is_refused() -> None:
    vector = np.zeros(1024, np.uint8)
    refused(ValueError, "n_ctx must be from 1 to 256, not 0", n_ctx=0)
    refused(ValueError, "n_ctx must be from 1 to 256, not 300", n_ctx=300)
    refused(ValueError, "threads must be from 1", threads=0)
    refused(ValueError, "cache_type must be one of F32, F16, BF16, Q8_0, Q4_0, not Q5_0", cache_type="Q5_0")
    refused(ValueError, "no quantizer for type Q9_0", cache_type="Q9_0")
    refused(ValueError, "n_kv_heads must divide n_heads", {"n_kv_heads": 3})
    refused(ValueError, "expected 300 rows of 256", tensors={"output.weight": ("F32", 1, 256, vector)})
    refused(ValueError, "blk.1.ffn_down.weight is missing", tensors={"blk.1.ffn_down.weight": None})
    refused(
        ValueError, "rope.bias has no place in a phi3 model", tensors={"rope.bias": ("F32", 1, 256, vector)}
    )
    refused(
        ValueError, "output_norm.weight: .*Q9_X", tensors={"output_norm.weight": ("Q9_X", 1, 256, vector)}
    )
    refused(
        ValueError, "has 1024 bytes, expected 512", tensors={"output_norm.weight": ("F16", 1, 256, vector)}
    )
    refused(
        ValueError, "architecture llama is not known: phi2, phi3 and phimoe are", {"architecture": "llama"}
    )
    refused(ValueError, "blk.0.attn_norm.bias is missing", {"architecture": "phi2"})
    refused(ValueError, "n_experts must be from 1 to 512, not 0", {"architecture": "phimoe"})
    refused(ValueError, "n_experts_used must be from 1 to 4", {"architecture": "phimoe", "n_experts": 4})
    refused(TypeError, "n_heads has the wrong type", {"n_heads": "eight"})
    refused(
        TypeError, "long_factor has the wrong type", {"long_factor": [1, "x"], "short_factor": [1.0] * 16}
    )
    refused(TypeError, "tensor output.weight must be", tensors={"output.weight": ("F32", 1, 256)})
    refused(
        TypeError, "tensor output.weight must be", tensors={"output.weight": ("F32", 1, 256, vector[:, None])}
    )


@pytest.mark.parametrize(
    ("config", "name", "rows", "message"),
    [
        (PHI2, "blk.1.attn_k.bias", None, "blk.1.attn_k.bias is missing"),
        (PHI2, "output.bias", None, "output.bias is missing"),
        (PHI2, "blk.0.ffn_norm.weight", 1, "blk.0.ffn_norm.weight has no place in a phi2 model"),
        (PHIMOE, "blk.1.ffn_gate_inp.weight", None, "blk.1.ffn_gate_inp.weight is missing"),
        (PHIMOE, "blk.0.ffn_up_exps.weight", 5 * 256, "has 1280 rows of 256, expected 1536 rows of 256"),
        (PHIMOE, "blk.0.ffn_up.weight", 1, "blk.0.ffn_up.weight has no place in a phimoe model"),
    ],
)
def test_tensors_that_do_not_fit_the_architecture(
    config: PhiConfig, name: str, rows: int | None, message: str
) -> None:
    weights = tensors(random_model(config))
    weights.pop(name, None)
    if rows is not None:
        weights[name] = ("F32", rows, 256, np.zeros(1024 * rows, np.uint8))
    with pytest.raises(ValueError, match=message):
        native.Engine(asdict(config), weights, 16, 1)


def test_a_missing_field_is_named() -> None:
    config = asdict(PLAIN)
    del config["n_heads"]
    with pytest.raises(KeyError, match="config has no n_heads"):
        native.Engine(config, {}, 16, 1)


def test_bad_calls_are_refused_and_change_nothing() -> None:
    model = random_model(PLAIN)
    running = engine(model, n_ctx=10)
    running.forward(random_ids(6), False)
    with pytest.raises(ValueError, match="at least one token"):
        running.forward(random_ids(0), True)
    with pytest.raises(IndexError, match="token 300 is not in the vocabulary of 300"):
        running.forward(np.array([3, 300], np.int32), True)
    with pytest.raises(IndexError, match="token -1"):
        running.forward(np.array([-1], np.int32), True)
    with pytest.raises(IndexError, match="11 tokens, the context has room for 10"):
        running.forward(random_ids(5), True)
    with pytest.raises(IndexError, match="6 tokens to 7"):
        running.truncate(7)
    assert running.position == 6 and running.n_ctx == 10
    assert np.array_equal(
        running.forward(random_ids(10)[6:], False), engine(model, n_ctx=10).forward(random_ids(10), False)
    )
