"""The lane carriers of a client and an exit, over real sockets on the loopback device, on a virtual clock.

Linux delivers on the loopback device before a send returns, so `Loop.settle` runs readers until all is quiet, and no
test waits. What is lost, blocked or refused is decided at `UdpSocket.send`.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import select
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate, count
from typing import Any, Final, cast

import pytest

from cryprq_proxy.address import Destination
from cryprq_proxy.base.buffers import SHARED
from cryprq_proxy.carriers.lane import listener as listener_module
from cryprq_proxy.carriers.lane import shared_port
from cryprq_proxy.carriers.lane.batch import RECEIVE_SIZE, Sent, SocketAddress, UdpOffload, UdpPeer
from cryprq_proxy.carriers.lane.carrier import MAX_PAYLOAD, LaneCarrier
from cryprq_proxy.carriers.lane.client import ClientLane
from cryprq_proxy.carriers.lane.listener import LaneListener
from cryprq_proxy.carriers.lane.train import PacketTrain
from cryprq_proxy.carriers.lane.udp_socket import UdpSocket
from cryprq_proxy.crypto.handshake import EpochSecrets
from cryprq_proxy.crypto.primitives import Cipher
from cryprq_proxy.errors import ConfigError, PeerError
from cryprq_proxy.lane.layout import OVERHEAD
from cryprq_proxy.lane.path import SILENCE
from cryprq_proxy.lane.sealing import OUT_SIZE
from cryprq_proxy.lane.slices import HEADROOM, NEEDS_CSUM, SLICE_SIZE, TCP4, Run, Shape
from cryprq_proxy.status import OffloadStatus

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the loopback device is synchronous on Linux")

PLAIN: Final = UdpOffload(False, False, "off")
BOTH: Final = UdpOffload(True, True)
WHOLE: Final = Shape(0, 0, 0)
NAME: Final = Destination("example.com", 53)


class Loop:
    """What a lane needs of an event loop, on a virtual clock."""

    class Timer:
        def __init__(self, when: float, callback: Callable[[], None]) -> None:
            self.when = when
            self.callback = callback
            self.cancelled = False

        def cancel(self) -> None:
            self.cancelled = True

    def __init__(self) -> None:
        self.now = 1_000.0
        self.readers: dict[int, Callable[[], None]] = {}
        self.timers: list[Loop.Timer] = []
        self.soon: list[Callable[[], None]] = []

    @property
    def typed(self) -> asyncio.AbstractEventLoop:
        return cast("asyncio.AbstractEventLoop", self)

    def clock(self) -> float:
        return self.now

    time = clock

    def add_reader(self, fd: int, callback: Callable[..., Any], *args: Any) -> None:
        assert fd not in self.readers
        self.readers[fd] = lambda: callback(*args)

    def remove_reader(self, fd: int) -> bool:
        return self.readers.pop(fd, None) is not None

    def call_soon(self, callback: Callable[..., Any], *args: Any) -> None:
        self.soon.append(lambda: callback(*args))

    def call_later(self, delay: float, callback: Callable[..., Any], *args: Any) -> Loop.Timer:
        assert delay > 0 and not args
        timer = Loop.Timer(self.now + delay, callback)
        self.timers.append(timer)
        return timer

    def settle(self) -> None:
        """Until no socket is readable."""
        for _ in range(1_000):
            poll = select.poll()
            for fd in self.readers:
                poll.register(fd, select.POLLIN)
            ready = poll.poll(0)
            if not ready and not self.soon:
                return
            soon, self.soon = self.soon, []
            for callback in soon:
                callback()
            for fd, _ in ready:
                self.readers.get(fd, lambda: None)()
        raise AssertionError("two sides talk for ever")

    def advance(self, seconds: float) -> None:
        """Timers that are due, in their order, and what they cause."""
        end = self.now + seconds
        self.settle()
        while due := [timer for timer in self.timers if not timer.cancelled and timer.when <= end]:
            timer = min(due, key=lambda timer: timer.when)
            self.timers.remove(timer)
            self.now = max(self.now, timer.when)
            timer.callback()
            self.settle()
        self.now = end

    def live_timers(self) -> int:
        return sum(not timer.cancelled for timer in self.timers)


@dataclass
class Handler:
    announce: Callable[[int, int], None] = lambda number, index: None
    packets: list[tuple[bytes, Run]] = field(default_factory=list)
    datagrams: list[tuple[int, Destination, bytes]] = field(default_factory=list)
    changes: int = 0

    def packet(self, buffer: memoryview, start: int, end: int, run: Run) -> None:
        self.packets.append((bytes(buffer[start:end]), run))
        buffer[start - HEADROOM : end] = bytes(HEADROOM + end - start)

    def datagram(self, stream: int, destination: Destination, payload: memoryview) -> None:
        self.datagrams.append((stream, destination, bytes(payload)))

    def lane_changed(self) -> None:
        self.changes += 1


def secrets() -> EpochSecrets:
    return EpochSecrets(*(os.urandom(32) for _ in range(6)))


class Session:
    """A client's and an exit's lane; LANE frames arrive at once, and wait in `held` while `hold`."""

    def __init__(self, loop: Loop, listener: LaneListener, exit: SocketAddress, offload: UdpOffload) -> None:
        self.loop = loop
        self.held: list[Callable[[], None]] = []
        self.hold = False
        self.at_client = Handler(lambda *frame: self.frame(self.exit, *frame))
        self.at_exit = Handler(lambda *frame: self.frame(self.client, *frame))
        self.client = ClientLane(loop.typed, self.at_client, offload, clock=loop.clock)
        self.exit: LaneCarrier = listener.carrier(self.at_exit, exit)
        self.where = exit
        self.listener = listener

    def frame(self, to: LaneCarrier, number: int, index: int) -> None:
        self.held.append(lambda: to.announced(number, index))

    def deliver(self) -> None:
        for frame in self.held:
            frame()
        self.held.clear()

    def epoch(self, number: int = 0) -> None:
        keys = secrets()
        for side in (self.exit, self.client):
            side.epoch(Cipher.AES_256_GCM, number, keys, self.loop.now)
        if not self.hold:
            self.deliver()

    def start(self) -> None:
        self.client.move(self.where)
        self.epoch()
        self.loop.advance(0.5)

    def send(self, data: bytes, shape: Shape = WHOLE, *, back: bool = False) -> bool:
        buffer = memoryview(bytearray(HEADROOM) + data)
        side = self.exit if back else self.client
        taken = side.send_packet(buffer, HEADROOM, len(buffer), shape)
        self.loop.settle()
        return taken

    def close(self) -> None:
        self.client.close()
        self.exit.close()


class Network:
    """Decides at UdpSocket.send: `lost(sock, segment)` datagrams vanish, `answers[sock]` are given in its place."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lost: Callable[[UdpSocket, int], bool] = lambda sock, segment: False
        self.answer: Callable[[UdpSocket, int], Sent | None] = lambda sock, segment: None
        original = UdpSocket.send

        def send(
            sock: UdpSocket, data: memoryview, segment: int, to: UdpPeer | None = None, ect: bool = False
        ) -> Sent:
            answer = self.answer(sock, segment)
            if answer is not None:
                return answer
            return Sent.OK if self.lost(sock, segment) else original(sock, data, segment, to, ect)

        monkeypatch.setattr(UdpSocket, "send", send)


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    return Network(monkeypatch)


@pytest.fixture
def loop() -> Loop:
    return Loop()


type Join = Callable[..., Session]


@pytest.fixture
def join(loop: Loop) -> Iterator[Join]:
    """Makes sessions of one exit, not started yet; all are closed at the end, and nothing may be left."""
    sessions: list[Session] = []
    listeners: dict[tuple[str, UdpOffload], LaneListener] = {}

    def make(host: str = "127.0.0.1", offload: UdpOffload = BOTH, *, wildcard: bool = False) -> Session:
        bound = host if not wildcard else "0.0.0.0"
        listener = listeners.get((bound, offload))
        if listener is None:
            listener = listeners[bound, offload] = LaneListener(
                loop.typed, [(bound, 0)], offload, clock=loop.clock
            )
        sessions.append(Session(loop, listener, (host, listener.addresses[0][1]), offload))
        return sessions[-1]

    yield make
    for session in sessions:
        session.close()
    for listener in listeners.values():
        assert not listener._lanes
        listener.close()
    assert not loop.readers
    assert not loop.live_timers()


def tcp_packet(payload: int) -> bytes:
    """An IPv4 super-packet: the lane looks at the length in its header only."""
    return struct.pack("!BBH", 0x45, 0, 40 + payload) + os.urandom(36 + payload)


def plain_packet(size: int) -> bytes:
    return struct.pack("!BBH", 0x45, 0, size) + os.urandom(size - 4)


# --- coming up ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("offload", [PLAIN, BOTH])
def test_comes_up_by_probing_and_finds_the_size(join: Join, host: str, offload: UdpOffload) -> None:
    session = join(host, offload)
    assert not session.client.up and not session.exit.up
    session.start()
    assert session.client.up and session.exit.up
    assert session.client.size == session.exit.size == MAX_PAYLOAD  # the loopback device would take more
    assert session.at_client.changes and session.at_exit.changes


def test_nothing_is_sent_before_both_sides_can(join: Join, loop: Loop) -> None:
    session = join()
    session.hold = True
    session.start()
    loop.advance(20.0)
    assert session.client.status().sent == session.exit.status().sent == 0
    assert session.client.status().path.probes == 0
    assert session.client.why == "the peer has not announced its side yet"
    session.deliver()
    loop.advance(0.5)  # no probe was wasted, so it comes up at once
    assert session.client.up and session.exit.up


def test_socket_may_come_last(join: Join, loop: Loop) -> None:
    session = join()
    session.epoch()
    loop.advance(20.0)
    assert session.client.why == "there is no route to the exit"
    assert not session.send(plain_packet(100))
    session.client.move(session.where)
    loop.advance(0.5)
    assert session.client.up


async def test_on_a_real_loop() -> None:
    """The only test on asyncio's clock: it waits for the lane to come up, and for a packet, not for a time."""
    loop = asyncio.get_running_loop()
    up, arrived = asyncio.Event(), asyncio.Event()

    class Waiting(Handler):
        def lane_changed(self) -> None:
            if client.up:
                up.set()

        def packet(self, buffer: memoryview, start: int, end: int, run: Run) -> None:
            super().packet(buffer, start, end, run)
            arrived.set()

    keys = secrets()
    announced: list[tuple[int, int]] = []
    client = ClientLane(loop, Waiting(lambda *frame: announced.append(frame)), BOTH)
    at_exit = Waiting(client.announced)
    listener = LaneListener(loop, [("127.0.0.1", 0)], BOTH)
    exit = listener.carrier(at_exit)
    try:
        client.epoch(Cipher.AES_256_GCM, 0, keys, 0.0)
        exit.epoch(Cipher.AES_256_GCM, 0, keys, 0.0)
        exit.announced(*announced[0])
        client.move(listener.addresses[0])
        await asyncio.wait_for(up.wait(), 30)
        data = plain_packet(500)
        buffer = memoryview(bytearray(HEADROOM) + data)
        assert client.send_packet(buffer, HEADROOM, len(buffer), Shape(0, 0, 0))
        await asyncio.wait_for(arrived.wait(), 30)
        assert [packet for packet, _ in at_exit.packets] == [data]
    finally:
        client.close()
        exit.close()
        listener.close()


# --- packets and datagrams ----------------------------------------------------------------------------------


@pytest.mark.parametrize("offload", [PLAIN, BOTH])
@pytest.mark.parametrize("back", [False, True])
def test_super_packets(join: Join, offload: UdpOffload, back: bool) -> None:
    session = join(offload=offload)
    session.start()
    handler = session.at_client if back else session.at_exit
    shape = Shape(NEEDS_CSUM | TCP4, 1_360, 40)
    for payload in (40 * 1_360, 40 * 1_360 - 1, 1_361, 2 * 1_360):
        data = tcp_packet(payload)
        handler.packets.clear()
        assert session.send(data, shape, back=back)
        number = -(-payload // 1_360)
        if offload.gro:
            assert handler.packets == [(data, Run(shape, 0, number, number))]
        else:  # as many together as one wake-up brought
            assert b"".join(packet[40:] for packet, _ in handler.packets) == data[40:]
            runs = [run for _, run in handler.packets]
            assert [run.first for run in runs] == [0, *accumulate(run.count for run in runs[:-1])]
            assert sum(run.count for run in runs) == number
            assert {packet[:40] for packet, _ in handler.packets} == {data[:40]}


def test_small_packets_of_one_wakeup_leave_together(join: Join, monkeypatch: pytest.MonkeyPatch) -> None:
    session = join()
    session.start()
    calls: list[tuple[int, int]] = []
    original = UdpSocket.send

    def send(self: UdpSocket, data: memoryview, segment: int, to: UdpPeer | None = None, *_: bool) -> Sent:
        calls.append((len(data), segment))
        return original(self, data, segment, to)

    monkeypatch.setattr(UdpSocket, "send", send)
    packets = [plain_packet(size) for size in (300, 300, 300, 200, 400, 500, 500)]
    for data in packets:
        buffer = memoryview(bytearray(HEADROOM) + data)
        assert session.client.send_packet(buffer, HEADROOM, len(buffer), Shape(0, 0, 0), True)
    assert len(calls) == 2  # a shorter one ends a send, and so does a longer one
    SHARED.one(PacketTrain).flush()
    overhead = OVERHEAD + SLICE_SIZE
    assert calls == [
        (300 * 3 + 200 + 4 * overhead, 300 + overhead),
        (400 + overhead, 400 + overhead),
        (500 * 2 + 2 * overhead, 500 + overhead),
    ]
    session.loop.settle()
    assert [packet for packet, _ in session.at_exit.packets] == packets
    SHARED.one(PacketTrain).flush()
    assert len(calls) == 3


def test_packets_of_several_lanes_in_one_wakeup(join: Join) -> None:
    """As an exit sends to its clients: each gets its own, in order."""
    sessions = [join(), join()]
    for session in sessions:
        session.start()
    packets = [plain_packet(size) for size in (330, 330, 320, 310)]
    for data in packets:
        for session in sessions:
            buffer = memoryview(bytearray(HEADROOM) + data)
            assert session.client.send_packet(buffer, HEADROOM, len(buffer), Shape(0, 0, 0), True)
    SHARED.one(PacketTrain).flush()
    for session in sessions:
        session.loop.settle()
        assert [packet for packet, _ in session.at_exit.packets] == packets


def test_a_closed_lane_sends_nothing_that_was_held_back(join: Join) -> None:
    session = join()
    session.start()
    buffer = memoryview(bytearray(HEADROOM) + plain_packet(300))
    assert session.client.send_packet(buffer, HEADROOM, len(buffer), Shape(0, 0, 0), True)
    before = session.client.status().sent
    session.client.close()
    SHARED.one(PacketTrain).flush()
    assert session.client.status().sent == before


def test_super_packet_is_one_call(join: Join, monkeypatch: pytest.MonkeyPatch) -> None:
    session = join()
    session.start()
    calls = []
    original = UdpSocket.send

    def send(sock: UdpSocket, data: memoryview, segment: int, to: UdpPeer | None = None, *_: bool) -> Sent:
        calls.append((len(data), segment))
        return original(sock, data, segment, to)

    monkeypatch.setattr(UdpSocket, "send", send)
    session.send(tcp_packet(40 * 1_360), Shape(NEEDS_CSUM | TCP4, 1_360, 40))
    assert [-(-size // segment) for size, segment in calls] == [40]


@pytest.mark.parametrize("back", [False, True])
def test_plain_packets(join: Join, back: bool) -> None:
    session = join()
    session.start()
    data = [plain_packet(size) for size in (28, 100, 1_400, 1_500)]
    for packet in data:
        assert session.send(packet, back=back)
    handler = session.at_client if back else session.at_exit
    assert [packet for packet, _ in handler.packets] == data


def test_datagrams_both_ways(join: Join, loop: Loop) -> None:
    session = join()
    session.start()
    assert session.client.send_datagram(7, NAME, b"question")
    assert session.exit.send_datagram(7, Destination("192.0.2.1", 53), memoryview(b"answer"))
    assert session.client.send_datagram(2**32 - 1, Destination("2001:db8::1", 1), b"")
    loop.settle()
    assert session.at_exit.datagrams == [
        (7, NAME, b"question"),
        (2**32 - 1, Destination("2001:db8::1", 1), b""),
    ]
    assert session.at_client.datagrams == [(7, Destination("192.0.2.1", 53), b"answer")]


def test_datagram_that_does_not_fit_is_left_to_the_reliable_lane(join: Join, loop: Loop) -> None:
    session = join()
    session.start()
    most = session.exit.size - 29 - 5 - 7
    destination = Destination("192.0.2.1", 53)
    assert session.exit.send_datagram(1, destination, bytes(most))
    assert not session.exit.send_datagram(1, destination, bytes(most + 1))
    loop.settle()
    assert [len(payload) for *_, payload in session.at_client.datagrams] == [most]


def test_many_sessions_behind_one_socket(join: Join, loop: Loop) -> None:
    sessions = [join() for _ in range(5)]
    for session in sessions:
        session.start()
    for number, session in enumerate(sessions):
        session.client.send_datagram(number, NAME, b"to the exit")
        session.exit.send_datagram(number, NAME, b"to the client")
    loop.settle()
    for number, session in enumerate(sessions):
        assert session.at_exit.datagrams == [(number, NAME, b"to the exit")]
        assert session.at_client.datagrams == [(number, NAME, b"to the client")]


def test_sessions_in_one_wake_up_are_all_answered(join: Join, loop: Loop) -> None:
    sessions = [join() for _ in range(3)]
    for session in sessions:
        session.client.move(session.where)
        session.epoch()
    for session in sessions:
        session.client._tick(loop.now)  # the first probes, all of them before the exit reads
    loop.settle()
    for session in sessions:
        assert session.exit.status().sent and session.client.up


def test_exit_with_several_addresses_answers_from_the_one_that_was_asked(join: Join, loop: Loop) -> None:
    sessions = [join(host, wildcard=True) for host in ("127.0.0.1", "127.0.0.9")]
    for session in sessions:
        session.start()
        assert session.client.up
        assert session.send(plain_packet(100), back=True)
        assert len(session.at_client.packets) == 1


def test_new_epochs_go_on_without_a_gap(join: Join, loop: Loop) -> None:
    session = join()
    session.start()
    count = 0
    for number in range(1, 6):
        session.hold = True
        session.epoch(number)
        for back in (False, True):
            session.send(plain_packet(100), back=back)
        session.deliver()
        for back in (False, True):
            session.send(plain_packet(100), back=back)
        count += 2
        assert len(session.at_client.packets) == len(session.at_exit.packets) == count
    loop.advance(30.0)
    assert len(session.listener._lanes) == 1  # the old indices are gone
    assert session.client.up and session.exit.up


def test_announcement_that_makes_no_sense(join: Join) -> None:
    session = join()
    session.epoch()
    with pytest.raises(PeerError):
        session.client.announced(0, 0)


# --- going down, and coming back ----------------------------------------------------------------------------


@pytest.mark.parametrize("blocked", ["client", "exit", "both"])
def test_blocked_while_sending_goes_down_and_comes_back(
    join: Join, loop: Loop, network: Network, blocked: str
) -> None:
    session = join()
    session.start()
    port = session.where[1]
    network.lost = lambda sock, segment: blocked == "both" or (sock.address[1] == port) == (blocked == "exit")
    until = loop.now + 3 * SILENCE
    while session.client.up and loop.now < until:
        session.send(plain_packet(100))
        loop.advance(0.25)
    assert loop.now < until
    assert not session.send(plain_packet(100))
    loop.advance(60.0)
    assert not session.client.up
    assert session.client.status().why
    network.lost = lambda sock, segment: False
    loop.advance(20.0)
    assert session.client.up and session.exit.up
    before = len(session.at_exit.packets)
    assert session.send(plain_packet(100)) and session.send(plain_packet(100), back=True)
    assert len(session.at_exit.packets) == before + 1


def test_silence_makes_a_new_socket(join: Join, loop: Loop, network: Network) -> None:
    """An address translator that lost its memory is only passed from another port."""
    session = join()
    session.start()
    assert session.client._here is not None
    port = session.client._here.socket.address[1]
    network.lost = lambda sock, segment: sock.address[1] == port
    for _ in range(8):
        session.send(plain_packet(100))
        loop.advance(1.0)
    assert session.client._here is not None and session.client._here.socket.address[1] != port
    assert session.client.up
    assert session.send(plain_packet(100), back=True)
    assert session.at_client.packets


def test_client_moves_and_the_exit_follows(join: Join, loop: Loop) -> None:
    session = join(wildcard=True)
    session.start()
    host, port = "127.0.0.5", session.where[1]
    session.client.move((host, port))
    assert not session.client.up
    loop.advance(2.0)
    assert session.client.up
    session.send(plain_packet(100))
    loop.advance(2.0)
    assert session.send(plain_packet(100), back=True)
    assert len(session.at_client.packets) == 1
    assert session.exit.status().path.migrations == 1
    assert session.client.status().peer == f"{host}:{port}"


def test_carrier_to_the_same_exit_leaves_the_lane_alone(join: Join, loop: Loop) -> None:
    session = join()
    session.start()
    session.epoch(1)
    here = session.client._here
    session.client.move(session.where)
    assert session.client.up
    assert session.client._here is here


def test_new_local_address_makes_a_new_socket(
    join: Join, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = join(wildcard=True)
    session.start()

    def connected(address: SocketAddress, offload: UdpOffload, mark: int = 0) -> UdpSocket:
        """As if the route had changed: the kernel chooses another address of this host."""
        sock = UdpSocket(("127.0.0.3", 0), offload, mark)
        sock.connect(address)
        return sock

    with monkeypatch.context() as patch:
        patch.setattr(UdpSocket, "connected", connected)
        session.client.move(session.where)
    loop.advance(2.0)
    assert session.client.up
    endpoint = session.client._outlet()
    assert endpoint is not None and endpoint.socket.address[0] == "127.0.0.3"
    session.send(plain_packet(100))
    loop.advance(2.0)
    assert session.send(plain_packet(100), back=True)
    assert len(session.at_client.packets) == 1


def test_a_lost_address_is_left_at_once_by_a_client_that_sends_nothing(
    join: Join, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = join(wildcard=True)
    session.start()
    loop.advance(2.0)
    here = session.client._outlet()
    session.client.look_at_address()
    loop.settle()
    assert session.client._outlet() is here, "it has its address"

    def connected(address: SocketAddress, offload: UdpOffload, mark: int = 0) -> UdpSocket:
        sock = UdpSocket(("127.0.0.3", 0), offload, mark)
        sock.connect(address)
        return sock

    monkeypatch.setattr(UdpSocket, "connected", connected)
    session.client.look_at_address()
    loop.advance(0.1)
    assert session.exit.path.counters.migrations == 1, "the exit knows it"
    assert session.send(plain_packet(100), back=True)
    assert len(session.at_client.packets) == 1


def test_lost_address_reopens_at_a_bounded_rate(join: Join, loop: Loop, network: Network) -> None:
    session = join()
    session.start()
    opened: list[float] = []
    original = ClientLane._open

    def count(lane: ClientLane, now: float) -> None:
        opened.append(now)
        original(lane, now)

    ClientLane._open = count  # type: ignore[assignment,method-assign]
    try:
        network.answer = lambda sock, segment: (
            Sent.UNREACHABLE if sock.address[1] != session.where[1] else None
        )
        assert session.send(plain_packet(100))  # lost, and the news of it
        assert not session.client.up
        assert not session.send(plain_packet(100))
        loop.advance(10.0)
        assert 9 <= len(opened) <= 11
        assert session.client.why == "there is no route to the exit"
        network.answer = lambda sock, segment: None
        loop.advance(5.0)
        assert session.client.up
    finally:
        ClientLane._open = original  # type: ignore[method-assign]


def test_no_route_at_all(join: Join, loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    session = join()
    tries: list[float] = []

    def connect(sock: socket.socket, address: SocketAddress) -> None:
        tries.append(loop.now)
        raise OSError(errno.ENETUNREACH, "unreachable")

    with monkeypatch.context() as patch:
        patch.setattr(socket.socket, "connect", connect)
        session.start()
        loop.advance(10.0)
        assert 9 <= len(tries) <= 12
        assert not session.client.up and not loop.readers.keys() - {
            sock.fileno() for sock in session.listener._sockets
        }
    loop.advance(2.0)
    assert session.client.up


def test_right_to_mark_that_is_lost_ends_the_lane_with_one_line(
    join: Join,
    loop: Loop,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    network: Network,
) -> None:
    session = join()
    session.start()

    def refuse(*_: object) -> None:
        raise ConfigError("the link's packets cannot be marked")

    monkeypatch.setattr(UdpSocket, "connected", refuse)
    network.answer = lambda sock, segment: Sent.UNREACHABLE
    session.send(plain_packet(100))
    loop.advance(10.0)
    assert not session.client.up
    assert [record.levelname for record in caplog.records].count("WARNING") == 1
    with pytest.raises(ConfigError):
        session.client.move(session.where)


def test_exit_without_a_route_to_the_client_begins_with_ethernet(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(sock: socket.socket, address: SocketAddress) -> None:
        raise OSError(errno.ENETUNREACH, "unreachable")

    monkeypatch.setattr(socket.socket, "connect", connect)
    listener = LaneListener(loop.typed, [("127.0.0.1", 0)], BOTH, clock=loop.clock)
    try:
        for client in (None, ("127.0.0.1", 9)):
            lane = listener.carrier(Handler(), client)
            assert lane.path._ceiling == 1_452
            lane.close()
    finally:
        listener.close()


def test_path_that_takes_less_than_the_interface(join: Join, loop: Loop, network: Network) -> None:
    session = join()
    session.start()
    network.lost = lambda sock, segment: segment > 1_252
    for _ in range(60):
        session.send(tcp_packet(10 * 1_400), Shape(NEEDS_CSUM | TCP4, 1_400, 40))
        loop.advance(0.5)
    assert session.client.up
    assert 1_200 <= session.client.size <= 1_252
    session.at_exit.packets.clear()
    data = tcp_packet(10 * 1_400)
    assert session.send(data, Shape(NEEDS_CSUM | TCP4, 1_400, 40))
    assert [packet for packet, _ in session.at_exit.packets] == [data]


def test_kernel_that_says_too_big(join: Join, loop: Loop, network: Network) -> None:
    session = join()
    session.start()
    network.answer = lambda sock, segment: Sent.TOO_BIG if segment > 1_252 else None
    session.send(plain_packet(5_000))
    loop.advance(1.0)
    assert session.client.up
    assert 1_200 <= session.client.size <= 1_252
    assert session.send(plain_packet(5_000))
    assert len(session.at_exit.packets) == 1
    assert session.client.status().drops["too_big"] > 0


def test_batches_that_fail_at_run_time(
    join: Join, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    session = join()
    session.start()
    original = socket.socket.sendmsg

    def sendmsg(sock: socket.socket, buffers: Any, control: Any = (), *rest: Any) -> int:
        if any(level == 17 for level, *_ in control):
            raise OSError(errno.EIO, "no checksum offload")
        return original(sock, buffers, control, *rest)

    monkeypatch.setattr(socket.socket, "sendmsg", sendmsg)
    shape = Shape(NEEDS_CSUM | TCP4, 1_360, 40)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            session.at_exit.packets.clear()
            data = tcp_packet(10 * 1_360)
            assert session.send(data, shape)
            assert b"".join(packet[40:] for packet, _ in session.at_exit.packets) == data[40:]
    assert len(caplog.records) == 1
    assert session.client.status().offload == OffloadStatus(
        gro=True, reason="the kernel refused a batch (EIO)"
    )
    session.client.move(("127.0.0.5", session.where[1]))  # what is known of the kernel outlives the socket
    assert session.client.status().offload.gso is False


def test_idle_lane_stays_up_and_says_little(join: Join, loop: Loop) -> None:
    session = join()
    session.start()
    loop.advance(10.0)
    before = session.client.status().sent
    loop.advance(600.0)
    assert session.client.up and session.exit.up
    assert session.client.status().sent - before < 300


def test_a_fault_in_the_timer_ends_the_lane_with_one_line(
    join: Join, loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    """Without its timer it would take itself for up, whatever becomes of what it sends."""
    session = join()
    session.start()

    def fault(now: float) -> None:
        raise ZeroDivisionError

    session.client.path.tick = fault  # type: ignore[method-assign]
    loop.advance(60.0)
    assert not session.client.up and not session.send(plain_packet(100))
    assert [record.exc_info is not None for record in caplog.records if record.levelname == "ERROR"] == [True]


# --- strangers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data", [b"\x01", bytes(30), b"\x01" + bytes(40), b"\x02" * 1_200, os.urandom(1_200), b"\x01" * 29]
)
def test_strangers_are_counted_and_get_no_answer(join: Join, loop: Loop, data: bytes) -> None:
    session = join()
    session.start()
    listener = session.listener
    stranger = UdpSocket.connected(session.where, BOTH)
    try:
        stranger.send(memoryview(data), len(data))
        loop.settle()
        assert listener.status().strangers == 1
        assert stranger.receive(memoryview(bytearray(RECEIVE_SIZE))) is None
    finally:
        stranger.close()
    assert session.send(plain_packet(100))
    assert len(session.at_exit.packets) == 1


def test_known_index_under_another_kind_is_a_stranger(join: Join, loop: Loop) -> None:
    session = join()
    session.start()
    (index,) = session.listener._lanes
    stranger = UdpSocket.connected(session.where, BOTH)
    try:
        stranger.send(memoryview(b"\x03" + index.to_bytes(4) + bytes(100)), 105)
        loop.settle()
    finally:
        stranger.close()
    assert session.listener.status().strangers == 1
    assert session.exit.status().drops["unknown"] == 0


def test_known_index_with_garbage_gets_no_answer_and_changes_nothing(join: Join, loop: Loop) -> None:
    session = join()
    session.start()
    (index,) = session.listener._lanes
    stranger = UdpSocket.connected(session.where, BOTH)
    try:
        stranger.send(memoryview(b"\x01" + index.to_bytes(4) + b"\xff" * 8 + bytes(100)), 113)
        loop.settle()
        assert stranger.receive(memoryview(bytearray(RECEIVE_SIZE))) is None
    finally:
        stranger.close()
    assert session.exit.status().drops["tag"] == 1
    assert session.send(plain_packet(100), back=True)
    assert len(session.at_client.packets) == 1


def test_forged_datagram_in_front_of_a_batch_takes_nothing_with_it(
    join: Join, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = join()
    session.start()
    original = UdpSocket.send

    def send(sock: UdpSocket, data: memoryview, segment: int, to: UdpPeer | None = None, *_: bool) -> Sent:
        return original(sock, memoryview(os.urandom(segment) + data), segment, to)

    data = tcp_packet(10 * 1_360)
    with monkeypatch.context() as patch:
        patch.setattr(UdpSocket, "send", send)
        assert session.client.send_packet(
            memoryview(bytearray(HEADROOM) + data),
            HEADROOM,
            HEADROOM + len(data),
            Shape(NEEDS_CSUM | TCP4, 1_360, 40),
        )
    loop.settle()
    assert [packet for packet, _ in session.at_exit.packets] == [data]
    assert session.exit.status().drops["unknown"] == 1


def test_authentic_datagram_without_a_destination(join: Join, loop: Loop) -> None:
    session = join()
    session.start()
    out = memoryview(bytearray(OUT_SIZE))
    for message in (b"\x02", b"\x02\0\0\0\1", b"\x02\0\0\0\1\x07abc", b"\x02\0\0\0\1\x03\x02..\0\1"):
        size = session.client.lane.seal(message, out, 0)
        here = session.client._outlet()
        assert here is not None
        here.socket.send(out[:size], size)
    loop.settle()
    assert session.at_exit.datagrams == []
    assert session.exit.status().drops["malformed"] == 4


# --- the end ------------------------------------------------------------------------------------------------


def test_closed_lane_does_nothing(join: Join, loop: Loop) -> None:
    session = join()
    session.start()
    for _ in range(2):
        session.close()
    assert not session.client.up and not session.exit.up
    assert not session.send(plain_packet(100))
    assert not session.send(plain_packet(100), back=True)
    assert not session.client.send_datagram(1, NAME, b"")
    session.client.move(session.where)
    loop.advance(10.0)
    assert not loop.live_timers()


def test_handler_may_close_the_lane_in_a_call(join: Join, loop: Loop) -> None:
    for side in ("client", "exit"):
        session = join()
        session.start()
        lane = session.client if side == "client" else session.exit
        handler = session.at_client if side == "client" else session.at_exit

        def close(*_: object, lane: LaneCarrier = lane) -> None:
            lane.close()

        handler.datagram = close  # type: ignore[assignment,method-assign]
        for _ in range(3):
            (session.exit if side == "client" else session.client).send_datagram(1, NAME, b"")
        loop.advance(1.0)
        assert not lane.up


def test_port_that_is_taken(loop: Loop) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        with pytest.raises(
            ConfigError, match=r"cannot listen on UDP 127\.0\.0\.1:\d+ \(address already in use\)"
        ):
            LaneListener(loop.typed, [("127.0.0.1", 0), other.getsockname()], BOTH, clock=loop.clock)
    assert not loop.readers


def test_an_exit_and_its_successor_share_a_port(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each gets what is for it, and the successor all when the other one has gone."""
    monkeypatch.setattr(listener_module, "new_tag", count().__next__)
    older = LaneListener(loop.typed, [("127.0.0.1", 0)], BOTH, clock=loop.clock)
    where = older.addresses[0]
    before = Session(loop, older, where, BOTH)
    before.start()
    for number in range(20):
        newer = LaneListener(loop.typed, [where], BOTH, clock=loop.clock)
        sessions = [Session(loop, newer, where, BOTH) for _ in range(5)]
        for session in sessions:
            session.start()
        for session in (before, *sessions):
            assert session.client.send_datagram(1, NAME, b"%d" % number)
            assert session.exit.send_datagram(1, NAME, b"%d" % number)
        loop.settle()
        for session in (before, *sessions):
            assert (
                session.at_exit.datagrams[-1] == session.at_client.datagrams[-1] == (1, NAME, b"%d" % number)
            )
        assert older.strangers == newer.strangers == 0
        before.close()
        older.close()
        for session in sessions:
            assert session.client.send_datagram(1, NAME, b"after")
        loop.settle()
        assert all(session.at_exit.datagrams[-1] == (1, NAME, b"after") for session in sessions)
        older, before = newer, sessions.pop()
        for session in sessions:
            session.close()
    before.close()
    older.close()
    assert not loop.readers


def test_where_the_kernel_cannot_steer_a_port_is_not_shared(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_port, "SO_ATTACH_REUSEPORT_CBPF", 0xFFFF)
    older = LaneListener(loop.typed, [("127.0.0.1", 0)], BOTH, clock=loop.clock)
    with pytest.raises(ConfigError, match="address already in use"):
        LaneListener(loop.typed, [older.addresses[0]], BOTH, clock=loop.clock)
    older.close()


def test_status(join: Join) -> None:
    session = join()
    for _ in range(2):
        for side in (session.client, session.exit):
            status = side.status()
            assert status.up is side.up and status.why == side.why
        if not session.client.up:
            session.start()
    assert session.client.status().sent == session.exit.status().received > 0
    assert session.listener.status().sockets[0].offload.gso
