"""Quantized phi-tiny in our engine and in llama.cpp (llama-cpp-python 0.3.36, ggml 0.25.3): perplexity, divergence.

perplexity     within 0.2 % of llama.cpp's on the same chunks (measured: 0.05 to 0.07 %). Both round activations to
               8 bits, in blocks of 32 or 256, and keep keys and values as float16
KL divergence  from the model in PyTorch, float32 on the weights that the file stands for: what the engine loses by its
               8-bit activations. Below 1e-3 in the mean for every type of 4 bits and more
"""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import phicourse
from phicourse.evaluate import perplexity
from phicourse.evaluate.kl_divergence import log_probabilities
from phicourse.evaluate.perplexity import negative_log_likelihoods
from phicourse.generate.backends import native_module
from phicourse.gguf import tensor_type
from phicourse.quantize.registry import QUANTIZERS

llama_cpp = pytest.importorskip("llama_cpp")
pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(native_module() is None, reason="needs the compiled engine")

QUIET = llama_cpp.llama_log_callback(lambda *_: None)  # llama.cpp keeps the address
N_CTX = 512  # where phi-tiny's LongRoPE switches: llama.cpp then takes the short factors, as we do
FOUR_BITS = tuple(name for name in QUANTIZERS if 4 <= tensor_type(name).bits_per_weight < 16)


class LlamaCpp:
    """A model in llama.cpp through its own functions: a batch in, logits out, as llama-perplexity does it."""

    def __init__(self, path: Path) -> None:
        llama_cpp.llama_backend_init()
        llama_cpp.llama_log_set(QUIET, None)
        self.model = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params()
        )
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = N_CTX
        params.n_threads = params.n_threads_batch = 1
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))

    def logits(self, ids: list[int], first: int = 0) -> np.ndarray:
        """The logits after ids[first:], which are read at once from an empty cache: (n, vocab) float32."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.logits[i] = token, i, i >= first
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
        assert llama_cpp.llama_decode(self.context, batch) == 0
        llama_cpp.llama_batch_free(batch)
        rows = llama_cpp.llama_get_logits(self.context)
        return np.ctypeslib.as_array(rows, (len(ids) - first, self.n_vocab)).copy()

    def close(self) -> None:
        llama_cpp.llama_free(self.context)
        llama_cpp.llama_model_free(self.model)


def llama_perplexity(path: Path, ids: list[int], n_ctx: int, n_chunks: int, bos: int) -> float:
    """What llama-perplexity prints: non-overlapping chunks after BOS, of which the second half is scored."""
    model, losses = LlamaCpp(path), []
    for start in range(0, n_chunks * n_ctx, n_ctx):
        chunk = [bos, *ids[start + 1 : start + n_ctx]]
        logits = model.logits(chunk, first=n_ctx // 2)[:-1]
        losses.append(negative_log_likelihoods(logits, chunk[n_ctx // 2 + 1 :]))
    model.close()
    return math.exp(np.concatenate(losses).mean())


@pytest.fixture(scope="module")
def f16(phi_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return phicourse.convert(phi_tiny, tmp_path_factory.mktemp("quality") / "f16.gguf", progress=False)


@pytest.fixture(scope="module")
def text(phi_tiny: Path) -> str:
    return (phi_tiny.parent / "text" / "stories_01.txt").read_text(encoding="utf-8")[:40_000]


@pytest.mark.parametrize("mix", ["Q4_K_M", "Q8_0", "IQ4_XS"])
def test_perplexity_is_llama_cpps(mix: str, f16: Path, text: str, tmp_path: Path) -> None:
    path = phicourse.quantize(f16, tmp_path / "quantized.gguf", mix, progress=False)
    llm = phicourse.load(path, n_ctx=N_CTX)
    ids, bos = llm.tokenizer.encode(text), llm.tokenizer.bos
    assert bos is not None
    ours = perplexity(llm.context, ids, n_ctx=256, chunks=16, bos=bos)
    assert ours.tokens == 16 * 127
    assert ours.perplexity == pytest.approx(llama_perplexity(path, ids, 256, 16, bos), rel=2e-3)


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """Lines that are shown when all types are through."""
    rows: list[str] = []
    yield rows
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(
            "\nmean KL divergence from torch on the same weights",
            f"{'type':>8} {'ours':>10} llama.cpp",
            *rows,
            sep="\n",
        )


@pytest.mark.parametrize("type_name", FOUR_BITS)
def test_the_engine_expects_what_torch_expects(
    type_name: str, f16: Path, text: str, tmp_path: Path, table: list[str]
) -> None:
    path = phicourse.quantize(
        f16, tmp_path / "pure.gguf", "Q8_0", tensor_types=[f".*={type_name}"], progress=False
    )
    llm = phicourse.load(path, n_ctx=N_CTX)
    assert {t.type for t in llm.tensors if len(t.shape) > 1} == {type_name}
    ids = llm.tokenize(text, special=True)[:N_CTX]
    expected = log_probabilities(phicourse.load(path, backend="torch", n_ctx=N_CTX).logits(ids))
    model = LlamaCpp(path)
    ours, theirs = (
        float((np.exp(expected) * (expected - log_probabilities(logits))).sum(axis=1).mean())
        for logits in (llm.logits(ids), model.logits(ids))
    )
    model.close()
    table.append(f"{type_name:>8} {ours:10.2e} {theirs:9.2e}")
    assert 0 < ours < 1e-3
