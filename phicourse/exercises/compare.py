"""Holds what came against what was expected, and names the first place where they differ."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phicourse.exercises.exercise import Mistake

_AROUND = 8  # bytes that are shown of a difference
_NOTHING = "a function without `return` gives None"
_TRUTHS = "True or False for each: that is what a comparison gives"


def compare_values(where: str, expected: Any, got: Any, likely: str = "") -> Mistake | None:
    """Compare two plain values, of the same type or two numbers; NumPy's count as Python's."""
    plain = got.item() if isinstance(got, np.generic) else got
    kind = type(expected)
    if isinstance(plain, kind) and not (isinstance(plain, bool) and kind is int) and plain == expected:
        return None
    return Mistake(where, repr(expected), repr(got), _NOTHING if got is None else likely)


def compare_arrays(where: str, expected: NDArray[Any], got: Any, likely: str = "") -> Mistake | None:
    """Compare shape, then type, then each number bit for bit (NaN is NaN)."""
    if not isinstance(got, np.ndarray):
        return Mistake(where, "an array", repr(got), _NOTHING if got is None else "")
    if got.shape != expected.shape:
        return Mistake(f"{where}: the shape", str(expected.shape), str(got.shape), likely)
    if got.dtype != expected.dtype:
        if expected.dtype == bool:
            likely = _TRUTHS
        return Mistake(f"{where}: the type of the numbers", str(expected.dtype), str(got.dtype), likely)
    different = np.argwhere(~np.equal(expected, got) & ~((expected != expected) & (got != got)))
    if not len(different):
        return None
    first = tuple(different[0].tolist())
    place = f"{where}: {len(different):,} of {expected.size:,} numbers differ, the first at {list(first)}"
    return Mistake(place, f"{expected[first]:.9g}", f"{got[first]:.9g}", likely)


def compare_close(
    where: str, expected: NDArray[Any], got: Any, tolerance: float, likely: str = ""
) -> Mistake | None:
    """Compare shape, then each number: it may differ by `tolerance` times the largest one that is expected."""
    if not isinstance(got, np.ndarray):
        return Mistake(where, "an array", type(got).__name__, _NOTHING if got is None else "")
    if got.shape != expected.shape:
        return Mistake(f"{where}: the shape", str(expected.shape), str(got.shape), likely)
    allowed = tolerance * np.abs(expected).max(initial=0)
    with np.errstate(invalid="ignore"):  # infinity less infinity
        different = np.argwhere(~(np.abs(expected - got) <= allowed))  # NaN is different, too
    if not len(different):
        return None
    first = tuple(different[0].tolist())
    place = f"{where}: {len(different):,} of {expected.size:,} numbers differ, the first at {list(first)}"
    return Mistake(place, f"{expected[first]:.6g}", f"{got[first]:.6g}", likely)


def recognise(got: Any, wrong: Mapping[str, NDArray[Any]], tolerance: float = 0.0) -> str:
    """Return the explanation whose wrong array is the one that came; empty where none is."""
    if not isinstance(got, np.ndarray) or got.dtype.kind not in "biuf":
        return ""
    numbers = got.astype(np.float64)  # truth values can be subtracted then, too
    matches = (
        text
        for text, array in wrong.items()
        if compare_close("", array.astype(np.float64), numbers, tolerance) is None
    )
    return next(matches, "")


def first_difference(expected: bytes, got: bytes) -> int | None:
    """Return the first byte at which two byte strings differ, also by one of them ending; None if nowhere."""
    if expected == got:
        return None
    pairs = enumerate(zip(expected, got, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(expected), len(got)))


def show_bytes(raw: bytes, at: int) -> str:
    """Show some bytes from a place on, and how many there are in all."""
    shown = raw[at : at + _AROUND].hex(" ") or "nothing"
    return f"{shown}{' …' if at + _AROUND < len(raw) else ''}   ({len(raw):,} bytes in all)"


def compare_bytes(where: str, expected: bytes, got: Any, likely: str = "") -> Mistake | None:
    """Compare byte strings."""
    if not isinstance(got, bytes):
        return Mistake(where, "bytes", repr(got), _NOTHING if got is None else 'b"".join(parts) makes bytes')
    at = first_difference(expected, got)
    if at is None:
        return None
    return Mistake(f"{where}: byte {at:,}", show_bytes(expected, at), show_bytes(got, at), likely)
