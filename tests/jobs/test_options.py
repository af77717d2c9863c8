"""Options of a job's call as they are stored."""

from typing import Any

import pytest

from elkimg_async.jobs.options import has_secrets, write_options

SECRETS = [
    ("Authorization", "Bearer x"),
    ("api-key", "x"),
    ("Ocp-Apim-Subscription-Key", "x"),
    ("Cookie", "a=b"),
    ("X-Session-Id", "x"),
    ("X-Jwt", "x"),
    ("sig", "x"),
    ("code", "x"),
    ("X-Forwarded", "Bearer x"),
    ("X-Forwarded", "Basic eDp5"),
    ("X-Forwarded", "sk-elk-1"),
    ("X-Forwarded", "eyJhbGciOiJIUzI1NiJ9.e30.x"),
    ("X-Upstream", "https://me:secret@example.com/"),
]


@pytest.mark.parametrize("option", ["extra_headers", "extra_query"])
@pytest.mark.parametrize(("name", "value"), SECRETS)
def test_options_with_a_secret(option: str, name: str, value: str) -> None:
    """A header or query parameter that may be a secret is not stored, and the others are."""
    options: Any = {option: {name: value, "X-Team": "a"}}
    assert write_options(options) == {option: {"X-Team": "a"}}
    assert has_secrets(options)


@pytest.mark.parametrize("name", ["X-Team", "api-version", "X-Request-Source", "X-Encoded-As"])
def test_options_without_a_secret(name: str) -> None:
    """Other headers and query parameters are stored."""
    options: Any = {"extra_headers": {name: "elk-2026"}, "extra_query": {name: "preview"}}
    assert write_options(options) == options
    assert not has_secrets(options)
