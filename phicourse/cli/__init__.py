"""The command line: a thin layer over the package, with a file for each verb that has its name.

What verbs share: `options` that several take, `text` that comes in, `output` that goes out, `failures` as one line,
and `commands`, Typer's classes. Text goes to standard output, progress and logs to standard error. Exit status 0:
done; 1: an error, said in one line; 2: wrong usage. Nothing heavy is imported before a verb needs it.
"""

import os
import signal
import sys
from typing import Annotated

import typer

from phicourse import __version__
from phicourse.cli import (
    bench,
    chat,
    convert,
    demo,
    diff,
    doctor,
    download,
    imatrix,
    info,
    merge,
    perplexity,
    plan,
    quantize,
    run,
    split,
    tokenize,
)
from phicourse.cli.commands import Verb, Verbs

app = typer.Typer(
    cls=Verbs,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
)

# In the order in which --help lists them.
app.command(cls=Verb)(demo.demo)
app.command(cls=Verb)(download.download)
app.command(cls=Verb)(convert.convert)
app.command(cls=quantize.QuantizeVerb)(quantize.quantize)
app.command(cls=Verb)(split.split)
app.command(cls=Verb)(merge.merge)
app.command(cls=Verb)(info.info)
app.command(cls=Verb)(tokenize.tokenize)
app.command(cls=Verb)(run.run)
app.command(cls=Verb)(chat.chat)
app.command(cls=Verb)(imatrix.imatrix)
app.command(cls=Verb)(perplexity.perplexity)
app.command(cls=Verb)(bench.bench)
app.command(cls=Verb)(plan.plan)
app.command(cls=Verb)(diff.diff)
app.command(cls=Verb)(doctor.doctor)


def show_version(wanted: bool) -> None:
    """Print the version and end."""
    if wanted:
        print(f"phicourse {__version__}")
        raise typer.Exit


@app.callback()
def program_options(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show a traceback with errors; may stand anywhere.")
    ] = False,
) -> None:
    """A Phi model from checkpoint to GGUF, quantized, and run.

    `phicourse demo` shows all of it on a small model, `phicourse COMMAND -h` says more of a command.
    """


def main() -> None:
    """Run the command line and end the program."""
    prepare_streams()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up as after Ctrl-C
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        app(prog_name="phicourse")
    except KeyboardInterrupt:  # before a verb began
        print("phicourse: interrupted", file=sys.stderr)
        sys.exit(1)


def prepare_streams() -> None:
    """Make the standard streams take everything: bytes of file names that are no UTF-8 go through unchanged."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:  # closed by the caller, as with `>&-`
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - open until the program ends
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="surrogateescape" if stream.encoding.lower() == "utf-8" else "replace")
