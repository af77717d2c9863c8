"""Batch calls: client CPU, wall time, and the time from the last byte to the image."""

from .lab import Lab

TITLE = "Batch calls: CPU and latency"


def run(lab: Lab) -> None:
    lab.measure("latency", ["a1", "a32", "a256", "b", "c"], "cpu")
    lab.measure("latency", ["b", "d"], "handoff")
