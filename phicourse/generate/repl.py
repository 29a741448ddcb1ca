"""A conversation in a terminal: `phicourse chat`."""

import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, TextIO

from phicourse.errors import GenerateError, TokenizerError
from phicourse.generate.llm import LLM

HELP = """/help   these lines
/reset  forget the conversation and begin again
/quit   end, as Ctrl-D does
Ctrl-C  stop the answer"""


def ask(prompt: str = "> ") -> str:
    """One line from standard input, with history and editing where a person types it."""
    if not sys.stdin.isatty():
        return input()
    with suppress(ImportError):  # Windows has none
        import readline  # noqa: F401  (importing it is what makes input() editable)
    return input(prompt)


class Repl:
    """Reads a line, answers it, and remembers both.

    Answers go to `out`, everything else to `log`; `read` gives a line, or raises EOFError at the end.
    """

    def __init__(
        self,
        llm: LLM,
        system: str | None = None,
        options: Mapping[str, Any] | None = None,
        *,
        read: Callable[[], str] = ask,
        out: TextIO | None = None,
        log: TextIO | None = None,
    ) -> None:
        """Begin a conversation.

        system   what the model is told first
        options  of `LLM.chat`, for every answer
        raises   GenerateError for a model that cannot chat
        """
        if not llm.tokenizer.vocabulary.chat_template:
            raise GenerateError(f"{llm.name}: has no chat template; `phicourse run` continues a text")
        self.llm = llm
        self.options = dict(options or {})
        self.read = read
        self.out = out or sys.stdout
        self.log = log or sys.stderr
        self.start: list[dict[str, str]] = [] if system is None else [{"role": "system", "content": system}]
        self.messages = list(self.start)

    def run(self) -> None:
        """Go on until /quit or the end of the input."""
        print(
            f"{self.llm.name}, {self.llm.backend.name}. /help lists the commands, Ctrl-D ends.", file=self.log
        )
        while True:
            try:
                line = self.read().strip()
            except EOFError:
                break
            except KeyboardInterrupt:  # a half-typed line is dropped
                print(file=self.log)
                continue
            if line == "/quit":
                break
            if line:
                self.take(line)

    def take(self, line: str) -> None:
        """Obey a command, or answer."""
        if line == "/help":
            print(HELP, file=self.log)
        elif line == "/reset":
            self.messages = list(self.start)
            print("The conversation begins again.", file=self.log)
        elif line.startswith("/"):
            print(f"{line.split()[0]} is no command; /help lists them.", file=self.log)
        else:
            self.answer(line)

    def answer(self, line: str) -> None:
        """Print the answer as it comes and remember as much of it as was printed."""
        said: list[str] = []
        try:
            messages = [*self.messages, {"role": "user", "content": line}]
            for piece in self.llm.chat(messages, stream=True, **self.options):
                print(piece, end="", flush=True, file=self.out)
                said.append(piece)
        except KeyboardInterrupt:
            print(end=" …", file=self.log)
        except (GenerateError, TokenizerError) as error:
            print(f"phicourse: {error} (/reset begins again)", file=self.log)
        else:
            self.tell_if_cut()
        if said:
            print(flush=True, file=self.out)
            self.tell_guesses()
            self.messages += [
                {"role": "user", "content": line},
                {"role": "assistant", "content": "".join(said)},
            ]

    def tell_if_cut(self) -> None:
        """Say so where the answer ended because no more fits."""
        run = self.llm.last_run
        if run is not None and run.finish_reason == "length":
            print(
                f"\nphicourse: cut off, the context of {self.llm.n_ctx:,} tokens is full (/reset begins again)",
                file=self.log,
            )

    def tell_guesses(self) -> None:
        """Say how well a draft guessed, where there is one."""
        run = self.llm.last_run
        if run is not None and run.guesses:
            print(f"phicourse: {run.guesses}", file=self.log)
