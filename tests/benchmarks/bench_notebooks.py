"""Seconds and memory of every notebook, printed and written into the table of README.md.

   python tests/benchmarks/bench_notebooks.py [--strict] [NUMBER ...]

Each notebook runs from top to bottom in a kernel of its own and is not saved. Seconds go from the start of the kernel
to the end of the last cell. Memory is the most that the kernel had resident (VmHWM, Linux); programs that it starts
are not in it. With numbers, such as 02 07, only those are run, and the other rows stay as they are.
"""

import argparse
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from side_by_side import REPOSITORY, say

README = REPOSITORY / "README.md"
BEGIN, END = "<!-- notebooks -->", "<!-- end of notebooks -->"
HEAD = "| | | you build | minutes | core | runs in | memory |\n| --- | --- | --- | --: | --: | --: | --: |"
MOST_SECONDS, MOST_MEMORY = 90, 1.5e9
CELL_TIMEOUT = 600  # seconds


@dataclass(frozen=True)
class Run:
    """What one notebook took: seconds, bytes."""

    seconds: float
    memory: int

    @property
    def is_too_much(self) -> bool:
        """Whether it is above what the course promises."""
        return self.seconds > MOST_SECONDS or self.memory > MOST_MEMORY

    def __str__(self) -> str:
        return f"{self.seconds:.0f} s | {self.memory / 1e6:,.0f} MB"


def most_memory(pid: int) -> int:
    """The most bytes that a process had resident."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) * 1024


def run(path: Path) -> Run:
    """Run a notebook as Jupyter does: in its folder, without saving it."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, timeout=CELL_TIMEOUT, resources={"metadata": {"path": str(path.parent)}}
    )
    start = time.perf_counter()
    with client.setup_kernel():
        for number, cell in enumerate(notebook.cells):
            client.execute_cell(cell, number)
        return Run(time.perf_counter() - start, most_memory(client.km.provisioner.pid))


def title_of(path: Path) -> str:
    """The title that the first cell of a notebook gives."""
    return re.match(r"# \d\d · (.*)", nbformat.read(path, as_version=4).cells[0].source)[1]


def cells_of(table: str) -> dict[str, list[str]]:
    """The rows that the README has, by the number of the notebook.

    What one builds is written there by hand, the minutes by `phicourse.exercises.timetable`.
    """
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    return {row[0]: row for row in rows if row and row[0].isdigit()}


def row(path: Path, old: list[str], measured: Run | None) -> str:
    """One line of the table."""
    told = " | ".join(old[2:5]) or "– | 0 | 0"
    numbers = str(measured) if measured else " | ".join(old[5:7]) or "– | –"
    return f"| {path.name[:2]} | [{title_of(path)}](notebooks/{path.name}) | {told} | {numbers} |"


def write_table(readme: Path, paths: list[Path], runs: dict[str, Run]) -> str:
    """Put the table between its two marks; what stands around it stays."""
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    table, mark, behind = rest.partition(END)
    if not mark:
        sys.exit(f"{readme.name}: the table of notebooks belongs between {BEGIN} and {END}")
    old = cells_of(table)
    lines = [row(path, old.get(path.name[:2], []), runs.get(path.name[:2])) for path in paths]
    table = "\n".join([HEAD, *lines])
    readme.write_text(f"{before}{BEGIN}\n{table}\n{END}{behind}", encoding="utf-8")
    return table


def main() -> None:
    """Measure, write, and say what is too much."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "numbers", nargs="*", help="of notebooks, such as 02; all of them where none is given"
    )
    parser.add_argument("--strict", action="store_true", help="fail where a notebook takes too much")
    arguments = parser.parse_args()
    paths = sorted((REPOSITORY / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    runs = {}
    for path in paths:
        if not arguments.numbers or path.name[:2] in arguments.numbers:
            runs[path.name[:2]] = run(path)
            say(f"  {path.name}: {runs[path.name[:2]]}")
    print(write_table(README, paths, runs))
    over = [number for number, measured in runs.items() if measured.is_too_much]
    if over:
        print(f"more than {MOST_SECONDS} s or {MOST_MEMORY / 1e9} GB: {', '.join(over)}")
    sys.exit(bool(over) and arguments.strict)


if __name__ == "__main__":
    main()
