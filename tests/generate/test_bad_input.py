"""What makes no sense is refused in one clear line before anything is computed, and the model works on as before."""

from pathlib import Path
from typing import Any

import pytest
from random_phi import write_random_phi

import phicourse
from phicourse.errors import GenerateError, ModelError
from phicourse.generate import LLM
from phicourse.generate.backends import native_module
from phicourse.gguf import GGUFFile, GGUFWriter

CONTEXT = 64


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory, phi_tiny: Path) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    checkpoint = write_random_phi(folder / "random", phi_tiny, context=CONTEXT)
    return phicourse.convert(checkpoint, folder / "f16.gguf", "f16", progress=False)


@pytest.fixture(scope="module", params=["native", "torch"])
def llm(request: pytest.FixtureRequest, gguf: Path) -> LLM:
    if request.param == "native" and native_module() is None:
        pytest.skip("needs the compiled engine")
    if request.param == "torch":
        pytest.importorskip("torch")
    return phicourse.load(gguf, backend=request.param)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1, 2048], "token 2048 is not in the vocabulary of 2,048"),
        ([-1, 1], "token -1 is not in the vocabulary"),
        ([2**40], "token 1099511627776 is not in the vocabulary"),
        ([1, 2.5], "ids must be integers"),
        (["a"], "ids must be integers"),
        ([None], "ids must be integers"),
        ([], "the prompt is empty|logits of 0 tokens"),
        ([1] * (CONTEXT + 1), "the prompt has 65 tokens and the context holds 64|logits of 65 tokens"),
    ],
)
def test_ids_that_are_no_text(llm: LLM, ids: list[Any], message: str) -> None:
    before = llm.generate("a dog", temperature=0, max_tokens=4)
    for call in (
        llm.generate,
        llm.logits,
        lambda ids: llm.generate_many([ids]),
        lambda ids: llm.generate(ids, stream=True),
    ):
        with pytest.raises(GenerateError, match=message):
            call(ids)
    assert llm.generate("a dog", temperature=0, max_tokens=4) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": -1}, "max_tokens must be 0 or more, or None for no limit, not -1"),
        ({"temperature": float("nan")}, "temperature must be a finite number"),
        ({"repeat_penalty": 0}, "repeat_penalty must be above 0"),
        ({"seed": -1}, "seed must be 0 or more"),
        ({"stop": ["a", ""]}, "a stop string must not be empty"),
        ({"draft": "nothing"}, "draft must be 'lookup'"),
        ({"n": 3}, "unknown option 'n'"),
    ],
)
def test_options(llm: LLM, options: dict[str, Any], message: str) -> None:
    with pytest.raises(GenerateError, match=message):
        llm.generate("a dog", **options)


@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 0}, "threads must be 1 or more, not 0"),
        ({"threads": -3}, "threads must be 1 or more, not -3"),
        ({"n_ctx": -1}, "a context of -1 is not possible: this model has 1 to 64"),
        ({"n_ctx": CONTEXT + 1}, "a context of 65 is not possible: this model has 1 to 64"),
    ],
)
def test_sizes(gguf: Path, backend: Any, options: dict[str, int], message: str) -> None:
    pytest.importorskip("torch")
    with pytest.raises(GenerateError, match=message):
        phicourse.load(gguf, backend=backend, **options)  # type: ignore[arg-type]


@pytest.mark.skipif(native_module() is None, reason="needs the compiled engine")
def test_more_threads_than_any_machine_has(gguf: Path) -> None:
    with pytest.raises(ModelError, match="threads must be from 1 to 1024, not 1025"):
        phicourse.load(gguf, threads=1025)


@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("phi3.block_count", 2),
        ("phi3.embedding_length", 512),
        ("phi3.feed_forward_length", 128),
        ("phi3.attention.head_count", 8),
        ("phi3.attention.head_count_kv", 4),
        ("phi3.attention.head_count_kv", 0),
        ("phi3.rope.dimension_count", 128),
    ],
)
def test_tensors_that_do_not_match_the_config(
    gguf: Path, tmp_path: Path, backend: Any, key: str, value: int
) -> None:
    pytest.importorskip("torch")
    path = tmp_path / "lies.gguf"
    with GGUFFile.open(gguf) as file, GGUFWriter(path) as writer:
        assert file.metadata[key].value != value
        for name, old in file.metadata.items():
            writer.add(name, value if name == key else old.value, old.type, old.element)
        for tensor in file.tensors.values():
            writer.declare(tensor.name, tensor.shape, tensor.type)
        for tensor in file.tensors.values():
            writer.write(tensor.name, file.data(tensor.name))
    with pytest.raises(phicourse.errors.PhiCourseError) as caught:
        phicourse.load(path, backend=backend)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
