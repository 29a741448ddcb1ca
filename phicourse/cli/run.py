"""`phicourse run`."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from phicourse.cli.answers import (
    Draft,
    Lookup,
    MinP,
    Seed,
    Temperature,
    TopK,
    TopP,
    check_draft,
    find_draft,
    sampling_options,
)
from phicourse.cli.options import CacheType, Context, GpuLayers, Model, Threads
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
    temp: Temperature = 0.8,
    top_k: TopK = 40,
    top_p: TopP = 0.95,
    min_p: MinP = 0.05,
    seed: Seed = -1,
    threads: Threads = None,
    ctx: Context = None,
    cache_type: CacheType = "f16",
    gpu_layers: GpuLayers = 0,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue PROMPT itself, without the chat template.")
    ] = False,
    lookup: Lookup = False,
    draft: Draft = None,
) -> None:
    """Answer a prompt."""
    from phicourse.generate import load

    check_draft(lookup, draft)
    text = read_prompt(prompt)
    llm = load(file, n_ctx=ctx, threads=threads, cache_type=cache_type, gpu_layers=gpu_layers)
    options = {
        "max_tokens": None if n < 0 else n,
        **sampling_options(temp, top_k, top_p, min_p, seed),
        "draft": find_draft(lookup, draft, ctx, threads),
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
    if llm.last_run is not None and llm.last_run.guesses:
        print(f"phicourse: {llm.last_run.guesses}", file=sys.stderr)


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
