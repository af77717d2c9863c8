"""Run workers in interleaved rounds against one benchmark server, and collect their samples."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .contenders import CONTENDERS
from .scenarios import SCENARIOS
from .worker import versions

ROOT = Path(__file__).resolve().parent.parent
WORKER_SECONDS = 180


@dataclass(frozen=True)
class Sample:
    """The measurement of one process, or its error."""

    topic: str
    meter: str
    scenario: str
    contender: str
    round: int
    values: dict[str, float] = field(default_factory=dict)
    error: str | None = None

    @classmethod
    def of(
        cls,
        output: dict[str, Any],
        topic: str,
        meter: str,
        scenario: str,
        contender: str,
        number: int,
    ) -> "Sample":
        """Create a sample from the output of a process."""
        values, error = output.get("values", {}), output.get("error")
        return cls(topic, meter, scenario, contender, number, values, error)


class Lab:
    """The benchmark server, the installed contenders, and the way to run them.

    Args:
        contenders: The names of the contenders that take part.
        rounds: The number of rounds.
        quick: Whether to send fewer requests per process.
        say: Called with each line of progress.
    """

    def __init__(
        self,
        contenders: Sequence[str] = tuple(CONTENDERS),
        *,
        rounds: int = 5,
        quick: bool = False,
        say: Callable[[str], None] = print,
    ) -> None:
        self.rounds, self.quick, self.say = rounds, quick, say
        self.samples: list[Sample] = []
        self.series: dict[str, list[list[float]]] = {}  # of pacing: allowed, admitted, rejected
        self.versions = versions(("aiohttp", "matplotlib"))
        self.authority = ""
        self._names = contenders
        self._present: dict[str, bool] = {}
        self.client_core, self._server_core = _cores()

    def __enter__(self) -> "Lab":
        command = [sys.executable, "-m", "benchmarks.server", *_core(self._server_core)]
        self._server = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env=child_environment(),
            text=True,
            start_new_session=True,  # Ctrl-C must not end the server before this process does
        )
        assert self._server.stdout is not None
        line = self._server.stdout.readline()
        if not line:
            raise RuntimeError("the benchmark server did not start; see its output above")
        plain, tls, self.authority = line.rstrip("\n").split(" ", 2)
        self.port, self.tls_port = int(plain), int(tls)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()  # ends the server
        try:
            self._server.wait(5)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()
        self._server.stdout.close()

    def present(self, name: str) -> bool:
        """Return whether a contender takes part and is installed; report once what is missing."""
        if name not in self._names:
            return False
        if name not in self._present:
            output = self.worker(name)
            self.versions |= output.get("versions", {})
            self._present[name] = "error" not in output
            if "error" in output:
                contender = CONTENDERS[name]
                self.say(f"{contender.title} is skipped: {output['error']}; {contender.hint}")
        return self._present[name]

    def measure(self, topic: str, scenarios: Sequence[str], meter: str) -> None:
        """Measure every contender in every scenario, in an order that rotates with the rounds."""
        jobs = [
            (number, scenario, contender)
            for number in range(self.rounds)
            for scenario in scenarios
            for contender in self._order(scenario, number)
        ]
        for done, (number, scenario, contender) in enumerate(jobs, 1):
            arguments = ["--scenario", scenario, "--meter", meter, "--port", str(self.port)]
            arguments += ["--tls-port", str(self.tls_port)]
            output = self.worker(contender, *arguments, *(["--quick"] if self.quick else []))
            self.add(Sample.of(output, topic, meter, scenario, contender, number), done, len(jobs))

    def add(self, sample: Sample, done: int = 0, of: int = 0) -> None:
        """Add a sample, and report progress if it is one `of` several."""
        self.samples.append(sample)
        if of:
            values = ", ".join(f"{key} {value:.3g}" for key, value in sample.values.items())
            self.say(
                f"{sample.topic}, {sample.meter} {done}/{of}: round {sample.round + 1}, "
                f"{sample.scenario}, {sample.contender}: {sample.error or values}"
            )

    def _order(self, scenario: str, number: int) -> list[str]:
        row = SCENARIOS[scenario]
        able = [
            name
            for name, contender in CONTENDERS.items()
            if contender.enters(streaming=row.streaming, fan_out=row.fan_out) and self.present(name)
        ]
        turn = number % max(1, len(able))
        return able[turn:] + able[:turn]

    def worker(self, contender: str, *arguments: str) -> dict[str, Any]:
        """Run one worker process and return its output."""
        command = [sys.executable, "-m", "benchmarks.worker", contender, *arguments]
        return run_json(command + _core(self.client_core), authority=self.authority)


def run_json(command: Sequence[str], *, authority: str = "") -> dict[str, Any]:
    """Run a process and return the JSON of its last line, or `{"error": …}`.

    With `authority` it trusts the certificates that this file signed.
    """
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            check=False,
            cwd=ROOT,
            env=child_environment() | ({"SSL_CERT_FILE": authority} if authority else {}),
            start_new_session=True,
            text=True,
            timeout=WORKER_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"no result within {WORKER_SECONDS} seconds"}
    try:
        output: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = (done.stderr.splitlines() or ["no output"])[-1]
        return {"error": f"exit status {done.returncode}: {last[:300]}"}
    return output


def child_environment() -> dict[str, str]:
    """Return the environment without proxies and without anything that causes downloads."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.upper().endswith("_PROXY") and not key.startswith(("OPENAI_", "ELKAPI_"))
    }
    return kept | {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "PYTHONDONTWRITEBYTECODE": ""}


def _cores() -> tuple[int | None, int | None]:
    """Return cores for client and server, or None where they cannot be chosen."""
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return (usable[0], usable[-1]) if len(usable) > 1 else (None, None)


def _core(core: int | None) -> list[str]:
    return [] if core is None else ["--core", str(core)]
