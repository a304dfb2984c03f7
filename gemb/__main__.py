"""`gemb`, and `python -m gemb`: Ctrl-C is quiet even while the command is being imported."""

import os
import signal
from typing import NoReturn


def main() -> NoReturn:
    """Run `gemb`."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # else the parent process ignores it
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(130))
    from gemb.cli import main as run

    signal.signal(signal.SIGINT, before)
    run()


if __name__ == "__main__":
    main()
