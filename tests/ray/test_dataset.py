"""Datasets on Ray, with two real workers on this machine and the local server."""

import asyncio
import importlib
import importlib.util
import json
import logging
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import elkimg_async
from elkimg_async import ImagePrices, Limits, Pricing
from elkimg_async.errors import BatchStoppedError, ConfigurationError
from elkimg_async.local import LocalServer, ThreadedServer, contract
from elkimg_async.media_types import media_type_of
from elkimg_async.ray import GenerateImages, generate_dataset
from elkimg_async.ray.rate import NAMESPACE, RateActor, SharedRate, actor_name
from tests.helpers.runs import make_png

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
    pytest.mark.filterwarnings("ignore"),  # Ray's own, and pyarrow's
]

API_KEY = "sk-a-secret-api-key"
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@pytest.fixture(scope="module")
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Start Ray on this machine, with room for two workers."""
    package = str(Path(elkimg_async.__file__).parent.parent)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in QUIET.items():
            patch.setenv(name, value)
        patch.setenv("PYTHONPATH", os.pathsep.join([package, *filter(None, sys.path)]))
        patch.delenv("ELKAPI_API_KEY", raising=False)
        ray = importlib.import_module("ray")
        importlib.import_module("ray.data")
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            object_store_memory=100_000_000,
        )
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        yield ray
        ray.shutdown()


@pytest.fixture
def server() -> Iterator[ThreadedServer]:
    """Start a slow server that accepts one API key."""
    with ThreadedServer(LocalServer(api_key=API_KEY, light=True, delay=0.3)) as running:
        yield running


def dataset(ray: Any, rows: list[dict[str, Any]]) -> Any:
    """Return a dataset of one block, as a file is."""
    return ray.data.from_items(rows, override_num_blocks=1)


def arrow() -> Any:
    """Return the package pyarrow, which comes with Ray Data."""
    return importlib.import_module("pyarrow")


def workers() -> list[int]:
    """Return the processes of Ray Data's workers."""
    listed = subprocess.run(
        ["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True
    )
    parents = {line.split()[0]: line.split()[1] for line in listed.stdout.splitlines()}

    def ours(pid: str) -> bool:
        while pid not in ("0", "1", str(os.getpid())):
            pid = parents.get(pid, "0")
        return pid == str(os.getpid())

    found = [line.split() for line in listed.stdout.splitlines() if "ray::MapWorker" in line]
    return [int(words[0]) for words in found if ours(words[0])]


def in_loop(server: ThreadedServer, condition: Callable[[], bool]) -> None:
    """Wait until a condition holds at the server."""
    asyncio.run(server.wait_until(condition, within=60.0))


def test_generate_dataset_columns(
    ray: Any,
    server: ThreadedServer,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rows have their own options and errors, and the API key appears nowhere."""
    monkeypatch.setenv("ELKAPI_MODEL", "gpt-image-1-mini")  # which the workers do not have
    rows: list[dict[str, Any]] = [{"prompt": "a cat", "n": 1, "note": "x"} for _ in range(5)]
    rows += [{"prompt": "two", "n": 2, "note": "y"}, {"prompt": "many", "n": 99, "note": "z"}]
    rows += [{"prompt": None, "n": 1, "note": "w"}]
    made = generate_dataset(
        dataset(ray, rows),
        api_key=API_KEY,
        base_url=server.base_url,
        batch_size=4,
        quality="low",
        pricing=Pricing({"gpt-image-1-mini": ImagePrices({(None, "low"): "0.04"})}, currency="EUR"),
    )
    assert server.generations == 0  # lazy
    result = made.take_all()
    by_note = {row["note"]: row for row in result}
    assert len(result) == 8
    assert [row["note"] for row in result if not row["ok"]] == ["z", "w"] or not by_note["z"]["ok"]
    assert (by_note["z"]["error"], by_note["z"]["billing"]) == ("InvalidRequestError", "not_sent")
    assert "n is 99" in by_note["z"]["error_message"]
    assert by_note["w"]["error"] == "InvalidRequestError"
    assert [media_type_of(image) for image in by_note["y"]["images"]] == ["image/png"] * 2
    good = [row for row in result if row["ok"]]
    assert len(good) == server.generations == 6
    assert len({row["id"] for row in result}) == len({row["request_id"] for row in good}) + 2 == 8
    assert all(row["attempts"] == 1 and row["total_tokens"] > 0 for row in good)
    priced = [(row["cost"], row["currency"]) for row in result if row["ok"]]
    assert sorted(priced) == [(Decimal("0.04"), "EUR")] * 5 + [(Decimal("0.08"), "EUR")]
    assert {(row["cost"], row["currency"]) for row in result if not row["ok"]} == {(None, None)}
    sent = {seen.headers["idempotency-key"] for seen in server.requests}
    assert sent == {row["idempotency_key"] for row in good}
    assert all(seen.fields["quality"] == "low" for seen in server.requests)
    assert all(seen.fields["model"] == "gpt-image-1-mini" for seen in server.requests)
    plan = ray.cloudpickle.dumps(made._logical_plan.dag)
    shown = [repr(made), str(made.stats()), repr(plan), *capfd.readouterr()]
    assert not any(API_KEY in text for text in shown)
    session = Path(ray._private.worker.global_worker.node.get_session_dir_path())
    logs = [path.read_bytes() for path in (session / "logs").rglob("*") if path.is_file()]
    assert logs
    assert not any(API_KEY.encode() in log for log in logs)


@pytest.mark.parametrize("as_files", [True, False], ids=["files", "bytes"])
def test_generate_dataset_with_a_killed_worker(
    ray: Any, server: ThreadedServer, tmp_path: Path, as_files: bool
) -> None:
    """One of two workers dies in the middle.

    All rows are there, each generated once; again, none is.
    """
    rows = [{"id": number, "prompt": f"kitten {number}"} for number in range(32)]
    folder = tmp_path / "images"

    def made() -> Any:
        return generate_dataset(
            dataset(ray, rows),
            run=f"killed with {folder.name if as_files else 'bytes'}",
            api_key=API_KEY,
            base_url=server.base_url,
            output_dir=str(folder) if as_files else None,
            batch_size=8,
            requests_at_once=3,
            idempotency="replay",
        )

    def in_the_middle() -> bool:  # and both workers have requests open
        opened = sum(seen.outcome == "open" for seen in server._server.requests)
        return server.generations >= 9 and opened >= 4

    result: list[dict[str, Any]] = []
    earlier = workers()
    thread = threading.Thread(target=lambda: result.extend(made().take_all()))
    thread.start()
    in_loop(server, in_the_middle)
    first, _ = {*workers()} - {*earlier}
    os.kill(first, signal.SIGKILL)
    thread.join()
    before = len(server.requests)
    assert sorted(row["id"] for row in result) == list(range(32))
    assert all(row["ok"] for row in result)
    assert server.generations == 32
    assert before > 32  # what the dead one had under way was requested again
    again = made().take_all()
    assert server.generations == 32
    assert all(row["ok"] for row in again)
    if as_files:
        assert all(row["resumed"] for row in again)
        assert len(server.requests) == before
        names = [path.name for path in folder.iterdir() if path.suffix != ".part"]
        assert sorted(names) == sorted(f"{n}{end}" for n in range(32) for end in (".json", ".png"))
    else:
        images = [{row["id"]: row["images"] for row in run} for run in (result, again)]
        assert images[0] == images[1]


def test_workers_share_one_rate(ray: Any, server: ThreadedServer) -> None:
    """Limits hold for both workers together, and both of them work."""
    rows = [{"id": number, "prompt": f"boat {number}"} for number in range(24)]
    most, times = 0, list[float]()

    def watch() -> bool:
        nonlocal most
        seen = server._server.requests
        most = max(most, sum(request.outcome == "open" for request in seen))
        while len(times) < len(seen):
            times.append(time.monotonic())
        return len(seen) >= 24

    class Noting(GenerateImages):
        def __call__(self, batch: Any) -> Any:
            done = super().__call__(batch)
            return done.append_column("pid", arrow().array([os.getpid()] * len(done)))

    made = dataset(ray, rows).repartition(target_num_rows_per_block=4)
    made = made.map_batches(
        Noting,
        fn_constructor_kwargs={
            "run": "paced",
            "api_key": ray.put(API_KEY),
            "base_url": server.base_url,
            "limits": Limits(requests_per_minute=240, max_concurrency=3),
        },
        batch_size=4,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=2),
        num_cpus=0.25,
    )

    async def run() -> list[dict[str, Any]]:
        watcher = asyncio.create_task(server.wait_until(watch, within=100.0))
        taken: list[dict[str, Any]] = await asyncio.to_thread(made.take_all)
        await watcher
        return taken

    result = asyncio.run(run())
    pids = {row["pid"] for row in result}
    assert all(row["ok"] for row in result)
    assert len(pids) == 2
    assert most <= 3
    # 3.4 start at once, and 3.96 in each second after that: 5.2 s, or 2.2 s without sharing.
    assert times[-1] - times[0] > 4.0
    counts = [sum(start <= t < start + 2.0 for t in times) for start in times]
    assert max(counts) <= 15


async def test_rate_after_the_loss_of_its_actor(ray: Any) -> None:
    """When the actor dies, waiting workers create a new one with the same name."""
    rate = SharedRate("lost", {"max_concurrency": 1})
    first, second = rate.reserve(1), rate.reserve(1)
    await rate.wait(first)
    waiter = asyncio.create_task(rate.wait(second))
    actor = ray.get_actor(actor_name("lost"), namespace=NAMESPACE)
    while (await actor.state.remote())["waiting"] == 0:
        await asyncio.sleep(0.05)
    ray.kill(actor)
    await waiter
    assert second.started is not None
    successor = ray.get_actor(actor_name("lost"), namespace=NAMESPACE)
    assert successor != actor
    rate.release(first)
    rate.release(second)
    rate.close()
    while await successor.state.remote() != {"waiting": 0, "in_flight": 0, "workers": 0}:
        await asyncio.sleep(0.05)
    ray.kill(successor)


async def test_rate_actor_without_workers(ray: Any) -> None:
    """A silent worker's turn goes to the next.

    The actor does not outlive the workers for long.
    """
    name = actor_name("short")
    actor = ray.remote(num_cpus=0, max_concurrency=10)(RateActor)
    actor = actor.options(name=name, namespace=NAMESPACE, lifetime="detached").remote(
        {"max_concurrency": 1}, lease=1.0, idle=0.5
    )
    actor.watch.remote()
    assert await actor.take.remote("dead", 1, 1)
    turn = asyncio.ensure_future(actor.take.remote("alive", 1, 1))
    while not turn.done():
        await actor.renew.remote("alive")
    assert turn.result()
    while name in [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]:
        await asyncio.sleep(0.1)


def test_worker_with_unusable_batches(ray: Any, server: ThreadedServer) -> None:
    """A batch without an API key, prompts, ids or pyarrow fails."""
    pyarrow = arrow()
    with pytest.raises(ConfigurationError, match="ELKAPI_API_KEY"):
        GenerateImages(run="wrong", base_url=server.base_url)
    worker = GenerateImages(run="wrong", api_key=API_KEY, base_url=server.base_url)
    assert API_KEY not in repr(worker)
    with pytest.raises(ConfigurationError, match="pyarrow"):
        worker({"prompt": ["a cat"]})
    with pytest.raises(ConfigurationError, match="prompt_column"):
        worker(pyarrow.table({"id": [1]}))
    with pytest.raises(ConfigurationError, match="id_column"):
        worker(pyarrow.table({"prompt": ["a cat"]}))
    with pytest.raises(TypeError):
        pickle.dumps(worker)
    empty = worker(pyarrow.table({"id": [], "prompt": []}))
    assert "ok" in empty.column_names
    worker.close()
    worker.close()
    assert not worker._thread.is_alive()


def test_worker_rows_with_errors_and_urls(ray: Any, server: ThreadedServer) -> None:
    """Errors are columns; images behind URLs are downloaded, and a column has the URLs."""
    pyarrow = arrow()
    worker = GenerateImages(run="some", api_key=API_KEY, base_url=server.base_url, retry=0)
    server.inject("error=400/content_policy_violation")
    table = pyarrow.table(
        {
            "id": [1, 2],
            "prompt": ["a cat", "a dog"],
            "model": ["dall-e-3", "dall-e-3"],
            "response_format": ["url", "url"],
            "ok": ["replaced", "replaced"],
        }
    )
    done = worker(table).to_pylist()
    worker.close()
    (bad,) = [row for row in done if not row["ok"]]
    (good,) = [row for row in done if row["ok"]]
    assert (bad["error"], bad["billing"], bad["images"]) == ("ModerationError", "refused", [])
    assert media_type_of(good["images"][0]) == "image/png"
    assert good["urls"][0].startswith("http://127.0.0.1")


def test_worker_after_a_failed_download(ray: Any, server: ThreadedServer, tmp_path: Path) -> None:
    """An image behind a URL is paid for.

    The next execution downloads it, and a missing one stays a failure.
    """
    known: list[bool] = []

    class Watched(OrderedDict[str, bytes]):
        def get(self, path: str, default: Any = None) -> Any:
            if path.startswith("/images/"):
                known.append((tmp_path / "a-cat.json").exists())
            if path in withheld:
                raise contract.missing("GET", path)
            return super().get(path, default)

    images = server._server._generator.files = Watched()
    withheld: dict[str, bytes] = {}
    ways: list[str] = []

    def publish(image: bytes, output_format: str) -> str:
        path = f"/images/{len(ways)}.png"
        ways.append(path)
        (withheld if path == "/images/0.png" else images)[path] = image
        return path

    server._server._generator._publish = publish  # type: ignore[method-assign]
    table = arrow().table({"id": ["a-cat"], "prompt": ["a cat"], "n": [2]})

    def made() -> dict[str, Any]:
        options: Any = {"api_key": API_KEY, "base_url": server.base_url, "idempotency": "off"}
        worker = GenerateImages(
            run="fetched", model="dall-e-2", output_dir=str(tmp_path), **options
        )
        try:
            (row,) = worker(table).to_pylist()
        finally:
            worker.close()
        return {**row, "paths": [Path(path).name for path in row["paths"]]}

    first, again = made(), made()
    assert server.generations == 1
    for row in (first, again):
        assert (row["ok"], row["error"], row["billing"]) == (False, "DownloadError", "billed")
        assert "404" in row["error_message"]
        assert row["paths"] == ["a-cat.2.png"]
        assert row["request_id"] == first["request_id"]
    images.update(withheld)
    withheld.clear()
    fetched, found = made(), made()
    for row in (fetched, found):
        assert (row["ok"], row["error"]) == (True, None)
        assert row["paths"] == ["a-cat.1.png", "a-cat.2.png"]
        assert row["request_id"] == first["request_id"]
        assert (row["total_tokens"], row["attempts"]) == (first["total_tokens"], 1)
    assert (fetched["resumed"], found["resumed"]) == (False, True)
    assert len(fetched["urls"]) == 1
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "a-cat.1.png",
        "a-cat.2.png",
        "a-cat.json",
    ]
    assert len(known) >= 4
    assert all(known)  # in the folder before it is fetched, should the worker die
    assert [seen.method for seen in server.requests].count("POST") == 1


def test_worker_with_a_full_disk(ray: Any, server: ThreadedServer, tmp_path: Path) -> None:
    """A folder that disappears fails the batch, and no further row is sent."""
    pyarrow = arrow()
    folder = tmp_path / "images"
    worker = GenerateImages(
        run="full",
        api_key=API_KEY,
        base_url=server.base_url,
        output_dir=str(folder),
        requests_at_once=1,
    )
    folder.rmdir()
    rows = {"id": list(range(5)), "prompt": ["a cat"] * 5}
    with pytest.raises(elkimg_async.errors.BatchError, match="cannot be saved"):
        worker(pyarrow.table(rows))
    worker.close()
    assert server.generations == 1


def test_worker_with_edits(ray: Any, server: ThreadedServer, tmp_path: Path) -> None:
    """Rows with an image are edits, of a path or of bytes; only a changed file is edited again."""
    photo, other = make_png(64, 64), make_png(80, 64)
    path = tmp_path / "photo.png"
    path.write_bytes(photo)

    def made() -> list[dict[str, Any]]:
        table = arrow().table(
            {
                "id": ["path", "missing", "none"],
                "prompt": ["add a hat"] * 3,
                "image": [str(path), str(tmp_path / "missing.png"), None],
                "input_fidelity": ["high", None, None],
            }
        )
        worker = GenerateImages(
            run="edits", api_key=API_KEY, base_url=server.base_url, output_dir=str(tmp_path / "out")
        )
        try:
            rows: list[dict[str, Any]] = worker(table).to_pylist()
        finally:
            worker.close()
        return rows

    first = made()
    assert [row["ok"] for row in first] == [True, False, True]
    assert (first[1]["error"], first[1]["billing"]) == ("InvalidRequestError", "not_sent")
    assert sorted(seen.path for seen in server.requests) == [
        "/v1/images/edits",
        "/v1/images/generations",
    ]
    assert [row["resumed"] for row in made()] == [True, False, True]
    path.write_bytes(other)
    again = made()
    assert [row["resumed"] for row in again] == [False, False, True]
    assert again[0]["idempotency_key"] != first[0]["idempotency_key"]
    worker = GenerateImages(run="edits", api_key=API_KEY, base_url=server.base_url)
    (row,) = worker(
        arrow().table({"id": [1], "prompt": ["add a hat"], "image": [photo]})
    ).to_pylist()
    worker.close()
    assert row["ok"]
    assert server.generations == 4


def test_worker_with_a_rejected_api_key(ray: Any, server: ThreadedServer) -> None:
    """Nothing more is sent, and the execution fails unless it would lose images."""
    worker = GenerateImages(
        run="rejected", api_key="sk-wrong", base_url=server.base_url, requests_at_once=2
    )
    table = arrow().table({"id": list(range(20)), "prompt": ["a cat"] * 20})
    for _ in range(2):
        with pytest.raises(BatchStoppedError) as caught:
            worker(table)
        assert caught.value.reason == "authentication"
        assert len(server.requests) <= 2
    worker.close()
    server.inject("none", "error=401")
    worker = GenerateImages(
        run="kept", api_key=API_KEY, base_url=server.base_url, requests_at_once=1, retry=0
    )
    before = len(server.requests)
    rows = worker(table).to_pylist()
    assert [row["ok"] for row in rows] == [True] + [False] * 19
    assert rows[0]["images"]
    assert {row["error"] for row in rows[2:]} == {"BatchStoppedError"}
    assert {row["billing"] for row in rows[2:]} == {"not_sent"}
    assert len(server.requests) == before + 2
    with pytest.raises(BatchStoppedError):
        worker(table)
    worker.close()


def test_batch_on_ray(ray: Any, server: ThreadedServer, tmp_path: Path) -> None:
    """The command uses a cluster, leaves the same files, and sends nothing again."""
    good = (
        '{"prompt": "a cat"}\n{"prompt": "two", "n": 2}\n'
        '{"prompt": "a boat", "id": "b-7", "extra_body": {"seed": 3}}\n'
    )
    command = [sys.executable, "-m", "elkimg_async", "batch", "prompts.jsonl", "-o", "out"]
    command += ["--price-file", "prices.toml", "--ray"]
    prices = 'currency = "EUR"\n["gpt-image-1.5"]\nimages = [{price = 0.04}]\n'
    (tmp_path / "prices.toml").write_text(prices)
    base_url = f"{server.base_url}?api-version=2"
    environment = {**os.environ, "ELKAPI_API_KEY": API_KEY, "ELKAPI_BASE_URL": base_url}
    address = ray.get_runtime_context().gcs_address

    def batch(prompts: str, at: str = address) -> subprocess.CompletedProcess[str]:
        (tmp_path / "prompts.jsonl").write_text(prompts)
        ended = subprocess.run(
            [*command, at],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert API_KEY not in ended.stdout + ended.stderr
        return ended

    ended = batch(good + '{"prompt": "many", "n": 99}\n{"wrong": 1}\n')
    assert ended.returncode == 2
    assert "prompts.jsonl, line 4: column n: gpt-image-1.5: n is 99" in ended.stderr
    assert server.generations == 0
    for before in ([], ["3"]):
        ended = batch(good)
        assert ended.returncode == 0, ended.stderr
        assert re.findall(r"^(?:done|failed)  +(\d+)", ended.stdout, re.MULTILINE) == ["3", "0"]
        assert re.findall(r"^done before  (\d+)", ended.stdout, re.MULTILINE) == before
        assert re.findall(r"^cost  +(.+)", ended.stdout, re.MULTILINE) == ["0.1600 EUR"]
        assert server.generations == 3
    (seeded,) = [seen for seen in server.requests if seen.fields["prompt"] == "a boat"]
    assert seeded.fields["seed"] == 3
    assert {seen.query["api-version"] for seen in server.requests} == {"2"}
    lines = (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()
    names = [[file["name"] for file in json.loads(line)["files"]] for line in lines]
    assert names == [
        ["000000-a-cat.png"],
        ["000001-two.1.png", "000001-two.2.png"],
        ["000002-a-boat.png"],
    ]
    assert [json.loads(line).get("id") for line in lines] == [None, None, "b-7"]
    assert [json.loads(line)["cost"] for line in lines] == ["0.04", "0.08", "0.04"]
    assert {json.loads(line)["currency"] for line in lines} == {"EUR"}
    assert all((tmp_path / "out" / name).stat().st_size for line in names for name in line)
    ended = batch(good, "127.0.0.1:1")
    assert (ended.returncode, "The Ray cluster cannot be reached" in ended.stderr) == (2, True)
