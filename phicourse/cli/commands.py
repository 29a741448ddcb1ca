"""Typer's classes, as we want them."""

import sys
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from phicourse.cli.failures import errors_as_one_line


class Verbs(TyperGroup):
    """The group of all verbs: turns exceptions into one line and an exit status."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """Let `--debug` stand behind the verb as well."""
        end = args.index("--") if "--" in args else len(args)
        if "--debug" in args[:end]:
            args = ["--debug", *(arg for arg in args[:end] if arg != "--debug"), *args[end:]]
        with errors_as_one_line(ctx):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        """Run the verb."""
        with errors_as_one_line(ctx):
            result = super().invoke(ctx)
            sys.stdout.flush()  # a full disk behind `>` shows here
            return result


class Verb(TyperCommand):
    """A verb whose usage line has arguments as the manual writes them: FILE, not {FILE}."""

    def collect_usage_pieces(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        """Return the parts of the usage line."""
        return [
            piece.removesuffix("...").strip("{}") if piece.startswith("{") else piece
            for piece in super().collect_usage_pieces(ctx)
        ]
