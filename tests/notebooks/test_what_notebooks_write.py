"""Notebooks write into out/notebook-NN of the course and nowhere else, and need no edit and no wish of a machine."""

import ast
import json
import os
import re
import shutil
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))
QUICK = ("00", "02")  # seconds; the others are held by what stands in them
ELSEWHERE = re.compile(r"^(/\w|~|[A-Za-z]:\\|\.\./(?!data|out/notebook-\d\d|native/src)|\.\.$)")
FOLDERS = ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "MPLCONFIGDIR", "IPYTHONDIR", "HF_HOME")
# Python tells such a hook of every file that is opened, made or moved, whatever library does it.
WATCH = """
import os as _os, sys as _sys
_written = set()
def _watch(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        mode, flags = arguments[1] or "", arguments[2] or 0
        if set(mode) & set("wax+") or flags & (_os.O_WRONLY | _os.O_RDWR | _os.O_CREAT):
            _written.add(_os.path.realpath(_os.fsdecode(arguments[0])))
    elif event in ("os.rename", "os.mkdir", "os.link", "os.symlink"):
        _written.add(_os.path.realpath(_os.fsdecode(arguments[event != "os.mkdir"])))
_sys.addaudithook(_watch)
"""
TELL = "import json as _json; print(_json.dumps(sorted(_written)))"


def code_of(path: Path) -> str:
    """All code of a notebook, without IPython's own lines, the cell for Colab and C++ or shell in strings."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    return "\n".join("".join(cell["source"]) for cell in code if "set-up" not in cell["metadata"].get("tags", []))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_cell_names_a_place_outside_the_course(path: Path) -> None:
    tree = ast.parse(code_of(path))
    texts = [
        node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    assert [text for text in texts if ELSEWHERE.match(text) and "\n" not in text and " " not in text] == []
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not names & {"tempfile", "expanduser", "home", "input", "getpass"}
    folders = {text for text in texts if text.startswith("../out")}
    assert folders <= {f"../out/notebook-{path.name[:2]}"}


@pytest.mark.parametrize("number", QUICK)
def test_a_run_writes_into_its_folder_and_nowhere_else(
    number: str, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    course, home = tmp_path / "course", tmp_path / "home"
    shutil.copytree(repository / "notebooks", course / "notebooks")
    (course / "data").symlink_to(repository / "data")
    home.mkdir()
    for name in (*FOLDERS, "HOME", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(home))
    monkeypatch.setenv("PHICOURSE_PROGRESS", "")
    monkeypatch.delenv("PHICOURSE_MODEL", raising=False)
    path = next((course / "notebooks").glob(f"{number}_*.ipynb"))
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(WATCH))
    notebook.cells.append(nbformat.v4.new_code_cell(TELL))
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(path.parent)}}).execute()
    written = json.loads(notebook.cells[-1].outputs[0].text)
    ours = (str((course / "out").resolve()), str(home.resolve()), os.devnull)
    assert any(f"{os.sep}notebook-{number}{os.sep}" in name for name in written)
    assert [name for name in written if not name.startswith(ours)] == []
