"""A network of paths between two sessions, on a virtual clock: what no socket lets a test do to bytes.

    Host.session -> SessionPath.fill -> End -> Wire: waits, is sent at `rate`, flies for `delay` -> End -> receive

Everything is an event in the heap of one Clock. Nothing sleeps, and the same calls in the same order give the same run,
byte by byte.

A `Wire` is one direction of a TCP connection: in order, nothing lost but with the connection. It can stand still, get
another rate or delay, or end at an exact byte. An `End` does what a carrier does. A `Host` may be suspended: its clock
goes on and it does nothing. Connections are made in simulated_network.py.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, cast

from cryprq_proxy.crypto.handshake import record_keys
from cryprq_proxy.crypto.primitives import Cipher, Provider
from cryprq_proxy.errors import CarrierError, LocalError, NotAdmitted, PeerError
from cryprq_proxy.session.path import FILL_MINIMUM, SessionPath
from cryprq_proxy.session.path_keys import CarrierKeys
from cryprq_proxy.session.records import RecordOpener, RecordSealer
from cryprq_proxy.session.retention import MemoryBudget, SlotPool
from cryprq_proxy.session.rotation import Offload, inline
from cryprq_proxy.session.session import Session, SessionLimits
from cryprq_proxy.session.streams import Stream
from cryprq_proxy.session.turns import TurnBudget
from cryprq_proxy.session.windows import WindowBudget
from tests.support.links import SESSION_ID, ToyProvider, epoch, seeded

BUDGET: Final = 262_144
"""Bytes asked of a path at a time, at most."""
TURN: Final = 0.0001
"""Seconds of a turn of the loop that has much to do."""
FAREWELL: Final = 5.0
"""In which the CLOSE of a session leaves, or never."""
PATIENCE: Final = 8
"""Calls in a row that may have no effect: of `tick` at one time, and of `fill` after `ready`."""
START: Final = 1_000.0

_buffer: Final = memoryview(bytearray(FILL_MINIMUM + BUDGET))


class Broken(RuntimeError):
    """A promise of the session is broken, or the two sides disagree."""


class Clock:
    """The time, and what happens when."""

    def __init__(self) -> None:
        self.now = START
        self.events = 0
        self._serial = 0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []

    def at(self, time: float, event: Callable[[], None]) -> None:
        """Events of one time happen in the order in which they were asked for."""
        self._serial += 1
        heapq.heappush(self._heap, (max(time, self.now), self._serial, event))

    def after(self, seconds: float, event: Callable[[], None]) -> None:
        self.at(self.now + seconds, event)

    def leap(self, seconds: float) -> None:
        """It jumps, as behind a rest of all machines: what was due by then is due now."""
        self.now += seconds
        self._heap = [(max(time, self.now), serial, event) for time, serial, event in self._heap]
        heapq.heapify(self._heap)

    def run(self, seconds: float, done: Callable[[], bool] | None = None) -> bool:
        """Let time pass, until `done`. Whether it is."""
        end = self.now + seconds
        while self._heap and self._heap[0][0] <= end:
            if done is not None and done():
                return True
            self.now, _, event = heapq.heappop(self._heap)
            self.events += 1
            event()
        if done is not None and done():
            return True
        self.now = end
        return False


@dataclass(frozen=True, slots=True)
class Route:
    """What lies between two ends. `rate` in bytes a second, `delay` of one direction in seconds, `room` in bytes: how
    much may be under way. `piece`: bytes that arrive at a time, at most."""

    rate: float = 1e8
    delay: float = 0.01
    room: int = 1 << 18
    piece: int = 1 << 20


class Wire:
    """One direction of a connection."""

    def __init__(self, clock: Clock, route: Route) -> None:
        self._clock = clock
        self.route = route
        self.deliver: Callable[[bytes], None] = _drop
        """Gets what arrives; b"" at the end."""
        self.emptied: Callable[[], None] = nothing
        """There is room again."""
        self.sent = self.arrived = 0
        self.cut_after: int | None = None
        self.cut: Callable[[], None] = nothing
        """Called when `cut_after` bytes have arrived."""
        self.stopped = False
        """Nothing arrives; what is sent waits."""
        self.dead = False
        """What is sent is lost, and so is what was on its way."""
        self._moved = clock.now
        self.halted = float("inf")
        """Since when nothing arrives."""
        self.ended = False
        self._free = clock.now
        self._last = clock.now
        self._flight: deque[tuple[float, float, bytes]] = deque()
        """When its first byte arrives, when its last one does, and what."""
        self._due = False

    @property
    def room(self) -> int:
        return self.route.room - (self.sent - self.arrived)

    @property
    def moved(self) -> float:
        """When a byte has arrived last, also of what is not there as a whole."""
        now = self._clock.now
        return now if self._flight and self._flight[0][0] <= now and not self.stopped else self._moved

    def put(self, data: bytes) -> None:
        """b"" is the end."""
        self.sent += len(data)
        if self.dead or self.ended:
            return
        self.ended = not data
        first = max(self._free, self._clock.now) + self.route.delay
        self._free = max(self._free, self._clock.now) + len(data) / self.route.rate
        self._last = max(self._last, self._free + self.route.delay)
        self._flight.append((first, self._last, data))
        self._wait()

    def stop(self) -> None:
        self.stopped = True
        self.halted = min(self.halted, self._clock.now)

    def go_on(self) -> None:
        self.stopped = False
        self.halted = self._clock.now if self.dead else float("inf")
        self._wait()

    def kill(self) -> None:
        self.dead = True
        self.halted = min(self.halted, self._clock.now)
        self._flight.clear()

    def _wait(self) -> None:
        if self._flight and not self._due and not self.stopped:
            self._due = True
            self._clock.at(self._flight[0][1], self._arrive)

    def _arrive(self) -> None:
        self._due = False
        if self.stopped or not self._flight or self._flight[0][1] > self._clock.now:
            self._wait()
            return
        first, time, data = self._flight.popleft()
        size = min(len(data), self.route.piece)
        if self.cut_after is not None:
            size = min(size, self.cut_after - self.arrived)
        if size < len(data):
            self._flight.appendleft((first, time, data[size:]))
            data = data[:size]
        self.arrived += size
        self._moved = self._clock.now
        if self.cut_after is not None and self.arrived >= self.cut_after:
            if data:
                self.deliver(data)
            self.cut()
            return
        self._wait()
        self.deliver(data)
        self.emptied()


class Host:
    """One side: a session and what its process gives it."""

    def __init__(
        self,
        clock: Clock,
        *,
        dialler: bool,
        limits: SessionLimits,
        provider: Provider | ToyProvider,
        cipher: Cipher,
        slots: SlotPool,
        memory: int,
        offload: Offload = inline,
        accept_stream: Callable[[Stream], None] | None = None,
    ) -> None:
        self.clock = clock
        self.dialler = dialler
        self.cipher = cipher
        self.slots = slots
        self.budget = MemoryBudget(memory)
        self.window_budget = WindowBudget(memory)
        self.turn_seconds = TURN
        self.turn = TurnBudget(lambda renew: clock.after(self.turn_seconds, renew))
        self.ends: dict[int, End] = {}
        self.errors: list[PeerError] = []
        self.suspended = False
        self._parked: deque[Callable[[], None]] = deque()
        more: dict[str, Any] = {} if accept_stream is None else {"accept_stream": accept_stream}
        self.session = Session(
            dialler=dialler,
            session_id=SESSION_ID,
            epoch=epoch(0),
            cipher=cipher,
            provider=cast("Provider", provider),
            entropy=seeded(int(dialler)),
            limits=limits,
            budget=self.budget,
            window_budget=self.window_budget,
            slots=slots,
            turn=self.turn,
            now=clock.now,
            offload=offload,
            **more,
        )

    def do(self, event: Callable[[], None]) -> None:
        """Now, or as soon as the host is awake."""
        if self.suspended:
            self._parked.append(event)
        else:
            event()

    def suspend(self, seconds: float) -> None:
        if not self.suspended:
            self.suspended = True
            self.clock.after(seconds, self._wake)

    def _wake(self) -> None:
        self.suspended = False
        while self._parked and not self.suspended:
            self._parked.popleft()()

    def keys(self, number: int) -> CarrierKeys:
        """Those on which path `number` begins, as if a handshake had agreed on them."""
        out, into = record_keys(epoch(number).records, number)[:: 1 if self.dialler else -1]
        return CarrierKeys(self.cipher, RecordSealer(self.cipher, out), RecordOpener(self.cipher, into))


class End:
    """A carrier: drives one SessionPath as the real ones do."""

    def __init__(self, host: Host, out: Wire, back: Wire, close: Callable[[], None]) -> None:
        self.host = host
        self._clock = host.clock
        self._out = out
        self._back = back
        self._close = close
        self.path: SessionPath | None = None
        self.open = True
        self._unused = b""
        self._due = False
        self._asked = False
        self._armed = float("inf")
        self._idle = (0.0, 0)
        self._leaving = self._ended = False
        self._spins = 0

    def attach(
        self,
        number: int,
        keys: CarrierKeys,
        joined: int,
        admitted: Callable[[], None] | None = None,
        early: int | None = None,
    ) -> None:
        """`joined`: the epoch by whose resume secret."""
        path = self.path = self.host.session.attach(
            number, keys, self._clock.now, admitted, epoch=joined, early=early
        )
        self.host.ends[number] = self
        path.ready = self._ready
        path.abandoned = self._abandoned
        path.unanswered = self._unanswered
        self._out.emptied = self._emptied
        self._ready()

    # --- out -------------------------------------------------------------------------------------------------------

    def _ready(self) -> None:
        """Called in the middle of the session's work, so do nothing yet."""
        self._due = True
        if not self._asked:
            self._asked = True
            self._clock.at(self._clock.now, lambda: self.host.do(self._pump))

    def _unanswered(self) -> float:
        """As the kernel's acknowledgements tell, which come back by the other wire."""
        out, back = self._out, self._back
        if out.sent == out.arrived:
            return 0.0
        return max(self._clock.now - min(out.moved + back.route.delay, back.halted), 0.0)

    def _emptied(self) -> None:
        if self._due and not self._asked:
            self._ready()

    def _pump(self) -> None:
        self._asked = False
        path = self.path
        while self.open and path is not None and self._due and self._out.room > 0:
            if self.host.turn.left <= 0 and self.host.session.closed is None:
                self._asked = True
                self.host.turn.wait(lambda: self.host.do(self._pump))
                return
            self._due = False
            size = 0
            budget = min(path.queue_target, self._out.room, BUDGET)

            def fill(path: SessionPath = path, budget: int = budget) -> None:
                nonlocal size
                size = path.fill(_buffer, budget, self._clock.now)

            self._guard(fill)
            if size:
                self._due = True
                self._out.put(bytes(_buffer[:size]))
            self._spins = self._spins + 1 if not size and self._due and self.host.turn.left > 0 else 0
            if self._spins > PATIENCE:
                raise LocalError(f"path {path.number} asks to be filled, and gives nothing")
        if self.open and not self._due and self.host.session.closed is not None:
            self.close()

    # --- in --------------------------------------------------------------------------------------------------------

    def arrive(self, data: bytes) -> None:
        """From the wire."""
        self._unused += data
        self._ended = not data
        self._read()

    def _read(self) -> None:
        path, turn = self.path, self.host.turn
        if not self.open or path is None:
            return
        if turn.left > 0:

            def receive() -> None:
                used = path.receive(memoryview(self._unused), self._clock.now)
                self._unused = self._unused[used:]

            self._guard(receive)
        if turn.left <= 0 and self.open and self.host.session.closed is None:
            turn.wait(lambda: self.host.do(self._read))
        elif self._ended:
            self.lose()

    # --- time and end ----------------------------------------------------------------------------------------------

    def _guard(self, call: Callable[[], None]) -> None:
        try:
            call()
        except (CarrierError, NotAdmitted) as error:
            self.host.errors.append(error)
            self.close()
        except PeerError as error:
            self.host.errors.append(error)
            self.host.session.close(error.reason)
        self._arm()

    def _arm(self) -> None:
        if self.host.session.closed is not None and not self._leaving:
            self._leaving = True
            self._clock.after(FAREWELL, lambda: self.host.do(self.close))
        elif self.open and self.path is not None and (deadline := self.path.deadline()) != self._armed:
            self._armed = deadline
            if deadline != float("inf"):
                self._clock.at(deadline, lambda: self.host.do(lambda: self._tick(deadline)))

    def _tick(self, deadline: float) -> None:
        path, now = self.path, self._clock.now
        if not self.open or path is None or deadline != self._armed or self._leaving:
            return
        time, count = self._idle
        self._idle = (now, count + 1 if time == now else 0)
        if count > PATIENCE:
            raise LocalError(f"path {path.number} asks for ticks that have no effect")
        self._armed = -1.0
        self._guard(lambda: path.tick(now))

    def probe(self, within: float) -> None:
        self._call(lambda path, now: path.probe(within, now))

    def prove(self, within: float) -> None:
        self._call(lambda path, now: path.prove(within, now))

    def measure(self) -> None:
        self._call(lambda path, now: path.measure())

    def _call(self, method: Callable[[SessionPath, float], None]) -> None:
        path = self.path
        if self.open and path is not None:
            self._guard(lambda: method(path, self._clock.now))

    def _abandoned(self) -> None:
        self.close()

    def close(self) -> None:
        """From this side, in order: the peer reads what was sent, and then the end."""
        if self.open:
            self._out.put(b"")
            self.lose()

    def lose(self) -> None:
        """The connection has ended."""
        if self.open:
            self.open = False
            if self.path is not None:
                self.host.ends.pop(self.path.number, None)
                self.path.lost(self._clock.now)
            self._close()


def nothing() -> None:
    """Nobody is told."""


def _drop(data: bytes) -> None:
    """There is nobody yet."""
