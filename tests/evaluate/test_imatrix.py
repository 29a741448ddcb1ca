"""Gathering an importance matrix: against the equation, and against what llama.cpp multiplies its weights with.

Tolerances, as parts of each sum: 1e-4 where both add up float32 products, 3e-3 where llama.cpp or our engine round
keys and values to float16 (measured 9e-4, on columns of ffn_down that are nearly 0).
"""

import ctypes
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from fake_model import FakeBackend, fake_llm
from random_phi import write_random_phi

import phicourse
from phicourse.errors import GenerateError, GGUFError, QuantizeError
from phicourse.evaluate.imatrix import gather_importance, input_squares, write_importance
from phicourse.generate import LLM
from phicourse.generate.backends import native_module
from phicourse.quantize.importance import ImportanceMatrix

torch = pytest.importorskip("torch")

FLOAT32, SIXTEEN_BIT = 1e-4, 3e-3
N_CTX, CHUNKS = 128, 3
KINDS = {"attn_qkv": 256, "attn_output": 256, "ffn_up": 256, "ffn_down": 768}


@pytest.fixture(scope="module")
def text(repository: Path) -> str:
    return (repository / "data" / "text" / "stories_01.txt").read_text()[:4000]


@pytest.fixture(scope="module")
def f16(phi_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (phi_tiny / "model.safetensors").exists():
        pytest.skip("needs the weights of data/phi-tiny")
    return phicourse.convert(phi_tiny, tmp_path_factory.mktemp("tiny") / "tiny.gguf", "f16", progress=False)


@pytest.fixture(scope="module")
def readable(f16: Path) -> LLM:
    return phicourse.load(f16, "torch", n_ctx=N_CTX)


@pytest.fixture(scope="module")
def engine(f16: Path) -> LLM:
    if native_module() is None:
        pytest.skip("needs the compiled engine")
    return phicourse.load(f16, n_ctx=N_CTX, threads=2)


@pytest.fixture(scope="module")
def gathered(readable: LLM, text: str) -> ImportanceMatrix:
    return gather_importance(
        readable, text, dataset="stories", n_ctx=N_CTX, chunks=CHUNKS, process_output=True
    )


def largest_error(ours: ImportanceMatrix, sums: dict[str, np.ndarray]) -> float:
    assert ours.squares.keys() == sums.keys()
    return max(float(np.abs(ours.squares[name].sums[0] / sums[name] - 1).max()) for name in sums)


def chunks_of(llm: LLM, text: str) -> Iterator[list[int]]:
    """Chunks with the beginning-of-text token in front, by slicing."""
    ids = llm.tokenizer.encode(text)
    for start in range(0, CHUNKS * N_CTX, N_CTX):
        yield [llm.tokenizer.bos, *ids[start + 1 : start + N_CTX]]


# ---- what is gathered


def test_every_matrix_of_the_layers_and_the_output_has_its_columns(gathered: ImportanceMatrix) -> None:
    expected = {f"blk.{i}.{kind}.weight": size for i in range(4) for kind, size in KINDS.items()}
    sizes = {name: squares.sums.size for name, squares in gathered.squares.items()}
    assert sizes == expected | {"output.weight": 256}
    assert all(squares.counts.tolist() == [CHUNKS * N_CTX] for squares in gathered.squares.values())
    assert (gathered.datasets, gathered.n_chunks, gathered.chunk_size) == (("stories",), CHUNKS, N_CTX)


def test_the_first_and_the_last_input_are_those_of_the_equation(
    gathered: ImportanceMatrix, readable: LLM, text: str
) -> None:
    model = readable.backend.model
    first, last = np.zeros(256), np.zeros(256)
    for chunk in chunks_of(readable, text):
        with torch.inference_mode():
            x = model.model.embed_tokens(torch.tensor(chunk)).double()
            weight = model.model.layers[0].input_layernorm.weight.double()
            normed = x / (x.square().mean(-1, keepdim=True) + model.config.norm_eps).sqrt() * weight
            first += normed.square().sum(0).numpy()
            last += model.model(torch.tensor([chunk]))[0].double().square().sum(0).numpy()
    np.testing.assert_allclose(gathered.squares["blk.0.attn_qkv.weight"].sums[0], first, rtol=1e-5)
    np.testing.assert_allclose(gathered.squares["output.weight"].sums[0], last, rtol=1e-5)


def test_the_output_is_left_out_unless_asked_for(readable: LLM) -> None:
    ids = list(range(3, 40))
    squares, all_squares = (input_squares(readable, ids, output) for output in (False, True))
    assert all_squares.keys() - squares.keys() == {"output.weight"}


def test_watching_ends_with_the_text(readable: LLM) -> None:
    input_squares(readable, [1, 5, 7])
    assert not any(module._forward_pre_hooks for module in readable.backend.model.modules())


def test_the_engine_gathers_what_the_readable_model_does(
    engine: LLM, gathered: ImportanceMatrix, text: str
) -> None:
    ours = gather_importance(engine, text, n_ctx=N_CTX, chunks=CHUNKS, process_output=True)
    assert largest_error(ours, {name: s.sums[0] for name, s in gathered.squares.items()}) < SIXTEEN_BIT


def test_the_engine_s_sums_depend_neither_on_the_threads_nor_on_what_it_read_before(f16: Path) -> None:
    if native_module() is None:
        pytest.skip("needs the compiled engine")
    ids = np.random.default_rng(5).integers(3, 2000, 600).tolist()  # two batches
    one, two = (phicourse.load(f16, n_ctx=600, threads=threads) for threads in (1, 2))
    two.logits(ids[:50])
    a, b = input_squares(one, ids, True), input_squares(two, ids, True)
    assert all(np.array_equal(x, y) for name in a for x, y in zip(a[name], b[name], strict=True))
    # 600 tokens are two batches of the engine; the second must not hide the first
    readable = input_squares(phicourse.load(f16, "torch", n_ctx=600), ids, True)
    for name, (sums, counts) in readable.items():
        np.testing.assert_allclose(a[name][0], sums, rtol=SIXTEEN_BIT, err_msg=name)
        assert np.array_equal(a[name][1], counts)
    assert np.array_equal(two.logits(ids[:50]), one.logits(ids[:50]))  # it works as before


def test_a_tied_output_has_no_importance(tmp_path: Path, phi_tiny: Path) -> None:
    checkpoint = write_random_phi(tmp_path / "random", phi_tiny)
    drop_head(checkpoint)
    path = phicourse.convert(checkpoint, tmp_path / "tied.gguf", "f16", progress=False)
    for backend in ("torch", *(["native"] if native_module() else [])):
        assert "output.weight" not in input_squares(phicourse.load(path, backend), [1, 2, 3], True)


def drop_head(checkpoint: Path) -> None:
    """Take the output weight out of a checkpoint, which then shares the embedding's."""
    from safetensors.torch import load_file, save_file

    weights = load_file(checkpoint / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, checkpoint / "model.safetensors")
    config = checkpoint / "config.json"
    config.write_text(
        config.read_text().replace('"tie_word_embeddings": false', '"tie_word_embeddings": true')
    )


# ---- llama.cpp


class Tensor(ctypes.Structure):
    """The beginning of `struct ggml_tensor` (ggml 0.25.3)."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
    )


def llama_cpp_squares(path: Path, chunks: list[list[int]]) -> dict[str, np.ndarray]:
    """Sums of squares of all second operands of llama.cpp's matrix products with a weight."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python, the oracle")
    folder = Path(llama_cpp.__file__).parent / "lib"
    ggml = ctypes.CDLL(str(next(path for path in sorted(folder.glob("*ggml-base*")) if path.is_file())))
    ggml.ggml_version.restype = ggml.ggml_op_desc.restype = ctypes.c_char_p
    if ggml.ggml_version() != b"0.25.3":
        pytest.skip(f"this test knows the tensors of ggml 0.25.3, not of {ggml.ggml_version()!r}")
    llama_cpp.llama_log_set(quiet(), ctypes.c_void_p())
    sums: dict[str, np.ndarray] = {}

    def see(address: int, ask: bool, data: object) -> bool:
        tensor = Tensor.from_address(address)
        if ggml.ggml_op_desc(ctypes.c_void_p(address)) != b"MUL_MAT":
            return not ask
        weight, x = (Tensor.from_address(tensor.src[i]) for i in range(2))
        name = weight.name.decode()
        if not name.endswith(".weight"):
            return not ask
        if not ask:
            n, columns = x.ne[1], x.ne[0]
            values = np.ctypeslib.as_array(ctypes.cast(x.data, ctypes.POINTER(ctypes.c_float)), (n, columns))
            sums[name] = sums.get(name, 0) + np.square(values, dtype=np.float64).sum(axis=0)
        return True

    parameters = llama_cpp.llama_context_default_params()
    parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = N_CTX
    parameters.n_threads = parameters.n_threads_batch = 1
    parameters.cb_eval = callback = llama_cpp.ggml_backend_sched_eval_callback(see)
    model = llama_cpp.llama_model_load_from_file(bytes(path), llama_cpp.llama_model_default_params())
    context = llama_cpp.llama_init_from_model(model, parameters)
    try:
        for chunk in chunks:
            llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
            assert llama_cpp.llama_decode(context, all_outputs(llama_cpp, chunk)) == 0
    finally:
        llama_cpp.llama_free(context)
        llama_cpp.llama_model_free(model)
        del callback
    return sums


@cache
def quiet() -> object:
    """A log that is not written; llama.cpp keeps the pointer, so it must live on."""
    import llama_cpp

    return llama_cpp.llama_log_callback(lambda level, text, data: None)


def all_outputs(llama_cpp: object, ids: list[int]) -> object:
    """A batch that wants the logits of every token, so that the last layer computes all of them."""
    batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for i, token in enumerate(ids):
        batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, i, 1
        batch.seq_id[i][0], batch.logits[i] = 0, True
    return batch


def test_the_sums_are_those_of_llama_cpp(
    gathered: ImportanceMatrix, readable: LLM, f16: Path, text: str
) -> None:
    assert largest_error(gathered, llama_cpp_squares(f16, list(chunks_of(readable, text)))) < SIXTEEN_BIT


# ---- requests


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_ctx": 15}, "16 or more"),
        ({"n_ctx": 2 * N_CTX}, "from 4 to 128"),
        ({"n_ctx": 32, "chunks": 0}, "chunks must be 1 or more"),
    ],
)
def test_impossible_requests_are_refused(
    readable: LLM, text: str, options: dict[str, int], message: str
) -> None:
    with pytest.raises(GenerateError, match=message):
        gather_importance(readable, text, **options)


def test_a_text_of_less_than_two_chunks_is_too_short(readable: LLM) -> None:
    with pytest.raises(GenerateError, match="two chunks of 128 are needed"):
        gather_importance(readable, "Once upon a time.", n_ctx=N_CTX)


def test_a_backend_that_cannot_be_watched_is_named() -> None:
    with pytest.raises(GenerateError, match="fake does not show"):
        input_squares(fake_llm(), [1, 2])
    assert FakeBackend().ids == []


def test_a_damaged_model_is_found(readable: LLM, text: str) -> None:
    norm = readable.backend.model.model.layers[2].input_layernorm
    before = norm.weight.clone()
    with torch.inference_mode():
        norm.weight[7] = torch.nan
    try:
        with pytest.raises(GenerateError, match=r"blk\.2\.attn_qkv\.weight is not finite"):
            gather_importance(readable, text, n_ctx=N_CTX, chunks=1)
    finally:
        with torch.inference_mode():
            norm.weight.copy_(before)


# ---- whole files


def test_a_second_text_is_added_to_a_file(phi_tiny: Path, f16: Path, text: str, tmp_path: Path) -> None:
    options = {"n_ctx": 32, "text": text, "process_output": False, "chunks": 2}
    seen: list[tuple[int, int]] = []
    a = write_importance(
        tmp_path / "a.gguf",
        model=phi_tiny,
        dataset="a",
        progress=lambda *state: seen.append(state),
        **options,
    )
    assert seen == [(1, 2), (2, 2)] and a.path == tmp_path / "a.gguf"
    write_importance(tmp_path / "b.gguf", model=phi_tiny, dataset="b", in_files=[a.path], **options)
    both = ImportanceMatrix.read(tmp_path / "b.gguf")
    assert (both.datasets, both.n_chunks, both.chunk_size) == (("a", "b"), 4, 32)
    for name, squares in a.squares.items():
        assert np.array_equal(both.squares[name].sums, 2 * squares.sums)


@pytest.mark.parametrize(
    ("prepare", "options", "error", "message"),
    [
        (lambda folder: (folder / "out").write_text(""), {}, GGUFError, "exists already"),
        (lambda folder: None, {"format": "json"}, QuantizeError, "known are gguf, dat"),
        (lambda folder: None, {"in_files": [Path("not there")]}, QuantizeError, "no such file"),
        (lambda folder: None, {"text": "too short"}, GenerateError, "two chunks"),
    ],
)
def test_what_fails_leaves_nothing_behind(
    prepare: Callable[[Path], object],
    options: dict[str, object],
    error: type[Exception],
    message: str,
    phi_tiny: Path,
    tmp_path: Path,
) -> None:
    prepare(tmp_path)
    before = list(tmp_path.iterdir())
    with pytest.raises(error, match=message):
        write_importance(tmp_path / "out", **{"model": phi_tiny, "n_ctx": 32} | options)
    assert list(tmp_path.iterdir()) == before
