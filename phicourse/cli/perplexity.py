"""`phicourse perplexity`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from phicourse.cli.options import Json, Model, a_path
from phicourse.cli.output import print_json, progress_bar
from phicourse.cli.text import decoded


def perplexity(
    file: Model,
    text: Annotated[
        Path,
        typer.Option("-f", "--file", parser=a_path, metavar="TEXT", help="The text to score, a UTF-8 file."),
    ],
    ctx: Annotated[int, typer.Option(min=4, metavar="N", help="Tokens in a chunk of the text.")] = 512,
    chunks: Annotated[int, typer.Option(min=-1, metavar="N", help="Chunks at most; -1: all.")] = -1,
    kl_base: Annotated[
        Path | None,
        typer.Option(
            parser=a_path,
            metavar="F",
            help="Compare with the base model whose log-probabilities are in F; no F yet: write this model's.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure how well a model foresees a text: its perplexity.

    That is about how many tokens it hesitates between: less is better.
    """
    from phicourse.evaluate import evaluate_text
    from phicourse.generate import load

    words = decoded(text.read_bytes(), str(text))
    llm = load(file, n_ctx=ctx)
    with progress_bar("chunk") as progress:
        result = evaluate_text(
            llm, words, chunks=None if chunks < 0 else chunks, kl_base=kl_base, progress=progress
        )
    if as_json:
        print_json({"model": str(file), "text": str(text)} | result)
    else:
        print_perplexity(result)


def print_perplexity(result: dict[str, Any]) -> None:
    """Print what `evaluate_text` found."""
    print(
        f"perplexity {result['perplexity']:.4f} ± {result['stderr']:.4f}, {result['tokens']:,} tokens scored"
    )
    if "kl" in result:
        kl = result["kl"]
        print(f"base model {kl['base_perplexity']:.4f}, ln of the ratio {kl['log_ratio']:+.5f}")
        print(
            f"KL divergence {kl['mean']:.6f} ± {kl['stderr']:.6f}, median {kl['median']:.6f}, "
            f"99 % {kl['percentile_99']:.6f}, maximum {kl['maximum']:.4f}"
        )
        print(
            f"same likeliest token {kl['same_top']:.2%}, "
            f"RMS change of the true token's probability {kl['rms_delta_p']:.3%}"
        )
