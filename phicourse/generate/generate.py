"""The loop: read the prompt in batches, then one token after another until something says stop."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from phicourse.errors import GenerateError
from phicourse.generate.context import Context
from phicourse.generate.sampling import Float32Array, Sampler
from phicourse.generate.speculation import Draft, guesses_ahead

FinishReason = Literal["stop", "length"]


class TextStream(Protocol):
    """Turns ids into text piece by piece, never cutting a character (a tokenizer's `stream()`)."""

    def push(self, token: int, /) -> str:
        """The text that is certain after one more token; may be empty."""
        ...

    def finish(self) -> str:
        """What is left at the end, such as half a character."""
        ...


@dataclass
class Run:
    """One answer: what was asked, what came, and why it ended.

    steps              how often the model was run for it
    guessed, accepted  how many tokens a draft guessed, and how many of them were right
    """

    prompt: list[int]
    tokens: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    steps: int = 0
    guessed: int = 0
    accepted: int = 0

    @property
    def guesses(self) -> str:
        """How well a draft guessed, in one line; empty where none did."""
        if not self.guessed:
            return ""
        return (
            f"{self.accepted:,} of {self.guessed:,} guesses were right, "
            f"{len(self.tokens) / self.steps:.1f} tokens a step"
        )


def check_prompt(ids: Sequence[int], n_ctx: int) -> None:
    """Refuse a prompt that is empty or leaves no room for an answer.

    raises   GenerateError
    """
    if not len(ids):
        raise GenerateError(
            "the prompt is empty, and this model has no beginning-of-text token to start from"
        )
    if len(ids) >= n_ctx:
        raise GenerateError(
            f"the prompt has {len(ids):,} tokens and the context holds {n_ctx:,}, the answer included: "
            "shorten it or ask for a larger context (--ctx, n_ctx)"
        )


class Answer:
    """An answer that grows by a token at a time: what each is, and when the last has come."""

    def __init__(
        self,
        run: Run,
        sampler: Sampler,
        n_ctx: int,
        *,
        max_tokens: int | None = None,
        end_of_generation: Collection[int] = (),
    ) -> None:
        """Note the tokens in `run`; n_ctx: the positions of the context, other parameters as `generate_tokens`."""
        check_prompt(run.prompt, n_ctx)
        self.run = run
        self.sampler = sampler
        self.history = list(run.prompt)
        self.end_of_generation = end_of_generation
        longest = n_ctx + 1  # the last token is said, but not read
        self.limit = longest if max_tokens is None else min(longest, len(run.prompt) + max_tokens)
        self._look_at_the_length()

    @property
    def is_over(self) -> bool:
        """No further token comes."""
        return self.run.finish_reason is not None

    def take(self, logits: Float32Array) -> int | None:
        """The token that follows `history`, sampled from its logits (vocab,); None: the model ended the answer."""
        token = self.sampler.sample(logits, self.history)
        if token in self.end_of_generation:
            self.run.finish_reason = "stop"
            return None
        self.history.append(token)
        self.run.tokens.append(token)
        self._look_at_the_length()
        return token

    def _look_at_the_length(self) -> None:
        if len(self.history) >= self.limit:
            self.run.finish_reason = "length"


def generate_tokens(
    context: Context,
    run: Run,
    sampler: Sampler,
    *,
    max_tokens: int | None = None,
    end_of_generation: Collection[int] = (),
    draft: Draft | None = None,
) -> Iterator[int]:
    """Yield one id after another and note them in `run`.

    max_tokens         None: until the model ends or the context is full
    end_of_generation  ids that end the answer; they are not part of it
    draft              guesses tokens, which are checked together; the ids are the same without it
    """
    answer = Answer(run, sampler, context.n_ctx, max_tokens=max_tokens, end_of_generation=end_of_generation)
    yield from answer_tokens(context, answer, draft)


def answer_tokens(context: Context, answer: Answer, draft: Draft | None = None) -> Iterator[int]:
    """Yield the tokens of an answer up to its end."""
    run, history = answer.run, answer.history
    ahead = 1  # how many tokens are guessed: more while the guesses are right
    while not answer.is_over:
        room = min(ahead, answer.limit - len(history) - 1, context.room_after(len(history)))
        guesses = [] if draft is None or room == 0 else draft.guess(history, room)
        logits = context.last_logits([*history, *guesses], 1 + len(guesses))  # (1 + guesses, vocab)
        run.steps += 1
        run.guessed += len(guesses)
        right_before = run.accepted
        for expected, guess in zip(logits, [*guesses, None], strict=True):
            token = answer.take(expected)
            if token is None:
                return
            run.accepted += token == guess
            yield token
            if token != guess:
                break
        ahead = guesses_ahead(ahead, len(guesses), run.accepted - right_before)


class AnswerText:
    """The text of an answer in pieces that will not be taken back."""

    def __init__(self, run: Run, stream: TextStream, stop: Sequence[str] = ()) -> None:
        """`stop`: strings that end the answer; neither they nor anything after them is given out."""
        self.run = run
        self.stream = stream
        self.holder = StopStrings(stop)

    def push(self, token: int) -> str:
        """What is certain after one more token; a stop string ends the run."""
        return self._through(self.stream.push(token))

    def finish(self) -> str:
        """What was held back, now that no token follows."""
        return self._through(self.stream.finish()) + self.holder.finish()

    def _through(self, text: str) -> str:
        text = self.holder.push(text)
        if self.holder.found:
            self.run.finish_reason = "stop"
        return text


def generate_text(
    context: Context, answer: Answer, text: AnswerText, draft: Draft | None = None
) -> Iterator[str]:
    """Yield an answer's text in pieces that will not be taken back, up to its end or a stop string."""
    for token in answer_tokens(context, answer, draft):
        yield from pieces(text.push(token))
        if text.holder.found:
            return
    yield from pieces(text.finish())


def pieces(text: str) -> tuple[str, ...]:
    """A text as something to yield from: nothing where it is empty."""
    return (text,) if text else ()


class StopStrings:
    """Lets text through until a stop string appears, and holds back what could be the start of one.

    With stop "User:" the text "Us" waits: the next piece makes it "User:" (never shown) or "Use" (shown).
    """

    def __init__(self, stop: Sequence[str]) -> None:
        """`stop`: the strings; an empty one would end every answer and is refused."""
        if any(not s for s in stop):
            raise GenerateError("a stop string must not be empty")
        self.stop = tuple(stop)
        self.found: str | None = None
        self._held = ""

    def push(self, text: str) -> str:
        """Take in more text, give out what is certain. Nothing comes after a stop string was found."""
        if self.found is not None:
            return ""
        self._held += text
        place, found = self._first()
        if found is not None:
            self.found = found
            return self._release(place)
        return self._release(len(self._held) - self._could_begin())

    def finish(self) -> str:
        """What was held back, now that nothing can follow; empty after a stop string."""
        return "" if self.found is not None else self._release(len(self._held))

    def _first(self) -> tuple[int, str | None]:
        """Where the earliest stop string begins; of two at one place the longer."""
        places = [(self._held.find(s), -len(s), s) for s in self.stop if s in self._held]
        return (min(places)[0], min(places)[2]) if places else (-1, None)

    def _could_begin(self) -> int:
        """The length of the longest end of the text that begins a stop string."""
        longest = max((len(s) for s in self.stop), default=1) - 1
        for n in range(min(longest, len(self._held)), 0, -1):
            if any(s.startswith(self._held[-n:]) for s in self.stop):
                return n
        return 0

    def _release(self, n: int) -> str:
        """Give out the first n characters held; after a stop string the rest is dropped unseen."""
        out, self._held = self._held[:n], self._held[n:]
        return out
