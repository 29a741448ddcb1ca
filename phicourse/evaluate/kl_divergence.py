"""How far a quantized model's predictions are from those of the model it was made from.

The base model's log-probabilities are kept in a file of llama.cpp's format (`llama-perplexity
--kl-divergence-base`), 16 bits each; the other model reads the same tokens and is compared position by
position. Unlike perplexity this sees every change, also one that happens to be for the better.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phicourse.errors import GenerateError
from phicourse.evaluate.perplexity import (
    Float32Array,
    Float64Array,
    Perplexity,
    count_chunks,
    negative_log_likelihoods,
    scored_chunks,
)
from phicourse.generate.context import Context
from phicourse.gguf import atomic_output

MAGIC = b"_logits_"
RANGE = 16.0
"""Log-probabilities further than this below the best are stored as if they were this far, in nats."""

Progress = Callable[[int, int, float], None]
UInt16Array = NDArray[np.uint16]


@dataclass(frozen=True)
class Base:
    """A base file, mapped into memory.

    tokens     (n_chunks, n_ctx) int32: what the base model read
    positions  (n_chunks, n_scored) structured: scale, minimum, codes (vocab,)
    """

    n_ctx: int
    n_vocab: int
    tokens: NDArray[np.int32]
    positions: NDArray[Any]


@dataclass(frozen=True)
class Divergence:
    """The comparison, over all scored positions.

    mean, stderr    of the Kullback-Leibler divergence D(base || this), in nats
    median, percentile_99, maximum   of the same
    same_top        share of positions at which both models find the same token likeliest
    rms_delta_p     root mean square of the change of the true token's probability
    base_perplexity of the base model on the same positions
    log_ratio       ln(perplexity / base perplexity)
    """

    mean: float
    stderr: float
    median: float
    percentile_99: float
    maximum: float
    same_top: float
    rms_delta_p: float
    base_perplexity: float
    log_ratio: float


def position_dtype(n_vocab: int) -> np.dtype[Any]:
    """One scored position in the file: two float32, then a uint16 for each token, an even number of them."""
    return np.dtype([("scale", "<f4"), ("minimum", "<f4"), ("codes", "<u2", (n_vocab + n_vocab % 2,))])


def log_probabilities(logits: Float32Array) -> Float64Array:
    """Log-softmax: (n, vocab) float32 -> float64."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    total = np.exp(shifted).sum(axis=1, keepdims=True, dtype=np.float64)
    out: Float64Array = shifted - np.log(total)
    return out


def encode(logits: Float32Array) -> NDArray[Any]:
    """Logits (n, vocab) as positions of the file (n,): 65,536 levels from the best down to RANGE below it."""
    n, n_vocab = logits.shape
    highest = logits.max(axis=1, keepdims=True)  # (n, 1)
    lowest = np.maximum(logits.min(axis=1, keepdims=True), highest - np.float32(RANGE))
    scale = (highest - lowest) / np.float32(65535)
    log_total = np.log(np.exp(logits - highest).sum(axis=1, keepdims=True, dtype=np.float64)).astype(
        np.float32
    )
    inverse = np.divide(np.float32(1), scale, where=scale > 0, out=np.zeros_like(scale))
    out = np.zeros(n, position_dtype(n_vocab))
    out["scale"], out["minimum"] = scale[:, 0], (lowest - highest - log_total)[:, 0]
    out["codes"][:, :n_vocab] = np.rint(inverse * np.maximum(logits - lowest, 0))
    return out


def decode(positions: NDArray[Any], n_vocab: int) -> Float32Array:
    """Positions of the file (n,) as log-probabilities (n, vocab) float32."""
    codes = positions["codes"][:, :n_vocab].astype(np.float32)
    out: Float32Array = positions["scale"][:, None] * codes + positions["minimum"][:, None]
    return out


def write_base(
    path: Path | str,
    context: Context,
    ids: Sequence[int],
    *,
    n_ctx: int = 512,
    chunks: int | None = None,
    bos: int | None = None,
    force: bool = False,
    progress: Progress = lambda done, chunks, value: None,
) -> Perplexity:
    """Write the base model's log-probabilities to `path`; parameters and result as `perplexity`."""
    n_chunks = count_chunks(context, len(ids), n_ctx, chunks)
    n_vocab = context.backend.config.vocab_size
    losses: list[Float64Array] = []
    with atomic_output(path, force=force) as temporary, temporary.open("wb") as file:
        file.write(MAGIC + np.array([n_ctx, n_vocab, n_chunks], "<i4").tobytes())
        file.write(np.asarray(ids[: n_chunks * n_ctx], "<i4").tobytes())
        for logits, targets in scored_chunks(context, ids, n_ctx, n_chunks, bos):
            file.write(encode(logits).tobytes())
            losses.append(negative_log_likelihoods(logits, targets))
            progress(len(losses), n_chunks, math.exp(np.concatenate(losses).mean()))
    return Perplexity.of(np.concatenate(losses), n_chunks, n_ctx)


def read_base(path: Path | str) -> Base:
    """Map a base file; GenerateError where it is none, or its size is not what its header says."""
    path = Path(path)
    data = np.fromfile(path, np.uint8, 20).tobytes() if path.is_file() else b""
    if len(data) < 20 or not data.startswith(MAGIC):
        raise GenerateError(
            f"{path}: is no file of log-probabilities (it must begin with {MAGIC.decode()!r})"
        )
    n_ctx, n_vocab, n_chunks = (int(n) for n in np.frombuffer(data, "<i4", 3, offset=8))
    if not (n_ctx >= 4 and 0 < n_vocab < 1 << 24 and n_chunks > 0):
        raise GenerateError(
            f"{path}: says {n_chunks} chunks of {n_ctx} tokens, vocabulary {n_vocab}: impossible"
        )
    dtype, n_scored = position_dtype(n_vocab), n_ctx - n_ctx // 2 - 1
    start = 20 + 4 * n_chunks * n_ctx
    expected = start + n_chunks * n_scored * dtype.itemsize
    if path.stat().st_size != expected:
        raise GenerateError(f"{path}: has {path.stat().st_size:,} bytes, its header promises {expected:,}")
    tokens = np.fromfile(path, "<i4", n_chunks * n_ctx, offset=20).reshape(n_chunks, n_ctx)
    positions = np.memmap(path, dtype, "r", start, (n_chunks, n_scored))
    return Base(n_ctx, n_vocab, tokens, positions)


def compare(
    base: Base,
    context: Context,
    *,
    chunks: int | None = None,
    bos: int | None = None,
    progress: Progress = lambda done, chunks, value: None,
) -> tuple[Perplexity, Divergence]:
    """Read the base's tokens with another model and compare what both expected.

    raises   GenerateError where the vocabularies differ or the context is too small
    source   llama.cpp tools/perplexity, definitions only
    """
    if base.n_vocab != (n_vocab := context.backend.config.vocab_size):
        raise GenerateError(f"the base model has a vocabulary of {base.n_vocab:,}, this one of {n_vocab:,}")
    ids = [int(token) for token in base.tokens.reshape(-1)]
    n_chunks = min(len(base.tokens), chunks or len(base.tokens))
    if context.n_ctx < base.n_ctx:
        raise GenerateError(
            f"the base was made with --ctx {base.n_ctx:,}, this context has {context.n_ctx:,}"
        )
    found: list[Comparison] = []
    for logits, targets in scored_chunks(context, ids, base.n_ctx, n_chunks, bos):
        found.append(compare_positions(decode(base.positions[len(found)], base.n_vocab), logits, targets))
        progress(len(found), n_chunks, float(np.concatenate([c.divergence for c in found]).mean()))
    total = Comparison(*(np.concatenate(parts) for parts in zip(*(c.columns() for c in found), strict=True)))
    return Perplexity.of(total.loss, n_chunks, base.n_ctx), total.summary()


@dataclass(frozen=True)
class Comparison:
    """What is kept of each scored position: five arrays (n,)."""

    loss: Float64Array
    base_loss: Float64Array
    divergence: Float64Array
    same_top: Float64Array
    delta_p: Float64Array

    def columns(self) -> tuple[Float64Array, ...]:
        """The arrays, in order."""
        return self.loss, self.base_loss, self.divergence, self.same_top, self.delta_p

    def summary(self) -> Divergence:
        """The figures that are shown."""
        n = self.divergence.size
        return Divergence(
            mean=float(self.divergence.mean()),
            stderr=float(self.divergence.std() / math.sqrt(max(n - 1, 1))),
            median=float(np.median(self.divergence)),
            percentile_99=float(np.percentile(self.divergence, 99)),
            maximum=float(self.divergence.max()),
            same_top=float(self.same_top.mean()),
            rms_delta_p=float(np.sqrt((self.delta_p**2).mean())),
            base_perplexity=math.exp(self.base_loss.mean()),
            log_ratio=float(self.loss.mean() - self.base_loss.mean()),
        )


def compare_positions(base: Float32Array, logits: Float32Array, targets: Sequence[int]) -> Comparison:
    """Compare a chunk: base log-probabilities and this model's logits, (n, vocab) each, and the n true ids."""
    ours = log_probabilities(logits)
    rows, ids = np.arange(len(targets)), np.asarray(targets)
    # What was clipped when the base was written carries no information: it adds nothing to the sum.
    terms = np.where(base > -RANGE, np.exp(base) * (base - ours), 0)
    return Comparison(
        loss=-ours[rows, ids],
        base_loss=-base[rows, ids].astype(np.float64),
        divergence=terms.sum(axis=1),
        same_top=(base.argmax(axis=1) == logits.argmax(axis=1)).astype(np.float64),
        delta_p=np.exp(ours[rows, ids]) - np.exp(base[rows, ids]),
    )
