"""Write the results of a run: `results.json`, `report.md` and, with matplotlib, plots."""

import datetime
import json
import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from . import plots
from .contenders import BARE, CONTENDERS, HANDWRITTEN, OPENAI, PYREQWEST
from .lab import Lab
from .scenarios import SCENARIOS
from .summary import Figure, Key, Spread, Verdict, failures, number, summarize, verdicts

# metric: its heading, and the references of its ratios
METRICS: dict[str, tuple[str, tuple[str, ...]]] = {
    "cpu_ms": ("client CPU for each request, ms", (OPENAI, PYREQWEST, HANDWRITTEN, BARE)),
    "system_ms": ("of that, in the system, ms", ()),
    "faults": ("page faults for each request", ()),
    "wall_ms": ("wall time for each request, ms", ()),
    "cpu_ms_per_mb": ("client CPU for each megabyte of base64, ms", ()),
    "handoff_ms": ("from the last byte sent to the image in hand, ms", ()),
    "above_x": ("peak memory above the images, times their size", ()),
    "above_mb": ("peak memory above the images, MB", ()),
    "peak_mb": ("peak memory of the process, MB", (OPENAI,)),
    "stall_ms": ("longest turn of the loop in a request, ms", ()),
    "stall_cpu_ms": ("longest turn of the loop, in its thread's processor time, ms", ()),
    "stall_worst_ms": ("the longest of all turns, ms", ()),
    "paced_percent": ("admitted, of what the server would have admitted, per cent", ()),
    "refused_percent": ("refused, of all requests, per cent", ()),
    "failed": ("failed requests", ()),
    "growth_x": ("CPU for each byte, 64 MB event to 1 MB event", ()),
    "import_ms": ("wall time, ms", (BARE, OPENAI)),
    "import_cpu_ms": ("CPU time, ms", (BARE,)),
    "distributions": ("distributions installed, ours not counted", ()),
    "installed_mb": ("megabytes installed, compiled modules not counted", ()),
    "compiled_mb": ("megabytes installed, compiled modules included", ()),
}

NOTES = """
## How to read this

Each figure is a median over rounds. A ratio is formed within a round, between processes that ran
one after the other; the median of the ratios is shown, with the range in brackets. Each process
measures one contender in one scenario, after a warm-up and after a check of its images against
those that the server sent. Client and server run on one machine, each on a core of its own if there
are two. `meters.py` describes how each figure is measured.

Not covered: a real network, a server that takes seconds to generate, TLS handshakes. Absolute times
depend on the machine and its load; compare ratios only. The bare read decodes nothing: it is the
lower bound, not an alternative. The tuned libraries assume clean base64 and one well-formed shape
of response, and retry nothing. Which freed blocks the C library returns to the system depends on
the largest one that a process has freed so far; if it returns them after each request, page faults
are a large part of the CPU time, and the table shows them.
"""


def write(
    lab: Lab, titles: dict[str, str], folder: Path, *, interrupted: bool = False
) -> list[Path]:
    """Write the report of a run into a folder; return its files."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = summarize(lab.samples)
    about = describe(lab) | {"interrupted": interrupted}
    results, report = folder / "results.json", folder / "report.md"
    results.write_text(json.dumps(as_json(lab, about, figures), indent=1) + "\n", "utf-8")
    report.write_text(markdown(lab, about, titles, figures), "utf-8")
    return [results, report, *plots.draw(figures, folder, lab.say, lab.series)]


def describe(lab: Lab) -> dict[str, Any]:
    """Return date, machine and versions."""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "versions": dict(sorted(lab.versions.items())),
        "rounds": lab.rounds,
        "quick": lab.quick,
        "pinned": lab.client_core is not None,
    }


def machine() -> str:
    """Describe the machine."""
    model = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text("utf-8").splitlines():
            if line.startswith("model name"):
                model = f"{line.partition(':')[2].strip()} ({model})"
                break
    cores = os.cpu_count()
    return f"{platform.system()} {platform.release().split('-')[0]}, {cores} cores, {model}"


def as_json(lab: Lab, about: dict[str, Any], figures: dict[Key, Figure]) -> dict[str, Any]:
    """Return all samples, the summary and the verdicts as plain data."""
    return {
        "about": about,
        "verdicts": [
            verdict.target._asdict() | {"reached": verdict.reached._asdict(), "met": verdict.met}
            for verdict in verdicts(figures)
        ],
        "summary": [
            key._asdict()
            | figure.value._asdict()
            | {f"of_{name}": ratio._asdict() for name, ratio in figure.ratios.items()}
            for key, figure in figures.items()
        ],
        "samples": [vars(sample) for sample in lab.samples],
    }


def markdown(
    lab: Lab, about: dict[str, Any], titles: dict[str, str], figures: dict[Key, Figure]
) -> str:
    """Return the report in Markdown."""
    parts = ["# Benchmarks\n", *_about(about)]
    if found := verdicts(figures):
        parts.append(_verdict_table(found))
    for topic, title in titles.items():
        metrics = dict.fromkeys(key.metric for key in figures if key.topic == topic)
        if metrics:
            parts.append(f"## {title}\n")
        for metric in metrics:
            parts += _metric_tables(topic, metric, figures)
    if failed := failures(lab.samples):
        lines = [f"- {' / '.join(where)}: {reason}" for where, reason in failed.items()]
        parts.append("## Not measured\n\n" + "\n".join(lines) + "\n")
    parts.append(NOTES.strip() + "\n")
    return "\n".join(parts)


def _about(about: dict[str, Any]) -> Iterable[str]:
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    yield f"{about['date']} · {about['machine']} · {about['python']}\n"
    yield f"Rounds: {about['rounds']} · {versions}\n"
    if not about["pinned"]:
        yield "Client and server could not be kept on cores of their own.\n"
    if about["quick"]:
        yield "A quick look: fewer requests and rounds than a full run.\n"
    if about["interrupted"]:
        yield "**This run was interrupted; what follows is what it had measured.**\n"


def _verdict_table(found: list[Verdict]) -> str:
    rows = [
        [
            _scenario_title(verdict.target.scenario),
            METRICS[verdict.target.metric][0],
            CONTENDERS[verdict.target.contender].title,
            f"{CONTENDERS[verdict.target.against].title} = 1" if verdict.target.against else "",
            f"{verdict.target.limit:g}",
            _with_range(verdict.reached),
            "yes" if verdict.met else "**no**",
        ]
        for verdict in found
    ]
    head = ["scenario", "figure", "of", "against", "at most", "measured", "reached"]
    return "## Targets\n\n" + table(head, rows)


def _metric_tables(topic: str, metric: str, figures: dict[Key, Figure]) -> Iterable[str]:
    chosen = {
        key: figure
        for key, figure in figures.items()
        if key.topic == topic and key.metric == metric
    }
    heading, references = METRICS[metric]
    values = {key: number(figure.value.median) for key, figure in chosen.items()}
    yield f"### {_capital(heading)}\n\n{_grid(values)}"
    for reference in references:
        ratios = {
            key: _with_range(figure.ratios[reference])
            for key, figure in chosen.items()
            if reference in figure.ratios and key.contender != reference
        }
        if ratios:
            title = f"{_capital(heading.partition(',')[0])}, {CONTENDERS[reference].title} = 1"
            yield f"### {title}\n\n{_grid(ratios)}"


def _grid(cells: dict[Key, str]) -> str:
    """Return a table with scenarios as rows and contenders as columns."""
    columns = [name for name in CONTENDERS if any(key.contender == name for key in cells)]
    by_row: dict[str, dict[str, str]] = {}
    for key, text in cells.items():
        by_row.setdefault(key.scenario, {})[key.contender] = text
    rows = [
        [_scenario_title(scenario), *(row.get(name, "–") for name in columns)]  # noqa: RUF001
        for scenario, row in by_row.items()
    ]
    return table(["", *(CONTENDERS[name].title for name in columns)], rows)


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _with_range(value: Spread) -> str:
    if value.rounds == 1:
        return number(value.median)
    return f"{number(value.median)} ({number(value.low)} to {number(value.high)})"


def _scenario_title(name: str) -> str:
    return SCENARIOS[name].title if name in SCENARIOS else name


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
