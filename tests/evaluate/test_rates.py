"""What a benchmark must compute and read, counted by hand, and how it is set beside the machine's limits."""

import json
from dataclasses import replace
from math import prod
from pathlib import Path

import pytest
from typer.testing import CliRunner

import phicourse
from phicourse.checkpoint import PhiConfig
from phicourse.cli import app
from phicourse.errors import GenerateError
from phicourse.evaluate import Measurement, rates
from phicourse.evaluate.rates import Machine, draw_rates, rate, work_of
from phicourse.generate import backends
from phicourse.gguf.layers import Tensor

CONFIG = PhiConfig(
    architecture="phi3",
    hidden_size=64,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_size=16,
    ffn_size=96,
    vocab_size=100,
    context_length=4096,
    original_context_length=4096,
    norm_eps=1e-5,
    rope_theta=1e4,
    rope_size=16,
)
EMBEDDING = Tensor("token_embd.weight", (100, 64), "Q8_0", 6800)
HEAD = Tensor("output.weight", (100, 64), "Q6_K", 5250)
NORM = Tensor("blk.0.attn_norm.weight", (64,), "F32", 256)
LAYERS = [Tensor(f"blk.{i}.ffn_down.weight", (64, 96), "Q8_0", 6528) for i in range(2)]
FILE = [EMBEDDING, HEAD, NORM, *LAYERS]
CACHE = 2 * 2 * (16 + 16) * 2  # bytes of a position: layers, heads, key and value, F16
SEEN = 2 * 2 * 4 * 16  # multiply-adds for each position that a token sees: q·k and p·v, layers, heads


def test_a_generated_token_reads_everything_but_the_embedding() -> None:
    work = work_of(CONFIG, FILE, "F16", [1], depth=9)
    assert work.multiply_adds == 2 * 64 * 96 + 100 * 64 + 10 * SEEN
    assert work.bytes_read == 2 * 6528 + 5250 + 10 * CACHE
    several = work_of(CONFIG, FILE, "F16", [1, 1, 1])
    assert several.multiply_adds == 3 * (2 * 64 * 96 + 100 * 64) + (1 + 2 + 3) * SEEN
    assert several.bytes_read == 3 * (2 * 6528 + 5250) + (1 + 2 + 3) * CACHE


def test_a_prompt_reads_weights_once_for_512_tokens_and_the_head_once() -> None:
    work = work_of(CONFIG, FILE, "F16", [600])
    assert work.multiply_adds == 600 * 2 * 64 * 96 + 100 * 64 + 600 * 601 // 2 * SEEN
    assert work.bytes_read == 2 * 2 * 6528 + 5250 + (512 + 600) * CACHE


def test_a_tied_embedding_is_the_head_and_a_window_hides_the_rest() -> None:
    tied = [tensor for tensor in FILE if tensor is not HEAD]
    assert work_of(CONFIG, tied, "F16", [1]).bytes_read == 2 * 6528 + 6800 + CACHE
    windowed = replace(CONFIG, sliding_window=4)
    assert work_of(windowed, FILE, "F16", [1], depth=9).multiply_adds == 2 * 64 * 96 + 100 * 64 + 4 * SEEN


def test_a_token_meets_two_experts_and_a_prompt_all_of_them() -> None:
    moe = replace(CONFIG, architecture="phimoe", n_experts=8, n_experts_used=2)
    experts = Tensor("blk.0.ffn_up_exps.weight", (8, 96, 64), "Q8_0", 8 * 6528)
    file = [HEAD, experts]
    for tokens, share in ((1, 0.25), (2, 0.5), (100, 1.0)):
        work = work_of(moe, file, "F16", [tokens])
        assert work.multiply_adds == tokens * prod((2, 96, 64)) + 6400 + tokens * (tokens + 1) // 2 * SEEN
        assert work.bytes_read == share * 8 * 6528 + 5250 + tokens * CACHE


def test_rates_are_work_over_time() -> None:
    work = work_of(CONFIG, FILE, "F16", [1] * 4)
    measured = rate(Measurement("tg4", 8.0, 0.0, 1, "scalar", 1), 4, work)  # half a second
    assert measured.multiply_adds_per_second == pytest.approx(2 * work.multiply_adds)
    assert measured.bytes_per_second == pytest.approx(2 * work.bytes_read)
    machine = Machine(1, 4 * work.bytes_read, {"Q4_K": 20.0 * work.multiply_adds, "F32": 1.0})
    assert "(10% of a product alone)" in measured.line(machine) and "(50%)" in measured.line(machine)
    assert not measured.line(machine).startswith("0 ")  # 0.0002 G multiply-adds/s
    axes = draw_rates(machine, {"phicourse": [measured]}).axes[0]
    texts = {text.get_text() for text in axes.texts}
    assert {"tg4", "Q4_K, product alone", "F32, product alone", "memory"} == texts
    (point,) = (line for line in axes.lines if line.get_label() == "phicourse")
    assert [x.item() for x in point.get_data()] == [measured.intensity, measured.multiply_adds_per_second]


def test_a_product_is_measured_by_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "SMALL", (64, 256, 4))
    if backends.native_module() is not None:
        assert 1e6 < rates.product_speed("Q4_K", 1, 0) < 1e13
    monkeypatch.setattr(rates, "native_module", lambda: None)
    with pytest.raises(GenerateError, match="not built"):
        rates.product_speed("Q4_K", 1, 0)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, phi_tiny: Path) -> Path:
    if backends.native_module() is None:
        pytest.skip("needs the compiled engine")
    return phicourse.convert(phi_tiny, tmp_path_factory.mktemp("rates") / "tiny.gguf", "f16", progress=False)


def bench(*args: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["bench", *map(str, args), "-p", "4", "-n", "2", "-r", "1"])
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.stderr


def test_the_verb_says_and_draws_it(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "measure_machine", lambda threads: Machine(threads, 1e10, {"Q4_K": 1e11}))
    picture = tmp_path / "roof.png"
    text = bench(tiny, "--plot", picture)
    assert "G multiply-adds/s (" in text and "at best reads 10 GB/s from memory" in text
    assert all(len(line) <= 80 for line in text.splitlines())
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "--force" in bench(tiny, "--plot", picture, code=1)
    for entry in json.loads(bench(tiny, "--json")):
        assert entry["read_bandwidth"] == 1e10
        assert entry["product_multiply_adds_per_second"] == {"Q4_K": 1e11}
        assert entry["multiply_adds_per_second"] > entry["tokens_per_second"] * 1e6
        assert entry["bytes_per_second"] > 0


def test_gpu_layers_are_measured_without_the_machine_s_limits(tiny: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    first, _ = json.loads(bench(tiny, "--gpu-layers", "2", "--json"))
    assert first["tokens_per_second"] > 0 and "read_bandwidth" not in first
    assert "engine alone" in bench(tiny, "--gpu-layers", "2", "--plot", tmp_path / "roof.png", code=1)
