"""Keys and values in fewer bits: how much they take, how much they change, and what is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import phicourse
from phicourse.errors import GenerateError
from phicourse.generate import backends, cache_size
from phicourse.generate.backends import engine_config, engine_tensors
from phicourse.generate.cache_size import CACHE_TYPES, kv_cache_bytes
from phicourse.gguf import GGUFFile

pytestmark = pytest.mark.skipif(backends.native_module() is None, reason="needs the compiled engine")
# Mean KL divergence to keys and values in float32, over a text; as measured, times about three.
ALLOWED = {"F32": 1e-12, "F16": 1e-6, "BF16": 1e-4, "Q8_0": 1e-4, "Q4_0": 0.05}


@pytest.fixture(scope="module")
def gguf(phi_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return phicourse.convert(phi_tiny, tmp_path_factory.mktemp("cache") / "f16.gguf", progress=False)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("cache_type", CACHE_TYPES)
def test_fewer_bits_change_little(gguf: Path, phi_tiny: Path, cache_type: str) -> None:
    text = (phi_tiny.parent / "text" / "stories_01.txt").read_text(encoding="utf-8")
    expected, got = (phicourse.load(gguf, cache_type=name) for name in ("f32", cache_type.lower()))
    ids = expected.tokenize(text)[:400]
    true, other = log_softmax(expected.logits(ids)), log_softmax(got.logits(ids))
    divergence = float((np.exp(true) * (true - other)).sum(axis=-1).mean())
    assert divergence < ALLOWED[cache_type]
    assert (divergence > 0) == (cache_type != "F32")


@pytest.mark.parametrize("cache_type", CACHE_TYPES)
def test_the_engine_takes_what_was_foretold(gguf: Path, cache_type: str) -> None:
    with GGUFFile.open(gguf) as file:
        config = phicourse.load(gguf).config
        for n_ctx in (1, 32, 33, 500):
            tensors = engine_tensors(backends.native_module(), file, file.tensors.values())
            engine = backends.native_module().Engine(engine_config(config), tensors, n_ctx, 1, cache_type)
            assert engine.cache_bytes == kv_cache_bytes(config, n_ctx, cache_type)


def test_what_real_models_need(gguf: Path) -> None:
    """Phi-3.5-mini: 32 layers of 32 heads of 96 numbers; Phi-2's heads of 80 are padded where they are coded."""
    small = phicourse.load(gguf).config
    config = replace(
        small, n_layers=32, n_heads=32, n_kv_heads=32, head_size=96, hidden_size=3072, rope_size=64
    )
    assert kv_cache_bytes(config, 4096) == 2 * 32 * 32 * 96 * 2 * 4096
    assert kv_cache_bytes(config, 4096, "Q8_0") / kv_cache_bytes(config, 4096) == 34 / 64
    assert kv_cache_bytes(config, 4096, "Q4_0") / kv_cache_bytes(config, 4096) == 18 / 64
    phi2 = replace(config, head_size=80, hidden_size=2560)
    assert kv_cache_bytes(phi2, 4096) == 2 * 32 * 32 * 80 * 2 * 4096
    assert kv_cache_bytes(phi2, 4096, "Q8_0") == 2 * 32 * 32 * 96 * 34 // 32 * 4096


def test_a_cache_that_does_not_fit_is_told_before_it_is_taken(
    gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_size, "available_memory", lambda: 1_000_000)
    with pytest.raises(
        GenerateError, match=r"of 512 tokens need \S+ MB as F16, 1\.00 MB of memory are free: ask for"
    ):
        phicourse.load(gguf, n_ctx=512)
    monkeypatch.setattr(cache_size, "available_memory", lambda: None)
    assert phicourse.load(gguf, n_ctx=512).n_ctx == 512


def test_no_memory_to_work_in_is_told_in_a_line(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def engine(*arguments: object) -> None:
        raise MemoryError("std::bad_alloc")

    monkeypatch.setattr(backends.native_module(), "Engine", engine)
    with pytest.raises(
        GenerateError, match=r"no memory to read a context of 64 tokens with 2 threads: ask for"
    ):
        phicourse.load(gguf, n_ctx=64, threads=2)


def test_an_unknown_type_is_refused(gguf: Path) -> None:
    with pytest.raises(GenerateError, match="unknown cache type 'q5_0'; known are F16, BF16"):
        phicourse.load(gguf, cache_type="q5_0")
