"""Options and arguments that several verbs have, and how sizes and paths are read."""

from pathlib import Path
from typing import Annotated

import typer

from phicourse.errors import GenerateError


def a_path(text: str | Path) -> Path:
    """A path from the command line. An empty one, of a shell variable that is not set, is no current folder."""
    if not str(text):
        raise typer.BadParameter("it is empty")
    return Path(text)


def a_size(text: str) -> int:
    """A size from the command line, as 500M or 2G, in bytes."""
    from phicourse.errors import GGUFError
    from phicourse.gguf import parse_size

    try:
        return parse_size(text)
    except GGUFError as error:
        raise typer.BadParameter(str(error)) from None


def an_amount(text: str) -> int:
    """An amount of memory from the command line, as 6GB or 5.5GiB, in bytes."""
    from phicourse.memory import parse_memory

    try:
        return parse_memory(text)
    except GenerateError as error:
        raise typer.BadParameter(str(error)) from None


Force = Annotated[bool, typer.Option("--force", help="Replace an existing output.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Threads = Annotated[
    int | None, typer.Option(min=1, max=1024, metavar="N", help="Threads at work.  [default: all cores]")
]
Context = Annotated[
    int | None,
    typer.Option("--ctx", min=1, metavar="N", help="Context in tokens.  [default: the model's, up to 4096]"),
]
CacheType = Annotated[
    str,
    typer.Option(metavar="T", help="Keep keys and values as f16, bf16, f32, or smaller: q8_0, q4_0."),
]
GpuLayers = Annotated[
    int,
    typer.Option("--gpu-layers", metavar="N", help="Layers in PyTorch on a GPU, from the first on; -1: all."),
]
SplitSize = Annotated[
    int | None,
    typer.Option("--split-max-size", parser=a_size, metavar="SIZE", help="Bytes a file at most: 500M, 2G."),
]
SplitTensors = Annotated[
    int | None, typer.Option("--split-max-tensors", min=1, metavar="N", help="Tensors a file at most.")
]
KeysFirst = Annotated[
    bool, typer.Option("--no-tensor-first-split", help="Put only the keys into the first file.")
]
Model = Annotated[Path, typer.Argument(parser=a_path, metavar="FILE", help="A GGUF file.")]
