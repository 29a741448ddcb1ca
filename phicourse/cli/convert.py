"""`phicourse convert`."""

from pathlib import Path
from typing import Annotated

import typer

from phicourse.cli.options import Force, KeysFirst, SplitSize, SplitTensors, a_path
from phicourse.cli.text import checked


def convert(
    checkpoint: Annotated[
        Path, typer.Argument(parser=a_path, metavar="CHECKPOINT", help="A Hugging Face checkpoint folder.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            "--outfile",
            parser=a_path,
            metavar="OUT",
            help="The GGUF file to write, or a folder for it.  [default: in CHECKPOINT]",
        ),
    ] = None,
    outtype: Annotated[
        str,
        typer.Option(
            metavar="TYPE",
            help="Type of the matrices: f32, f16, bf16, q8_0, tq1_0, tq2_0; auto: the checkpoint's.",
        ),
    ] = "f16",
    compat: Annotated[
        bool,
        typer.Option(
            "--compat", help="Leave out phicourse's own keys, for the bytes of llama.cpp's converter."
        ),
    ] = False,
    split_max_size: SplitSize = None,
    split_max_tensors: SplitTensors = None,
    no_tensor_first_split: KeysFirst = False,
    metadata: Annotated[
        Path | None,
        typer.Option(
            parser=a_path,
            metavar="FILE",
            help="A JSON file of general.* keys that count instead of the checkpoint's.",
        ),
    ] = None,
    model_name: Annotated[
        str | None, typer.Option(metavar="NAME", help="The model's name in the file, general.name.")
    ] = None,
    force: Force = False,
) -> None:
    """Turn a checkpoint into a GGUF file and print its path.

    With --split-max-size or --split-max-tensors it may become several files: model.gguf is then
    model-00001-of-00002.gguf and so on, and the path of the first is printed.
    """
    from phicourse.convert import convert
    from phicourse.gguf import Split

    if model_name == "":
        raise typer.BadParameter("--model-name is empty")
    split = Split(split_max_tensors, split_max_size, no_tensor_first_split)
    print(
        convert(
            checkpoint,
            out,
            outtype,
            force=force,
            compat=compat,
            split=None if split == Split() else split,
            metadata=metadata,
            model_name=None if model_name is None else checked(model_name),
        )
    )
