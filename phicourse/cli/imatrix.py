"""`phicourse imatrix`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from phicourse.cli.options import Force, Json, Threads, a_path
from phicourse.cli.output import print_json, progress_bar
from phicourse.cli.text import decoded

if TYPE_CHECKING:
    from phicourse.quantize.importance import ImportanceMatrix


def imatrix(
    file: Annotated[
        Path | None,
        typer.Argument(parser=a_path, metavar="FILE", help="A GGUF file, or a checkpoint folder."),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(
            "-f", "--file", parser=a_path, metavar="TEXT", help="The text to measure with, a UTF-8 file."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", parser=a_path, metavar="OUT", help="The file to write."),
    ] = None,
    ctx: Annotated[int, typer.Option(min=16, metavar="N", help="Tokens in a chunk of the text.")] = 512,
    chunks: Annotated[int, typer.Option(min=-1, metavar="N", help="Chunks at most; -1: all.")] = -1,
    output_format: Annotated[
        str, typer.Option(metavar="F", help="gguf, or dat for tools of before 2025.")
    ] = "gguf",
    in_file: Annotated[
        list[Path] | None,
        typer.Option(
            parser=a_path, metavar="F", help="Add this matrix to what is measured; may be repeated."
        ),
    ] = None,
    process_output: Annotated[
        bool, typer.Option("--process-output", help="Measure output.weight, too.")
    ] = False,
    show_statistics: Annotated[
        Path | None,
        typer.Option(parser=a_path, metavar="F", help="Measure nothing, show statistics of the matrix F."),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(parser=a_path, metavar="PNG", help="Draw which columns matter."),
    ] = None,
    threads: Threads = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Measure which columns of the weights matter, for quantize.

    Without FILE and TEXT the matrices of --in-file are added up.
    """
    from phicourse.evaluate import write_importance
    from phicourse.quantize.importance import ImportanceMatrix
    from phicourse.quantize.importance_statistics import importance_statistics

    if show_statistics is not None:
        if file or text or out or in_file:
            raise typer.BadParameter("--show-statistics goes without FILE, --file, --out and --in-file")
        matrix = ImportanceMatrix.read(show_statistics)
    else:
        if out is None:
            raise typer.BadParameter("-o OUT is missing, the file to write")
        if (file is None) != (text is None) or not (file or in_file):
            raise typer.BadParameter("expected FILE and -f TEXT, or --in-file, or --show-statistics")
        with progress_bar("chunk") as progress:
            matrix = write_importance(
                out,
                model=file,
                text="" if text is None else decoded(text.read_bytes(), str(text)),
                dataset="" if text is None else str(text),
                in_files=in_file or (),
                format=output_format,
                force=force,
                threads=threads,
                n_ctx=ctx,
                chunks=None if chunks < 0 else chunks,
                process_output=process_output,
                progress=progress,
            )
    if picture is not None:
        draw_columns(matrix, picture, force)
    if as_json:
        print_json(importance_statistics(matrix).as_dict())
    else:
        print(importance_statistics(matrix) if out is None else out)


def draw_columns(matrix: "ImportanceMatrix", picture: Path, force: bool) -> None:
    """Write a PNG file of the importance of all columns."""
    from phicourse.plots import draw_importance
    from phicourse.plots.style import save_png
    from phicourse.quantize.importance_statistics import importance_by_layer

    save_png(draw_importance(importance_by_layer(matrix)), picture, force)
