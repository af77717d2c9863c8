"""Three hundred calls for large answers, and twenty thousand for small ones, thirty-two at a time."""

from .lab import Lab

TITLE = "Fan-out"


def run(lab: Lab) -> None:
    lab.measure("fanout", ["fanout", "fanout-small"], "cpu")
