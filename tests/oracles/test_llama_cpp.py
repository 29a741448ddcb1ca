"""llama.cpp (through llama-cpp-python 0.3.36, ggml 0.25.3) on our files: the same tokens, logits and perplexity.

Tolerances, on log-probabilities over the whole vocabulary:

    float32 throughout  1e-4: only the order of sums differs. Measured: 2e-5 (llama.cpp's F32 cache, our torch)
    anything in 16 bit  2e-2 for phi-tiny (measured 3e-3) and 5e-2 for stories260K (3e-2): llama.cpp and our engine
                        round keys, values and activations to float16, in different places. With stories260K,
                        heads of 8 dimensions and logits from -20 to 20, the rounded cache alone makes 2e-2
"""

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
from random_phi import write_random_phi

import phicourse
from phicourse.evaluate import perplexity
from phicourse.evaluate.imatrix import gather_importance
from phicourse.evaluate.kl_divergence import log_probabilities
from phicourse.evaluate.perplexity import Perplexity, negative_log_likelihoods
from phicourse.generate import LLM, Sampler
from phicourse.generate.backends import native_module
from phicourse.quantize import MIXES
from phicourse.quantize.importance import ImportanceMatrix

llama_cpp = pytest.importorskip("llama_cpp")
transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

N_TOKENS = 64
FLOAT32 = 1e-4
SIXTEEN_BIT = {"phi-tiny": 2e-2, "stories260K": 5e-2}
PROMPT = "Once upon a time, there was a little girl named Lily."


class Llama:
    """llama.cpp with a model: logits, and greedy text."""

    def __init__(self, path: Path, n_ctx: int = 512, cache_type: int = llama_cpp.GGML_TYPE_F16) -> None:
        self.llama = llama_cpp.Llama(
            str(path),
            n_ctx=n_ctx,
            n_batch=n_ctx,
            type_k=cache_type,
            type_v=cache_type,
            logits_all=True,
            n_threads=1,
            n_threads_batch=1,
            verbose=False,
        )

    def logits(self, ids: list[int]) -> np.ndarray:
        """(n, vocab) float32, from an empty cache."""
        self.llama.reset()
        self.llama.eval(ids)
        return np.array(self.llama.scores[: len(ids)])

    def greedy(self, ids: list[int], n: int) -> list[int]:
        """The n likeliest next tokens, one after the other."""
        logits = self.logits(ids)[-1]
        tokens: list[int] = []
        while len(tokens) < n:
            tokens.append(int(np.argmax(logits)))
            self.llama.eval(tokens[-1:])
            logits = np.array(self.llama.scores[len(ids) + len(tokens) - 1])
        return tokens


@dataclass
class Case:
    """One trained model in every form that is compared."""

    name: str
    checkpoint: Path
    f16: Path

    @property
    def tolerance(self) -> float:
        return SIXTEEN_BIT[self.name]

    @cached_property
    def llama(self) -> Llama:
        return Llama(self.f16)

    @cached_property
    def torch(self) -> LLM:
        return phicourse.load(self.f16, backend="torch", n_ctx=512)

    @cached_property
    def native(self) -> LLM:
        if native_module() is None:
            pytest.skip("needs the compiled engine")
        return phicourse.load(self.f16, n_ctx=512, threads=1)

    @cached_property
    def transformers(self) -> "torch.nn.Module":
        return transformers.AutoModelForCausalLM.from_pretrained(self.checkpoint, dtype=torch.float32).eval()

    def transformers_logits(self, ids: list[int]) -> np.ndarray:
        with torch.inference_mode():
            return self.transformers(torch.tensor([ids])).logits[0].float().numpy()

    def prompt(self) -> list[int]:
        return self.torch.tokenize(PROMPT, special=True)


@pytest.fixture(scope="module", params=["stories260K", "phi-tiny"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    if request.param == "phi-tiny":
        checkpoint = request.getfixturevalue("phi_tiny")
        if not (checkpoint / "model.safetensors").exists():
            pytest.skip("needs the weights of data/phi-tiny")
    else:
        checkpoint = request.getfixturevalue("stories260k")
    f16 = tmp_path_factory.mktemp("oracle") / f"{request.param}-F16.gguf"
    phicourse.convert(checkpoint, f16, "f16", progress=False)
    yield Case(request.param, checkpoint, f16)


def greedy(llm: LLM, ids: list[int], n: int) -> list[int]:
    """The engine's own loop, without an end."""
    tokens: list[int] = []
    sampler = Sampler(temperature=0)
    while len(tokens) < n:
        tokens.append(sampler.sample(llm.context.logits_after([*ids, *tokens])))
    return tokens


def largest_difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(log_probabilities(a) - log_probabilities(b)).max())


@pytest.mark.parametrize("engine", ["native", "torch"])
def test_greedy_tokens_are_llama_cpps(case: Case, engine: str) -> None:
    ids = case.prompt()
    assert greedy(getattr(case, engine), ids, N_TOKENS) == case.llama.greedy(ids, N_TOKENS)


def test_greedy_tokens_are_those_of_transformers_on_the_checkpoint(case: Case) -> None:
    ids = case.prompt()
    with torch.inference_mode():
        out = case.transformers.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=N_TOKENS,
            min_new_tokens=N_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
    assert greedy(case.torch, ids, N_TOKENS) == out[0, len(ids) :].tolist()


@pytest.mark.parametrize("engine", ["native", "torch"])
def test_log_probabilities_agree_with_llama_cpp(case: Case, engine: str) -> None:
    ids = [*case.prompt(), *case.llama.greedy(case.prompt(), N_TOKENS)]
    assert largest_difference(getattr(case, engine).logits(ids), case.llama.logits(ids)) < case.tolerance


def test_in_float32_throughout_torch_is_llama_cpp(case: Case, tmp_path: Path) -> None:
    f32 = phicourse.convert(case.checkpoint, tmp_path / f"{case.name}-F32.gguf", "f32", progress=False)
    ids = [*case.prompt(), *case.llama.greedy(case.prompt(), N_TOKENS)]
    theirs = Llama(f32, cache_type=llama_cpp.GGML_TYPE_F32).logits(ids)
    ours = phicourse.load(f32, backend="torch", n_ctx=512).logits(ids)
    assert largest_difference(ours, theirs) < FLOAT32


def test_engine_and_torch_agree(case: Case) -> None:
    ids = case.prompt()
    assert largest_difference(case.native.logits(ids), case.torch.logits(ids)) < case.tolerance


def test_torch_agrees_with_transformers(case: Case) -> None:
    ids = case.prompt()
    of_checkpoint = phicourse.load(case.checkpoint, backend="torch", n_ctx=512).logits(ids)
    assert largest_difference(of_checkpoint, case.transformers_logits(ids)) < FLOAT32
    assert largest_difference(case.torch.logits(ids), case.transformers_logits(ids)) < case.tolerance


@pytest.mark.parametrize("engine", ["native", "torch"])
def test_perplexity_is_that_of_llama_cpps_logits(case: Case, engine: str, shared_data: Path) -> None:
    llm: LLM = getattr(case, engine)
    text = (shared_data / "text" / "tinystories_heldout.txt").read_text()[:6000]
    ids, n_ctx, n_chunks = llm.tokenizer.encode(text), 128, 4
    losses = []
    for i in range(n_chunks):
        chunk = ids[i * n_ctx : (i + 1) * n_ctx]
        logits = case.llama.logits([llm.tokenizer.bos, *chunk[1:]])
        losses.append(negative_log_likelihoods(logits[n_ctx // 2 : -1], chunk[n_ctx // 2 + 1 :]))
    theirs = Perplexity.of(np.concatenate(losses), n_chunks, n_ctx)
    ours = perplexity(llm.context, ids, n_ctx=n_ctx, chunks=n_chunks, bos=llm.tokenizer.bos)
    assert ours.tokens == theirs.tokens == n_chunks * 63
    # the errors of single logits cancel in the mean
    assert ours.perplexity == pytest.approx(theirs.perplexity, rel=2e-3)
    assert ours.stderr == pytest.approx(theirs.stderr, rel=1e-2)


@pytest.fixture(scope="module")
def random_f16(tmp_path_factory: pytest.TempPathFactory, phi_tiny: Path) -> Path:
    """A Phi whose rows every type divides."""
    folder = tmp_path_factory.mktemp("random")
    checkpoint = write_random_phi(folder / "random-tiny", phi_tiny)
    return phicourse.convert(checkpoint, folder / "random-tiny-F16.gguf", "f16", progress=False)


@pytest.fixture(scope="module")
def random_importance(random_f16: Path) -> ImportanceMatrix:
    text = "Once upon a time there was a little dog. The dog ran to the park. " * 20
    return gather_importance(phicourse.load(random_f16), text, n_ctx=64)


@pytest.mark.parametrize("mix", MIXES)
def test_llama_cpp_loads_every_mix_and_expects_what_we_expect(
    mix: str, random_f16: Path, random_importance: ImportanceMatrix, tmp_path: Path
) -> None:
    imatrix = random_importance if MIXES[mix].needs_importance else None
    path = phicourse.quantize(random_f16, tmp_path / f"{mix}.gguf", mix, imatrix=imatrix, progress=False)
    ids = list(range(300, 360))
    # at 256 the context ends where LongRoPE switches: llama.cpp goes by the context, we by the text
    theirs, ours = Llama(path, n_ctx=256).logits(ids), phicourse.load(path, n_ctx=256, threads=1).logits(ids)
    assert np.isfinite(theirs).all()
    # Activations are rounded to 8 bits at other places: logits of standard deviation 3 move by some hundredths.
    difference = log_probabilities(ours) - log_probabilities(theirs)
    assert np.sqrt((difference**2).mean()) < 0.06
    assert largest_difference(ours, theirs) < 0.5


@pytest.mark.parametrize("outtype", ["f32", "f16", "bf16", "q8_0"])
def test_llama_cpp_loads_every_outtype(outtype: str, case: Case, tmp_path: Path) -> None:
    path = phicourse.convert(case.checkpoint, tmp_path / f"stories-{outtype}.gguf", outtype, progress=False)
    logits = Llama(path).logits(case.prompt())
    assert largest_difference(logits, case.llama.logits(case.prompt())) < 0.5


def llama_cpp_candidates(logits: np.ndarray, *samplers: ctypes.c_void_p) -> dict[int, float]:
    """The tokens that llama.cpp's samplers leave, with their logits."""
    data = (llama_cpp.llama_token_data * logits.size)()
    for i, logit in enumerate(logits):
        data[i].id, data[i].logit, data[i].p = i, float(logit), 0.0
    array = llama_cpp.llama_token_data_array(data, logits.size, -1, False)
    for sampler in samplers:
        llama_cpp.llama_sampler_apply(sampler, ctypes.byref(array))
        llama_cpp.llama_sampler_free(sampler)
    return {array.data[i].id: array.data[i].logit for i in range(array.size) if array.data[i].logit > -np.inf}


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    ("k", "p", "m", "t"),
    [(40, 0.95, 0.05, 0.8), (0, 0.5, 0, 1.5), (5, 1, 0.3, 0.2), (0, 1, 0.01, 1), (0, 0.9, 0, 0)],
)
def test_the_sampler_chain_leaves_what_llama_cpps_leaves(
    seed: int, k: int, p: float, m: float, t: float
) -> None:
    logits = (3 * np.random.default_rng(seed).standard_normal(2000)).astype(np.float32)
    history = np.random.default_rng(seed + 100).integers(0, 2000, 100).tolist()
    penalties = llama_cpp.llama_sampler_init_penalties(logits.size, 64, 1.3, 0.0, 0.0)
    for token in history:
        llama_cpp.llama_sampler_accept(penalties, token)
    theirs = llama_cpp_candidates(
        logits,
        penalties,
        llama_cpp.llama_sampler_init_top_k(k),
        llama_cpp.llama_sampler_init_top_p(p, 1),
        llama_cpp.llama_sampler_init_min_p(m, 1),
        llama_cpp.llama_sampler_init_temp(t),
    )
    sampler = Sampler(temperature=t, top_k=k, top_p=p, min_p=m, repeat_penalty=1.3)
    ours = sampler.filter(logits, history)
    assert set(np.flatnonzero(ours > -np.inf).tolist()) == set(theirs)
    if t > 0:
        ids = list(theirs)
        np.testing.assert_allclose(ours[ids], [theirs[i] for i in ids], rtol=1e-6)
