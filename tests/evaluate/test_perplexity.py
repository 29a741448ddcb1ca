"""Perplexity against the definition, computed once more without cache, batches or chunk iterator."""

import math

import numpy as np
import pytest
from fake_model import BOS, VOCAB, FakeBackend, fake_llm, logits_after

from phicourse.errors import GenerateError
from phicourse.evaluate import bits_per_byte, perplexity
from phicourse.evaluate.perplexity import Perplexity, negative_log_likelihoods
from phicourse.generate.context import Context

IDS = np.random.default_rng(11).integers(0, 256, 83).tolist()


def loss(ids: list[int], target: int) -> float:
    """-ln p, in float64 throughout."""
    logits = logits_after(ids).astype(np.float64)
    return float(np.log(np.exp(logits - logits.max()).sum()) - (logits[target] - logits.max()))


def by_definition(ids: list[int], n_ctx: int, n_chunks: int, bos: int | None) -> np.ndarray:
    losses = []
    for i in range(n_chunks):
        chunk = ids[i * n_ctx : (i + 1) * n_ctx]
        read = chunk if bos is None else [bos, *chunk[1:]]
        losses += [loss(read[: j + 1], chunk[j + 1]) for j in range(n_ctx // 2, n_ctx - 1)]
    return np.array(losses)


@pytest.mark.parametrize("n_ctx", [16, 17])
@pytest.mark.parametrize("bos", [None, BOS])
def test_perplexity_is_the_definition(n_ctx: int, bos: int | None) -> None:
    result = perplexity(Context(FakeBackend(n_ctx=40)), IDS, n_ctx=n_ctx, bos=bos)
    losses = by_definition(IDS, n_ctx, len(IDS) // n_ctx, bos)
    assert (result.chunks, result.tokens, result.n_ctx) == (len(IDS) // n_ctx, len(losses), n_ctx)
    # only the differences of logits are taken in float32, as llama-perplexity takes them
    assert result.perplexity == pytest.approx(math.exp(losses.mean()), rel=1e-6)
    assert result.stderr == pytest.approx(
        math.exp(losses.mean()) * losses.std(ddof=1) / math.sqrt(len(losses)), rel=1e-5
    )


def test_chunks_limits_and_progress_counts() -> None:
    seen: list[tuple[int, int, float]] = []
    result = perplexity(
        Context(FakeBackend()), IDS, n_ctx=16, chunks=3, progress=lambda *state: seen.append(state)
    )
    assert result.perplexity == pytest.approx(math.exp(by_definition(IDS, 16, 3, None).mean()), rel=1e-6)
    assert [state[:2] for state in seen] == [(1, 3), (2, 3), (3, 3)]
    assert seen[-1][2] == pytest.approx(result.perplexity)


def test_only_the_second_half_gets_logits() -> None:
    """The head of a real model is its largest matrix: 256 of 512 rows of it are not needed."""
    backend = FakeBackend()
    perplexity(Context(backend), IDS, n_ctx=16, chunks=1)
    assert backend.calls == [8, 7]
    assert backend.position == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_ctx": 65}, "from 4 to 64"),
        ({"n_ctx": 3}, "from 4"),
        ({"n_ctx": 42}, "83 tokens"),
        ({"n_ctx": 16, "chunks": 0}, "chunks"),
    ],
)
def test_impossible_requests_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(GenerateError, match=message):
        perplexity(Context(FakeBackend()), IDS, **options)


def test_losses_do_not_overflow_and_equal_logits_give_ln_n() -> None:
    logits = np.full((2, 8), 300.0, np.float32)
    np.testing.assert_allclose(negative_log_likelihoods(logits, [0, 7]), math.log(8), rtol=1e-6)


def test_one_loss_has_no_error_bar() -> None:
    assert Perplexity.of(np.array([0.0]), 1, 4).stderr == math.inf


def test_bits_per_byte_scores_every_token_once() -> None:
    texts = ["Once upon", "a €"]
    nats = 0.0
    for text in texts:
        ids = [BOS, *text.encode()]
        nats += sum(loss(ids[:i], ids[i]) for i in range(1, len(ids)))
    n_bytes = sum(len(text.encode()) for text in texts)
    assert bits_per_byte(fake_llm(end=False), texts) == pytest.approx(nats / math.log(2) / n_bytes, rel=1e-6)


def test_bits_per_byte_of_a_long_text_starts_again_after_bos() -> None:
    text = "abcdefghij"
    llm = fake_llm(n_ctx=5, end=False)
    nats = sum(
        loss([BOS, *part[:i].encode()], part.encode()[i])
        for part in ("abcd", "efgh", "ij")
        for i in range(len(part))
    )
    assert bits_per_byte(llm, text) == pytest.approx(nats / math.log(2) / 10, rel=1e-6)


def test_bits_per_byte_of_a_uniform_model_is_log2_of_the_vocabulary() -> None:
    class Uniform:
        n_ctx = 100

        def tokenize(self, text: str, special: bool = False) -> list[int]:
            return [BOS] * special + list(text.encode())

        def logits(self, ids: list[int]) -> np.ndarray:
            return np.zeros((len(ids), VOCAB), np.float32)

    assert bits_per_byte(Uniform(), "some text") == pytest.approx(math.log2(VOCAB), rel=1e-6)
    with pytest.raises(GenerateError, match="no text"):
        bits_per_byte(Uniform(), [])
