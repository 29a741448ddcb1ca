"""Perplexity of a text file with a loaded model, as `phicourse perplexity` reports it."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from phicourse.errors import GenerateError
from phicourse.evaluate.kl_divergence import compare, read_base, write_base
from phicourse.evaluate.perplexity import perplexity
from phicourse.generate.llm import LLM

Progress = Callable[[int, int, float], None]


def evaluate_text(
    llm: LLM,
    text: str,
    *,
    chunks: int | None = None,
    kl_base: Path | None = None,
    progress: Progress = lambda done, chunks, value: None,
) -> dict[str, Any]:
    """Score a text in chunks of the model's context.

    kl_base   file of a base model's log-probabilities: compared with where it exists, else written
    returns   the fields of `Perplexity`, and with a comparison those of `Divergence` under "kl"
    raises    GenerateError where the text is too short, or is not the one that the base was made with
    """
    ids = llm.tokenizer.encode(text)
    bos = llm.tokenizer.bos if llm.tokenizer.vocabulary.add_bos else None
    if kl_base is None:
        return asdict(
            perplexity(llm.context, ids, n_ctx=llm.n_ctx, chunks=chunks, bos=bos, progress=progress)
        )
    if not kl_base.exists():
        return asdict(
            write_base(kl_base, llm.context, ids, n_ctx=llm.n_ctx, chunks=chunks, bos=bos, progress=progress)
        )
    base = read_base(kl_base)
    if base.tokens.reshape(-1).tolist() != ids[: base.tokens.size]:
        raise GenerateError(f"{kl_base}: was made with another text or tokenizer")
    result, divergence = compare(base, llm.context, chunks=chunks, bos=bos, progress=progress)
    return asdict(result) | {"kl": asdict(divergence)}
