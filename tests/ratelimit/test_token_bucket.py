"""The token bucket of explicit limits."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elkimg_async.ratelimit.token_bucket import TokenBucket


def test_heavy_request_leaves_a_debt() -> None:
    """A request of ten images starts when the bucket is full, and the next waits for all of it."""
    bucket = TokenBucket(60)
    assert bucket.ready_at(10, 0.0) == 0.0
    bucket.acquire(10)
    assert bucket.ready_at(1, 0.0) == pytest.approx((1 + 10 - 1.6) / 0.99)


@settings(max_examples=30)
@given(st.floats(1, 3000), st.integers(0, 1000))
def test_limit_per_minute_is_kept(per_minute: float, seed: int) -> None:
    """In any 60 seconds at most the limit and one start, however the requests come."""
    chance, bucket, now = random.Random(seed), TokenBucket(per_minute), 0.0
    starts = list[float]()
    while now < 200:
        now = bucket.ready_at(1, now)
        assert bucket.ready_at(1, now) == pytest.approx(now)
        bucket.acquire(1)
        starts.append(now)
        now += chance.expovariate(per_minute / 30) if chance.random() < 0.99 else 20.0
    first = 0
    for index, start in enumerate(starts):
        while starts[first] < start - 60.0 + 1e-6:
            first += 1
        assert index - first + 1 <= per_minute + 1 + 1e-6
