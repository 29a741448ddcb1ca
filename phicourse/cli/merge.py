"""`phicourse merge`."""

from pathlib import Path
from typing import Annotated

import typer

from phicourse.cli.options import Force, a_path


def merge(
    first: Annotated[
        Path, typer.Argument(parser=a_path, metavar="FIRST", help="The first file, …-00001-of-0000N.gguf.")
    ],
    out: Annotated[
        Path | None,
        typer.Argument(
            parser=a_path, metavar="OUT", help="The new file.  [default: FIRST's name, no numbers]"
        ),
    ] = None,
    compat: Annotated[
        bool, typer.Option("--compat", help="Keep the split.* keys: the bytes of llama-gguf-split.")
    ] = False,
    force: Force = False,
) -> None:
    """Put the files of a split model together and print the path."""
    from phicourse.gguf import merge

    print(merge(first, out, compat=compat, force=force))
