"""`elkimg models`."""

from __future__ import annotations

import datetime
from typing import Annotated

from cyclopts import Parameter

from elkimg_async import Model
from elkimg_async.cli import interrupts
from elkimg_async.cli.console import count, plain, print_json, print_table
from elkimg_async.cli.options import CONNECTION, SHOW, Connection, Display

EXAMPLES = """\
elkimg models
elkimg models --all --json"""


def models(
    *,
    all: bool = False,
    display: Annotated[Display, Parameter(name="*", group="Display")] = SHOW,
    connection: Annotated[Connection, Parameter(name="*", group="Server")] = CONNECTION,
) -> int:
    """List the server's image models.

    Args:
        all: List the other models as well.
        display: What is printed.
        connection: Where requests go.
    """
    display.check()
    connection.check()

    async def fetch() -> list[Model]:
        async with connection.client(say=display.say) as client:
            return await client.models()

    found = interrupts.run(fetch)
    listed = [model for model in found if all or model.is_image is not False]
    if display.json:
        for model in listed:
            print_json(_model_fields(model))
    elif not display.quiet:
        _print(listed)
    hidden = len(found) - len(listed)
    if not listed:
        advice = "; --all lists them" if hidden else ""
        display.say(f"The server lists {count(hidden, 'model')}, none for images{advice}.")
    elif hidden:
        display.say(f"{count(hidden, 'model')} for other purposes not shown; --all lists them.")
    return 0


def _print(listed: list[Model]) -> None:
    columns = ["model", "images", "owner", "since"]
    rows = [
        [plain(model.id), _word(model), plain(model.owned_by or "-"), _since(model) or "-"]
        for model in listed
    ]
    shutdowns = [model.shutdown_date for model in listed]
    if any(shutdowns):
        columns.append("until")
        for row, date in zip(rows, shutdowns, strict=True):
            row.append(plain(date or "-"))
    print_table(columns, rows)


def _model_fields(model: Model) -> dict[str, object]:
    return {
        "model": model.id,
        "images": model.is_image,
        "owner": model.owned_by,
        "since": _since(model),
        "until": model.shutdown_date,
    }


def _word(model: Model) -> str:
    """Return whether a model creates images, "-" if the server does not say."""
    return "-" if model.is_image is None else "yes" if model.is_image else "no"


def _since(model: Model) -> str | None:
    if model.created is None:
        return None
    try:
        return str(datetime.datetime.fromtimestamp(model.created, datetime.UTC).date())
    except (ValueError, OverflowError, OSError):
        return None
