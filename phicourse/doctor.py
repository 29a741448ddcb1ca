"""`phicourse doctor`: is everything here that the course needs, and if not, what to do."""

import os
import platform
import shutil
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from phicourse.memory import available_memory
from phicourse.sizes import size_text

MIN_MEMORY = 1 << 30
MIN_DISK = 1 << 30
RUNTIME = ("numpy", "huggingface-hub", "jinja2", "matplotlib", "pyyaml", "regex", "tqdm", "typer")
LAB = ("torch", "ipywidgets", "jupyterlab", "llama-cpp-python", "transformers")


@dataclass(frozen=True)
class Check:
    """One line of the report: what was looked at, whether it will do, what was found, what to do if not."""

    name: str
    ok: bool
    found: str
    advice: str = ""

    def as_dict(self) -> dict[str, object]:
        """The fields of `phicourse doctor --json`."""
        return asdict(self)


def examine(folder: Path | None = None) -> list[Check]:
    """Run all checks; `folder`: where models are looked for and free space is measured (the current one)."""
    folder = folder or Path.cwd()
    return [
        check_python(),
        *(check_package(name) for name in RUNTIME),
        check_lab(),
        check_native(),
        check_compiler(),
        check_memory(),
        check_disk(folder),
        *check_models(folder),
    ]


def report(checks: list[Check]) -> str:
    """The checks as lines for a terminal."""
    lines = []
    for check in checks:
        lines.append(f"{'[OK]  ' if check.ok else '[FAIL]'} {check.name}: {check.found}")
        if not check.ok:
            lines.append(f"       {check.advice}")
    return "\n".join(lines)


def check_python() -> Check:
    """Python 3.11 or newer."""
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return Check("Python", sys.version_info >= (3, 11), found, "install Python 3.11 or newer")


def check_package(name: str) -> Check:
    """A package that the toolchain cannot do without."""
    found = installed(name)
    return Check(name, found is not None, found or "missing", f"pip install {name}")


def check_lab() -> Check:
    """Packages of the notebooks; the toolchain works without them."""
    missing = [name for name in LAB if installed(name) is None]
    found = (
        "all here"
        if not missing
        else f"without {', '.join(missing)} (only the notebooks need them: make lab)"
    )
    return Check("course packages", True, found)


def installed(name: str) -> str | None:
    """The version of an installed package, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def check_native() -> Check:
    """The compiled engine, and the instruction set that it chose."""
    from phicourse.generate.backends import native_module

    native = native_module()
    if native is None:
        return Check(
            "engine",
            False,
            "not built; NumPy and torch do all the work, slowly",
            "make run (needs a C++ compiler)",
        )
    try:
        return Check("engine", True, f"{native.isa()}, of {', '.join(native.isas())}")
    except RuntimeError as error:
        return Check(
            "engine",
            False,
            str(error),
            "unset PHICOURSE_ISA, or set it to an instruction set of this machine",
        )


def check_compiler() -> Check:
    """A C++ compiler; only needed to build the engine."""
    from phicourse.generate.backends import native_module

    candidates = (os.environ.get("CXX"), "c++", "g++", "clang++", "cl")
    compiler = next((path for name in candidates if name and (path := shutil.which(name))), None)
    if compiler is None and native_module() is not None:
        return Check("compiler", True, "none, and none needed: the engine is built")
    return Check("compiler", compiler is not None, compiler or "none", "install g++ 11 or clang 14, or newer")


def check_memory() -> Check:
    """Enough memory for phi-tiny and the notebooks."""
    free = available_memory()
    if free is None:
        return Check("memory", True, "unknown on this system")
    return Check(
        "memory", free >= MIN_MEMORY, f"{size_text(free)} free", "close other programs: 1 GB is needed"
    )


def check_disk(folder: Path) -> Check:
    """Room for a few models."""
    free = shutil.disk_usage(folder).free
    return Check(
        "disk", free >= MIN_DISK, f"{size_text(free)} free in {folder}", "free some space: 1 GB is needed"
    )


def check_models(folder: Path) -> list[Check]:
    """phi-tiny of this repository, and every GGUF file of the folder."""
    from phicourse.errors import PhiCourseError
    from phicourse.gguf import GGUFFile

    checks = [check_phi_tiny()]
    for path in sorted(folder.glob("*.gguf")):
        try:
            with GGUFFile.open(path) as file:
                found = f"{len(file.tensors)} tensors, {size_text(file.size)}"
            checks.append(Check(path.name, True, found))
        except PhiCourseError as error:
            checks.append(Check(path.name, False, str(error), "download or convert it again"))
    return checks


def check_phi_tiny() -> Check:
    """The embedded model; an installed package without the repository has none."""
    from phicourse.checkpoint import Checkpoint
    from phicourse.errors import PhiCourseError

    folder = Path(__file__).resolve().parent.parent / "data" / "phi-tiny"
    if not folder.parent.is_dir():
        return Check("phi-tiny", True, "not part of an installation; it comes with the repository")
    try:
        return Check("phi-tiny", True, f"{len(Checkpoint.open(folder).tensors)} tensors")
    except (PhiCourseError, OSError) as error:
        return Check("phi-tiny", False, str(error), "git checkout -- data/phi-tiny")
