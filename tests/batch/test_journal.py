"""The records of a journal, their index, and damaged files."""

from decimal import Decimal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elkimg_async.batch.journal import (
    MAX_GAP,
    AnyRecord,
    DoneRecord,
    FailedRecord,
    JournalHeader,
    JournalIndex,
    MadeRecord,
    PendingImage,
    SavedFile,
    SentRecord,
    decode_record,
    encode,
    fingerprint,
    is_same,
)
from elkimg_async.errors import (
    InvalidRequestError,
    JournalError,
)
from elkimg_async.sansio.requests import GenerateRequest
from elkimg_async.sansio.responses import Meta, TokenDetails, Usage

META = Meta(
    request_id="r-1",
    status=200,
    attempts=2,
    elapsed=1.5,
    first_byte=0.5,
    rate_limit=None,
    idempotency_key="k0",
)
USAGE = Usage(total_tokens=100, input_tokens_details=TokenDetails(text_tokens=7))
FILE = SavedFile(0, "000000-a-boat.png", 30, "ab" * 32)
RECORDS: list[AnyRecord] = [
    SentRecord(index=0, hash="h0", idempotency_key="k0"),
    SentRecord(index=1, hash="h1", idempotency_key="k1"),
    DoneRecord(
        index=0, hash="h0", idempotency_key="k0", images=1, files=(FILE,), usage=USAGE, meta=META
    ),
    MadeRecord(
        index=1,
        hash="h1",
        idempotency_key="k1",
        images=2,
        urls=(PendingImage(1, "http://h/1"),),
        usage=USAGE,
    ),
    FailedRecord(index=3, error={"error": "APIError", "message": "no\nno"}, attempts=3),
]


def replay(data: bytes) -> JournalIndex:
    """Return the index of a file of these bytes."""
    replay = JournalIndex()
    for line in data.splitlines(keepends=True):
        replay.feed(line)
    return replay


def journal(*records: AnyRecord) -> bytes:
    """Return the file of these records."""
    return b"".join(map(encode, (JournalHeader(), *records)))


def test_index_states() -> None:
    """The last record of an index counts, and is found by its offset in the file."""
    data = journal(*RECORDS)
    seen = replay(data)
    assert [seen.state(index) for index in range(5)] == ["done", "made", "new", "failed", "new"]
    for index, record in ((0, RECORDS[2]), (1, RECORDS[3]), (3, RECORDS[4])):
        offset = seen.offset(index)
        assert offset is not None
        assert decode_record(data[offset:].partition(b"\n")[0]) == record
    assert seen.offset(2) is None
    assert (seen.end, seen.unended, seen.empty) == (len(data), False, False)


def test_index_of_a_missing_file() -> None:
    """Without a journal, every request remains to be sent."""
    seen = replay(b"")
    assert seen.empty
    assert seen.state(0) == "new"
    assert seen.end == 0


def test_index_torn_at_any_byte() -> None:
    """After a kill at any byte, complete records are kept and the rest is cut off.

    Only the incomplete last record is lost.
    """
    whole = journal(*RECORDS)
    for size in range(1, len(whole) + 1):
        torn = whole[:size]
        seen = replay(torn)
        lines = torn.splitlines(keepends=True)
        unended = whole[size : size + 1] == b"\n"
        good = lines if unended or torn.endswith(b"\n") else lines[:-1]
        assert seen.end == sum(map(len, good))
        assert seen.unended == unended
        for index in range(4):
            assert seen.state(index) == replay(b"".join(good)).state(index)


def test_index_with_zeros_after_a_crash() -> None:
    """Zeros at the end, which a crash of the machine can leave, are cut off."""
    data = journal(*RECORDS)
    assert replay(data + bytes(50)).end == len(data)
    assert replay(bytes(50)).empty


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"nonsense\n",
        b'{"type":"done"}\n',
        b'{"type":"other","index":3}\n',
        b'{"type":"sent","index":-1}\n',
        b'{"type":"sent","index":"1"}\n',
        b'{"type":"sent","index":%d}\n' % (MAX_GAP + 10),
        b'{"type":"sent","index":\xff}\n',
        b"[" * 100_000 + b"\n",
        encode(JournalHeader()),
    ],
    ids=range(10),
)
def test_index_with_a_broken_line(line: bytes) -> None:
    """A broken line before the end is an error that names the line."""
    seen = replay(journal(RECORDS[0]))
    with pytest.raises(JournalError, match="Line 3 of the journal is broken"):
        seen.feed(line)


@pytest.mark.parametrize(
    "data", [b"a prompt\nanother\n", b"a prompt", b"{}\n", b'{"type":"sent","index":0}\n', b"\n"]
)
def test_index_of_another_file(data: bytes) -> None:
    """A file that is not a journal is an error, and is not cut."""
    with pytest.raises(JournalError, match="not a journal"):
        replay(data)


@pytest.mark.parametrize("header", [JournalHeader(version=2), JournalHeader(fingerprint=2)])
def test_index_of_another_version(header: JournalHeader) -> None:
    """The journal of a later version is an error."""
    with pytest.raises(JournalError, match="another version"):
        replay(encode(header))


def test_index_paid_images() -> None:
    """Images that were created first and downloaded later count once.

    A request that was paid for twice counts twice.
    """
    made = MadeRecord(index=0, images=2, usage=USAGE, urls=(PendingImage(0, "http://h/0"),))
    unfetched = FailedRecord(index=0, images=2, usage=USAGE, urls=(PendingImage(0, "http://h/0"),))
    done = DoneRecord(index=0, images=2, usage=USAGE)
    lost = FailedRecord(index=1, images=1)
    again = DoneRecord(index=1, images=1, usage=USAGE)
    seen = replay(journal(made, unfetched, made, done, lost, again))
    assert (seen.images, seen.tokens) == (4, 200)
    assert [seen.state(0), seen.state(1)] == ["done", "done"]


def test_index_costs() -> None:
    """What was reserved counts until the response is known, and unknown costs are counted apart."""
    index = JournalIndex()
    index.feed(encode(JournalHeader()))
    steps: list[tuple[AnyRecord, str, int]] = [
        (SentRecord(index=0, images=2, cost=Decimal("0.20")), "0.20", 0),
        (SentRecord(index=1, cost=Decimal("0.10")), "0.30", 0),
        (DoneRecord(index=0, images=2, cost=Decimal("0.05")), "0.15", 0),
        (FailedRecord(index=1, cost=Decimal(0)), "0.05", 0),
        (SentRecord(index=1, cost=Decimal("0.10")), "0.15", 0),
        (SentRecord(index=1, cost=Decimal("0.10")), "0.25", 0),  # the process was killed
        (MadeRecord(index=1, images=1, cost=Decimal("0.07")), "0.22", 0),
        (DoneRecord(index=1, images=1, cost=Decimal("0.07")), "0.22", 0),
        (SentRecord(index=2, images=3), "0.22", 3),
        (DoneRecord(index=2, images=2), "0.22", 2),
    ]
    for record, cost, unpriced in steps:
        index.feed(encode(record))
        assert (index.costs["USD"], index.unpriced) == (Decimal(cost), unpriced)


def test_meta_with_a_cost() -> None:
    """A cost is text in the journal, so that it stays exact; early journals have none."""
    meta = msgspec.structs.replace(META, cost=Decimal("0.10"))
    line = encode(DoneRecord(index=0, images=1, meta=meta))
    assert b'"cost":"0.10"' in line
    read = decode_record(line)
    assert isinstance(read, DoneRecord)
    assert read.meta == meta
    early = decode_record(line.replace(b',"cost":"0.10"', b""))
    assert isinstance(early, DoneRecord)
    assert early.meta == META


def test_index_sent_requests() -> None:
    """An attempt without a response may have cost everything it requested.

    A later record settles the cost of the last attempt only.
    """
    sent = SentRecord(index=0, images=4)
    known: list[tuple[list[AnyRecord], int, int]] = [
        ([sent], 4, 4),
        ([sent, sent], 8, 8),
        ([sent, sent, DoneRecord(index=0, images=3, usage=USAGE)], 7, 4),
        ([sent, FailedRecord(index=0)], 0, 0),
        ([sent, FailedRecord(index=0, images=4), sent], 8, 8),
        (
            [
                sent,
                MadeRecord(index=0, images=4, urls=(PendingImage(0, "http://h/0"),), usage=USAGE),
            ],
            4,
            0,
        ),
        ([sent, DoneRecord(index=0, images=4, meta=META), SentRecord(index=0, images=0)], 4, 0),
    ]
    for records, images, lost in known:
        seen = replay(journal(*records))
        assert (seen.images, seen.lost) == (images, lost)


def test_index_of_an_early_journal() -> None:
    """Records without a number of images count as one."""
    seen = replay(encode(JournalHeader()) + b'{"type":"sent","index":3,"hash":"h","key":"k"}\n')
    assert (seen.state(3), seen.images) == ("sent", 1)


def test_index_memory() -> None:
    """The index of a hundred thousand requests takes less than two megabytes."""
    import tracemalloc

    seen = replay(journal())
    lines = [encode(DoneRecord(index=index, hash="0" * 32, files=(FILE,))) for index in range(1000)]
    for line in lines:
        seen.feed(line)
    tracemalloc.start()
    for index in range(1000, 101_000):
        seen.feed(b'{"type":"sent","index":%d,"images":4}\n' % index)
        seen.feed(b'{"type":"done","index":%d}\n' % index)
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(seen) == 101_000
    assert kept < 2_000_000


SOMETHING = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(
    st.lists(
        st.one_of(
            st.builds(
                SentRecord,
                index=st.integers(0, 50),
                hash=SOMETHING,
                idempotency_key=st.none() | SOMETHING,
                images=st.integers(0, 10),
            ),
            st.builds(
                DoneRecord,
                index=st.integers(0, 50),
                images=st.integers(0, 10),
                files=st.lists(
                    st.builds(SavedFile, st.integers(0, 9), SOMETHING, st.integers(0), SOMETHING),
                    max_size=3,
                ).map(tuple),
            ),
            st.builds(
                FailedRecord,
                index=st.integers(0, 50),
                error=st.dictionaries(SOMETHING, SOMETHING, max_size=3),
            ),
        ),
        max_size=20,
    )
)
def test_journal_round_trip(records: list[AnyRecord]) -> None:
    """Any record is one line and is read back unchanged; the last of an index is found."""
    lines = [encode(record) for record in records]
    assert all(line.count(b"\n") == 1 for line in lines)
    data = journal(*records)
    seen = replay(data)
    for index, record in {record.index: record for record in records}.items():
        offset = seen.offset(index)
        assert offset is not None
        assert decode_record(data[offset:].partition(b"\n")[0]) == record


# --- whether requests are the same ------------------------------------------


def test_fingerprint_of_the_same_request() -> None:
    """The fingerprint does not depend on the order of fields, or on default values."""
    one = GenerateRequest(prompt="a boat", n=2, extra_body={"a": 1, "b": {"x": 1, "y": 2}})
    other = GenerateRequest(
        prompt="a boat", model="gpt-image-1.5", n=2, extra_body={"b": {"y": 2, "x": 1}, "a": 1}
    )
    assert fingerprint(one, stream=False) == fingerprint(other, stream=False)
    assert fingerprint(GenerateRequest(prompt="a boat"), stream=False) == (
        "146b9b2f436b9ecd62d0b2757fe1d30e"
    )


@pytest.mark.parametrize(
    "other",
    [
        GenerateRequest(prompt="a boat "),
        GenerateRequest(prompt="a boat", n=1),
        GenerateRequest(prompt="a boat", model="dall-e-3"),
        GenerateRequest(prompt="a boat", extra_body={"n": 1}),
    ],
    ids=range(4),
)
def test_fingerprint_of_another_request(other: GenerateRequest) -> None:
    """Every field that is sent changes the fingerprint."""
    one = GenerateRequest(prompt="a boat")
    assert fingerprint(one, stream=False) != fingerprint(other, stream=False)
    assert fingerprint(one, stream=False) != fingerprint(one, stream=True)


def test_fingerprint_of_what_cannot_be_sent() -> None:
    """A field that JSON cannot represent is an error that names it."""
    with pytest.raises(InvalidRequestError, match="prompt cannot be written"):
        fingerprint(GenerateRequest(prompt="\ud800"), stream=False)
    with pytest.raises(InvalidRequestError, match="f cannot be written"):
        fingerprint(GenerateRequest(prompt="a", extra_body={"f": object()}), stream=False)


def test_is_same_with_another_request() -> None:
    """A different request with the same index ends the run.

    An item that was invalid when recorded may have been corrected.
    """
    is_same(RECORDS[0], 0, "h0")
    is_same(RECORDS[4], 3, "anything")
    with pytest.raises(JournalError, match="number 0 "):
        is_same(RECORDS[0], 0, "h1")
    with pytest.raises(JournalError, match="number 0 "):
        is_same(RECORDS[0], 0, None)


def test_is_same_with_changed_files() -> None:
    """An edit whose files have changed is neither the same request nor an error."""
    record = DoneRecord(index=0, hash="h-f1-a")
    assert is_same(record, 0, "h-f1-a")
    assert is_same(record, 0, "h-f1-b")  # renamed
    assert not is_same(record, 0, "h-f2-a")
    assert is_same(record, 0, "h")  # its files cannot be read now
    for other in ("g-f1-a", "h-f2-b", "g", None):
        with pytest.raises(JournalError, match="number 0 "):
            is_same(record, 0, other)


def test_journal_of_an_early_version() -> None:
    """The format on disk does not change.

    A journal of an early version is read, and unused fields are not written.
    """
    lines = [
        b'{"type":"journal","version":1,"fingerprint":1}\n',
        b'{"type":"sent","index":0,"hash":"h0","key":"k0","images":2}\n',
        b'{"type":"made","index":0,"hash":"h0","key":"k0","images":2,'
        b'"urls":[{"position":0,"url":"http://h/0"}]}\n',
        b'{"type":"done","index":0,"hash":"h0","key":"k0","images":2,'
        b'"files":[{"position":0,"name":"a.png","bytes":3,"sha256":"ab"}]}\n',
        b'{"type":"failed","index":1,"hash":"h1","error":{"error":"APIError"},"attempts":2}\n',
    ]
    seen = replay(b"".join(lines))
    assert [seen.state(index) for index in range(3)] == ["done", "failed", "new"]
    sent = decode_record(lines[1])
    assert (sent.idempotency_key, sent.id, sent.metadata) == ("k0", None, None)
    assert [encode(decode_record(line)) for line in lines[1:2]] == lines[1:2]
    assert [msgspec.json.decode(encode(decode_record(line))) for line in lines[1:]] == [
        msgspec.json.decode(line) for line in lines[1:]
    ]
