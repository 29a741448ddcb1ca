"""The doctor says what is missing and what to do."""

import json
import re
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from phicourse import doctor
from phicourse.cli import app


def test_report_marks_every_line_and_advises_on_failures() -> None:
    checks = [doctor.Check("Python", True, "3.12"), doctor.Check("disk", False, "full", "free some space")]
    assert doctor.report(checks).splitlines() == [
        "[OK]   Python: 3.12",
        "[FAIL] disk: full",
        "       free some space",
    ]


def test_examine_looks_at_all_that_is_promised(tmp_path: Path) -> None:
    names = [check.name for check in doctor.examine(tmp_path)]
    for name in ("Python", "numpy", "course packages", "engine", "compiler", "memory", "disk", "phi-tiny"):
        assert name in names


def test_what_is_needed_is_what_gets_installed(repository: Path) -> None:
    """A package that `make run` does not install must not be called missing after it."""
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    assert {re.match(r"[\w-]+", text)[0] for text in project["dependencies"]} == set(doctor.RUNTIME)  # type: ignore[index]


def test_broken_model_files_are_found(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF")
    (bad,) = [check for check in doctor.check_models(tmp_path) if check.name == "bad.gguf"]
    assert not bad.ok
    assert "again" in bad.advice


def test_a_missing_package_fails_with_the_command_to_install_it() -> None:
    check = doctor.check_package("no-such-package-of-ours")
    assert not check.ok
    assert "pip install" in check.advice


def test_a_missing_engine_and_a_wrong_isa_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    class Native:
        def isa(self) -> str:
            raise RuntimeError("PHICOURSE_ISA=mmx is unknown")

    monkeypatch.setattr("phicourse.generate.backends.native_module", lambda: None)
    assert not doctor.check_native().ok
    monkeypatch.setattr("phicourse.generate.backends.native_module", Native)
    assert "mmx" in doctor.check_native().found


def test_too_little_memory_and_disk_fail(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "available_memory", lambda: 1 << 20)
    assert not doctor.check_memory().ok
    monkeypatch.setattr(doctor, "available_memory", lambda: None)
    assert doctor.check_memory().ok
    monkeypatch.setattr(doctor, "MIN_DISK", 1 << 80)
    assert not doctor.check_disk(tmp_path).ok


@pytest.mark.parametrize("ok", [True, False])
def test_the_verb_prints_json_and_fails_when_something_is_missing(
    ok: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "examine", lambda: [doctor.Check("engine", ok, "x", "y")])
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert json.loads(result.stdout) == [{"name": "engine", "ok": ok, "found": "x", "advice": "y"}]
    assert result.exit_code == (0 if ok else 1)
    assert ("not ready: engine" in result.stderr) is not ok
