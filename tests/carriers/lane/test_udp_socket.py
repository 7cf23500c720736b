"""The batch socket: real sockets on the loopback device, with and without the offloads, and what it does on errors.

Linux delivers on the loopback device before a send returns, so nothing here waits: what was sent is there.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest

from cryprq_proxy.carriers.lane import offload_check as udp_check
from cryprq_proxy.carriers.lane import udp_options
from cryprq_proxy.carriers.lane import udp_socket as udp
from cryprq_proxy.carriers.lane.batch import RECEIVE_SIZE, Sent, SocketAddress, UdpOffload, UdpPeer
from cryprq_proxy.carriers.lane.gathered import Gathered, OneByOne
from cryprq_proxy.carriers.lane.offload_check import check_offload
from cryprq_proxy.carriers.lane.udp_options import SO_MARK
from cryprq_proxy.carriers.lane.udp_socket import UdpSocket
from cryprq_proxy.errors import ConfigError

ROOM = memoryview(bytearray(RECEIVE_SIZE))


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the loopback device is synchronous on Linux")

PLAIN: Final = UdpOffload(False, False, "off")
BOTH: Final = UdpOffload(True, True)
OFFLOADS: Final = [PLAIN, BOTH, UdpOffload(True, False), UdpOffload(False, True)]
HOSTS: Final = ["127.0.0.1", "::1"]
MARK_OPTIONS: Final = {
    "127.0.0.1": (socket.IPPROTO_IP, socket.IP_TOS),
    "::1": (socket.IPPROTO_IPV6, socket.IPV6_TCLASS),
}

type Open = Callable[..., UdpSocket]
type SendMsg = Callable[..., int]


@pytest.fixture
def opened() -> Iterator[Open]:
    """Makes sockets that are closed at the end."""
    sockets: list[UdpSocket] = []

    def make(host: str, offload: UdpOffload = BOTH, *, port: int = 0, mark: int = 0) -> UdpSocket:
        sockets.append(UdpSocket((host, port), offload, mark))
        return sockets[-1]

    yield make
    for sock in sockets:
        sock.close()


def pair(opened: Open, host: str, offload: UdpOffload) -> tuple[UdpSocket, UdpSocket]:
    left, right = opened(host, offload), opened(host, offload)
    left.connect(right.address)
    right.connect(left.address)
    return left, right


def datagrams(sock: UdpSocket) -> list[bytes]:
    """All that waits, one by one."""
    found: list[bytes] = []
    while (batch := sock.receive(ROOM)) is not None:
        data = bytes(batch.data[: batch.size])
        found += (data[start : start + batch.segment] for start in range(0, len(data), batch.segment))
    return found


def cut(data: bytes, segment: int) -> list[bytes]:
    return [data[start : start + segment] for start in range(0, len(data), segment)]


class Refusing:
    """Stands in for `socket.sendmsg`: raises the errors given, then sends."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *errors: int, batches_only: bool = False) -> None:
        self.errors = list(errors)
        self.calls: list[bool] = []
        """For each call whether it was a batch."""
        original: SendMsg = socket.socket.sendmsg

        def sendmsg(sock: socket.socket, buffers: Any, control: Any = (), *rest: Any) -> int:
            batch = any(kind == udp_options.UDP_SEGMENT for _, kind, _ in control)
            self.calls.append(batch)
            if self.errors and (batch or not batches_only):
                number = self.errors.pop(0)
                raise OSError(number, os.strerror(number))
            return original(sock, buffers, control, *rest)

        monkeypatch.setattr(socket.socket, "sendmsg", sendmsg)


# --- batches ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("offload", OFFLOADS)
@pytest.mark.parametrize(
    ("segment", "size"),
    [(1_400, 40 * 1_400), (1_400, 3_001), (1_400, 1_400), (1_400, 1), (1, 64), (500, 32_000)],
)
def test_batch_arrives_as_it_was_sent(
    opened: Open, host: str, offload: UdpOffload, segment: int, size: int
) -> None:
    left, right = pair(opened, host, offload)
    data = os.urandom(size)
    assert left.send(memoryview(data), segment) is Sent.OK
    assert datagrams(right) == cut(data, segment)
    assert (left.sent, left.sent_bytes) == (right.received, right.received_bytes)
    assert (left.sent, left.sent_bytes) == (-(-size // segment), size)
    assert left.offload == right.offload == offload
    assert left.dropped == left.errors == right.errors == 0


def test_batch_is_one_call_each_way(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    left, right = pair(opened, "127.0.0.1", BOTH)
    calls = Refusing(monkeypatch).calls
    left.send(memoryview(bytes(40 * 1_400)), 1_400)
    assert calls == [True]
    batch = right.receive(ROOM)
    assert batch is not None
    assert (batch.size, batch.segment, batch.peer) == (40 * 1_400, 1_400, right.peer)
    assert right.receive(ROOM) is None


@pytest.mark.parametrize(
    ("segment", "size"), [(1_000, 100_000), (10, 2_000), (40_000, 120_000), (30_000, 65_508)]
)
def test_more_than_the_kernel_takes_goes_in_several_calls(opened: Open, segment: int, size: int) -> None:
    left, right = pair(opened, "127.0.0.1", BOTH)
    data = os.urandom(size)
    assert left.send(memoryview(data), segment) is Sent.OK
    assert datagrams(right) == cut(data, segment)
    assert left.offload == BOTH


def test_segment_size_does_not_stay_on_the_socket(opened: Open) -> None:
    left, right = pair(opened, "127.0.0.1", BOTH)
    for segment, size in ((100, 1_000), (1_000, 1_000), (300, 900), (1_000, 999)):
        data = os.urandom(size)
        left.send(memoryview(data), segment)
        assert datagrams(right) == cut(data, segment)


def test_all_batches_stand_in_one_buffer(opened: Open) -> None:
    left, right = pair(opened, "127.0.0.1", BOTH)
    back, forth = [], []
    for data in (b"abc", b"de"):
        left.send(memoryview(data), 3)
        right.send(memoryview(data), 3)
        forth.append(right.receive(ROOM))
        back.append(left.receive(ROOM))
    assert {id(batch.data) for batch in (*back, *forth) if batch is not None} == {id(ROOM)}


def test_empty_datagrams_are_passed_over(opened: Open) -> None:
    left, right = pair(opened, "127.0.0.1", BOTH)
    for data in (b"", b"a", b"", b"b"):
        left.send(memoryview(data), 10)
    assert datagrams(right) == [b"a", b"b"]


# --- congestion marks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("offload", [PLAIN, BOTH])
def test_batch_of_a_sender_that_heeds_marks_says_so(opened: Open, host: str, offload: UdpOffload) -> None:
    """And no other: each send says it for itself."""
    left, right = pair(opened, host, offload)
    level, kind = MARK_OPTIONS[host]
    with socket.socket(fileno=os.dup(right.fileno())) as raw:
        for ect in (False, True, True, False):
            assert left.send(memoryview(bytes(2_000)), 1_000, ect=ect) is Sent.OK
            while True:
                try:
                    control = raw.recvmsg(RECEIVE_SIZE, 128)[1]
                except BlockingIOError:
                    break
                [mark] = [value for *option, value in control if option == [level, kind]]
                assert int.from_bytes(mark, sys.byteorder) == (2 if ect else 0)


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("offload", [PLAIN, BOTH])
def test_batches_that_a_router_has_marked_are_told_apart(
    opened: Open, host: str, offload: UdpOffload
) -> None:
    left, right = pair(opened, host, offload)
    with socket.socket(fileno=os.dup(left.fileno())) as raw:
        for mark in (0, 1, 2, 3, 0xB8 | 3, 0xB8, 0):  # the upper bits are a DSCP
            raw.setsockopt(*MARK_OPTIONS[host], mark)
            left.send(memoryview(b"x"), 1)
    seen = []
    while (batch := right.receive(ROOM)) is not None:
        seen.append(batch.marked)
    assert seen == [False, False, False, True, True, False, False]


@pytest.mark.parametrize("wildcard", ["0.0.0.0", "::"])
def test_mark_and_local_address_leave_together(opened: Open, wildcard: str) -> None:
    """As the exit's batches do."""
    server = opened(wildcard)
    client = opened({"0.0.0.0": "127.0.0.1", "::": "::1"}[wildcard])
    client.connect(({"0.0.0.0": "127.0.0.7", "::": "::1"}[wildcard], server.address[1]))
    client.send(memoryview(bytes(2_000)), 1_000, ect=True)
    first = server.receive(ROOM)
    assert first is not None and not first.marked
    assert server.send(memoryview(b"!" * 10), 4, first.peer, True) is Sent.OK
    assert datagrams(client) == [b"!!!!", b"!!!!", b"!!"]


# --- addresses ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wildcard", "own", "other"), [("0.0.0.0", "127.0.0.7", "127.0.0.1"), ("::", "::1", "::1")]
)
@pytest.mark.parametrize("offload", [PLAIN, BOTH])
def test_answer_leaves_from_the_address_that_was_asked(
    opened: Open, wildcard: str, own: str, other: str, offload: UdpOffload
) -> None:
    server, client = opened(wildcard, offload), opened(other, offload)
    client.connect((own, server.address[1]))
    client.send(memoryview(b"?" * 10), 4)
    first = server.receive(ROOM)
    assert first is not None
    assert first.peer.address[:2] == client.address[:2]
    assert socket.inet_pton(server.family, own) in first.peer.local
    assert server.send(memoryview(b"!" * 10), 4, first.peer) is Sent.OK
    assert datagrams(client) == [b"!!!!", b"!!!!", b"!!"]  # connected: it takes nothing from elsewhere


def test_peers_are_told_apart_and_compared(opened: Open) -> None:
    server = opened("0.0.0.0")
    clients = [opened("127.0.0.1"), opened("127.0.0.2"), opened("127.0.0.1")]
    peers = []
    for client, own in zip(clients, ("127.0.0.7", "127.0.0.7", "127.0.0.8"), strict=True):
        client.connect((own, server.address[1]))
        for _ in range(2):
            client.send(memoryview(b"?"), 1)
            batch = server.receive(ROOM)
            assert batch is not None
            peers.append(batch.peer)
    assert peers[0] == peers[1] and peers[2] == peers[3] and peers[4] == peers[5]
    assert len(set(peers)) == 3
    for peer in reversed(peers):
        server.send(memoryview(b"!"), 1, peer)
    assert [datagrams(client) for client in clients] == [[b"!", b"!"]] * 3


def test_connected_socket_hears_no_stranger(opened: Open) -> None:
    left, right = pair(opened, "127.0.0.1", BOTH)
    opened("127.0.0.1").send(memoryview(b"x"), 1, UdpPeer(right.address))
    assert right.receive(ROOM) is None
    left.send(memoryview(b"y"), 1)
    assert datagrams(right) == [b"y"]


def test_connected_makes_a_socket_of_the_right_family(opened: Open) -> None:
    for host in HOSTS:
        server = opened(host)
        client = UdpSocket.connected(server.address, BOTH)
        try:
            assert client.peer == UdpPeer(server.address)
            client.send(memoryview(b"x"), 1)
        finally:
            client.close()
        assert datagrams(server) == [b"x"]


@pytest.mark.parametrize(
    ("address", "text"), [(("127.0.0.1", 5), "127.0.0.1:5"), (("::1", 5, 0, 0), "[::1]:5")]
)
def test_peer_as_text(address: SocketAddress, text: str) -> None:
    assert str(UdpPeer(address)) == text


def test_address_that_cannot_be_had(opened: Open) -> None:
    sock = opened("127.0.0.1")
    with pytest.raises(OSError, match="in use"):
        opened("127.0.0.1", port=sock.address[1])
    with pytest.raises(OSError):
        UdpSocket(("203.0.113.1", 0), BOTH)


# --- options ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", HOSTS)
def test_options(opened: Open, host: str) -> None:
    sock = opened(host)
    raw = socket.socket(fileno=os.dup(sock.fileno()))
    with raw:
        if host == "::1":
            assert (
                raw.getsockopt(socket.IPPROTO_IPV6, udp_options.IPV6_MTU_DISCOVER)
                == udp_options.IP_PMTUDISC_PROBE
            )
            assert raw.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS) == 0
            assert raw.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1
        else:
            assert (
                raw.getsockopt(socket.IPPROTO_IP, udp_options.IP_MTU_DISCOVER)
                == udp_options.IP_PMTUDISC_PROBE
            )
            assert raw.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) == 0
        assert raw.getsockopt(udp_options.SOL_UDP, udp_options.UDP_GRO) == 1
        assert raw.getsockopt(udp_options.SOL_UDP, udp_options.UDP_SEGMENT) == 0
        assert not os.get_blocking(raw.fileno())
        with socket.socket(raw.family, socket.SOCK_DGRAM) as untouched:
            for name in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                assert raw.getsockopt(socket.SOL_SOCKET, name) >= untouched.getsockopt(
                    socket.SOL_SOCKET, name
                )


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mark packets and have large buffers")
def test_options_of_root(opened: Open) -> None:
    sock = opened("127.0.0.1", mark=0x6372)
    with socket.socket(fileno=os.dup(sock.fileno())) as raw:
        assert raw.getsockopt(socket.SOL_SOCKET, SO_MARK) == 0x6372
        # Linux reckons with twice of what is asked for (socket(7)).
        assert raw.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 2 * udp.SOCKET_BUFFER
        assert raw.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 2 * udp.SOCKET_BUFFER


def test_mark_without_the_right(monkeypatch: pytest.MonkeyPatch) -> None:
    original = socket.socket.setsockopt

    def setsockopt(sock: socket.socket, level: int, name: int, value: int) -> None:
        if (level, name) == (socket.SOL_SOCKET, SO_MARK):
            raise PermissionError(errno.EPERM, "not allowed")
        original(sock, level, name, value)

    monkeypatch.setattr(socket.socket, "setsockopt", setsockopt)
    UdpSocket(("127.0.0.1", 0), BOTH).close()
    with pytest.raises(ConfigError, match="start the program as root"):
        UdpSocket(("127.0.0.1", 0), BOTH, 0x6372)


@pytest.mark.parametrize(
    ("host", "default", "loopback"), [("127.0.0.1", 1_472, 65_507), ("::1", 1_452, 65_488)]
)
def test_mtu(opened: Open, host: str, default: int, loopback: int) -> None:
    left, right = opened(host), opened(host)
    assert left.mtu() == default
    left.connect(right.address)
    assert left.mtu() == loopback  # the device has 65,536


# --- errors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EIO, errno.EINVAL, errno.ENOPROTOOPT])
def test_refused_batch_switches_batches_off_for_good(
    opened: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    left, right = pair(opened, "127.0.0.1", BOTH)
    refusing = Refusing(monkeypatch, number, number, batches_only=True)
    data = os.urandom(3_000)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert left.send(memoryview(data), 1_400) is Sent.OK
            assert datagrams(right) == cut(data, 1_400)
    assert refusing.calls == [True, True, *[False] * 6]
    assert left.offload == UdpOffload(False, True, f"the kernel refused a batch ({errno.errorcode[number]})")
    assert len(caplog.records) == 1
    assert left.sent == 6 and left.dropped == 0


@pytest.mark.parametrize("number", [errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.EMSGSIZE, errno.EIO])
def test_error_of_an_earlier_datagram_costs_nothing(
    opened: Open, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    left, right = pair(opened, "127.0.0.1", BOTH)
    data = os.urandom(3_000)
    for segment in (1_400, 3_000):
        Refusing(monkeypatch, number)
        assert left.send(memoryview(data), segment) is Sent.OK
        monkeypatch.undo()
        assert datagrams(right) == cut(data, segment)
    assert left.offload == BOTH
    assert (left.sent, left.errors, left.dropped) == (4, 2, 0)


def test_two_such_errors_in_a_row_do_not_switch_batches_off(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, right = pair(opened, "127.0.0.1", BOTH)
    Refusing(monkeypatch, errno.ECONNREFUSED, errno.ECONNREFUSED, batches_only=True)
    for _ in range(2):
        assert left.send(memoryview(bytes(3_000)), 1_000) is Sent.OK
        assert datagrams(right) == [bytes(1_000)] * 3
    assert left.offload == BOTH


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOBUFS])
@pytest.mark.parametrize(("offload", "gone"), [(PLAIN, 2), (BOTH, 0)])
def test_full_queue_drops_and_counts(
    opened: Open, monkeypatch: pytest.MonkeyPatch, number: int, offload: UdpOffload, gone: int
) -> None:
    left, right = pair(opened, "127.0.0.1", offload)
    original: SendMsg = socket.socket.sendmsg
    sends = 0

    def sendmsg(sock: socket.socket, buffers: Any, control: Any = (), *rest: Any) -> int:
        nonlocal sends
        sends += 1
        if sends > gone:
            raise OSError(number, os.strerror(number))
        return original(sock, buffers, control, *rest)

    monkeypatch.setattr(socket.socket, "sendmsg", sendmsg)
    assert left.send(memoryview(bytes(10_001)), 1_000) is Sent.FULL
    assert (left.sent, left.dropped, left.errors) == (gone, 11 - gone, 0)
    assert len(datagrams(right)) == gone
    assert left.offload == offload


@pytest.mark.parametrize(
    ("number", "outcome"),
    [
        (errno.ENETUNREACH, Sent.UNREACHABLE),
        (errno.EADDRNOTAVAIL, Sent.UNREACHABLE),
        (errno.EINVAL, Sent.UNREACHABLE),
        (errno.EPERM, Sent.FAILED),
        (errno.EMSGSIZE, Sent.TOO_BIG),
    ],
)
@pytest.mark.parametrize("offload", [PLAIN, BOTH])
def test_outcome_of_errors_that_stay(
    opened: Open, monkeypatch: pytest.MonkeyPatch, number: int, outcome: Sent, offload: UdpOffload
) -> None:
    left, right = pair(opened, "127.0.0.1", offload)
    Refusing(monkeypatch, *[number] * 4)
    assert left.send(memoryview(bytes(3_000)), 1_000) is outcome
    assert left.offload == offload  # it is not the batch that is at fault
    assert left.sent == 0
    assert datagrams(right) == []


@pytest.mark.parametrize("offload", [PLAIN, BOTH])
def test_too_big_for_the_device(opened: Open, offload: UdpOffload) -> None:
    left, right = pair(opened, "127.0.0.1", offload)
    for data in (bytes(65_508), bytes(140_000)):
        assert left.send(memoryview(data), 65_508) is Sent.TOO_BIG
    assert left.send(memoryview(bytes(65_507)), 65_507) is Sent.OK
    assert [len(datagram) for datagram in datagrams(right)] == [65_507]


def test_nobody_listens(opened: Open) -> None:
    left, right = pair(opened, "127.0.0.1", BOTH)
    address = right.address
    right.close()
    for _ in range(3):  # the ICMP error of each comes with the next
        assert left.send(memoryview(bytes(2_000)), 1_000) is Sent.OK
    assert left.receive(ROOM) is None
    assert left.errors >= 3
    assert left.offload == BOTH
    back = opened("127.0.0.1", port=address[1])
    back.connect(left.address)
    left.send(memoryview(b"a"), 1)
    assert datagrams(back) == [b"a"]


# --- the check at the start ---------------------------------------------------------------------------------


def test_check_says_what_works() -> None:
    found = check_offload()
    assert found.gso or found.reason
    assert found.gro or found.reason
    assert check_offload("off") == UdpOffload(False, False, "switched off in the configuration")


def damaged(monkeypatch: pytest.MonkeyPatch, damage: Callable[[memoryview, int], int]) -> None:
    """Let `damage` change each received batch; it gets its bytes and size and returns the size."""
    original = socket.socket.recvmsg_into

    def recvmsg_into(sock: socket.socket, buffers: Any, *rest: Any) -> Any:
        size, *others = original(sock, buffers, *rest)
        return damage(buffers[0], size), *others

    monkeypatch.setattr(socket.socket, "recvmsg_into", recvmsg_into)


def flip(data: memoryview, size: int) -> int:
    data[size - 1] ^= 1
    return size


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flip, "this kernel damages batches"),
        (lambda data, size: size - 1, "batches sent to this host itself did not arrive whole"),
    ],
)
def test_check_finds_damage(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[memoryview, int], int],
    reason: str,
) -> None:
    damaged(monkeypatch, damage)
    monkeypatch.setattr(udp_check, "CHECK_SECONDS", 0.0)
    assert check_offload() == UdpOffload(False, False, reason)
    assert reason in caplog.text


def test_check_finds_damaged_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    original = socket.socket.recvmsg_into

    def recvmsg_into(*arguments: Any) -> Any:
        size, control, *others = original(*arguments)
        wrong = [(level, kind, (1_399).to_bytes(4, sys.byteorder)) for level, kind, _ in control]
        return size, wrong, *others

    monkeypatch.setattr(socket.socket, "recvmsg_into", recvmsg_into)
    assert check_offload() == UdpOffload(False, False, "this kernel damages batches")


def test_check_finds_a_kernel_that_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    Refusing(monkeypatch, errno.EIO, errno.EIO, batches_only=True)
    assert check_offload() == UdpOffload(False, True, "the kernel refused a batch (EIO)")


def test_check_finds_a_kernel_that_does_not_join(monkeypatch: pytest.MonkeyPatch) -> None:
    original = socket.socket.setsockopt

    def setsockopt(sock: socket.socket, level: int, name: int, value: int) -> None:
        if (level, name) == (udp_options.SOL_UDP, udp_options.UDP_GRO):
            raise OSError(errno.ENOPROTOOPT, "not known")
        original(sock, level, name, value)

    monkeypatch.setattr(socket.socket, "setsockopt", setsockopt)
    assert check_offload() == UdpOffload(True, False, "the kernel does not join datagrams (ENOPROTOOPT)")


def test_check_without_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(sock: socket.socket, address: SocketAddress) -> None:
        raise OSError(errno.ENETUNREACH, "unreachable")

    monkeypatch.setattr(socket.socket, "connect", connect)
    assert check_offload() == UdpOffload(
        False, False, "the check on the loopback device failed (ENETUNREACH)"
    )


# --- one behind the other ---------------------------------------------------------------------------------------------


def behind(sock: UdpSocket, most: int = RECEIVE_SIZE) -> tuple[bytes, int, bytes | None]:
    """The next batch with all that is put behind it, the size of its datagrams, and what came that is not like it."""
    buffer = memoryview(bytearray(2 * RECEIVE_SIZE))
    first = sock.receive(buffer)
    assert first is not None
    batch, other, _ = sock.receive_behind(first, most)
    assert batch.data is buffer and (other is None or other.data is buffer)
    rest = None if other is None else bytes(buffer[batch.size : batch.size + other.size])
    return bytes(buffer[: batch.size]), batch.segment, rest


@pytest.fixture(params=[Gathered, OneByOne])
def reading(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the two readers behind a first datagram."""
    monkeypatch.setattr(udp, "make_reader", request.param)


@pytest.mark.usefixtures("reading")
@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize(
    ("sent", "got", "other", "left"),
    [
        ([b"1a", b"1b", b"1c"], b"1a1b1c", None, []),
        ([b"1aa", b"1b", b"1cc"], b"1aa1b", None, [b"1cc"]),  # only the last one may be shorter
        ([b"1a", b"1bbb", b"1c"], b"1a", b"1bbb", [b"1c"]),
        ([b"1a", b"2b", b"1c"], b"1a", b"2b", [b"1c"]),  # of another kind
        ([b"1a", b"1b", b"2c"], b"1a1b", b"2c", []),
        ([b"1aa", b"2b", b"1cc"], b"1aa", b"2b", [b"1cc"]),
        ([b"1a", b"1b", b"1c", b"1d"], b"1a1b1c", None, [b"1d"]),  # there is room for three
        (
            [b"1a", b"1b", b"1" * 60_000, b"1" * 50_000],
            b"1a1b",
            b"1" * 60_000,
            [b"1" * 50_000],
        ),  # nothing is cut
    ],
)
def test_datagrams_that_are_alike_are_put_behind_each_other(
    opened: Open, host: str, sent: list[bytes], got: bytes, other: bytes | None, left: list[bytes]
) -> None:
    left_sock, right = pair(opened, host, PLAIN)
    for datagram in sent:
        assert left_sock.send(memoryview(datagram), len(datagram)) is Sent.OK
    size = len(sent[0])
    assert behind(right, 3 * size if sent[-1] == b"1d" else RECEIVE_SIZE) == (got, size, other)
    for datagram in left:
        batch = right.receive(ROOM)
        assert batch is not None and bytes(batch.data[: batch.size]) == datagram
    assert right.receive(ROOM) is None
    assert (right.received, right.received_bytes) == (len(sent), sum(map(len, sent)))


@pytest.mark.usefixtures("reading")
@pytest.mark.parametrize("host", HOSTS)
def test_what_differs_by_its_sender_or_its_mark_is_not_put_behind(opened: Open, host: str) -> None:
    to, one, two = opened(host, PLAIN), opened(host, PLAIN), opened(host, PLAIN)
    for sock, data in ((one, b"1a"), (two, b"1b")):
        assert sock.send(memoryview(data), 2, UdpPeer(to.address)) is Sent.OK
    assert behind(to) == (b"1a", 2, b"1b")
    for data, mark in ((b"1a", 0), (b"1b", 3), (b"1c", 3)):
        one._sock.setsockopt(*MARK_OPTIONS[host], mark)
        assert one.send(memoryview(data), 2, UdpPeer(to.address)) is Sent.OK
    assert behind(to) == (b"1a", 2, b"1b")
    batch = to.receive(ROOM)
    assert batch is not None and batch.marked


def test_what_was_read_and_not_wanted_comes_with_its_own_sender(opened: Open) -> None:
    to, one, two = opened("::1", PLAIN), opened("::1", PLAIN), opened("::1", PLAIN)
    for sock, data in ((one, b"1a"), (one, b"2b"), (two, b"1c"), (one, b""), (one, b"1d")):
        assert sock.send(memoryview(data), 2, UdpPeer(to.address)) is Sent.OK
    assert behind(to) == (b"1a", 2, b"2b")
    found = [to.receive(ROOM), to.receive(ROOM)]
    assert [batch and batch.peer.address for batch in found] == [two.address, one.address]
    assert to.receive(ROOM) is None


@pytest.mark.usefixtures("reading")
@pytest.mark.parametrize("sizes", [(2, 5), (5, 2), (300, 1400)])
def test_runs_of_another_size_than_the_first_come_whole(opened: Open, sizes: tuple[int, int]) -> None:
    left, right = pair(opened, HOSTS[0], PLAIN)
    size, other_size = sizes
    sent = [bytes((1, number)) + bytes(size - 2) for number in range(3)]
    sent += [bytes((1, number)) + bytes((number,)) * (other_size - 2) for number in range(3, 9)]
    for datagram in sent:
        assert left.send(memoryview(datagram), len(datagram)) is Sent.OK
    buffer = memoryview(bytearray(2 * RECEIVE_SIZE))
    got: list[bytes] = []
    while (first := right.receive(buffer)) is not None:
        batch, other, _ = right.receive_behind(first, RECEIVE_SIZE)
        got += cut(bytes(buffer[: batch.size]), batch.segment)
        if other is not None:
            buffer[: other.size] = bytes(buffer[batch.size : batch.size + other.size])
            batch, last, _ = right.receive_behind(other, RECEIVE_SIZE)
            got += cut(bytes(buffer[: batch.size]), batch.segment)
            assert last is None
    assert got == sent


@pytest.mark.usefixtures("reading")
def test_what_the_kernel_has_joined_is_not_put_behind(opened: Open) -> None:
    left, right = pair(opened, "127.0.0.1", BOTH)
    left.send(memoryview(b"1a"), 2)
    left.send(memoryview(b"1b1c1d"), 2)
    assert behind(right) == (b"1a", 2, b"1b1c1d")
    assert right.received == 4
