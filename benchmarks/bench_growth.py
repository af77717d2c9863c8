"""Growth of the cost: events of 0.1 to 64 MB, responses of 1 to 10 images."""

from collections import defaultdict

from .lab import Lab, Sample
from .scenarios import EVENT_MEGABYTES, IMAGE_COUNTS, count_name, event_name

TITLE = "Growth with size and number"
SMALL, LARGE = event_name(1), event_name(64)
COMPARED = "64 MB to 1 MB"


def run(lab: Lab) -> None:
    lab.measure("growth", [event_name(size) for size in EVENT_MEGABYTES], "cpu")
    for sample in per_byte(lab.samples):
        lab.add(sample)
    lab.measure("growth", [count_name(count) for count in IMAGE_COUNTS], "cpu")


def per_byte(samples: list[Sample]) -> list[Sample]:
    """Return the cost per byte of the largest event, relative to that of a 1 MB event."""
    costs: dict[tuple[str, int], dict[str, float]] = defaultdict(dict)
    for sample in samples:
        if sample.scenario in (SMALL, LARGE) and "cpu_ms_per_mb" in sample.values:
            key = sample.contender, sample.round
            costs[key][sample.scenario] = sample.values["cpu_ms_per_mb"]
    return [
        Sample(
            "growth", "cpu", COMPARED, contender, number, {"growth_x": cost[LARGE] / cost[SMALL]}
        )
        for (contender, number), cost in costs.items()
        if len(cost) == 2
    ]
