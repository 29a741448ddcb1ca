"""The checks of notebook 06, generating text."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from phicourse.checkpoint import PhiConfig
from phicourse.checkpoint.config import parse_config
from phicourse.exercises.checkpoint import PHI_4, PHI_4_MINI, PHI_35_MINI
from phicourse.exercises.compare import compare_arrays, compare_close, compare_values, recognise
from phicourse.exercises.exercise import Answer, Mistake, exercise
from phicourse.generate.sampling import Float64Array, Sampler, probabilities, temperature

TOLERANCE = 1e-6  # of the largest number: softmax in float32 is as good as in float64
_NEVER = -np.inf


@exercise("06.1", "Remember", difficulty=1, minutes=5, core=True)
def append(answer: Answer) -> Mistake | None:
    """Give `append(cache, layer, keys, values)` two layers in turns, and look at what it returns and keeps."""
    rng = np.random.default_rng(0)
    cache: dict[int, Any] = {}
    right: dict[int, tuple[NDArray[Any], NDArray[Any]]] = {}
    for n_new in (2, 2, 1):
        for layer in (0, 1):
            new = tuple(rng.standard_normal((2, n_new, 4)).astype(np.float32) for _ in "kv")
            old = right.get(layer, tuple(part[:, :0] for part in new))
            right[layer] = (np.concatenate((old[0], new[0]), 1), np.concatenate((old[1], new[1]), 1))
            got = answer(cache, layer, *(part.copy() for part in new))
            mistake = _compare_pair(f"layer {layer}, {n_new} new tokens", (old, new, right[layer]), got)
            if mistake is not None:
                return mistake
    kept = sorted(cache)
    return compare_values("the layers in the cache", [0, 1], kept, "cache[layer] = keys, values")


def _compare_pair(where: str, parts: tuple[Any, Any, Any], got: Any) -> Mistake | None:
    """Compare keys and values with what should come back; `parts`: the old ones, the new ones, both."""
    if not isinstance(got, tuple) or len(got) != 2:
        return Mistake(
            f"{where}: what comes back", "a pair: keys, values", type(got).__name__, "return all of them"
        )
    for name, old, new, expected, mine in zip(("keys", "values"), *parts, got, strict=True):
        wrong = {
            "only the new ones came back: return all, and keep them in the cache": new,
            "the old ones come first": np.concatenate((new, old), 1),
            "only the old ones came back": old,
        }
        likely = recognise(mine, wrong) or "join them along the axis of time: axis=-2; the heads stay"
        mistake = compare_arrays(f"{where}: {name}", expected, mine, likely)
        if mistake is not None:
            return mistake
    return None


@exercise("06.2", "What new tokens see", difficulty=2, minutes=10)
def new_mask(answer: Answer) -> Mistake | None:
    """Hold `new_mask(n_new, n_total)` against the last rows of the whole mask."""
    for n_new, n_total in ((4, 4), (1, 5), (3, 7)):
        whole = np.tri(n_total, dtype=bool)
        corner = np.tri(n_new, n_total, dtype=bool)
        wrong = {
            "the new tokens are the last ones: their row 0 stands at position n_total - n_new": corner,
            "the first of the new tokens does not see the second": np.ones((n_new, n_total), bool),
            "a token sees itself": np.tri(n_total, k=-1, dtype=bool)[-n_new:],
            "a row for each new token only; the others were computed before": whole,
        }
        got = answer(n_new, n_total)
        likely = recognise(got, wrong) or "shape (n_new, n_total), of bool"
        mistake = compare_arrays(f"{n_new} new tokens of {n_total}", whole[-n_new:], got, likely)
        if mistake is not None:
            return mistake
    return None


def count_multiply_adds(config: PhiConfig, n_new: int, n_total: int) -> int:
    """Count the multiply-adds of a forward pass of n_new tokens, the last of n_total, as `phicourse.model` does it."""
    key_rows = config.n_kv_heads * config.head_size
    attention = (2 * config.hidden_size + 2 * key_rows) * config.hidden_size
    layer = attention + 3 * config.ffn_size * config.hidden_size
    per_token = config.n_layers * layer + config.vocab_size * config.hidden_size
    return n_new * per_token + config.n_layers * 2 * n_new * n_total * config.hidden_size


@exercise("06.3", "What a token costs", difficulty=3, minutes=15)
def multiply_adds(answer: Answer) -> Mistake | None:
    """Hold `multiply_adds(config, n_new, n_total)` against the count, for three Phi."""
    for name, document in {"Phi-3.5-mini": PHI_35_MINI, "Phi-4": PHI_4, "Phi-4-mini": PHI_4_MINI}.items():
        config = parse_config(document)
        for n_new, n_total in ((1, 1), (1, 1000), (10, 1000)):
            expected = count_multiply_adds(config, n_new, n_total)
            got = answer(config, n_new, n_total)
            likely = _likely_count(config, n_new, n_total, expected, got)
            mistake = compare_values(f"{name}, {n_new} new of {n_total} tokens", expected, got, likely)
            if mistake is not None:
                return mistake
    return None


def _likely_count(config: PhiConfig, n_new: int, n_total: int, expected: int, got: Any) -> str:
    """Explain a difference that is just one of the parts."""
    if not isinstance(got, int | float | np.number):
        return ""
    hidden, ffn, layers = config.hidden_size, config.ffn_size, config.n_layers
    saved = hidden - config.n_kv_heads * config.head_size
    pairs = layers * hidden * n_new * n_total
    reasons = {
        -expected: "a multiply-add counts once",
        n_new * config.vocab_size * hidden: "the output matrix, vocab_size rows of hidden_size",
        n_new * layers * ffn * hidden: "the MLP has three matrices: gate, up, down",
        n_new * layers * hidden * hidden: "o_proj, the matrix behind the attention",
        -2 * n_new * layers * hidden * saved: "keys and values have n_kv_heads heads, not n_heads",
        pairs: "attention multiplies twice: queries with keys, weights with values",
        2 * pairs: "attention itself: each new query with each of n_total keys, twice",
        2
        * (
            pairs - layers * hidden * n_new * n_new
        ): "new queries meet all n_total keys, not only the new ones",
    }
    return reasons.get(int(expected - got), "")


def finished_odds(logits: NDArray[np.float32], t: float) -> Float64Array:
    """Return the course's softmax at a temperature: (vocab,), 0 for tokens at minus infinity."""
    return probabilities(temperature(logits, t))


@exercise("06.4", "Temperature", difficulty=1, minutes=5, core=True)
def odds(answer: Answer) -> Mistake | None:
    """Hold `odds(logits, temperature)` against ours: warm, cold, zero, and with logits that exp cannot bear."""
    logits = np.array([1.5, -2, 3, 0.25, _NEVER, 2.5], np.float32)
    cases = [(logits, 1.0), (logits, 0.5), (logits, 1.7), (logits, 0.0), (logits + np.float32(1000), 1.0)]
    for given, t in cases:
        expected = finished_odds(given, t)
        with np.errstate(all="ignore"):
            got = answer(given.copy(), t)
            likely = _likely_odds(given, t, got)
        where = f"temperature {t:g}" + (", logits around 1000" if given.max() > 100 else "")
        mistake = compare_close(where, expected, got, TOLERANCE, likely)
        if mistake is not None:
            return mistake
    return None


def _likely_odds(logits: NDArray[np.float32], t: float, got: Any) -> str:
    if isinstance(got, np.ndarray) and not np.isfinite(got).all():
        return (
            "temperature 0 means: all odds to the likeliest token"
            if t == 0
            else "exp of 1000 is infinite: subtract the largest logit first"
        )
    plain = probabilities(logits)
    wrong = {
        "divide the logits by the temperature: below 1 it sharpens": probabilities(logits * np.float32(t)),
        "the temperature divides the logits, not the odds": plain / t if t else plain,
        "the odds must sum to 1": np.exp((logits - logits.max()) / np.float32(t or 1)),
        "the temperature is not used": plain,
    }
    return recognise(got, wrong, TOLERANCE)


def filters(odds: Float64Array, top_k: int, top_p: float, min_p: float) -> NDArray[np.bool_]:
    """Return which tokens the course's top-k, top-p and min-p leave: (vocab,) bool."""
    with np.errstate(divide="ignore"):
        logits = np.log(odds).astype(np.float32)
    kept: NDArray[np.bool_] = Sampler(1, top_k, top_p, min_p).filter(logits) > _NEVER
    return kept


@exercise("06.5", "Three filters", difficulty=3, minutes=20)
def survivors(answer: Answer) -> Mistake | None:
    """Hold `survivors(odds, top_k, top_p, min_p)` against ours, each filter alone and all together."""
    odds = np.array([0.04, 0.3, 0.02, 0.24, 0.06, 0.16, 0.1, 0.08])
    cases = [
        ("nothing filtered", 0, 1.0, 0.0),
        ("top-k alone", 3, 1.0, 0.0),
        ("top-k of more tokens than there are", 99, 1.0, 0.0),
        ("top-p alone", 0, 0.6, 0.0),
        ("a top-p that one token reaches", 0, 0.25, 0.0),
        ("min-p alone", 0, 1.0, 0.3),
        ("top-k, then top-p", 4, 0.86, 0.0),
        ("all three", 6, 0.9, 0.5),
    ]
    for where, *settings in cases:
        expected = filters(odds, *settings)  # type: ignore[arg-type]
        got = answer(odds.copy(), *settings)
        likely = recognise(got, _wrong_survivors(odds, *settings))  # type: ignore[arg-type]
        mistake = compare_arrays(f"{where} ({odds.tolist()}, {settings})", expected, got, likely)
        if mistake is not None:
            return mistake
    return None


def _wrong_survivors(
    odds: Float64Array, top_k: int, top_p: float, min_p: float
) -> dict[str, NDArray[np.bool_]]:
    order = np.argsort(-odds)
    rank = np.argsort(order)
    reached = np.cumsum(odds[order])[rank]  # up to and with each token
    limit = len(odds) if top_k <= 0 else top_k
    by_rank, by_min = rank < limit, odds >= min_p * odds.max()
    crossing = reached - odds < top_p
    return {
        "top-p measures what top-k has left, made to sum to 1 again": by_rank & crossing & by_min,
        "the token that crosses top_p stays: count what comes before it": by_rank
        & (reached <= top_p)
        & by_min,
        "min_p is a part of the largest odds, not a probability of its own": by_rank
        & crossing
        & (odds >= min_p),
        "top_k 0 means: off": (rank < top_k) & crossing & by_min,
        "sort before you sum: the likeliest come first": by_rank & (np.cumsum(odds) - odds < top_p) & by_min,
        "True stands for a token that stays": ~filters(odds, top_k, top_p, min_p),
        "a filter is missing: all tokens are left": np.ones(len(odds), bool),
    }


@exercise("06.6", "The loop", difficulty=3, minutes=15, core=True)
def generate(answer: Answer) -> Mistake | None:
    """Let `generate(step, prompt, choose, stop, max_tokens)` talk to a model that knows one sentence."""
    prompt, sentence, end = [1, 7, 7], [4, 8, 2, 6], 9
    for max_tokens, expected in ((99, sentence), (2, sentence[:2]), (4, sentence), (0, [])):
        model = _Parrot(len(prompt), [*sentence, end, 5, 5])
        got = answer(model.step, list(prompt), lambda logits: int(np.argmax(logits)), {end}, max_tokens)
        where = f"at most {max_tokens} tokens"
        mistake = _compare_reading(where, model, prompt, sentence) or compare_values(
            where, expected, got, _likely_loop(got, prompt, expected, end)
        )
        if mistake is not None:
            return mistake
    return None


class _Parrot:
    """A model with a cache that knows one sentence: gives its tokens one by one, whatever it is told."""

    def __init__(self, n_prompt: int, sentence: list[int]) -> None:
        self.n_prompt = n_prompt
        self.sentence = sentence
        self.read: list[list[int]] = []

    def step(self, ids: list[int]) -> NDArray[np.float32]:
        """Read new tokens; return the logits of the next."""
        self.read.append(list(ids))
        at = sum(map(len, self.read)) - self.n_prompt
        logits = np.zeros(10, np.float32)
        logits[self.sentence[min(max(at, 0), len(self.sentence) - 1)]] = 1
        return logits


def _compare_reading(where: str, model: _Parrot, prompt: list[int], sentence: list[int]) -> Mistake | None:
    """Check that the model reads the prompt once, and then each token once."""
    if not model.read:
        return None
    first, rest = model.read[0], model.read[1:]
    if first != prompt:
        return Mistake(
            f"{where}: what the model reads first", str(prompt), str(first), "the whole prompt, in one step"
        )
    for number, ids in enumerate(rest):
        expected = sentence[number : number + 1]
        if ids != expected:
            again = "the cache has the rest: step wants only the new token, in a list"
            stopped = "nothing is read behind a token of `stop`: look at it before you go on"
            likely = again if len(ids) > 1 else stopped if not expected else ""
            return Mistake(f"{where}: step {number + 2} reads", str(expected), str(ids), likely)
    return None


def _likely_loop(got: Any, prompt: list[int], expected: list[int], end: int) -> str:
    if not isinstance(got, list):
        return "a list of tokens"
    if got[: len(prompt)] == prompt:
        return "the prompt is not part of the answer"
    if end in got:
        return "a token of `stop` ends the answer and is not part of it"
    return "max_tokens counts the answer's tokens" if len(got) != len(expected) else ""
