"""Past the sliding window and past LongRoPE's switch: transformers' logits, from the checkpoint through a GGUF file.

A model that was trained with a window has never seen more. llama.cpp leaves Phi's window out, and chooses LongRoPE's
factors once, by the size of the context: there its logits are others, while all else is the same. The engine reads the
text token by token, as it would write it: past the switch its logits are those of a fresh pass over the whole text.

Log-probabilities over the whole vocabulary, float32 throughout: 1e-4, only the order of sums differs (measured 1e-5).
What differs is off by more than 0.1.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_phi import TOKENIZER_FILES

import phicourse
from phicourse.evaluate.kl_divergence import log_probabilities
from phicourse.generate import LLM
from phicourse.generate.backends import native_module

llama_cpp = pytest.importorskip("llama_cpp")
transformers = pytest.importorskip("transformers", minversion="5.0")
torch = pytest.importorskip("torch")

FLOAT32, OTHERS = 1e-4, 0.1
WINDOW, ORIGINAL, CONTEXT = 12, 24, 64  # tokens: what is seen, where LongRoPE switches, and the most
IDS = np.random.default_rng(5).integers(3, 2000, 40).tolist()
SIZES: dict[str, Any] = {
    "vocab_size": 2048,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2032,
    "pad_token_id": 2032,
    "initializer_range": 1 / 8,
}
LONGROPE: dict[str, Any] = {
    "original_max_position_embeddings": ORIGINAL,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1 + 0.01 * i for i in range(16)],
        "long_factor": [1 + 0.5 * i for i in range(16)],
        "original_max_position_embeddings": ORIGINAL,
    },
}
CONFIGS: dict[str, dict[str, Any]] = {
    "window": {"sliding_window": WINDOW, "max_position_embeddings": CONTEXT},
    "switch": {"sliding_window": None, "max_position_embeddings": CONTEXT} | LONGROPE,
    "both": {"sliding_window": WINDOW, "max_position_embeddings": CONTEXT} | LONGROPE,
}


@dataclass
class Case:
    """transformers' log-probabilities (n, vocab) after each of IDS of a fresh pass over what is before, and a file."""

    name: str
    expected: np.ndarray
    f32: Path

    def load(self, **options: Any) -> LLM:
        return phicourse.load(self.f32, **options)

    def llama_cpp(self) -> np.ndarray:
        """llama.cpp's (n, vocab)."""
        f32 = llama_cpp.GGML_TYPE_F32
        llama = llama_cpp.Llama(
            str(self.f32), n_ctx=CONTEXT, logits_all=True, type_k=f32, type_v=f32, verbose=False
        )
        llama.eval(IDS)
        return log_probabilities(np.array(llama.scores[: len(IDS)]))


@pytest.fixture(scope="module", params=CONFIGS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, phi_tiny: Path) -> Case:
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    config = transformers.Phi3Config(**SIZES, **CONFIGS[request.param])
    theirs = transformers.Phi3ForCausalLM(config).eval()
    with torch.no_grad():
        theirs.lm_head.weight *= 3
        fresh = [theirs(torch.tensor([IDS[:n]])).logits[0, -1].numpy() for n in range(1, len(IDS) + 1)]
    theirs.save_pretrained(folder)
    for file in TOKENIZER_FILES:
        shutil.copy(phi_tiny / file, folder / file)
    f32 = phicourse.convert(folder, folder / "f32.gguf", "f32", progress=False)
    return Case(request.param, log_probabilities(np.stack(fresh)), f32)


def differences(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The largest for each token (n,)."""
    largest: np.ndarray = np.abs(a - b).max(axis=1)
    return largest


@pytest.mark.parametrize(
    "options",
    [
        {"backend": "native", "cache_type": "F32"},
        {"backend": "torch"},
        {"gpu_layers": 1, "cache_type": "F32"},
    ],
    ids=["native", "torch", "hybrid"],
)
def test_token_by_token_we_expect_what_transformers_does_of_the_whole_text(
    case: Case, options: dict[str, Any]
) -> None:
    if options.get("backend") != "torch" and native_module() is None:
        pytest.skip("needs the compiled engine")
    llm = case.load(**options)
    logits = np.stack([llm.context.logits_after(IDS[:n]) for n in range(1, len(IDS) + 1)])
    assert differences(log_probabilities(logits), case.expected).max() < FLOAT32


def test_the_switch_changes_much(case: Case) -> None:
    """What is compared above depends on which factors are used."""
    if case.name == "window":
        return
    config = transformers.AutoConfig.from_pretrained(case.f32.parent)
    config.rope_parameters["long_factor"] = config.rope_parameters["short_factor"]
    never = transformers.AutoModelForCausalLM.from_pretrained(case.f32.parent, config=config).eval()
    with torch.inference_mode():
        logits = never(torch.tensor([IDS])).logits[0, -1:].numpy()
    assert differences(log_probabilities(logits), case.expected[-1:]).max() > OTHERS


def test_llama_cpp_does_not(case: Case) -> None:
    """It keeps at least 256 positions, which is beyond our switch: long factors from the first token on."""
    got = differences(case.llama_cpp(), case.expected)
    if case.name == "window":
        assert got[:WINDOW].max() < FLOAT32  # all else is the same
        assert got[WINDOW:].min() > FLOAT32 and got[WINDOW:].max() > OTHERS
    elif case.name == "switch":
        assert got[ORIGINAL:].max() < FLOAT32
        assert got[1:ORIGINAL].max() > OTHERS
    else:
        assert got[1:ORIGINAL].max() > OTHERS and got[ORIGINAL:].max() > OTHERS
