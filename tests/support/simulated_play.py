"""A play in the simulator: what happens is read from bytes, and whatever happens, the session keeps its promises.

`SimulatedPlay.run` raises `Broken` for a promise that is not kept, and whatever else leaves a session. The promises:

    bytes       of each stream come once and in order, and its end once (simulated_apps.py)
    streams     are opened once, and end at both sides as they were ended
    nothing     is kept when all is over: no frame, no number, no part of a pool (simulated_judge.py)
    agreement   both sides count the same credit, epochs and preferences, and neither closes the session
    rotation    goes on (simulated_stage.py)
    bounds      hold at any time
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final
from unittest import mock

from cryprq_proxy.errors import StreamReason
from cryprq_proxy.session import session_credit, stream_numbers, stream_table, turns
from cryprq_proxy.session.wire import StreamProtocol
from tests.support.choices import Choices
from tests.support.fault_watch import FaultWatch
from tests.support.settings import rotation_limits
from tests.support.simulated_apps import Ending, Manner, Talker
from tests.support.simulated_network import MEMORY, Connection
from tests.support.simulated_stage import STREAMS, Stage, play_limits
from tests.support.simulator import Route

MAX_STEPS: Final = 80
SLOW_WORK: Final = 100
SLOW_SECONDS: Final = 0.01
"""Of a turn of slow hosts."""
SIZES: Final = (0, 1, 500, 3_000, 20_000, 66_000, 200_000)
PIECES: Final = (1 << 20, 700, 5_000, 17, 70_000)
MOST_PIECES: Final = 100
STALLS: Final = (0.0, 0.0, 0.0, 0.05, 1.0, 9.0)
RATES: Final = (1e8, 1e7, 1e6, 2e5)
DELAYS: Final = (0.01, 0.0002, 0.05, 0.2)
CUTS: Final = (1, 20, 30, 60, 300, 2_000, 20_000)
PAUSES: Final = (0.0, 0.001, 0.01, 0.05, 0.3, 1.5, 12.0)
"""Between two acts."""
OUTAGES: Final = (0.05, 0.5, 3.0, 20.0, 100.0)
ENDINGS: Final = (*(Ending.FINISH,) * 5, Ending.RESET, Ending.RESET_ON_DATA, Ending.WAIT)
NEVER: Final = float("inf")


class SimulatedPlay:
    """One play; `trace` has what was done, for the one who looks for a fault."""

    def __init__(self, choices: Choices) -> None:
        self.choices = choices
        setting = choices.number(256)
        rotation = rotation_limits(
            interval=(600.0, 1.0, 4.0, 4.0)[setting & 3],
            records=(1 << 24, 1 << 24, 1 << 24, 20_000)[setting >> 2 & 3],
        )
        limits = play_limits(rotation=rotation)
        later, memory = bool(setting >> 4 & 1), (MEMORY, 1 << 18)[setting >> 6 & 1]
        with first_allowances(*((1 << 27, 1 << 14), (1 << 19, STREAMS >> 1))[setting >> 7]):
            self.stage = Stage(limits, manner=lambda stream: self._manner(), later=later, memory=memory)
        network = self.network = self.stage.network
        self.work = turns.TURN_WORK
        if choices.once_in(4):
            # Slow hosts, that stop in the middle of a record.
            self.work = SLOW_WORK
            for host in network.hosts:
                host.turn_seconds = SLOW_SECONDS
        network.early = lambda: not choices.once_in(4)
        network.routes = self._route
        network.wanted = 1 + (setting >> 5 & 1)
        self.trace: list[str] = []

    def acts(self) -> tuple[Callable[[], None], ...]:
        """What may happen."""
        return (
            self._open, self._open, self._open_many, self._datagrams, self._reset, self._reset, self._cut, self._cut,
            self._vanish, self._stop, self._change, self._beside, self._beside, self._hand_over, self._close,
            self._suspend, self._prefer, self._want, self._measure, self._probe, self._leave, self._announce,
            self._packet, self._hurry, self._wait,
        )  # fmt: skip

    def run(self) -> None:
        acts = self.acts()
        with FaultWatch() as watch, mock.patch.object(turns, "TURN_WORK", self.work):
            self._open()
            for _ in range(MAX_STEPS):
                if not self.choices.left:
                    break
                act = self.choices.pick(acts)
                self.trace.append(f"{self.stage.clock.now - 1_000:.4f} {act.__name__}")
                act()
                self.stage.run(self.choices.pick(PAUSES))
                watch.check()
            self.trace.append(f"{self.stage.clock.now - 1_000:.4f} finish")
            self.stage.finish()

    # --- streams ----------------------------------------------------------------------------------------------------

    def _manner(self) -> Manner:
        choices = self.choices
        if self.stage.hurried:
            return Manner()
        kind = choices.number(256)
        size = choices.pick(SIZES)
        return Manner(
            size=size,
            piece=max(choices.pick(PIECES), size // MOST_PIECES),
            pause=(0.0, 0.002, 0.1, 1.0)[kind & 3],
            ending=ENDINGS[kind >> 2 & 7],
            stall=choices.pick(STALLS),
            delay=(0.0, 0.3)[kind >> 5 & 1],
            refuse=kind >> 6 == 3,
            slots=bool(kind >> 6 & 1),
        )

    def _open(self) -> None:
        self.stage.client.do(lambda: self._opened(self._manner()))

    def _opened(self, manner: Manner, protocol: StreamProtocol = StreamProtocol.TCP) -> None:
        if self.stage.client.session.closed is None:
            self.stage.open(manner, protocol)

    def _open_many(self) -> None:
        for _ in range(self.choices.pick((3, 16, 80))):
            self.stage.client.do(
                lambda: self._opened(Manner(size=self.choices.pick((10, 100, 3_000)), piece=1_000))
            )

    def _datagrams(self) -> None:
        manner = Manner(size=0, datagrams=1 + self.choices.number(20), pause=0.02)
        self.stage.client.do(lambda: self._opened(manner, StreamProtocol.UDP))

    def _talker(self) -> Talker | None:
        talkers = [talker for talker in self.stage.talkers if not talker.over and talker.stream is not None]
        return self.choices.pick(talkers) if talkers else None

    def _leave(self) -> None:
        if (talker := self._talker()) is not None:
            talker.host.do(lambda: talker.leave(StreamReason.GENERAL))

    def _hurry(self) -> None:
        if (talker := self._talker()) is not None:
            talker.host.do(talker.wind_up)

    # --- paths ------------------------------------------------------------------------------------------------------

    def _route(self) -> Route:
        return Route(
            rate=self.choices.pick(RATES),
            delay=self.choices.pick(DELAYS),
            room=self.choices.pick((1 << 18, 1 << 14, 1 << 20)),
            piece=self.choices.pick((1 << 20, 1 << 20, 1_448, 333)),
        )

    def _connection(self) -> Connection | None:
        living = [connection for connection in self.network.connections if connection.alive]
        return self.choices.pick(living[::-1]) if living else None

    def _reset(self) -> None:
        after = (0.0, 0.0, 0.03, 1.0, NEVER)
        if (connection := self._connection()) is not None:
            connection.reset(self.choices.pick(after), self.choices.pick(after))

    def _cut(self) -> None:
        if (connection := self._connection()) is not None:
            wire = self.choices.pick((connection.up, connection.down))
            wire.cut_after = wire.arrived + self.choices.pick(CUTS) + self.choices.number(40)

    def _vanish(self) -> None:
        if (connection := self._connection()) is not None:
            connection.vanish()

    def _stop(self) -> None:
        if (connection := self._connection()) is not None:
            up, down = self.choices.pick(((True, True), (True, False), (False, True)))
            connection.stop(up=up, down=down)
            self.stage.clock.after(self.choices.pick(OUTAGES), connection.go_on)

    def _change(self) -> None:
        if (connection := self._connection()) is not None:
            connection.change(rate=self.choices.pick(RATES), delay=self.choices.pick(DELAYS))

    def _beside(self) -> None:
        self.stage.client.do(lambda: self._dial())

    def _dial(self) -> None:
        if self.stage.client.session.closed is None:
            self.network.dial()

    def _hand_over(self) -> None:
        """Another path, and the old ones are left when it is there."""
        old = [connection for connection in self.network.connections if connection.client.open]
        if not self.network.dialled or self.stage.client.session.closed is not None:
            return
        new = self.network.dial()
        if self.choices.once_in(2):
            self.stage.client.do(lambda: self.stage.client.session.prefer(new.number))
        wait = self.choices.pick((0.05, 0.5, 3.0))
        for connection in old:
            self.stage.clock.after(wait, lambda end=connection.client: end.host.do(end.close))  # type: ignore[misc]

    def _close(self) -> None:
        if (connection := self._connection()) is not None:
            end = self.choices.pick((connection.client, connection.exit))
            end.host.do(end.close)

    def _suspend(self) -> None:
        self.choices.pick(self.network.hosts).suspend(self.choices.pick(OUTAGES))

    def _prefer(self) -> None:
        session = self.stage.client.session
        number = self.choices.pick([*session.paths, session.last_path + 1])
        self.stage.client.do(lambda: session.prefer(number))

    def _want(self) -> None:
        self.network.wanted = 1 + self.choices.number(2)
        self.network.keep_up()

    def _measure(self) -> None:
        for host in self.network.hosts:
            for end in list(host.ends.values()):
                host.do(end.measure)

    def _probe(self) -> None:
        host = self.choices.pick(self.network.hosts)
        within = self.choices.pick((0.1, 1.0, 5.0))
        for end in list(host.ends.values()):
            host.do(lambda end=end: end.probe(within) if within < 1 else end.prove(within))  # type: ignore[misc]

    # --- the rest ---------------------------------------------------------------------------------------------------

    def _announce(self) -> None:
        link = self.choices.pick(self.stage.links)
        link.say()

    def _packet(self) -> None:
        session = self.choices.pick(self.network.sessions)
        session.send_packet(0, 0, 0, memoryview(bytes(1 + self.choices.number(1_400))))

    def _wait(self) -> None:
        """Nothing but time."""


@contextmanager
def first_allowances(credit: int, streams: int) -> Iterator[None]:
    """What the sessions that are made meanwhile may use before the first WINDOW or STREAMS of the session."""
    with (
        mock.patch.object(session_credit, "INITIAL_CREDIT", credit),
        mock.patch.object(stream_table, "INITIAL_CREDIT", credit),
        mock.patch.object(stream_numbers, "INITIAL_STREAMS", streams),
    ):
        yield


class LanePlay(SimulatedPlay):
    """One with a datagram lane, in which the connections may also be gone for a time."""

    def __init__(self, choices: Choices) -> None:
        super().__init__(choices)
        self.lane = self.stage.add_lane(choices.number(256))
        self._lose()

    def acts(self) -> tuple[Callable[[], None], ...]:
        return (
            *super().acts(), self._lose, self._lose, self._black_out, self._black_out, self._fall, self._narrow,
            self._no_connection,
        )  # fmt: skip

    def _lose(self) -> None:
        pick = self.choices.pick
        self.lane.change(
            loss=pick((0.0, 0.01, 0.1, 0.3)),
            jitter=pick((0.0, 0.002, 0.05)),
            repeated=pick((0.0, 0.0, 0.2)),
            delay=pick((0.01, 0.0005, 0.05, 0.2)),
        )

    def _black_out(self) -> None:
        up, down = self.choices.pick(((True, True), (True, False), (False, True)))
        self.lane.block(up=up, down=down)
        self.stage.clock.after(self.choices.pick(OUTAGES), self.lane.go_on)

    def _fall(self) -> None:
        """One side takes it down, and up again when its check has succeeded."""
        end = self.choices.pick(self.lane.ends)
        end.host.do(lambda: end.set_up(up=False))

    def _narrow(self) -> None:
        """The path takes smaller datagrams, or larger ones; perhaps only a few at a time."""
        for end in self.lane.ends:
            end.payload = self.choices.pick((1_400, 300, 1_100, 8_900))
            end.window = self.choices.pick((64_000, 10_000, 1_000_000))

    def _no_connection(self) -> None:
        """For a time only the lane is there."""
        self.network.wanted = 0
        for connection in self.network.connections:
            connection.reset()
        self.stage.clock.after(self.choices.pick(OUTAGES), self._want)
