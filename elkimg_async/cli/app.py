"""The commands of `elkimg`, their help, and exit codes for what they raise."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from cyclopts import App, CycloptsError, Group, Parameter

from elkimg_async import __version__, errors
from elkimg_async.cli import batch, images, models, serve, studio
from elkimg_async.cli.console import (
    OUT,
    UsageError,
    discard_output,
    prepare_streams,
    say,
    sentence,
)

_EXIT_CODES = """\
Exit codes:
  0    all done
  1    something failed
  2    wrong usage, settings or input; nothing was sent
  130  interrupted with Ctrl-C"""
_ENVIRONMENT = """\
Environment:
  ELKAPI_API_KEY   your API key; not needed with --local
  ELKAPI_BASE_URL  address of the server, up to and including /v1
  ELKAPI_MODEL     default of --model"""
_EPILOGUE = f"""\
Examples:
  elkimg generate "A small kitten" --local   (no API key needed)
  elkimg generate "A small kitten" -o kitten.png
  elkimg edit kitten.png "Add a red hat" -o hat.png
  elkimg batch prompts.csv -o images
  elkimg generate --help                     (all options of a command)

{_ENVIRONMENT}

{_EXIT_CODES}"""


class Command(NamedTuple):
    """A subcommand: its function, how it is called, and examples."""

    function: Callable[..., Any]
    usage: str
    examples: str


_COMMANDS = (
    Command(images.generate, "generate PROMPT... [OPTIONS]", images.GENERATE_EXAMPLES),
    Command(images.edit, "edit IMAGE... PROMPT [OPTIONS]", images.EDIT_EXAMPLES),
    Command(batch.batch, "batch FILE [OPTIONS]", batch.EXAMPLES),
    Command(models.models, "models [OPTIONS]", models.EXAMPLES),
    Command(serve.serve, "serve [OPTIONS]", serve.EXAMPLES),
    Command(studio.studio, "studio [OPTIONS]", studio.EXAMPLES),
)


class _App(App):
    def generate_completion(self, **options: Any) -> str:
        """Return the script for a shell; in bash, bash itself completes the names of files."""
        script = super().generate_completion(**options)
        # `compgen -f` splits names at spaces, and adds a space after those of folders. Where the
        # function offers nothing, `-o default` has bash complete files as for any other command.
        script = script.replace('COMPREPLY=( $(compgen -f -- "${cur}") )', "COMPREPLY=()")
        return script.replace("complete -F ", "complete -o default -F ")


def run() -> int:
    """Run the command that the arguments name and return its exit code."""
    prepare_streams()
    code = 0
    try:
        code = _run()
        OUT.file.flush()
    except BrokenPipeError:  # the reader of a pipe, such as head, has exited
        discard_output()
        return 1
    except OSError as error:  # a full disk, for instance
        discard_output()
        if code == 0:
            say(_describe(error))
        return code or 1
    return code


def _run() -> int:
    try:
        code = _call()
    except KeyboardInterrupt:
        problem, code = "Interrupted.", 130
    except CycloptsError as error:
        problem, code = f"{error} See elkimg --help.", 2
    except UsageError as error:
        problem, code = str(error), 2
    except BrokenPipeError:
        raise
    except OSError as error:
        problem, code = _describe(error), 1
    except (errors.ConfigurationError, errors.InvalidRequestError, errors.JournalError) as error:
        problem, code = sentence(error), 2  # commands report those of requests themselves
    except (errors.ElkImagesError, OverflowError) as error:
        problem, code = sentence(error), 1
    else:
        return code or 0
    say(problem)
    return int(code)


def _describe(error: OSError) -> str:
    if not error.strerror:
        return sentence(error)
    return f"{error.filename}: {error.strerror}." if error.filename else f"{error.strerror}."


def _call() -> Any:
    """Run the command, and raise an expected error of its tasks without the group around it."""
    try:
        return _app()(exit_on_error=False, print_error=False, result_action="return_value")
    except BaseExceptionGroup as group:
        if group.split((errors.ElkImagesError, OSError))[1] is not None:
            raise
        error: BaseException = group.subgroup(BrokenPipeError) or group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None


def _app() -> App:
    app = _App(
        name="elkimg",
        usage="Usage: elkimg COMMAND [OPTIONS]",
        help="Generate and edit images with ElkAPI or any server with OpenAI's image API.",
        help_format="plaintext",
        help_epilogue=_EPILOGUE,
        version=__version__,
        version_flags=("--version", "-V"),
        default_parameter=Parameter(negative=(), show_default=False),
        suppress_keyboard_interrupt=False,
        group_commands=Group("Commands", sort_key=0),
        group_parameters=Group("Options", sort_key=1),
    )
    for command in _COMMANDS:
        examples = "\n".join(f"  {line}" for line in command.examples.split("\n"))
        command.function.__doc__ = _unfold(command.function.__doc__ or "")
        app.command(
            command.function,
            usage=f"Usage: elkimg {command.usage}",
            help_epilogue=f"Examples:\n{examples}\n\n{_ENVIRONMENT}\n\n{_EXIT_CODES}",
        )
    app.register_install_completion_command(help="Install completion for bash, zsh or fish.")
    return app


def _unfold(docstring: str) -> str:
    """Join the lines of each paragraph, since the help keeps line breaks of the source."""
    text = re.sub(r"(?<=\S)\n(?=\S)", " ", inspect.cleandoc(docstring))
    return re.sub(r"(?<=\S)\n {8,}(?=\S)", " ", text)
