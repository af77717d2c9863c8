"""Three hundred calls, thirty-two at a time."""

from .lab import Lab

TITLE = "Fan-out"


def run(lab: Lab) -> None:
    lab.measure("fanout", ["fanout"], "cpu")
