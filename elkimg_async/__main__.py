"""Run the command `elkimg`, or print the API with `python -m elkimg_async docs`."""

import sys

if __name__ == "__main__":
    if sys.argv[1:] == ["docs"]:
        from elkimg_async.docs import markdown

        sys.stdout.buffer.write(markdown().encode())
    else:
        from elkimg_async.cli import main

        sys.exit(main())
