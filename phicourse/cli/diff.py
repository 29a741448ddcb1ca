"""`phicourse diff`."""

from pathlib import Path
from typing import Annotated

import typer

from phicourse.cli.options import Json, a_path
from phicourse.cli.output import print_json


def diff(
    a: Annotated[Path, typer.Argument(parser=a_path, metavar="A", help="A GGUF file.")],
    b: Annotated[Path, typer.Argument(parser=a_path, metavar="B", help="The GGUF file to compare with it.")],
    as_json: Json = False,
) -> None:
    """Show what differs between two files: keys, types, errors.

    Tensors are compared byte by byte; where they differ, the error of their weights is told.
    """
    from phicourse.evaluate.diff import diff

    difference = diff(a, b)
    if as_json:
        print_json(difference.as_dict())
    else:
        print(difference)
