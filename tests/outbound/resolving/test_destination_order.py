"""The examples of RFC 6724 section 10.2, and what a machine without IPv6 does with it."""

from __future__ import annotations

import socket

import pytest

from cryprq_proxy.outbound.resolving.destination_order import by_preference, sort_addresses


@pytest.mark.parametrize(
    ("sources", "order"),
    [
        # Prefer a matching scope.
        (
            {"2001:db8:1::1": "2001:db8:1::2", "198.51.100.121": "169.254.13.78"},
            ("2001:db8:1::1", "198.51.100.121"),
        ),
        (
            {"2001:db8:1::1": "fe80::1", "198.51.100.121": "198.51.100.117"},
            ("198.51.100.121", "2001:db8:1::1"),
        ),
        # Prefer a higher precedence.
        ({"10.1.2.3": "10.1.2.4", "2001:db8:1::1": "2001:db8:1::2"}, ("2001:db8:1::1", "10.1.2.3")),
        # Prefer a smaller scope.
        ({"2001:db8:1::1": "2001:db8:1::2", "fe80::1": "fe80::2"}, ("fe80::1", "2001:db8:1::1")),
        # Prefer a matching label.
        (
            {"2001:db8:1::1": "2002:c633:6401::2", "2002:c633:6401::1": "2002:c633:6401::2"},
            ("2002:c633:6401::1", "2001:db8:1::1"),
        ),
        (
            {"2002:c633:6401::1": "2002:c633:6401::2", "2001:db8:1::1": "2001:db8:1::2"},
            ("2001:db8:1::1", "2002:c633:6401::1"),
        ),
        # The longest matching prefix, of IPv6 alone.
        (
            {"2001:db8:3ffe::1": "2001:db8:1::2", "2001:db8:1::1": "2001:db8:1::2"},
            ("2001:db8:1::1", "2001:db8:3ffe::1"),
        ),
        # Avoid what cannot be reached.
        ({"2001:db8:1::1": None, "198.51.100.1": "198.51.100.2"}, ("198.51.100.1", "2001:db8:1::1")),
        ({"::1": "::1", "127.0.0.1": "127.0.0.1"}, ("::1", "127.0.0.1")),
    ],
)
def test_the_order(sources: dict[str, str | None], order: tuple[str, ...]) -> None:
    assert sort_addresses(sources, sources.__getitem__) == order
    assert sort_addresses(reversed(sources), sources.__getitem__) == order


def test_equal_addresses_keep_the_servers_order() -> None:
    """Also where the prefix of one of them matches more of the source: a server gives IPv4 addresses in turns."""
    found = ["198.51.100.1", "192.0.2.8", "192.0.2.1"]
    assert sort_addresses(found, lambda _: "192.0.2.9") == tuple(found)


def test_addresses_without_a_route_are_last() -> None:
    assert by_preference(["255.255.255.255", "127.0.0.1"]) == ("127.0.0.1", "255.255.255.255")
    assert by_preference(["192.0.2.1"]) == ("192.0.2.1",)


def test_without_a_socket_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> socket.socket:
        raise OSError(24, "no descriptors")

    monkeypatch.setattr(socket, "socket", failing)
    assert by_preference(["192.0.2.1", "2001:db8::1"]) == ("2001:db8::1", "192.0.2.1")
