"""Looking for a real Phi: what is found, what it needs, and what takes its place."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants

from phicourse.checkpoint import local_phi
from phicourse.checkpoint.local_phi import find_phi, needs_of_mini
from phicourse.convert import convert

MINI = "models--microsoft--Phi-3.5-mini-instruct"


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A machine with an empty cache, 16 GB of memory and 100 GB of disk, all free."""
    free = SimpleNamespace(memory=16 * 10**9, disk=100 * 10**9, cache=tmp_path / "hub")
    monkeypatch.delenv(local_phi.VARIABLE, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(free.cache))
    monkeypatch.setattr(local_phi, "available_memory", lambda: free.memory)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free.disk))
    return free


@pytest.fixture
def cached(phi_tiny: Path, machine: SimpleNamespace) -> Path:
    """A checkpoint where the Hub's library keeps Phi-3.5-mini."""
    (machine.cache / MINI / "refs").mkdir(parents=True)
    (machine.cache / MINI / "refs" / "main").write_text("c0ffee")
    return Path(shutil.copytree(phi_tiny, machine.cache / MINI / "snapshots" / "c0ffee"))


def test_without_a_real_phi_it_says_what_one_needs_and_takes_the_small_one(phi_tiny: Path) -> None:
    found = find_phi(phi_tiny, ".")
    assert (found.path, found.is_real) == (phi_tiny, False)
    assert str(found) == (
        "PHICOURSE_MODEL is not set, and the Hub's cache has no Phi-3.5-mini; "
        "it would need 3.00 GB of memory and 2.40 GB of disk: phi-tiny takes its place."
    )


def test_the_file_of_phi_3_5_mini_is_as_large_as_notebook_09_counts() -> None:
    assert needs_of_mini().disk == pytest.approx(2.40e9, rel=0.005)


def test_a_checkpoint_in_the_hubs_cache_is_found_without_a_network(cached: Path, phi_tiny: Path) -> None:
    found = find_phi(phi_tiny, ".")
    assert (found.path, found.is_real) == (cached, True)
    assert found.why.startswith("Phi-3.5-mini-instruct needs 603 MB of memory and 2.80 MB of disk, and both")


def test_of_gguf_files_in_the_cache_the_smallest_is_taken(machine: SimpleNamespace, phi_tiny: Path) -> None:
    folder = machine.cache / "models--someone--Phi-3.5-mini-instruct-GGUF" / "snapshots" / "c0ffee"
    folder.mkdir(parents=True)
    convert(phi_tiny, folder / "a-f32.gguf", "f32", progress=False)
    small = convert(phi_tiny, folder / "b-f16.gguf", "f16", progress=False)
    found = find_phi(phi_tiny, ".")
    assert (found.path, found.is_real) == (small, True)
    assert "and 0 B of disk" in found.why


def test_the_variable_comes_first(
    cached: Path, tmp_path: Path, phi_tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = convert(phi_tiny, tmp_path / "mine.gguf", "f16", progress=False)
    monkeypatch.setenv(local_phi.VARIABLE, str(mine))
    assert find_phi(phi_tiny, ".").path == mine


@pytest.mark.parametrize(("what", "says"), [("memory", "500 MB of memory"), ("disk", "1.00 MB of disk")])
def test_what_does_not_fit_is_not_tried(
    what: str, says: str, cached: Path, phi_tiny: Path, machine: SimpleNamespace
) -> None:
    setattr(machine, what, {"memory": 500_000_000, "disk": 1_000_000}[what])
    found = find_phi(phi_tiny, ".")
    assert (found.path, found.is_real) == (phi_tiny, False)
    assert f"only {says} are free" in found.why


def test_memory_that_the_system_does_not_tell_is_taken_for_enough(
    cached: Path, phi_tiny: Path, machine: SimpleNamespace
) -> None:
    machine.memory = None
    assert find_phi(phi_tiny, ".").is_real


@pytest.mark.parametrize("content", [None, b"no model", b"GGUF" + bytes(3)])
def test_what_is_no_model_is_named_and_not_used(
    content: bytes | None, tmp_path: Path, phi_tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "phi.gguf"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setenv(local_phi.VARIABLE, str(path))
    found = find_phi(phi_tiny, ".")
    assert (found.path, found.is_real) == (phi_tiny, False)
    assert found.why.startswith("phi.gguf cannot be used (")


def test_a_download_that_broke_off_is_not_used(cached: Path, phi_tiny: Path) -> None:
    weights = cached / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    found = find_phi(phi_tiny, ".")
    assert not found.is_real and "Phi-3.5-mini-instruct cannot be used" in found.why
