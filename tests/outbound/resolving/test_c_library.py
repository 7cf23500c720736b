"""The C library, asked for nothing that would leave this host."""

from __future__ import annotations

import errno
import socket

import pytest

from cryprq_proxy.errors import StreamReason
from cryprq_proxy.outbound.resolving.c_library import KEPT_SECONDS, look_up
from cryprq_proxy.outbound.resolving.outcome import FoundAddresses


def test_look_up_of_a_literal() -> None:
    assert look_up("127.0.0.1") == FoundAddresses(("127.0.0.1",), KEPT_SECONDS)


@pytest.mark.parametrize("name", ["127.0.0.1\0b", "b\u00fccher.example", "\ud800"])
def test_look_up_of_what_is_no_name(name: str) -> None:
    assert look_up(name) is StreamReason.NAME_NOT_FOUND


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (socket.gaierror(socket.EAI_NONAME, ""), StreamReason.NAME_NOT_FOUND),
        (socket.gaierror(socket.EAI_NODATA, ""), StreamReason.NAME_NOT_FOUND),
        (socket.gaierror(socket.EAI_AGAIN, ""), StreamReason.NAME_FAILED),
        (socket.gaierror(socket.EAI_FAIL, ""), StreamReason.NAME_FAILED),
        (socket.gaierror(socket.EAI_MEMORY, ""), StreamReason.EXHAUSTED),
        (socket.gaierror(), StreamReason.NAME_FAILED),
        (OSError(errno.EMFILE, ""), StreamReason.EXHAUSTED),
        (OSError(errno.EIO, ""), StreamReason.NAME_FAILED),
    ],
)
def test_look_up_failures(error: OSError, reason: StreamReason, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(socket, "getaddrinfo", failing)
    assert look_up("a.test") is reason


def test_look_up_keeps_the_order_and_drops_doubles(monkeypatch: pytest.MonkeyPatch) -> None:
    def finding(*_: object, **__: object) -> list[tuple[object, ...]]:
        found = [("2::2", 0, 0, 0), ("1.1.1.1", 0), ("2::2", 0, 0, 0), ("2::1", 0, 0, 0)]
        return [(0, 0, 0, "", at) for at in found]

    monkeypatch.setattr(socket, "getaddrinfo", finding)
    assert look_up("a.test") == FoundAddresses(("2::2", "1.1.1.1", "2::1"), KEPT_SECONDS)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [])
    assert look_up("a.test") is StreamReason.NAME_NOT_FOUND
