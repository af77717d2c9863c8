"""Plots of growth and stalls, if matplotlib is installed."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .contenders import BARE, CONTENDERS, OPENAI, OUR_MAP, OURS
from .scenarios import EVENT_MEGABYTES, IMAGE_COUNTS, SCENARIOS, count_name, event_name
from .summary import Figure, Key, number

COLOURS = {
    OPENAI: "#c0392b",
    "openai-aiohttp": "#e08e79",
    "litellm": "#8e6bbf",
    "handwritten": "#d9a400",
    BARE: "#8a8f98",
    OURS: "#0b6e4f",
    OUR_MAP: "#0b6e4f",
}


def draw(
    figures: dict[Key, Figure],
    folder: Path,
    say: Callable[[str], None],
    series: dict[str, list[list[float]]] | None = None,
) -> list[Path]:
    """Plot what was measured, and pacing over time; return the files."""
    wanted = [
        (name, painter)
        for name, topic, painter in (
            ("growth.png", "growth", _growth),
            ("stalls.png", "stalls", _stalls),
            ("pacing.png", "pacing", lambda pyplot, _: _pacing(pyplot, series or {})),
        )
        if any(key.topic == topic for key in figures)
    ]
    if not wanted:
        return []
    try:
        matplotlib = importlib.import_module("matplotlib")
        matplotlib.use("Agg")
        pyplot = importlib.import_module("matplotlib.pyplot")
    except ImportError:
        say("No pictures: matplotlib is missing; pip install 'elkimg-async[bench]'")
        return []
    files = []
    for name, painter in wanted:
        figure = painter(pyplot, figures)
        figure.savefig(folder / name, dpi=150)
        pyplot.close(figure)
        files.append(folder / name)
    return files


def _growth(pyplot: Any, figures: dict[Key, Figure]) -> Any:
    picture, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.8), layout="constrained")
    by_size = {event_name(size): size for size in EVENT_MEGABYTES}
    by_count = {count_name(count): float(count) for count in IMAGE_COUNTS}
    _lines(left, figures, "cpu_ms_per_mb", by_size)
    _lines(right, figures, "cpu_ms_per_mb", by_count)
    left.set(title="A stream with one event", xlabel="size of the event, MB", xscale="log")
    right.set(title="One JSON answer of n images, 2 MiB each", xlabel="n")
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
    picture.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False)
    return picture


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


def _stalls(pyplot: Any, figures: dict[Key, Figure]) -> Any:
    scenarios = list(dict.fromkeys(key.scenario for key in figures if key.topic == "stalls"))
    names = [name for name in CONTENDERS if any(key[::3] == ("stalls", name) for key in figures)]
    picture, panels = pyplot.subplots(
        1,
        len(scenarios),
        figsize=(11, 1.2 + 0.42 * len(names)),
        layout="constrained",
        sharey=True,
        squeeze=False,
    )
    for axes, scenario in zip(panels[0], scenarios, strict=True):
        for row, name in enumerate(names):
            figure = figures.get(Key("stalls", scenario, "stall_ms", name))
            if figure is None:
                axes.text(
                    0.02,
                    row,
                    "no image streams",
                    va="center",
                    color="#666",
                    fontsize=8,
                    transform=axes.get_yaxis_transform(),
                )
                continue
            stall = figure.value.median
            axes.barh(row, stall, color=COLOURS[name], height=0.7)
            axes.text(stall * 1.1, row, number(stall), va="center", fontsize=9)
        axes.set(title=SCENARIOS[scenario].title, xscale="log", xlabel="longest stall, ms")
        axes.set_xlim(0.1, 3000)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_yticks(range(len(names)), [CONTENDERS[name].title for name in names])
        _tidy(axes)
    panels[0][0].invert_yaxis()
    return picture


def _pacing(pyplot: Any, series: dict[str, list[list[float]]]) -> Any:
    picture, rows = pyplot.subplots(
        2,
        len(series),
        figsize=(11, 5.2),
        layout="constrained",
        sharex=True,
        squeeze=False,
        sharey="row",
    )
    for (scenario, book), upper, lower in zip(series.items(), *rows, strict=True):
        allowed, admitted, refused = zip(*book, strict=True)
        seconds = range(len(book))
        upper.step(
            seconds, allowed, where="post", color=COLOURS[BARE], label="what the server allows"
        )
        upper.plot(seconds, admitted, color=COLOURS[OURS], label="admitted")
        lower.bar(seconds, refused, align="edge", width=1.0, color=COLOURS[OPENAI], label="refused")
        upper.set_title(scenario.capitalize())
        lower.set_xlabel("seconds")
        for axes in (upper, lower):
            axes.legend(frameon=False, loc="best", fontsize=8)
            _tidy(axes)
    for axes in (rows[0][0], rows[1][0]):
        axes.set_ylim(bottom=0)
        axes.set_ylabel("requests each second")
    return picture


def _tidy(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, color="#e4e6e8", linewidth=0.8)
    axes.set_axisbelow(True)
