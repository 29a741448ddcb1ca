"""How tests run the command line, and what they ask of every failure."""

import subprocess
from collections.abc import Callable
from pathlib import Path

from typer.testing import CliRunner

from phicourse.cli import app

Phicourse = Callable[..., "subprocess.CompletedProcess[str]"]


def fails(*args: str | Path, **options: object) -> str:
    """Run a verb that must fail in the promised way; its line."""
    result = CliRunner().invoke(app, [str(arg) for arg in args], **options)  # type: ignore[arg-type]
    assert result.exit_code == 1, result.output
    return the_line(result.stderr)


def the_line(stderr: str) -> str:
    """The only line but the note that there is no compiled module."""
    lines = [line for line in stderr.splitlines() if line.strip() and "slowly" not in line]
    assert len(lines) == 1, stderr
    assert lines[0].startswith("phicourse: ")
    assert "Traceback" not in stderr
    assert "a mistake in phicourse" not in stderr
    return lines[0]


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
