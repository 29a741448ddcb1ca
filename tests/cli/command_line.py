"""The type of the fixture that runs the command line."""

import subprocess
from collections.abc import Callable

Phicourse = Callable[..., "subprocess.CompletedProcess[str]"]
