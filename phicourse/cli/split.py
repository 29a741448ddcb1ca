"""`phicourse split`."""

from pathlib import Path
from typing import Annotated

import typer

from phicourse.cli.options import Force, KeysFirst, Model, SplitSize, SplitTensors, a_path


def split(
    file: Model,
    out: Annotated[
        Path | None,
        typer.Argument(
            parser=a_path, metavar="OUT", help="Name of the set, without numbers.  [default: FILE's]"
        ),
    ] = None,
    split_max_size: SplitSize = None,
    split_max_tensors: SplitTensors = None,
    no_tensor_first_split: KeysFirst = False,
    force: Force = False,
) -> None:
    """Cut a GGUF file into several and print their paths.

    model.gguf becomes model-00001-of-00003.gguf and so on, with 128 tensors each unless an option says otherwise.
    The bytes are llama-gguf-split's.
    """
    from phicourse.gguf import split

    paths = split(
        file,
        out,
        max_bytes=split_max_size,
        max_tensors=split_max_tensors,
        keys_first=no_tensor_first_split,
        force=force,
    )
    print(*paths, sep="\n")
