"""Streams: client CPU for a few large events and for many small ones."""

from .lab import Lab

TITLE = "Streams: CPU"


def run(lab: Lab) -> None:
    lab.measure("stream", ["d", "e"], "cpu")
