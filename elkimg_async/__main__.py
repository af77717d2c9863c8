"""`python -m elkimg_async` is the command `elkimg`."""

import sys

from elkimg_async.cli import main

if __name__ == "__main__":
    sys.exit(main())
