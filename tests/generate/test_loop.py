"""The loop, with a model that shows every mistake with its cache."""

from itertools import pairwise

import numpy as np
import pytest
from fake_model import BOS, EOG, VOCAB, FakeBackend, fake_llm, logits_after

from phicourse.errors import GenerateError
from phicourse.generate import LLM, Run, Sampler, StopStrings, generate_tokens
from phicourse.generate.context import Context, common_prefix


def greedy_by_hand(prompt: list[int], n: int) -> list[int]:
    """What greedy decoding gives without any cache."""
    ids = list(prompt)
    for _ in range(n):
        ids.append(int(np.argmax(logits_after(ids))))
    return ids[len(prompt) :]


def test_tokens_are_those_of_a_model_without_cache() -> None:
    run = Run(prompt=[BOS, 1, 2, 3])
    tokens = list(generate_tokens(Context(FakeBackend()), run, Sampler(temperature=0), max_tokens=10))
    assert tokens == run.tokens == greedy_by_hand([BOS, 1, 2, 3], 10)
    assert run.finish_reason == "length"


def test_the_prompt_is_read_at_once_and_then_token_by_token() -> None:
    backend = FakeBackend(n_ctx=2000)
    run = Run(prompt=[i % 256 for i in range(600)])
    list(generate_tokens(Context(backend), run, Sampler(temperature=0), max_tokens=3))
    assert backend.calls == [600, 1, 1]  # the last token is not run: nobody needs what follows


def test_end_of_generation_ends_and_is_not_part_of_the_answer() -> None:
    backend = FakeBackend(script=[65, 66, EOG, 67], prompt_length=2)
    run = Run(prompt=[BOS, 1])
    assert list(generate_tokens(Context(backend), run, Sampler(temperature=0), end_of_generation={EOG})) == [
        65,
        66,
    ]
    assert run.finish_reason == "stop"


def test_a_full_context_ends_with_length() -> None:
    run = Run(prompt=[BOS, 1, 2])
    tokens = list(generate_tokens(Context(FakeBackend(n_ctx=8)), run, Sampler(temperature=0)))
    assert len(tokens) == 6  # eight positions hold all but the last token, which is never read
    assert run.finish_reason == "length"


@pytest.mark.parametrize(("n", "reason"), [(0, "empty"), (8, "8 tokens"), (9, "9 tokens")])
def test_impossible_prompts_are_refused(n: int, reason: str) -> None:
    with pytest.raises(GenerateError, match=reason):
        list(generate_tokens(Context(FakeBackend(n_ctx=8)), Run(prompt=[1] * n), Sampler()))


def test_no_tokens_wanted_no_tokens_computed() -> None:
    backend = FakeBackend()
    assert list(generate_tokens(Context(backend), Run(prompt=[1]), Sampler(), max_tokens=0)) == []
    assert backend.n_evaluated == 0


def test_what_two_prompts_share_is_computed_once() -> None:
    backend = FakeBackend()
    context = Context(backend)
    first = [BOS, 1, 2, 3, 4, 5]
    np.testing.assert_array_equal(context.logits_after(first), logits_after(first))
    second = [BOS, 1, 2, 9, 9]
    np.testing.assert_array_equal(context.logits_after(second), logits_after(second))
    assert backend.n_evaluated == 6 + 2
    np.testing.assert_array_equal(context.logits_after(second), logits_after(second))
    assert backend.n_evaluated == 6 + 2 + 1  # the last token gives the logits, so it is read again
    np.testing.assert_array_equal(context.logits_after(second[:2]), logits_after(second[:2]))


def test_all_logits_after_a_position() -> None:
    context, ids = Context(FakeBackend()), [5, 6, 7, 8]
    expected = np.stack([logits_after(ids[: i + 1]) for i in range(4)])
    context.logits_after([5, 6, 1])
    np.testing.assert_array_equal(context.all_logits(ids), expected)
    np.testing.assert_array_equal(context.all_logits(ids, first=2), expected[2:])


def test_an_interrupted_step_does_no_harm() -> None:
    """Ctrl-C may come after the backend took a token and before that was noted."""
    backend = FakeBackend()
    context = Context(backend)
    context.logits_after([1, 2, 3])
    backend.forward(np.array([99]), False)
    np.testing.assert_array_equal(context.logits_after([1, 2, 3, 4]), logits_after([1, 2, 3, 4]))
    backend.truncate(1)
    np.testing.assert_array_equal(context.logits_after([1, 2, 3, 4, 5]), logits_after([1, 2, 3, 4, 5]))


def test_common_prefix() -> None:
    assert common_prefix([1, 2, 3], [1, 2, 4]) == 2
    assert common_prefix([], [1]) == 0
    assert common_prefix([1, 2], [1, 2, 3]) == 2


@pytest.mark.parametrize(
    ("stop", "pushed", "given", "rest"),
    [
        ((), ["ab", "c"], ["ab", "c"], ""),
        (("User:",), ["Hi Us", "er", ":x"], ["Hi ", "", ""], ""),
        (("User:",), ["Hi Us", "e it"], ["Hi ", "Use it"], ""),
        (("User:",), ["Hi U"], ["Hi "], "U"),
        (("aab",), ["aaa", "b"], ["a", ""], ""),
        (("xyz", "b"), ["abxyz"], ["a"], ""),
        (("ab", "abc"), ["1abc"], ["1"], ""),
        (("\n\n",), ["a\n", "b\n", "\nc"], ["a", "\nb", ""], ""),
    ],
)
def test_stop_strings(stop: tuple[str, ...], pushed: list[str], given: list[str], rest: str) -> None:
    holder = StopStrings(stop)
    assert [holder.push(text) for text in pushed] == given
    assert holder.finish() == rest


def test_stop_strings_however_the_text_is_cut() -> None:
    """Whatever the pieces, what is let through is the text before the earliest stop string."""
    text, stop = "one two STO STOP three", ("STOP", "three")
    rng = np.random.default_rng(5)
    for _ in range(200):
        cuts = [0, *sorted(rng.integers(0, len(text), 5).tolist()), len(text)]
        holder = StopStrings(stop)
        out = "".join(holder.push(text[a:b]) for a, b in pairwise(cuts))
        assert out + holder.finish() == "one two STO "
        assert holder.found == "STOP"


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(GenerateError, match="empty"):
        StopStrings(["a", ""])


def test_generate_returns_what_the_stream_gives() -> None:
    prompt, script = "Once", "a € cat"  # the euro sign is three tokens
    assert fake_llm(script, prompt).generate(prompt, temperature=0) == script
    pieces = list(fake_llm(script, prompt).generate(prompt, stream=True, temperature=0))
    assert "".join(pieces) == script
    assert "€" in pieces


def test_half_a_character_at_the_end_becomes_a_replacement() -> None:
    llm = fake_llm("a€".encode()[:3], "x")
    assert llm.generate("x", temperature=0) == "a\N{REPLACEMENT CHARACTER}"


def test_stop_reason_and_tokens_of_the_last_run() -> None:
    llm = fake_llm("Hello. User: me", "x")
    assert llm.generate("x", temperature=0, stop="User:") == "Hello. "
    assert llm.last_run is not None
    assert llm.last_run.finish_reason == "stop"
    assert bytes(llm.last_run.tokens).decode() == "Hello. User:"
    assert llm.generate("x", temperature=0, max_tokens=5) == "Hello"
    assert llm.last_run.finish_reason == "length"
    assert llm.generate("x", temperature=0, stop=["zzz", "!"]) == "Hello. User: me"
    assert llm.last_run.finish_reason == "stop"


def test_text_held_back_for_a_stop_string_comes_at_the_end() -> None:
    assert fake_llm("Hello Us", "x").generate("x", temperature=0, stop="User:") == "Hello Us"


def test_mistakes_show_before_the_first_piece() -> None:
    llm = fake_llm("a", "x")
    with pytest.raises(GenerateError, match="unknown option 'temprature'"):
        llm.generate("x", stream=True, temprature=0)
    with pytest.raises(GenerateError, match="tokens and the context"):
        llm.generate("x" * 64, stream=True)
    with pytest.raises(GenerateError, match="stop string"):
        llm.generate("x", stream=True, stop=[""])
    with pytest.raises(GenerateError, match="max_tokens"):
        llm.generate("x", stream=True, max_tokens=-1)
    for messages in ("hello", ["hello"]):
        with pytest.raises(GenerateError, match="dicts"):
            llm.chat(messages, stream=True)


def test_two_streams_read_in_turns_do_not_mix() -> None:
    llm = fake_llm()
    alone = [
        fake_llm().generate([1, 2, 3], temperature=0, max_tokens=8),
        fake_llm().generate([4], temperature=0, max_tokens=8),
    ]
    a = llm.generate([1, 2, 3], stream=True, temperature=0, max_tokens=8)
    b = llm.generate([4], stream=True, temperature=0, max_tokens=8)
    texts = ["", ""]
    for _ in range(9):
        texts[0] += next(a, "")
        texts[1] += next(b, "")
    assert texts == alone


def test_a_chat_computes_only_what_is_new() -> None:
    llm = fake_llm(n_ctx=512, end=False)
    assert isinstance(llm.backend, FakeBackend)
    messages = [{"role": "user", "content": "hello"}]
    answer = llm.chat(messages, temperature=0, max_tokens=5)
    before = llm.backend.n_evaluated
    history = [*messages, {"role": "assistant", "content": answer}, {"role": "user", "content": "more"}]
    llm.chat(history, temperature=0, max_tokens=1)
    shared = len("user:hello;") + 1
    assert llm.backend.n_evaluated - before == len(llm.tokenizer.chat(history)) - shared


def test_same_seed_same_text_whatever_was_asked_before() -> None:
    llm = fake_llm(n_ctx=512, end=False)
    first = llm.generate("Once", seed=4, max_tokens=20)
    llm.generate("Other", max_tokens=5)
    assert llm.generate("Once", seed=4, max_tokens=20) == first
    assert llm.generate("Once", seed=5, max_tokens=20) != first


def test_logits_keep_no_cache() -> None:
    llm = fake_llm()
    ids = [BOS, 7, 8]
    logits = llm.logits(ids)
    assert logits.shape == (3, VOCAB)
    np.testing.assert_array_equal(logits[2], logits_after(ids))
    assert llm.backend.position == 0
    for wrong in ([], [1] * 65):
        with pytest.raises(GenerateError, match="logits of"):
            llm.logits(wrong)


def test_an_llm_shows_its_layers_once() -> None:
    from phicourse.generate.llm import Tensor

    tensors = [Tensor("token_embd.weight", (258, 8), "F16", 4128)]
    tensors += [Tensor(f"blk.{i}.<b>.weight", (8, 8), "Q8_0", 68) for i in range(2)]
    llm = LLM(FakeBackend(), fake_llm().tokenizer, name="<script>", tensors=tensors)
    page = llm._repr_html_()
    assert page.count("<tr>") == 3
    assert "blk.*.&lt;b&gt;.weight" in page
    assert "&lt;script&gt;" in page
    assert "<script>" not in page
    assert "<td>136</td>" in page
