"""The first layers in PyTorch, the others in the engine: the same model as the engine alone, wherever it is cut."""

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_phi import write_random_phi

import phicourse
from phicourse.errors import GenerateError, ModelError
from phicourse.evaluate.kl_divergence import compare_positions, log_probabilities
from phicourse.generate import backends, hybrid
from phicourse.generate.backends import NativeBackend
from phicourse.generate.context import Context
from phicourse.generate.hybrid import HybridBackend
from phicourse.generate.split import Split, torch_batch, torch_cache_bytes, torch_weight_bytes
from phicourse.gguf import GGUFFile, GGUFWriter

torch = pytest.importorskip("torch")

from phicourse.generate import torch_layers  # noqa: E402

pytestmark = pytest.mark.skipif(backends.native_module() is None, reason="needs the compiled engine")

SWITCH = 32  # of the random model: LongRoPE's, half the context
IDS = np.random.default_rng(3).integers(0, 2032, 60).tolist()
STORY = "Once upon a time there was a little dog. He lived in a big house with a girl named Lily. " * 3


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, phi_tiny: Path) -> dict[str, Path]:
    """phi-tiny, 4 layers, as floats and quantized."""
    folder = tmp_path_factory.mktemp("hybrid")
    f16 = phicourse.convert(phi_tiny, folder / "phi-tiny-F16.gguf", "f16", progress=False)
    return {"F16": f16, "Q4_K_M": phicourse.quantize(f16, folder / "q4.gguf", "Q4_K_M", progress=False)}


@pytest.fixture(scope="module")
def random(tmp_path_factory: pytest.TempPathFactory, phi_tiny: Path) -> Path:
    """Three layers with random weights."""
    folder = tmp_path_factory.mktemp("hybrid-random")
    checkpoint = write_random_phi(folder / "random", phi_tiny, layers=3, context=2 * SWITCH)
    return phicourse.convert(checkpoint, folder / "random-F16.gguf", "f16", progress=False)


def fresh(backend: Any, ids: list[int]) -> np.ndarray:
    """The logits after ids, read at once from nothing."""
    backend.truncate(0)
    return backend.forward(np.array(ids, np.int32), False)[0]


# ---- the same model ----------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [0, 1, 4, 5, -1])
@pytest.mark.parametrize("mix", ["F16", "Q4_K_M"])
def test_logits_and_text_are_the_engine_s(tiny: dict[str, Path], mix: str, layers: int) -> None:
    """The engine rounds keys and values to float16, and what meets 4-bit weights to 8 bits; PyTorch does not.

    F16: 1e-3 of the logits' spread. Q4_K_M: as the engine against PyTorch alone, KL below 1e-3.
    """
    native, mixed = phicourse.load(tiny[mix]), phicourse.load(tiny[mix], gpu_layers=layers)
    ids = native.tokenize(STORY, special=True)
    expected, got = native.logits(ids), mixed.logits(ids)
    assert got.shape == expected.shape and got.dtype == np.float32
    if layers == 0:
        np.testing.assert_array_equal(got, expected)
    elif mix == "F16":
        assert np.abs(got - expected).max() < 1e-3 * expected.std()
    divergence = compare_positions(log_probabilities(expected[:-1]), got[:-1], ids[1:]).summary()
    assert divergence.mean < 1e-3
    texts = [llm.generate("Once upon a time", max_tokens=40, temperature=0) for llm in (native, mixed)]
    assert texts[0] == texts[1]


def test_all_in_torch_is_torch_alone(tiny: dict[str, Path]) -> None:
    ids = IDS[:50]
    alone = phicourse.load(tiny["Q4_K_M"], backend="torch").logits(ids)
    np.testing.assert_allclose(phicourse.load(tiny["Q4_K_M"], gpu_layers=-1).logits(ids), alone, atol=1e-3)


def test_weights_of_16_bits_as_on_a_gpu(tiny: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same mixture of types as on a GPU, on the CPU: float16 matrices and keys, a float32 stream."""
    ids = IDS[:50]
    expected = phicourse.load(tiny["F16"]).logits(ids)
    monkeypatch.setattr(torch_layers, "matrix_dtype", lambda device: torch.float16)
    backend = HybridBackend(GGUFFile.open(tiny["F16"]), 3)
    assert {keys.dtype for keys, _ in backend._layers.cache.layers.values()} == {torch.float16}
    got = backend.forward(np.array(ids, np.int32), True)
    assert np.abs(got - expected).max() < 2e-2 * expected.std()  # 11 bits, some hundred sums


@pytest.mark.parametrize("layers", [1, 3, -1])
@pytest.mark.parametrize("cuts", [[], [1], [20], [5, 6, 7], [31], [32], [33], [40, 50]])
def test_logits_do_not_depend_on_how_the_text_is_cut(random: Path, layers: int, cuts: list[int]) -> None:
    """The text crosses LongRoPE's switch at 32: then both halves read it anew with the long factors."""
    backend = HybridBackend(GGUFFile.open(random), layers)
    expected = NativeBackend(GGUFFile.open(random)).forward(np.array(IDS, np.int32), False)
    for part in np.split(np.array(IDS, np.int32), cuts):
        logits = backend.forward(part, False)
    assert np.abs(logits - expected).max() < 2e-2  # as test_both_backends_agree


@pytest.mark.parametrize("layers", [2, -1])
def test_long_texts_go_in_batches_with_one_choice_of_factors(
    random: Path, layers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first batch ends before the switch, and must not choose by its own end."""
    expected = fresh(NativeBackend(GGUFFile.open(random)), IDS)
    monkeypatch.setattr(hybrid, "BATCH", 16)
    monkeypatch.setattr(torch_layers, "torch_batch", lambda config, n_ctx: 7)
    backend = HybridBackend(GGUFFile.open(random), layers)
    assert np.abs(fresh(backend, IDS) - expected).max() < 2e-2
    assert backend.forward(np.array([5], np.int32), True).shape == (1, 2048)
    backend.truncate(0)
    whole = backend.forward(np.array(IDS, np.int32), True)
    assert whole.shape == (60, 2048)
    assert np.abs(whole[-1] - expected).max() < 2e-2


# ---- caches of a pair ----------------------------------------------------------------------------


def test_going_back_over_the_switch(random: Path) -> None:
    backend = HybridBackend(GGUFFile.open(random), 1)
    short, whole = fresh(backend, IDS[:20]), fresh(backend, IDS)
    context = Context(backend)
    context.logits_after(IDS)
    np.testing.assert_allclose(context.logits_after(IDS[:20]), short, atol=1e-3)
    assert backend.position == 20
    np.testing.assert_allclose(context.logits_after(IDS), whole, atol=1e-3)


def test_what_an_interrupt_leaves_behind_is_not_used(random: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C between the halves: PyTorch is ahead of the engine then, and of the text."""
    backend = HybridBackend(GGUFFile.open(random), 2)
    expected = fresh(backend, IDS[:25])
    backend.truncate(10)
    engine = backend._engine

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    class Interrupting:
        position = engine.position
        truncate = staticmethod(engine.truncate)
        forward_hidden = staticmethod(interrupted)

    monkeypatch.setattr(backend, "_engine", Interrupting())
    with pytest.raises(KeyboardInterrupt):
        backend.forward(np.array([7, 8, 9], np.int32), False)
    monkeypatch.setattr(backend, "_engine", engine)
    assert backend.position == 10
    np.testing.assert_allclose(
        backend.forward(np.array(IDS[10:25], np.int32), False)[0], expected, rtol=0, atol=1e-3
    )


def test_an_interrupt_while_all_is_read_again(random: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C behind LongRoPE's switch: PyTorch has the first batch with the new factors, the engine nothing."""
    monkeypatch.setattr(hybrid, "BATCH", 16)
    backend = HybridBackend(GGUFFile.open(random), 2)
    expected = fresh(backend, IDS[: SWITCH + 1])
    backend.truncate(0)
    backend.forward(np.array(IDS[:SWITCH], np.int32), False)
    engine = backend._engine

    class Interrupting:
        position = property(lambda self: engine.position)
        truncate = staticmethod(engine.truncate)

        def forward_hidden(self, *_: object) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(backend, "_engine", Interrupting())
    with pytest.raises(KeyboardInterrupt):
        backend.forward(np.array([IDS[SWITCH]], np.int32), False)
    monkeypatch.setattr(backend, "_engine", engine)
    assert (backend.position, backend._layers.cache.length, engine.position) == (SWITCH, 16, 0)
    again = backend.forward(np.array([IDS[SWITCH]], np.int32), False)[0]
    np.testing.assert_allclose(again, expected, rtol=0, atol=1e-3)


def test_chat_reuses_the_prefix(tiny: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    messages = [{"role": "user", "content": "Tell me a story about a dog."}]
    more = [{"role": "assistant", "content": "No."}, {"role": "user", "content": "Why not?"}]
    native, mixed = phicourse.load(tiny["F16"]), phicourse.load(tiny["F16"], gpu_layers=2)
    seen: list[int] = []
    read = torch_layers.TorchLayers.read
    monkeypatch.setattr(
        torch_layers.TorchLayers, "read", lambda self, ids, n: seen.append(len(ids)) or read(self, ids, n)
    )
    for conversation in (messages, messages + more, messages):
        answers = [llm.chat(conversation, max_tokens=20, temperature=0) for llm in (native, mixed)]
        assert answers[0] == answers[1]
    prompt = native.tokenizer.chat(messages + more, add_generation_prompt=True)
    assert sum(n > 1 for n in seen) >= 2 and max(seen[1:]) < len(prompt)  # never all of the second one


def test_speculation_gives_the_same_text(tiny: dict[str, Path]) -> None:
    llm = phicourse.load(tiny["F16"], gpu_layers=2)
    plain = llm.generate(STORY, max_tokens=40, temperature=0)
    assert llm.generate(STORY, max_tokens=40, temperature=0, draft="lookup") == plain
    draft = phicourse.load(tiny["Q4_K_M"])
    assert llm.generate(STORY, max_tokens=40, temperature=0, draft=draft) == plain
    assert llm.last_run is not None and llm.last_run.accepted > 0


def test_the_context_is_a_limit(random: Path) -> None:
    backend = HybridBackend(GGUFFile.open(random), 1, n_ctx=20)
    with pytest.raises(GenerateError, match="21 tokens"):
        backend.forward(np.array(IDS[:21], np.int32), False)
    backend.forward(np.array(IDS[:20], np.int32), False)
    with pytest.raises(GenerateError, match="21 tokens"):
        backend.forward(np.array([1], np.int32), False)
    assert backend.position == 20
    with pytest.raises(GenerateError, match="token 2048 is not in the vocabulary"):
        backend.forward(np.array([2048], np.int32), False)
    with pytest.raises(GenerateError, match="1 to 64"):
        HybridBackend(GGUFFile.open(random), 1, n_ctx=65)


# ---- who has what --------------------------------------------------------------------------------


def test_the_number_of_layers_is_read_as_llama_cpp_reads_it(random: Path) -> None:
    config = NativeBackend(GGUFFile.open(random)).config
    splits = {n: Split.of(config, n) for n in (1, 3, 4, 99, -1)}
    assert {n: (split.n_layers, split.has_head) for n, split in splits.items()} == {
        1: (1, False),
        3: (3, False),
        4: (3, True),
        99: (3, True),
        -1: (3, True),
    }


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_each_side_takes_what_it_needs_and_no_more(random: Path, layers: int) -> None:
    file = GGUFFile.open(random)
    backend = HybridBackend(file, layers)
    side, torch_names = backend._layers, {t.name for t in backend.split.in_torch(file)}
    engine_names = {t.name for t in backend.split.in_engine(file)}
    assert not torch_names & engine_names
    left = {n for n in file.tensors if not n.startswith("rope_factors")} - torch_names - engine_names
    assert left == {"token_embd.weight"}  # rows of it are looked up
    real = {name: p for name, p in side._model.state_dict().items() if p.device.type != "meta"}
    assert len(real) == len(torch_names)
    assert sum(p.nbytes for p in real.values()) == torch_weight_bytes(file, backend.split, 4)
    assert side.weight_bytes == torch_weight_bytes(file, backend.split, 4)
    assert side.cache.nbytes == torch_cache_bytes(backend.split, backend.n_ctx, 4)
    assert (backend._engine is None) == (layers == 4)


def test_a_tied_embedding_is_the_output_of_whoever_has_the_head(phi_tiny: Path, tmp_path: Path) -> None:
    checkpoint = write_random_phi(tmp_path / "tied", phi_tiny, layers=2)
    path = phicourse.convert(checkpoint, tmp_path / "whole.gguf", "f16", progress=False)
    tied = tmp_path / "tied.gguf"
    copy_without(path, tied, "output.weight")
    expected = phicourse.load(tied).logits(IDS)
    for layers in (1, 2, 3):
        got = phicourse.load(tied, gpu_layers=layers).logits(IDS)
        assert np.abs(got - expected).max() < 2e-3 * expected.std()


def copy_without(path: Path, out: Path, name: str) -> None:
    """A GGUF file that lacks a tensor."""
    with GGUFFile.open(path) as file, GGUFWriter(out) as writer:
        kept = [t for t in file.tensors.values() if t.name != name]
        for key, value in file.metadata.items():
            writer.add(key, value.value, value.type, value.element)
        for tensor in kept:
            writer.declare(tensor.name, tensor.shape, tensor.type)
        for tensor in kept:
            writer.write(tensor.name, file.data(tensor.name))


def test_the_first_line_says_where_the_layers_went(random: Path, capsys: pytest.CaptureFixture[str]) -> None:
    phicourse.load(random, gpu_layers=2)
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith("phicourse: 2 of 3 layers in PyTorch on the CPU (no GPU here): ")
    assert "MB of weights" in line and "for keys and values" in line


def test_a_batch_is_smaller_where_scores_would_fill_the_memory(random: Path) -> None:
    config = NativeBackend(GGUFFile.open(random)).config  # 4 heads
    assert torch_batch(config, 64) == 64
    assert torch_batch(config, 4096) == 512
    assert torch_batch(config, 1 << 17) == 64
    assert torch_batch(config, 1 << 31) == 1


# ---- what is refused -----------------------------------------------------------------------------


def test_without_torch_there_is_a_clear_error(random: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "phicourse.generate.torch_layers")
    with pytest.raises(ModelError, match="pip install torch"):
        phicourse.load(random, gpu_layers=1)
    assert phicourse.load(random).backend.isa != "torch"


def test_without_the_engine_only_a_whole_model_runs(random: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (backends, hybrid):
        monkeypatch.setattr(module, "native_module", lambda: None)
    with pytest.raises(ModelError, match="not built"):
        phicourse.load(random, gpu_layers=1)
    assert phicourse.load(random, gpu_layers=-1).logits([1, 2]).shape == (2, 2048)


def test_memory_is_looked_at_before_it_is_taken(random: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_layers, "free_memory", lambda device: 1_000_000)
    with pytest.raises(GenerateError, match=r"2 of 3 layers need \S+ MB on cpu .* fewer --gpu-layers"):
        phicourse.load(random, gpu_layers=2)
    monkeypatch.setattr(torch_layers, "free_memory", lambda device: None)
    phicourse.load(random, gpu_layers=2)


def test_requests_that_make_no_sense(random: Path, phi_tiny: Path) -> None:
    with pytest.raises(GenerateError, match="backend='torch'"):
        phicourse.load(random, backend="torch", gpu_layers=1)
    with pytest.raises(GenerateError, match="phicourse convert"):
        phicourse.load(phi_tiny, gpu_layers=1)
    with pytest.raises(GenerateError, match="gpu_layers is 0"):
        HybridBackend(GGUFFile.open(random), 0)


@pytest.mark.parametrize("name", ["blk.0.ffn_down.weight", "blk.2.ffn_down.weight", "output_norm.weight"])
def test_a_missing_tensor_of_either_side_is_named(random: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / "holes.gguf"
    copy_without(random, path, name)
    with pytest.raises(ModelError, match=name.replace(".", r"\.")):
        phicourse.load(path, gpu_layers=1)


def test_an_unknown_tensor_is_refused(random: Path, tmp_path: Path) -> None:
    path = tmp_path / "more.gguf"
    with GGUFFile.open(random) as file, GGUFWriter(path) as writer:
        for key, value in file.metadata.items():
            writer.add(key, value.value, value.type, value.element)
        for tensor in file.tensors.values():
            writer.declare(tensor.name, tensor.shape, tensor.type)
        writer.declare("blk.7.attn_norm.weight", (256,), file.tensor("output_norm.weight").type)
        for tensor in file.tensors.values():
            writer.write(tensor.name, file.data(tensor.name))
        writer.write("blk.7.attn_norm.weight", np.ones(256, np.float32))
    with pytest.raises(ModelError, match=r"blk\.7\.attn_norm"):
        phicourse.load(path, gpu_layers=1)


def test_pages_of_dequantized_layers_are_given_back(tiny: dict[str, Path], tmp_path: Path) -> None:
    """Of a file that nobody else maps, only what the engine reads stays resident."""
    smaps = Path("/proc/self/smaps")
    if not smaps.exists():
        pytest.skip("needs /proc")
    path = shutil.copy(tiny["F16"], tmp_path / "alone.gguf")
    backend = HybridBackend(GGUFFile.open(path), 4)
    backend.forward(np.array(IDS, np.int32), False)
    text = smaps.read_text().split("alone.gguf")[1]
    resident = int(text.split("Rss:")[1].split()[0]) * 1024
    kept = sum(t.nbytes for t in backend.split.in_engine(GGUFFile.open(path)))
    whole = path.stat().st_size
    assert kept <= resident < whole / 2  # the head and some rows of the embedding
