"""The targets: limits that every run is checked against."""

from typing import NamedTuple

from .bench_growth import COMPARED
from .contenders import BARE, HANDWRITTEN, OPENAI, OUR_FAST, OUR_MAP, OURS, PYREQWEST


class Target(NamedTuple):
    """A limit of a metric, or of its ratio to another contender."""

    topic: str
    scenario: str
    metric: str
    against: str | None
    limit: float
    contender: str = OURS


def _cpu(topic: str, scenario: str, of_openai: float, of_bare: float) -> tuple[Target, Target]:
    return (
        Target(topic, scenario, "cpu_ms", OPENAI, of_openai),
        Target(topic, scenario, "cpu_ms", BARE, of_bare),
    )


def _tls(topic: str, scenario: str) -> tuple[Target, Target, Target]:
    return (
        Target(topic, scenario, "cpu_ms", OPENAI, 0.15),
        Target(topic, scenario, "cpu_ms", PYREQWEST, 1.5),
        Target(topic, scenario, "cpu_ms", PYREQWEST, 1.1, OUR_FAST),
    )


TARGETS = (
    *_tls("latency", "b-tls"),
    *_tls("latency", "b8-tls"),
    *_tls("stream", "d-tls"),
    Target("latency", "a32-tls", "cpu_ms", HANDWRITTEN, 1.15),
    Target("stalls", "b-tls", "stall_ms", None, 3.0),
    Target("stalls", "c-tls", "stall_ms", None, 3.0),
    Target("stalls", "d-tls", "stall_ms", None, 3.0),
    Target("memory", "b-tls", "above_x", None, 0.5),
    Target("memory", "c-tls", "above_x", None, 0.17),
    *_cpu("latency", "a1", 0.20, 1.15),
    *_cpu("latency", "a32", 0.13, 1.15),
    *_cpu("latency", "a256", 0.10, 1.15),
    *_cpu("latency", "b", 0.13, 1.05),
    *_cpu("latency", "c", 0.16, 1.00),
    *_cpu("stream", "d", 0.08, 1.00),
    *_cpu("stream", "e", 0.08, 1.8),
    Target("fanout", "fanout", "cpu_ms", OPENAI, 0.12),
    Target("fanout", "fanout", "cpu_ms", OPENAI, 0.12, OUR_MAP),
    Target("memory", "b", "above_x", None, 1.0),
    Target("memory", "c", "above_x", None, 0.2),
    Target("memory", "d", "above_x", None, 0.3),
    Target("stalls", "b", "stall_ms", None, 2.0),
    Target("stalls", "c", "stall_ms", None, 4.0),
    Target("stalls", "d", "stall_ms", None, 3.0),
    Target("latency", "b", "handoff_ms", None, 1.5),
    Target("latency", "d", "handoff_ms", None, 1.5),
    Target("growth", COMPARED, "growth_x", None, 1.3),
    Target("imports", "import", "import_ms", BARE, 0.3),
    Target("imports", "import client", "import_ms", BARE, 1.4),
    Target("imports", "first call", "import_ms", BARE, 1.15),
    Target("imports", "footprint", "distributions", None, 13),
    Target("imports", "footprint", "installed_mb", None, 14),
)
