"""Options and arguments that several verbs have, and how sizes and paths are read."""

from pathlib import Path
from typing import Annotated

import typer

from phicourse.errors import PhiCourseError
from phicourse.sizes import parse_size


def a_path(text: str | Path) -> Path:
    """A path from the command line. An empty one, of a shell variable that is not set, is no current folder."""
    if not str(text):
        raise typer.BadParameter("it is empty")
    return Path(text)


def a_size(text: str) -> int:
    """A size from the command line, as 500M or 5.5GiB, in bytes."""
    try:
        return parse_size(text)
    except PhiCourseError as error:
        raise typer.BadParameter(str(error)) from None


def a_size_of_files(text: str) -> int:
    """A size that files may have: at least a byte."""
    if (n_bytes := a_size(text)) == 0:
        raise typer.BadParameter("a file needs more than 0 bytes")
    return n_bytes


Force = Annotated[bool, typer.Option("--force", help="Replace an existing output.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Threads = Annotated[
    int | None, typer.Option(min=1, max=1024, metavar="N", help="Threads at work.  [default: all cores]")
]
Context = Annotated[
    int | None,
    typer.Option(
        "--ctx", min=1, metavar="N", help="Size of the context in tokens.  [default: the model's, up to 4096]"
    ),
]
CacheType = Annotated[
    str,
    typer.Option(metavar="T", help="Keep keys and values as f16, bf16, f32, or smaller: q8_0, q4_0."),
]
GpuLayers = Annotated[
    int,
    typer.Option("--gpu-layers", metavar="N", help="Run the first N layers in PyTorch on a GPU; -1: all."),
]
SplitSize = Annotated[
    int | None,
    typer.Option(
        "--split-max-size", parser=a_size_of_files, metavar="SIZE", help="Size of a file at most: 500M, 2GB."
    ),
]
SplitTensors = Annotated[
    int | None,
    typer.Option("--split-max-tensors", min=1, metavar="N", help="Number of tensors in a file at most."),
]
KeysFirst = Annotated[
    bool, typer.Option("--no-tensor-first-split", help="Put no tensors into the first file, only metadata.")
]
Model = Annotated[Path, typer.Argument(parser=a_path, metavar="FILE", help="A GGUF file.")]
