"""How much memory this machine has left."""

from pathlib import Path


def available_memory() -> int | None:
    """Bytes of memory that a new program can have, or None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        values = {key: int(rest.split()[0]) for key, rest in (line.split(":", 1) for line in lines)}
        return values["MemAvailable"] * 1024
    except (OSError, KeyError, ValueError, IndexError):
        return None
