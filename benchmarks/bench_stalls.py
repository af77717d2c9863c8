"""The longest time for which one call keeps the event loop from everybody else."""

from .lab import Lab

TITLE = "Loop stalls"


def run(lab: Lab) -> None:
    lab.measure("stalls", ["b", "c", "d"], "stall")
