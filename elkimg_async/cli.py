"""The command `elkimg`: arguments, progress, files; each command is a few lines over the client.

A command is a function that `_app` lists; its signature and docstrings are its help, and it
returns the exit code. Progress and errors go to stderr, results to stdout.
"""

from __future__ import annotations  # which stay unread where the extra `cli` is missing

import contextlib
import itertools
import re
import shlex
import sys
import tempfile
import time
import unicodedata
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import anyio
import msgspec

from elkimg_async import AsyncImages, Image, PartialImage, Timeout, Usage, __version__, errors
from elkimg_async.hooks import Record, RetryScheduled
from elkimg_async.image import EXTENSIONS
from elkimg_async.options import KEY_VARIABLE, URL_VARIABLE, default_key
from elkimg_async.sansio.models import is_gpt_image
from elkimg_async.sansio.requests import DEFAULT_MODEL

_INSTALLED = None not in (find_spec("cyclopts"), find_spec("rich"))
if TYPE_CHECKING or _INSTALLED:
    from cyclopts import App, CycloptsError, Parameter
    from rich import box
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
    from rich.table import Table

    OUT = Console(markup=False, emoji=False, highlight=False)
    ERR = Console(stderr=True, markup=False, emoji=False, highlight=False)

_CONCURRENCY = 8
_LOCAL_DELAY = 0.6  # seconds; enough to see partial images come one by one
_FORMATS = {".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
_WORDS = {  # of the client, and what the command says instead
    r" Raise it with Timeout\((connect|download)=…\)\.": "",
    r"Timeout\(\w+=…\)": "--timeout",
    r"RetryPolicy\(\w+=…\)": "--retries",
    "stream=True": "--stream",
}


def main() -> int:
    """Run the command; returns 0, 1 for a failure, 2 for wrong usage, or 130 for Ctrl-C."""
    if not _INSTALLED:
        sys.stderr.write('The command needs its extra: pip install "elkimg-async[cli]"\n')
        return 1
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        code = _app()(exit_on_error=False, print_error=False, result_action="return_value")
    except KeyboardInterrupt:
        problem, code = "Interrupted.", 130
    except CycloptsError as error:
        problem, code = f"{error} See elkimg --help.", 2
    except (errors.ElkImagesError, OSError, OverflowError) as error:
        problem, code = _sentence(error), 1
    else:
        return code or 0
    ERR.print(_plain(problem), soft_wrap=True)
    return code


def _app() -> App:
    app = App(
        name="elkimg",
        help="Make images from text with ElkAPI, or any server that speaks OpenAI's image API.",
        version=__version__,
        default_parameter=Parameter(negative=(), show_default=False),
        suppress_keyboard_interrupt=False,
    )
    for command in (generate, serve):
        app.command(command)
    return app


def _strict(kind: Any, tokens: Sequence[Any]) -> Any:
    """A whole number, where cyclopts would make 2 of 1.5, or a JSON object."""
    try:
        return msgspec.json.decode(tokens[0].value, type=kind)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        wanted = "a whole number" if kind is int else "a JSON object"
        raise ValueError(f"it must be {wanted}.") from None


if TYPE_CHECKING or _INSTALLED:
    _WHOLE = Parameter(converter=_strict)
    _OBJECT = Parameter(converter=_strict, accepts_keys=False, n_tokens=1)


# --- elkimg generate --------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Picture:
    """The options of `AsyncImages.generate`; what is None is left to the server."""

    model: str | None = None
    """The model; gpt-image-1.5 if not given."""
    n: Annotated[int | None, _WHOLE] = None
    """How many images of each prompt, 1 to 10."""
    size: str | None = None
    """1024x1024, 1536x1024, 1024x1536, auto, or what else the model offers, in pixels."""
    quality: str | None = None
    """low, medium, high or auto; standard or hd for dall-e-3."""
    background: str | None = None
    """transparent (png and webp only), opaque or auto."""
    moderation: str | None = None
    """low or auto."""
    style: str | None = None
    """vivid or natural, dall-e-3 only."""
    user: str | None = None
    """Your own name for the end user, for the provider's abuse checks."""
    output_format: str | None = None
    """png, jpeg or webp; if not given, what the name of the output file asks for."""
    output_compression: Annotated[int | None, _WHOLE] = None
    """0 to 100 per cent, jpeg and webp only."""
    partial_images: Annotated[int | None, _WHOLE] = None
    """With --stream: how many images on the way, 0 to 3; each costs a little. 1 if not given."""
    response_format: str | None = None
    """url or b64_json, dall-e only; an image behind a URL is downloaded."""
    extra_body: Annotated[dict[str, Any] | None, _OBJECT] = None
    """Further fields of the request, as a JSON object: '{"seed": 7}'."""

    def options(self, output: str | None) -> dict[str, Any]:
        """The arguments of a call whose image goes to `output`."""
        options = asdict(self)
        if self.output_format is None and is_gpt_image(self.model or DEFAULT_MODEL):
            options["output_format"] = _FORMATS.get(Path(output or "").suffix.lower())
        return options


@dataclass(frozen=True, kw_only=True)
class Connection:
    """Where the requests go, and how patiently; what is None is left to the client."""

    local: bool = False
    """Use a local server instead: no key, no cost, and a stand-in for the picture."""
    base_url: str | None = None
    """The server, up to and including /v1; ELKAPI_BASE_URL or ElkAPI if not given."""
    timeout: float | None = None
    """Seconds for each prompt, everything included; 600 if not given, no limit with --stream."""
    retries: Annotated[int | None, _WHOLE] = None
    """How often to try again where that costs no second image; 2 if not given."""

    def check(self) -> None:
        """Refuse what cannot work, before anything is opened."""
        if self.local and self.base_url is not None:
            raise errors.ConfigurationError("--local and --base-url do not go together.")
        try:
            _ = self.local or default_key()
        except errors.ConfigurationError:
            raise errors.ConfigurationError(
                f"There is no usable API key: set the environment variable {KEY_VARIABLE} to yours, "
                "or add --local to try things without one."
            ) from None

    @contextlib.asynccontextmanager
    async def client(self, report: Report) -> AsyncIterator[AsyncImages]:
        """A client as the options say, with the local server where it is wanted."""
        key, url = None, self.base_url
        async with contextlib.AsyncExitStack() as stack:
            if self.local:
                from elkimg_async.local import LocalServer

                server = await stack.enter_async_context(LocalServer(delay=_LOCAL_DELAY))
                key, url = server.api_key, server.base_url
                report.say("Local server: the picture is a stand-in, not made by a model.")
            limit = Timeout(total=self.timeout, first_byte=self.timeout, idle=self.timeout)
            client = AsyncImages(
                key, base_url=url, timeout=limit, retry=self.retries, hooks=[report.hear]
            )
            yield await stack.enter_async_context(client)


def generate(
    *prompts: str,
    output: Annotated[str | None, Parameter(alias="-o")] = None,
    stream: bool = False,
    picture: Annotated[Picture, Parameter(name="*", group="Picture")] = Picture(),
    connection: Annotated[Connection, Parameter(name="*", group="Server")] = Connection(),
) -> int:
    """Make images from text, and save them.

    The API key is read from the environment variable ELKAPI_API_KEY.

    Args:
        prompts: What the picture shows. Several are made side by side.
        output: A file, which is replaced, and with several images kitten-2.png and so on as well;
            or a folder. In a folder, and here if not given, new files are named after the prompt.
        stream: Save images on the way as well (kitten-partial-0.png).
    """
    if not prompts:
        raise errors.ConfigurationError('Say what to make: elkimg generate "A small kitten".')
    connection.check()
    options, names, report = picture.options(output), Names(output), Report()
    orders = [Order(prompt, options, names, report) for prompt in prompts]

    async def run() -> None:
        limiter = anyio.CapacityLimiter(_CONCURRENCY)
        with report.bars if ERR.is_interactive else contextlib.nullcontext():
            async with connection.client(report) as client, anyio.create_task_group() as tasks:
                for order in orders:
                    tasks.start_soon(order.run, client, stream, limiter)

    try:
        anyio.run(run)
    finally:
        report.print_table()
    return 1 if report.failed else 0


class Order:
    """One prompt: the call, and where its images go."""

    def __init__(self, prompt: str, options: dict[str, Any], names: Names, report: Report) -> None:
        self._prompt, self._options, self._names, self._report = prompt, options, names, report
        stems = [names.reserve(prompt) for _ in range(min(max(options["n"] or 1, 1), 10))]
        more = (names.reserve(prompt) for _ in itertools.count())  # than were asked for
        self._stems = itertools.chain(stems, more)
        self._partials = (f"{stems[0]}-partial-{number}" for number in itertools.count())
        self._counted = False

    async def run(self, client: AsyncImages, stream: bool, limiter: anyio.CapacityLimiter) -> None:
        """Ask for the images and save them as they come; a failure is reported, not raised."""
        async with limiter:
            self._began = time.monotonic()
            task = self._report.begin(self._prompt)
            try:
                await (self._stream(client) if stream else self._batch(client))
            except errors.ElkImagesError as error:
                self._report.fail(_sentence(error), self._prompt)
            self._report.bars.remove_task(task)

    async def _batch(self, client: AsyncImages) -> None:
        try:
            response = await client.generate(self._prompt, **self._options)
        except errors.ElkImagesError as error:
            for image in getattr(error, "images", ()):  # the good ones are paid for all the same
                await self._save(next(self._stems), image)
            raise
        for image in response:
            await self._save(next(self._stems), image, response.size, response.usage)

    async def _stream(self, client: AsyncImages) -> None:
        async with client.generate(self._prompt, stream=True, **self._options) as stream:
            async for event in stream:
                if isinstance(event, PartialImage):
                    await self._save(next(self._partials), event.image, event.size)
                else:
                    await self._save(next(self._stems), event.image, event.size, event.usage)

    async def _save(
        self, stem: str, image: Image, size: str | None = None, usage: Usage | None = None
    ) -> None:
        try:
            await image.read()
            path = await image.save(self._names.path(stem, image))
        except errors.DownloadError as error:
            self._report.fail(f"{_sentence(error)} The image is at {image.url}", self._prompt)
        except OSError as error:
            self._report.fail(f"{stem} could not be saved: {error.strerror}.", self._prompt)
        else:
            # Each image comes with the usage of the whole call.
            tokens = usage.total_tokens if usage and not self._counted else None
            self._counted = self._counted or usage is not None
            self._report.add(path, image, size, tokens, time.monotonic() - self._began)


class Names:
    """The files that images go to: no two the same, and no old one but what the user named."""

    def __init__(self, output: str | None) -> None:
        self._folder, self._stem, self._suffix = Path(output or "."), "", ""
        self._taken: set[str] = set()
        if output and not output.endswith(("/", "\\")) and not self._folder.is_dir():
            self._folder, self._stem = self._folder.parent, self._folder.name
            suffix = Path(self._stem).suffix
            if suffix.lower() in {*EXTENSIONS.values(), *_FORMATS, ".tif"}:
                self._stem, self._suffix = self._stem.removesuffix(suffix), suffix
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self._folder).close()  # better now than after paying
            if not self._stem:  # a partial image holds the name of its final one as well
                files = [file.stem.lower() for file in self._folder.iterdir()]
                self._taken = {re.sub(r"-partial-\d+$", "", file) for file in files}
        except OSError as error:
            raise errors.ConfigurationError(
                f"The images cannot go to {self._folder}: {error.strerror}. Choose another with -o."
            ) from None

    def reserve(self, prompt: str) -> str:
        """A name without extension that nobody else gets: kitten, kitten-2, kitten-3."""
        words = re.findall(r"[^\W_]+", unicodedata.normalize("NFC", prompt).lower())
        stem = first = self._stem or "-".join(words[:6])[:40].strip("-") or "image"
        numbers = itertools.count(2)
        while stem in self._taken:
            stem = f"{first}-{next(numbers)}"
        self._taken.add(stem)
        return stem

    def path(self, stem: str, image: Image) -> Path:
        """The file, with the extension that the user gave, else that of what the image is."""
        return self._folder / (stem + (self._suffix or EXTENSIONS.get(image.media_type or "", "")))


# --- what people see --------------------------------------------------------


class Report:
    """Progress and failures as they happen, and the table of what was made."""

    def __init__(self) -> None:
        self.failed = False
        text = TextColumn("{task.description}", markup=False)
        bars = (SpinnerColumn(), text, TimeElapsedColumn())
        self.bars = Progress(*bars, console=ERR, transient=True)
        self._table = Table(box=box.SIMPLE_HEAD if OUT.is_terminal else None, pad_edge=False)
        self._table.add_column("file", overflow="fold")
        for name in ("pixels", "bytes", "type", "tokens", "seconds"):
            self._table.add_column(name, justify="right", no_wrap=True)

    def begin(self, prompt: str) -> TaskID:
        """Say that a prompt is being worked on: with a moving line, on a terminal."""
        text = f"Waiting for {_short(prompt)}"
        if not ERR.is_interactive:
            self.say(text)
        return self.bars.add_task(text)

    def say(self, text: str, style: str | None = None) -> None:
        """Print one line, above those that move."""
        ERR.print(_plain(text), style=style, soft_wrap=True)

    def hear(self, record: Record) -> None:
        """Tell of retries; a hook of the client."""
        if isinstance(record, RetryScheduled):
            self.say(f"{_sentence(record.error)} Trying again in {record.delay:.1f} s.")

    def fail(self, sentence: str, prompt: str) -> None:
        """Say what went wrong with a prompt."""
        self.failed = True
        self.say(f"{_short(prompt)}: {sentence}", "red")

    def add(
        self, path: Path, image: Image, size: str | None, tokens: float | None, seconds: float
    ) -> None:
        """Note a file that was saved; `size` and `tokens` are as the server says."""
        self.say(f"Saved {path} after {seconds:.1f} s")
        with contextlib.suppress(Exception):  # Pillow is missing or at a loss; the file is saved
            size = "{}x{}".format(*image.to_pil().size)
        count, kind = len(image.content or b""), (image.media_type or "").removeprefix("image/")
        spent = "-" if tokens is None else f"{tokens:,}"
        self._table.add_row(str(path), size or "-", f"{count:,}", kind, spent, f"{seconds:.1f}")

    def print_table(self) -> None:
        """Print what was made: framed on a terminal, else one line for each file."""
        if self._table.rows:
            OUT.print(self._table, width=None if OUT.is_terminal else 10_000, crop=False)


def _sentence(error: Exception) -> str:
    """What an error says, in the command's words where the client speaks of its arguments."""
    text = str(error)
    for theirs, ours in _WORDS.items():
        text = re.sub(theirs, ours, text)
    if isinstance(error, errors.InvalidRequestError):
        text = re.sub(r"\b[a-z]+_[a-z]+\b", lambda name: "--" + name[0].replace("_", "-"), text)
    return text


def _plain(text: str) -> str:
    """One line without control characters, whoever wrote it."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _short(prompt: str) -> str:
    text = _plain(prompt)
    return f"“{text if len(text) <= 40 else text[:39] + '…'}”"


# --- elkimg serve -----------------------------------------------------------


def serve(
    *,
    port: Annotated[int, _WHOLE] = 0,
    api_key: str = "elkimg-local",
    delay: float = _LOCAL_DELAY,
    fault: Sequence[str] = (),
) -> int:
    """Run a local server, a stand-in for the real one, until Ctrl-C; only this machine reaches it.

    Args:
        port: The port; a free one if not given.
        api_key: The key that it asks for, not a real one; elkimg-local if not given.
        delay: Seconds before each answer, and before each event of a stream.
        fault: What to play for one request, as NAME, NAME=ARGUMENT or NAME*TIMES. May be given
            several times, for one request after the other; `--fault list` names them all.
    """
    from elkimg_async.local import FAULTS, LocalServer

    if "list" in fault:
        OUT.print(*(f"{name}: {text}" for name, text in FAULTS.items()), sep="\n", soft_wrap=True)
        return 0

    async def run() -> None:
        async with LocalServer(port=port, api_key=api_key, delay=delay, faults=fault) as server:
            OUT.print(_guide(server.base_url, api_key), soft_wrap=True)
            await anyio.sleep_forever()

    anyio.run(run)
    return 0


def _guide(base_url: str, api_key: str) -> str:
    return f"""\
Base URL: {base_url}
API key: {api_key}

For elkimg and elkimg_async:
export {URL_VARIABLE}={base_url} {KEY_VARIABLE}={shlex.quote(api_key)}

For anything else:
curl {base_url}/images/generations -H {shlex.quote("Authorization: Bearer " + api_key)} \
-H 'Content-Type: application/json' -d '{{"prompt": "A small kitten"}}' -o answer.json

Press Ctrl-C to stop."""
