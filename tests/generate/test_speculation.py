"""Guesses change how often the model is run, and never what it says."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_model import BOS, EOG, FakeBackend, fake_llm

import phicourse
from phicourse.errors import GenerateError
from phicourse.generate import Run, Sampler, backends, generate_tokens
from phicourse.generate.context import Context
from phicourse.generate.speculation import DraftModel, PromptLookup

PROMPT = [BOS, 1, 2, 3]


class Guesses:
    """Knows the answer, and spoils every guess whose place is in `wrong`."""

    def __init__(self, answer: Sequence[int], wrong: Sequence[int] = ()) -> None:
        self.answer, self.wrong = list(answer), set(wrong)
        self.asked: list[int] = []

    def guess(self, history: Sequence[int], n: int) -> list[int]:
        self.asked.append(n)
        at = len(history) - len(PROMPT)
        return [token + (place in self.wrong) for place, token in enumerate(self.answer[at : at + n], at)]


def with_config(config: SimpleNamespace) -> FakeBackend:
    """A fake model of other sizes."""
    return type("Other", (FakeBackend,), {"config": config})()


def answer(draft=None, backend: FakeBackend | None = None, sampler: Sampler | None = None, **options):
    backend = backend or FakeBackend()
    run = Run(prompt=list(PROMPT))
    tokens = list(
        generate_tokens(Context(backend), run, sampler or Sampler(temperature=0), draft=draft, **options)
    )
    return tokens, run, backend


@pytest.mark.parametrize("wrong", [[], [0], [3], [2, 5, 9], range(20)])
@pytest.mark.parametrize("temperature", [0, 1.5])
def test_right_and_wrong_guesses_give_the_same_tokens(wrong: Sequence[int], temperature: float) -> None:
    alone, _, _ = answer(sampler=Sampler(temperature=temperature, seed=3), max_tokens=20)
    tokens, run, _ = answer(
        Guesses(alone, wrong), sampler=Sampler(temperature=temperature, seed=3), max_tokens=20
    )
    assert tokens == alone
    # each step makes one token more than it had right guesses
    assert run.steps + run.accepted == 20


def test_more_is_guessed_while_guesses_are_right() -> None:
    alone, _, _ = answer(max_tokens=40)
    draft = Guesses(alone, wrong=[13])
    assert answer(draft, max_tokens=40)[0] == alone
    # of the first seven only three are right; four are left to be wanted at the end
    assert draft.asked == [1, 2, 4, 7, 4, 7, 7, 4]


def test_never_more_guesses_than_tokens_wanted_or_than_the_context_holds() -> None:
    draft = Guesses(answer(max_tokens=5)[0])
    answer(draft, max_tokens=5)
    assert draft.asked == [1, 2]
    alone = answer(backend=FakeBackend(n_ctx=8))[0]
    draft = Guesses(alone)
    assert answer(draft, backend=FakeBackend(n_ctx=8))[0] == alone
    assert draft.asked == [1, 2]


def test_guesses_behind_the_end_are_not_said() -> None:
    script = [65, 66, EOG, 67]
    backend = FakeBackend(script=script, prompt_length=len(PROMPT))
    tokens, run, _ = answer(Guesses(script), backend=backend, end_of_generation={EOG})
    assert tokens == [65, 66] and run.finish_reason == "stop"


def test_no_step_crosses_the_switch_of_longrope() -> None:
    """The factors of a longer text would change what is expected within the shorter one."""
    config = SimpleNamespace(**vars(FakeBackend().config), original_context_length=7)
    backend = with_config(config)
    assert [Context(backend).room_after(n) for n in (5, 7, 8, 64)] == [59, 57, 56, 0]
    config.long_factor = (1.0,)
    assert [Context(backend).room_after(n) for n in (5, 7, 8, 64)] == [2, 0, 56, 0]


# ---- what guesses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("history", "n", "expected"),
    [
        ([1, 2, 3, 9, 1, 2], 8, [3, 9, 1, 2]),
        ([1, 2, 3, 9, 1, 2], 1, [3]),
        ([1, 2, 3, 1, 2, 4, 1, 2], 2, [4, 1]),  # the latest place
        ([0, 1, 2, 3, 5, 1, 2, 4, 0, 1, 2], 2, [3, 5]),  # the longest match
        ([7, 7, 7, 7], 3, [7]),
        ([1, 2, 3, 4], 8, []),
        ([1], 8, []),
        ([], 8, []),
    ],
)
def test_prompt_lookup(history: list[int], n: int, expected: list[int]) -> None:
    assert PromptLookup().guess(history, n) == expected


def test_a_draft_model_guesses_while_it_is_sure() -> None:
    small = FakeBackend(script=[65, 66], prompt_length=len(PROMPT))  # behind its script it is not sure
    draft = DraftModel(Context(small))
    assert draft.guess(PROMPT, 8) == [65, 66]
    assert draft.guess(PROMPT, 1) == [65]
    assert draft.guess([*PROMPT, 65], 8) == [66]
    assert DraftModel(Context(FakeBackend(n_ctx=3))).guess(PROMPT, 8) == []


def test_what_cannot_guess_is_refused() -> None:
    llm = fake_llm("abc", "x")
    with pytest.raises(GenerateError, match="draft must be 'lookup'"):
        llm.generate("x", draft="magic")
    other = fake_llm("abc", "x")
    other.backend = with_config(SimpleNamespace(vocab_size=9))
    other.context = Context(other.backend)
    with pytest.raises(GenerateError, match="has 9 tokens and the model 258"):
        llm.generate("x", draft=other)
    with pytest.raises(GenerateError, match="1 <= shortest"):
        PromptLookup(1, 2)


def test_the_engine_says_the_same_with_any_draft(phi_tiny: Path, tmp_path: Path) -> None:
    if backends.native_module() is None:
        pytest.skip("needs the compiled engine")
    gguf = phicourse.convert(phi_tiny, tmp_path / "f16.gguf", progress=False)
    small = phicourse.quantize(gguf, tmp_path / "q2.gguf", "Q2_K", progress=False)
    llm, smaller = phicourse.load(gguf), phicourse.load(small)
    question = [{"role": "user", "content": "Tell me a story about a dog. Tell me a story about a dog."}]
    for options in ({"temperature": 0}, {"temperature": 1, "seed": 5}):
        alone = llm.chat(question, max_tokens=120, **options)
        for draft in ("lookup", smaller):
            assert llm.chat(question, max_tokens=120, draft=draft, **options) == alone
            run = llm.last_run
            assert run is not None and run.guessed >= run.accepted > 0
            assert run.steps + run.accepted == len(run.tokens) + (run.finish_reason == "stop")
