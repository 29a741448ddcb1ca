"""Wrong answers to the exercises of notebook 06, and what the checks say; and the count that they are held against."""

import numpy as np
import pytest

from phicourse.checkpoint.config import parse_config
from phicourse.exercises import generation as check
from phicourse.exercises.checkpoint import PHI_4_MINI, PHI_35_MINI
from phicourse.exercises.exercise import Answer, Exercise


def only_the_new(cache: dict, layer: int, keys: np.ndarray, values: np.ndarray) -> tuple:
    cache[layer] = keys, values
    return keys, values


def new_first(cache: dict, layer: int, keys: np.ndarray, values: np.ndarray) -> tuple:
    old = cache.get(layer, (keys[:, :0], values[:, :0]))
    cache[layer] = np.concatenate((keys, old[0]), 1), np.concatenate((values, old[1]), 1)
    return cache[layer]


def along_the_heads(cache: dict, layer: int, keys: np.ndarray, values: np.ndarray) -> tuple:
    old = cache.get(layer, (keys[:0], values[:0]))
    cache[layer] = np.concatenate((old[0], keys)), np.concatenate((old[1], values))
    return cache[layer]


def forgets_the_layer(cache: dict, layer: int, keys: np.ndarray, values: np.ndarray) -> tuple:
    old = cache.get("all", {}).get(layer, (keys[:, :0], values[:, :0]))
    both = np.concatenate((old[0], keys), 1), np.concatenate((old[1], values), 1)
    cache.setdefault("all", {})[layer] = both
    return both


def all_heads_have_keys(config, n_new: int, n_total: int) -> int:
    missing = config.hidden_size - config.n_kv_heads * config.head_size
    return (
        check.count_multiply_adds(config, n_new, n_total)
        + 2 * n_new * config.n_layers * config.hidden_size * missing
    )


def twice(config, n_new: int, n_total: int) -> int:
    return 2 * check.count_multiply_adds(config, n_new, n_total)


def only_the_new_keys(config, n_new: int, n_total: int) -> int:
    return check.count_multiply_adds(config, n_new, n_new)


def hot_is_sharp(logits: np.ndarray, t: float) -> np.ndarray:
    return check.finished_odds(logits, 1 / t if t else 0)


def without_the_largest(logits: np.ndarray, t: float) -> np.ndarray:
    if t == 0:
        return check.finished_odds(logits, 0)
    weights = np.exp(logits / np.float32(t))
    return weights / weights.sum()


def divided_by_zero(logits: np.ndarray, t: float) -> np.ndarray:
    z = (logits - logits.max()) / np.float32(t)
    return np.exp(z) / np.exp(z).sum()


def without_the_crossing(odds: np.ndarray, k: int, p: float, m: float) -> np.ndarray:
    order = np.argsort(-odds)[: k or None]
    left = odds[order] / odds[order].sum()
    kept = order[np.cumsum(left) <= p + 1e-12]
    return np.isin(np.arange(len(odds)), kept) & (odds >= m * odds.max())


def unsorted(odds: np.ndarray, k: int, p: float, m: float) -> np.ndarray:
    rank = np.argsort(np.argsort(-odds))
    return (rank < (k or len(odds))) & (np.cumsum(odds) - odds < p) & (odds >= m * odds.max())


def absolute(odds: np.ndarray, k: int, p: float, m: float) -> np.ndarray:
    return check.filters(odds, k, p, 0.0) & (odds >= m)


def without_summing_again(odds: np.ndarray, k: int, p: float, m: float) -> np.ndarray:
    return check.filters(odds, k, 1.0, m) & check.filters(odds, 0, p, 0.0)


def zero_keeps_none(odds: np.ndarray, k: int, p: float, m: float) -> np.ndarray:
    return check.filters(odds, k, p, m) & (np.argsort(np.argsort(-odds)) < k)


def reads_everything_again(step, prompt, choose, stop, max_tokens):
    answer: list[int] = []
    while len(answer) < max_tokens and (token := choose(step(prompt + answer))) not in stop:
        answer.append(token)
    return answer


def keeps_the_stop_token(step, prompt, choose, stop, max_tokens):
    answer, new = [], prompt
    while len(answer) < max_tokens:
        new = [choose(step(new))]
        answer += new
        if new[0] in stop:
            break
    return answer


def returns_the_prompt(step, prompt, choose, stop, max_tokens):
    return prompt + loop(step, prompt, choose, stop, max_tokens)


def reads_the_prompt_piece_by_piece(step, prompt, choose, stop, max_tokens):
    for id in prompt[:-1]:
        step([id])
    return loop(step, prompt[-1:], choose, stop, max_tokens)


def one_too_many(step, prompt, choose, stop, max_tokens):
    return loop(step, prompt, choose, stop, max_tokens + 1)


def loop(step, prompt, choose, stop, max_tokens):
    answer, new = [], prompt
    while len(answer) < max_tokens and (token := choose(step(new))) not in stop:
        answer.append(token)
        new = [token]
    return answer


@pytest.mark.parametrize(
    ("exercise", "answer", "said"),
    [
        (check.append, only_the_new, "only the new ones came back"),
        (check.append, new_first, "the old ones come first"),
        (check.append, along_the_heads, "along the axis of time"),
        (check.append, forgets_the_layer, "the layers in the cache"),
        (check.append, lambda *parts: None, "return all of them"),
        (check.new_mask, lambda n, total: np.tri(n, total, dtype=bool), "their row 0 stands at position"),
        (check.new_mask, lambda n, total: np.ones((n, total), bool), "does not see the second"),
        (check.new_mask, lambda n, total: np.tri(total, dtype=bool), "a row for each new token only"),
        (check.new_mask, lambda n, total: np.tri(n, total, total - n), "the type of the numbers"),
        (check.multiply_adds, twice, "counts once"),
        (check.multiply_adds, all_heads_have_keys, "n_kv_heads heads, not n_heads"),
        (check.multiply_adds, only_the_new_keys, "not only the new ones"),
        (check.multiply_adds, lambda config, n, total: None, "without `return`"),
        (check.odds, hot_is_sharp, "below 1 it sharpens"),
        (check.odds, without_the_largest, "subtract the largest logit"),
        (check.odds, divided_by_zero, "all odds to the likeliest"),
        (check.survivors, without_the_crossing, "the token that crosses top_p stays"),
        (check.survivors, unsorted, "sort before you sum"),
        (check.survivors, absolute, "a part of the largest odds"),
        (check.survivors, without_summing_again, "made to sum to 1 again"),
        (check.survivors, zero_keeps_none, "top_k 0 means: off"),
        (check.survivors, lambda odds, k, p, m: odds, "the type of the numbers"),
        (check.generate, reads_everything_again, "the cache has the rest"),
        (check.generate, keeps_the_stop_token, "not part of it"),
        (check.generate, returns_the_prompt, "the prompt is not part of the answer"),
        (check.generate, reads_the_prompt_piece_by_piece, "the whole prompt, in one step"),
        (check.generate, one_too_many, "counts the answer's tokens"),
    ],
)
def test_a_wrong_answer_is_told_its_mistake(
    exercise: Exercise, answer: Answer, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    exercise(answer)
    message = capsys.readouterr().out
    assert message.startswith("✘") and said in message, message


@pytest.mark.parametrize("document", [PHI_35_MINI, PHI_4_MINI])
def test_the_count_of_multiply_adds_is_pytorchs(document: dict) -> None:
    """Models with the heads of two Phi, each of size 4; PyTorch counts what it multiplies."""
    torch = pytest.importorskip("torch")
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from phicourse.model import KVCache, Phi

    hidden = 4 * document["num_attention_heads"]
    small = {"hidden_size": hidden, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 50}
    config = parse_config(document | small | {"max_position_embeddings": 64})
    cache, model = KVCache(), Phi(config).eval()
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH):
        for n_new, n_total in ((5, 5), (1, 6), (3, 9)):
            with FlopCounterMode(display=False) as counter:
                model(torch.ones(1, n_new, dtype=torch.long), cache)
            assert counter.get_total_flops() == 2 * check.count_multiply_adds(config, n_new, n_total)


def test_the_filters_and_the_loop_pass_their_own_checks() -> None:
    assert check.survivors.judge(check.filters) is None
    assert check.odds.judge(check.finished_odds) is None
    assert check.generate.judge(loop) is None
    assert check.multiply_adds.judge(check.count_multiply_adds) is None
