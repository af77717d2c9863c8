"""300 calls with large responses and 20,000 with small ones, 32 at a time."""

from .lab import Lab

TITLE = "Fan-out"


def run(lab: Lab) -> None:
    lab.measure("fanout", ["fanout", "fanout-small"], "cpu")
