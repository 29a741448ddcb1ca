"""`phicourse download`."""

from pathlib import Path
from typing import Annotated

import typer

from phicourse.cli.options import a_path


def download(
    repo: Annotated[
        str, typer.Argument(metavar="REPO", help="Owner and name, as microsoft/Phi-3.5-mini-instruct.")
    ],
    revision: Annotated[str, typer.Option(metavar="R", help="A branch, tag or commit.")] = "main",
    to: Annotated[
        Path | None,
        typer.Option(
            parser=a_path,
            metavar="FOLDER",
            help="Folder for the files.  [default: the Hub's cache, see HF_HOME]",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace files in FOLDER that differ from the Hub's.")
    ] = False,
) -> None:
    """Fetch a model from the Hugging Face Hub and print its folder."""
    from phicourse.checkpoint.download import download
    from phicourse.memory import available_memory

    print(download(repo, revision, to, force=force, memory=available_memory()))
