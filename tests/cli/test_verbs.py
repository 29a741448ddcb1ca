"""Every verb once, as a user types it: what it prints where, and what it leaves behind."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import Phicourse
from typer.testing import CliRunner

from phicourse.cli import app
from phicourse.gguf import GGUFFile
from phicourse.quantize.importance import ImportanceMatrix, Squares

TEXT = "Once upon a time there was a little dog. The dog ran to the park. " * 20


def run(*args: str | Path, stdin: str | bytes | None = None) -> str:
    """Run in this process; the output of a verb that succeeds."""
    result = CliRunner().invoke(app, [str(arg) for arg in args], input=stdin)
    assert result.exit_code == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def q4(f16: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("q4") / "small.gguf"
    assert run("quantize", f16, out, "Q4_K_M", "--threads", "1") == f"{out}\n"
    return out


def test_convert_prints_the_path_and_replaces_only_when_forced(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.gguf"
    assert run("convert", checkpoint, "-o", out) == f"{out}\n"
    assert out.read_bytes()[:4] == b"GGUF"
    refused = CliRunner().invoke(app, ["convert", str(checkpoint), "-o", str(out)])
    assert refused.exit_code == 1
    assert "--force" in refused.stderr
    run("convert", checkpoint, "-o", out, "--outtype", "bf16", "--force")


def test_compat_leaves_out_our_own_keys(checkpoint: Path, tmp_path: Path) -> None:
    for name, options in {"ours": [], "compat": ["--compat"]}.items():
        run("convert", checkpoint, "-o", tmp_path / f"{name}.gguf", *options)
    keys = {name: set(GGUFFile.open(tmp_path / f"{name}.gguf").metadata) for name in ("ours", "compat")}
    assert keys["compat"] < keys["ours"]
    assert all(key.startswith("phicourse.") for key in keys["ours"] - keys["compat"])


def test_convert_to_shards_prints_the_first(checkpoint: Path, f16: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.gguf"
    first = Path(run("convert", checkpoint, "-o", out, "--split-max-size", "2M").removesuffix("\n"))
    assert first == tmp_path / "a-00001-of-00002.gguf"
    with GGUFFile.open(first) as shards, GGUFFile.open(f16) as whole:
        assert list(shards.tensors) == list(whole.tensors)
    run("convert", checkpoint, "-o", out, "--no-tensor-first-split", "--split-max-tensors", "9")
    assert GGUFFile.open(tmp_path / "a-00001-of-00002.gguf").n_shards == 2


def test_what_convert_is_told_of_the_model(checkpoint: Path, tmp_path: Path) -> None:
    given = tmp_path / "given.json"
    given.write_text('{"general.author": "Me", "general.name": "not this"}')
    run("convert", checkpoint, "-o", tmp_path / "a.gguf", "--metadata", given, "--model-name", "Mine")
    with GGUFFile.open(tmp_path / "a.gguf") as file:
        assert file.get("general.name", str) == "Mine"
        assert file.get("general.author", str) == "Me"


def test_split_and_merge_print_their_paths(f16: Path, tmp_path: Path) -> None:
    whole = tmp_path / "a.gguf"
    whole.write_bytes(f16.read_bytes())
    printed = run("split", whole, "--split-max-tensors", "6").splitlines()
    assert printed == [str(tmp_path / f"a-{i:05d}-of-00002.gguf") for i in (1, 2)]
    again = tmp_path / "again.gguf"
    assert run("merge", printed[0], again) == f"{again}\n"
    assert again.read_bytes() == f16.read_bytes()
    refused = CliRunner().invoke(app, ["merge", printed[0]])
    assert refused.exit_code == 1
    assert "a.gguf: exists already" in refused.stderr
    run("merge", printed[0], "--compat", "--force")
    assert GGUFFile.open(whole).get("split.count", int) == 0


def test_quantize_makes_up_a_name_beside_the_input(f16: Path, tmp_path: Path) -> None:
    source = tmp_path / "model-F16.gguf"
    source.write_bytes(f16.read_bytes())
    assert run("quantize", source, "q8_0") == f"{tmp_path / 'ggml-model-Q8_0.gguf'}\n"


def test_quantized_files_are_quantized_again_only_on_request(q4: Path, tmp_path: Path) -> None:
    refused = CliRunner().invoke(app, ["quantize", str(q4), str(tmp_path / "a.gguf"), "Q8_0"])
    assert refused.exit_code == 1
    assert "--allow-requantize" in refused.stderr
    run("quantize", q4, tmp_path / "a.gguf", "Q8_0", "--allow-requantize")


def test_quantize_from_a_checkpoint_gives_the_same_file(
    checkpoint: Path, f16: Path, q4: Path, tmp_path: Path
) -> None:
    run("quantize", checkpoint, tmp_path / "direct.gguf", "Q4_K_M", "--threads", "1")
    assert (tmp_path / "direct.gguf").stat().st_size == q4.stat().st_size
    run("quantize", checkpoint, tmp_path / "via.gguf", "Q4_K_M", "--via", "f16")
    assert (tmp_path / "via.gguf").read_bytes() == q4.read_bytes()


def test_quantize_with_importance(f16: Path, tmp_path: Path) -> None:
    squares = {
        f"blk.0.{name}.weight": Squares(np.ones((1, 256), np.float32), np.array([9]))
        for name in ("attn_qkv", "attn_output")
    }
    matrix = ImportanceMatrix(None, ("text.txt",), 1, 512, squares).write(tmp_path / "importance.gguf")
    types = tmp_path / "types.txt"
    types.write_text("attn_output=q5_0\n")
    wishes = ["--include-weights", "qkv", "--tensor-type", "attn_qkv=q4_0", "--tensor-type-file", types]
    run("quantize", f16, tmp_path / "a.gguf", "Q4_K_M", "--imatrix", matrix, *wishes)
    with GGUFFile.open(tmp_path / "a.gguf") as file:
        assert file.get("quantize.imatrix.file", str) == str(matrix)[:127]
        assert file.get("quantize.imatrix.entries_count", int) == 1
        assert file.tensors["blk.0.attn_qkv.weight"].type.name == "Q4_0"
        assert file.tensors["blk.0.attn_output.weight"].type.name == "Q5_0"
    refused = CliRunner().invoke(app, ["quantize", str(f16), str(tmp_path / "b.gguf"), "IQ2_XS"])
    assert refused.exit_code == 1
    assert refused.stderr.count("\n") == 1 and "phicourse imatrix" in refused.stderr
    assert "needs an importance matrix" in run("quantize", f16, "IQ2_XS", "--dry-run").splitlines()[-1]
    assert not (tmp_path / "b.gguf").exists()


def test_a_dry_run_writes_nothing(f16: Path, tmp_path: Path) -> None:
    out = tmp_path / "never.gguf"
    plan = run("quantize", f16, out, "Q4_K_M", "--dry-run")
    assert "token_embd.weight" in plan
    assert not out.exists()


def test_tensor_types_can_be_chosen(f16: Path, tmp_path: Path) -> None:
    out = tmp_path / "mixed.gguf"
    run("quantize", f16, out, "Q4_K_M", "--tensor-type", "attn_qkv=q8_0", "--output-tensor-type", "f16")
    types = {t["name"]: t["type"] for t in json.loads(run("info", out, "--json"))["tensors"]}
    assert types["blk.0.attn_qkv.weight"] == "Q8_0"
    assert types["output.weight"] == "F16"


def test_info_as_text_and_as_json(f16: Path) -> None:
    text = run("info", f16, "--tensors", "--verify")
    assert "general.architecture" in text
    assert "blk.0.attn_qkv.weight" in text
    assert "sound" in text
    document = json.loads(run("info", f16, "--json", "--verify"))
    assert document["damaged"] == []
    assert document["bytes"] == f16.stat().st_size


def test_info_verify_finds_a_broken_scale(q4: Path, tmp_path: Path) -> None:

    raw = bytearray(q4.read_bytes())
    with GGUFFile.open(q4) as file:
        at = file.tensors["blk.0.ffn_up.weight"].offset
    raw[at : at + 2] = b"\x00\x7c"  # an infinite float16
    (tmp_path / "broken.gguf").write_bytes(raw)
    result = CliRunner().invoke(app, ["info", str(tmp_path / "broken.gguf"), "--verify"])
    assert result.exit_code == 1
    assert "blk.0.ffn_up.weight" in result.stderr


def test_tokenize_shows_ids_and_pieces(f16: Path) -> None:
    lines = run("tokenize", f16, "a dog<|end|>").splitlines()
    assert lines[0].split(" -> ") == ["     1", "'<s>'"]
    assert [line.split(" -> ")[1] for line in run("tokenize", f16, "\x01\u0eff").splitlines()[2:]] == [
        "'\\x01'",
        "'<0xE0>'",
        "'<0xBB>'",
        "'<0xBF>'",
    ]
    assert lines[-1].endswith("'<|end|>'")


@pytest.mark.parametrize("raw", [[], ["--raw"]])
def test_run_same_seed_same_text_whatever_the_threads(q4: Path, raw: list[str]) -> None:
    texts = [
        run("run", q4, "-p", "dog", "-n", "8", "--seed", "5", "--threads", t, *raw) for t in ("1", "2", "1")
    ]
    assert texts[0] == texts[1] == texts[2]
    assert texts[0].endswith("\n")


def test_run_reads_standard_input(q4: Path) -> None:
    options = ("-n", "8", "--temp", "0", "--raw")
    expected = run("run", q4, "-p", "a dog", *options)
    for text in ("a dog", "a dog\n", "a dog\r\n"):
        assert run("run", q4, "-p", "-", *options, stdin=text) == expected


def test_run_says_when_the_context_is_full(q4: Path) -> None:
    said = {}
    for name, options in {"full": ["--ctx", "12"], "asked for": ["-n", "3"]}.items():
        args = ["run", str(q4), "-p", "dog", "--raw", "--temp", "0", *options]
        said[name] = CliRunner().invoke(app, args).stderr
    assert said == {"full": "phicourse: cut off, the context of 12 tokens is full\n", "asked for": ""}


def test_run_uses_the_template_unless_raw(q4: Path, phicourse: Phicourse) -> None:
    options = ("-n", "12", "--temp", "0")
    as_chat = run("run", q4, "-p", "<|user|>\ndog<|end|>\n<|assistant|>\n", "--raw", *options)
    assert run("run", q4, "-p", "dog", *options) == as_chat
    assert run("run", q4, "-p", "dog", "--raw", *options) != as_chat


def test_run_with_a_draft_says_the_same_and_how_well_it_guessed(q4: Path) -> None:
    asked = ["run", q4, "-p", "dog", "-n", "30", "--temp", "0", "--raw"]
    alone = run(*asked)
    result = CliRunner().invoke(app, [str(arg) for arg in [*asked, "--draft", q4]])
    assert result.stdout == alone
    assert re.fullmatch(r"phicourse: \d+ of \d+ guesses were right, \d\.\d tokens a step\n", result.stderr)
    both = CliRunner().invoke(app, [str(arg) for arg in [*asked, "--draft", q4, "--lookup"]])
    assert both.exit_code == 2 and "exclude each other" in both.stderr


def test_chat_answers_line_by_line(q4: Path, phicourse: Phicourse) -> None:
    done = phicourse("chat", q4, input="/help\n/quit\n")
    assert done.returncode == 0
    assert done.stdout == ""
    assert "/reset" in done.stderr


def test_chat_keeps_to_the_context_it_is_given(q4: Path, phicourse: Phicourse) -> None:
    done = phicourse(
        "chat", q4, "--ctx", "16", "--cache-type", "q8_0", input="Tell me a story about a dog.\n"
    )
    assert done.returncode == 0
    assert "cut off, the context of 16 tokens is full" in done.stderr


def test_chat_with_a_draft_says_the_same_and_how_well_it_guessed(q4: Path, phicourse: Phicourse) -> None:
    asked = ("chat", q4, "--temp", "0", "--ctx", "96")
    alone = phicourse(*asked, input="Tell me a story about a dog.\n")
    drafted = phicourse(*asked, "--draft", q4, input="Tell me a story about a dog.\n")
    assert alone.returncode == drafted.returncode == 0
    assert alone.stdout == drafted.stdout != ""
    assert re.search(r"phicourse: \d+ of \d+ guesses were right, \d\.\d tokens a step\n", drafted.stderr)
    assert "guesses" not in alone.stderr


def test_chat_draws_as_it_is_told(q4: Path, phicourse: Phicourse) -> None:
    def answer(*options: str) -> str:
        return phicourse("chat", q4, "--ctx", "64", *options, input="Tell me a story.\n").stdout

    assert answer("--seed", "1") == answer("--seed", "1") != answer("--seed", "2")
    assert answer("--seed", "1", "--temp", "0") == answer("--seed", "2", "--temp", "0")


def test_perplexity_as_text_and_json(q4: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    document = json.loads(run("perplexity", q4, "-f", text, "--ctx", "64", "--chunks", "2", "--json"))
    assert document["tokens"] == 2 * 31
    assert document["perplexity"] > 1
    assert document["stderr"] > 0
    assert f"{document['perplexity']:.4f}" in run(
        "perplexity", q4, "-f", text, "--ctx", "64", "--chunks", "2"
    )


def test_perplexity_writes_a_base_and_compares_with_it(f16: Path, q4: Path, tmp_path: Path) -> None:
    text, base = tmp_path / "text.txt", tmp_path / "base.kld"
    text.write_text(TEXT)
    options = ("-f", text, "--ctx", "64", "--chunks", "2", "--kl-base", base)
    run("perplexity", f16, *options)
    kl = json.loads(run("perplexity", q4, *options, "--json"))["kl"]
    assert 0 < kl["mean"] < 1
    assert "KL divergence" in run("perplexity", q4, *options)


def test_bench_prints_the_fields_of_the_contract(q4: Path) -> None:
    document = json.loads(run("bench", q4, "-p", "16", "-n", "4", "-r", "2", "--threads", "1", "--json"))
    assert [m["test"] for m in document] == ["pp16", "tg4"]
    for m in document:
        assert m["tokens_per_second"] > 0
        assert m["stddev"] >= 0
        assert m["threads"] == 1
        assert isinstance(m["isa"], str)
    assert "pp16" in run("bench", q4, "-p", "16", "-n", "4", "-r", "1")


def test_a_closed_pipe_is_quiet(f16: Path, repository: Path) -> None:
    command = f"{sys.executable} -m phicourse info {f16} --tensors --json | head -c 10"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=repository, check=True)
    assert len(done.stdout) == 10
    assert done.stderr == ""


def test_demo_is_called_with_its_options(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[tuple[object, ...]] = []
    monkeypatch.setattr("phicourse.demo.run_demo", lambda *args: calls.append(args))
    run("demo", "-o", tmp_path / "x", "--force", "--threads", "2")
    assert calls == [(tmp_path / "x", True, 2)]
