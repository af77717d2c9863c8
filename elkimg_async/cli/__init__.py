"""The command `elkimg`, a thin layer over the client.

Each command is a function listed in `app`; its signature and docstrings are its help, and it
returns the exit code. Results go to standard output, progress and errors to standard error.
"""

import signal
import sys
from importlib.util import find_spec


def main() -> int:
    """Run the command and return 0, 1 after a failure, 2 for wrong usage, or 130 for Ctrl-C."""
    try:
        if None in (find_spec("cyclopts"), find_spec("rich")):
            sys.stderr.write('The command needs more packages: pip install "elkimg-async[cli]"\n')
            return 1
        from elkimg_async.cli.app import run

        return run()
    except KeyboardInterrupt:  # while the command was imported, or a second time during its end
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # another one ends the process at once
        sys.stderr.write("Interrupted.\n")
        return 130
