"""The file format to the byte, and the divergence against scipy-free arithmetic."""

import math
import struct
from pathlib import Path

import numpy as np
import pytest
from fake_model import BOS, VOCAB, FakeBackend, fake_llm

from phicourse.errors import GenerateError
from phicourse.evaluate import compare, evaluate_text, perplexity, read_base, write_base
from phicourse.evaluate.kl_divergence import compare_positions, decode, encode, log_probabilities
from phicourse.generate.context import Context

IDS = np.random.default_rng(12).integers(0, 256, 100).tolist()


class Bent(FakeBackend):
    """The same model with every logit a little off."""

    def forward(self, ids: np.ndarray, all_logits: bool) -> np.ndarray:
        logits = super().forward(ids, all_logits)
        return logits + 0.3 * np.sin(np.arange(logits.shape[1], dtype=np.float32))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    write_base(tmp_path / "base.kld", Context(FakeBackend()), IDS, n_ctx=16, bos=BOS)
    return tmp_path / "base.kld"


def test_the_file_is_laid_out_as_llama_perplexity_lays_it_out(base: Path) -> None:
    raw = base.read_bytes()
    assert raw[:8] == b"_logits_"
    assert struct.unpack_from("<3i", raw, 8) == (16, VOCAB, 6)
    assert list(struct.unpack_from("<96i", raw, 20)) == IDS[:96]
    position = 2 * 4 + 2 * VOCAB  # two floats, then one uint16 a token (an even number of them)
    assert len(raw) == 20 + 96 * 4 + 6 * 7 * position
    scale, minimum = struct.unpack_from("<2f", raw, 20 + 96 * 4)
    codes = np.frombuffer(raw, "<u2", VOCAB, 20 + 96 * 4 + 8)
    assert np.exp(scale * codes.astype(float) + minimum).sum() == pytest.approx(1, abs=1e-3)
    assert codes.max() == 65535


def test_an_odd_vocabulary_is_padded() -> None:
    logits = np.random.default_rng(1).standard_normal((2, 5)).astype(np.float32)
    positions = encode(logits)
    assert positions.dtype.itemsize == 8 + 6 * 2
    np.testing.assert_allclose(decode(positions, 5), log_probabilities(logits), atol=1e-4)


def test_log_probabilities_are_kept_to_a_level_and_clipped_at_16() -> None:
    logits = np.array([[0, -5, -10, -40]], np.float32)
    kept = decode(encode(logits), 4)
    exact = log_probabilities(logits)
    np.testing.assert_allclose(kept[0, :3], exact[0, :3], atol=16 / 65535)
    assert kept[0, 3] == pytest.approx(exact[0, 0] - 16, abs=1e-3)


def test_equal_logits_have_no_scale() -> None:
    np.testing.assert_allclose(decode(encode(np.zeros((1, 4), np.float32)), 4), -math.log(4), rtol=1e-6)


def test_a_model_does_not_diverge_from_itself(base: Path) -> None:
    result, divergence = compare(read_base(base), Context(FakeBackend()), bos=BOS)
    assert result == perplexity(Context(FakeBackend()), IDS, n_ctx=16, bos=BOS)
    assert abs(divergence.mean) < 1e-4  # 16-bit log-probabilities
    assert divergence.same_top == 1
    assert divergence.rms_delta_p < 1e-4
    assert divergence.base_perplexity == pytest.approx(result.perplexity, rel=1e-3)


def test_divergence_is_the_sum_over_the_vocabulary(base: Path) -> None:
    seen: list[float] = []
    result, divergence = compare(
        read_base(base),
        Context(Bent()),
        bos=BOS,
        chunks=2,
        progress=lambda done, chunks, value: seen.append(value),
    )
    assert result.tokens == 14
    exact = []
    for i in range(2):
        ids = [BOS, *IDS[16 * i + 1 : 16 * i + 15]]
        p, q = (
            log_probabilities(backend.forward(np.array(ids), True)[8:]) for backend in (FakeBackend(), Bent())
        )
        exact += (np.exp(p) * (p - q)).sum(axis=1).tolist()
    assert divergence.mean == pytest.approx(np.mean(exact), rel=0.01)
    assert divergence.median == pytest.approx(np.median(exact), rel=0.01)
    assert divergence.maximum == pytest.approx(max(exact), rel=0.01)
    assert divergence.stderr == pytest.approx(np.std(exact, ddof=1) / math.sqrt(14), rel=0.01)
    assert seen[-1] == divergence.mean
    assert 0 < divergence.same_top < 1


def test_compare_positions_by_hand() -> None:
    base = np.log(np.array([[0.5, 0.5]], np.float32))
    found = compare_positions(base, np.log(np.array([[0.25, 0.75]], np.float32)), [1])
    assert found.divergence[0] == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert found.delta_p[0] == pytest.approx(0.25)
    assert found.base_loss[0] == pytest.approx(math.log(2))


@pytest.mark.parametrize("size", [0, 19, 400, -1])
def test_a_cut_file_is_refused(base: Path, size: int) -> None:
    base.write_bytes(base.read_bytes()[:size])
    with pytest.raises(GenerateError, match=r"is no file|header promises"):
        read_base(base)


def test_a_lying_header_is_refused(base: Path) -> None:
    raw = bytearray(base.read_bytes())
    for numbers in [(16, 1 << 30, 6), (-1, VOCAB, 6), (16, VOCAB, -6), (1 << 30, VOCAB, 1 << 30)]:
        raw[8:20] = struct.pack("<3i", *numbers)
        base.write_bytes(raw)
        with pytest.raises(GenerateError, match=r"impossible|promises"):
            read_base(base)


def test_another_vocabulary_or_a_small_context_is_refused(base: Path) -> None:
    with pytest.raises(GenerateError, match="--ctx 16"):
        compare(read_base(base), Context(FakeBackend(n_ctx=12)))
    other = FakeBackend()
    other.__class__ = type("Other", (FakeBackend,), {"config": type("C", (), {"vocab_size": 7})})
    with pytest.raises(GenerateError, match="vocabulary of 258, this one of 7"):
        compare(read_base(base), Context(other))


def test_the_base_is_written_when_missing_and_compared_with_when_there(tmp_path: Path) -> None:
    path, text = tmp_path / "b.kld", "x" * 100
    first = evaluate_text(fake_llm(n_ctx=16, end=False), text, kl_base=path)
    assert "kl" not in first
    assert path.exists()
    second = evaluate_text(fake_llm(n_ctx=16, end=False), text, kl_base=path)
    assert (
        second["perplexity"]
        == first["perplexity"]
        == evaluate_text(fake_llm(n_ctx=16, end=False), text)["perplexity"]
    )
    assert second["kl"]["same_top"] == 1
    with pytest.raises(GenerateError, match="another text"):
        evaluate_text(fake_llm(n_ctx=16, end=False), "y" * 100, kl_base=path)
