"""The house itself: one lock, one environment file, one list of packages, and nothing outside the folder."""

import json
import re
import subprocess
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest

# conda-forge calls these packages otherwise than PyPI does
CONDA_NAMES = {"matplotlib-base": "matplotlib", "pytorch-cpu": "torch"}
MOST_BYTES = 60_000_000  # of the repository, with its history
# tools of the environment that are no Python packages of ours
CONDA_ONLY = {"python", "pip", "cxx-compiler"}


def package_name(requirement: str) -> str:
    return re.split(r"[\s<>=!~;\[@]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def locked(repository: Path) -> dict[str, str]:
    lines = (repository / "requirements.lock").read_text().splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {package_name(name): version for name, version in pins}


def project(repository: Path) -> dict[str, dict[str, object]]:
    return tomllib.loads((repository / "pyproject.toml").read_text())


def required(repository: Path) -> set[str]:
    table = project(repository)
    requirements = list(table["project"]["dependencies"]) + list(table["build-system"]["requires"])
    for extra in table["project"]["optional-dependencies"].values():
        requirements += extra
    return {package_name(requirement) for requirement in requirements} - {"phicourse"}


def test_every_package_of_pyproject_is_pinned_in_the_lock(repository: Path) -> None:
    assert required(repository) - set(locked(repository)) == set()


def test_lock_has_exact_versions_and_nothing_local(repository: Path) -> None:
    text = (repository / "requirements.lock").read_text()
    assert " @ " not in text and "file:" not in text and "://" not in text
    assert all(re.fullmatch(r"\d[\w.]*", version) for version in locked(repository).values())


def test_environment_yml_names_what_the_course_needs_and_says_why(repository: Path) -> None:
    lines = [
        line.strip()
        for line in (repository / "environment.yml").read_text().splitlines()
        if line.strip().startswith("- ") and "conda-forge" not in line and "- pip:" not in line
    ]
    names = {package_name(line[2:].split("#")[0].strip()) for line in lines}
    pypi_names = {CONDA_NAMES.get(name, name) for name in names} - CONDA_ONLY
    assert pypi_names <= set(locked(repository))
    runtime = {package_name(requirement) for requirement in project(repository)["project"]["dependencies"]}
    assert runtime <= pypi_names
    extras = project(repository)["project"]["optional-dependencies"]
    notebooks = {package_name(each) for extra in ("torch", "oracles", "lab") for each in extras[extra]}
    assert notebooks - {"phicourse"} <= pypi_names
    without_reason = [line for line in lines if "#" not in line and not line.startswith("- python>")]
    assert without_reason == []


def floors(requirements: Iterable[str]) -> dict[str, str]:
    """The lower bound of each package that has one."""
    found = (re.match(r"([\w.-]+)(?:\[.*?\])?>=([\d.]+)", requirement) for requirement in requirements)
    return {package_name(each[1]): each[2] for each in found if each}


def test_environment_yml_and_pyproject_ask_for_the_same_versions_and_the_lock_has_them(
    repository: Path,
) -> None:
    table = project(repository)
    wanted = [*table["project"]["dependencies"], *table["build-system"]["requires"]]
    for extra in table["project"]["optional-dependencies"].values():
        wanted += extra
    wanted.append(f"cmake{table['tool']['scikit-build']['cmake']['version']}")
    ours = floors(wanted)
    text = (repository / "environment.yml").read_text()
    conda = floors(line.strip().removeprefix("- ") for line in text.splitlines())
    conda = {CONDA_NAMES.get(name, name): floor for name, floor in conda.items()}
    assert len(conda) > 15
    assert conda == {name: ours[name] for name in conda}
    pins = locked(repository)
    for name, floor in ours.items():
        assert version(pins[name]) >= version(floor), name


def version(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def tracked_text(repository: Path) -> list[tuple[Path, str]]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=repository,
        capture_output=True,
        check=True,
    )
    found = []
    for name in listed.stdout.decode().split("\0"):
        path = repository / name
        if (
            name
            and path.is_file()
            and path.suffix in {".md", ".ipynb", ".py", ".cpp", ".hpp", ".txt", ".json"}
        ):
            found.append((path, path.read_text(encoding="utf-8")))
    return found


def test_no_path_of_a_machine_and_no_widget_state(repository: Path) -> None:
    machine_path = re.compile(r"(?:^|[\"'\s(=])/(?:root|work|home|tmp|Users)/\w")
    for path, text in tracked_text(repository):
        if "tests" not in path.parts:
            assert machine_path.search(text) is None, path
        assert "application/vnd.jupyter.widget-state+json" not in text or path == Path(__file__), path


def test_the_repository_stays_small(repository: Path) -> None:
    """What somebody fetches who clones it, all commits, and what then lies in the folder."""
    history = subprocess.run(
        ["git", "rev-list", "--objects", "--disk-usage", "HEAD"],
        cwd=repository,
        capture_output=True,
        text=True,
        check=True,
    )
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=repository, capture_output=True, check=True)
    files = [repository / name for name in listed.stdout.decode().split("\0") if name]
    on_disk = sum(path.stat().st_size for path in files if path.is_file())
    assert int(history.stdout) + on_disk < MOST_BYTES


@pytest.mark.parametrize(
    "target",
    [
        *("run", "lab", "test", "test-browser", "student", "solved", "train", "clean"),
        *("bench", "bench-convert", "bench-quantize", "bench-notebooks"),
    ],
)
def test_make_knows_the_target(repository: Path, target: str) -> None:
    planned = subprocess.run(["make", "--dry-run", target], cwd=repository, capture_output=True, text=True)
    assert planned.returncode == 0, planned.stderr
    assert "phicourse:" in planned.stdout


def test_the_readme_of_phi_tiny_has_the_numbers_of_its_training(repository: Path) -> None:
    training = json.loads((repository / "data" / "phi-tiny-training.json").read_text(encoding="utf-8"))
    text = " ".join((repository / "data" / "README.md").read_text(encoding="utf-8").split())
    for said in (
        f"**{training['heldout_bits_per_byte']:.3f} bits per byte** "
        f"({training['heldout_bits_per_byte_long_factors']:.3f} with the long factors throughout)",
        f"the {training['heldout_stories']:,} TinyStories",
        f"{training['parameters']:,} weights in BF16",
        f"{training['minutes']:.0f} minutes",
        f"{training['steps']:,} steps, {training['tokens'] / 1e6:.1f} million tokens",
    ):
        assert said in text
