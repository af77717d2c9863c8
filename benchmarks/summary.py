"""Summarize samples: medians over rounds, and ratios within a round."""

import statistics
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from .contenders import BARE, HANDWRITTEN, OPENAI, PYREQWEST
from .lab import Sample
from .targets import TARGETS, Target

REFERENCES = (OPENAI, PYREQWEST, HANDWRITTEN, BARE)


class Key(NamedTuple):
    """A cell of a table."""

    topic: str
    scenario: str
    metric: str
    contender: str


class Spread(NamedTuple):
    """A median over rounds, with minimum and maximum."""

    median: float
    low: float
    high: float
    rounds: int


class Figure(NamedTuple):
    """The value of a cell, and its ratio to each reference in the same rounds."""

    value: Spread
    ratios: dict[str, Spread]


class Verdict(NamedTuple):
    """A target and its measured value."""

    target: Target
    reached: Spread

    @property
    def met(self) -> bool:
        return self.reached.median <= self.target.limit


def summarize(samples: Iterable[Sample]) -> dict[Key, Figure]:
    """Return every measured cell, in the order of the samples."""
    cells: dict[Key, dict[int, float]] = defaultdict(dict)
    for sample in samples:
        for metric, value in sample.values.items():
            key = Key(sample.topic, sample.scenario, metric, sample.contender)
            cells[key][sample.round] = value
    return {
        key: Figure(
            spread(rounds.values()),
            {
                reference: spread(ratios)
                for reference in REFERENCES
                if (ratios := _ratios(rounds, cells.get(key._replace(contender=reference), {})))
            },
        )
        for key, rounds in cells.items()
    }


def number(value: float) -> str:
    """Format with three significant digits, without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def spread(values: Iterable[float]) -> Spread:
    listed = list(values)
    return Spread(statistics.median(listed), min(listed), max(listed), len(listed))


def _ratios(rounds: dict[int, float], reference: dict[int, float]) -> list[float]:
    return [value / reference[number] for number, value in rounds.items() if reference.get(number)]


def verdicts(figures: dict[Key, Figure]) -> list[Verdict]:
    """Return the targets that this run measured."""
    found = []
    for target in TARGETS:
        key = Key(target.topic, target.scenario, target.metric, target.contender)
        figure = figures.get(key)
        if figure is None:
            continue
        reached = figure.value if target.against is None else figure.ratios.get(target.against)
        if reached is not None:
            found.append(Verdict(target, reached))
    return found


def failures(samples: Iterable[Sample]) -> dict[tuple[str, str, str], str]:
    """Return what was not measured: scenario, contender and meter, with the last error."""
    return {
        (sample.scenario, sample.contender, sample.meter): sample.error
        for sample in samples
        if sample.error is not None
    }
