"""Two sessions with a lane between them, moved by hand: a test takes what one gives, and says what became of it."""

from __future__ import annotations

from functools import partial

from cryprq_proxy.session.lane_choice import HOLD_SECONDS, SHORT_ROUND_TRIP
from cryprq_proxy.session.lane_loads import FramesLoad, Load, Part, StreamLoad
from cryprq_proxy.session.lane_path import LanePath
from cryprq_proxy.session.session import Session
from tests.support.links import App, Link, ToyProvider

PAYLOAD = 1_000
ROUND_TRIP = 0.05


class LanePair:
    """A link whose lane is up at both ends. The record path works too, unless it was cut."""

    def __init__(self, *, up: bool = True, **options: object) -> None:
        self.link = Link(provider=ToyProvider(), **options)  # type: ignore[arg-type]
        self.client, self.exit = self.link.client, self.link.exit
        self.lanes = {session: session.attach_lane(self.now) for session in (self.client, self.exit)}
        self.woken = dict.fromkeys(self.lanes, 0)
        for session, lane in self.lanes.items():
            lane.ready = partial(self._wake, session)
        self.link.carrier.settle()
        if up:
            self.set_up()

    def _wake(self, session: Session) -> None:
        self.woken[session] += 1

    @property
    def now(self) -> float:
        return self.link.carrier.now

    def set_up(self, up: bool = True) -> None:
        for lane in self.lanes.values():
            lane.set_up(up, ROUND_TRIP, "a test says so", self.now)

    def lane(self, session: Session) -> LanePath:
        return self.lanes[session]

    def peer(self, session: Session) -> Session:
        return self.exit if session is self.client else self.client

    def take(self, session: Session, *, room: int = 1 << 20, payload: int = PAYLOAD) -> list[Load]:
        """All that `session` has to send."""
        loads: list[Load] = []
        while (load := self.lanes[session].next(room, payload, self.now)) is not None:
            loads.append(load)
        return loads

    def deliver(self, session: Session, load: Load, first: int = 0, behind: int | None = None) -> bool:
        """To the peer of `session`: datagrams of `load`, as one run."""
        session.turn.renew()
        peer = self.peer(session)
        peer.turn.renew()
        if isinstance(load, FramesLoad):
            return self.lanes[peer].frames(memoryview(load.data), self.now)
        begin, end = load.part(first, whole(load)[2] if behind is None else behind)
        start = load.start + begin - load.begin
        data = memoryview(bytes(load.buffer[start : start + end - begin]))
        return self.lanes[peer].stream_data(load.stream, load.offset + begin - load.begin, data, self.now)

    def settle(self, payload: int = PAYLOAD) -> None:
        """Everything that both sides send arrives and is acknowledged, by the lane and beside it."""
        moved = True
        while moved:
            before = dict(self.woken)
            for session in (self.client, self.exit):
                for load in self.take(session, payload=payload):
                    assert self.deliver(session, load)
                    self.lanes[session].acked([whole(load)], self.now)
            self.link.carrier.settle()
            moved = before != self.woken

    def pair(self) -> tuple[App, App]:
        """Both ends of a new stream."""
        app = self.link.open()
        self.settle()
        assert app.stream is not None
        return app, self.link.served[app.stream.id]

    def slotted(self) -> tuple[App, App]:
        """As `pair`; the client sends from slots."""
        app, other = self.pair()
        app.slots = self.link.slots
        return app, other

    def shorten(self, session: Session) -> None:
        """For `session` the round trip is so short that it chooses the record path."""
        self.link.carrier.now += HOLD_SECONDS
        lane = self.lanes[session]
        lane.tick(self.now)
        lane.paced(1e9, SHORT_ROUND_TRIP / 2)
        assert not lane.carries

    def cut(self) -> None:
        """There is no record path any more."""
        self.link.carrier.cut()


def whole(load: Load) -> Part:
    """All datagrams of a load."""
    if isinstance(load, StreamLoad):
        return load, 0, -(-(load.finish - load.begin) // load.payload)
    return load, 0, 1


def kinds(load: Load) -> list[int]:
    """Those of its frames."""
    assert isinstance(load, FramesLoad)
    return [unit.frame[0] for unit in load.units]
