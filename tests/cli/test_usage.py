"""What the command line looks like: verbs, options, help, exit status 2."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from command_line import Phicourse
from typer.testing import CliRunner

from phicourse.cli import app

VERBS = {
    "demo": ["--out", "--force", "--threads"],
    "download": ["REPO", "--revision", "--to", "--force"],
    "convert": [
        "CHECKPOINT",
        "-o",
        "--outtype",
        "--compat",
        "--split-max-size SIZE",
        "--split-max-tensors N",
        "--no-tensor-first-split",
        "--metadata FILE",
        "--model-name NAME",
        "--force",
    ],
    "quantize": [
        "IN [OUT] TYPE",
        "--pure",
        "--leave-output-tensor",
        "--output-tensor-type",
        "--token-embedding-type",
        "--tensor-type REGEX=T",
        "--tensor-type-file F",
        "--imatrix F",
        "--include-weights NAME",
        "--exclude-weights NAME",
        "--allow-requantize",
        "--dry-run",
        "--threads",
        "--force",
    ],
    "split": [
        "FILE",
        "[OUT]",
        "--split-max-size SIZE",
        "--split-max-tensors N",
        "--no-tensor-first-split",
        "--force",
    ],
    "merge": ["FIRST", "[OUT]", "--compat", "--force"],
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
    "chat": ["FILE", "--system", "--threads", "--ctx", "--cache-type", "--gpu-layers"],
    "imatrix": [
        "FILE",
        "-f",
        "-o",
        "--ctx",
        "--chunks",
        "--output-format",
        "--in-file",
        "--process-output",
        "--show-statistics",
        "--picture",
        "--threads",
        "--force",
        "--json",
    ],
    "perplexity": ["FILE", "-f", "--ctx", "--chunks", "--kl-base", "--json"],
    "bench": ["FILE", "-p", "-n", "-r", "--threads", "--json"],
    "plan": ["FILE", "--memory", "--ctx", "--cache-type", "--json"],
    "diff": ["A", "B", "--json"],
    "doctor": ["--json"],
}
HEAVY = (
    "numpy",
    "torch",
    "matplotlib",
    "jinja2",
    "sentencepiece",
    "transformers",
    "llama_cpp",
    "huggingface_hub",
    "rich",
)


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
    assert "..." not in result.stdout.split("Commands:")[1]  # no sentence is cut
    listed = [line.split()[0] for line in result.stdout.split("Commands:")[1].splitlines() if line.strip()]
    assert listed == list(VERBS)


def test_each_verb_has_a_file_of_its_name(repository: Path) -> None:
    files = {path.stem for path in (repository / "phicourse" / "cli").glob("*.py")}
    assert files - set(VERBS) == {"__init__", "answers", "commands", "failures", "options", "output", "text"}
    assert set(VERBS) <= files


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
        ["quantize", "a.gguf", "b.gguf", "Q8_0", "--threads", "1025"],
        ["convert"],
        ["quantize", "only-one"],
        ["quantize", "a", "b", "c", "d"],
        ["quantize", "a", "b", "Q8_0", "--include-weights", "x", "--exclude-weights", "y"],
        ["perplexity", "model.gguf"],
        ["bench", "model.gguf", "-r", "0"],
        ["info", "model.gguf", "--no-such-option"],
        ["convert", "folder", "--split-max-size", "2 G B"],
        ["convert", "folder", "--split-max-tensors", "0"],
        ["convert", "folder", "--model-name", ""],
        ["split", "model.gguf", "--split-max-size", "0"],
        ["merge"],
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
assert "numpy" not in sys.modules
assert {"convert", "load", "quantize", "use"} <= set(dir(phicourse))
from phicourse.convert import phi3
import phicourse.quantize.mixes
assert "outtype" in inspect.signature(phicourse.convert).parameters
assert "mix" in inspect.signature(phicourse.quantize).parameters
assert callable(phicourse.load) and callable(phicourse.use)
assert not {"torch", "transformers", "llama_cpp", "matplotlib", "jinja2"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], cwd=repository, check=True)


def test_empty_paths_are_wrong_usage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`phicourse quantize "$IN" "$OUT" Q8_0` without OUT must not write into the current folder."""
    monkeypatch.chdir(tmp_path)
    for args in (
        ["info", ""],
        ["convert", ""],
        ["convert", ".", "-o", ""],
        ["quantize", "a.gguf", "", "Q8_0"],
        ["quantize", "a.gguf", "b.gguf", "Q8_0", "--imatrix", ""],
    ):
        result = CliRunner().invoke(app, args)
        assert result.exit_code == 2
        assert "empty" in result.stderr
    assert not list(tmp_path.iterdir())


def test_quantize_names_all_mixes() -> None:
    from phicourse.quantize import ALIASES, MIXES

    words = CliRunner().invoke(app, ["quantize", "--help"]).stdout.replace(",", " ").replace(".", " ").split()
    assert {*MIXES, *ALIASES, "COPY"} <= set(words)
    assert "IN" in words and "[OUT]" in words


def test_debug_behind_two_hyphens_is_an_argument() -> None:
    result = CliRunner().invoke(app, ["tokenize", "no.gguf", "--", "--debug"])
    assert result.exit_code == 1
    assert "Traceback" not in result.stderr


def test_version() -> None:
    from phicourse import __version__

    assert CliRunner().invoke(app, ["--version"]).stdout == f"phicourse {__version__}\n"


def test_json_has_no_infinities(capsys: pytest.CaptureFixture[str]) -> None:
    from phicourse.cli.output import print_json

    print_json({"a": [1.5, float("inf")], "b": {"c": float("nan")}, "d": (float("-inf"), "x")})
    assert json.loads(capsys.readouterr().out) == {"a": [1.5, None], "b": {"c": None}, "d": [None, "x"]}


def test_the_console_script_is_there(repository: Path) -> None:
    """pyproject.toml names a function that exists, and that is loaded without anything else of the package."""
    script = tomllib.loads((repository / "pyproject.toml").read_text())["project"]["scripts"]["phicourse"]
    module, _, function = script.partition(":")
    code = f"import sys, {module}; assert callable({module}.{function}); assert 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=repository, check=True)
