"""`phicourse chat`."""

from typing import Annotated

import typer

from phicourse.cli.options import CacheType, Context, GpuLayers, Model, Threads
from phicourse.cli.text import checked


def chat(
    file: Model,
    system: Annotated[
        str | None, typer.Option(metavar="S", help="System prompt: what the model is to be.")
    ] = None,
    threads: Threads = None,
    ctx: Context = None,
    cache_type: CacheType = "f16",
    gpu_layers: GpuLayers = 0,
) -> None:
    """Talk with a model: /help says how, Ctrl-D ends."""
    from phicourse.generate import load
    from phicourse.generate.repl import Repl

    llm = load(file, n_ctx=ctx, threads=threads, cache_type=cache_type, gpu_layers=gpu_layers)
    Repl(llm, None if system is None else checked(system)).run()
