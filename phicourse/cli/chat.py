"""`phicourse chat`."""

from typing import Annotated

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
from phicourse.cli.text import checked


def chat(
    file: Model,
    system: Annotated[
        str | None, typer.Option(metavar="S", help="System prompt: what the model is to be.")
    ] = None,
    temp: Temperature = 0.8,
    top_k: TopK = 40,
    top_p: TopP = 0.95,
    min_p: MinP = 0.05,
    seed: Seed = -1,
    threads: Threads = None,
    ctx: Context = None,
    cache_type: CacheType = "f16",
    gpu_layers: GpuLayers = 0,
    lookup: Lookup = False,
    draft: Draft = None,
) -> None:
    """Talk with a model: /help says how, Ctrl-D ends."""
    from phicourse.generate import load
    from phicourse.generate.repl import Repl

    check_draft(lookup, draft)
    llm = load(file, n_ctx=ctx, threads=threads, cache_type=cache_type, gpu_layers=gpu_layers)
    options = {
        **sampling_options(temp, top_k, top_p, min_p, seed),
        "draft": find_draft(lookup, draft, ctx, threads),
    }
    Repl(llm, None if system is None else checked(system), options).run()
