"""`phicourse` and `python -m phicourse`: the command line, which is quiet about Ctrl-C also while it is loaded."""

import os
import signal
from types import FrameType


def main() -> None:
    """The console script `phicourse`."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where the shell has it ignored
        signal.signal(signal.SIGINT, leave)
    from phicourse.cli import main

    main()


def leave(number: int, frame: FrameType | None) -> None:
    """End at once: nothing has begun."""
    os.write(2, b"phicourse: interrupted\n")
    os._exit(1)


if __name__ == "__main__":
    main()
