"""The command `elkimg`, a thin layer over the client.

Each command is a function listed in `app`; its signature and docstrings are its help, and it
returns the exit code. Results go to standard output, progress and errors to standard error.
"""

import os
import signal
import sys
from importlib.util import find_spec
from types import FrameType


def main() -> int:
    """Run the command and return 0, 1 after a failure, 2 for wrong usage, or 130 for Ctrl-C."""
    handled = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not under nohup
    try:
        if handled:  # while modules load, there is nothing to clean up
            signal.signal(signal.SIGINT, _exit)
        if None in (find_spec("cyclopts"), find_spec("rich")):
            sys.stderr.write('The command needs more packages: pip install "elkimg-async[cli]"\n')
            return 1
        from elkimg_async.cli.app import run

        if handled:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return run()
    except KeyboardInterrupt:  # a second one, at the end of the command
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # another one ends the process at once
        sys.stderr.write("Interrupted.\n")
        return 130


def _exit(number: int, frame: FrameType | None) -> None:
    """End the process without an exception, which an import may turn into another one."""
    os.write(sys.stderr.fileno(), b"Interrupted.\n")
    os._exit(130)
