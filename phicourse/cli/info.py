"""`phicourse info`."""

from typing import Annotated

import typer

from phicourse.cli.options import Json, Model
from phicourse.cli.output import print_json


def info(
    file: Model,
    as_json: Json = False,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check that every scale and weight is a finite number.")
    ] = False,
) -> None:
    """Show what is in a GGUF file, where, and how many bits."""
    from phicourse.errors import GGUFError
    from phicourse.gguf import GGUFFile, describe, summary
    from phicourse.gguf import verify as damaged_tensors

    gguf = GGUFFile.open(file)
    damage = damaged_tensors(gguf, progress=True) if verify else []
    if as_json:
        print_json(summary(gguf) | ({"damaged": damage} if verify else {}))
    else:
        print(describe(gguf, tensors=tensors))
    if damage:
        raise GGUFError(f"{file}: {len(damage)} of {len(gguf.tensors)} tensors are damaged: {damage[0]}")
    if verify and not as_json:
        print(f"\nall blocks of {len(gguf.tensors)} tensors are sound")
