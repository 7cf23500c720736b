"""A stage for two sessions: a network with applications at both ends, and a look at every promise now and then.

Tests direct what happens on it, and plays read that from bytes (simulated_play.py). `finish` lets everything come to
its end, and looks whether it is the right one. All raise `Broken`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import ip_network
from typing import Final

from cryprq_proxy.crypto.handshake import EpochSecrets
from cryprq_proxy.crypto.primitives import Cipher
from cryprq_proxy.errors import CloseReason, StreamRefused
from cryprq_proxy.rules.ranges import IPNetwork
from cryprq_proxy.session import wire
from cryprq_proxy.session.datagrams import BasePacketLink
from cryprq_proxy.session.session import SessionLimits
from cryprq_proxy.session.streams import Stream
from cryprq_proxy.session.wire import StreamProtocol
from tests.support.links import TARGET, LaterOffload
from tests.support.settings import rotation_limits, session_limits
from tests.support.simulated_apps import Manner, Talker, check_pair
from tests.support.simulated_judge import check_agreement, check_clean, check_errors, check_session, side
from tests.support.simulated_lane import SimulatedLane
from tests.support.simulated_network import MEMORY, Network
from tests.support.simulator import Broken, Host, Route

RETAINED: Final = 1 << 18
POOL: Final = 1 << 20
STREAMS: Final = 60
"""Bounds of the sessions of a play."""
KEEPALIVE: Final = 4.0
LONGEST: Final = 300.0
"""Seconds in which everything is over when nothing fails any more."""
CHECKS: Final = 64
"""Events between two looks at everything."""
TAKEN: Final = tuple(ip_network(f"10.{number}.0.0/16") for number in range(5))


class PacketLink(BasePacketLink):
    """Agreed on everything: announces a lane in each epoch, and keeps the newest of what it is told."""

    def __init__(self, host: Host) -> None:
        self._session = host.session
        self.epochs: list[int] = []
        self.lanes: dict[int, int] = {}
        self.told = 0
        """The highest serial number of a NETWORK or TAKEN that came."""
        self.says = 0
        """The serial number of the last one that was sent."""

    def epoch(self, cipher: Cipher, number: int, secrets: EpochSecrets, now: float) -> None:
        if self.epochs and number != self.epochs[-1] + 1:
            raise Broken(f"epoch {number} was installed after {self.epochs[-1]}")
        self.epochs.append(number)
        self._session.announce(wire.encode_lane(number, number + 1_000))

    def announced(self, number: int, index: int) -> None:
        if index != number + 1_000 or number > self.epochs[-1] + 1:
            raise Broken(f"a lane of epoch {number} was announced in {self.epochs[-1]}")
        self.lanes[number] = index

    def packet_received(self, flags: int, segment: int, header: int, packet: memoryview) -> None:
        if bytes(packet) != bytes(len(packet)) or not packet:
            raise Broken("another packet came")

    def say(self) -> None:
        """Something new about addresses."""
        self.says += 1
        if self._session.dialler:
            prefixes = tuple(TAKEN[: 1 + self.says % len(TAKEN)])
            self._session.announce(wire.encode_taken(self.says, prefixes))
        else:
            self._session.announce(
                wire.encode_network(self.says, self.says.to_bytes(4), self.says.to_bytes(16))
            )

    def network_received(self, serial: int, ipv4: bytes, ipv6: bytes) -> None:
        self.told = max(self.told, serial)

    def taken_received(self, serial: int, networks: tuple[IPNetwork, ...]) -> None:
        self.told = max(self.told, serial)


@dataclass(slots=True)
class Served:
    """Both ends of a stream; the exit's comes later."""

    client: Talker
    exit: Talker | None = None

    @property
    def over(self) -> bool:
        return self.client.over and (self.client.turned_away if self.exit is None else self.exit.over)


class Stage:
    """A network with applications, and the promises that hold at any time. What tests direct, and plays at random."""

    def __init__(
        self,
        limits: SessionLimits | None = None,
        *,
        route: Route | None = None,
        manner: Callable[[int], Manner] | None = None,
        later: bool = False,
        memory: int = MEMORY,
        keys: bool = True,
    ) -> None:
        """Without `keys` nothing is agreed on for datagrams yet."""
        self.limits = limits or play_limits()
        self.later = LaterOffload()
        offloads = {"offload": self.later, "exit_offload": self.later} if later else {}
        self.network = Network(self.limits, self._accept, route=route, memory=memory, **offloads)  # type: ignore[arg-type]
        self.clock = self.network.clock
        self.client, self.exit = self.network.hosts
        self.links: list[PacketLink] = []
        for host in self.network.hosts if keys else ():
            link = PacketLink(host)
            host.session.packet_link = link
            self.links.append(link)
        self.lane: SimulatedLane | None = None
        self.streams: dict[int, Served] = {}
        self.manner = manner or (lambda stream: Manner())
        """How the exit's end of a stream talks."""
        self.hurried = False
        self.network.dial()
        for host in self.network.hosts if keys else ():
            host.session.begin_lane(self.clock.now)

    def add_lane(self, seed: int = 0) -> SimulatedLane:
        """Datagrams are agreed on."""
        self.lane = SimulatedLane(self.client, self.exit, seed)
        return self.lane

    # --- streams ----------------------------------------------------------------------------------------------------

    def open(
        self, manner: Manner | None = None, protocol: StreamProtocol = StreamProtocol.TCP
    ) -> Talker | None:
        """None if there are too many."""
        talker = Talker(self.client, manner or Manner())
        try:
            stream = self.client.session.open(protocol, TARGET, talker)
        except StreamRefused:
            return None
        self.streams[stream.id] = Served(talker)
        talker.hurried = self.hurried
        talker.begin(stream)
        return talker

    def _accept(self, stream: Stream) -> None:
        served = self.streams.get(stream.id)
        if served is None or served.exit is not None:
            raise Broken(f"stream {stream.id} was opened {'twice' if served else 'by nobody'}")
        talker = served.exit = Talker(self.exit, self.manner(stream.id))
        stream.handler = talker
        talker.stream = stream
        talker.hurried = self.hurried
        talker.begin(stream)

    @property
    def talkers(self) -> list[Talker]:
        return [end for pair in self.streams.values() for end in (pair.client, pair.exit) if end is not None]

    # --- time -------------------------------------------------------------------------------------------------------

    def run(self, seconds: float, done: Callable[[], bool] | None = None) -> bool:
        """Let time pass, looking at everything now and then."""
        end, clock = self.clock.now + seconds, self.clock
        looked = clock.events

        def look() -> bool:
            nonlocal looked
            if clock.events - looked >= CHECKS:
                looked = clock.events
                self.check()
                if self.later.waiting:
                    self.later.run()
            return done is not None and done()

        while not clock.run(end - clock.now, look):
            self.check()
            if not self.later.waiting:
                return False
            self.later.run()
        self.check()
        return True

    @property
    def over(self) -> bool:
        """Whether all streams have ended, nothing is kept, and all that came is acted on."""
        return all(pair.over for pair in self.streams.values()) and not any(
            not session.idle or session.table.numbers.awaited or (session.lane and session.lane.inbox._frames)
            for session in self.network.sessions
        )

    def wind_up(self) -> None:
        """Nothing fails any more, and every stream comes to its end."""
        network = self.network
        self.hurried = True
        network.route = Route()
        network.routes = lambda: network.route
        network.pause = 0.02
        network.wanted = 1
        network._failures = 0
        for connection in network.connections:
            connection.go_on()
            connection.change(rate=1e8, delay=0.01, piece=1 << 20)
        if self.lane is not None:
            self.lane.go_on()
            self.lane.change(loss=0.0, jitter=0.0, repeated=0.0, delay=0.01)
        for talker in self.talkers:
            talker.host.do(talker.wind_up)
        if not any(connection.client.open for connection in network.connections):
            network.keep_up()

    def finish(self) -> None:
        """Wind up, and look whether everything ends as it must."""
        self.wind_up()
        if not self.run(LONGEST, lambda: self.over and self.awake):
            raise Broken(f"this does not end: {self.state()}")
        self.check_clean()
        for pair in self.streams.values():
            check_pair(pair.client, pair.exit)
        if self.network.client.budget.total >= MEMORY and any(talker.no_room for talker in self.talkers):
            raise Broken("there was no room for what was allowed to come")
        self._check_rotation()
        self.check_clean()
        self._close()

    def _check_rotation(self) -> None:
        client, exit = (host.session.rotation for host in self.network.hosts)
        before = client.current
        interval = self.limits.rotation.interval

        def rotated() -> bool:
            settled = all(
                keys.settled(client.current)
                for session in self.network.sessions
                for keys in session.path_keys
            )
            return client.current == exit.current > before and settled

        if interval <= 10 and not self.run(3 * interval + 60, rotated):
            raise Broken(
                f"no rotation any more: {before}, {client.current} and {exit.current}; {self.state()}"
            )
        self.run(30, lambda: self.over)

    def _close(self) -> None:
        if not self.run(LONGEST, lambda: self.reached):
            raise Broken(f"there is no path: {self.state()}")
        for connection in self.network.connections:
            connection.up.cut_after = connection.down.cut_after = None
        self.client.session.close(CloseReason.NORMAL)
        self.run(30)
        for host in self.network.hosts:
            if host.session.closed is not CloseReason.NORMAL or host.budget.used or host.window_budget.used:
                raise Broken(f"after the end: {self.state()}")

    @property
    def awake(self) -> bool:
        return not any(host.suspended for host in self.network.hosts)

    @property
    def reached(self) -> bool:
        """Whether a CLOSE of the client would come to the exit."""
        return self.awake and any(
            connection.established and connection.works for connection in self.network.connections
        )

    # --- promises ---------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """What holds at any time."""
        client, exit = self.network.sessions
        for host in self.network.hosts:
            check_errors(host)
            if host.session.closed is None:
                check_session(host)
        if client.closed is None and exit.closed is None:
            check_agreement(client, exit)

    def check_clean(self) -> None:
        """What holds when everything is over."""
        for host, other in (self.network.hosts, self.network.hosts[::-1]):
            check_clean(host, other)
        for link, peer in (self.links, self.links[::-1]):
            if link.told != peer.says:
                raise Broken("what was announced last is not what came")
            if peer.epochs and peer.epochs[-1] not in link.lanes:
                raise Broken(f"the lane of epoch {peer.epochs[-1]} was not announced")

    def state(self) -> str:
        """For the message of a failure."""
        lines = [f"at {self.clock.now:.3f}"]
        for host in self.network.hosts:
            session, rotation, lane = host.session, host.session.rotation, host.session.lane
            lines.append(
                f"{side(host)}: closed {session.closed}, paths {sorted(session.paths)}, chosen "
                f"{session.current and session.current.number}, "
                f"lane {lane and (lane.up, lane.carries, len(lane.log.units))}, {len(session.streams)} streams, "
                f"awaited {session.table.numbers.awaited}, kept {session.retention.kept}, "
                f"waits {session.retention.waits}, "
                f"epoch {rotation.current}/{rotation.sending} {rotation._state.name}, errors {host.errors[-3:]}"
            )
        open_ones = [talker for talker in self.talkers if not talker.over]
        unseen = [pair.client for pair in self.streams.values() if pair.exit is None]
        return "; ".join(lines) + f"; {open_ones[:6]}, not at the exit: {unseen[:6]}"


def play_limits(**changes: object) -> SessionLimits:
    limits = session_limits(retained=RETAINED, window_pool=POOL, streams=STREAMS, keepalive=KEEPALIVE)
    limits = replace(limits, rotation=rotation_limits(interval=4.0))
    return replace(limits, **changes)  # type: ignore[arg-type]
