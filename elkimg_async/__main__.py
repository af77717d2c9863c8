"""`python -m elkimg_async` is the command `elkimg`; with `docs`, which needs no extra, it prints the surface."""

import sys

if __name__ == "__main__":
    if sys.argv[1:] == ["docs"]:
        from elkimg_async.docs import markdown

        sys.stdout.buffer.write(markdown().encode())
    else:
        from elkimg_async.cli import main

        sys.exit(main())
