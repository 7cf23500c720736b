"""The session with the exit, which outlives its paths, and the packet link beside it.

admitted, or about to be -> new session, or another path of the old one -> without a path -> joined again ...
                                                   |                                 -> dropped, RESUME_SECONDS later
                                                   -> left, when the exit is about to stop (leaving.py)
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from typing import Any, Final

from ..address import Destination
from ..base.clock import clock
from ..base.faults import contained
from ..carriers.admission import Admission
from ..carriers.dial.endpoint import Endpoint
from ..carriers.lane.batch import SocketAddress
from ..carriers.lane.client import ClientLane
from ..carriers.lane.packet_link import NetworkLink, PacketLink
from ..carriers.rekey_thread import executor_offload
from ..crypto.handshake import Established
from ..crypto.payloads import SIGNED_SECONDS, Feature
from ..crypto.primitives import Provider, system_entropy
from ..errors import CarrierError, CloseReason, PeerError
from ..lane.slices import Shape
from ..session.path import SessionPath
from ..session.retention import MemoryBudget, SlotPool
from ..session.session import RESUME_SECONDS, Session, SessionLimits
from ..session.session_events import Refused, ignore_address
from ..session.status import Totals
from ..session.streams import Stream
from ..session.turns import TurnBudget
from ..session.windows import WindowBudget
from ..session.wire import MAX_STREAM
from .advertised import resume_endpoint
from .packet_ports import NO_NETWORK, ClientNetwork
from .settings import ClientSettings
from .unanswered import UnansweredTickets

PROOF_SECONDS: Final = 3.0
"""How long the exit has to answer when there is a doubt whether it is still there. Then another path joins."""

_log = logging.getLogger(__name__)


class KeptSession:
    """Owner of the session. `failed` is told what the peer did wrong in a slow key exchange of the session with this
    id, `opened` and `stream_refused` which stream it opened, or refused and why (see `Session.on_refused`), `goaway`
    that it takes no new ones; `lost` gets the streams of a session that is dropped, before they are reset."""

    def __init__(
        self,
        settings: ClientSettings,
        provider: Provider,
        network: ClientNetwork,
        slots: SlotPool,
        executor: Executor,
        failed: Callable[[bytes, PeerError], None],
        opened: Callable[[Stream], None],
        stream_refused: Refused,
        goaway: Callable[[], None],
        proven: Callable[[], None],
        lost: Callable[[list[Stream]], None],
    ) -> None:
        self._settings = settings
        self._provider = provider
        self._network = network
        self._slots = slots
        self._executor = executor
        self._failed = failed
        self._opened = opened
        self._stream_refused = stream_refused
        self._goaway = goaway
        self._proven = proven
        self._lost = lost
        self._budget = MemoryBudget(settings.limits.retained)
        self._window_budget = WindowBudget(settings.limits.window_pool)
        self._paths = 0
        self._signed_at = 0.0
        self.sign_next = False
        """Whether the next path is to join by a signed handshake, since a short one has come to nothing."""
        self.unanswered = UnansweredTickets()
        self._reached: SocketAddress | None = None
        """Where the present path reaches the exit over plain TCP."""
        self.advertised: Endpoint | None = None
        """Where the exit says that it has the session; a resume is dialled there first."""
        self._expiry: asyncio.TimerHandle | None = None
        self.takes_streams = True
        """Whether new streams may be opened in the session while it has no path: its exit may be about to stop."""
        self.session: Session | None = None
        self.features = Feature(0)
        """Of the present session."""
        self.packet_link: PacketLink | None = None
        self.totals = Totals()
        self._packets_without_session = 0
        self._last_stream = 0
        """The number of the newest stream of the session before."""

    def take_limits(self, limits: SessionLimits) -> None:
        """Those of all sessions together at once, those of one from the next session on."""
        self._settings = replace(self._settings, limits=limits)
        self._budget.total = limits.retained
        self._window_budget.total = limits.window_pool

    @property
    def streams(self) -> dict[int, Stream]:
        """Those of the present session, by number, oldest first."""
        return {} if self.session is None else self.session.streams

    @property
    def next_path(self) -> int:
        """The number of the next path: from 1, since a session begins with path 0."""
        return self._paths + 1

    def take_path(self, number: int) -> None:
        """The exit is about to hear this number, and it may not be used again. Attempts that do not come so far use
        none up: the exit has tickets for a few numbers only."""
        self._paths = number

    @property
    def joins_short(self) -> bool:
        """Whether the next path may join by the short pattern."""
        session = self.session
        if session is None or session.rotation.known.bound:
            return False
        return not self.signature_due and not self.sign_next

    @property
    def signature_due(self) -> bool:
        """Whether no ticket of the session counts any more."""
        return clock() - self._signed_at >= SIGNED_SECONDS

    def refused(self) -> Counter[Any]:
        """How many streams were refused since the start, by reason."""
        live: Counter[Any] = Counter() if self.session is None else self.session.table.refused
        return self.totals.refused + live

    def attach(
        self, admission: Admission, address: SocketAddress | None, admitted: Callable[[], None] | None = None
    ) -> SessionPath:
        """Go on with what the exit has admitted, or, with `admitted`, is still to admit (see `Session.attach`).
        `address` is that of the exit where UDP reaches it too, else None.

        Raises PeerError; a session that could not be attached is dropped.
        """
        try:
            session = self.session if admission.begins is None else self._begin(admission.begins)
            if session is None:
                raise CarrierError(CloseReason.RESUME, "the session ended while a path joined it")
            lane = None if self.packet_link is None else self.packet_link.lane
            if isinstance(lane, ClientLane) and address is not None:
                # By another carrier the exit's UDP address is not known: the lane stays where it is, if it is anywhere.
                lane.move(address)
            self._reached = address if self._settings.upstream is None else None
            path = session.attach(admission.number, admission.keys, clock(), admitted, epoch=admission.epoch)
        except Exception:
            self.drop()
            raise
        self._paths = admission.number
        self.takes_streams = True
        self._stop_expiry()
        if self.packet_link is not None and admission.begins is None:
            # A new path may mean another network.
            self.packet_link.look_around()
        return path

    def signed(self) -> None:
        """The exit has let a path in by a signed handshake."""
        self._signed_at, self.sign_next = clock(), False
        self.unanswered.reset()

    def _begin(self, established: Established) -> Session:
        if self.session is not None:
            _log.warning("the exit no longer has the session: its %d streams end", len(self.session.streams))
        self.drop()
        failed = partial(self._failed, established.session_id)
        session = self.session = Session(
            dialler=True,
            session_id=established.session_id,
            epoch=established.epoch,
            cipher=established.cipher,
            provider=self._provider,
            entropy=system_entropy,
            limits=self._settings.limits,
            budget=self._budget,
            window_budget=self._window_budget,
            slots=self._slots,
            turn=TurnBudget(asyncio.get_running_loop().call_soon),
            now=clock(),
            offload=executor_offload(self._provider, self._executor, failed),
            last_stream=self._last_stream,
        )
        self.features = Feature(established.features)
        self.signed()
        events = session.events
        events.opened = self._opened
        events.refused = self._stream_refused
        events.goaway = self._goaway
        events.proven = self._proven
        events.advertised = self._exit_advertised
        network, lane = self._network, self._settings.lane
        link = (
            PacketLink(session, self._lane_changed)
            if network is NO_NETWORK
            else NetworkLink(
                session,
                network.received,
                network.addressed,
                self._lane_changed,
                collisions=network.collisions,
            )
        )
        self.packet_link = session.packet_link = link
        if lane is not None and established.features & Feature.LANE:
            loop = asyncio.get_running_loop()
            link.lane = ClientLane(loop, link, lane.offload, mark=self._settings.mark)
            link.lane.carry(session.attach_lane(clock()), failed, lane.control)
        session.set_lane_use(self._settings.lane_use)
        session.begin_lane(clock())
        return session

    def _exit_advertised(self, address: Destination) -> None:
        """The last one counts, for all paths of this session that follow."""
        self.advertised = resume_endpoint(address, self._reached, self._network.lets_out)

    def look_at_address(self) -> None:
        """The addresses of this machine have changed, and there is no path that would notice."""
        lane = None if self.packet_link is None else self.packet_link.lane
        if isinstance(lane, ClientLane):
            lane.look_at_address()

    def _lane_changed(self) -> None:
        link = self.packet_link
        if self.session is not None and link is not None and link.lane is not None and not link.lane.up:
            # The lane notices in three seconds that nothing comes back; perhaps it is not the lane alone.
            self.session.prove(PROOF_SECONDS, clock())
        self._network.lane_changed()

    def send_packet(self, buffer: memoryview, start: int, end: int, shape: Shape) -> None:
        """See PacketLink.send, with `more`; without a session the packet is dropped."""
        if self.packet_link is not None:
            self.packet_link.send(buffer, start, end, shape, True)
        else:
            self._packets_without_session += 1

    @property
    def packets_wanted(self) -> int:
        """A number that changes with each packet that is to be sent while there is no lane."""
        sent = 0 if self.packet_link is None else self.packet_link.sent_on_carrier
        return self._packets_without_session + sent

    def carrier_lost(self) -> None:
        """Keep the session for RESUME_SECONDS, if it has not ended. A second call does nothing."""
        if self.session is None:
            return
        for path in list(self.session.paths.values()):
            path.lost(clock())  # left of a carrier whose end has met a fault
        if self.session.closed is not None:
            self.drop()
        elif self._expiry is None:
            self._wait_for_path()

    def _wait_for_path(self) -> None:
        self._expiry = asyncio.get_running_loop().call_later(RESUME_SECONDS, self._expire)

    def _expire(self) -> None:
        """No path has joined in time. While the lane works none is missed."""
        self._expiry = None
        if self.session is not None and self.session.attached:
            self._wait_for_path()
        else:
            self.drop()

    @property
    def lane_proven(self) -> bool:
        """Whether streams may be opened although there may be no path: see LanePath.proven."""
        lane = None if self.session is None else self.session.lane
        return self.takes_streams and lane is not None and lane.proven

    def leave(self) -> tuple[Session, PacketLink] | None:
        """Give the session away, if there is one: the next carrier begins another one."""
        self._stop_expiry()
        session, self.session = self.session, None
        link, self.packet_link = self.packet_link, None
        self.advertised = None
        self._paths = 0
        if session is None or link is None:
            return None
        session.events.advertised = ignore_address
        # So each number names one stream, whichever session has it. At half of the numbers they begin again.
        self._last_stream = 0 if session.last_stream > MAX_STREAM >> 1 else session.last_stream
        return session, link

    def drop(self) -> None:
        """End the session, if there is one."""
        held = self.leave()
        if held is None:
            return
        session, link = held
        with contained("keeps requests of a lost session from the next one"):
            self._lost(list(session.streams.values()))
        with contained("leaves the streams of a session that has ended"):
            session.close(CloseReason.NORMAL)
        # Behind the session, which says its end by it.
        with contained("leaves a datagram lane behind"):
            link.close()
        self.totals.add(session)

    def _stop_expiry(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
