"""From logits to one token: each sampler a function of plain arrays, in llama.cpp's order.

Every filter takes logits and gives logits back, with the tokens that it rules out at minus infinity:

    penalty -> top-k -> top-p -> min-p -> temperature -> draw

Temperature comes last, so top-p and min-p judge the model's own distribution, not the flattened one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from phicourse.errors import GenerateError

Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]
IntArray = NDArray[np.int64]


def repetition_penalty(logits: Float32Array, recent: Sequence[int], penalty: float) -> Float32Array:
    """Make tokens that were used recently less likely.

    logits   (vocab,) float32
    recent   the ids of the last tokens, prompt included; counting them twice changes nothing
    penalty  1 does nothing; a positive logit is divided by it and a negative one multiplied,
             so that both move down
    """
    if penalty == 1 or not len(recent):
        return logits
    ids = np.unique(np.asarray(recent, dtype=np.int64))
    used = logits[ids]  # (n_distinct,)
    logits = logits.copy()
    logits[ids] = np.where(used <= 0, used * np.float32(penalty), used / np.float32(penalty))
    return logits


def candidates(logits: Float32Array) -> IntArray:
    """The ids that are still possible, the likeliest first, equal ones by id: (n_left,) int64."""
    ids = np.flatnonzero(logits > -np.inf)
    return ids[np.argsort(-logits[ids], kind="stable")]


def keep_only(logits: Float32Array, ids: IntArray) -> Float32Array:
    """Rule out every token but `ids`: (vocab,) with minus infinity elsewhere."""
    kept = np.full_like(logits, -np.inf)
    kept[ids] = logits[ids]
    return kept


def top_k(logits: Float32Array, k: int) -> Float32Array:
    """Keep the k likeliest tokens; 0 or less keeps all. Equal logits: the lower id wins."""
    if k <= 0 or k >= logits.size:
        return logits
    smallest_kept = np.partition(logits, -k)[-k]
    above = np.flatnonzero(logits > smallest_kept)  # fewer than k
    level = np.flatnonzero(logits == smallest_kept)[: k - above.size]
    return keep_only(logits, np.concatenate([above, level]))


def top_p(logits: Float32Array, p: float) -> Float32Array:
    """Keep the smallest set of likeliest tokens whose probability reaches p; 1 or more keeps all.

    The token that crosses p stays, so at least one is always left.
    """
    if p >= 1:
        return logits
    ids = candidates(logits)
    reached = np.cumsum(probabilities(logits[ids]))  # (n_left,)
    n_kept = int(np.searchsorted(reached, p)) + 1
    return keep_only(logits, ids[:n_kept])


def min_p(logits: Float32Array, p: float) -> Float32Array:
    """Keep tokens at least p times as likely as the likeliest; 0 or less keeps all.

    exp(logit) >= p * exp(max) is compared as logit >= max + ln p: no softmax is needed.
    """
    if p <= 0:
        return logits
    threshold = logits.max() + np.float32(math.log(min(p, 1.0)))
    return np.where(logits >= threshold, logits, np.float32(-np.inf))


def temperature(logits: Float32Array, t: float) -> Float32Array:
    """Flatten (t > 1) or sharpen (t < 1) the distribution; 0 or less keeps the likeliest token alone.

    So does a temperature so low that float32 cannot hold the quotients.
    """
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        sharpened: Float32Array = logits / np.float32(t)
    if t <= 0 or not np.isfinite(sharpened.max()):
        return keep_only(logits, np.array([greedy(logits)]))
    return sharpened


def greedy(logits: Float32Array) -> int:
    """The likeliest token; of equal ones the lowest id."""
    return int(np.argmax(logits))


def probabilities(logits: Float32Array) -> Float64Array:
    """Softmax in float64, (n,) -> (n,), summing to 1. Tokens at minus infinity get 0."""
    weights = np.exp(logits.astype(np.float64) - np.float64(logits.max()))
    total: Float64Array = weights / weights.sum()
    return total


def draw(logits: Float32Array, u: float) -> int:
    """The token at which the running sum of probabilities, likeliest first, reaches u in [0, 1)."""
    ids = candidates(logits)
    running = np.cumsum(probabilities(logits[ids]))
    place = int(np.searchsorted(running, u * running[-1]))
    return int(ids[min(place, ids.size - 1)])


@dataclass
class Sampler:
    """The chain of samplers with llama.cpp's defaults, and the random numbers it draws from.

    temperature     0 or less: greedy
    top_k           0: off
    top_p           1: off
    min_p           0: off
    repeat_penalty  1: off; looks at the last `repeat_last_n` tokens (-1: all of them)
    seed            None draws one from the operating system; the same seed gives the same tokens

    The random numbers come from NumPy's PCG64, one a token: the distribution is llama.cpp's, the
    tokens drawn from it are not (there a Mersenne Twister draws).
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    seed: int | None = None
    _random: np.random.Generator = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse values that no sampler can work with."""
        for name in ("temperature", "top_p", "min_p", "repeat_penalty"):
            if not math.isfinite(getattr(self, name)):
                raise GenerateError(f"{name} must be a finite number, not {getattr(self, name)}")
        if self.repeat_penalty <= 0:
            raise GenerateError(f"repeat_penalty must be above 0, not {self.repeat_penalty}")
        if self.seed is not None and self.seed < 0:
            raise GenerateError(f"seed must be 0 or more, not {self.seed}")
        self.reset()

    def reset(self) -> None:
        """Start the random numbers again from the seed."""
        self._random = np.random.Generator(np.random.PCG64(self.seed))

    def filter(self, logits: Float32Array, history: Sequence[int] = ()) -> Float32Array:
        """The whole chain but the draw: (vocab,) -> (vocab,), ruled-out tokens at minus infinity.

        history   ids of the prompt and of everything generated since
        raises    GenerateError where a logit is not a number, or none is finite
        """
        logits = np.asarray(logits, dtype=np.float32)
        if not np.isfinite(logits.max(initial=-np.inf)):  # NaN wins every max
            raise GenerateError("the model gave logits that are not finite: its weights are damaged")
        logits = repetition_penalty(logits, self._recent(history), self.repeat_penalty)
        logits = top_k(logits, self.top_k)
        logits = top_p(logits, self.top_p)
        logits = min_p(logits, self.min_p)
        return temperature(logits, self.temperature)

    def distribution(
        self, logits: Float32Array, history: Sequence[int] = ()
    ) -> tuple[IntArray, Float64Array]:
        """What the draw chooses from: ids (n_left,), the likeliest first, and their probabilities."""
        logits = self.filter(logits, history)
        ids = candidates(logits)
        return ids, probabilities(logits[ids])

    def sample(self, logits: Float32Array, history: Sequence[int] = ()) -> int:
        """The next token's id."""
        filtered = self.filter(logits, history)
        if self.temperature <= 0:
            return greedy(filtered)
        return draw(filtered, self._random.random())

    def _recent(self, history: Sequence[int]) -> Sequence[int]:
        if self.repeat_last_n < 0:
            return history
        return history[max(0, len(history) - self.repeat_last_n) :]
