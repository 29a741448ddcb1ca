"""Other editions of the notebooks: for students, without solutions; solved; and with the repository's address.

    python -m phicourse.exercises.variants student|solved|address

Cells are found by their tags: stub-01.2, check-01.2, hint-01.2 and solution-01.2 belong to exercise 01.2,
`opening` is the first cell and `set-up` the one that prepares Colab. A solution is written once, in the folded
Markdown cell of its exercise; the solved edition has its lines in the place of the stub.
"""

import json
import re
import sys
import tomllib
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

from phicourse.errors import PhiCourseError

Notebook = dict[str, Any]
_CODE = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_OPEN_IN = "Open it in "
_REPOSITORY = re.compile(r'^REPOSITORY = ".*?"', re.MULTILINE)
_KEPT = "nbval-check-output"  # such outputs are the same in every edition


def tagged(notebook: Notebook, kind: str) -> dict[str, dict[str, Any]]:
    """Return the cells of a kind, such as "stub", by exercise."""
    cells = {}
    for cell in notebook["cells"]:
        for tag in cell["metadata"].get("tags", []):
            name, _, id = tag.partition("-")
            if name == kind and id:
                cells[id] = cell
    return cells


def source(cell: dict[str, Any]) -> str:
    """Return the text of a cell."""
    return "".join(cell["source"])


def solutions(notebook: Notebook) -> dict[str, str]:
    """Return the code of each solution by exercise."""
    codes = {}
    for id, cell in tagged(notebook, "solution").items():
        found = _CODE.findall(source(cell))
        if len(found) != 1:
            raise PhiCourseError(
                f"the solution of exercise {id} must have one block of Python, not {len(found)}"
            )
        codes[id] = found[0].rstrip("\n")
    return codes


def student(notebook: Notebook) -> Notebook:
    """Return the notebook without solutions and outputs."""
    edition = _without_outputs(notebook, keep=False)
    hidden = [cell["id"] for cell in tagged(notebook, "solution").values()]
    edition["cells"] = [cell for cell in edition["cells"] if cell["id"] not in hidden]
    return edition


def solved(notebook: Notebook) -> Notebook:
    """Return the notebook with every exercise solved; outputs that are compared stay."""
    edition = _without_outputs(notebook, keep=True)
    codes = solutions(notebook)
    for id, cell in tagged(edition, "stub").items():
        cell["source"] = codes[id].splitlines(keepends=True)
    return edition


def _without_outputs(notebook: Notebook, keep: bool) -> Notebook:
    edition = deepcopy(notebook)
    for cell in edition["cells"]:
        if cell["cell_type"] == "code" and not (keep and _KEPT in cell["metadata"].get("tags", [])):
            cell["outputs"], cell["execution_count"] = [], None
    return edition


def with_address(notebook: Notebook, path: str, address: str | None) -> Notebook:
    """Return the notebook with links that open it in Binder and Colab; without them where there is no address.

    path     of the notebook in the repository
    address  of the repository, https://github.com/OWNER/NAME
    """
    edition = deepcopy(notebook)
    for cell in edition["cells"]:
        tags = cell["metadata"].get("tags", [])
        if "opening" in tags:
            lines = [line for line in source(cell).splitlines() if not line.startswith(_OPEN_IN)]
            text = "\n".join(lines).rstrip("\n")
            cell["source"] = (text + _links(path, address)).splitlines(keepends=True)
        if "set-up" in tags:
            cell["source"] = _REPOSITORY.sub(f'REPOSITORY = "{address or ""}"', source(cell)).splitlines(
                keepends=True
            )
    return edition


def _links(path: str, address: str | None) -> str:
    if address is None:
        return ""
    name = address.removeprefix("https://github.com/")
    binder = f"https://mybinder.org/v2/gh/{name}/HEAD?labpath={path.replace('/', '%2F')}"
    colab = f"https://colab.research.google.com/github/{name}/blob/HEAD/{path}"
    return f"\n\n{_OPEN_IN}[Binder]({binder}) or [Colab]({colab})."


def repository_address(pyproject: Path) -> str | None:
    """Return the address under [project.urls] in pyproject.toml, the only place that has it; None without one."""
    urls = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"].get("urls", {})
    address: str | None = urls.get("Repository")
    if address is not None and not re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+", address):
        raise PhiCourseError(f"{pyproject}: {address!r} is no address like https://github.com/OWNER/NAME")
    return address


def write_editions(root: Path, edition: str) -> list[Path]:
    """Write an edition beside notebooks/; a student's file that is there already stays.

    The solved edition has only the notebooks that have something to solve.
    """
    make: dict[str, Callable[[Notebook], Notebook]] = {"student": student, "solved": solved}
    folder = root / edition
    folder.mkdir(exist_ok=True)
    written = []
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        target = folder / path.name
        if edition == "student" and target.exists():
            print(f"phicourse: {edition}/{path.name} is there already and stays; remove it to have it anew")
            continue
        notebook = read_notebook(path)
        if edition == "solved" and not tagged(notebook, "stub"):
            continue
        write_notebook(target, make[edition](notebook))
        written.append(target)
    return written


def write_address(root: Path) -> None:
    """Put the repository's address into every notebook."""
    address = repository_address(root / "pyproject.toml")
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        before = read_notebook(path)
        after = with_address(before, f"notebooks/{path.name}", address)
        if after != before:
            write_notebook(path, after)


def read_notebook(path: Path) -> Notebook:
    """Read a notebook as plain values."""
    notebook: Notebook = json.loads(path.read_text(encoding="utf-8"))
    return notebook


def write_notebook(path: Path, notebook: Notebook) -> None:
    """Write a notebook as Jupyter does."""
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    """Do what the command line asks for, in the current folder."""
    edition = sys.argv[1] if len(sys.argv) == 2 else ""
    if edition == "address":
        write_address(Path.cwd())
    elif edition in ("student", "solved"):
        write_editions(Path.cwd(), edition)
    else:
        sys.exit("phicourse: python -m phicourse.exercises.variants student|solved|address")


if __name__ == "__main__":
    main()
