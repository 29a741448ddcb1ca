"""`phicourse run`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phicourse.cli.options import CacheType, Context, GpuLayers, Model, Threads, a_path
from phicourse.cli.text import checked, decoded
from phicourse.errors import GenerateError

if TYPE_CHECKING:
    from phicourse.generate import LLM


def run(
    file: Model,
    prompt: Annotated[
        str, typer.Option("-p", "--prompt", metavar="PROMPT", help="The prompt; - reads standard input.")
    ],
    n: Annotated[
        int,
        typer.Option("-n", min=-1, metavar="N", help="Tokens at most; -1: until the model ends its answer."),
    ] = -1,
    temp: Annotated[
        float, typer.Option(metavar="T", help="Temperature; 0: always the likeliest token.")
    ] = 0.8,
    top_k: Annotated[
        int, typer.Option(metavar="K", help="Draw from the K likeliest tokens only; 0: off.")
    ] = 40,
    top_p: Annotated[
        float,
        typer.Option(
            metavar="P", help="Draw from the likeliest tokens that have probability P together; 1: off."
        ),
    ] = 0.95,
    min_p: Annotated[
        float,
        typer.Option(
            metavar="P", help="Draw from tokens at least P times as likely as the likeliest; 0: off."
        ),
    ] = 0.05,
    seed: Annotated[
        int, typer.Option(min=-1, metavar="S", help="Same seed, same text; -1: a new text each time.")
    ] = -1,
    threads: Threads = None,
    ctx: Context = None,
    cache_type: CacheType = "f16",
    gpu_layers: GpuLayers = 0,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue PROMPT itself, without the chat template.")
    ] = False,
    lookup: Annotated[
        bool, typer.Option("--lookup", help="Guess tokens from the text so far: same answer, often sooner.")
    ] = False,
    draft: Annotated[
        Path | None,
        typer.Option(
            parser=a_path, metavar="FILE", help="Let a smaller model guess tokens: same answer, often sooner."
        ),
    ] = None,
) -> None:
    """Answer a prompt."""
    from phicourse.generate import load

    if lookup and draft is not None:
        raise typer.BadParameter("--lookup and --draft exclude each other")
    text = read_prompt(prompt)
    llm = load(file, n_ctx=ctx, threads=threads, cache_type=cache_type, gpu_layers=gpu_layers)
    options: dict[str, Any] = {
        "max_tokens": None if n < 0 else n,
        "temperature": temp,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "seed": None if seed < 0 else seed,
        "draft": "lookup" if lookup else None if draft is None else load(draft, n_ctx=ctx, threads=threads),
    }
    if raw or not llm.tokenizer.vocabulary.chat_template:
        pieces = llm.generate(text, stream=True, **options)
    else:
        pieces = llm.chat([{"role": "user", "content": text}], stream=True, **options)
    try:
        for piece in pieces:
            print(piece, end="", flush=True)
    finally:
        print()  # after Ctrl-C, too
    warn_if_cut(llm, n)
    tell_guesses(llm)


def read_prompt(prompt: str) -> str:
    """The prompt of the command line; for - that of standard input, without the newline that ends its last line."""
    if prompt != "-":
        return checked(prompt)
    text = decoded(sys.stdin.buffer.read(), "standard input")
    text = text.removesuffix("\n").removesuffix("\r")
    if not text:
        raise GenerateError("standard input is empty, there is no prompt")
    return text


def warn_if_cut(llm: "LLM", n: int) -> None:
    """Say so where the context, and not the model or -n, ended the answer."""
    run = llm.last_run
    if run is not None and run.finish_reason == "length" and not 0 <= n <= len(run.tokens):
        print(f"phicourse: cut off, the context of {llm.n_ctx:,} tokens is full", file=sys.stderr)


def tell_guesses(llm: "LLM") -> None:
    """Say how well a draft guessed."""
    run = llm.last_run
    if run is not None and run.guessed:
        print(
            f"phicourse: {run.accepted:,} of {run.guessed:,} guesses were right, "
            f"{len(run.tokens) / run.steps:.1f} tokens a step",
            file=sys.stderr,
        )
