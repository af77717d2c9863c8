"""`elkimg models`."""

from __future__ import annotations

import datetime
from typing import Annotated

import anyio
from cyclopts import Parameter
from rich import box
from rich.table import Table

from elkimg_async import Model
from elkimg_async.cli.options import Connection
from elkimg_async.cli.report import ERR, OUT, Report, plain


def models(
    *,
    all: bool = False,
    connection: Annotated[Connection, Parameter(name="*", group="Server")] = Connection(),
) -> int:
    """List the models of the server that make images.

    Where the server does not tell them apart, all are listed. The API key is read from the environment
    variable ELKAPI_API_KEY.

    Args:
        all: List the others as well.
    """
    connection.check()

    async def ask() -> list[Model]:
        async with connection.client(Report()) as client:
            return await client.models()

    found = anyio.run(ask)
    listed = [model for model in found if all or model.is_image is not False]
    table = Table(box=box.SIMPLE_HEAD if OUT.is_terminal else None, pad_edge=False)
    for name in ("model", "images", "owner", "since"):
        table.add_column(name, overflow="fold" if name == "model" else "ellipsis")
    for model in listed:
        table.add_row(plain(model.id), _word(model), plain(model.owned_by or "-"), _since(model))
    if listed:
        OUT.print(table, width=None if OUT.is_terminal else 10_000, crop=False)
    if left_out := len(found) - len(listed):
        ERR.print(f"{left_out} models that make no images are left out; --all lists them.")
    return 0


def _word(model: Model) -> str:
    return "-" if model.is_image is None else "yes" if model.is_image else "no"


def _since(model: Model) -> str:
    if model.created is None:
        return "-"
    try:
        return str(datetime.datetime.fromtimestamp(model.created, datetime.UTC).date())
    except (ValueError, OverflowError, OSError):
        return "-"
