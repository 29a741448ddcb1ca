"""How much memory this machine has left, and how people write amounts of it."""

import re
from pathlib import Path

from phicourse.errors import GenerateError

_AMOUNT = re.compile(r"(\d+(?:\.\d+)?) ?([KMGT]?)(I?)B?", re.IGNORECASE)
_EXPONENTS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def available_memory() -> int | None:
    """Bytes of memory that a new program can have, or None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        values = {key: int(rest.split()[0]) for key, rest in (line.split(":", 1) for line in lines)}
        return values["MemAvailable"] * 1024
    except (OSError, KeyError, ValueError, IndexError):
        return None


def parse_memory(text: str) -> int:
    """Return the bytes of an amount such as 6GB, 6 GiB, 1.5G or 800M; units with an i are powers of 1,024.

    raises   GenerateError where it is none
    """
    match = _AMOUNT.fullmatch(text.strip())
    if match is None or (match[3] and not match[2]):
        raise GenerateError(f"{text[:40]!r} is no amount of memory: write it as 6GB, 5.5GiB or 800M")
    unit: int = (1024 if match[3] else 1000) ** _EXPONENTS[match[2].upper()]
    return round(float(match[1]) * unit)


def memory_text(n_bytes: int) -> str:
    """Write an amount for people: `4.71 MB`, `12.3 GB`; decimal units, three digits."""
    value, units = float(n_bytes), ["B", "kB", "MB", "GB", "TB"]
    while value >= 999.5 and len(units) > 1:
        value /= 1000
        del units[0]
    digits = 0 if units[0] == "B" else max(0, 2 - (value >= 9.995) - (value >= 99.95))
    return f"{value:.{digits}f} {units[0]}"
