"""Plots of CPU over TLS, growth, stalls and pacing, if matplotlib is installed."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .contenders import BARE, CONTENDERS, HANDWRITTEN, OPENAI, OUR_FAST, OUR_MAP, OURS
from .scenarios import EVENT_MEGABYTES, IMAGE_COUNTS, SCENARIOS, count_name, event_name
from .summary import Figure, Key, number

COLOURS = {
    OPENAI: "#c0392b",
    "openai-aiohttp": "#e08e79",
    "litellm": "#8e6bbf",
    "pyreqwest": "#8fb8de",
    "pyreqwest-tuned": "#2f6db3",
    "primp": "#a9cfd6",
    "primp-tuned": "#3f8f9f",
    "httpx2": "#d8b4a0",
    "httpx2-tuned": "#a8704f",
    "niquests": "#c9b1d9",
    "niquests-tuned": "#8a5fa8",
    HANDWRITTEN: "#d9a400",
    BARE: "#8a8f98",
    OURS: "#0b6e4f",
    OUR_FAST: "#18a999",
    OUR_MAP: "#0b6e4f",
}


def draw(
    figures: dict[Key, Figure],
    folder: Path,
    say: Callable[[str], None],
    series: dict[str, list[list[float]]] | None = None,
) -> list[Path]:
    """Plot what was measured, and pacing over time; return the files."""
    with_tls = {key: figure for key, figure in figures.items() if key.scenario.endswith("-tls")}
    cpu = {key: figure for key, figure in with_tls.items() if key.metric == "cpu_ms"}
    stalls = {key: figure for key, figure in with_tls.items() if key.metric == "stall_ms"}
    growth = {key: figure for key, figure in figures.items() if key.topic == "growth"}
    painters: tuple[tuple[str, object, Callable[[Any], Any]], ...] = (
        ("cpu.png", cpu, lambda pyplot: _bars(pyplot, cpu, "client CPU, ms")),
        ("stalls.png", stalls, lambda pyplot: _bars(pyplot, stalls, "longest stall, ms")),
        ("growth.png", growth, lambda pyplot: _growth(pyplot, growth)),
        ("pacing.png", series, lambda pyplot: _pacing(pyplot, series or {})),
    )
    wanted = [(name, painter) for name, measured, painter in painters if measured]
    if not wanted:
        return []
    try:
        matplotlib = importlib.import_module("matplotlib")
        matplotlib.use("Agg")
        pyplot = importlib.import_module("matplotlib.pyplot")
    except ImportError:
        say("No plots: matplotlib is missing; pip install 'elkimg-async[bench]'")
        return []
    files = []
    for name, painter in wanted:
        figure = painter(pyplot)
        figure.savefig(folder / name, dpi=150)
        pyplot.close(figure)
        files.append(folder / name)
    return files


def _growth(pyplot: Any, figures: dict[Key, Figure]) -> Any:
    plot, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.8), layout="constrained")
    by_size = {event_name(size): size for size in EVENT_MEGABYTES}
    by_count = {count_name(count): float(count) for count in IMAGE_COUNTS}
    _lines(left, figures, "cpu_ms_per_mb", by_size)
    _lines(right, figures, "cpu_ms_per_mb", by_count)
    left.set(title="A stream with one event", xlabel="size of the event, MB", xscale="log")
    right.set(title="One JSON response of n images, 2 MiB each", xlabel="n")
    left.set_xticks(list(by_size.values()), [f"{size:g}" for size in by_size.values()])
    right.set_xticks(list(by_count.values()), [f"{count:g}" for count in by_count.values()])
    left.set_ylabel("client CPU for each MB of base64, ms")
    for axes in (left, right):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        _tidy(axes)
    handles, labels = right.get_legend_handles_labels()
    if not handles:
        handles, labels = left.get_legend_handles_labels()
    plot.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False)
    return plot


def _lines(axes: Any, figures: dict[Key, Figure], metric: str, places: dict[str, float]) -> None:
    for name, contender in CONTENDERS.items():
        points = [
            (x, figures[key].value.median)
            for scenario, x in places.items()
            if (key := Key("growth", scenario, metric, name)) in figures
        ]
        if points:
            axes.plot(
                *zip(*points, strict=True),
                marker="o",
                markersize=4,
                color=COLOURS[name],
                label=contender.title,
                linewidth=2.5 if name == OURS else 1.5,
                linestyle="--" if name == BARE else "-",
            )


def _bars(pyplot: Any, figures: dict[Key, Figure], label: str) -> Any:
    """Plot one metric: a panel for each scenario, a bar for each contender."""
    scenarios = list(dict.fromkeys(key.scenario for key in figures))
    names = [name for name in CONTENDERS if any(key.contender == name for key in figures)]
    plot, panels = pyplot.subplots(
        1,
        len(scenarios),
        figsize=(3.2 * len(scenarios) + 2, 1.2 + 0.36 * len(names)),
        layout="constrained",
        sharey=True,
        squeeze=False,
    )
    for axes, scenario in zip(panels[0], scenarios, strict=True):
        found = {
            key.contender: figure.value.median
            for key, figure in figures.items()
            if key.scenario == scenario
        }
        for row, name in enumerate(names):
            if (value := found.get(name)) is not None:
                axes.barh(row, value, color=COLOURS[name], height=0.7)
                axes.text(value * 1.1, row, number(value), va="center", fontsize=9)
        axes.set_title(SCENARIOS[scenario].title, fontsize=9)
        axes.set(xscale="log", xlabel=label)
        axes.set_xlim(min(found.values()) / 3, max(found.values()) * 3)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_yticks(range(len(names)), [CONTENDERS[name].title for name in names])
        _tidy(axes)
    panels[0][0].invert_yaxis()
    return plot


def _pacing(pyplot: Any, series: dict[str, list[list[float]]]) -> Any:
    plot, rows = pyplot.subplots(
        2,
        len(series),
        figsize=(11, 5.2),
        layout="constrained",
        sharex=True,
        squeeze=False,
        sharey="row",
    )
    for (scenario, counts), upper, lower in zip(series.items(), *rows, strict=True):
        allowed, admitted, rejected = zip(*counts, strict=True)
        seconds = range(len(counts))
        upper.step(
            seconds, allowed, where="post", color=COLOURS[BARE], label="what the server allows"
        )
        upper.plot(seconds, admitted, color=COLOURS[OURS], label="admitted")
        lower.bar(
            seconds, rejected, align="edge", width=1.0, color=COLOURS[OPENAI], label="rejected"
        )
        upper.set_title(scenario.capitalize())
        lower.set_xlabel("seconds")
        for axes in (upper, lower):
            axes.legend(frameon=False, loc="best", fontsize=8)
            _tidy(axes)
    for axes in (rows[0][0], rows[1][0]):
        axes.set_ylim(bottom=0)
        axes.set_ylabel("requests each second")
    return plot


def _tidy(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, color="#e4e6e8", linewidth=0.8)
    axes.set_axisbelow(True)
