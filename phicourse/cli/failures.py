"""What the user reads when something goes wrong: one line on standard error, and an exit status."""

import errno
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import typer

from phicourse.errors import PhiCourseError

INTERRUPTED = {
    "convert": "interrupted, nothing was written",
    "quantize": "interrupted, nothing was written",
    "split": "interrupted, nothing was written",
    "merge": "interrupted, nothing was written",
    "imatrix": "interrupted, nothing was written",
    "download": "interrupted; what has arrived is kept, the same command resumes",
}


@contextmanager
def errors_as_one_line(ctx: typer.Context) -> Iterator[None]:
    """Print what went wrong as `phicourse: what, where, what to do` and exit with 1.

    With --debug the traceback comes as well. A reader that closes the pipe ends the program quietly.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if hasattr(error, "exit_code") or isinstance(error, typer.Abort):
            raise  # Typer's own: wrong usage, --help
        if ctx.params.get("debug"):
            traceback.print_exc()
        if isinstance(error, BrokenPipeError) or getattr(error, "errno", None) == errno.EPIPE:
            drop_output()
            raise typer.Exit(0) from None
        if isinstance(error, OSError):
            drop_output()  # it may be what failed
        print(f"phicourse: {one_line(error, ctx.invoked_subcommand or '')}", file=sys.stderr)
        raise typer.Exit(1) from None


def one_line(error: BaseException, verb: str) -> str:
    """What to tell the user of an exception, on one line, without control characters."""
    if isinstance(error, KeyboardInterrupt):
        text = INTERRUPTED.get(verb, "interrupted")
    elif isinstance(error, PhiCourseError):
        text = str(error)
    elif isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename is not None else ""
        text = f"{place}{error.strerror or error}"
        text += "; free some space and try again" * (error.errno == errno.ENOSPC)
    elif isinstance(error, ImportError) and error.name and not error.name.startswith("phicourse"):
        package = error.name.partition(".")[0]
        text = f"the Python package {package} is missing here: pip install {package}"
    elif isinstance(error, MemoryError):
        text = f"not enough memory: close other programs or take a smaller model ({error})"
    else:
        text = f"{type(error).__name__}: {error} (a mistake in phicourse itself; --debug shows where)"
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(text.split()))


def drop_output() -> None:
    """Send what is still buffered for standard output nowhere, so that the exit does not fail over it."""
    with suppress(OSError):  # a test's stream has no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
