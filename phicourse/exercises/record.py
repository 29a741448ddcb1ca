"""What the learner has tried and solved: in memory, and in a small file that outlives the kernel.

The file is out/progress.json in the course's folder, which git ignores. What was solved once stays solved, also
after the stub is back. PHICOURSE_PROGRESS names another file; empty, it means none, for runs that nobody learns
from.
"""

import json
import os
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

_MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class Attempts:
    """How often an exercise was tried, not counting stubs, and whether one try was right."""

    tries: int = 0
    solved: bool = False


_attempts: dict[str, Attempts] = {}


def note(id: str, solved: bool) -> None:
    """Count a try."""
    before = attempts().get(id, Attempts())
    _attempts[id] = replace(before, tries=before.tries + 1, solved=before.solved or solved)
    path = _path()
    if path is not None:
        _save(path)


def attempts() -> dict[str, Attempts]:
    """Return what was tried by id, now and in earlier kernels."""
    path = _path()
    for id, saved in (_load(path) if path is not None else {}).items():
        mine = _attempts.get(id, Attempts())
        _attempts[id] = Attempts(max(mine.tries, saved.tries), mine.solved or saved.solved)
    return dict(_attempts)


def forget() -> None:
    """Begin anew, in memory and in the file."""
    _attempts.clear()
    path = _path()
    if path is not None:
        path.unlink(missing_ok=True)


def out_folder() -> Path | None:
    """Return the folder out/ of the course, made where it is missing; None outside of the course."""
    here = Path.cwd()  # of a notebook: its folder
    course = next(
        (folder for folder in (here, *here.parents) if (folder / "data" / "phi-tiny").is_dir()), None
    )
    if course is None:
        return None
    (course / "out").mkdir(exist_ok=True)
    return course / "out"


def _path() -> Path | None:
    chosen = os.environ.get("PHICOURSE_PROGRESS")
    if chosen is not None:
        return Path(chosen) if chosen else None
    out = out_folder()
    return None if out is None else out / "progress.json"


def _load(path: Path) -> dict[str, Attempts]:
    """Read the file; one that is missing or that nobody of us wrote counts as empty."""
    try:
        document = json.loads(path.read_text(encoding="utf-8")) if path.stat().st_size < _MAX_BYTES else None
    except (OSError, ValueError, RecursionError):
        return {}
    entries = document.items() if isinstance(document, dict) else ()
    return {id: Attempts(entry["tries"], entry["solved"]) for id, entry in entries if _is_attempts(entry)}


def _is_attempts(entry: object) -> bool:
    return isinstance(entry, dict) and type(entry.get("tries")) is int and type(entry.get("solved")) is bool


def _save(path: Path) -> None:
    """Write the file beside its place, then move it there; a learner whose disk is full goes on without it."""
    text = json.dumps({id: asdict(tried) for id, tried in sorted(_attempts.items())}, indent=1)
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(text + "\n", encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        print(f"phicourse: {path.name} was not saved ({error.strerror})", file=sys.stderr)
