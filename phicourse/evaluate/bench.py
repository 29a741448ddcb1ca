"""How fast: tokens a second of prompt processing (pp) and text generation (tg), measured as llama-bench does.

No sampling, no tokenizer: the ids are random, only the forward pass is timed. pp512 reads 512 tokens in one
go, limited by arithmetic; tg128 takes 128 single steps, limited by how fast the weights come from memory.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from phicourse.errors import GenerateError
from phicourse.generate.backends import Backend

SEED = 1
Test = Callable[[], None]


@dataclass(frozen=True)
class Measurement:
    """The speed of one test.

    test               "pp512": 512 tokens of prompt, "tg128": 128 generated ones, each from an empty cache;
                       "tg128 @ d2048": behind a text of 2,048 tokens
    tokens_per_second  mean over the repetitions of tokens / seconds
    stddev             sample standard deviation of the same; 0 for one repetition
    """

    test: str
    tokens_per_second: float
    stddev: float
    threads: int
    isa: str
    repetitions: int

    def as_dict(self) -> dict[str, Any]:
        """The fields of `phicourse bench --json`."""
        return asdict(self)


def bench(
    backend: Backend,
    *,
    n_prompt: int = 512,
    n_gen: int = 128,
    repetitions: int = 3,
    depth: int = 0,
    bos: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Measurement]:
    """Measure prompt processing and generation; 0 tokens leave a test out.

    backend  its context must hold the longer of the two tests, and the depth
    depth    tokens of text that are in the cache before each test, not timed
    bos      the first token, where the model wants one; else random as the others
    clock    seconds; for tests
    raises   GenerateError where there is nothing to measure or no room for it
    """
    if min(n_prompt, n_gen, depth) < 0 or n_prompt + n_gen == 0 or repetitions < 1:
        raise GenerateError("bench: needs tokens to process (-p, -n) and at least one repetition (-r)")
    if (needed := depth + max(n_prompt, n_gen)) > backend.n_ctx:
        raise GenerateError(f"bench: {needed:,} tokens do not fit into a context of {backend.n_ctx:,}")
    ids = random_ids(needed, backend.config.vocab_size, bos)
    before, ids = ids[:depth], ids[depth:]
    behind = f" @ d{depth}" if depth else ""
    measured = []
    if n_prompt:
        seconds = repeat(backend, before, lambda: read(backend, ids[:n_prompt]), None, repetitions, clock)
        measured.append(measurement(f"pp{n_prompt}{behind}", n_prompt, seconds, backend))
    if n_gen:
        generate, warm_up = (lambda: step(backend, ids[:n_gen])), (lambda: step(backend, ids[:1]))
        seconds = repeat(backend, before, generate, warm_up, repetitions, clock)
        measured.append(measurement(f"tg{n_gen}{behind}", n_gen, seconds, backend))
    return measured


def random_ids(n: int, vocab_size: int, bos: int | None) -> np.ndarray[Any, np.dtype[np.int32]]:
    """Ids (n,) int32, the same in every run."""
    ids = np.random.Generator(np.random.PCG64(SEED)).integers(0, vocab_size, n, dtype=np.int32)
    if bos is not None:
        ids[0] = bos
    return ids


def repeat(
    backend: Backend,
    before: np.ndarray[Any, np.dtype[np.int32]],
    test: Test,
    warm_up: Test | None,
    repetitions: int,
    clock: Callable[[], float],
) -> list[float]:
    """Run a test once unmeasured (or what warms up for it), then measured; each behind the ids `before`."""
    backend.truncate(0)
    if len(before):
        read(backend, before)
    (warm_up or test)()
    seconds = []
    for _ in range(repetitions):
        backend.truncate(len(before))
        start = clock()
        test()
        seconds.append(clock() - start)
    backend.truncate(0)
    return seconds


def read(backend: Backend, ids: np.ndarray[Any, np.dtype[np.int32]]) -> None:
    """Prompt processing: ids (n,) at once, logits after the last; the engine cuts them into batches of 512."""
    backend.forward(ids, False)


def step(backend: Backend, ids: np.ndarray[Any, np.dtype[np.int32]]) -> None:
    """Generation: ids (n,) one at a time."""
    for i in range(len(ids)):
        backend.forward(ids[i : i + 1], False)


def measurement(test: str, n_tokens: int, seconds: list[float], backend: Backend) -> Measurement:
    """Mean and sample standard deviation of tokens a second."""
    rates = n_tokens / np.maximum(seconds, 1e-12)  # (repetitions,)
    stddev = float(rates.std(ddof=1)) if len(rates) > 1 else 0.0
    return Measurement(test, float(rates.mean()), stddev, backend.threads, backend.isa, len(seconds))
