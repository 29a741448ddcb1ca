"""Whether widgets can live here."""

import os
import sys
from importlib.util import find_spec


def is_live() -> bool:
    """Say whether a kernel runs that a browser talks to, and ipywidgets is installed.

    PHICOURSE_STATIC=1 says no: saved outputs then hold the static twin, which needs no kernel to be seen.
    """
    wanted = os.environ.get("PHICOURSE_STATIC", "") in ("", "0")
    return wanted and "ipykernel" in sys.modules and find_spec("ipywidgets") is not None
