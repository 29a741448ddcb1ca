"""Everything that goes wrong: one line that begins with `phicourse:`, exit status 1, no traceback, no file left."""

import os
import resource
import signal
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from command_line import Phicourse, fails, files, the_line
from typer.testing import CliRunner

from phicourse.cli import app
from phicourse.cli.failures import one_line


@pytest.mark.parametrize("verb", ["info", "run", "chat", "tokenize", "bench", "perplexity", "quantize"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("missing", None),
        ("empty", b""),
        ("foreign", b"\x89PNG\r\n\x1a\n" + bytes(100)),
        ("cut", 300),
        ("cut-late", -1),
    ],
)
def test_files_that_are_no_models(
    verb: str, name: str, content: bytes | int | None, f16: Path, tmp_path: Path
) -> None:
    bad, text = tmp_path / f"{name}.gguf", tmp_path / "text.txt"
    text.write_text("a dog")
    if content is not None:
        bad.write_bytes(f16.read_bytes()[:content] if isinstance(content, int) else content)
    more = {
        "run": ["-p", "x"],
        "tokenize": ["x"],
        "perplexity": ["-f", text],
        "quantize": [tmp_path / "out.gguf", "Q4_K_M"],
    }
    before = files(tmp_path)
    assert f"{name}.gguf" in fails(verb, bad, *more.get(verb, []))
    assert files(tmp_path) == before


def test_a_file_that_lies_about_its_counts(f16: Path, tmp_path: Path) -> None:
    raw = bytearray(f16.read_bytes())
    raw[8:16] = (1 << 40).to_bytes(8, "little")
    (tmp_path / "liar.gguf").write_bytes(raw)
    assert "1,099,511,627,776 tensors" in fails("info", tmp_path / "liar.gguf")


def test_a_file_of_another_kind_of_model(tmp_path: Path) -> None:
    from phicourse.gguf import GGUFWriter, ValueType

    path = tmp_path / "other.gguf"
    with GGUFWriter(path) as writer:
        writer.add("general.architecture", "\x1b[31mbert\n", ValueType.STRING)
    for verb, more in {"run": ["-p", "x"], "bench": [], "tokenize": ["x"]}.items():
        assert "\x1b" not in fails(verb, path, *more)


def test_unknown_types_are_named_with_the_known_ones(checkpoint: Path, f16: Path, tmp_path: Path) -> None:
    assert "Q4_K_M" in fails("quantize", f16, tmp_path / "out.gguf", "Q4_X")
    assert "f16" in fails("convert", checkpoint, "-o", tmp_path / "out.gguf", "--outtype", "f17").lower()
    assert "Q6_K" in fails("quantize", f16, tmp_path / "out.gguf", "Q4_K_M", "--output-tensor-type", "q99")
    assert files(tmp_path) == set()


def test_a_checkpoint_without_its_files(checkpoint: Path, tmp_path: Path) -> None:
    assert "config.json" in fails("convert", tmp_path, "-o", tmp_path / "out.gguf")
    for name in ("config.json", "tokenizer.model", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((checkpoint / name).read_bytes())
    assert "safetensors" in fails("convert", tmp_path, "-o", tmp_path / "out.gguf")
    index = '{"metadata": {}, "weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}'
    (tmp_path / "model.safetensors.index.json").write_text(index)
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(
        (checkpoint / "model.safetensors").read_bytes()
    )
    assert "model-00002-of-00002.safetensors" in fails("convert", tmp_path, "-o", tmp_path / "out.gguf")


def test_a_checkpoint_cut_short(checkpoint: Path, tmp_path: Path) -> None:
    for path in checkpoint.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "model.safetensors" in fails("convert", tmp_path, "-o", tmp_path / "out.gguf")
    assert "out.gguf" not in files(tmp_path)


def test_a_folder_where_a_file_should_be(checkpoint: Path, tmp_path: Path) -> None:
    assert "convert" in fails("run", checkpoint, "-p", "x")
    assert "convert" in fails("info", tmp_path)
    assert "text" in fails("perplexity", "m.gguf", "-f", tmp_path / "text").lower()


def test_an_output_folder_that_does_not_exist(checkpoint: Path, f16: Path, tmp_path: Path) -> None:
    assert "nowhere" in fails("convert", checkpoint, "-o", tmp_path / "nowhere" / "a.gguf")
    assert "nowhere" in fails("quantize", f16, tmp_path / "nowhere" / "a.gguf", "Q8_0")


def test_requests_that_the_model_cannot_serve(f16: Path, tmp_path: Path) -> None:
    assert "tokens" in fails("run", f16, "-p", "dog " * 600, "--raw")
    assert "512" in fails("run", f16, "-p", "x", "--ctx", "100000")
    short, latin = tmp_path / "short.txt", tmp_path / "latin.txt"
    short.write_text("too short")
    latin.write_bytes(b"caf\xe9 " * 500)
    assert "longer text" in fails("perplexity", f16, "-f", short)
    assert "byte 3" in fails("perplexity", f16, "-f", latin)
    assert "UTF-8" in fails("run", f16, "-p", "-", input=b"caf\xe9")


def test_debug_adds_a_traceback_wherever_it_stands() -> None:
    for args in (["--debug", "info", "no.gguf"], ["info", "no.gguf", "--debug"]):
        result = CliRunner().invoke(app, args)
        assert result.exit_code == 1
        assert "Traceback" in result.stderr
        assert result.stderr.splitlines()[-1].startswith("phicourse: no.gguf")


def test_unforeseen_exceptions_are_one_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: object) -> None:
        raise KeyError("a\x1b[2J\nb")

    monkeypatch.setattr("phicourse.gguf.GGUFFile.open", broken)
    result = CliRunner().invoke(app, ["info", "x"])
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "\x1b" not in result.stderr
    assert "--debug" in result.stderr


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(28, "No space left on device"), "No space left on device; free some space and try again"),
        (PermissionError(13, "Permission denied", "a.gguf"), "a.gguf: Permission denied"),
        (
            MemoryError("Unable to allocate 9 TiB"),
            "not enough memory: close other programs or take a smaller model (Unable to allocate 9 TiB)",
        ),
        (KeyboardInterrupt(), "interrupted, nothing was written"),
    ],
)
def test_one_line(error: BaseException, expected: str) -> None:
    assert one_line(error, "quantize") == expected


def test_output_on_a_full_disk_is_an_error(f16: Path, phicourse: Phicourse) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs the device /dev/full")
    with Path("/dev/full").open("w") as full:
        done = phicourse("info", f16, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert "No space left" in the_line(done.stderr)


@pytest.mark.parametrize("verb", ["convert", "quantize"])
def test_a_disk_that_fills_up_leaves_nothing(
    verb: str, checkpoint: Path, f16: Path, tmp_path: Path, phicourse: Phicourse
) -> None:
    """The kernel refuses to let the file grow past 100 kB: a real failed write in the middle."""
    args = (
        ["convert", checkpoint, "-o", tmp_path / "o.gguf"]
        if verb == "convert"
        else ["quantize", f16, tmp_path / "o.gguf", "Q8_0"]
    )

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    done = phicourse(*args, preexec_fn=limit)
    assert done.returncode == 1
    assert "o.gguf" in the_line(done.stderr)
    assert files(tmp_path) == set()


@pytest.mark.parametrize("format", ["gguf", "dat"])
def test_a_full_disk_is_told_of_the_importance_matrix_too(
    format: str, tmp_path: Path, phicourse: Phicourse
) -> None:
    """By its own name, not by that of the file beside it that is written first."""
    many, out = tmp_path / "many.dat", tmp_path / "o.dat"
    numbers = struct.pack("<ii", 1, 50_000) + bytes(4 * 50_000)
    many.write_bytes(struct.pack("<ii", 1, 1) + b"a" + numbers + struct.pack("<ii", 1, 0))
    before = files(tmp_path)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    args = ("--in-file", many, "-o", out, "--output-format", format)
    done = phicourse("imatrix", *args, preexec_fn=limit)
    assert done.returncode == 1
    assert the_line(done.stderr) == f"phicourse: {out}: cannot be written (File too large)"
    assert files(tmp_path) == before


def test_no_space_while_renaming_leaves_the_old_file(
    f16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "o.gguf"
    out.write_bytes(b"old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "No space left" in fails("quantize", f16, out, "Q8_0", "--force")
    assert files(tmp_path) == {"o.gguf"}
    assert out.read_bytes() == b"old"


def interrupted(code: str, args: list[str], number: signal.Signals, repository: Path) -> str:
    """Run `code` and then the command line; send a signal when it prints "now"; what it said on standard error."""
    main = f"import sys\nfrom phicourse import cli\nsys.argv = ['phicourse', *{args!r}]\ncli.main()\n"
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code) + main],
        cwd=repository,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "now\n"
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    return the_line(stderr)


@pytest.mark.parametrize("verb", ["convert", "quantize"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle_of_writing(
    verb: str, number: signal.Signals, checkpoint: Path, f16: Path, tmp_path: Path, repository: Path
) -> None:
    """A real signal to a real process, sent once it has written a tensor and says so."""
    code = """
        import os, sys, time
        from phicourse.gguf import GGUFWriter
        write = GGUFWriter.write
        def slowly(self, name, chunk):
            write(self, name, chunk)
            assert len(os.listdir(self.path.parent)) == 1, "the temporary file is there"
            print("now", flush=True)
            time.sleep(60)
        GGUFWriter.write = slowly
    """
    out = str(tmp_path / "o.gguf")
    args = {
        "convert": ["convert", str(checkpoint), "-o", out],
        "quantize": ["quantize", str(f16), out, "Q8_0"],
    }
    said = interrupted(code, args[verb], number, repository)
    assert said == "phicourse: interrupted, nothing was written"
    assert files(tmp_path) == set()


def test_a_signal_in_the_middle_of_an_answer(f16: Path, repository: Path) -> None:
    code = """
        import time
        from phicourse.generate import LLM
        def answer(self, prompt, **options):
            print("now", flush=True)
            time.sleep(60)
            yield "never"
        LLM.generate = answer
    """
    args = ["run", str(f16), "-p", "x", "--raw"]
    assert interrupted(code, args, signal.SIGINT, repository) == "phicourse: interrupted"


def test_a_signal_while_the_command_line_is_loaded(repository: Path) -> None:
    code = """
        import os, signal, sys
        class Finder:
            def find_spec(self, name, path=None, target=None):
                if name == "phicourse.cli":
                    os.kill(os.getpid(), signal.SIGINT)
        sys.meta_path.insert(0, Finder())
        from phicourse.__main__ import main
        main()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "phicourse: interrupted\n")


def test_help_on_a_full_disk_is_an_error(phicourse: Phicourse) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs the device /dev/full")
    with Path("/dev/full").open("w") as full:
        done = phicourse("--help", capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert "No space left" in the_line(done.stderr)


@pytest.mark.parametrize("verb", ["info", "run", "chat"])
def test_closed_standard_streams_are_empty_ones(verb: str, f16: Path, repository: Path) -> None:
    """A shell's `<&-` and `>&-`: Python has no stream there at all."""
    more = {"run": "-p -"}.get(verb, "")
    command = f"{sys.executable} -m phicourse {verb} {f16} {more} <&- >&-"
    done = subprocess.run(
        ["bash", "-c", command], cwd=repository, capture_output=True, text=True, check=False
    )
    assert done.returncode == (1 if verb == "run" else 0), done.stderr
    assert "a mistake in phicourse" not in done.stderr


def test_an_empty_standard_input_is_no_prompt(f16: Path) -> None:
    for nothing in ("", "\n"):
        assert "standard input is empty" in fails("run", f16, "-p", "-", input=nothing)


def test_an_unreadable_file_is_no_wrong_usage(f16: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Typer would look at the permissions itself and exit with 2; root may read everything, so it is asked here."""
    monkeypatch.setattr(os, "access", lambda *args, **options: False)
    result = CliRunner().invoke(app, ["info", str(f16)])
    assert result.exit_code == 0


def test_a_missing_package_is_named(f16: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phicourse.generate.backends.native_module", lambda: None)
    monkeypatch.setitem(sys.modules, "torch", None)
    result = CliRunner().invoke(app, ["run", str(f16), "-p", "x", "--raw"])
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].endswith("package torch is missing here: pip install torch")


@pytest.mark.parametrize("verb", ["quantize", "run"])
def test_an_instruction_set_that_is_not_here(
    verb: str, f16: Path, tmp_path: Path, phicourse: Phicourse
) -> None:
    pytest.importorskip("phicourse.native", reason="needs the compiled module")
    args = [tmp_path / "o.gguf", "Q8_0"] if verb == "quantize" else ["-p", "x"]
    done = phicourse(verb, f16, *args, env={**os.environ, "PHICOURSE_ISA": "abacus"})
    assert done.returncode == 1
    assert "PHICOURSE_ISA=abacus" in the_line(done.stderr)
    assert files(tmp_path) == set()
