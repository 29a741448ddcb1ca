"""Small random Phi-2s and Phi-3.5-MoEs from checkpoint to text: transformers, llama.cpp, and both of ours.

llama.cpp computes Phi-2 as transformers does. With Phi-3.5-MoE it does not: it takes RMSNorm for LayerNorm, the
softmax of all experts for the router, makes the two weights add up to 1, and lengthens queries and keys by a
formula instead of by the model's numbers. There we follow transformers.

Tolerances, on log-probabilities over the whole vocabulary:

    float32         1e-4: only the order of sums differs (measured 2e-5). The engine keeps keys and values in
                    float32, too, for this: in float16 they send one token of Phi-3.5-MoE to another expert, and
                    all that follow look back at it
    llama.cpp       2e-2: it looks GELU up in a table of float16 (measured 5e-3)
    float16 cache   1e-2: the engine rounds keys and values (measured 2e-3)
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_phi import TOKENIZER_FILES
from typer.testing import CliRunner

import phicourse
from phicourse.cli import app
from phicourse.errors import ModelError
from phicourse.evaluate.imatrix import input_squares
from phicourse.evaluate.kl_divergence import log_probabilities
from phicourse.generate import LLM, torch_layers
from phicourse.generate.backends import native_module
from phicourse.gguf import GGUFFile
from phicourse.quantize.importance import ImportanceMatrix

transformers = pytest.importorskip("transformers", minversion="5.0")
torch = pytest.importorskip("torch")

FLOAT32, LLAMA_CPP, SIXTEEN_BIT = 1e-4, 2e-2, 1e-2
ORIGINAL, CONTEXT = 64, 256  # tokens: where LongRoPE switches, and the most
IDS = np.random.default_rng(3).integers(3, 2000, 100).tolist()
SIZES: dict[str, Any] = {
    "vocab_size": 2048,
    "hidden_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 1,
    "eos_token_id": 2032,
    "initializer_range": 1 / 16,
}
PHI2 = SIZES | {"intermediate_size": 1024}
PHIMOE = SIZES | {
    "intermediate_size": 256,
    "num_key_value_heads": 2,
    "num_local_experts": 8,
    "attention_bias": True,
    "lm_head_bias": True,
    "router_jitter_noise": 0.1,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1 + 0.01 * i for i in range(32)],
        "long_factor": [1 + 0.3 * i for i in range(32)],
        "short_mscale": 1.2,
        "long_mscale": 1.25,
        "original_max_position_embeddings": ORIGINAL,
    },
}


def needs_engine() -> None:
    if native_module() is None:
        pytest.skip("needs the compiled engine")


@dataclass
class Case:
    """One model in every form that is compared."""

    theirs: Any
    checkpoint: Path
    f32: Path

    @cached_property
    def torch(self) -> LLM:
        return phicourse.load(self.f32, "torch")

    @cached_property
    def native(self) -> LLM:
        """The engine with keys and values in float32."""
        needs_engine()
        return phicourse.load(self.f32, threads=2, cache_type="F32")

    @cached_property
    def q4(self) -> Path:
        return phicourse.quantize(self.f32, self.f32.with_name("tiny-Q4_K_M.gguf"), "Q4_K_M", progress=False)

    def transformers_logits(self, ids: list[int]) -> np.ndarray:
        with torch.inference_mode():
            return self.theirs(torch.tensor([ids])).logits[0].numpy()

    def llama_cpp_logits(self, ids: list[int]) -> np.ndarray:
        llama_cpp = pytest.importorskip("llama_cpp")
        f32 = llama_cpp.GGML_TYPE_F32
        # a context no longer than LongRoPE's switch: llama.cpp chooses the factors by it
        llama = llama_cpp.Llama(
            str(self.f32), n_ctx=ORIGINAL, logits_all=True, type_k=f32, type_v=f32, verbose=False
        )
        llama.eval(ids)
        return np.array(llama.scores[: len(ids)])


def make(name: str, config: dict[str, Any], folder: Path, tokenizer: Path) -> Case:
    torch.manual_seed(0)
    settings = getattr(transformers, f"{name}Config")(**config)
    theirs = getattr(transformers, f"{name}ForCausalLM")(settings).eval()
    with torch.no_grad():
        for parameter, weight in theirs.named_parameters():
            if "norm" in parameter or parameter.endswith("bias"):
                weight.uniform_(*((0.5, 1.5) if parameter.endswith("weight") else (-0.3, 0.3)))
        theirs.lm_head.weight *= 3
    theirs.save_pretrained(folder, save_original_format=True)
    for file in TOKENIZER_FILES:
        shutil.copy(tokenizer / file, folder / file)
    f32 = phicourse.convert(folder, folder / "tiny-F32.gguf", "f32", progress=False)
    return Case(theirs, folder, f32)


@pytest.fixture(scope="module")
def phi2(tmp_path_factory: pytest.TempPathFactory, phi_tiny: Path) -> Case:
    return make("Phi", PHI2, tmp_path_factory.mktemp("phi2"), phi_tiny)


@pytest.fixture(scope="module")
def phimoe(tmp_path_factory: pytest.TempPathFactory, phi_tiny: Path) -> Case:
    return make("Phimoe", PHIMOE, tmp_path_factory.mktemp("phimoe"), phi_tiny)


@pytest.fixture(params=["phi2", "phimoe"])
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    yield request.getfixturevalue(request.param)


def largest_difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(log_probabilities(a) - log_probabilities(b)).max())


def test_we_compute_what_transformers_does(case: Case) -> None:
    ids = IDS[:ORIGINAL]
    theirs = case.transformers_logits(ids)
    of_checkpoint = phicourse.load(case.checkpoint, "torch").logits(ids)
    assert largest_difference(of_checkpoint, theirs) < FLOAT32
    assert largest_difference(case.torch.logits(ids), theirs) < FLOAT32
    assert largest_difference(case.native.logits(ids), theirs) < FLOAT32


def test_llama_cpp_computes_the_same_phi2(phi2: Case) -> None:
    ids = IDS[:ORIGINAL]
    theirs = phi2.llama_cpp_logits(ids)
    assert largest_difference(phi2.torch.logits(ids), theirs) < LLAMA_CPP
    assert largest_difference(phi2.native.logits(ids), theirs) < LLAMA_CPP


def test_the_engine_s_own_cache_is_in_float16(phi2: Case) -> None:
    needs_engine()
    ids = IDS[:ORIGINAL]
    assert largest_difference(phicourse.load(phi2.f32).logits(ids), phi2.torch.logits(ids)) < SIXTEEN_BIT


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_layers_in_torch_and_the_others_in_the_engine(case: Case, layers: int) -> None:
    needs_engine()
    mixed = phicourse.load(case.f32, gpu_layers=layers, cache_type="F32")
    for n in (ORIGINAL, 100):  # all with the short factors, all with the long ones
        assert largest_difference(mixed.logits(IDS[:n]), case.native.logits(IDS[:n])) < FLOAT32


def test_layers_in_torch_with_matrices_of_16_bits(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU. A rounding may send a token to another expert, so the median of the tokens counts.

    Matrices and what meets them have 11 bits in this layer: 3e-2 (measured 1.6e-2 for Phi-3.5-MoE).
    """
    needs_engine()
    monkeypatch.setattr(torch_layers, "matrix_dtype", lambda device: torch.float16)
    mixed = phicourse.load(case.f32, gpu_layers=1, cache_type="F32")
    got, expected = (log_probabilities(llm.logits(IDS)) for llm in (mixed, case.native))
    assert np.median(np.abs(got - expected).max(axis=1)) < 3e-2


def test_llama_cpp_computes_another_phimoe(phimoe: Case) -> None:
    """Were it the same one day, what the course says about it would have to change."""
    ids = IDS[:ORIGINAL]
    assert largest_difference(phimoe.llama_cpp_logits(ids), phimoe.transformers_logits(ids)) > 1
    assert largest_difference(phimoe.torch.logits(ids), phimoe.transformers_logits(ids)) < FLOAT32


def test_beyond_the_original_context_engine_and_torch_agree(case: Case) -> None:
    assert largest_difference(case.native.logits(IDS), case.torch.logits(IDS)) < FLOAT32


@pytest.mark.parametrize("cuts", [[1], [40, 63], [64], [65], [90]])
def test_logits_do_not_depend_on_how_the_text_is_cut(case: Case, cuts: list[int]) -> None:
    """Phi-3.5-MoE's text crosses LongRoPE's switch."""
    for llm, tolerance in ((case.native, 0), (case.torch, FLOAT32)):
        expected, backend = llm.logits(IDS), llm.backend
        for part in np.split(np.array(IDS, np.int32), cuts):
            logits = backend.forward(part, False)
        np.testing.assert_allclose(logits[0], expected[-1], rtol=0, atol=tolerance)


def test_same_text_with_any_number_of_threads(case: Case) -> None:
    needs_engine()
    texts = {
        phicourse.load(case.q4, threads=threads).generate("A dog", seed=4, max_tokens=90)
        for threads in (1, 2, 3)
    }
    assert len(texts) == 1 and len(texts.pop()) > 50


def test_engine_and_torch_measure_the_same_importance(case: Case) -> None:
    ours, theirs = (input_squares(llm, IDS, process_output=True) for llm in (case.native, case.torch))
    assert ours.keys() == theirs.keys()
    matrices = {name for name in GGUFFile.open(case.f32).tensors if name.endswith(".weight")}
    passed_over = ("norm", "token_embd", "rope_factors")
    assert ours.keys() == {name for name in matrices if not any(part in name for part in passed_over)}
    for name, (sums, counts) in theirs.items():
        np.testing.assert_allclose(ours[name][0], sums, rtol=1e-4, err_msg=name)
        assert np.array_equal(ours[name][1], counts), name


def test_each_expert_has_its_own_importance(phimoe: Case) -> None:
    """Every token meets two experts, so together they have seen twice what the router has."""
    for llm in (phimoe.native, phimoe.torch):
        squares = input_squares(llm, IDS)
        for layer in range(2):
            router, count = squares[f"blk.{layer}.ffn_gate_inp.weight"]
            for kind in ("gate", "up", "down"):
                sums, counts = squares[f"blk.{layer}.ffn_{kind}_exps.weight"]
                assert len(sums) == len(counts) == 8 and counts.sum() == 2 * count == 2 * len(IDS)
                if kind != "down":
                    np.testing.assert_allclose(sums.sum(0), 2 * router[0], rtol=1e-5)


def run(*args: str | Path) -> str:
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_the_commands_run_it(case: Case, repository: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text((repository / "data" / "text" / "stories_01.txt").read_text()[:3000])
    assert run("run", case.q4, "-p", "Once", "-n", "8", "--temp", "0")
    assert "perplexity" in run("perplexity", case.q4, "-f", text, "--ctx", "128", "--chunks", "2", "--json")
    assert "tg4" in run("bench", case.q4, "-p", "16", "-n", "4", "-r", "1", "--json")
    run("imatrix", case.q4, "-f", text, "-o", tmp_path / "imatrix.gguf", "--ctx", "64", "--chunks", "3")
    matrix = ImportanceMatrix.read(tmp_path / "imatrix.gguf")
    weighted = phicourse.quantize(
        case.f32, tmp_path / "weighted.gguf", "Q3_K_M", imatrix=matrix.path, progress=False
    )
    assert np.isfinite(phicourse.load(weighted).logits(IDS[:20])).all()


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_a_file_that_is_not_what_its_keys_say(case: Case, backend: Any, tmp_path: Path) -> None:
    if backend == "native":
        needs_engine()
    raw, name = case.f32.read_bytes(), b"blk.1.attn_v.bias"
    assert raw.count(name) == 1
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(raw.replace(name, b"blk.1.attn_v.bios"))
    with pytest.raises(ModelError, match=r"broken\.gguf: .*blk\.1\.attn_v\.bias") as error:
        phicourse.load(broken, backend)
    assert "\n" not in str(error.value)
