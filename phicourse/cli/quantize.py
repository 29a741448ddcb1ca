"""`phicourse quantize`."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from phicourse.cli.commands import Verb
from phicourse.cli.options import Force, Threads, a_path

if TYPE_CHECKING:
    from phicourse.quantize.mixes import Mix


def quantize(
    paths: Annotated[list[str], typer.Argument(metavar="IN [OUT] TYPE", hidden=True)],
    via: Annotated[
        str | None,
        typer.Option(metavar="f16", help="Round a checkpoint to f16 first, as llama.cpp's two tools do."),
    ] = None,
    pure: Annotated[bool, typer.Option("--pure", help="One type for all matrices, no mix.")] = False,
    leave_output_tensor: Annotated[
        bool, typer.Option("--leave-output-tensor", help="Do not quantize output.weight.")
    ] = False,
    output_tensor_type: Annotated[
        str | None, typer.Option(metavar="T", help="Type of output.weight.")
    ] = None,
    token_embedding_type: Annotated[
        str | None, typer.Option(metavar="T", help="Type of token_embd.weight.")
    ] = None,
    tensor_type: Annotated[
        list[str] | None,
        typer.Option(metavar="REGEX=T", help="Type of the tensors whose names match; may be repeated."),
    ] = None,
    tensor_type_file: Annotated[
        Path | None,
        typer.Option(parser=a_path, metavar="F", help="A file of REGEX=T, tried after --tensor-type's."),
    ] = None,
    imatrix: Annotated[
        str | None,
        typer.Option(metavar="F", help="Importance matrix, as phicourse imatrix writes it."),
    ] = None,
    include_weights: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Use the matrix only for tensors with NAME in their names; may be repeated."
        ),
    ] = None,
    exclude_weights: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Do not use the matrix for tensors with NAME in their names; may be repeated.",
        ),
    ] = None,
    allow_requantize: Annotated[
        bool, typer.Option("--allow-requantize", help="Take a file that is quantized already; errors add up.")
    ] = False,
    search: Annotated[
        Literal["reference", "best"],
        typer.Option(
            help="reference: llama.cpp's bytes; best: smaller errors in the same formats, slower, some by far."
        ),
    ] = "reference",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be done, write nothing.")
    ] = False,
    threads: Threads = None,
    force: Force = False,
) -> None:
    """Write a smaller GGUF file and print its path."""
    from phicourse.quantize import quantize
    from phicourse.quantize.mixes import read_tensor_types

    if len(paths) not in (2, 3):
        raise typer.BadParameter(f"expected two or three arguments, IN [OUT] TYPE, got {len(paths)}")
    if "" in (*paths, imatrix):
        raise typer.BadParameter("one of IN, OUT, TYPE and --imatrix is empty")
    if include_weights and exclude_weights:
        raise typer.BadParameter("--include-weights and --exclude-weights contradict each other")
    listed = read_tensor_types(tensor_type_file) if tensor_type_file is not None else []
    print(
        quantize(
            paths[0],
            paths[1] if len(paths) == 3 else None,
            paths[-1],
            via=via,
            threads=threads,
            force=force,
            dry_run=dry_run,
            pure=pure,
            leave_output_tensor=leave_output_tensor,
            output_tensor_type=output_tensor_type,
            token_embedding_type=token_embedding_type,
            tensor_types=[*(tensor_type or ()), *listed],
            imatrix=imatrix,
            include_weights=include_weights or (),
            exclude_weights=exclude_weights or (),
            allow_requantize=allow_requantize,
            search=search,
        )
    )


class QuantizeVerb(Verb):
    """The verb with all mixes in its help: they are imported when somebody reads it."""

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        """Write the help's prose."""
        super().format_help_text(ctx, formatter)
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(about_types())


def about_types() -> str:
    """What IN, OUT and TYPE are, with a table of all mixes."""
    from phicourse.quantize.mixes import ALIASES, COPY, MIXES

    return f"""IN is a GGUF file or a checkpoint folder. OUT is the new file, or a folder for it; without OUT it is
ggml-model-TYPE.gguf beside IN. TYPE is a mix of tensor types, one of these, with the bits per weight of a Phi-3.5-mini:

\b
{table_of_mixes(MIXES.values())}

Those with * need --imatrix. {", ".join(f"{alias} is {name}" for alias, name in ALIASES.items())};
{COPY.name} changes no tensor."""


def table_of_mixes(mixes: "Iterable[Mix]") -> str:
    """Mixes with their bits per weight, a * behind those that need importance: five in a line."""
    cells = [f"{mix.name:<8}{mix.bits:5.2f}{'*' * mix.needs_importance}" for mix in mixes]
    rows = [cells[start : start + 5] for start in range(0, len(cells), 5)]
    return "\n".join("  ".join(f"{cell:<14}" for cell in row).rstrip() for row in rows)
