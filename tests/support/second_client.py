"""A small client of the peer link, version 2, after docs/protocol.md alone: it shares no code with the product.

From the bottom up: a path with its records (sections 6 and 8), streams (9), and the session that holds them together
(8, 10, 14). Flights, frames and the lane have files of their own. It has no packets.
"""

from __future__ import annotations

import asyncio
import os
import struct
import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, ClassVar

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from tests.support.second_flights import AES, LANE, Epoch, Exchange, FlightError, Handshake, Keys, path_key
from tests.support.second_frames import (
    CANCELLED,
    SESSION_LOST,
    TCP,
    UDP,
    Address,
    Close,
    Kind,
    Unit,
    Violation,
    data_frame,
    fin_frame,
    frame,
    frames,
    put_address,
    rekey_frame,
)
from tests.support.second_lane import Journey, Lane, Use, Weather

LARGEST_LENGTH = 131_600
EARLY = 65_536
FIRST_WINDOW = 65_536
FIRST_CREDIT = 134_217_728
WINDOW = 1 << 20  # what this client lets come on a stream that is read
RETAINED = 8 << 20
PIECE = 65_536
ACK_DELAY, ACK_BYTES = 0.02, 1 << 18
A_DAY = 86_400
INTERVAL, MOST_RECORDS, MOST_BYTES = 300, 1 << 22, 1 << 38


class Rejected(Exception):
    """The exit's verdict is CLOSE, with this reason."""


class SessionOver(Exception):
    """The session has ended, with this reason."""


class StreamEnded(Exception):
    """The exit has refused or reset the stream, with this reason."""


class Damaged(Exception):
    """The connection brings what no exit sends there: it is closed, and the session goes on."""


class Direction:
    """One direction of one path under its present key."""

    def __init__(self, cipher: int, key: bytes, epoch: int) -> None:
        self._cipher = cipher
        self.count = 0
        self.renew(key, epoch)

    def renew(self, key: bytes, epoch: int) -> None:
        self._aead = AESGCM(key) if self._cipher == AES else ChaCha20Poly1305(key)
        self.epoch = epoch
        self.records = self.bytes = 0  # under this key; `count` goes on

    def _next(self, size: int) -> bytes:
        nonce = self.records.to_bytes(12, "big")
        self.records, self.bytes, self.count = self.records + 1, self.bytes + size, self.count + 1
        return nonce

    def seal(self, plaintext: bytes) -> bytes:
        header = struct.pack(">I", len(plaintext) + 16)
        return header + self._aead.encrypt(self._next(len(plaintext) + 16), plaintext, header)

    def open(self, header: bytes, sealed: bytes) -> bytes:
        return self._aead.decrypt(self._next(len(sealed)), sealed, header)

    def worn(self) -> bool:
        return self.records >= MOST_RECORDS or self.bytes >= MOST_BYTES


class Path:
    """One connection that carries the session."""

    def __init__(
        self,
        number: int,
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        made: Handshake,
        epoch: int,
        early: bool,
    ) -> None:
        self.number, self.made, self.early = number, made, early
        self.reader, self.writer = streams
        records = made.secret(b"records")
        self.out = Direction(made.cipher, path_key(records, b"client", number), epoch)
        self.back = Direction(made.cipher, path_key(records, b"exit", number), epoch)
        self.up = False  # the exit has let it in
        self.verdict: asyncio.Future[Kind] = asyncio.get_running_loop().create_future()
        self.log: deque[tuple[int, list[Unit]]] = deque()  # number of the record -> what it carried
        self.acked = 0
        self.border = -1  # the record in which the last SWITCH went
        self.owed = self.ack_due = False
        self.unacked_bytes = self.early_bytes = 0
        self.own: deque[bytes] = deque()  # PING and PONG
        self.wake = asyncio.Event()
        self.lost = asyncio.Event()
        self.switches: list[int] = []  # the epochs of the borders that the exit has crossed here

    def settled(self, epoch: int) -> bool:
        return self.out.epoch == self.back.epoch == epoch and self.acked > self.border

    def send_ack(self) -> None:
        self.ack_due = True
        self.wake.set()


@dataclass(eq=False)
class Stream:
    """One stream: two halves by offset, and the rest of its number's life."""

    session: Session
    number: int
    target: Address
    protocol: int
    # What goes out.
    waiting: bytearray = field(default_factory=bytearray)
    sent: int = 0
    credit: int = FIRST_WINDOW
    ending: bool = False  # FIN behind what waits
    out_end: int | None = None  # the final offset that was sent
    reset_sent: bool = False
    answered: bool = False  # or its OPEN acknowledged: the OPEN need not go first any more
    opened_on: set[int] = field(default_factory=set)  # paths; -1 is the lane
    # What comes in.
    up: bool = False
    pieces: dict[int, bytes] = field(default_factory=dict)  # what waits for a gap
    ready: bytearray = field(default_factory=bytearray)
    turn: int = 0  # the offset behind what is in order
    highest: int = 0
    granted: int = FIRST_WINDOW
    taken: int = 0
    in_end: int | None = None  # the final offset that came
    reason: int | None = None  # of the exit's REFUSED or RESET
    datagrams: deque[tuple[Address, bytes]] = field(default_factory=deque)

    async def opened(self) -> None:
        await self.session.until(lambda: self.up or self.reason is not None)
        self._raise()

    def _raise(self) -> None:
        if self.reason is not None:
            raise StreamEnded(self.reason)

    async def write(self, data: bytes) -> None:
        """Hand over `data`, and wait while much of it has not left."""
        self._raise()
        self.waiting += data
        self.session.ready(self)
        await self.session.until(lambda: len(self.waiting) < WINDOW or self.reason is not None)

    def finish(self) -> None:
        self.ending = True
        self.session.ready(self)

    async def read(self) -> bytes:
        """What is there, or nothing at the end."""
        await self.session.until(lambda: bool(self.ready) or self.ended() or self.reason is not None)
        if not self.ready:
            self._raise()
        data = bytes(self.ready)
        self.ready.clear()
        self.taken += len(data)
        self.session.took(self, len(data))
        return data

    async def read_all(self) -> bytes:
        data = bytearray()
        while piece := await self.read():
            data += piece
        return bytes(data)

    def send_datagram(self, target: Address, payload: bytes) -> None:
        head = frame(Kind.DATAGRAM, "IH", self.number, len(payload)) + put_address(target)
        self.session.datagrams.append(head + payload)
        self.session.wake()

    async def datagram(self) -> tuple[Address, bytes]:
        await self.session.until(lambda: bool(self.datagrams) or self.reason is not None)
        self._raise()
        return self.datagrams.popleft()

    def reset(self, reason: int = CANCELLED) -> None:
        if not self.reset_sent:
            self.reset_sent, self.out_end = True, self.sent
            self.waiting.clear()
            self.session.put(frame(Kind.RESET, "IBQ", self.number, reason, self.sent), self)
            self.discard()
            self.session.forget(self)

    def discard(self) -> None:
        """Nobody reads what has come: its room is free."""
        self.ready.clear()
        self.pieces.clear()
        size, self.taken = self.highest - self.taken, self.highest
        self.session.took(self, size)

    def ended(self) -> bool:
        """Whether all has come that ever will."""
        if self.reset_sent or self.reason is not None:
            return self.in_end is not None
        return self.turn == self.in_end

    def accept(self, offset: int, data: bytes) -> int:
        """Take bytes at their place. Returns by how much the highest offset rises."""
        end = offset + len(data)
        if end > self.granted and not self.reset_sent:
            raise Violation(Close.CREDIT)
        if self.in_end is not None and end > self.in_end:
            raise Violation(Close.PROTOCOL)
        rise = max(0, end - self.highest)
        self.highest += rise
        if not self.reset_sent:
            if len(data) > len(self.pieces.get(offset, b"")):
                self.pieces[offset] = data
            self._in_order()
        return rise

    def _in_order(self) -> None:
        while begin := [offset for offset in self.pieces if offset <= self.turn]:
            for offset in begin:
                fresh = self.pieces.pop(offset)[self.turn - offset :]
                self.ready += fresh
                self.turn += len(fresh)

    def end(self, final: int) -> None:
        if final < self.highest or self.in_end not in (None, final):
            raise Violation(Close.PROTOCOL)
        self.in_end = final


class Session:
    """A session of the client with its paths and streams."""

    def __init__(
        self,
        keys: Keys,
        exit_id: bytes,
        *,
        ciphers: bytes = b"\1\2",
        alone: bool = True,
        keepalive: float = 10,
        lane: Address | None = None,
        use: Use = Use.UDP,
        weather: Journey | None = None,
    ) -> None:
        """`alone`: rotations begin by themselves when one is due. `lane`: where the exit's UDP socket is;
        `weather`: what becomes of the datagrams that go there."""
        self._keys, self._exit_id, self._ciphers = keys, exit_id, ciphers
        self._alone, self.keepalive = alone, keepalive
        self._lane_at, self._use, self._weather = lane, use, weather
        self.lane: Lane | None = None
        self._changed = asyncio.Event()
        self._rotating = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self.over: SessionOver | None = None
        self.advertised: Address | None = None
        self.on_frame: Callable[[Path, Kind, tuple[Any, ...]], None] = lambda path, kind, fields: None
        self.on_lane_frame: Callable[[Kind, tuple[Any, ...]], None] = lambda kind, fields: None
        self.next_path, self.next_stream = 0, 1
        self._clear()

    def _clear(self) -> None:
        """What a session begins with."""
        self.paths: dict[int, Path] = {}
        self.streams: dict[int, Stream] = {}
        self._turns: deque[Stream] = deque()
        self._control: deque[Unit] = deque()
        self._small: deque[Unit] = deque()
        self.again: deque[tuple[int, int, Unit]] = deque()  # path and record that carried it, and what
        self.datagrams: deque[bytes] = deque()
        self.retained = 0
        self.credit, self.sent = FIRST_CREDIT, 0
        self.granted, self.came, self.taken = FIRST_CREDIT, 0, 0
        self.allowed, self._opened = 16_384, 0
        self.records: dict[int, bytes] = {}
        self._rekey: Exchange | None = None
        self._answer: dict[int, bytes] = {}
        self._doubt, self._signed = (
            False,
            time.time(),
        )  # whether a ticket came to nothing; the last signed flight
        self._prefer: tuple[int, int] = (0, -1)
        self.going_away = False

    # Paths.

    async def begin(self, address: Address, **offer: Any) -> Path:
        """Begin a session; what has been opened before goes along early."""
        made, streams = await self._dial(address, short=False, **offer)
        path = self._third(0, streams, made, made.flight3(self._keys, b"\0"))
        self._found(path)
        return await self._run(path)

    async def join(self, address: Address, *, short: bool | None = None, number: int | None = None) -> Path:
        """Add a path by either pattern; behind NO_SESSION it is the first one of a new session."""
        if short is None:
            short = not self._doubt and time.time() - self._signed < A_DAY
        try:
            path = await self._join(address, short, self.next_path if number is None else number)
        except FlightError:
            self._doubt = self._doubt or short
            raise
        if not short:
            self._signed, self._doubt = time.time(), False
        self._due()
        return path

    async def _join(self, address: Address, short: bool, number: int) -> Path:
        self.next_path = max(self.next_path, number + 1)
        epoch = self.epoch
        made, streams = await self._dial(address, short=short)
        if short:
            flight = made.short_flight3(epoch.resume, number)
        else:
            proved = made.proof(epoch.resume, b"C", number)
            payload = struct.pack(">B16sI32s", 1, self.session_id, number, proved)
            flight = made.flight3(self._keys, payload)
        expected = None if short else made.proof(epoch.resume, b"S", number)
        path = self._third(number, streams, made, flight, epoch.number, early=short)
        return await self._run(path, expected)

    async def _dial(
        self, address: Address, *, short: bool, **offer: Any
    ) -> tuple[Handshake, tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        features = LANE if self._lane_at else 0
        made = Handshake(self._exit_id, short=short, ciphers=self._ciphers, features=features, **offer)
        reader, writer = await asyncio.open_connection(*address, limit=1 << 20)
        try:
            flight = made.flight1()
            writer.write(struct.pack(">H", len(flight)) + flight)
            (length,) = struct.unpack(">H", await reader.readexactly(2))
            if length not in made.lengths2():
                raise FlightError(f"a flight 2 of {length} bytes")
            made.read_flight2(await reader.readexactly(length))
        except (OSError, asyncio.IncompleteReadError, InvalidTag, InvalidSignature, ValueError) as error:
            writer.transport.abort()
            raise FlightError("no good flight 2") from error
        except FlightError:
            writer.transport.abort()
            raise
        return made, (reader, writer)

    def _third(
        self,
        number: int,
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        made: Handshake,
        flight: bytes,
        epoch: int = 0,
        early: bool = True,
    ) -> Path:
        streams[1].write(struct.pack(">H", len(flight)) + flight)
        return Path(number, streams, made, epoch, early)

    def _found(self, path: Path) -> None:
        """Begin with what the handshake of `path` has made."""
        self.session_id = path.made.secret(b"session id", 16)
        if self._lane_at and path.made.features & LANE:
            self._stop_lane()
            self.lane = Lane(self, path.made.cipher, self._lane_at, self._use)
            self.lane.out_weather = self._weather or Weather()
        self._enter(Epoch.of(0, path.made))
        self.next_path = path.number + 1

    async def _run(self, path: Path, expected: bytes | None = None) -> Path:
        """Receive and send on `path`, and wait for the verdict. `expected` is the exit's proof behind a claim."""
        self.paths[path.number] = path
        self._spawn(self._receive(path, expected))
        self._spawn(self._send(path))
        await path.verdict
        return path

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def carrier(self) -> Path | None:
        """The path for what belongs to the session; one without a verdict only where there is no other."""
        preferred = self.paths.get(self._prefer[1])
        if preferred and preferred.up:
            return preferred
        up = [number for number, path in self.paths.items() if path.up]
        early = [number for number, path in self.paths.items() if path.early]
        return self.paths[max(up or early)] if up or early else None

    def prefer(self, path: Path) -> None:
        self._prefer = (self._prefer[0] + 1, path.number)
        self.control(frame(Kind.PREFER, "II", *self._prefer))

    def lose(self, path: Path) -> None:
        """The path is gone: what it carried goes again, and the exit learns how much has come."""
        if self.paths.pop(path.number, None) is None:
            return
        path.writer.transport.abort()
        path.lost.set()
        path.wake.set()
        if not path.verdict.done():
            path.verdict.set_exception(FlightError("no verdict"))
        self.again += [(path.number, record, unit) for record, units in path.log for unit in units]
        self.control(frame(Kind.ABANDON, "IQ", path.number, path.back.count))
        if not path.up and path.number == 0:
            self._end(SessionOver("no verdict"))
        self._notify()

    # Waiting.

    async def until(self, true: Callable[[], bool]) -> None:
        while not true():
            if self.over:
                raise self.over
            await self._changed.wait()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def wake(self) -> None:
        for path in self.paths.values():
            path.wake.set()
        if self.lane:
            self.lane.pump()

    # Sending.

    def control(self, data: bytes) -> None:
        self._control.append(Unit(data))
        self.retained += len(data)
        self.wake()

    def put(self, data: bytes, stream: Stream) -> None:
        self._small.append(Unit(data, stream))
        self.retained += len(data)
        self.wake()

    def ready(self, stream: Stream) -> None:
        if stream not in self._turns:
            self._turns.append(stream)
        self.wake()

    async def _send(self, path: Path) -> None:
        try:
            while path.number in self.paths:
                path.wake.clear()
                if not (record := self._next_record(path)):
                    await path.wake.wait()
                    continue
                path.writer.write(record)
                path.early_bytes += len(record)
                await path.writer.drain()
        except OSError:
            self.lose(path)

    def _next_record(self, path: Path) -> bytes:
        """The next record of a path, sealed, or nothing."""
        if path.up and path.out.epoch < self.epoch.number:
            return self._switch(path)
        if not path.up and path.early_bytes >= EARLY:
            return b""
        units: list[Unit] = []
        own = bytearray()
        if path.up:
            while path.own:
                own += path.own.popleft()
        if path is self.carrier():
            units = [] if self.on_lane() else self._units(path)
            own += self._datagrams(path)
        if path.owed and (path.ack_due or own or units) and path.up:
            own += frame(Kind.ACK, "IQ", path.number, path.back.count)
            path.owed = path.ack_due = False
            path.unacked_bytes = 0
        plaintext = bytes(own) + b"".join(unit.frame for unit in units)
        if not plaintext:
            return b""
        if units:
            path.log.append((path.out.count, units))
        if path.out.worn():
            self._due()
        return path.out.seal(plaintext)

    def _switch(self, path: Path) -> bytes:
        epoch = self.epoch.number
        path.border = path.out.count
        record = path.out.seal(frame(Kind.SWITCH, "I", epoch))
        path.out.renew(path_key(self.records[epoch], b"client", path.number), epoch)
        return record

    def _units(self, path: Path) -> list[Unit]:
        """What goes next, in the order of section 8. DATA is the last of its record."""
        units: list[Unit] = []
        size = 0
        while size < 16_384 and (unit := self._next_unit()):
            stream = unit.stream
            if stream and not stream.answered and path.number not in stream.opened_on:
                stream.opened_on.add(path.number)
                if unit.frame[0] != Kind.OPEN:
                    units.append(Unit(self.open_frame(stream), stream))
                    self.retained += len(units[-1].frame)
            units.append(unit)
            size += len(unit.frame)
            if unit.frame[0] == Kind.DATA:
                break
        return units

    def on_lane(self) -> bool:
        """Whether what belongs to the session goes by the lane."""
        return self.lane is not None and bool(self.lane.size) and self._use != Use.TCP

    def lane_answers(self) -> None:
        self._notify()
        self.wake()

    def next_for_lane(self) -> Unit | None:
        """The next unit. Unless it is DATA, it fits any datagram."""
        return self._next_unit() if self.on_lane() else None

    def opening(self, unit: Unit) -> Unit | None:
        """What must leave before `unit` on the lane."""
        stream = unit.stream
        if not stream or stream.answered or -1 in stream.opened_on:
            return None
        stream.opened_on.add(-1)
        if unit.frame[0] == Kind.OPEN:
            return None
        first = Unit(self.open_frame(stream), stream)
        self.retained += len(first.frame)
        return first

    def _next_unit(self) -> Unit | None:
        if self._control:
            return self._control.popleft()
        if self.again:
            return self.again.popleft()[2]
        if self._small:
            return self._small.popleft()
        while self._turns and self.retained < RETAINED:
            if unit := self._data(self._turns.popleft()):
                self._notify()
                return unit
        return None

    def _data(self, stream: Stream) -> Unit | None:
        """New data of one stream, or its FIN. The stream takes its turn again if more waits."""
        if stream.out_end is not None:
            return None
        if stream.ending and not stream.waiting:
            unit = Unit(fin_frame(stream.number, stream.sent), stream)
            stream.out_end = stream.sent
            self.retained += len(unit.frame)
            self.forget(stream)
            return unit
        size = min(len(stream.waiting), PIECE, stream.credit - stream.sent, self.credit - self.sent)
        if size <= 0:
            return None
        unit = Unit(data_frame(stream.number, stream.sent, bytes(stream.waiting[:size])), stream)
        del stream.waiting[:size]
        stream.sent += size
        self.sent += size
        self.retained += len(unit.frame)
        if stream.waiting or stream.ending:
            self._turns.append(stream)
        return unit

    def _datagrams(self, path: Path) -> bytes:
        some = bytearray()
        while path.up and self.datagrams and len(some) < 32_768:
            some += self.datagrams.popleft()
        return bytes(some)

    # Streams.

    async def open(self, target: Address, protocol: int = TCP) -> Stream:
        await self.until(lambda: self._opened < self.allowed)
        if self.going_away:
            raise SessionOver(Close.SHUTTING_DOWN)
        stream = Stream(self, self.next_stream, target, protocol)
        self.next_stream += 1
        self._opened += 1
        self.streams[stream.number] = stream
        self.put(self.open_frame(stream), stream)
        return stream

    def open_frame(self, stream: Stream) -> bytes:
        return frame(Kind.OPEN, "IB", stream.number, stream.protocol) + put_address(stream.target)

    def forget(self, stream: Stream) -> None:
        """The number is dead when both halves have ended."""
        if stream.out_end is not None and stream.ended():
            self.streams.pop(stream.number, None)

    def took(self, stream: Stream, size: int) -> None:
        """`size` bytes that came need no room any more: give credit for as many."""
        self.taken += size
        if self.granted - self.taken < FIRST_CREDIT - (16 << 20):
            self.granted = self.taken + FIRST_CREDIT
            self.control(frame(Kind.WINDOW, "IQ", 0, self.granted))
        if stream.granted - stream.taken < WINDOW // 2 and stream.in_end is None and not stream.reset_sent:
            stream.granted = stream.taken + WINDOW
            self.put(frame(Kind.WINDOW, "IQ", stream.number, stream.granted), stream)

    # Receiving.

    async def _receive(self, path: Path, expected: bytes | None) -> None:
        loop = asyncio.get_running_loop()
        alarm: asyncio.TimerHandle | None = None
        try:
            while path.number in self.paths:
                header = await path.reader.readexactly(4)
                (length,) = struct.unpack(">I", header)
                if not 17 <= length <= LARGEST_LENGTH:
                    raise Damaged
                plaintext = path.back.open(header, await path.reader.readexactly(length))
                if path.up:
                    self._record(path, plaintext)
                else:
                    self._judge(path, plaintext, expected)
                if alarm:
                    alarm.cancel()
                alarm = loop.call_later(self.keepalive, self._ask, path)
                self._notify()
        except (OSError, asyncio.IncompleteReadError, InvalidTag, Damaged):
            self.lose(path)
        except Violation as violation:
            self.close(violation.args[0])
        finally:
            if alarm:
                alarm.cancel()
            self._notify()

    def _ask(self, path: Path) -> None:
        """A PING after silence, and the end of the path after more of it."""
        path.own.append(frame(Kind.PING, "Q", int.from_bytes(os.urandom(8))))
        path.wake.set()
        count, loop = path.back.count, asyncio.get_running_loop()
        loop.call_later(self.keepalive, self._give_up, path, count)

    def _give_up(self, path: Path, count: int) -> None:
        if path.back.count == count:
            self.lose(path)

    def _judge(self, path: Path, plaintext: bytes, expected: bytes | None) -> None:
        """The exit's first record (section 5)."""
        try:
            ((kind, fields),) = frames(plaintext[:64])
        except (Violation, ValueError) as error:
            raise Damaged from error
        self.on_frame(path, kind, fields)
        if kind == Kind.CLOSE:
            path.verdict.set_exception(Rejected(Close(fields[0])))
            self.lose(path)
            return
        if expected is None and kind != Kind.ACCEPT:
            raise Damaged
        if expected is not None and (kind, *fields) not in ((Kind.JOINED, expected), (Kind.NO_SESSION,)):
            raise Damaged
        if kind == Kind.NO_SESSION:
            for stream in self.streams.values():
                stream.reason = SESSION_LOST
            for other in list(self.paths.values()):
                if other is not path:
                    self.lose(other)
            self._clear()
            self.paths[path.number] = path
            self._found(path)
            path.out.epoch = path.back.epoch = 0
        path.up = True
        path.writer.write(path.out.seal(frame(Kind.ACK, "IQ", path.number, 1)))
        path.verdict.set_result(kind)
        self.wake()

    def frames_came(self, plaintext: bytes) -> None:
        """Frames came by the lane, or none: that asks for an ACK alone."""
        for kind, fields in frames(plaintext) if plaintext else ():
            self.on_lane_frame(kind, fields)
            if kind >= Kind.ACK and kind != Kind.CLOSE:
                raise Violation(Close.PROTOCOL)
            self._ACTIONS.get(kind, Session._unexpected)(self, None, *fields)
        self._notify()

    def _record(self, path: Path, plaintext: bytes) -> None:
        reliable = False
        for kind, fields in frames(plaintext):
            self.on_frame(path, kind, fields)
            if path.number not in self.paths:
                return
            if kind == Kind.SWITCH and len(plaintext) != 5:
                raise Violation(Close.REKEY)
            reliable |= kind < 0x20 or kind == Kind.SWITCH
            self._ACTIONS.get(kind, Session._unexpected)(self, path, *fields)
        if not reliable:
            return
        if not path.owed:
            path.owed = True
            asyncio.get_running_loop().call_later(ACK_DELAY, path.send_ack)
        path.unacked_bytes += len(plaintext)
        if path.unacked_bytes > ACK_BYTES:
            path.send_ack()

    def _unexpected(self, path: Path, *fields: object) -> None:
        raise Violation(Close.PROTOCOL)

    def _stream(self, number: int) -> Stream | None:
        """The stream, or none if the number is dead."""
        if number == 0 or number >= self.next_stream:
            raise Violation(Close.PROTOCOL)
        return self.streams.get(number)

    def _on_opened(self, path: Path, number: int) -> None:
        if stream := self._stream(number):
            stream.up = stream.answered = True

    def _on_refused(self, path: Path, number: int, reason: int) -> None:
        if stream := self._stream(number):
            if stream.up:
                raise Violation(Close.PROTOCOL)
            self._on_reset(path, number, reason, 0)

    def _on_reset(self, path: Path, number: int, reason: int, final: int) -> None:
        if stream := self._stream(number):
            stream.answered = True
            stream.end(final)
            if not stream.reset_sent:
                stream.reason = reason
            self._came(stream, final - stream.highest)
            stream.highest = final
            if stream.out_end is None:
                stream.reset()
            stream.discard()
            self.forget(stream)

    def _on_fin(self, path: Path, number: int, final: int) -> None:
        if stream := self._stream(number):
            stream.up = stream.answered = True
            if final > stream.granted and not stream.reset_sent:
                raise Violation(Close.CREDIT)
            stream.end(final)
            self._came(stream, final - stream.highest)
            stream.highest = final
            if stream.reset_sent or stream.reason is not None:
                stream.discard()
            self.forget(stream)

    def _on_data(self, path: Path, number: int, offset: int, data: bytes) -> None:
        if stream := self._stream(number):
            stream.up = stream.answered = True
            rise = stream.accept(offset, data)
            self._came(stream, rise)
            if stream.reset_sent or stream.reason is not None:
                stream.discard()
            self.forget(stream)

    def _came(self, stream: Stream, rise: int) -> None:
        self.came += rise
        if self.came > self.granted:
            raise Violation(Close.CREDIT)

    def _on_window(self, path: Path, number: int, limit: int) -> None:
        if number == 0:
            self.credit = max(self.credit, limit)
            self._turns.extend(s for s in self.streams.values() if s.waiting and s not in self._turns)
            self.wake()
        elif stream := self._stream(number):
            stream.credit = max(stream.credit, limit)
            self.ready(stream)

    def _on_streams(self, path: Path, allowed: int) -> None:
        self.allowed = max(self.allowed, allowed)

    def datagram_came(self, number: int, source: Address, payload: bytes) -> None:
        stream = self.streams.get(number)
        if stream and stream.protocol == UDP:
            stream.datagrams.append((source, payload))
            self._notify()

    def _on_datagram(self, path: Path, number: int, source: Address, payload: bytes) -> None:
        if stream := self._stream(number):
            if stream.protocol != UDP:
                raise Violation(Close.PROTOCOL)
            stream.datagrams.append((source, payload))

    def _on_ack(self, path: Path, number: int, count: int) -> None:
        if number >= self.next_path:
            raise Violation(Close.RESUME)
        if named := self.paths.get(number):
            if count > named.out.count:
                raise Violation(Close.RESUME)
            named.acked = max(named.acked, count)
            while named.log and named.log[0][0] < count:
                self.arrived(named.log.popleft()[1])
        else:
            gone = [unit for path_, record, unit in self.again if path_ == number and record < count]
            self.again = deque(entry for entry in self.again if entry[2] not in gone)
            self.arrived(gone)
        self.wake()

    def arrived(self, units: list[Unit]) -> None:
        for unit in units:
            self.retained -= len(unit.frame)
            if unit.stream and unit.frame[0] == Kind.OPEN:
                unit.stream.answered = True
        if units:
            self._notify()

    def give_back(self, units: list[Unit]) -> None:
        """The lane carries these no longer."""
        self.again += [(-1, 0, unit) for unit in units]
        self.wake()

    def _on_abandon(self, path: Path, number: int, count: int) -> None:
        self._on_ack(path, number, count)
        if named := self.paths.get(number):
            self.lose(named)

    def _on_ping(self, path: Path, token: int) -> None:
        path.own = deque([frame(Kind.PONG, "Q", token)])
        path.wake.set()

    def _on_goaway(self, path: Path) -> None:
        self.going_away = True

    def _on_advertise(self, path: Path, address: Address) -> None:
        self.advertised = address

    def _ignore(self, path: Path, *fields: object) -> None:
        """PONG says no more than any record that opens."""

    def _on_close(self, path: Path, reason: int) -> None:
        self._end(SessionOver(Close(reason)))

    # Rotation (section 10).

    def _enter(self, epoch: Epoch) -> None:
        self.epoch = epoch
        self.records[epoch.number] = epoch.records
        self.records.pop(epoch.number - 2, None)
        if self.lane:
            self.lane.enter(epoch)
        asyncio.get_running_loop().call_later(INTERVAL, self._due)
        self.wake()

    def _due(self) -> None:
        if self._alone and not self._rotating.locked() and not self.over:
            self._spawn(self._rotate_quietly())

    async def _rotate_quietly(self) -> None:
        try:
            await self.rotate()
        except SessionOver:
            return

    def settled(self) -> bool:
        up = [path for path in self.paths.values() if path.up]
        return (bool(up) or self.on_lane()) and all(path.settled(self.epoch.number) for path in up)

    async def rotate(self) -> int:
        """Make the next epoch, and wait until each path has come to it. Returns its number."""
        async with self._rotating:
            await self.until(self.settled)
            self._rekey = self.epoch.rekey(self.session_id)
            message = self._rekey.first(b"")
            number = self.epoch.number + 1
            self._answer.clear()
            for part in range(3):
                third = message[part * 416 : (part + 1) * 416]
                self.control(rekey_frame(number, part, third))
            await self.until(lambda: self.epoch.number == number and self.settled())
            return number

    def _on_rekey_answer(self, path: Path, number: int, part: int, third: bytes) -> None:
        if number <= self.epoch.number:
            return
        if self._rekey is None or number != self.epoch.number + 1 or len(third) != 384:
            raise Violation(Close.REKEY)
        if self._answer.setdefault(part, third) != third:
            raise Violation(Close.REKEY)
        if len(self._answer) < 3:
            return
        try:
            self._rekey.decrypt(self._rekey.second(b"".join(self._answer[part] for part in range(3))))
        except (InvalidTag, ValueError) as error:
            raise Violation(Close.REKEY) from error
        made, self._rekey = self._rekey, None
        self._enter(Epoch.of(number, made))

    def _on_lane(self, path: Path, number: int, index: int, use: int) -> None:
        if self.lane is None:
            raise Violation(Close.PROTOCOL)
        self.lane.announced(number, index)

    def _on_rekey_please(self, path: Path, number: int) -> None:
        if number > self.epoch.number + 1:
            raise Violation(Close.REKEY)
        if number == self.epoch.number + 1:
            self._due()

    def _on_switch(self, path: Path, number: int) -> None:
        if number <= path.back.epoch or number not in self.records:
            self.lose(path)
            return
        path.switches.append(number)
        path.back.renew(path_key(self.records[number], b"exit", path.number), number)

    # The end.

    def close(self, reason: int = Close.NORMAL) -> None:
        """CLOSE on each path."""
        for path in self.paths.values():
            path.writer.write(path.out.seal(frame(Kind.CLOSE, "B", reason)))
        self._end(SessionOver(Close(reason)))

    def _stop_lane(self) -> None:
        if self.lane:
            self.lane.stop()
            self.lane = None

    async def finished(self) -> None:
        """End whatever still runs of a session that is over. What was written goes out nevertheless."""
        self._stop_lane()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _end(self, over: SessionOver) -> None:
        self.over = self.over or over
        for path in self.paths.values():
            path.writer.close()
            path.lost.set()
            path.wake.set()
            if not path.verdict.done():
                path.verdict.set_exception(over)
        self.paths.clear()
        self._notify()

    _ACTIONS: ClassVar[dict[Kind, Callable[..., None]]] = {
        Kind.OPENED: _on_opened,
        Kind.REFUSED: _on_refused,
        Kind.DATA: _on_data,
        Kind.FIN: _on_fin,
        Kind.RESET: _on_reset,
        Kind.WINDOW: _on_window,
        Kind.STREAMS: _on_streams,
        Kind.REKEY_ANSWER: _on_rekey_answer,
        Kind.REKEY_PLEASE: _on_rekey_please,
        Kind.LANE: _on_lane,
        Kind.GOAWAY: _on_goaway,
        Kind.ABANDON: _on_abandon,
        Kind.ACK: _on_ack,
        Kind.PING: _on_ping,
        Kind.PONG: _ignore,
        Kind.SWITCH: _on_switch,
        Kind.DATAGRAM: _on_datagram,
        Kind.ADVERTISE: _on_advertise,
        Kind.CLOSE: _on_close,
    }
