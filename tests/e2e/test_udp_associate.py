"""SOCKS5 UDP ASSOCIATE (RFC 1928 section 7) from the application's datagram to the target and back."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.support.applications import UdpApplication, connect, read_exactly, read_reply, request
from tests.support.background import PATIENCE
from tests.support.programs import Client, Exit, until
from tests.support.targets import UdpEcho


@pytest.fixture
def application(client: Client) -> Iterator[UdpApplication]:
    application = UdpApplication(client.port)
    yield application
    application.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "site.test"])
def test_echo(host: str, application: UdpApplication, udp_echo: UdpEcho) -> None:
    """What comes back names the address that it comes from, also where the application has used a name."""
    for data in (b"", b"hello", b"x" * 1_400, b"y" * 9_000):
        application.send(data, udp_echo.port, host)
        assert application.receive() == (("127.0.0.1", udp_echo.port), data)


@pytest.mark.parametrize("host", ["::1", "six.test"])
def test_ipv6(host: str, application: UdpApplication, udp_echo6: UdpEcho) -> None:
    application.send(b"hello", udp_echo6.port, host)
    assert application.receive() == (("::1", udp_echo6.port), b"hello")


def test_both_families_at_once(application: UdpApplication, udp_echo: UdpEcho, udp_echo6: UdpEcho) -> None:
    application.send(b"4", udp_echo.port)
    application.send(b"6", udp_echo6.port, "::1")
    assert {application.receive()[1], application.receive()[1]} == {b"4", b"6"}


def test_answer_from_another_port_of_the_target(application: UdpApplication, udp_echo: UdpEcho) -> None:
    """Filtering is by host (RFC 4787 section 5): such an answer comes through, and says where it is from."""
    application.send(b"other port", udp_echo.port)
    source, data = application.receive()
    assert data == b"other port"
    assert source.host == "127.0.0.1"
    assert source.port != udp_echo.port


def test_datagrams_of_others_are_dropped(application: UdpApplication, udp_echo: UdpEcho) -> None:
    """The first port that sends is the application's; what another one sends goes nowhere."""
    application.send(b"first", udp_echo.port)
    assert application.receive()[1] == b"first"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.bind(("127.0.0.1", 0))
        application.send(b"stranger", udp_echo.port, sock=stranger)
        application.send(b"second", udp_echo.port)
        assert application.receive()[1] == b"second"
        stranger.setblocking(False)
        with pytest.raises(BlockingIOError):
            stranger.recv(1)


def test_the_request_may_name_the_port(client: Client, udp_echo: UdpEcho) -> None:
    """Then that port is the application's as soon as it sends, whoever came first."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger,
        connect(client.port) as control,
    ):
        for one in (sock, stranger):
            one.bind(("127.0.0.1", 0))
            one.settimeout(PATIENCE)
        code, relay = request(control, 3, "127.0.0.1", sock.getsockname()[1])
        assert code == 0
        header = b"\0\0\0\x01\x7f\0\0\x01" + udp_echo.port.to_bytes(2)
        stranger.sendto(header + b"stranger", relay)
        assert stranger.recv(1_000) == header + b"stranger"
        sock.sendto(header + b"mine", relay)
        assert sock.recv(1_000) == header + b"mine"
        stranger.sendto(header + b"stranger again", relay)
        sock.sendto(header + b"mine again", relay)
        assert sock.recv(1_000) == header + b"mine again"
        stranger.setblocking(False)
        with pytest.raises(BlockingIOError):
            stranger.recv(1)


@pytest.mark.parametrize(
    "hint",
    [b"\x03\x010", b"\x03\x09site.test", b"\x01\x7f\0\0\x01", b"\x01\xc0\0\x02\x01"],
    ids=["PySocks", "name", "address", "other host"],
)
@pytest.mark.parametrize("port", ["own", "target"])
def test_the_address_in_the_request_is_a_hint(
    hint: bytes, port: str, client: Client, udp_echo: UdpEcho
) -> None:
    """PySocks names the host "0" and its own port; others name the target, or what a NAT made of their port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, connect(client.port) as control:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(PATIENCE)
        named = sock.getsockname()[1] if port == "own" else udp_echo.port
        control.sendall(b"\x05\x01\x00")
        assert read_exactly(control, 2) == b"\x05\x00"
        control.sendall(b"\x05\x03\x00" + hint + named.to_bytes(2))
        code, relay = read_reply(control)
        assert code == 0
        header = b"\0\0\0\x01\x7f\0\0\x01" + udp_echo.port.to_bytes(2)
        sock.sendto(header + b"hello", relay)
        assert sock.recv(1_000) == header + b"hello"


def test_bad_datagrams_are_dropped(application: UdpApplication, udp_echo: UdpEcho) -> None:
    """Cut short, fragments, unknown address types, port 0, names that do not exist: the association lives on."""
    header = b"\x01\x7f\0\0\x01" + udp_echo.port.to_bytes(2)
    for bad in (
        b"", b"\0", b"\0\0\0", b"\0\0\0\x01", b"\0\0\0\x03\xff", b"\0\0\0\x09" + bytes(20), b"\1\0\0" + header,
        b"\0\0\1" + header + b"fragment", b"\0\0\0\x01\x7f\0\0\x01\0\0port 0", b"\0\0\0\x03\0\0\x50",
    ):  # fmt: skip
        application.sock.sendto(bad, application.relay)
    application.send(b"lost", udp_echo.port, "no-such-host.invalid")
    application.send(b"good", udp_echo.port)
    assert application.receive()[1] == b"good"


def test_ends_with_the_control_connection(
    application: UdpApplication, client: Client, exit: Exit, udp_echo: UdpEcho
) -> None:
    application.send(b"hello", udp_echo.port)
    application.receive()
    assert client.streams == 1
    application.control.close()
    until(lambda: client.streams == 0 and exit.streams == 0, "the association is gone")
    application.sock.connect(application.relay)
    with pytest.raises(ConnectionRefusedError):
        application.sock.send(b"x")
        application.sock.recv(1)


def test_many_datagrams(application: UdpApplication, udp_echo: UdpEcho, client: Client) -> None:
    """In bursts that fit the sockets' buffers, none is lost on the loopback interface."""
    # Until then they take the carrier, where what waits for long is dropped.
    until(lambda: client.status()["packets"]["lane"]["up"], "the lane is up")
    for burst in range(50):
        sent = [f"{burst}.{number}".encode() for number in range(20)]
        for data in sent:
            application.send(data, udp_echo.port)
        assert [application.receive()[1] for _ in sent] == sent
