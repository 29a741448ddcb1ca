"""`phicourse plan`."""

from typing import Annotated

import typer

from phicourse.cli.options import CacheType, Context, Json, Model, Threads, a_size
from phicourse.cli.output import print_json
from phicourse.errors import GenerateError


def plan(
    file: Model,
    memory: Annotated[
        int, typer.Option(parser=a_size, metavar="SIZE", help="Memory of the GPU: 6GB, 5.5GiB; 0: no GPU.")
    ],
    ram: Annotated[
        int | None,
        typer.Option(
            parser=a_size, metavar="SIZE", help="Memory of the machine.  [default: what is free here]"
        ),
    ] = None,
    ctx: Context = None,
    cache_type: CacheType = "f16",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Say what fits on a GPU: layers, context, keys and values."""
    from phicourse.generate.backends import thread_count
    from phicourse.generate.fit import plan_memory
    from phicourse.gguf import GGUFFile
    from phicourse.memory import available_memory

    ram = available_memory() if ram is None else ram
    if ram is None:
        raise GenerateError("this system does not say how much memory is free: tell it with --ram")
    report = plan_memory(
        GGUFFile.open(file), memory, ram, threads=thread_count(threads), n_ctx=ctx, cache_type=cache_type
    )
    if as_json:
        print_json(report.as_dict())
    else:
        print(report)
