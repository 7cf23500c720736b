"""Endpoints: how they are read, and shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.address import AddressError, Destination
from cryprq_proxy.carriers.dial.endpoint import MAX_PATH, CarrierKind, Endpoint, is_path, parse_endpoint

KINDS = st.sampled_from(("tcp", "ws", "wss"))


@pytest.mark.parametrize(
    ("carrier", "text", "expected", "shown"),
    [
        ("tcp", "exit.example:4433", ("exit.example", 4433, ""), "exit.example:4433"),
        ("tcp", "exit.example", ("exit.example", 4433, ""), "exit.example:4433"),
        ("tcp", "192.0.2.1/", ("192.0.2.1", 4433, ""), "192.0.2.1:4433"),
        ("tcp", "[2001:db8::1]", ("2001:db8::1", 4433, ""), "[2001:db8::1]:4433"),
        ("tcp", "[2001:DB8::1]:1/", ("2001:db8::1", 1, ""), "[2001:db8::1]:1"),
        ("wss", "Exit.Example.", ("exit.example", 443, "/cryprq"), "wss://exit.example/cryprq"),
        ("wss", "exit.example/", ("exit.example", 443, "/cryprq"), "wss://exit.example/cryprq"),
        ("wss", "exit.example:8443/a/b", ("exit.example", 8443, "/a/b"), "wss://exit.example:8443/a/b"),
        ("wss", "exit.example:443/%41~", ("exit.example", 443, "/%41~"), "wss://exit.example/%41~"),
        ("ws", "192.0.2.1", ("192.0.2.1", 80, "/cryprq"), "ws://192.0.2.1/cryprq"),
        ("ws", "[2001:db8::1]/x", ("2001:db8::1", 80, "/x"), "ws://[2001:db8::1]/x"),
        ("ws", "[2001:db8::1]:443/x", ("2001:db8::1", 443, "/x"), "ws://[2001:db8::1]:443/x"),
    ],
)
def test_what_is_read(carrier: CarrierKind, text: str, expected: tuple[str, int, str], shown: str) -> None:
    host, port, path = expected
    endpoint = parse_endpoint(carrier, text)
    assert endpoint == Endpoint(carrier, Destination(host, port), path)
    assert str(endpoint) == shown


@pytest.mark.parametrize(
    ("carrier", "text"),
    [
        ("tcp", ""), ("tcp", "2001:db8::1"), ("tcp", "2001:db8::1:4433"), ("tcp", "h:"),
        ("tcp", "h:0"), ("tcp", "h:1/x"), ("tcp", "h:1//"),
        ("ws", ""), ("ws", "/x"), ("ws", "h:0"), ("ws", "h:0/x"), ("ws", "h:/x"), ("wss", "h?x"), ("wss", "h/?x"),
        ("wss", "h/x#y"), ("wss", "h/x y"), ("wss", "h/\n"), ("wss", "h/é"), ("wss", "u@h/x"), ("wss", "h/\x1b[2J"),
        ("wss", "h/" + "x" * MAX_PATH),
    ],
)  # fmt: skip
def test_what_is_refused(carrier: CarrierKind, text: str) -> None:
    with pytest.raises(AddressError) as caught:
        parse_endpoint(carrier, text)
    assert str(caught.value).isprintable()


@given(KINDS, st.text())
def test_nothing_but_address_errors(carrier: CarrierKind, text: str) -> None:
    try:
        endpoint = parse_endpoint(carrier, text)
    except AddressError:
        return
    assert str(endpoint).isprintable()
    assert (endpoint.path == "") == (carrier == "tcp")


@given(
    KINDS,
    st.sampled_from(("exit.example", "192.0.2.1", "2001:db8::1")),
    st.integers(1, 65_535),
    st.text("abz09/-._~%", max_size=40).map(lambda text: "/x" + text),
)
def test_what_is_shown_can_be_read_again(carrier: CarrierKind, host: str, port: int, path: str) -> None:
    endpoint = Endpoint(carrier, Destination(host, port), "" if carrier == "tcp" else path)
    assert parse_endpoint(carrier, str(endpoint).partition("://")[2] or str(endpoint)) == endpoint


@pytest.mark.parametrize("path", ["", "x", "/x?", "/x\n", "/ä", "//" + "x" * MAX_PATH])
def test_paths(path: str) -> None:
    assert not is_path(path)
    assert is_path("/") and is_path("/a.b-c_d~e%20/")
