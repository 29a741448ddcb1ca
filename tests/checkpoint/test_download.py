"""Downloads from a Hub on loopback that speaks the real one's HTTP and breaks off on purpose."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_hub import COMMIT, REPO, FakeHub
from typer.testing import CliRunner, Result

from phicourse.cli import app

WEIGHTS = bytes(range(256)) * 12_000  # 3 MB
FILES = {
    "config.json": b'{"model_type": "phi3"}',
    "generation_config.json": b"{}",
    "model-00001-of-00002.safetensors": WEIGHTS,
    "model-00002-of-00002.safetensors": WEIGHTS[::-1],
    "model.safetensors.index.json": b'{"weight_map": {"a": "model-00001-of-00002.safetensors",'
    b' "b": "model-00002-of-00002.safetensors"}}',
    "tokenizer.json": b"{}",
    "tokenizer.model": b"\x0a\x00",
    "tokenizer_config.json": b"{}",
    "special_tokens_map.json": b"{}",
    "added_tokens.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "README.md": b"---\nlicense: mit\n---\n",
}
NOT_NEEDED = {
    ".gitattributes": b"*.bin lfs",
    "LICENSE": b"MIT",
    "modeling_phi3.py": b"import os",
    "pytorch_model.bin": b"pickle" * 100,
    "model.onnx": b"onnx",
    "training_args.bin": b"pickle",
    "onnx/model.onnx": b"onnx",
    "original/model.safetensors": b"twice",
    "../../model.safetensors": b"out of the folder",
}
# Without waiting between tries.
MAIN = (
    "from phicourse.checkpoint import fetch; fetch.RETRY_SECONDS = 0; from phicourse.cli import main; main()"
)

# Seconds: a machine with much else to do needs half a minute only to start Python and load huggingface_hub.
PATIENCE = 300

Serve = Callable[..., FakeHub]
Process = "subprocess.Popen[str]"


@pytest.fixture
def serve() -> Iterator[Serve]:
    hubs: list[FakeHub] = []

    def start(files: dict[str, bytes] | None = None, **behaviour: object) -> FakeHub:
        hubs.append(FakeHub(dict(FILES if files is None else files), **behaviour))  # type: ignore[arg-type]
        return hubs[-1]

    yield start
    for hub in hubs:
        hub.close()


def environment(tmp_path: Path, url: str, **more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    proxies = {"http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"}
    kept = {key: value for key, value in kept.items() if key not in proxies}
    ours = {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
    return kept | ours | {"HF_HUB_DISABLE_TELEMETRY": "1"} | more


@pytest.fixture
def phicourse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run `phicourse download` in this process, with a Hub's address; huggingface_hub has read its variables."""
    from huggingface_hub import constants

    from phicourse.checkpoint import fetch

    for name in set(os.environ) - set(environment(tmp_path, "")):
        monkeypatch.delenv(name)
    monkeypatch.setattr(fetch, "RETRY_SECONDS", 0)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)  # which other tests import: it means a bar

    def run(url: str, *args: str | Path, token: str | None = None, offline: bool = False) -> Result:
        settings = {
            "ENDPOINT": url,
            "HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path / "hf" / "hub"),
            "HF_TOKEN_PATH": str(tmp_path / "hf" / "token"),
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_OFFLINE": offline,
        }
        for name, value in settings.items():
            monkeypatch.setattr(constants, name, value)
        if token is not None:
            monkeypatch.setenv("HF_TOKEN", token)
        return CliRunner().invoke(app, ["download", *map(str, args)])

    return run


@pytest.fixture
def process(tmp_path: Path, repository: Path) -> Callable[..., Process]:
    """Start `phicourse download` as a process of its own, which reads the variables."""

    def start(url: str, *args: str | Path, **options: object) -> Process:
        return subprocess.Popen(  # type: ignore[call-overload,no-any-return]
            [sys.executable, "-c", MAIN, "download", *map(str, args)],
            cwd=repository,
            env=environment(tmp_path, url, HF_HUB_DOWNLOAD_TIMEOUT="60"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    return start


def folder_of(done: Result) -> Path:
    assert done.exit_code == 0, done.stderr
    assert done.stdout.count("\n") == 1
    return Path(done.stdout.strip())


def failure(done: Result) -> str:
    """The last line of a download that failed as promised."""
    assert done.exit_code == 1, done.stdout
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert "a mistake in phicourse" not in done.stderr
    lines = done.stderr.splitlines()
    assert all(line.startswith("phicourse: ") for line in lines), done.stderr
    return lines[-1]


def wait_for_silence(running: Process, folder: Path, n_bytes: int) -> None:
    """Wait until so much has arrived, and nothing more comes: the process waits for the Hub then.

    A signal before that could meet it while Python tidies up, where an exception is printed and forgotten.
    """
    sizes = [0, 1]
    while sizes[-1] < n_bytes or sizes[-1] != sizes[-2]:
        assert running.poll() is None
        time.sleep(0.2)
        sizes.append(sum(path.stat().st_size for path in folder.rglob("*.incomplete")))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---- what is fetched -------------------------------------------------------------------------------------


def test_only_the_files_needed_arrive_in_the_cache(serve: Serve, phicourse: Callable[..., Result]) -> None:
    hub = serve(FILES | NOT_NEEDED)
    done = phicourse(hub.url, REPO)
    folder = folder_of(done)
    assert contents(folder) == FILES
    assert folder.name == COMMIT
    assert sorted(hub.fetched) == sorted(FILES)
    assert "12 files, 6.14 MB" in done.stderr
    assert re.search(r"6\.14 MB to download; the disk has [\d.]+ [GT]B free", done.stderr)
    assert "as Q4_K_M" in done.stderr


@pytest.mark.parametrize(
    ("free", "verdict"),
    [
        (9_000_000_000, "9.00 GB are free"),
        (1_000_000_000, "1.00 GB are free, too little for F16"),
        (500_000_000, "500 MB are free, too little for Q4_K_M"),
        (None, "625 MB as Q4_K_M"),
    ],
)
def test_the_memory_that_the_model_will_need_is_told(
    free: int | None,
    verdict: str,
    serve: Serve,
    phicourse: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("phicourse.memory.available_memory", lambda: free)
    hub = serve(n_weights=1_000_000_000)
    told = phicourse(hub.url, REPO).stderr.splitlines()[2]
    assert "about 2.00 GB as F16, 625 MB as Q4_K_M" in told
    assert told.endswith(verdict)


def test_other_programs_find_the_model_in_the_cache(
    serve: Serve, phicourse: Callable[..., Result], tmp_path: Path
) -> None:
    hub = serve()
    folder = folder_of(phicourse(hub.url, REPO))
    code = f"import huggingface_hub as hub; print(hub.snapshot_download({REPO!r}))"
    offline = environment(tmp_path, hub.url, HF_HUB_OFFLINE="1")
    found = subprocess.run(
        [sys.executable, "-c", code], env=offline, capture_output=True, text=True, check=True
    )
    assert Path(found.stdout.strip()) == folder


def test_a_second_time_nothing_is_fetched(
    serve: Serve, phicourse: Callable[..., Result], tmp_path: Path
) -> None:
    hub = serve()
    for where in ((), ("--to", tmp_path / "here")):
        first = folder_of(phicourse(hub.url, REPO, *where))
        hub.seen.clear()
        again = phicourse(hub.url, REPO, *where)
        assert folder_of(again) == first
        assert hub.fetched == []
        assert "all of it here" in again.stderr


def test_a_folder_of_ones_own_has_the_files_and_nothing_else(
    serve: Serve, phicourse: Callable[..., Result], tmp_path: Path
) -> None:
    hub = serve(FILES | NOT_NEEDED)
    to = tmp_path / "deep" / "here"
    assert folder_of(phicourse(hub.url, REPO, "--revision", COMMIT, "--to", to)) == to
    assert contents(to) == FILES
    assert not (tmp_path / "hf" / "hub").exists()


def test_a_file_of_the_users_is_replaced_only_when_forced(
    serve: Serve, phicourse: Callable[..., Result], tmp_path: Path
) -> None:
    hub = serve()
    folder_of(phicourse(hub.url, REPO, "--to", tmp_path / "here"))
    mine = tmp_path / "here" / "config.json"
    mine.write_bytes(FILES["config.json"].replace(b"phi3", b"mine"))
    assert "--force" in failure(phicourse(hub.url, REPO, "--to", tmp_path / "here"))
    assert b"mine" in mine.read_bytes()
    folder_of(phicourse(hub.url, REPO, "--to", tmp_path / "here", "--force"))
    assert contents(tmp_path / "here") == FILES


def test_the_address_of_the_page_will_do(
    serve: Serve, phicourse: Callable[..., Result], tmp_path: Path
) -> None:
    hub = serve()
    assert folder_of(phicourse(hub.url, f"{hub.url}/{REPO}/", "--to", tmp_path / "here")).is_dir()


def test_the_token_is_shown_to_the_hub_and_to_nobody_else(
    serve: Serve, phicourse: Callable[..., Result], tmp_path: Path
) -> None:
    hub = serve(token="hf_secret")
    folder_of(phicourse(hub.url, REPO, "--to", tmp_path / "here", token="hf_secret"))
    elsewhere = hub.requests("GET", "/cdn/")
    assert len(elsewhere) == 2
    assert all("authorization" not in {key.lower() for key in headers} for _, headers in elsewhere)


# ---- broken off ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_a_connection_that_breaks_is_taken_up_again(
    reset: bool, serve: Serve, phicourse: Callable[..., Result], tmp_path: Path
) -> None:
    hub = serve(cuts=[1_200_000, 100, 0], reset=reset)
    done = phicourse(hub.url, REPO, "--to", tmp_path / "here")
    assert contents(folder_of(done)) == FILES
    assert "going on from" in done.stderr
    assert sum("Range" in headers for _, headers in hub.requests("GET", "/cdn/")) == 3


@pytest.mark.parametrize("where", ["cache", "folder"])
def test_the_same_command_resumes_where_the_last_one_broke_off(
    where: str, serve: Serve, phicourse: Callable[..., Result], tmp_path: Path
) -> None:
    to = ("--to", tmp_path / "here") if where == "folder" else ()
    hub = serve(cuts=[2_500_000, *[0] * 20])
    line = failure(phicourse(hub.url, REPO, *to))
    assert "the same command resumes" in line
    (partial,) = tmp_path.rglob("*.incomplete")
    arrived = partial.stat().st_size
    assert 0 < arrived <= 2_500_000
    hub.cuts.clear()
    hub.seen.clear()
    assert contents(folder_of(phicourse(hub.url, REPO, *to))) == FILES
    assert hub.requests("GET", "/cdn/")[0][1]["Range"] == f"bytes={arrived}-"
    assert list(tmp_path.rglob("*.incomplete")) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_keeps_what_has_arrived(
    number: signal.Signals,
    serve: Serve,
    phicourse: Callable[..., Result],
    process: Callable[..., Process],
    tmp_path: Path,
) -> None:
    hub = serve(stall=2_500_000)
    running = process(hub.url, REPO)
    assert hub.stalled.wait(PATIENCE)
    wait_for_silence(running, tmp_path, 2_000_000)
    running.send_signal(number)
    _, stderr = running.communicate(timeout=PATIENCE)
    if number is not signal.SIGKILL:
        assert running.returncode == 1
        assert stderr.splitlines()[-1] == (
            "phicourse: interrupted; what has arrived is kept, the same command resumes"
        )
    hub.stall = None
    hub.seen.clear()
    assert contents(folder_of(phicourse(hub.url, REPO))) == FILES
    assert int(hub.requests("GET", "/cdn/")[0][1]["Range"][6:-1]) >= 2_000_000


def test_a_server_without_ranges_starts_again_and_ends_right(
    serve: Serve, phicourse: Callable[..., Result], tmp_path: Path
) -> None:
    hub = serve(cuts=[1_500_000], ignore_range=True)
    assert contents(folder_of(phicourse(hub.url, REPO, "--to", tmp_path / "here"))) == FILES


def test_two_downloads_do_not_write_the_same_files(
    serve: Serve, phicourse: Callable[..., Result], process: Callable[..., Process], tmp_path: Path
) -> None:
    hub = serve(stall=10_000)
    first = process(hub.url, REPO, "--to", tmp_path / "here")
    assert hub.stalled.wait(PATIENCE)
    assert "another download" in failure(phicourse(hub.url, REPO, "--to", tmp_path / "here"))
    first.kill()
    first.communicate()
    hub.stall = None
    assert contents(folder_of(phicourse(hub.url, REPO, "--to", tmp_path / "here"))) == FILES


# ---- what comes is not what was announced ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.json", "model-00002-of-00002.safetensors"])
def test_other_bytes_than_announced_are_thrown_away(
    name: str, serve: Serve, phicourse: Callable[..., Result], tmp_path: Path
) -> None:
    hub = serve(sent_instead={name: FILES[name][:-1] + b"?"})
    line = failure(phicourse(hub.url, REPO, "--to", tmp_path / "here"))
    assert name in line and "digest" in line
    assert name not in contents(tmp_path / "here")
    assert list(tmp_path.rglob("*.incomplete")) == []
    hub.sent_instead.clear()
    assert contents(folder_of(phicourse(hub.url, REPO, "--to", tmp_path / "here"))) == FILES


def test_more_bytes_than_announced_are_an_error(
    serve: Serve, phicourse: Callable[..., Result], tmp_path: Path
) -> None:
    hub = serve(sent_instead={"config.json": b" " * 1000})
    assert "more than the 22 bytes" in failure(phicourse(hub.url, REPO, "--to", tmp_path / "here"))


# ---- refused ---------------------------------------------------------------------------------------------


def test_a_disk_without_room_is_told_before_anything_is_fetched(
    serve: Serve, phicourse: Callable[..., Result], tmp_path: Path
) -> None:
    hub = serve(lies={"model-00001-of-00002.safetensors": 10**17})
    line = failure(phicourse(hub.url, REPO, "--to", tmp_path / "here"))
    assert "100000 TB are to come" in line
    assert "--to" in line
    assert hub.fetched == []


def test_a_disk_that_fills_up_keeps_what_has_arrived(
    serve: Serve, phicourse: Callable[..., Result], process: Callable[..., Process], tmp_path: Path
) -> None:
    """The kernel refuses to let a file grow past 2 MB: a real failed write in the middle."""
    import resource

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))

    hub = serve()
    full = process(hub.url, REPO, "--to", tmp_path / "here", preexec_fn=limit)
    line = full.communicate(timeout=PATIENCE)[1].splitlines()[-1]
    assert full.returncode == 1
    assert str(tmp_path / "here") in line
    assert "free some space" in line
    assert "the same command resumes" in line
    hub.seen.clear()
    assert contents(folder_of(phicourse(hub.url, REPO, "--to", tmp_path / "here"))) == FILES
    assert "Range" in hub.requests("GET", "/cdn/")[0][1]


def test_a_folder_that_cannot_be_made(serve: Serve, phicourse: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    line = failure(phicourse(serve().url, REPO, "--to", tmp_path / "file" / "here"))
    assert line == f"phicourse: {tmp_path / 'file' / 'here'}: Not a directory"


def test_a_repository_of_pickles_only_says_how_to_go_on(
    serve: Serve, phicourse: Callable[..., Result]
) -> None:
    hub = serve({"config.json": b"{}", "pytorch_model.bin": b"pickle"})
    line = failure(phicourse(hub.url, REPO))
    assert "pytorch_model.bin, a pickle" in line
    assert "--revision refs/pr/N" in line
    assert hub.fetched == []


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"config.json": b"{}"}, "has no model*.safetensors"),
        ({"config.json": b"{}", "tiny-Q4_K_M.gguf": b"GGUF"}, "GGUF files"),
        ({"model.safetensors": b"1"}, "config.json"),
    ],
)
def test_repositories_that_are_no_checkpoints(
    files: dict[str, bytes], expected: str, serve: Serve, phicourse: Callable[..., Result]
) -> None:
    assert expected in failure(phicourse(serve(files).url, REPO))


def test_names_that_are_not_there(serve: Serve, phicourse: Callable[..., Result]) -> None:
    hub = serve()
    assert "no such model" in failure(phicourse(hub.url, "owner/Other"))
    assert "HF_TOKEN" in failure(phicourse(hub.url, "owner/Other"))
    assert "no revision 'v9'" in failure(phicourse(hub.url, REPO, "--revision", "v9"))
    assert "no name of a model" in failure(phicourse(hub.url, "not a name"))
    assert "owner/../name" in failure(phicourse(hub.url, "owner/../name"))
    assert "owner--x/name" in failure(phicourse(hub.url, "owner--x/name"))


def test_gated_models_say_where_to_accept(
    serve: Serve, phicourse: Callable[..., Result], tmp_path: Path
) -> None:
    hub = serve(token="hf_right")
    without = failure(phicourse(hub.url, REPO))
    assert f"{hub.url}/{REPO}" in without and "HF_TOKEN" in without
    hub.gated = True
    refused = failure(phicourse(hub.url, REPO, token="hf_right"))
    assert f"{hub.url}/{REPO}" in refused and "account of your token" in refused


@pytest.mark.parametrize(
    ("behaviour", "expected"),
    [
        ({"status": 503}, "answers 503; try again later"),
        ({"status": 429}, "answers 429"),
        ({"status": 403}, "your token may not read it"),
        ({"not_a_hub": True}, "does not answer as the Hugging Face Hub does"),
        ({"lies": {"config.json": -1}}, "no size or digest of config.json"),
    ],
)
def test_a_hub_out_of_order(
    behaviour: dict[str, object], expected: str, serve: Serve, phicourse: Callable[..., Result]
) -> None:
    assert expected in failure(phicourse(serve(**behaviour).url, REPO))


# ---- without network -------------------------------------------------------------------------------------

NOWHERE = "http://127.0.0.1:9"  # the discard port: nobody listens


def test_no_network_and_nothing_here(phicourse: Callable[..., Result], tmp_path: Path) -> None:
    for to in ((), ("--to", tmp_path / "here")):
        line = failure(phicourse(NOWHERE, REPO, *to))
        assert "is not here yet" in line
        assert f"{NOWHERE} cannot be reached" in line
        assert "HF_HUB_OFFLINE" in failure(phicourse(NOWHERE, REPO, *to, offline=True))


@pytest.mark.parametrize("where", ["cache", "folder"])
def test_offline_takes_a_complete_copy_and_refuses_half_of_one(
    where: str, serve: Serve, phicourse: Callable[..., Result], tmp_path: Path
) -> None:
    to = ("--to", tmp_path / "here") if where == "folder" else ()
    hub = serve()
    folder = folder_of(phicourse(hub.url, REPO, *to))
    hub.seen.clear()
    offline = phicourse(hub.url, REPO, *to, offline=True)
    assert folder_of(offline) == folder
    assert offline.stderr == ""
    assert hub.seen == []
    unreachable = phicourse(NOWHERE, REPO, *to)
    assert folder_of(unreachable) == folder
    assert "the copy that is here is complete" in unreachable.stderr
    (folder / "model-00002-of-00002.safetensors").unlink()
    line = failure(phicourse(hub.url, REPO, *to, offline=True))
    assert "model-00002-of-00002.safetensors: missing" in line and "HF_HUB_OFFLINE" in line
