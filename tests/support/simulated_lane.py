"""A datagram lane of the simulator: two LanePaths, and between them what loses, reorders and repeats.

    LanePath.next -> LaneEnd: datagrams with counters, a window -> LaneWire -> LaneEnd: seen before? -> LanePath

The carrier is as simple as can be: a window of fixed size, acknowledgements of everything that came, a datagram is lost
when three later ones are acknowledged, or nothing was acknowledged for a time. What it promises to LanePath is what the
real one promises.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final, cast

from cryprq_proxy.errors import CarrierError, PeerError
from cryprq_proxy.session.lane_loads import FramesLoad, Load, StreamLoad
from cryprq_proxy.session.lane_path import LanePath
from tests.support.simulator import Broken, Clock, Host

THRESHOLD: Final = 3
"""Later datagrams that are acknowledged before one is lost."""
ACK_SECONDS: Final = 0.005
CHECK_SECONDS: Final = 2.0
"""Without anything that arrives, after which a lane is down."""
PROBE_SECONDS: Final = 0.25
MOST_TIMEOUT: Final = 3.0
INFINITE: Final = float("inf")


class LaneWire:
    """One direction. `loss` and `repeated`: shares of what is sent; `jitter`: seconds by which a datagram is later than
    others; all are drawn from `draw`."""

    def __init__(self, clock: Clock, draw: random.Random) -> None:
        self._clock = clock
        self._draw = draw
        self.delay, self.jitter = 0.01, 0.0
        self.loss = self.repeated = 0.0
        self.blocked = False
        self.deliver: Callable[[object], None] = lambda datagram: None

    def put(self, datagram: object) -> None:
        for _ in range(1 + (self._draw.random() < self.repeated)):
            if not self.blocked and self._draw.random() >= self.loss:
                delay = self.delay + self._draw.random() * self.jitter
                self._clock.after(delay, lambda: self._arrive(datagram))

    def _arrive(self, datagram: object) -> None:
        if not self.blocked:
            self.deliver(datagram)


class _Flight:
    """A load that was sent as datagrams `first` and following, of which `open` are neither acknowledged nor lost."""

    def __init__(self, load: Load, first: int, count: int) -> None:
        self.load, self.first = load, first
        self.open = set(range(count))


class LaneEnd:
    """The carrier at one side."""

    def __init__(self, host: Host, out: LaneWire, draw: random.Random) -> None:
        self.host = host
        self._clock = host.clock
        self._out = out
        self._draw = draw
        self.path: LanePath = host.session.attach_lane(host.clock.now)
        self.path.ready = self._ready
        self.payload, self.window = 1_400, 64_000
        self._asked = self._full = False
        self._counter = 0
        self._flights: dict[int, _Flight] = {}
        """By counter; one object for each datagram of a load."""
        self._highest = -1
        self._timeouts = 0
        self._timer = 0
        self._seen: set[int] = set()
        self._ack_due = False
        self._heard = -INFINITE
        self._armed = INFINITE
        self._spins = 0
        self.refused = 0
        self.check()

    # --- out --------------------------------------------------------------------------------------------------------

    def _ready(self) -> None:
        if not self._asked:
            self._asked = True
            self._clock.at(self._clock.now, lambda: self.host.do(self._pump))

    def _pump(self) -> None:
        self._asked = False
        for _ in range(64):
            room = self.window - sum(1 for _ in self._flights) * self.payload
            load = self._call(lambda room=room: self.path.next(max(room, 0), self.payload, self._clock.now))  # type: ignore[misc]
            if not isinstance(load, StreamLoad | FramesLoad):
                self._full = self.path.waits and room < self.payload
                return
            self._send(load)
        self.path.wake()  # in the next turn

    def _send(self, load: Load) -> None:
        first = self._counter
        pieces: list[tuple[int, int, bytes]] = []
        if isinstance(load, StreamLoad):
            if load.end - load.start > 44 * self.payload or load.payload != self.payload:
                raise Broken("a load is larger than a train")
            # As sealing does: what stands before is overwritten meanwhile.
            for at in range(load.start, load.end, self.payload):
                data = bytes(load.buffer[at : min(at + self.payload, load.end)])
                pieces.append((load.stream, load.offset + at - load.start, data))
        else:
            if len(load.data) > self.payload or not load.data:
                raise Broken("frames do not fit into a datagram")
            pieces.append((0, 0, load.data))
        if self._draw.random() < 0.01:
            self.path.lost([(load, 0, len(pieces))], self._clock.now)  # the kernel's buffer was full
            return
        flight = _Flight(load, first, len(pieces))
        for piece in pieces:
            self._flights[self._counter] = flight
            self._out.put((self._counter, piece))
            self._counter += 1
        self._arm_timeout()

    def _arm_timeout(self) -> None:
        self._timer += 1
        timer = self._timer
        seconds = min((2 * self._out.delay + 2 * self._out.jitter + 0.05) * 2**self._timeouts, MOST_TIMEOUT)
        self._clock.after(seconds, lambda: self.host.do(lambda: self._timeout(timer)))

    def _timeout(self, timer: int) -> None:
        if timer != self._timer or not self._flights or self.host.session.closed is not None:
            return
        self._timeouts += 1
        self._give_back(sorted(self._flights)[:2])
        self._call(lambda: self.path.silent(self._clock.now, self._timeouts))
        self._out.put("probe")
        self._ready()
        if self._flights:
            self._arm_timeout()

    def _give_back(self, counters: list[int]) -> None:
        parts: list[tuple[Load, int, int]] = []
        for counter in counters:
            flight = self._flights.pop(counter)
            at = counter - flight.first
            flight.open.remove(at)
            parts.append((flight.load, at, at + 1))
        self._call(lambda: self.path.lost(parts, self._clock.now))

    def _acknowledged(self, counters: frozenset[int]) -> None:
        parts: list[tuple[Load, int, int]] = []
        self._highest = max(self._highest, max(counters, default=-1))
        for counter in sorted(counters & self._flights.keys()):
            flight = self._flights.pop(counter)
            at = counter - flight.first
            flight.open.remove(at)
            if parts and parts[-1][0] is flight.load and parts[-1][2] == at:
                parts[-1] = (flight.load, parts[-1][1], at + 1)
            else:
                parts.append((flight.load, at, at + 1))
        if not parts:
            return
        self._timeouts = 0
        self._call(lambda: self.path.acked(parts, self._clock.now))
        lost = [counter for counter in self._flights if counter <= self._highest - THRESHOLD]
        if lost:
            self._give_back(sorted(lost))
        if self._full:
            self._ready()
        if self._flights:
            self._arm_timeout()

    # --- in ---------------------------------------------------------------------------------------------------------

    def arrive(self, datagram: object) -> None:
        if self.host.turn.left <= 0 and self.host.session.closed is None:
            self.host.turn.wait(lambda: self.host.do(lambda: self.arrive(datagram)))
            return
        now = self._clock.now
        self._heard = now
        if datagram == "probe":
            self._out.put("answer")
        elif datagram == "answer":
            self._call(lambda: self.path.alive(now))
        elif isinstance(datagram, frozenset):
            self._acknowledged(datagram)
        else:
            self._take(*cast("tuple[int, tuple[int, int, bytes]]", datagram))
        self._arm()

    def _take(self, counter: int, piece: tuple[int, int, bytes]) -> None:
        now = self._clock.now
        stream, offset, data = piece[0], piece[1], memoryview(bytearray(piece[2]))
        if counter in self._seen:
            return

        def take() -> bool:
            if stream:
                return self.path.stream_data(stream, offset, data, now)
            return self.path.frames(data, now)

        if self._call(take) is not True:
            self.refused += 1
            return
        data[:] = bytes(len(data))  # the buffer is used again
        self._seen.add(counter)
        if not self._ack_due:
            self._ack_due = True
            self._clock.after(ACK_SECONDS, lambda: self.host.do(self._acknowledge))

    def _acknowledge(self) -> None:
        self._ack_due = False
        self._out.put(frozenset(self._seen))
        if len(self._seen) > 2_000:
            self._seen = {counter for counter in self._seen if counter > max(self._seen) - 1_000}

    # --- time -------------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Whether the lane works: probes, as the real one has."""
        session = self.host.session
        if session.closed is not None:
            return
        now = self._clock.now
        self._out.put("probe")
        works = now - self._heard < CHECK_SECONDS
        if works is not self.path.up:
            self.set_up(works)
        self._clock.after(PROBE_SECONDS, lambda: self.host.do(self.check))

    def set_up(self, up: bool) -> None:
        if not up:
            self._flights.clear()
        self._call(lambda: self.path.set_up(up, 2 * self._out.delay, "so it is", self._clock.now))
        self._arm()

    def _call(self, call: Callable[[], object]) -> object:
        try:
            result = call()
        except CarrierError as error:
            self.host.errors.append(error)
            self._flights.clear()
            self._heard = -INFINITE
            self.path.set_up(False, 0.0, "its keys are too old", self._clock.now)
            return None
        except PeerError as error:
            self.host.errors.append(error)
            self.host.session.close(error.reason)
            return None
        self._arm()
        return result

    def _arm(self) -> None:
        deadline = self.path.deadline()
        if deadline != self._armed:
            self._armed = deadline
            if deadline != INFINITE:
                self._clock.at(deadline, lambda: self.host.do(lambda: self._tick(deadline)))

    def _tick(self, deadline: float) -> None:
        if deadline == self._armed:
            self._armed = -1.0
            self._call(lambda: self.path.tick(self._clock.now))


class SimulatedLane:
    """That between two hosts."""

    def __init__(self, client: Host, exit: Host, seed: int = 0) -> None:
        draw = random.Random(seed)
        self.up, self.down = LaneWire(client.clock, draw), LaneWire(client.clock, draw)
        self.client, self.exit = LaneEnd(client, self.up, draw), LaneEnd(exit, self.down, draw)
        self.up.deliver = lambda datagram: exit.do(lambda: self.exit.arrive(datagram))
        self.down.deliver = lambda datagram: client.do(lambda: self.client.arrive(datagram))

    @property
    def wires(self) -> tuple[LaneWire, LaneWire]:
        return self.up, self.down

    @property
    def ends(self) -> tuple[LaneEnd, LaneEnd]:
        return self.client, self.exit

    def change(
        self, *, loss: float | None = None, jitter: float | None = None, repeated: float | None = None,
        delay: float | None = None,
    ) -> None:  # fmt: skip
        for wire in self.wires:
            wire.loss = wire.loss if loss is None else loss
            wire.jitter = wire.jitter if jitter is None else jitter
            wire.repeated = wire.repeated if repeated is None else repeated
            wire.delay = wire.delay if delay is None else delay

    def block(self, *, up: bool = True, down: bool = True) -> None:
        self.up.blocked |= up
        self.down.blocked |= down

    def go_on(self) -> None:
        self.up.blocked = self.down.blocked = False
