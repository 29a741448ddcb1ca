"""What `run` and `chat` let their user say of answers: how tokens are drawn, and who guesses them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phicourse.cli.options import a_path

if TYPE_CHECKING:
    from phicourse.generate import LLM

Temperature = Annotated[
    float, typer.Option("--temp", metavar="T", help="Temperature; 0: always the likeliest token.")
]
TopK = Annotated[int, typer.Option(metavar="K", help="Draw from the K likeliest tokens only; 0: off.")]
TopP = Annotated[
    float,
    typer.Option(
        metavar="P", help="Draw from the likeliest tokens that have probability P together; 1: off."
    ),
]
MinP = Annotated[
    float,
    typer.Option(metavar="P", help="Draw from tokens at least P times as likely as the likeliest; 0: off."),
]
Seed = Annotated[
    int, typer.Option(min=-1, metavar="S", help="Same seed, same text; -1: a new text each time.")
]
Lookup = Annotated[
    bool, typer.Option("--lookup", help="Guess tokens from the text so far: same answer, often sooner.")
]
Draft = Annotated[
    Path | None,
    typer.Option(
        parser=a_path, metavar="FILE", help="Let a smaller model guess tokens: same answer, often sooner."
    ),
]


def check_draft(lookup: bool, draft: Path | None) -> None:
    """Refuse two that guess, before a model is loaded."""
    if lookup and draft is not None:
        raise typer.BadParameter("--lookup and --draft exclude each other")


def sampling_options(temp: float, top_k: int, top_p: float, min_p: float, seed: int) -> dict[str, Any]:
    """The keywords of `LLM.generate` and `LLM.chat` for how tokens are drawn."""
    return {
        "temperature": temp,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "seed": None if seed < 0 else seed,
    }


def find_draft(lookup: bool, draft: Path | None, ctx: int | None, threads: int | None) -> "LLM | str | None":
    """Who guesses tokens, as their keyword `draft` takes it: a model of a file, the text so far, or nobody.

    raises   PhiCourseError for a file that is no model
    """
    from phicourse.generate import load

    if draft is not None:
        return load(draft, n_ctx=ctx, threads=threads)
    return "lookup" if lookup else None
