"""Which web pages may connect."""

import pytest

from tableforge_dataplane.security.origins import Origins


@pytest.mark.parametrize(
    ("allowed", "origin", "may"),
    [
        ("https://app.example.com", "https://app.example.com", True),
        ("https://app.example.com", "HTTPS://APP.example.com", True),
        ("https://app.example.com", "https://app.example.com:443", True),
        ("https://app.example.com:443", "https://app.example.com", True),
        ("https://app.example.com", "http://app.example.com", False),
        ("https://app.example.com", "https://app.example.com:8443", False),
        ("https://app.example.com", "https://app.example.com.evil.example", False),
        ("https://app.example.com", "https://evil.example", False),
        ("https://app.example.com", "null", False),
        ("https://app.example.com, null", "null", True),
        ("https://*.example.com", "https://a.example.com", True),
        ("https://*.example.com", "https://a.b.example.com", True),
        ("https://*.example.com", "https://example.com", False),
        ("https://*.example.com", "https://evilexample.com", False),
        ("https://*.example.com", "https://a.example.com:8443", False),
        ("https://*.example.com", "http://a.example.com", False),
        ("https://*.example.com:8443", "https://a.example.com:8443", True),
        ("http://localhost:5173, https://*.example.com", "http://localhost:5173", True),
        ("http://[::1]:5173", "http://[::1]:5173", True),
        ("*", "https://anything.example", True),
        ("*", "null", True),
    ],
)
def test_a_list_says_who_may(allowed: str, origin: str, may: bool) -> None:
    for token_required in (True, False):
        assert Origins(allowed, token_required=token_required).allows(origin, "ws.example.com") is may


@pytest.mark.parametrize(
    ("origin", "host", "may"),
    [
        ("http://localhost:5173", "localhost:3001", True),
        ("https://ws.example.com", "ws.example.com", True),
        ("http://[::1]:5173", "[::1]:3001", True),
        ("http://evil.example", "localhost:3001", False),
        ("http://localhost.evil.example", "localhost:3001", False),
        ("null", "localhost:3001", False),
        ("nonsense", "localhost:3001", False),
        ("http://localhost", None, False),
    ],
)
def test_without_a_list_and_without_tokens_only_pages_of_the_same_host_may(
    origin: str, host: str | None, may: bool
) -> None:
    assert Origins("", token_required=False).allows(origin, host) is may


def test_without_a_list_any_page_may_that_has_a_token() -> None:
    assert Origins("", token_required=True).allows("https://anything.example", "ws.example.com")
