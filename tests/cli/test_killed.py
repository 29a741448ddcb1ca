"""kill -9 in the middle of a tensor: no output, and the same command again ends right and clears up."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Phicourse

# Writes half of a matrix, says so, and waits to be killed.
STOP = """
    import sys, time
    import numpy as np
    from phicourse.gguf import GGUFWriter
    write = GGUFWriter.write
    def half(self, name, chunk):
        if name != "blk.0.ffn_up.weight":
            return write(self, name, chunk)
        raw = np.ascontiguousarray(chunk).view(np.uint8).reshape(-1)
        write(self, name, raw[: raw.size // 2])
        print("now", flush=True)
        time.sleep(600)
    GGUFWriter.write = half
    from phicourse import cli
    sys.argv = ["phicourse", *sys.argv[1:]]
    cli.main()
"""
Command = Callable[[Path, Path, Path], list[str]]
COMMANDS: dict[str, Command] = {
    "convert": lambda checkpoint, f16, out: ["convert", str(checkpoint), "-o", str(out)],
    "convert to shards": lambda checkpoint, f16, out: [
        *("convert", str(checkpoint), "-o", str(out), "--split-max-tensors", "4")
    ],
    "quantize": lambda checkpoint, f16, out: ["quantize", str(f16), str(out), "Q8_0"],
    "checkpoint to Q4_K_M": lambda checkpoint, f16, out: ["quantize", str(checkpoint), str(out), "Q4_K_M"],
    "split": lambda checkpoint, f16, out: ["split", str(f16), str(out), "--split-max-size", "1M"],
}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")
@pytest.mark.parametrize("case", COMMANDS)
def test_killed_and_run_again(
    case: str, checkpoint: Path, f16: Path, tmp_path: Path, repository: Path, phicourse: Phicourse
) -> None:
    for name in ("killed", "whole"):
        (tmp_path / name).mkdir()
    commands = {
        name: COMMANDS[case](checkpoint, f16, tmp_path / name / "o.gguf") for name in ("killed", "whole")
    }
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(STOP), *commands["killed"]],
        cwd=repository,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "now\n"
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL
    left = contents(tmp_path / "killed")
    assert left and all(name.startswith(".o") and name.endswith(".partial") for name in left)
    assert any(left.values())
    for command in commands.values():
        done = phicourse(*command)
        assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
