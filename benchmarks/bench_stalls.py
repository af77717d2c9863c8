"""The longest time for which one call blocks the event loop."""

from .lab import Lab

TITLE = "Loop stalls"


def run(lab: Lab) -> None:
    lab.measure("stalls", ["b-tls", "c-tls", "d-tls", "b", "c", "d"], "stall")
