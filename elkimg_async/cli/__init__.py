"""The command `elkimg`, a thin layer over the client.

Each command is a function listed in `app`; its signature and docstrings are its help, and it
returns the exit code. Results go to standard output, progress and errors to standard error.
"""

import sys
from importlib.util import find_spec


def main() -> int:
    """Run the command and return 0, 1 after a failure, 2 for wrong usage, or 130 for Ctrl-C."""
    if None in (find_spec("cyclopts"), find_spec("rich")):
        sys.stderr.write('The command needs more packages: pip install "elkimg-async[cli]"\n')
        return 1
    try:
        from elkimg_async.cli.app import run
    except KeyboardInterrupt:  # these imports take most of the time until the first request
        sys.stderr.write("Interrupted.\n")
        return 130
    return run()
