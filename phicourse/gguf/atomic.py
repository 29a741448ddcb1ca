"""Output files that appear whole or not at all: written beside their target, flushed, then renamed."""

import errno
import glob
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from phicourse.errors import GGUFError

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def atomic_output(path: Path | str, force: bool = False, inputs: Iterable[Path] = ()) -> Iterator[Path]:
    """Give the path of a temporary file beside `path`; rename it to `path` when the block ends well.

    The caller writes the temporary file. Whatever exception ends the block, an interrupt included, removes it
    and leaves `path` as it was. Raises GGUFError where `path` exists and not `force`, where it is one of the
    `inputs`, whatever `force` says, where the folder is missing or not writable, and where the disk is full.
    """
    with atomic_outputs([Path(path)], force, inputs) as (temporary,):
        yield temporary


@contextmanager
def atomic_outputs(
    paths: Sequence[Path], force: bool = False, inputs: Iterable[Path] = ()
) -> Iterator[list[Path]]:
    """Do as `atomic_output` for several files: when the block ends well they appear together, the first one last.

    All are on the disk before the first is renamed. A reader that opens a set by its first file finds all or none.
    """
    inputs, temporaries = list(inputs), []
    try:
        targets = [check_target(path, force, inputs) for path in paths]
        with ExitStack() as stack:
            for target in targets:
                temporaries.append(_temporary_path(target))
                stack.enter_context(_temporary_file(temporaries[-1]))
            yield temporaries
            for temporary in temporaries:
                _flush(temporary)
            for path in paths:
                check_target(path, force)
            for temporary, target in reversed(list(zip(temporaries, targets, strict=True))):
                os.replace(temporary, target)
            with suppress(OSError):  # the files are there; some file systems cannot flush the list of names
                _flush(targets[0].parent)
    except GGUFError as error:  # a writer inside that is atomic, too, knows nothing but the temporary files
        raise GGUFError(_with_targets(str(error), temporaries, paths)) from error
    except OSError as error:
        # Any other OSError comes from the caller's own reading and is theirs to explain.
        if error.errno in _NO_ROOM or error.filename in map(str, temporaries):
            raise GGUFError(f"{paths[0]}: cannot be written ({error.strerror})") from error
        raise


def _with_targets(message: str, temporaries: Sequence[Path], paths: Sequence[Path]) -> str:
    """Name the files that the caller knows."""
    for temporary, path in zip(temporaries, paths, strict=False):
        message = message.replace(str(temporary), str(path))
    return message


def _temporary_path(target: Path) -> Path:
    """Name a temporary file beside the target, and remove those that killed programs have left there."""
    for left in target.parent.glob(f".{glob.escape(target.name[:60])}.*.partial"):
        with suppress(OSError), left.open("rb+") as file:  # of another user, or gone meanwhile
            if _lock(file.fileno()):
                left.unlink()
    return target.with_name(f".{target.name[:60]}.{secrets.token_hex(4)}.partial")


@contextmanager
def _temporary_file(path: Path) -> Iterator[None]:
    """Make an empty file, keep it locked, so that other programs see that it is in use, and remove it at the end."""
    handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
    try:
        _lock(handle)
        yield
    finally:
        os.close(handle)
        path.unlink(missing_ok=True)


def _lock(handle: int) -> bool:
    """Lock an open file until it is closed, or its program ends; say whether it was free."""
    if fcntl is None:
        return True  # Windows: a file that is open there cannot be removed, which says the same
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # in use, or on a file system without locks
        return False
    return True


def check_target(path: Path, force: bool, inputs: Iterable[Path] = ()) -> Path:
    """Return the path behind all links, if a file may be written there."""
    target = Path(os.path.realpath(path))
    try:
        is_there = target.exists()
    except OSError as error:
        raise GGUFError(f"{path}: cannot be written ({error.strerror})") from error
    if not target.parent.is_dir():
        raise GGUFError(f"{path}: the folder {target.parent} does not exist")
    if is_there and not target.is_file():
        raise GGUFError(f"{path}: is a folder or a device, not a file")
    if is_there and any(target.samefile(file) for file in inputs):
        raise GGUFError(f"{path}: is an input, too; give the output another name")
    if is_there and not force:
        raise GGUFError(f"{path}: exists already; --force (force=True) replaces it")
    return target


def _flush(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folders
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
