"""`phicourse demo`."""

from pathlib import Path
from typing import Annotated

import typer

from phicourse.cli.options import Force, Threads, a_path


def demo(
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            parser=a_path,
            metavar="DIR",
            help="Folder for the files.  [default: phi-tiny-demo]",
        ),
    ] = None,
    force: Force = False,
    threads: Threads = None,
) -> None:
    """Take phi-tiny the whole way: convert, quantize, chat, compare."""
    from phicourse.demo import run_demo

    run_demo(out, force, threads)
