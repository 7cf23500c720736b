"""The TCP carrier: what it does with a slow, a broken and an ended socket, with time, and with its session's end."""

from __future__ import annotations

import asyncio
import errno
import random
import socket
from collections.abc import Callable
from typing import Any, NoReturn

import pytest

from cryprq_proxy.base.clock import clock
from cryprq_proxy.base.linger import farewells_ended
from cryprq_proxy.carriers import carrier as carrier_module
from cryprq_proxy.carriers.carrier import (
    CHECK_SECONDS,
    LOWAT_SECONDS,
    MAX_LOWAT,
    MIN_LOWAT,
    PROBE_SECONDS,
    SEND_SIZE,
    SUSPEND_JUMP,
    Carrier,
)
from cryprq_proxy.carriers.pacing import SHORTEST
from cryprq_proxy.carriers.tcp import TcpCarrier
from cryprq_proxy.errors import CarrierError, CloseReason, PeerError
from cryprq_proxy.session import wire
from cryprq_proxy.session.path import ACK_DELAY
from cryprq_proxy.session.scheduler import Scheduler
from cryprq_proxy.session.turns import BYTES_PER_UNIT, TURN_WORK
from cryprq_proxy.session.wire import StreamProtocol
from tests.support.carrier_stage import BOUNDLESS, FD, Stage
from tests.support.links import TARGET, App, LaterOffload, Link
from tests.support.settings import session_limits


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(monkeypatch)


def opened(stage: Stage) -> App:
    """A stream that the peer has accepted."""
    stage.carrier.start()
    app = stage.link.open()
    stage.exchange()
    assert app.events == [("opened",)]
    return app


def lost(stage: Stage) -> PeerError | None:
    """What the owner was told; the carrier has let go of everything."""
    (error,) = stage.lost
    assert not stage.carrier.open
    assert not stage.link.client.attached
    assert stage.loop.readers == stage.loop.writers == {}
    assert all(timer.cancelled for timer in stage.loop.timers)
    return error


# --- out ---


def test_what_waited_leaves_at_the_start(stage: Stage) -> None:
    stage.link.open()
    stage.carrier.start()
    stage.deliver()
    assert list(stage.link.served) == [1]


@pytest.mark.parametrize("room", [1, 3, 1_000, 70_000])
def test_what_the_kernel_does_not_take_leaves_later(stage: Stage, room: int) -> None:
    app = opened(stage)
    data = random.Random(room).randbytes(200 * room if room < 1_000 else 1_000_000)
    stage.sock.room = 0
    app.say(data)
    stage.run()
    while stage.sock.sends and len(stage.link.served[1].received) < len(data):
        assert stage.loop.writers.keys() == {FD}
        stage.sock.room += room
        stage.exchange()
    assert stage.link.served[1].received == data
    assert stage.loop.writers == {}, "nothing waits: the loop must not be asked to report room"
    assert stage.lost == []


def test_no_more_is_sealed_while_bytes_wait(stage: Stage) -> None:
    """What is sealed first leaves first, so what the scheduler prefers would come too late."""
    app = opened(stage)
    stage.sock.room = 10
    app.say(bytes(1 << 20))
    stage.run()
    records = stage.path.keys.sealer.records
    urgent = stage.link.open()
    stage.run()
    assert stage.path.keys.sealer.records == records
    stage.sock.room = 1 << 30
    stage.exchange()
    assert urgent.events == [("opened",)]


def test_a_path_is_not_asked_again_when_it_has_nothing_more(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = opened(stage)
    fill, sizes = stage.path.fill, []

    def watched(out: memoryview, budget: int, now: float) -> int:
        sizes.append(fill(out, budget, now))
        return sizes[-1]

    monkeypatch.setattr(stage.path, "fill", watched)
    app.say(bytes(10_000))
    stage.run()
    assert len(sizes) == 1
    assert sizes[0] > 10_000


def test_one_wake_up_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    bound = TURN_WORK * BYTES_PER_UNIT + SEND_SIZE
    stage = Stage(monkeypatch, limits=session_limits(retained=4 * bound))
    opened(stage)
    for _ in range(4 * bound // 65_536):
        stage.link.open().say(bytes(65_536))
    for _ in range(3):
        before = sum(stage.sock.sends)
        stage.loop.turn()
        sent = sum(stage.sock.sends) - before
        assert 0 < sent < bound
        assert stage.loop.soon, "and goes on in the next turn of the loop"


def test_one_wake_up_answers_all_that_ask_for_it(stage: Stage) -> None:
    """Else each would bring the next ones: a turn of the loop would grow with what waits."""
    opened(stage)
    stage.run()
    assert not stage.loop.soon
    for _ in range(3):
        stage.path.ready()
    assert len(stage.loop.soon) == 1
    stage.loop.turn()
    stage.path.ready()
    assert len(stage.loop.soon) == 1


def test_a_buffer_is_held_only_while_bytes_wait(stage: Stage) -> None:
    app = opened(stage)
    stage.sock.room = 10
    app.say(bytes(1_000))
    stage.run()
    pool = stage.carrier._buffers
    held = pool.take()
    assert held is not stage.carrier._buffer
    pool.give(held)
    stage.sock.room = 1 << 30
    stage.run()
    assert pool.take() is stage.carrier._buffer
    pool.give(stage.carrier._buffer)


# --- the kernel's queue ---


def at_rate(stage: Stage, app: App, rate: float, seconds: float) -> None:
    """The kernel takes `rate` bytes a second, in steps that are long enough to be measured, and is full meanwhile: of
    many streams, since each has little credit."""
    others = [stage.link.open() for _ in range(15)]
    stage.exchange()
    for _ in range(round(seconds / (2 * SHORTEST))):
        for one in (app, *others):
            one.say(bytes(int(3 * SHORTEST * rate) // 16))
        stage.clock.advance(2 * SHORTEST)
        stage.sock.room = int(2 * SHORTEST * rate)
        stage.exchange()
        assert stage.sock.room == 0


def test_the_kernels_queue_follows_the_rate(stage: Stage) -> None:
    app = opened(stage)
    assert stage.sock.lowat == [MAX_LOWAT // 4]
    for rate in (20e6, 60e6, 5e6):
        at_rate(stage, app, rate, 1.0)
        assert stage.sock.lowat[-1] == pytest.approx(rate * LOWAT_SECONDS, rel=0.1)
    at_rate(stage, app, 1e6, 1.0)
    assert stage.sock.lowat[-1] == MIN_LOWAT
    stage.carrier._measure(0, stage.clock.boot)
    for seconds in range(1, 20):
        stage.carrier._measure(seconds * 400_000_000, stage.clock.boot + seconds)
    assert stage.sock.lowat[-1] == MAX_LOWAT


def test_the_sessions_queue_follows_the_rate(stage: Stage) -> None:
    app = opened(stage)
    scheduler = stage.link.client.scheduler
    at_rate(stage, app, 20e6, 1.0)
    fast = scheduler.queue_target
    at_rate(stage, app, 5e6, 1.0)
    assert scheduler.queue_target < fast


def test_a_pause_of_the_application_is_no_slow_network(stage: Stage) -> None:
    app = opened(stage)
    at_rate(stage, app, 20e6, 1.0)
    stage.sock.room = 1 << 30
    stage.exchange()
    lowat = list(stage.sock.lowat)
    stage.clock.advance(4.0)
    stage.exchange()
    stage.sock.room = 0
    app.say(bytes(1_000_000))
    stage.run()
    assert stage.sock.lowat == lowat


def test_a_system_without_the_option(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carrier_module, "TCP_NOTSENT_LOWAT", None)
    app = opened(stage)
    at_rate(stage, app, 20e6, 1.0)
    assert stage.sock.lowat == [MAX_LOWAT // 4], "set before the option was taken away"


# --- in ---


@pytest.mark.parametrize("piece", [1, 2, 5, 1_000, 100_000])
def test_what_arrives_in_pieces(stage: Stage, piece: int) -> None:
    app = opened(stage)
    data = random.Random(piece).randbytes(piece * 30)
    stage.link.served[1].say(data)
    arriving = stage.answer()
    for start in range(0, len(arriving), piece):
        stage.sock.incoming += arriving[start : start + piece]
        stage.run()
    stage.exchange()
    assert app.received == data


def test_a_steady_transfer_is_read_at_the_ends_of_records(stage: Stage) -> None:
    """A record that is cut in two would be kept and put in front again: one copy more for each read."""
    opened(stage)
    for _ in range(100):
        stage.link.open()
    stage.exchange()
    for app in stage.link.served.values():
        app.say(bytes(65_536))
    while answer := stage.answer():
        stage.sock.incoming += answer
    kept = []
    while stage.sock.incoming:
        stage.loop.readers[FD]()
        stage.loop.turn()
        kept.append(len(stage.carrier._partial))
    assert len(kept) > 10
    assert kept.count(0) > len(kept) // 2


def rotate(stage: Stage, offload: LaterOffload) -> None:
    """One step of a rotation: what the client computes now, and what both sides say then."""
    offload.run()
    stage.exchange()


def test_reading_goes_on_while_keys_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before each step of the client, and behind the last one, when the peer seals with the new keys."""
    offload = LaterOffload()
    stage = Stage(monkeypatch, offload=offload)
    app, said = opened(stage), b""
    stage.link.client.rotation.start(stage.clock.boot)
    for more in (b"it asks", b", it reads the answer", b", it has the keys"):
        assert bool(offload.waiting) is (more != b", it has the keys")
        stage.link.served[1].say(more)
        stage.exchange()
        said += more
        assert app.received == said
        assert stage.loop.readers.keys() == {FD}
        rotate(stage, offload)
    assert stage.path.keys.receive_epoch == stage.peer.keys.receive_epoch == 1
    assert stage.lost == []


def test_keys_change_though_the_kernel_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sides that both wait for room would otherwise wait for each other."""
    offload = LaterOffload()
    stage = Stage(monkeypatch, offload=offload)
    app = opened(stage)
    stage.link.client.rotation.start(stage.clock.boot)
    rotate(stage, offload)
    stage.sock.room = 0
    app.say(b"waits")
    stage.run()
    assert stage.carrier._unsent is not None
    rotate(stage, offload)
    stage.link.served[1].say(b"is read")
    stage.exchange()
    assert app.received == b"is read"
    assert stage.link.served[1].received == b""
    stage.sock.room = BOUNDLESS
    stage.exchange()
    assert stage.link.served[1].received == b"waits"
    assert stage.peer.keys.receive_epoch == 1


# --- how it ends ---


def test_the_peer_ends_the_connection(stage: Stage) -> None:
    opened(stage)
    stage.sock.ended = True
    stage.run()
    error = lost(stage)
    assert isinstance(error, CarrierError)
    assert str(error) == "the peer ended the connection"
    assert stage.sock.closed
    assert stage.link.client.closed is None, "the session may go on with another carrier"


def test_the_peer_says_that_it_has_closed_the_path(stage: Stage) -> None:
    """It has noticed first that the connection is broken, and says so by another path."""
    opened(stage)
    stage.link.client.act(stage.path, wire.ABANDON, 0, (stage.path.number, stage.path.received))
    stage.run()
    error = lost(stage)
    assert isinstance(error, CarrierError)
    assert str(error) == "the peer has closed it"
    assert stage.link.client.closed is None


def test_the_connection_breaks_while_reading(stage: Stage) -> None:
    opened(stage)
    stage.sock.broken = errno.ECONNRESET
    stage.loop.readers[FD]()
    error = lost(stage)
    assert isinstance(error, CarrierError)
    assert str(error) == "the connection to the peer broke: connection reset by peer"
    assert stage.sock.closed


@pytest.mark.parametrize("waiting", [False, True])
def test_the_connection_breaks_while_sending(stage: Stage, waiting: bool) -> None:
    app = opened(stage)
    if waiting:
        stage.sock.room = 10
        app.say(bytes(1_000))
        stage.run()
    stage.sock.broken = errno.EPIPE
    stage.sock.room = 1 << 30
    app.say(b"more")
    stage.run()
    error = lost(stage)
    assert isinstance(error, CarrierError)
    assert str(error) == "the connection to the peer broke: broken pipe"
    assert stage.link.client.closed is None


def test_nothing_happens_after_the_end(stage: Stage) -> None:
    app = opened(stage)
    readable = stage.loop.readers[FD]
    app.say(b"on its way")
    stage.carrier.drop()
    assert lost(stage) is None
    stage.loop.turn()
    stage.carrier.drop()
    stage.carrier.close(CloseReason.NORMAL)
    stage.carrier.fail(PeerError(CloseReason.PROTOCOL, "late"))
    assert stage.lost == [None]
    assert stage.sock.closed
    assert readable is not None


def test_a_damaged_record_ends_the_carrier_alone(stage: Stage) -> None:
    opened(stage)
    stage.link.served[1].say(b"hello")
    damaged = bytearray(stage.answer())
    damaged[-1] ^= 1
    stage.sock.incoming += damaged
    stage.run()
    error = lost(stage)
    assert error is not None and error.reason is CloseReason.BAD_RECORD
    assert stage.link.client.closed is None


def test_silence_ends_the_carrier(stage: Stage) -> None:
    opened(stage)
    for _ in range(1_000):
        if stage.lost:
            break
        stage.clock.advance(1.0)
        stage.run()
    error = lost(stage)
    assert isinstance(error, CarrierError)
    assert error.reason is CloseReason.TIMED_OUT


# --- time ---


def test_the_clock_is_looked_at_often_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the session wants nothing for long: a suspend would not be noticed otherwise."""
    stage = Stage(monkeypatch, limits=session_limits(keepalive=3_600.0))
    opened(stage)
    for _ in range(5):
        stage.exchange()
        (timer,) = [timer for timer in stage.loop.timers if not timer.cancelled]
        assert timer.at <= stage.clock.awake + CHECK_SECONDS
        stage.clock.advance(CHECK_SECONDS)


@pytest.mark.parametrize(("seconds", "noticed"), [(SUSPEND_JUMP + 0.1, True), (SUSPEND_JUMP - 0.1, False)])
def test_a_suspend_is_noticed(monkeypatch: pytest.MonkeyPatch, seconds: float, noticed: bool) -> None:
    """Then the peer is asked at once for a sign of life."""
    stage = Stage(monkeypatch, limits=session_limits(keepalive=3_600.0))
    opened(stage)
    stage.clock.advance(ACK_DELAY)
    stage.exchange()
    sent = len(stage.sock.sends)
    stage.clock.suspend(seconds)
    stage.clock.advance(CHECK_SECONDS)
    stage.run()
    assert (len(stage.sock.sends) > sent) is noticed
    stage.clock.advance(PROBE_SECONDS + 0.1)
    stage.run()
    if noticed:
        error = lost(stage)
        assert error is not None and error.reason is CloseReason.TIMED_OUT
    else:
        assert stage.lost == []


def test_a_peer_that_is_there_after_a_suspend(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, limits=session_limits(keepalive=3_600.0))
    opened(stage)
    stage.clock.suspend(600.0)
    stage.clock.advance(CHECK_SECONDS)
    stage.exchange()
    for _ in range(4):
        stage.clock.advance(PROBE_SECONDS)
        stage.exchange()
    assert stage.lost == []


# --- the last record, on real sockets ---

# --- faults of this program ----------------------------------------------------------------------------------------


def raise_fault(*_: object) -> Any:
    raise ZeroDivisionError


class Faulty(Scheduler):
    def next(self) -> NoReturn:
        raise ZeroDivisionError


def fault_when_data_comes(stage: Stage) -> None:
    opened(stage)
    stage.link.client.receiver.receive_data = raise_fault  # type: ignore[assignment]
    stage.link.served[1].say(b"data")
    stage.sock.incoming += stage.answer()


def fault_in_a_later_turn(stage: Stage) -> None:
    """The frames that bring it wait for the next turn."""
    fault_when_data_comes(stage)
    stage.link.client.turn.spend(TURN_WORK)
    stage.loop.readers[FD]()
    assert stage.carrier.open


def fault_when_a_stream_reads(stage: Stage) -> None:
    app = opened(stage)
    stage.sock.room = 0
    app.outgoing += bytes(100)
    assert app.stream is not None
    app.stream.wait_for_turn()
    stage.link.client.scheduler = Faulty()
    stage.link.client.wake()


def fault_when_the_kernel_takes_bytes_again(stage: Stage) -> None:
    app = opened(stage)
    stage.sock.room = 10
    app.say(bytes(1_000))
    stage.run()
    assert FD in stage.loop.writers
    stage.carrier._push = raise_fault  # type: ignore[method-assign]
    stage.sock.room = BOUNDLESS


def fault_in_the_timer(stage: Stage) -> None:
    opened(stage)
    stage.path.tick = raise_fault  # type: ignore[assignment]
    stage.clock.advance(CHECK_SECONDS)


@pytest.mark.parametrize(
    "prepare",
    [
        fault_when_data_comes,
        fault_in_a_later_turn,
        fault_when_a_stream_reads,
        fault_when_the_kernel_takes_bytes_again,
        fault_in_the_timer,
    ],
)
def test_a_fault_of_this_program_ends_the_carrier_and_not_the_session(
    stage: Stage, caplog: pytest.LogCaptureFixture, prepare: Callable[[Stage], None]
) -> None:
    """It left a link that was mute until the peer gave it up, after 19 s."""
    prepare(stage)
    stage.run()
    assert not stage.carrier.open and stage.sock.closed
    [error] = stage.lost
    assert isinstance(error, CarrierError)
    assert stage.link.client.closed is None and not stage.link.client.attached
    [record] = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.exc_info is not None and record.exc_info[0] is ZeroDivisionError


class RealEnd:
    """A TcpCarrier on loopback; the peer is a socket that the test reads."""

    def __init__(self) -> None:
        self.link = Link(connected=False, soon=asyncio.get_running_loop().call_soon)
        self.lost: list[PeerError | None] = []
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.peer = socket.create_connection(server.getsockname())
            ours, _ = server.accept()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)
        self.peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
        ours.setblocking(False)
        self.peer.setblocking(False)
        self.link.now = clock()
        path, self.theirs = self.link.paths()
        self.carrier = TcpCarrier(asyncio.get_running_loop(), ours, path, self)

    def carrier_lost(self, carrier: Carrier, error: PeerError | None) -> None:
        self.lost.append(error)

    async def hear_all(self) -> None:
        """The peer's session gets all that comes, until the connection ends."""
        loop = asyncio.get_running_loop()
        data = b""
        while part := await loop.sock_recv(self.peer, 1 << 20):
            data += part
        for _ in range(100):
            if not data or self.link.exit.closed is not None:
                break
            self.link.exit.turn.renew()
            data = data[self.theirs.receive(memoryview(data), clock()) :]
        assert not data or self.link.exit.closed is not None
        self.peer.close()
        await farewells_ended()


async def test_the_peer_is_told_of_the_end() -> None:
    end = RealEnd()
    end.carrier.start()
    end.carrier.close(CloseReason.SHUTTING_DOWN)
    assert end.lost == [None]
    await end.hear_all()
    assert end.link.exit.closed is CloseReason.SHUTTING_DOWN


async def test_the_last_record_comes_behind_what_waits() -> None:
    """Most of it has left the session and not yet the process; in front of it the CLOSE would not even open."""
    end = RealEnd()
    for _ in range(20):
        end.link.open().say(bytes(65_536))
    end.carrier.start()
    while end.carrier._unsent is None:
        await asyncio.sleep(0)
    end.carrier.close(CloseReason.NORMAL)
    await end.hear_all()
    assert end.link.exit.closed is CloseReason.NORMAL


async def test_a_dropped_carrier_says_nothing() -> None:
    end = RealEnd()
    end.carrier.start()
    end.carrier.drop()
    await end.hear_all()
    assert end.link.exit.closed is None
    assert end.lost == [None]


async def test_a_peer_that_breaks_the_rules_is_told() -> None:
    """An error of the protocol ends the session, and both know it; the exit opens no streams."""
    end = RealEnd()
    end.carrier.start()
    end.link.exit.send_control(wire.encode_open(1, StreamProtocol.TCP, TARGET))
    buffer = memoryview(bytearray(1 << 20))
    await asyncio.get_running_loop().sock_sendall(end.peer, buffer[: end.theirs.fill(buffer, 1_000, clock())])
    await end.hear_all()
    (error,) = end.lost
    assert error is not None and error.reason is CloseReason.PROTOCOL
    assert end.link.client.closed is end.link.exit.closed is CloseReason.PROTOCOL


async def test_the_peer_closes_the_link() -> None:
    end = RealEnd()
    end.carrier.start()
    end.link.exit.close(CloseReason.LIMIT)
    buffer = memoryview(bytearray(1 << 20))
    await asyncio.get_running_loop().sock_sendall(end.peer, buffer[: end.theirs.fill(buffer, 1_000, clock())])
    await end.hear_all()
    (error,) = end.lost
    assert error is not None
    assert (error.reason, str(error)) == (CloseReason.LIMIT, "the peer closed the link: limit")
    assert not isinstance(error, CarrierError)
