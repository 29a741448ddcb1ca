"""One look for the progress bars of everything that moves bytes."""

import sys
from typing import Any

from tqdm import tqdm


def byte_bar(total: int, enabled: bool = True) -> "tqdm[Any]":
    """Make a bar over `total` bytes, on standard error, that appears after a second.

    It is drawn only where somebody can see it move: in a terminal or a notebook. A log file gets nothing.
    """
    drawn = enabled and sys.stderr is not None and (sys.stderr.isatty() or "ipykernel" in sys.modules)
    return tqdm(total=total, unit="B", unit_scale=True, delay=1, disable=not drawn, file=sys.stderr)
