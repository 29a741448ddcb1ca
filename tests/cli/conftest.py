"""Files to run the command line on, made once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import Phicourse
from random_phi import write_random_phi


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, phi_tiny: Path) -> Path:
    """A Phi with random weights."""
    return write_random_phi(tmp_path_factory.mktemp("cli") / "random-tiny", phi_tiny)


@pytest.fixture(scope="session")
def f16(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint as a GGUF file."""
    from phicourse.convert import convert

    return convert(
        checkpoint, tmp_path_factory.mktemp("gguf") / "random-tiny-F16.gguf", "f16", progress=False
    )


@pytest.fixture(scope="session")
def phicourse(repository: Path) -> Phicourse:
    """Run `python -m phicourse` as a process of its own; text in, text out."""

    def run(*args: str | Path, **options: object) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "phicourse", *map(str, args)]
        environment = {**os.environ, "PYTHONPATH": str(repository), "COLUMNS": "80"}
        settings = {"capture_output": True, "text": True, "timeout": 120, "env": environment} | options
        return subprocess.run(command, check=False, **settings)  # type: ignore[call-overload,no-any-return]

    return run
