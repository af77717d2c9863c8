"""Peak memory of one call above its images."""

from .lab import Lab

TITLE = "Peak memory"


def run(lab: Lab) -> None:
    lab.measure("memory", ["b-tls", "c-tls", "d-tls", "b", "c", "d"], "memory")
