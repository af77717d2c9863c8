"""Stores of every kind, and jobs over a local server."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from elkimg_async.jobs import DirectoryStore, MemoryStore, RedisStore, Store
from tests.helpers.redis_server import needs_redis, redis_server

MakeStore = Callable[[], Store]


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Redis."""
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture(params=["memory", "directory", pytest.param("redis", marks=needs_redis)])
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> MakeStore:
    """Opens the same store of each kind, as often as it is called."""
    if request.param == "memory":
        memory = MemoryStore()
        return lambda: memory
    if request.param == "directory":
        return lambda: DirectoryStore(tmp_path / "jobs")
    url = request.getfixturevalue("redis_url")
    return lambda: RedisStore(url, prefix=f"{tmp_path.name}:", lease=1)
