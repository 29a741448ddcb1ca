"""Trials of mixes, with phi-tiny and a short text."""

from pathlib import Path

import numpy as np
import pytest

from phicourse.convert import convert
from phicourse.errors import GenerateError, QuantizeError
from phicourse.evaluate.kl_divergence import compare_positions, log_probabilities
from phicourse.evaluate.trials import MixTrials
from phicourse.generate import load
from phicourse.gguf import GGUFFile
from phicourse.quantize import quantize

TEXT = "One day, a girl found a small box in the garden. She wanted to know what was in it, so she opened it."


@pytest.fixture(scope="module")
def f16(phi_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(phi_tiny, tmp_path_factory.mktemp("f16") / "f16.gguf", "f16", progress=False)


@pytest.fixture
def trials(f16: Path, tmp_path: Path) -> MixTrials:
    return MixTrials(f16, TEXT, tmp_path, prompt="Once", n_tokens=32, max_tokens=4)


def test_the_divergence_is_that_of_the_two_models_on_the_text(
    trials: MixTrials, f16: Path, tmp_path: Path
) -> None:
    trial = trials.measure("Q3_K_S")
    original, other = load(f16), load(quantize(f16, tmp_path / "other.gguf", "Q3_K_S", progress=False))
    ids = [*original.tokenize("", special=True), *original.tokenize(TEXT)][:32]
    base = log_probabilities(original.logits(ids[:-1])).astype(np.float32)
    expected = compare_positions(base, other.logits(ids[:-1]), ids[1:]).summary()
    assert trial.divergence == expected and expected.mean > 0.001
    assert trial.text == other.generate("Once", max_tokens=4, temperature=0)
    assert trial.plan.nbytes == sum(t.nbytes for t in GGUFFile.open(tmp_path / "other.gguf").tensors.values())


def test_the_original_is_nowhere_from_itself(trials: MixTrials) -> None:
    assert trials.measure("F16").divergence.mean < 1e-7  # the original's odds are kept as float32


def test_a_mix_is_made_once(trials: MixTrials, monkeypatch: pytest.MonkeyPatch) -> None:
    first = trials.measure("Q8_0", ("output=q2_k", ".=f16"))
    monkeypatch.setattr(trials, "_measure", lambda *mix: pytest.fail("made again"))
    assert trials.measure("q8_0", ["output=q2_k", ".=f16"]) is first


def test_one_tensor_is_spoiled_and_no_other(trials: MixTrials) -> None:
    trial = trials.measure("Q8_0", ("^output.weight$=q2_k", ".=f16"))
    quantized = [t.source.name for t in trial.plan.tensors if t.type.block > 1]
    assert quantized == ["output.weight"] and trial.divergence.mean > 0.01
    assert "KL" in str(trial) and "MB" in str(trial)


def test_a_mix_that_needs_importance_is_refused(trials: MixTrials) -> None:
    with pytest.raises(QuantizeError, match="importance matrix"):
        trials.measure("IQ2_XXS")


def test_a_text_without_tokens_is_refused(f16: Path, tmp_path: Path) -> None:
    with pytest.raises(GenerateError, match="no tokens"):
        MixTrials(f16, "", tmp_path)
