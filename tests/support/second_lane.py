"""The datagram lane of the second client (docs/protocol.md, section 13): its keys, its check, and streams over it.

It carries streams and the session's frames, and no packets. How much may be in flight, and when something is lost, is a
sender's own decision: here so many bytes, three counters and a fixed time.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import struct
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import chain, pairwise
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from tests.support.second_flights import AES, Epoch
from tests.support.second_frames import Address, Close, Kind, Unit, Violation, data_frame, frame, take_address

AROUND = 29  # bytes of a datagram around its message
SMALL, MIDDLE, LARGEST = 600, 1200, 65_507
WINDOW_OF_COUNTERS = 8192
RANGES = 64
ACK_DELAY = 0.02
LOST_AFTER, LOST_BEHIND = 0.15, 3
CONFIRM_EVERY = 0.25
IN_FLIGHT = 1 << 16
RUN = 40


class Use(IntEnum):
    """What the client wants its exit to send by, in LANE."""

    AUTO, TCP, UDP = range(3)


class Message(IntEnum):
    SLICE, DATAGRAM, PROBE, PROBE_ACK, CHALLENGE, RESPONSE, KEEPALIVE = range(1, 8)
    STREAM, STREAM_ASK, FRAMES, FRAMES_ASK, ACK = range(8, 13)


STREAMS = (Message.STREAM, Message.STREAM_ASK)
FRAMES = (Message.FRAMES, Message.FRAMES_ASK)


class LaneKey:
    """One direction in one epoch."""

    def __init__(self, cipher: int, key: bytes, index: int, epoch: int = 0) -> None:
        self.index, self.epoch = index, epoch
        self._aead = AESGCM(key) if cipher == AES else ChaCha20Poly1305(key)

    def seal(self, counter: int, message: bytes, kind: int = 1) -> bytes:
        header = struct.pack(">BIQ", kind, self.index, counter)
        return header + self._aead.encrypt(header[1:], message, header)

    def open(self, datagram: bytes) -> tuple[int, bytes]:
        """Its counter and its message. Raises InvalidTag."""
        header = datagram[:13]
        return struct.unpack_from(">Q", header, 5)[0], self._aead.decrypt(header[1:], datagram[13:], header)


@dataclass
class Window:
    """Which counters of one epoch have come."""

    highest: int = -1
    came: set[int] = field(default_factory=set)

    def takes(self, counter: int) -> bool:
        return counter > self.highest - WINDOW_OF_COUNTERS and counter not in self.came

    def add(self, counter: int) -> None:
        self.came.add(counter)
        self.highest = max(self.highest, counter)
        if len(self.came) > 2 * WINDOW_OF_COUNTERS:
            self.came = {came for came in self.came if came > self.highest - WINDOW_OF_COUNTERS}


class Ranges:
    """Counters that came, as rising pairs of the first and the one behind the last."""

    def __init__(self) -> None:
        self.pairs: list[tuple[int, int]] = []

    def add(self, counter: int) -> None:
        pairs = self.pairs
        at = bisect_left(pairs, (counter + 1, 0))  # the first range above
        if at and pairs[at - 1][1] > counter:
            return
        begin, end = counter, counter + 1
        if at < len(pairs) and pairs[at][0] == end:
            end = pairs.pop(at)[1]
        if at and pairs[at - 1][1] == begin:
            at -= 1
            begin = pairs.pop(at)[0]
        pairs.insert(at, (begin, end))

    def has(self, counter: int) -> bool:
        at = bisect_left(self.pairs, (counter + 1, 0))
        return bool(at) and self.pairs[at - 1][1] > counter

    def message(self, delay: float, marked: int = 0) -> bytes:
        """ACK of the highest of them."""
        told = self.pairs[: -RANGES - 1 : -1]
        lengths = [end - begin for begin, end in told]
        gaps = [higher[0] - lower[1] for higher, lower in pairwise(told)]
        rest = list(chain.from_iterable(zip(gaps, lengths[1:], strict=True)))
        return ack_message(told[0][1] - 1, delay, marked, lengths[0], rest)


def ack_message(largest: int, delay: float, marked: int, length: int, rest: list[int]) -> bytes:
    head = struct.pack(">BQIIBI", Message.ACK, largest, int(delay * 1e6), marked, len(rest) // 2 + 1, length)
    return head + struct.pack(f">{len(rest)}I", *rest)


def read_ack(message: bytes) -> list[tuple[int, int]]:
    """Its ranges from the highest down, as the first and the one behind the last. Raises ValueError, struct.error."""
    largest, _, _, count, length = struct.unpack_from(">QIIBI", message, 1)
    rest = struct.unpack(f">{2 * count - 2}I", message[22:])
    end = largest + 1
    told = [(end - length, end)]
    for gap, size in zip(rest[::2], rest[1::2], strict=True):
        end = told[-1][0] - gap
        told.append((end - size, end))
    if not 1 <= count <= RANGES or length == 0 or 0 in rest or told[-1][0] < 0:
        raise ValueError("ACK")
    return told


def stream_message(stream: int, offset: int, data: bytes, index: int = 0, ask: bool = False) -> bytes:
    return struct.pack(">BBIQ", STREAMS[ask], index, stream, offset) + data


type Journey = Callable[[bytes, Callable[[bytes], None]], None]
"""What becomes of a datagram: it is handed to the second argument, or not."""


class Weather:
    """What becomes of datagrams on their journey: each comes not at all, once or twice, at once or later."""

    def __init__(self, seed: int = 0, drop: float = 0, double: float = 0, late: float = 0) -> None:
        self._random = random.Random(seed)
        self._drop, self._double, self._late = drop, double, late

    def __call__(self, datagram: bytes, deliver: Callable[[bytes], None]) -> None:
        draw = self._random.random
        if draw() < self._drop:
            return
        for _ in range(1 + (draw() < self._double)):
            if draw() < self._late:
                asyncio.get_running_loop().call_later(0.01 * draw(), deliver, datagram)
            else:
                deliver(datagram)


class LaneSession(Protocol):
    """What the lane asks of its session."""

    epoch: Epoch
    retained: int

    @property
    def over(self) -> Exception | None: ...
    def control(self, data: bytes) -> None: ...
    def lane_answers(self) -> None: ...
    def next_for_lane(self) -> Unit | None: ...
    def opening(self, unit: Unit) -> Unit | None: ...
    def arrived(self, units: list[Unit]) -> None: ...
    def give_back(self, units: list[Unit]) -> None: ...
    def frames_came(self, plaintext: bytes) -> None: ...
    def datagram_came(self, stream: int, source: Address, payload: bytes) -> None: ...
    def close(self, reason: int = Close.NORMAL) -> None: ...


@dataclass
class Sent:
    """One datagram that waits for its acknowledgement."""

    units: list[Unit]
    size: int
    at: float


class Lane:
    """The lane of one session, on a socket of its own."""

    def __init__(self, session: LaneSession, cipher: int, exit_address: Address, use: Use) -> None:
        self._session, self._cipher, self.use = session, cipher, use
        self.out_weather: Journey = Weather()
        self.in_weather: Journey = Weather()
        self.ack_delay = ACK_DELAY
        self.acks = True
        self.size = 0  # of the largest datagram that has been answered; 0: the lane is down
        self.counter = 0
        self._ends: dict[int, Epoch] = {}
        self._indexes: dict[int, int] = {}  # of the exit, by epoch
        self._out: tuple[int, LaneKey] | None = None
        self._in: dict[int, tuple[LaneKey, Window]] = {}  # by own index
        self.came, self._highest_at = Ranges(), 0.0
        self._probes: dict[int, int] = {}
        self.flying: dict[int, Sent] = {}
        self.in_flight = 0
        self.again: deque[Unit] = deque()
        self._ack_timer: asyncio.TimerHandle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._heard_at = time.monotonic()
        self.on_message: Callable[[int, bytes], None] = lambda counter, message: None
        self.acked: set[int] = set()
        self.heard_in = -1  # the newest epoch of which a datagram opened
        self._loop = asyncio.get_running_loop()
        self.address = exit_address
        self._socket = self._bound()
        self._beat()

    # The socket.

    def _bound(self) -> socket.socket:
        new = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        new.setblocking(False)
        new.bind(("127.0.0.1", 0))
        self._loop.add_reader(new.fileno(), self._readable, new)
        return new

    def move(self) -> None:
        """Go on from another address."""
        self._close_socket()
        self._socket = self._bound()

    def _close_socket(self) -> None:
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()

    def send_raw(self, datagram: bytes) -> None:
        if self._socket.fileno() < 0:
            return
        try:
            self._socket.sendto(datagram, self.address)
        except OSError:
            return  # lost, as any datagram may be

    def _readable(self, own: socket.socket) -> None:
        for _ in range(256):
            try:
                datagram = own.recv(LARGEST)
            except OSError:
                break
            self.in_weather(datagram, self._datagram)
        self.pump()

    def stop(self) -> None:
        for timer in (self._ack_timer, self._timer):
            if timer:
                timer.cancel()
        self._close_socket()

    # Keys.

    def enter(self, epoch: Epoch) -> None:
        """The session has these secrets: tell the exit which index is theirs."""
        index = int.from_bytes(os.urandom(4)) or 1
        self._in[index] = LaneKey(self._cipher, epoch.exit_lane, index, epoch.number), Window()
        self._ends[epoch.number] = epoch
        self._session.control(frame(Kind.LANE, "IIB", epoch.number, index, self.use))
        self._renew()

    def announced(self, epoch: int, index: int) -> None:
        if index == 0 or self._indexes.setdefault(epoch, index) != index:
            raise Violation(Close.PROTOCOL)
        self._renew()

    def _renew(self) -> None:
        known = [number for number in self._ends if number in self._indexes]
        if known and (self._out is None or max(known) > self._out[0]):
            number = max(known)
            self._out = number, LaneKey(self._cipher, self._ends[number].client_lane, self._indexes[number])
            self._beat()

    @property
    def sends_in(self) -> int:
        """The epoch whose key seals, -1 before the first."""
        return self._out[0] if self._out else -1

    # Out.

    def seal(self, message: bytes) -> bytes:
        assert self._out is not None
        self.counter += 1
        return self._out[1].seal(self.counter - 1, message)

    def send(self, message: bytes) -> int:
        """Returns the counter."""
        self.out_weather(self.seal(message), self.send_raw)
        return self.counter - 1

    def probe(self, size: int) -> None:
        token = int.from_bytes(os.urandom(8))
        self._probes[token] = size
        self.send(struct.pack(">BQ", Message.PROBE, token) + bytes(size - AROUND - 9))

    def _beat(self) -> None:
        """Confirm while it is down; lose what is late; say that we are there."""
        if self._timer:
            self._timer.cancel()
        if self._session.over:
            return
        if self._out and not self.size:
            self.probe(MIDDLE)
            self.probe(SMALL)
            self._timer = self._loop.call_later(CONFIRM_EVERY, self._beat)
            return
        now = time.monotonic()
        late = [counter for counter, sent in self.flying.items() if sent.at < now - LOST_AFTER]
        self._lost(late)
        self.pump()
        self._timer = self._loop.call_later(LOST_AFTER, self._beat)
        if now - self._heard_at > 1 and self._out:
            self._heard_at = now
            self.send(bytes([Message.KEEPALIVE]))

    def pump(self) -> None:
        """Send what waits, as far as the window allows."""
        while self.size and not self._session.over and self.in_flight < IN_FLIGHT:
            if not (unit := self._next()):
                break
            if unit.frame[0] == Kind.DATA:
                self._send_run(unit)
            else:
                self._send_frames(unit)

    @property
    def room(self) -> int:
        """Bytes of a message behind its type."""
        return self.size - AROUND - 1

    def _next(self) -> Unit | None:
        unit = self.again.popleft() if self.again else self._session.next_for_lane()
        if unit and (first := self._session.opening(unit)):
            self.again.appendleft(unit)
            return first
        if unit and unit.frame[0] == Kind.DATA and len(unit.frame) > self.room:
            self.again.extendleft(reversed(self._cut(unit)))
            return self.again.popleft()
        return unit

    def _cut(self, unit: Unit) -> list[Unit]:
        stream, offset = struct.unpack_from(">IQ", unit.frame, 1)
        data, most = unit.frame[13:], self.room - 13
        pieces = [
            Unit(data_frame(stream, offset + at, data[at : at + most]), unit.stream)
            for at in range(0, len(data), most)
        ]
        self._session.retained += sum(len(piece.frame) for piece in pieces) - len(unit.frame)
        return pieces

    def _send_run(self, unit: Unit) -> None:
        """This piece, and what continues it in equal ones."""
        run = [unit]
        while self.again and len(run) < RUN and _continues(run, self.again[0]):
            run.append(self.again.popleft())
        for index, piece in enumerate(run):
            stream, offset = struct.unpack_from(">IQ", piece.frame, 1)
            ask = piece is run[-1]
            self._fly([piece], stream_message(stream, offset, piece.frame[13:], index, ask))

    def _send_frames(self, unit: Unit) -> None:
        units, size = [unit], len(unit.frame)
        while (more := self._next()) is not None:
            if more.frame[0] == Kind.DATA or size + len(more.frame) > self.room:
                self.again.appendleft(more)
                break
            units.append(more)
            size += len(more.frame)
        self._fly(units, bytes([FRAMES[1]]) + b"".join(unit.frame for unit in units))

    def _fly(self, units: list[Unit], message: bytes) -> None:
        self.in_flight += len(message)
        self.flying[self.counter] = Sent(units, len(message), time.monotonic())
        self.send(message)

    def _land(self, counter: int) -> list[Unit]:
        sent = self.flying.pop(counter)
        self.in_flight -= sent.size
        return sent.units

    def _lost(self, counters: Iterable[int]) -> None:
        self.again.extendleft(reversed([unit for counter in counters for unit in self._land(counter)]))

    def fall(self) -> None:
        """It is down: what it has carried goes by a path, until a probe is answered."""
        self.size = 0
        units = [unit for counter in list(self.flying) for unit in self._land(counter)] + list(self.again)
        self.again.clear()
        self._session.give_back(units)
        self._beat()

    # In.

    def _datagram(self, datagram: bytes) -> None:
        if len(datagram) < AROUND + 1 or datagram[0] not in (1, 2):
            return
        key, window = self._in.get(struct.unpack_from(">I", datagram, 1)[0], (None, None))
        counter = struct.unpack_from(">Q", datagram, 5)[0]
        if key is None or window is None or not window.takes(counter):
            return
        try:
            _, message = key.open(datagram)
        except InvalidTag:
            return
        window.add(counter)
        if key.epoch > self.heard_in:
            self.heard_in = key.epoch
            self._session.lane_answers()
        self.on_message(counter, message)
        try:
            self._message(counter, message, len(datagram))
        except Violation as violation:
            self._session.close(violation.args[0])
        except (struct.error, ValueError, KeyError, IndexError):
            return  # malformed: dropped

    def _message(self, counter: int, message: bytes, size: int) -> None:
        kind = message[0]
        if kind == Message.PROBE:
            self.send(struct.pack(">B8sH", Message.PROBE_ACK, message[1:9], size))
        elif kind == Message.PROBE_ACK:
            token, answered = struct.unpack(">QH", message[1:])
            if self._probes.pop(token, 0) == answered and answered > self.size:
                self.size = answered
                self._session.lane_answers()
        elif kind == Message.CHALLENGE:
            self.send(bytes([Message.RESPONSE]) + message[1:9])
        elif kind == Message.DATAGRAM:
            (stream,) = struct.unpack_from(">I", message, 1)
            source, at = take_address(message, 5)
            self._session.datagram_came(stream, source, message[at:])
        elif kind in STREAMS:
            stream, offset = struct.unpack_from(">IQ", message, 2)
            self._session.frames_came(data_frame(stream, offset, message[14:]))
        elif kind in FRAMES:
            self._session.frames_came(message[1:])
        elif kind == Message.ACK:
            self._acked(read_ack(message))
        self._note(counter, kind)

    def _note(self, counter: int, kind: int) -> None:
        self.came.add(counter)
        if counter == self.came.pairs[-1][1] - 1:
            self._highest_at = time.monotonic()
        if kind in (Message.STREAM_ASK, Message.FRAMES_ASK):
            self._owe(0 if self.ack_delay <= ACK_DELAY else self.ack_delay)
        elif kind in (Message.STREAM, Message.FRAMES):
            self._owe(self.ack_delay)

    def _owe(self, delay: float) -> None:
        if not self.acks:
            return
        if delay == 0:
            if self._ack_timer:
                self._ack_timer.cancel()
            self.send_ack()
        elif self._ack_timer is None:
            self._ack_timer = self._loop.call_later(delay, self.send_ack)

    def send_ack(self) -> None:
        self._ack_timer = None
        if not self._session.over:
            self.send(self.came.message(time.monotonic() - self._highest_at))

    def _acked(self, told: list[tuple[int, int]]) -> None:
        if told[0][1] > self.counter:
            raise Violation(Close.PROTOCOL)
        for first, end in told:
            self.acked.update(range(max(first, end - WINDOW_OF_COUNTERS), end))
        named = [counter for counter in self.flying if any(first <= counter < end for first, end in told)]
        self._session.arrived([unit for counter in named for unit in self._land(counter)])
        highest = told[0][1] - 1
        self._lost([counter for counter in self.flying if counter < highest - LOST_BEHIND])


def _continues(run: list[Unit], unit: Unit) -> bool:
    last, frame_ = run[-1].frame, unit.frame
    if frame_[0] != Kind.DATA or len(last) != len(run[0].frame) or len(frame_) > len(last):
        return False
    return bool(
        struct.unpack_from(">IQ", frame_, 1)
        == (struct.unpack_from(">I", last, 1)[0], struct.unpack_from(">Q", last, 5)[0] + len(last) - 13)
    )
