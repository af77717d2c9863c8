"""The decoders fed with a document as it grows, is damaged, is cut and ends.

The properties are in `tests/helpers/fuzz_decoders.py`, which also searches with the help of
coverage.
"""

import base64
import contextlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import elkimg_async
from elkimg_async.sansio.decoder import ImagesDecoder
from elkimg_async.sansio.json_images import InvalidJSON, JSONDecoder
from elkimg_async.sansio.sse import SSEDecoder
from tests.helpers import fuzz_decoders as fuzz
from tests.sansio.test_json_cost import work

HOME = os.pathsep.join([str(Path(elkimg_async.__file__).parent.parent), *sys.path])
places = st.integers(0, 1 << 30)
tokens = st.sampled_from(fuzz.TOKENS)


class Decoders(RuleBasedStateMachine):
    """All decoders, fed with the same bytes at the same time.

    Rules change what is still to come (`rest`), or feed some of it. Events are read from
    each decoder on the way, and at the end they equal those of the slow parser.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rest = bytearray()
        self.chunks: list[bytes] = []
        self.json, self.sse = JSONDecoder(), SSEDecoder()
        self.bodies = [
            ImagesDecoder(stream=stream, max_bytes=fuzz.MAX_BYTES) for stream in (False, True)
        ]
        self.seen: list[Any] = []
        self.ended = False

    @initialize(seed=st.sampled_from([b"", *fuzz.SEEDS.values()]))
    def begin(self, seed: bytes) -> None:
        self.rest += seed

    # What is still to come

    @rule(seed=st.sampled_from(list(fuzz.SEEDS.values())))
    def another_body(self, seed: bytes) -> None:
        self.rest += seed

    @rule(content=st.binary(max_size=90), type=st.sampled_from([fuzz.COMPLETED, fuzz.PARTIAL, b""]))
    def another_event(self, content: bytes, type: bytes) -> None:
        text = base64.b64encode(content)
        self.rest += b'data: {"type":"%b","b64_json":"%b"}\n\n' % (type, text)

    @rule(token=tokens, place=places)
    def put_in(self, token: bytes, place: int) -> None:
        place %= len(self.rest) + 1
        self.rest[place:place] = token

    @rule(token=tokens, place=places)
    def overwrite(self, token: bytes, place: int) -> None:
        place %= len(self.rest) + 1
        self.rest[place : place + len(token)] = token

    @precondition(lambda self: self.rest)
    @rule(place=places, bit=st.integers(0, 7))
    def flip(self, place: int, bit: int) -> None:
        self.rest[place % len(self.rest)] ^= 1 << bit

    @rule(place=places, length=st.integers(1, 60))
    def delete(self, place: int, length: int) -> None:
        place %= len(self.rest) + 1
        del self.rest[place : place + length]

    @rule(place=places, length=st.integers(1, 120), to=places)
    def double(self, place: int, length: int, to: int) -> None:
        place, to = place % (len(self.rest) + 1), to % (len(self.rest) + 1)
        self.rest[to:to] = self.rest[place : place + length]

    @rule(place=places)
    def cut_off(self, place: int) -> None:
        del self.rest[place % (len(self.rest) + 1) :]

    # Feeding

    @rule(length=st.integers(0, 40) | st.integers(0, 1 << 12))
    def feed(self, length: int) -> None:
        if not self.ended:
            chunk = bytes(self.rest[:length])
            del self.rest[:length]
            self.chunks.append(chunk)
            self.json.feed(chunk)
            self.sse.feed(chunk)
            for body in self.bodies:
                body.feed(chunk)

    @rule()
    def finish(self) -> None:
        if not self.ended:
            self.ended = True
            with contextlib.suppress(*fuzz.JSON_ERRORS):
                self.json.finish()
            self.sse.finish()
            for body in self.bodies:
                body.finish()

    @rule()
    def read_events(self) -> None:
        decoders: list[SSEDecoder | ImagesDecoder] = [self.sse, *self.bodies]
        for decoder in decoders:
            with contextlib.suppress(*fuzz.BODY_ERRORS):
                while (event := decoder.next_event()) is not None:
                    self.seen.append(event)

    # What holds

    @invariant()
    def returns_each_event_once(self) -> None:
        assert len({id(event) for event in self.seen}) == len(self.seen)

    @invariant()
    def text_is_short(self) -> None:
        assert len(self.json.text(20)) <= 20

    @invariant()
    def failure_is_final(self) -> None:
        for body in self.bodies:
            if body.failure is not None and not body.events:
                with pytest.raises(fuzz.BODY_ERRORS) as caught:
                    body.next_event()
                assert caught.value is body.failure

    def teardown(self) -> None:
        fuzz.check_json(self.chunks)
        fuzz.check_sse(self.chunks)
        for stream in (False, True):
            fuzz.check_body(self.chunks, stream=stream)
        fed = sum(map(len, self.chunks))
        with contextlib.suppress(InvalidJSON):
            assert work(self.chunks) <= 12 * fed + 200 * len(self.chunks)


Decoders.TestCase.settings = settings(
    max_examples=120,
    stateful_step_count=25,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
test_decoders = Decoders.TestCase


@pytest.mark.parametrize("sizes", [[], [1], [7, 2], [64]], ids=str)
@pytest.mark.parametrize("seed", fuzz.SEEDS.values(), ids=fuzz.SEEDS.keys())
def test_seed(seed: bytes, sizes: list[int]) -> None:
    """Each seed has the expected result, with tokens inserted at random too."""
    for place in range(0, len(seed), 58):
        for token in fuzz.TOKENS[place % 19 :: 19]:
            changed = seed[:place] + token + seed[place:]
            chunks = fuzz.cut(changed, sizes)
            fuzz.check_json(chunks)
            fuzz.check_sse(chunks)
            fuzz.check_body(chunks, stream=bool(place % 2))


def test_seeds_are_good() -> None:
    """Most seeds are complete bodies whose images the slow parser finds."""
    known = [name for name, seed in fuzz.SEEDS.items() if fuzz.slow_images(seed)]
    assert known == ["json", "json escaped", "stream", "stream with carriage returns"]
    assert all(fuzz.slow_images(fuzz.SEEDS[name]) for name in known)


@pytest.mark.parametrize(
    ("target", "name", "wrong"),
    [
        ("json", "Base64Decoder.finish", lambda self: b"other bytes"),
        ("sse", "SSEDecoder._dispatch", lambda self, terminated: None),
        ("body", "DocumentHandler.emit", lambda self, event: None),
    ],
)
def test_checks_see_what_is_wrong(
    target: str, name: str, wrong: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decoder that returns wrong bytes, or loses an event or image, fails the checks."""
    from elkimg_async.sansio import documents, json_images, sse

    owner, _, method = name.partition(".")
    found = next(
        vars(module)[owner] for module in (json_images, sse, documents) if owner in vars(module)
    )
    seed = fuzz.SEEDS["json escaped" if target == "json" else "stream"]
    how = {"json": b"\0\0\0\0\0", "sse": b"\0\0\0\0\0", "body": b"\0\0\0\0\xff"}[target]
    fuzz.check(target, how + seed)
    monkeypatch.setattr(found, method, wrong)
    with pytest.raises((AssertionError, IndexError)):
        fuzz.check(target, b"\x01\x01\x01\xff" + how[4:] + seed)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="needs atheris")
@pytest.mark.parametrize("target", fuzz.CHECKS)
def test_search(target: str, tmp_path: Path) -> None:
    """A coverage-guided search finds no failure."""
    command = [sys.executable, "-m", "tests.helpers.fuzz_decoders", target, "-max_total_time=4"]
    environment = {**os.environ, "PYTHONPATH": HOME}
    ended = subprocess.run(
        [*command, f"-artifact_prefix={tmp_path}/"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "Done" in ended.stderr
