"""Both backends on a small random Phi: the same logits however the text is cut, and clear refusals."""

from pathlib import Path

import numpy as np
import pytest
from random_phi import write_random_phi

import phicourse
from phicourse.errors import GenerateError, ModelError
from phicourse.generate import backends
from phicourse.generate.backends import Backend, NativeBackend, TorchBackend, context_size, thread_count
from phicourse.generate.context import Context
from phicourse.gguf import GGUFFile, GGUFWriter

SWITCH = 32  # LongRoPE's, half the context
IDS = np.random.default_rng(3).integers(0, 2032, 60).tolist()


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory, phi_tiny: Path) -> Path:
    folder = tmp_path_factory.mktemp("backends")
    checkpoint = write_random_phi(folder / "random-tiny", phi_tiny, layers=2, context=2 * SWITCH)
    return phicourse.convert(checkpoint, folder / "random-tiny-F16.gguf", "f16", progress=False)


@pytest.fixture(params=["native", "torch"])
def backend(request: pytest.FixtureRequest, gguf: Path) -> Backend:
    if request.param == "torch":
        pytest.importorskip("torch")
        return TorchBackend(GGUFFile.open(gguf))
    if backends.native_module() is None:
        pytest.skip("needs the compiled engine")
    return NativeBackend(GGUFFile.open(gguf), threads=1)


def fresh(backend: Backend, ids: list[int]) -> np.ndarray:
    """The logits after ids, read at once from nothing."""
    backend.truncate(0)
    return backend.forward(np.array(ids, np.int32), False)[0]


def assert_same(backend: Backend, a: np.ndarray, b: np.ndarray) -> None:
    """The engine promises the same bits; torch's sums may run in another order."""
    tolerance = 0 if isinstance(backend, NativeBackend) else 1e-3
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


@pytest.mark.parametrize("cuts", [[], [1], [20], [5, 6, 7], [31], [32], [33], [40, 50]])
def test_logits_do_not_depend_on_how_the_text_is_cut(backend: Backend, cuts: list[int]) -> None:
    """The text crosses LongRoPE's switch at 32: what was cached before it must not be used after it."""
    expected = fresh(backend, IDS)
    backend.truncate(0)
    for part in np.split(np.array(IDS, np.int32), cuts):
        logits = backend.forward(part, False)
    assert_same(backend, logits[0], expected)


def test_logits_after_going_back_over_the_switch(backend: Backend) -> None:
    short = fresh(backend, IDS[:20])
    context = Context(backend)
    context.logits_after(IDS)
    assert_same(backend, context.logits_after(IDS[:20]), short)
    assert backend.position == 20
    assert_same(backend, context.logits_after(IDS), fresh(backend, IDS))


def test_all_logits_end_with_the_last(backend: Backend) -> None:
    last = fresh(backend, IDS)
    backend.truncate(0)
    logits = backend.forward(np.array(IDS, np.int32), True)
    assert logits.shape == (len(IDS), backend.config.vocab_size)
    assert logits.dtype == np.float32
    assert_same(backend, logits[-1], last)


def test_both_backends_agree(gguf: Path) -> None:
    pytest.importorskip("torch")
    if backends.native_module() is None:
        pytest.skip("needs the compiled engine")
    for ids in (IDS[:SWITCH], IDS):
        native, torch = (phicourse.load(gguf, backend=name).logits(ids) for name in ("native", "torch"))
        # the engine rounds keys, values and activations to float16: 1e-3 of logits up to 10
        assert np.abs(native - torch).max() < 2e-2


@pytest.mark.parametrize("token", [-1, 2048, 1 << 30])
def test_ids_outside_the_vocabulary_are_refused(backend: Backend, token: int) -> None:
    with pytest.raises(GenerateError, match=f"token {token} is not in the vocabulary"):
        backend.forward(np.array([1, token], np.int32), False)
    assert backend.position == 0


def test_context_and_threads_are_checked(backend: Backend) -> None:
    assert context_size(backend.config, None) == context_size(backend.config, 0) == 2 * SWITCH
    for wrong in (-1, 2 * SWITCH + 1):
        with pytest.raises(GenerateError, match="1 to 64"):
            context_size(backend.config, wrong)
    with pytest.raises(GenerateError, match="threads"):
        thread_count(0)
    assert thread_count(None) >= 1


def test_without_the_engine_torch_takes_over_and_says_so(
    gguf: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    monkeypatch.setattr(backends, "native_module", lambda: None)
    llm = phicourse.load(gguf)
    assert isinstance(llm.backend, TorchBackend)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        "phicourse: the C++ engine is not built (phicourse doctor); using PyTorch, slowly"
    ]
    with pytest.raises(ModelError, match="not built"):
        NativeBackend(GGUFFile.open(gguf))


def test_types_that_the_engine_lacks_go_to_torch(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "ENGINE_TYPES", frozenset({"F32"}))
    monkeypatch.setattr(backends, "native_module", lambda: object())
    assert "F16" in str(backends.why_not_native(GGUFFile.open(gguf)))


def test_a_checkpoint_runs_in_torch_only(gguf: Path) -> None:
    pytest.importorskip("torch")
    checkpoint = gguf.parent / "random-tiny"
    with pytest.raises(GenerateError, match="phicourse convert"):
        phicourse.load(checkpoint)
    # BF16 weights are exact in F16 here but for the smallest
    of_checkpoint, of_file = (
        phicourse.load(path, backend="torch").logits(IDS) for path in (checkpoint, gguf)
    )
    assert np.abs(of_checkpoint - of_file).max() < 1e-2
    with pytest.raises(GenerateError, match="'native' and 'torch'"):
        phicourse.load(gguf, backend="cuda")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["native", "torch"])
def test_a_file_that_lacks_a_tensor_is_refused(name: str, gguf: Path, tmp_path: Path) -> None:
    if name == "native" and backends.native_module() is None:
        pytest.skip("needs the compiled engine")
    path = tmp_path / "holes.gguf"
    with GGUFFile.open(gguf) as file, GGUFWriter(path) as writer:
        kept = [t for t in file.tensors.values() if t.name != "blk.1.ffn_down.weight"]
        for key, value in file.metadata.items():
            writer.add(key, value.value, value.type, value.element)
        for tensor in kept:
            writer.declare(tensor.name, tensor.shape, tensor.type)
        for tensor in kept:
            writer.write(tensor.name, file.data(tensor.name))
    with pytest.raises(ModelError, match=r"blk\.1\.ffn_down|model\.layers\.1\.mlp\.down_proj"):
        phicourse.load(path, backend=name)  # type: ignore[arg-type]


def test_same_text_for_any_number_of_threads_and_after_any_chat(gguf: Path) -> None:
    if backends.native_module() is None:
        pytest.skip("needs the compiled engine")
    texts = []
    for threads in (1, 2):
        llm = phicourse.load(gguf, threads=threads)
        texts.append(llm.generate("a dog", seed=9, max_tokens=30))
        llm.chat([{"role": "user", "content": "a cat"}], max_tokens=3)
        texts.append(llm.generate("a dog", seed=9, max_tokens=30))
    assert len(set(texts)) == 1
