"""The table of `cryprq-proxy status`."""

from __future__ import annotations

from typing import Any

import pytest

from cryprq_proxy.status_view import duration, render, size


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (5 << 20, "5.0 MiB"),
        (3 << 50, "3072.0 TiB"),
        (None, "-"),
    ],
)
def test_size(count: object, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.9, "0 s"), (61, "1 min 1 s"), (7500, "2 h 5 min"), (90_000, "1 d 1 h"), ("x", "-")],
)
def test_duration(seconds: object, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    "status",
    [
        {},
        {"role": "exit"},
        {"role": "client", "session": None, "exit": None},
        {"role": "exit", "sessions": [{}, None, {"link": "down"}]},
        {"role": "client", "session": {"epoch": 3}, "listen": None},
    ],
)
def test_missing_fields_are_no_error(status: dict[str, Any]) -> None:
    assert "?" in render(status)


def test_nothing_reaches_the_terminal_raw() -> None:
    out = render({"role": "client", "link": "down", "last_error": "bad \x1b[31m [red]news\n", "waiting": 2})
    assert "\x1b" not in out
    assert r"down (bad \x1b[31m [red]news\n)" in out
    assert "2 requests" in out
