"""The commands, and what becomes of what they raise."""

import sys

from cyclopts import App, CycloptsError, Parameter

from elkimg_async import __version__, errors
from elkimg_async.cli.batch import batch
from elkimg_async.cli.edit import edit
from elkimg_async.cli.generate import generate
from elkimg_async.cli.models import models
from elkimg_async.cli.report import ERR, plain, sentence
from elkimg_async.cli.serve import serve
from elkimg_async.cli.studio import studio

COMMANDS = (generate, edit, batch, models, serve, studio)


def run() -> int:
    """Run the command that the arguments name; returns its exit code."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        code = _app()(exit_on_error=False, print_error=False, result_action="return_value")
    except KeyboardInterrupt:
        problem, code = "Interrupted.", 130
    except CycloptsError as error:
        problem, code = f"{error} See elkimg --help.", 2
    except (errors.ElkImagesError, OSError, OverflowError) as error:
        problem, code = sentence(error), 1
    else:
        return code or 0
    ERR.print(plain(problem), soft_wrap=True)
    return code


def _app() -> App:
    app = App(
        name="elkimg",
        help="Make images from text with ElkAPI, or any server that speaks OpenAI's image API.",
        version=__version__,
        default_parameter=Parameter(negative=(), show_default=False),
        suppress_keyboard_interrupt=False,
    )
    for command in COMMANDS:
        app.command(command)
    return app
