"""What a new user does first: clone, `make run`. It downloads packages and compiles, so it runs in CI or on request."""

import os
import subprocess
from pathlib import Path

import pytest

wanted = os.environ.get("CI") or os.environ.get("PHICOURSE_FRESH_CLONE")


@pytest.mark.timeout(1200)
@pytest.mark.skipif(
    not wanted, reason="takes minutes and downloads packages; PHICOURSE_FRESH_CLONE=1 runs it"
)
def test_make_run_in_a_fresh_clone_with_an_empty_home(repository: Path, tmp_path: Path) -> None:
    clone, home = tmp_path / "clone", tmp_path / "home"
    home.mkdir()
    subprocess.run(["git", "clone", "--quiet", str(repository), str(clone)], check=True)
    kept = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "LANG"))}
    kept.pop("PIP_CACHE_DIR", None)
    environment = {"HOME": str(home), "PATH": os.environ["PATH"], "CI": "", **kept}
    environment["PATH"] = ":".join(
        folder for folder in os.environ["PATH"].split(":") if not folder.startswith(str(repository))
    )
    run = subprocess.run(["make", "run"], cwd=clone, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "could not be built" not in run.stderr
    assert {path.name for path in (clone / "out").iterdir()} == {
        "phi-tiny-F16.gguf",
        "phi-tiny-Q4_K_M.gguf",
        "demo.png",
    }
    assert list(home.iterdir()) == []
    status = subprocess.run(
        ["git", "status", "--porcelain"], cwd=clone, capture_output=True, text=True, check=True
    )
    assert status.stdout == ""
