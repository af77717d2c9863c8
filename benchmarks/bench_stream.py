"""Streams: client CPU for few large and for many small events."""

from .lab import Lab

TITLE = "Streams: CPU"


def run(lab: Lab) -> None:
    lab.measure("stream", ["d-tls", "d", "e"], "cpu")
