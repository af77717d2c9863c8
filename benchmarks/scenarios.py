"""The scenarios: a response, the number of requests, and how many run at a time."""

from dataclasses import dataclass, replace

from .responses import Spec

MIB = 1 << 20
MEGABYTE = 1_000_000
EVENT_MEGABYTES = (0.1, 1, 4, 16, 64)
IMAGE_COUNTS = (1, 2, 5, 10)


@dataclass(frozen=True)
class Scenario:
    """One row of the tables."""

    name: str
    title: str
    spec: Spec
    requests: int
    concurrency: int = 1
    fan_out: bool = False
    tls: bool = False

    @property
    def streaming(self) -> bool:
        return self.spec.kind == "stream"

    def count(self, quick: bool) -> int:
        """Return the number of requests; about a third of it for a quick run."""
        return max(2, self.concurrency, self.requests // 3) if quick else self.requests


def event_name(megabytes: float) -> str:
    return f"event-{megabytes:g}MB"


def count_name(count: int) -> str:
    return f"n-{count}"


def _event(megabytes: float) -> Scenario:
    # Megabytes of base64 on the wire; the decoded image has three quarters of them.
    size = int(megabytes * MEGABYTE) // 4 * 3
    requests = max(2, min(100, round(60 / megabytes)))
    title = f"stream, one event of {megabytes:g} MB"
    return Scenario(event_name(megabytes), title, Spec("stream", 1, size), requests)


def _several(count: int) -> Scenario:
    title = f"JSON, n = {count}, 2 MiB each"
    return Scenario(count_name(count), title, Spec("json", count, 2 * MIB), max(3, 20 // count))


def _with_tls(scenario: Scenario) -> Scenario:
    return replace(scenario, name=f"{scenario.name}-tls", title=f"{scenario.title}, TLS", tls=True)


_ALL = (
    Scenario("a1", "(a) small JSON with a URL, concurrency 1", Spec("url"), 300),
    Scenario("a32", "(a) small JSON with a URL, concurrency 32", Spec("url"), 640, 32),
    Scenario("a256", "(a) small JSON with a URL, concurrency 256", Spec("url"), 1024, 256),
    Scenario("b", "(b) JSON, one 2 MiB image", Spec("json", 1, 2 * MIB), 30),
    Scenario("b8", "(b) JSON, one 2 MiB image, concurrency 8", Spec("json", 1, 2 * MIB), 48, 8),
    Scenario("c", "(c) JSON, ten 2 MiB images", Spec("json", 10, 2 * MIB), 6),
    Scenario("d", "(d) stream, four 2 MiB events", Spec("stream", 4, 2 * MIB), 8),
    Scenario("e", "(e) stream, fifty 10 KB events", Spec("stream", 50, 10_000), 40),
    Scenario("fanout", "300 x (b), concurrency 32", Spec("json", 1, 2 * MIB), 300, 32, True),
    Scenario("fanout-small", "20,000 x (a), concurrency 32", Spec("url"), 20_000, 32, True),
    *map(_event, EVENT_MEGABYTES),
    *map(_several, IMAGE_COUNTS),
)

WITH_TLS = ("a1", "a32", "b", "b8", "c", "d")
SCENARIOS = {scenario.name: scenario for scenario in _ALL}
SCENARIOS |= {f"{name}-tls": _with_tls(SCENARIOS[name]) for name in WITH_TLS}
