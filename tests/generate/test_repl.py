"""The interactive chat, with lines instead of a keyboard."""

import io
from collections.abc import Callable, Iterator

import pytest
from fake_model import ByteTokenizer, FakeBackend, fake_llm

from phicourse.errors import GenerateError
from phicourse.generate import LLM
from phicourse.generate.repl import Repl


def typed(*lines: str | type[BaseException]) -> Callable[[], str]:
    """A reader that gives the lines, raises the exceptions, and then says that the input ended."""
    left = iter(lines)

    def read() -> str:
        line = next(left, EOFError)
        if isinstance(line, str):
            return line
        raise line

    return read


def talk(llm: LLM, *lines: str | type[BaseException], system: str | None = None) -> tuple[Repl, str, str]:
    out, log = io.StringIO(), io.StringIO()
    repl = Repl(llm, system, read=typed(*lines), out=out, log=log)
    repl.run()
    return repl, out.getvalue(), log.getvalue()


def test_answers_go_to_the_output_and_are_remembered() -> None:
    llm = fake_llm("Hello!", "user:Hi;")
    repl, out, log = talk(llm, "Hi", "")
    assert out == "Hello!\n"
    assert repl.messages == [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
    assert "/help" in log


def test_commands() -> None:
    repl, out, log = talk(
        fake_llm("A", "system:S;user:Hi;"), "/help", "/nonsense x", "Hi", "/reset", "/quit", "Hi", system="S"
    )
    assert out == "A\n"
    assert "/nonsense is no command" in log
    assert "Ctrl-C" in log
    assert repl.messages == [{"role": "system", "content": "S"}]


def test_ctrl_c_at_the_prompt_drops_the_line() -> None:
    _, out, _ = talk(fake_llm("A", "user:Hi;"), KeyboardInterrupt, "Hi")
    assert out == "A\n"


def test_ctrl_c_stops_the_answer_and_keeps_what_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    llm = fake_llm("A", "user:Hi;")

    def chat(messages: object, stream: bool) -> Iterator[str]:
        yield "Half"
        raise KeyboardInterrupt

    monkeypatch.setattr(llm, "chat", chat)
    repl, out, _ = talk(llm, "Hi")
    assert out == "Half\n"
    assert repl.messages[-1] == {"role": "assistant", "content": "Half"}


def test_a_conversation_that_grows_too_long_says_so_and_goes_on() -> None:
    repl, out, log = talk(fake_llm("A", "user:Hi;"), "x" * 100, "Hi")
    assert out == "A\n"
    assert "phicourse: the prompt has 107 tokens" in log
    assert len(repl.messages) == 2


def test_a_model_without_template_cannot_chat() -> None:
    llm = LLM(FakeBackend(), ByteTokenizer(chat_template=None), name="m")  # type: ignore[arg-type]
    with pytest.raises(GenerateError, match="no chat template"):
        Repl(llm)


def test_options_go_to_every_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    llm, seen = fake_llm("A", "user:Hi;"), []

    def chat(messages: object, **options: object) -> Iterator[str]:
        seen.append(options)
        yield "B"

    monkeypatch.setattr(llm, "chat", chat)
    Repl(llm, None, {"temperature": 0.0}, read=typed("Hi", "Hi"), out=io.StringIO(), log=io.StringIO()).run()
    assert seen == [{"stream": True, "temperature": 0.0}] * 2
