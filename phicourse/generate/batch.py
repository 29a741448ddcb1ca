"""Several answers at once: a step of all of them reads the model's weights once.

Generation waits for the weights to come from memory, not for arithmetic. So a token for each of eight answers costs
little more than one token. Answers come and go between the steps ("continuous batching"): one that ends makes room
for the next. Each has a sequence of the backend to itself, and its text is the one that it would get alone.
Source: Yu et al. 2022 (Orca).
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from phicourse.generate.context import Context, common_prefix
from phicourse.generate.generate import Answer, AnswerText
from phicourse.generate.sampling import Float32Array

STEP_TOKENS = 512
"""The most tokens that a step reads: a long prompt is read in parts, so that the other answers go on meanwhile."""

WORTH_WAITING = 32
"""A prompt waits for another one that is being read where they have so many tokens more in common."""


@dataclass(eq=False)
class Job:
    """An answer with its text, and the sequence that it is written in."""

    answer: Answer
    text: AnswerText
    context: Context | None = None

    @property
    def wanted(self) -> list[int]:
        """The ids that must be read before the next token."""
        return self.answer.history

    @property
    def is_over(self) -> bool:
        """No further piece of text comes."""
        return self.answer.is_over


class Batch:
    """Jobs that wait for a sequence, and those that have one."""

    def __init__(self, contexts: Sequence[Context]) -> None:
        """`contexts`: one for each sequence of one backend that may be used."""
        self.contexts = tuple(contexts)
        self.waiting: deque[Job] = deque()
        self.running: list[Job] = []

    def add(self, answer: Answer, text: AnswerText) -> Job:
        """Put an answer at the end of the queue."""
        job = Job(answer, text)
        self.waiting.append(job)
        return job

    def cancel(self, job: Job) -> None:
        """Drop a job, between two steps; nothing happens where it is over."""
        if job in self.waiting:
            self.waiting.remove(job)
        if job in self.running:
            self.running.remove(job)

    def step(self) -> list[tuple[Job, str]]:
        """Read what is next in all sequences at once: the jobs that got a token, with the text that is certain now.

        Jobs whose prompts are still being read get nothing. An empty list is no end: `running` and `waiting` tell it.
        """
        self._admit()
        parts = self._parts()
        if not parts:
            return []
        backend = self.contexts[0].backend
        logits = backend.forward_many([(c.sequence, np.asarray(ids, np.int32)) for _, c, ids in parts])
        got = []
        for (job, context, ids), rows in zip(parts, logits, strict=True):
            context.note(ids)
            if context.length == len(job.wanted):
                got.append((job, take(job, rows[-1])))
        self.running = [job for job in self.running if not job.is_over]
        return got

    def _admit(self) -> None:
        """Give free sequences to waiting jobs, and what other sequences have of their prompts."""
        while self.waiting and len(self.running) < len(self.contexts):
            job = self.waiting[0]
            if job.is_over:  # no tokens were asked for
                self.waiting.popleft()
                continue
            nearest = max(self.contexts, key=lambda context: context.common(job.wanted))
            if self._is_being_read(job.wanted, nearest.common(job.wanted)):
                return
            used = [other.context for other in self.running]
            free = (context for context in self.contexts if context not in used)
            job.context = max(free, key=lambda context: context.common(job.wanted))
            if nearest.common(job.wanted) > job.context.common(job.wanted):
                job.context.copy(nearest, nearest.common(job.wanted))
            self.running.append(self.waiting.popleft())

    def _is_being_read(self, ids: list[int], n_known: int) -> bool:
        """Whether a running job reads much of `ids` just now, more than the n_known that some sequence has."""
        longest = max((common_prefix(ids, job.wanted) for job in self.running), default=0)
        return min(longest, len(ids) - 1) >= n_known + WORTH_WAITING

    def _parts(self) -> list[tuple[Job, Context, list[int]]]:
        """What each running job reads in the next step: at least one id."""
        left = STEP_TOKENS - len(self.running)
        parts = []
        for job in self.running:
            assert job.context is not None  # running jobs have one
            missing = job.context.missing(job.wanted)
            if len(missing) <= job.context.room_after(job.context.length):
                missing = missing[: 1 + max(left, 0)]
            # Else LongRoPE's factors change on the way: all of it at once, or the first parts were in vain.
            left -= len(missing) - 1
            parts.append((job, job.context, missing))
        return parts


def take(job: Job, logits: Float32Array) -> str:
    """Let a job have its next token's logits (vocab,); the text that is certain now."""
    token = job.answer.take(logits)
    text = "" if token is None else job.text.push(token)
    job.answer.run.steps += 1
    if job.is_over and job.text.holder.found is None:
        text += job.text.finish()
    return text


def write_all(batch: Batch, answers: Sequence[tuple[Answer, AnswerText]]) -> Iterator[tuple[int, str]]:
    """Write all answers to their ends: pieces of text as they come, each with the number of its answer."""
    numbers = {batch.add(*answer): i for i, answer in enumerate(answers)}
    while batch.running or batch.waiting:
        for job, piece in batch.step():
            if piece:
                yield numbers[job], piece
