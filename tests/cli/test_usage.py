"""What the command line looks like: verbs, options, help, exit status 2."""

import subprocess
import sys
from pathlib import Path

import pytest
from command_line import Phicourse
from typer.testing import CliRunner

from phicourse.cli import app

VERBS = {
    "demo": ["--out", "--force", "--threads"],
    "convert": ["CHECKPOINT", "-o", "--outtype", "--force"],
    "quantize": [
        "IN [OUT] TYPE",
        "--pure",
        "--leave-output-tensor",
        "--output-tensor-type",
        "--token-embedding-type",
        "--tensor-type REGEX=T",
        "--dry-run",
        "--threads",
        "--force",
    ],
    "info": ["FILE", "--json", "--tensors", "--verify"],
    "tokenize": ["FILE", "TEXT"],
    "run": [
        "FILE",
        "-p",
        "-n",
        "--temp",
        "--top-k",
        "--top-p",
        "--min-p",
        "--seed",
        "--threads",
        "--ctx",
        "--gpu-layers",
        "--raw",
    ],
    "chat": ["FILE", "--system"],
    "perplexity": ["FILE", "-f", "--ctx", "--chunks", "--kl-base", "--json"],
    "bench": ["FILE", "-p", "-n", "-r", "--threads", "--json"],
    "doctor": ["--json"],
}
HEAVY = ("torch", "matplotlib", "jinja2", "sentencepiece", "transformers", "llama_cpp", "rich")


@pytest.mark.parametrize("verb", VERBS)
def test_help_names_the_options_and_fits_80_columns(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # wide terminals get no wider help
    result = CliRunner().invoke(app, [verb, "--help"])
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= 80
    for option in VERBS[verb]:
        assert option in result.stdout, f"{verb} {option}"


def test_the_list_of_verbs_is_complete() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert max(map(len, result.stdout.splitlines())) <= 80
    listed = [line.split()[0] for line in result.stdout.split("Commands:")[1].splitlines() if line.strip()]
    assert listed == list(VERBS)


def test_help_imports_nothing_heavy(repository: Path) -> None:
    code = f"""
import sys
sys.argv = ["phicourse", "--help"]
from phicourse.cli import main
try:
    main()
except SystemExit:
    print([module for module in {HEAVY!r} if module in sys.modules], file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=repository, check=True
    )
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize(
    "args",
    [
        ["nonsense"],
        ["run", "model.gguf"],
        ["run", "model.gguf", "-p", "x", "-n", "many"],
        ["run", "model.gguf", "-p", "x", "--threads", "0"],
        ["convert"],
        ["quantize", "only-one"],
        ["quantize", "a", "b", "c", "d"],
        ["perplexity", "model.gguf"],
        ["bench", "model.gguf", "-r", "0"],
        ["info", "model.gguf", "--no-such-option"],
    ],
)
def test_wrong_usage_exits_with_2_and_says_what(args: list[str], phicourse: Phicourse) -> None:
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Error" in result.stderr or "Usage" in result.stderr


def test_the_package_is_light_and_its_face_is_complete(repository: Path) -> None:
    code = """
import inspect, sys
import phicourse
from phicourse.convert import phi3
assert "outtype" in inspect.signature(phicourse.convert).parameters
assert "mix" in inspect.signature(phicourse.quantize).parameters
assert callable(phicourse.load) and callable(phicourse.use)
assert not {"torch", "transformers", "llama_cpp", "matplotlib", "jinja2"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], cwd=repository, check=True)
