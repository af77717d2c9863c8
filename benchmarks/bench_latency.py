"""Batch calls: client CPU, wall time, and the time from the last byte to the image."""

from .lab import Lab

TITLE = "Batch calls: CPU and latency"


def run(lab: Lab) -> None:
    lab.measure("latency", ["a1-tls", "a32-tls", "b-tls", "b8-tls", "c-tls"], "cpu")
    lab.measure("latency", ["a1", "a32", "a256", "b", "b8", "c"], "cpu")
    lab.measure("latency", ["b-tls", "d-tls", "b", "d"], "handoff")
