"""A session of a peer at its exit, with its carriers and its packet link, and what all sessions of one peer share.

Who has which, and for how long: sessions.py.
"""

from __future__ import annotations

import asyncio
from math import inf
from typing import Final, Protocol

from msgspec import structs

from ..base.clock import clock
from ..base.faults import report_fault
from ..carriers.carrier import Carrier
from ..carriers.congestion import CongestionChoice
from ..carriers.lane.packet_link import PacketLink
from ..crypto.identity import PeerId
from ..errors import CloseReason, PeerError
from ..outbound.resolving.resolver import Resolver
from ..outbound.socket_group import SocketGroup
from ..outbound.waiting_datagrams import HeldBytes
from ..session.session import Session
from ..session.status import session_status
from ..session.turns import TurnBudget
from ..session.wire import GOAWAY, encode_bare
from ..status import PeerSessionStatus
from .limits import TokenBucket

MOST_PATHS: Final = 4
"""Carriers of one session; one more takes the place of the oldest that is not in use."""
IN_FLIGHT_SECONDS: Final = 5.0
"""For which streams are still served after the peer was asked to leave. Requests that it sent before it heard that
come by then, also over a path with long queues; what has followed them could not be sent to another exit."""


class Keeper(Protocol):
    """What a session needs of all of them (sessions.py)."""

    def carrier_lost(self, entry: PeerSession, error: PeerError | None, /) -> None: ...
    def end(self, entry: PeerSession, reason: CloseReason, /) -> None: ...


class PeerSession:
    """One session of one peer, its carriers by the numbers of their paths, and its packet link if it agreed on one.

    `taken` is the highest number of a path that was let in, `signed_at` when a signed handshake last was, `began` when
    the first one was.
    """

    __slots__ = (
        "_keeper",
        "began",
        "carriers",
        "clock_off",
        "expiry",
        "opens_until",
        "packet_link",
        "peer",
        "peer_text",
        "resolver",
        "session",
        "signed_at",
        "taken",
    )

    def __init__(self, keeper: Keeper, peer: PeerId, session: Session, resolver: Resolver) -> None:
        self._keeper = keeper
        self.peer = peer
        self.peer_text = str(peer)
        """For the status, which is asked for more often than a session begins."""
        self.resolver = resolver
        self.session = session
        self.carriers: dict[int, Carrier] = {}
        self.packet_link: PacketLink | None = None
        self.clock_off: float | None = None
        """By how many seconds the clock of the peer is ahead of this machine's, if it has told its time."""
        self.taken = -1
        self.began = self.signed_at = clock()
        self.expiry: asyncio.TimerHandle | None = None
        self.opens_until = inf
        """The time from which new streams are refused."""

    @property
    def carrier(self) -> Carrier | None:
        """The one in use."""
        path = self.session.current
        return None if path is None else self.carriers.get(path.number)

    @property
    def up(self) -> bool:
        lane = self.session.lane
        return bool(self.carriers) or (lane is not None and lane.proven)

    def status(self, now: float) -> PeerSessionStatus:
        congestion = CongestionChoice() if self.carrier is None else self.carrier.congestion
        carriers = {number: (carrier.kind, "") for number, carrier in self.carriers.items()}
        packets = None if self.packet_link is None else self.packet_link.status()
        return PeerSessionStatus(
            peer_id=self.peer_text,
            link="up" if self.up else "down",
            congestion=congestion.control,
            connection_round_trip=congestion.round_trip,
            clock_off=self.clock_off,
            packets=packets,
            **structs.asdict(session_status(self.session, now, carriers, packets)),
        )

    def ask_to_leave(self) -> None:
        """Ask the peer to open no more streams, and to close the session when its last one has ended. As in HTTP/2 (RFC
        9113 section 6.8), those in flight are served."""
        self.opens_until = clock() + IN_FLIGHT_SECONDS
        self.session.announce(encode_bare(GOAWAY))

    def attach(self, carrier: Carrier) -> None:
        """A path has joined, and `carrier` is going to move its bytes."""
        if len(self.carriers) >= MOST_PATHS:
            used = self.carrier
            next(other for other in self.carriers.values() if other is not used).drop()
        self.carriers[carrier.path.number] = carrier

    def carrier_lost(self, carrier: Carrier, error: PeerError | None) -> None:
        if self.carriers.pop(carrier.path.number, None) is None:
            return
        if self.carriers and self.session.closed is None:
            return
        try:
            self._keeper.carrier_lost(self, error)
        except Exception as fault:  # noqa: BLE001  nobody else would bound it in time
            report_fault("ends a session", fault)
            self._keeper.end(self, CloseReason.NORMAL)

    def failed(self, error: PeerError) -> None:
        """The peer did something wrong in a slow key exchange, or this program did: the session is over."""
        for carrier in list(self.carriers.values()):
            carrier.fail(error)
        if self.session.closed is None:
            self._keeper.end(self, error.reason)


class PeerShare:
    """The sessions of one peer, those whose carrier was lost last at the end, and what they have together: how many
    streams they open, their work in a turn of the loop, the sockets of their targets, and the bytes that wait for
    names."""

    __slots__ = ("held", "opens", "sessions", "sockets", "turn")

    def __init__(self, opens: TokenBucket, loop: asyncio.AbstractEventLoop) -> None:
        self.opens = opens
        self.turn = TurnBudget(loop.call_soon)
        self.sockets = SocketGroup(loop, self.turn)
        self.held = HeldBytes()
        self.sessions: dict[bytes, PeerSession] = {}
