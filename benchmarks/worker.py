"""One contender, one scenario, one meter: `python -m benchmarks.worker`, started by `lab.py`.

The last line of its output is a JSON object: `{"values": {…}}`, or `{"error": "…"}`.
"""

import argparse
import asyncio
import importlib
import importlib.metadata
import json
import sys
from collections.abc import Callable
from typing import Any

from . import meters
from .client import Client, Contender, Take
from .contenders import CONTENDERS
from .responses import digest
from .scenarios import SCENARIOS, Scenario

METERS = ("cpu", "memory", "stall", "handoff")


async def measure(
    contender: Contender,
    scenario: Scenario,
    meter: str,
    port: int,
    quick: bool,
    tls_port: int = 0,
) -> meters.Values:
    """Open the contender's client, check its images once, then measure.

    The server is asked for what it knows at `port`; images come from `tls_port` in scenarios with
    TLS.
    """
    prefix = "held/" if meter == "handoff" else ""
    origin = f"https://127.0.0.1:{tls_port}" if scenario.tls else f"http://127.0.0.1:{port}"
    base_url = f"{origin}/{prefix}{scenario.spec}/v1"
    async with contender.opener(base_url) as client:
        call = _call(client, scenario)
        await _check(call, contender, scenario, port)
        if meter == "cpu":
            return await _cpu(client, call, contender, scenario, quick)
        if meter == "memory":
            return await meters.memory(call, scenario.spec.decoded)
        if meter == "stall":
            return await meters.stall(call)
        return await meters.handoff(call, port)


def _call(client: Client, scenario: Scenario) -> meters.Call:
    if scenario.streaming:
        return client.stream

    async def call(take: Take) -> None:
        await client.batch(take, scenario.spec.count)

    return call


async def _check(call: meters.Call, contender: Contender, scenario: Scenario, port: int) -> None:
    """Check that every image of the first response is the one that the server sent."""
    expected = meters.get_json(port, f"/expected/{scenario.spec}")
    taken: list[bytes] = []
    await call(taken.append)
    wanted = [expected["body"]] if contender.raw else expected["hashes"]
    if [digest(one) for one in taken] != wanted:
        raise RuntimeError(f"{contender.name} returned other images than the server sent")


async def _cpu(
    client: Client, call: meters.Call, contender: Contender, scenario: Scenario, quick: bool
) -> meters.Values:
    async def run(count: int) -> None:
        if contender.own_fan_out:
            await client.fan_out(meters.ignore, count, scenario.concurrency)
        else:
            await meters.drive(call, count, scenario.concurrency)

    # At least one full batch, so that all connections are open before the measurement; with small
    # responses until the rate controller has passed its slow start.
    slow_start = 3000 if contender.paced and scenario.spec.kind == "url" else 0
    warmup = max(2, scenario.concurrency, slow_start)
    least = 0.2 if quick else 0.6
    values = await meters.cpu(run, scenario.count(quick), warmup, least)
    if scenario.fan_out:
        values["peak_mb"] = meters.peak()
    megabytes = scenario.spec.decoded * 4 / 3 / 1e6
    return values | ({"cpu_ms_per_mb": values["cpu_ms"] / megabytes} if megabytes else {})


def loop_factory(contender: Contender) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return the factory of the contender's event loop; None for asyncio's own."""
    if not contender.fast:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = importlib.import_module(
        "aiofastnet"
    ).loop_factory()
    return factory


async def probe(contender: Contender) -> dict[str, str]:
    """Open the contender and return its versions."""
    async with contender.opener("http://127.0.0.1:9/v1"):
        return versions(contender.distributions)


def versions(distributions: tuple[str, ...]) -> dict[str, str]:
    """Return the versions of the installed packages."""
    found = {}
    for name in distributions:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.worker", description=__doc__)
    parser.add_argument("contender", choices=CONTENDERS)
    parser.add_argument("--scenario", choices=SCENARIOS)
    parser.add_argument("--meter", choices=METERS, default="cpu")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--tls-port", type=int, default=0)
    parser.add_argument("--core", type=int)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    meters.pin(args.core)
    contender = CONTENDERS[args.contender]
    try:
        with asyncio.Runner(loop_factory=loop_factory(contender)) as runner:
            if args.scenario is None:
                output: dict[str, Any] = {"versions": runner.run(probe(contender))}
            else:
                scenario = SCENARIOS[args.scenario]
                ports = {"port": args.port, "tls_port": args.tls_port}
                coro = measure(contender, scenario, args.meter, quick=args.quick, **ports)
                output = {"values": runner.run(coro)}
    except Exception as error:  # noqa: BLE001 - any error is the contender's result
        output = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
    print(json.dumps(output))
    return 1 if "error" in output else 0


if __name__ == "__main__":
    sys.exit(main())
