"""What the local server records of a request."""

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from elkimg_async.local.faults import Fault

Outcome = Literal["open", "answered", "cut", "disconnected"]


class ReceivedRequest(msgspec.Struct, kw_only=True, eq=False):
    """One request that the server received.

    `headers` has names in lower case, and Authorization without its value. `query` has the
    parameters of the URL. `fields` are those of a JSON body or of a form, with `filename`, `type`
    and `size` for each of its files. `fault` is the injected one, or None. `outcome` is `open`
    while the server works on it, then `answered`, `cut` (a fault ended it) or `disconnected` (the
    client left first).
    """

    method: str
    path: str
    query: Mapping[str, str] = {}
    headers: Mapping[str, str]
    request_id: str
    fields: dict[str, Any] = {}
    fault: Fault | None = None
    outcome: Outcome = "open"
