"""The C++ engine against the readable model in PyTorch: the same logits, on every instruction set.

Tolerances, as parts of the largest logit:

    weights and cache F32   1e-5: only the order of sums differs (measured 2e-6); also for types without kernels
                                  of their own, whose rows the engine turns into floats
    cache F16               2e-3: keys and values are rounded to 11 bits (measured 1.1e-3)
    quantized weights       0.1:  activations are rounded to 8 bits before they meet these weights, torch on the
                                  same weights keeps them in float32 (measured 0.06)
"""

import gc
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
native = pytest.importorskip("phicourse.native", reason="the compiled module is not built")

from phicourse.checkpoint import PhiConfig  # noqa: E402
from phicourse.generate.backends import ENGINE_TYPES  # noqa: E402
from phicourse.gguf import tensor_type  # noqa: E402
from phicourse.model import Phi  # noqa: E402
from phicourse.model.load import gguf_names  # noqa: E402
from phicourse.quantize.grids import hand_over  # noqa: E402

EXACT, HALVES, CODES = 1e-5, 2e-3, 0.1
QUANTIZED = ("Q8_0", "Q4_0", "Q4_K", "Q5_K", "Q6_K")
# The engine turns rows of these into floats and has no kernels for their codes.
DEQUANTIZED = tuple(sorted(ENGINE_TYPES - {"F32", "F16", "BF16", *QUANTIZED}))

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
}


def random_model(config: PhiConfig) -> Phi:
    """Weights at which logits reach about 5 and attention is neither flat nor one token."""
    generator = torch.Generator().manual_seed(0)
    model = Phi(config).eval()
    for name, parameter in model.named_parameters():
        scale = 1.0 if "embed" in name else 1.5 / parameter.shape[-1] ** 0.5
        with torch.no_grad():
            parameter.normal_(1.0, 0.1, generator=generator) if parameter.ndim == 1 else parameter.normal_(
                0.0, scale, generator=generator
            )
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
    names, out = gguf_names(model.config), {}
    for name, parameter in model.state_dict().items():
        rows = parameter.numpy().reshape(-1, parameter.shape[-1])
        stored_as = type_name if parameter.ndim == 2 else "F32"
        out[names[name]] = (stored_as, *rows.shape, quantized(rows, stored_as).reshape(-1))
    return out


def dequantized(model: Phi, type_name: str) -> Phi:
    """The same model with the weights that the quantized ones stand for."""
    copy = random_model(model.config)
    for parameter in copy.parameters():
        if parameter.ndim == 2:
            rows = parameter.detach().numpy()
            native.dequantize(type_name, quantized(rows, type_name), rows)
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


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("n", [1, 40, 100])  # with LongRoPE 100 is beyond the switch
def test_logits_are_those_of_the_torch_model(name: str, n: int) -> None:
    model, ids = random_model(CONFIGS[name]), random_ids(n)
    expected = torch_logits(model, ids)
    assert relative_error(engine(model).forward(ids, True), expected) < EXACT
    assert relative_error(engine(model, cache="F16").forward(ids, True), expected) < HALVES


@pytest.mark.parametrize("name", ["plain", "all"])
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
    assert relative_error(got, expected) < (CODES if type_name in QUANTIZED else EXACT)


@pytest.mark.parametrize("type_name", ["F32", "F16", *QUANTIZED, "Q3_K", "IQ2_XS"])
def test_same_bits_with_any_threads_and_any_cut(type_name: str) -> None:
    model, ids = random_model(LONGROPE), random_ids(80)
    expected = engine(model, type_name, threads=1).forward(ids, True)
    for threads in (2, 5):
        assert np.array_equal(engine(model, type_name, threads=threads).forward(ids, True), expected)
    running = engine(model, type_name)
    pieces = [running.forward(piece, True) for piece in np.split(ids, [66, 67, 71])]
    assert np.array_equal(np.concatenate(pieces[1:]), expected[66:])


def test_types_may_differ_from_tensor_to_tensor() -> None:
    model, ids = random_model(PLAIN), random_ids(20)
    mixed = {}
    types = ["F16", *QUANTIZED]
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
model = t.random_model(t.CONFIGS["all"])
logits = [t.engine(model, name).forward(t.random_ids(70), True) for name in ("F32", "F16", *t.QUANTIZED)]
np.save(sys.argv[3], np.stack(logits))
"""


@pytest.mark.parametrize("isa", native.isas())
def test_every_instruction_set(isa: str, tmp_path: Path) -> None:
    out = tmp_path / "logits.npy"
    subprocess.run(
        [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), isa, str(out)],
        env=os.environ | {"PHICOURSE_ISA": isa},
        check=True,
    )
    model, ids = random_model(CONFIGS["all"]), random_ids(70)
    for type_name, got in zip(("F32", "F16", *QUANTIZED), np.load(out), strict=True):
        expected = torch_logits(dequantized(model, type_name), ids)
        assert relative_error(got, expected) < (CODES if type_name in QUANTIZED else EXACT), type_name


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
    refused(ValueError, "rope.bias has no place", tensors={"rope.bias": ("F32", 1, 256, vector)})
    refused(
        ValueError, "output_norm.weight: .*Q9_X", tensors={"output_norm.weight": ("Q9_X", 1, 256, vector)}
    )
    refused(
        ValueError, "has 1024 bytes, expected 512", tensors={"output_norm.weight": ("F16", 1, 256, vector)}
    )
    refused(TypeError, "n_heads has the wrong type", {"n_heads": "eight"})
    refused(
        TypeError, "long_factor has the wrong type", {"long_factor": [1, "x"], "short_factor": [1.0] * 16}
    )
    refused(TypeError, "tensor output.weight must be", tensors={"output.weight": ("F32", 1, 256)})
    refused(
        TypeError, "tensor output.weight must be", tensors={"output.weight": ("F32", 1, 256, vector[:, None])}
    )


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
