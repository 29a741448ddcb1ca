"""Several answers at once: each is the one that it would be alone, whatever the others do."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_model import BOS, EOG, FakeBackend, fake_llm
from random_phi import write_random_phi

import phicourse
from phicourse.errors import GenerateError
from phicourse.generate import Run, Sampler, backends, batch, cache_size
from phicourse.generate.backends import NativeBackend, OneSequence, Part
from phicourse.generate.batch import Batch
from phicourse.generate.cache_size import CACHE_TYPES
from phicourse.generate.context import Context
from phicourse.generate.generate import Answer, AnswerText
from phicourse.gguf import GGUFFile

SWITCH = 32  # LongRoPE's, half the context
PROMPTS = (
    "a dog",
    "Once upon a time there was a little girl who",
    "a",
    "The sun is warm and",
    "a dog",
    "a cat",
)

needs_engine = pytest.mark.skipif(backends.native_module() is None, reason="needs the compiled engine")


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory, phi_tiny: Path) -> Path:
    folder = tmp_path_factory.mktemp("batch")
    checkpoint = write_random_phi(folder / "random", phi_tiny, layers=2, context=2 * SWITCH)
    f16 = phicourse.convert(checkpoint, folder / "f16.gguf", "f16", progress=False)
    return phicourse.quantize(f16, folder / "q4.gguf", "Q4_K_M", progress=False)


def alone(gguf: Path, prompts: Sequence[str] = PROMPTS, **options: Any) -> list[str]:
    cache_type = options.pop("cache_type", "F16")
    llm = phicourse.load(gguf, threads=1, cache_type=cache_type)
    return [llm.generate(prompt, **options) for prompt in prompts]


@needs_engine
@pytest.mark.parametrize(("n_sequences", "threads"), [(1, 3), (2, 1), (3, 2), (4, 8), (8, 1), (8, 5)])
def test_same_text_alone_and_in_any_batch(gguf: Path, n_sequences: int, threads: int) -> None:
    """To the end of the context: all of them cross LongRoPE's switch, each at another step."""
    expected = alone(gguf, seed=3)
    llm = phicourse.load(gguf, threads=threads, n_sequences=n_sequences)
    assert llm.generate_many(PROMPTS, seed=3) == expected
    assert [len(run.prompt) + len(run.tokens) for run in llm.last_runs] == [65] * len(PROMPTS)
    assert llm.generate_many(PROMPTS[::-1], seed=3) == expected[::-1]  # with what the sequences still hold


@needs_engine
@pytest.mark.parametrize("cache_type", CACHE_TYPES)
def test_same_text_with_any_cache(gguf: Path, cache_type: str) -> None:
    llm = phicourse.load(gguf, threads=2, n_sequences=3, cache_type=cache_type)
    expected = alone(gguf, seed=5, max_tokens=40, cache_type=cache_type)
    assert llm.generate_many(PROMPTS, seed=5, max_tokens=40) == expected


@needs_engine
@pytest.mark.parametrize("step", [2, 5, 16])
def test_long_prompts_are_read_in_parts_while_others_go_on(
    gguf: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    prompts = [
        "a",
        "a dog and a cat and a little girl in the warm sun",
        "Once upon a time, in a land far away",
    ]
    expected = alone(gguf, prompts, temperature=0, max_tokens=12)
    monkeypatch.setattr(batch, "STEP_TOKENS", step)
    llm = phicourse.load(gguf, threads=1, n_sequences=3)
    pieces = list(llm.generate_many(prompts, temperature=0, max_tokens=12, stream=True))
    assert ["".join(piece for i, piece in pieces if i == n) for n in range(3)] == expected
    if step == 2:  # the short one's answer has begun before the long ones are read
        assert [i for i, _ in pieces][:3] == [0, 0, 0]


class Counting(NativeBackend):
    """Counts the tokens that it reads."""

    def __init__(self, path: Path, n_sequences: int) -> None:
        super().__init__(GGUFFile.open(path), threads=1, n_sequences=n_sequences)
        self.read = 0

    def forward_many(self, parts: Sequence[Part], all_logits: bool = False) -> list[np.ndarray]:
        self.read += sum(len(ids) for _, ids in parts)
        return super().forward_many(parts, all_logits)


@needs_engine
def test_what_another_sequence_has_of_a_prompt_is_copied(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "WORTH_WAITING", 8)
    llm = phicourse.load(gguf, threads=1)
    prompt = "a dog and a cat and a little girl in the warm sun, they ran and ran and ran until it was"
    expected = alone(gguf, [prompt + " night", prompt + " dark", prompt], temperature=0, max_tokens=4)
    counting = phicourse.generate.LLM(Counting(gguf, 3), llm.tokenizer)
    got = counting.generate_many([prompt + " night", prompt + " dark", prompt], temperature=0, max_tokens=4)
    assert got == expected
    n = len(llm.tokenize(prompt, special=True))
    # read once; for each text two tokens that differ, and the four that it says
    assert n > 16 and counting.backend.read < n + 3 * 6  # type: ignore[attr-defined]


@needs_engine
def test_an_iterator_that_is_closed_leaves_everything_in_order(gguf: Path) -> None:
    llm = phicourse.load(gguf, threads=2, n_sequences=2)
    pieces = llm.generate_many(PROMPTS, seed=1, stream=True)
    for _ in range(5):
        next(pieces)
    pieces.close()
    assert llm.generate_many(PROMPTS, seed=3, max_tokens=9) == alone(gguf, seed=3, max_tokens=9)
    assert (
        llm.generate(PROMPTS[1], seed=3, max_tokens=9) == alone(gguf, PROMPTS[1:2], seed=3, max_tokens=9)[0]
    )


@needs_engine
def test_a_sequence_is_truncated_freed_and_used_again(gguf: Path) -> None:
    one, many = (NativeBackend(GGUFFile.open(gguf), threads=1, n_sequences=n) for n in (1, 3))
    ids = np.random.default_rng(0).integers(0, 2032, 60).astype(np.int32)
    many.forward_many([(0, ids[:50]), (1, ids[20:30]), (2, ids[:5])])
    many.truncate(10, 0)
    many.truncate(0, 2)
    assert [many.length(i) for i in range(3)] == [10, 10, 0]
    got = many.forward_many([(2, ids[40:45]), (0, ids[10:12])], all_logits=True)
    for length, logits, text in ((5, got[0], ids[40:45]), (2, got[1], ids[:12])):
        one.truncate(0)
        assert np.array_equal(logits, one.forward(text, True)[-length:])
    many.copy(0, 2, 7)
    one.truncate(0)
    assert np.array_equal(many.forward_many([(2, ids[7:9])])[0], one.forward(ids[:9], False))


@needs_engine
def test_threads_that_share_a_model_wait_for_each_other(gguf: Path) -> None:
    many = NativeBackend(GGUFFile.open(gguf), threads=2, n_sequences=4)
    ids = np.random.default_rng(1).integers(0, 2032, (4, 60)).astype(np.int32)

    def read(sequence: int) -> list[np.ndarray]:
        logits = []
        for i in range(0, 60, 3):
            logits += many.forward_many([(sequence, ids[sequence, i : i + 3])])
            many.length(sequence)
        return logits

    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(read, range(4)))
    one = NativeBackend(GGUFFile.open(gguf), threads=1)
    for text, logits in zip(ids, got, strict=True):
        one.truncate(0)
        for i, row in zip(range(0, 60, 3), logits, strict=True):
            assert np.array_equal(one.forward(text[i : i + 3], False), row)


@needs_engine
def test_an_interrupt_between_steps_is_made_up_for(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = phicourse.load(gguf, threads=1, n_sequences=2)
    forward, calls = NativeBackend.forward_many, []

    def stopped(self: NativeBackend, parts: Sequence[Part], all_logits: bool = False) -> list[np.ndarray]:
        calls.append(parts)
        logits = forward(self, parts, all_logits)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return logits

    monkeypatch.setattr(NativeBackend, "forward_many", stopped)
    with pytest.raises(KeyboardInterrupt):
        llm.generate_many(PROMPTS, seed=3, max_tokens=9)
    assert llm.generate_many(PROMPTS, seed=3, max_tokens=9) == alone(gguf, seed=3, max_tokens=9)


def test_torch_writes_one_after_the_other(gguf: Path) -> None:
    pytest.importorskip("torch")
    llm = phicourse.load(gguf, backend="torch")
    expected = [llm.generate(prompt, seed=3, max_tokens=6) for prompt in PROMPTS[:3]]
    assert llm.generate_many(PROMPTS[:3], seed=3, max_tokens=6) == expected


def test_stop_strings_ends_and_lengths_are_those_of_generate() -> None:
    for script, options in (
        ("Hello there", {"stop": "lo t"}),
        ("Hello there", {"max_tokens": 4}),
        ("Hello there", {"max_tokens": 0}),
        ("Hello there", {}),
        ("Hello Us", {"stop": ["User:", "xyz"]}),  # the start of a stop string waits, and comes at the end
        ("h\u00e9".encode()[:-1], {}),  # half a character
    ):
        one, many = (fake_llm(script, "ab") for _ in range(2))
        expected = one.generate("ab", temperature=0, **options)
        assert many.generate_many(["ab"], temperature=0, **options) == [expected]
        assert one.last_run is not None
        assert many.last_runs[0].finish_reason == one.last_run.finish_reason
        assert many.last_runs[0].tokens == one.last_run.tokens


def test_a_job_can_be_cancelled_before_and_while_it_runs() -> None:
    llm = fake_llm(n_ctx=64)
    jobs = Batch([Context(FakeBackend())])
    first, second, third = (
        jobs.add(
            Answer(run := Run(prompt=[BOS, i]), Sampler(temperature=0), 64, max_tokens=3),
            AnswerText(run, llm.tokenizer.stream()),
        )
        for i in range(3)
    )
    assert [job for job, _ in jobs.step()] == [first]
    jobs.cancel(second)
    jobs.cancel(first)
    jobs.cancel(first)
    while jobs.running or jobs.waiting:
        assert [job for job, _ in jobs.step()] == [third]
    assert third.is_over and not first.is_over and len(third.answer.run.tokens) == 3
    assert jobs.step() == []


def test_senseless_requests_are_refused_before_anything_is_computed() -> None:
    llm = fake_llm(n_ctx=16)
    for prompts, options, message in (
        ("ab", {}, "prompts must be a list of texts"),
        (["ab", "a" * 20], {}, "the prompt has 21 tokens and the context holds 16"),
        (["ab", []], {}, "the prompt is empty"),
        (["ab"], {"draft": "lookup"}, "draft guesses for one text"),
        (["ab"], {"max_tokens": -1}, "max_tokens must be 0 or more"),
        (["ab"], {"stop": ""}, "must not be empty"),
        (["ab"], {"heat": 1}, "unknown option 'heat'"),
    ):
        with pytest.raises(GenerateError, match=message):
            llm.generate_many(prompts, **options)  # type: ignore[arg-type]
    assert llm.backend.calls == []  # type: ignore[attr-defined]
    assert llm.generate_many([]) == []


def test_a_backend_with_one_sequence_says_so() -> None:
    backend: OneSequence = FakeBackend()
    ids = np.array([1, EOG], np.int32)
    assert np.array_equal(backend.forward_many([(0, ids)])[0], FakeBackend().forward(ids, False))
    for call in (
        lambda: backend.forward_many([(1, ids)]),
        lambda: backend.forward_many([(0, ids), (1, ids)]),
        lambda: backend.length(1),
        lambda: backend.copy(0, 1, 1),
    ):
        with pytest.raises(GenerateError, match="sequence"):
            call()


@needs_engine
def test_the_memory_of_all_sequences_is_told_before_it_is_taken(
    gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = cache_size.kv_cache_bytes(phicourse.load(gguf).config, 64)
    monkeypatch.setattr(cache_size, "available_memory", lambda: 3 * needed)
    assert phicourse.load(gguf, n_sequences=3).backend.n_sequences == 3
    with pytest.raises(GenerateError, match=r"of 1,000 texts of 64 tokens need \S+ MB as F16, .*n_sequences"):
        phicourse.load(gguf, n_sequences=1000)
    for n in (0, -1, 1025):
        with pytest.raises(GenerateError, match=rf"n_sequences must be from 1 to 1,024, not {n}"):
            phicourse.load(gguf, n_sequences=n)


@needs_engine
def test_bad_calls_of_several_sequences_are_refused_and_change_nothing(gguf: Path) -> None:
    many = NativeBackend(GGUFFile.open(gguf), threads=1, n_sequences=2)
    good, ids = np.array([1, 2], np.int32), np.arange(60, dtype=np.int32)
    many.forward_many([(1, good)])
    for parts, message in (
        ([], "at least one sequence"),
        ([(0, good), (2, good)], "sequence 2 does not exist: there are 0 to 1"),
        ([(-1, good)], "sequence -1 does not exist"),
        ([(0, good), (0, good)], "sequence 0 is named twice"),
        ([(0, good), (1, good[:0])], "at least one token"),
        ([(0, good), (1, np.array([2048], np.int32))], "token 2048 is not in the vocabulary"),
        ([(0, good), (1, np.append(ids, ids[:10]))], "72 tokens, the context has room for 64"),
    ):
        with pytest.raises(GenerateError, match=message):
            many.forward_many(parts)
    for call in (
        lambda: many.truncate(0, 2),
        lambda: many.truncate(3, 1),
        lambda: many.copy(1, 2, 1),
        lambda: many.copy(1, 0, 3),
        lambda: many.length(2),
    ):
        with pytest.raises(GenerateError, match=r"does not exist|cannot"):
            call()
    assert [many.length(i) for i in range(2)] == [0, 2]
