"""How people write sizes, of files as of memory: read and written."""

import re

from phicourse.errors import PhiCourseError

_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,15})?) ?([KMGT]?)(I?)B?", re.ASCII | re.IGNORECASE)
_EXPONENTS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def parse_size(text: str) -> int:
    """Return the bytes of a size such as 6GB, 5.5 GiB, 2G or 123456; units with an i are powers of 1,024.

    raises   PhiCourseError where it is none
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None or (match[3] and not match[2]):
        raise PhiCourseError(f"{text[:40]!r} is no size: write it as 500M, 6GB or 5.5GiB")
    unit: int = (1024 if match[3] else 1000) ** _EXPONENTS[match[2].upper()]
    return round(float(match[1]) * unit)


def size_text(n_bytes: int) -> str:
    """Write a size for people: `4.71 MB`, `12.3 GB`; decimal units, three digits."""
    value, units = float(n_bytes), ["B", "kB", "MB", "GB", "TB"]
    while value >= 999.5 and len(units) > 1:
        value /= 1000
        del units[0]
    digits = 0 if units[0] == "B" else max(0, 2 - (value >= 9.995) - (value >= 99.95))
    return f"{value:.{digits}f} {units[0]}"
