"""The parts of the benchmarks: responses, server, runner, ratios. Nothing is timed."""

import asyncio
import base64
import hashlib
import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks import bench_growth, dialects, meters, plots, report, worker
from benchmarks.contenders import BARE, CONTENDERS, OPENAI, OUR_FAST, OUR_MAP, OURS
from benchmarks.lab import ROOT, Lab, Sample, run_json
from benchmarks.responses import TAIL, PreparedResponse, Spec, build, digest, image
from benchmarks.scenarios import SCENARIOS
from benchmarks.summary import Key, summarize, verdicts
from benchmarks.targets import TARGETS

pytestmark = pytest.mark.slow
LIBRARIES = ("pyreqwest", "primp", "httpx2", "niquests")


@pytest.fixture
def lines() -> list[str]:
    """The progress lines of a lab."""
    return []


@pytest.fixture
def lab(lines: list[str]) -> Iterator[Lab]:
    """A running lab with the bare read alone and few requests."""
    with Lab([BARE], rounds=1, quick=True, say=lines.append) as running:
        yield running


def body_of(response: PreparedResponse) -> bytes:
    """Return the body of a response, without its framing."""
    head, _, rest = response.wire.partition(b"\r\n\r\n")
    if b"Content-Length" in head:
        assert int(head.rpartition(b": ")[2]) == len(rest)
        return rest
    body = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        body += rest[: int(size, 16)]
        assert rest[int(size, 16) :].startswith(b"\r\n")
        rest = rest[int(size, 16) + 2 :]
    return body


def post(lab: Lab, path: str) -> bytes:
    """Return the body of a response of the running server."""
    url = f"http://127.0.0.1:{lab.port}{path}"
    with urllib.request.urlopen(urllib.request.Request(url, b"{}", method="POST")) as response:
        data: bytes = response.read()
    return data


@pytest.mark.parametrize("spec", [Spec("url"), Spec("json", 3, 1000), Spec("stream", 4, 999)])
def test_spec_text_reads_back(spec: Spec) -> None:
    """A spec survives the URL."""
    assert Spec.parse(str(spec)) == spec


def test_spec_of_an_unknown_kind() -> None:
    """Only valid specs are parsed."""
    with pytest.raises(ValueError, match="not a kind"):
        Spec.parse("video-1-10")


def test_image_is_a_png_by_its_first_bytes_and_has_the_exact_size() -> None:
    """The bytes look like a PNG and depend on the arguments alone."""
    first = image(0, 4096)
    assert first.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(first) == 4096
    assert first == image(0, 4096)
    assert first != image(1, 4096)


def test_json_response_holds_the_hashed_images() -> None:
    """The images in the JSON response have the expected hashes."""
    response = build(Spec("json", 3, 5000))
    body = body_of(response)
    images = [base64.b64decode(item["b64_json"]) for item in json.loads(body)["data"]]
    assert [digest(one) for one in images] == response.hashes
    assert [len(one) for one in images] == [5000] * 3
    assert hashlib.sha256(body).hexdigest() == response.body


def test_url_response_has_a_url_and_no_base64() -> None:
    """The small response is JSON with a URL, hashed as text."""
    response = build(Spec("url"))
    (item,) = json.loads(body_of(response))["data"]
    assert [digest(item["url"].encode())] == response.hashes
    assert "b64_json" not in item


def test_stream_response_is_partials_then_one_completed_event() -> None:
    """A stream has numbered partial images, a completed one with usage, and [DONE]."""
    response = build(Spec("stream", 4, 3000))
    frames = body_of(response).decode().split("\n\n")
    assert frames[-2:] == ["data: [DONE]", ""]
    events = []
    for frame in frames[:-2]:
        name, data = frame.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    assert [digest(base64.b64decode(event["b64_json"])) for event in events] == response.hashes
    assert [event.get("partial_image_index") for event in events] == [0, 1, 2, None]
    assert events[-1]["type"] == "image_generation.completed"
    assert events[-1]["usage"]["total_tokens"] > 0


@pytest.mark.parametrize("spec", [Spec("json", 2, 3000), Spec("stream", 2, 3000)])
def test_held_tail_begins_inside_the_last_image(spec: Spec) -> None:
    """A held response lacks the end of the last image."""
    response = build(spec)
    text = base64.b64encode(image(1, 3000))
    assert response.wire[response.cut :].startswith(text[-TAIL:])
    assert text not in response.wire[: response.cut]


@pytest.mark.parametrize("spec", ["url-1-0", "json-2-3000", "stream-3-3000", "json-1-3000000"])
def test_server_response_of_the_path(lab: Lab, spec: str) -> None:
    """Complete and held responses have the expected body."""
    expected = build(Spec.parse(spec))
    assert digest(post(lab, f"/{spec}/v1/images/generations")) == expected.body
    assert digest(post(lab, f"/held/{spec}/v1/images/generations")) == expected.body
    side = meters.get_json(lab.port, f"/expected/{spec}")
    assert side == {"hashes": expected.hashes, "body": expected.body}
    assert meters.get_json(lab.port, "/last")["ns"] > 0


def test_server_unknown_path(lab: Lab) -> None:
    """A path without a spec gets 404."""
    with pytest.raises(urllib.error.HTTPError, match="404") as caught:
        post(lab, "/nothing/v1/images/generations")
    caught.value.close()


@pytest.mark.parametrize("meter", ["cpu", "stall", "handoff"])
def test_runner_measures_the_bare_read(lab: Lab, lines: list[str], meter: str) -> None:
    """Each sample is a process, with a line of progress and numbers."""
    lab.measure("test", ["event-0.1MB"], meter)
    (sample,) = lab.samples
    assert sample.error is None
    assert all(value > 0 for value in sample.values.values())
    assert lines[-1].startswith(f"test, {meter} 1/1: round 1, event-0.1MB, bare: ")


def test_runner_measures_over_tls(lab: Lab) -> None:
    """A scenario with TLS uses the other port and the server's authority."""
    lab.measure("test", ["b-tls"], "stall")
    (sample,) = lab.samples
    assert sample.error is None
    assert sample.values["stall_ms"] > 0


@pytest.mark.parametrize("scenario", ["a1-tls", "b-tls", "d-tls"])
@pytest.mark.parametrize(
    "name",
    [
        OURS,
        OUR_FAST,
        *(f"{name}{way}" for name in LIBRARIES for way in ("", "-tuned")),
    ],
)
def test_contender_returns_the_images_over_tls(name: str, scenario: str) -> None:
    """Each contender decodes the images that were sent, or is not installed."""
    with Lab([name], rounds=1, quick=True, say=lambda _: None) as lab:
        if not lab.present(name):
            pytest.skip(f"{name} is not installed")
        lab.measure("test", [scenario], "cpu")
        assert [sample.error for sample in lab.samples] == [None]


def test_plots_are_drawn(tmp_path: Path) -> None:
    """CPU and stalls over TLS, and growth, have a plot each; a contender may lack a scenario."""
    pytest.importorskip("matplotlib")
    samples = [
        Sample("stream", "cpu", "d-tls", OURS, 0, {"cpu_ms": 1.0}),
        Sample("latency", "cpu", "b-tls", OPENAI, 0, {"cpu_ms": 2.0}),
        Sample("stalls", "stall", "b-tls", OURS, 0, {"stall_ms": 2.0}),
        Sample("growth", "cpu", "event-1MB", OURS, 0, {"cpu_ms_per_mb": 2.0}),
    ]
    files = plots.draw(summarize(samples), tmp_path, print)
    assert [file.name for file in files] == ["cpu.png", "stalls.png", "growth.png"]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)


def test_each_contender_has_a_colour() -> None:
    """Plots can show every contender of the main table."""
    assert set(CONTENDERS) - {"poll"} <= set(plots.COLOURS)


def test_runner_reports_a_process_that_dies() -> None:
    """A process without a result is an error with its last line of output."""
    response = run_json([sys.executable, "-c", "raise SystemExit('no more')"])
    assert response == {"error": "exit status 1: no more"}


def test_missing_contender_is_left_out_with_a_plain_line(lines: list[str]) -> None:
    """A missing contender is reported once, with its extra."""

    class WithoutOpenAI(Lab):
        def worker(self, contender: str, *arguments: str) -> dict[str, object]:
            return {"error": "No module named 'openai'"}

    lab = WithoutOpenAI(say=lines.append)
    assert not lab.present(OPENAI)
    assert not lab.present(OPENAI)
    assert len(lines) == 1
    assert "elkimg-async[bench]" in lines[0]


def test_worker_with_wrong_images(lab: Lab) -> None:
    """A contender that returns wrong bytes is not measured."""
    decoding = CONTENDERS[BARE].__class__(
        BARE, "a bare read taken for images", CONTENDERS[BARE].opener, (), ""
    )

    async def measure() -> None:
        await worker.measure(decoding, SCENARIOS["event-0.1MB"], "stall", lab.port, True)

    with pytest.raises(RuntimeError, match="other images"):
        asyncio.run(measure())


def test_contenders_enter_only_what_they_can_do() -> None:
    """Litellm has no streams, and our map takes part in the fan-out only."""
    assert not CONTENDERS["litellm"].enters(streaming=True, fan_out=False)
    assert CONTENDERS[OURS].enters(streaming=True, fan_out=False)
    assert CONTENDERS[OUR_MAP].enters(streaming=False, fan_out=True)
    assert not CONTENDERS[OUR_MAP].enters(streaming=False, fan_out=False)


def sample(contender: str, number: int, value: float, metric: str = "cpu_ms") -> Sample:
    return Sample("stream", "cpu", "d", contender, number, {metric: value})


def test_ratios_are_formed_within_a_round() -> None:
    """A slow round does not change ratios."""
    samples = [
        *(sample(OPENAI, number, value) for number, value in enumerate([10, 100, 20])),
        *(sample(OURS, number, value) for number, value in enumerate([1, 10, 4])),
    ]
    figures = summarize(samples)
    ours = figures[Key("stream", "d", "cpu_ms", OURS)]
    assert ours.value.median == 4
    assert ours.ratios[OPENAI] == (0.1, 0.1, 0.2, 3)
    (verdict,) = verdicts(figures)
    assert not verdict.met


def test_growth_compares_the_largest_event_with_one_megabyte() -> None:
    """The cost per byte is compared within a round and a contender."""
    samples = [
        Sample("growth", "cpu", scenario, OURS, 0, {"cpu_ms_per_mb": value})
        for scenario, value in [("event-1MB", 2.0), ("event-16MB", 9.0), ("event-64MB", 2.5)]
    ]
    (compared,) = bench_growth.per_byte(samples)
    assert compared.values == {"growth_x": 1.25}


def test_targets_name_what_is_measured() -> None:
    """Each target has an existing topic, scenario and metric."""
    derived = {bench_growth.COMPARED, "import", "import client", "first call", "footprint"}
    for target in TARGETS:
        assert target.topic in command.TOPICS
        assert target.scenario in SCENARIOS or target.scenario in derived
        assert target.metric in report.METRICS


def test_report_is_written_into_the_folder(lab: Lab, tmp_path: Path) -> None:
    """Samples are stored as JSON, and the Markdown has a table per metric."""
    lab.measure("stream", ["event-0.1MB"], "cpu")
    lab.add(Sample("stream", "cpu", "e", BARE, 0, error="RuntimeError: torn"))
    files = report.write(lab, {"stream": "Streams"}, tmp_path / "new")
    results = json.loads((tmp_path / "new" / "results.json").read_text())
    text = (tmp_path / "new" / "report.md").read_text()
    assert [file.name for file in files] == ["results.json", "report.md"]
    assert results["samples"][0]["values"]["cpu_ms"] > 0
    assert "### Client CPU for each request, ms" in text
    assert "stream, one event of 0.1 MB" in text
    assert "torn" in text


def test_help_names_topics_and_contenders() -> None:
    """`--help` lists topics and contenders."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--help"],
        capture_output=True,
        check=True,
        cwd=ROOT,
        text=True,
    )
    for name in [*command.TOPICS, *CONTENDERS]:
        assert name in done.stdout


async def test_dialects_are_delivered() -> None:
    """Every dialect's images and every error's message are found, and the tables list them all."""
    images, failures = await dialects.measure_images(), await dialects.measure_errors()
    assert [row.case.name for row in images if not row.right] == []
    assert [row for row in failures if not row.right] == []
    assert dialects.image_table(images).count("\n") == len(images) + 2
    assert dialects.error_table(failures).count("\n") == len(failures) + 2


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["nonsense"], "'nonsense' is not one of latency"),
        (["--contenders", "curl"], "'curl' is not one of openai"),
        (["--rounds", "0"], "at least one round"),
    ],
)
def test_command_invalid_argument(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """An invalid argument is an error that lists the valid ones."""
    with pytest.raises(SystemExit):
        command.main(arguments)
    assert complaint in capsys.readouterr().err
