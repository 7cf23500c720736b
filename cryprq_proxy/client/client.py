"""The client role: keeps one session with the exit alive, over one carrier after another.

    dial -> handshake -> admission -> carrier up -> lost -> dial again, with the session's id and proof
                                                   session kept while the exit may still have it

Front-ends ask for streams with `request`. While the carrier is down they wait for a bounded time and are then refused;
nothing ever goes out directly.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from ..address import Destination
from ..base.clock import clock
from ..base.linger import all_said
from ..carriers.admission import Admission, admit_client
from ..carriers.carrier import Carrier
from ..carriers.dial.dial import Dialling, Resolve, Upstream, by_system
from ..carriers.dial.endpoint import Endpoint
from ..carriers.lane.client import ClientLane
from ..carriers.lane.packet_link import PacketLink
from ..carriers.lane.udp_socket import UdpOffload
from ..carriers.rekey_thread import executor_offload
from ..crypto.handshake import ClientHandshake
from ..crypto.identity import Identity, PeerId
from ..crypto.payloads import Feature
from ..crypto.primitives import Provider, system_entropy
from ..errors import CarrierError, CloseReason, CryprqError, PeerError, StreamReason, StreamRefused
from ..lane.slices import Run, Shape
from ..outbound.bytestream import ByteStream
from ..session.liveness import UNKNOWN_ROUND_TRIP
from ..session.sendlog import MemoryBudget, SlotPool
from ..session.session import Session, SessionLimits
from ..session.status import Totals, session_status
from ..session.streams import Stream, StreamHandler
from ..session.wire import StreamProtocol
from .requests import NOWHERE, Opening, Request, opened
from .waiting import WaitingRoom
from .ways import HANDSHAKE_TIMEOUT, Met, Ways, late

_log = logging.getLogger(__name__)

BACKOFF_FIRST: Final = 0.25
BACKOFF_LAST: Final = 15.0
STABLE_SECONDS: Final = 1.0
"""A link that lasted so long, or carried data, is dialled again without delay."""
RESUME_SECONDS: Final = 300.0
"""How long a session without a carrier is kept, as the exit does by default."""


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """`wait_for_link` is in seconds: how long a request may wait for the link. `lane`: what the kernel's batching can
    do for the datagram lane; None: no lane. `mark` is the SO_MARK of the link's own sockets, or 0. `invite` is the
    secret (16 bytes) that gets this client onto the exit's list; it is shown until the exit has let us in.

    `endpoints` are the ways to the exit, the preferred one first; they are raced (ways.py). `remembered` is the text of
    the one that worked in an earlier run, and `on_winner` is told of each change of it. `ca` is a file with the
    certificates that are trusted for wss instead of the system's.
    """

    peer: PeerId
    endpoints: tuple[Endpoint, ...]
    psk: bytes | None = field(default=None, repr=False)
    upstream: Upstream | None = None
    wait_for_link: float = 10.0
    lane: UdpOffload | None = None
    mark: int = 0
    limits: SessionLimits = field(default_factory=SessionLimits)
    invite: bytes | None = field(default=None, repr=False)
    remembered: str | None = None
    on_winner: Callable[[Endpoint], None] | None = None
    ca: Path | None = None


class ClientNetwork(Protocol):
    """Where the client's packets come from and go to: its network interface."""

    def received(self, buffer: memoryview, start: int, end: int, run: Run) -> None:
        """A packet came from the exit; see lane/slices.py."""

    def addressed(self, ipv4: bytes, ipv6: bytes) -> None:
        """The exit hands out these addresses: 4 and 16 bytes, zeros for a family that it does not carry."""

    def link_changed(self, up: bool) -> None:
        """The link has come, or gone."""

    def lane_changed(self) -> None:
        """The datagram lane has come or gone, or its size is another (`Client.lane_size`)."""


class Client:
    """Call `run` in a task; `stop` ends it. With a `network`, packets are carried too, and `send_packet` sends them."""

    def __init__(
        self,
        identity: Identity,
        settings: ClientSettings,
        provider: Provider,
        network: ClientNetwork | None = None,
        resolve: Resolve = by_system,
        slots: SlotPool | None = None,
    ) -> None:
        self._network = network
        self._beside: PacketLink | None = None
        self._identity = identity
        self._settings = settings
        self._provider = provider
        self.slots = slots or SlotPool()
        self._budget = MemoryBudget(settings.limits.retained)
        self._session: Session | None = None
        self._totals = Totals()
        self._carrier: Carrier | None = None
        self._attempt = 0
        self._carriers = 0
        self._lost: asyncio.Future[PeerError | None] | None = None
        self._waiting = WaitingRoom(settings.wait_for_link, self._refuse)
        self.changed: Callable[[], None] = _nothing
        """Called when the link has come or gone, or the exit is about to go."""
        self.redirect: Callable[[Request], bool] = _nobody_else
        """Asked to take a request that the exit refused because it shuts down; True if another exit gets it."""
        self._leaving = False
        self._expiry: asyncio.TimerHandle | None = None
        self._stopping = False
        self._task: asyncio.Task[Any] | None = None
        self._last_error: str | None = None
        self._executor = ThreadPoolExecutor(1, "handshake")
        how = Dialling(settings.upstream, resolve, settings.mark, settings.ca)
        self._ways = Ways(settings.endpoints, how, settings.remembered)
        self._way: Met | None = None

    # --- for the front-ends ----------------------------------------------------------------------------------------

    def request(
        self, protocol: StreamProtocol, destination: Destination, handler: StreamHandler, opening: Opening
    ) -> None:
        """Open a stream, now or when the link is up. `opening` gets it before anything is called on `handler`; if
        the link does not come up in time, `handler.refused(LINK_DOWN)` is called without."""
        self.start(Request(protocol, destination, handler, opening))

    def start(self, request: Request) -> None:
        """Open the stream that `request` asks for, which becomes its label; see `request`."""
        if self._carrier is not None:
            self._start(request)
        elif self._stopping:
            self._refuse(request)
        else:
            self._waiting.add(request)

    def _start(self, request: Request) -> None:
        session = self._session
        try:
            if session is None:
                raise StreamRefused(StreamReason.LINK_DOWN)
            stream = session.open(request.protocol, request.destination, request.handler)
        except StreamRefused as refusal:
            self._refuse(request, refusal.reason)
        else:
            stream.label = request
            request.opening(stream)

    def _refuse(self, request: Request, reason: StreamReason = StreamReason.LINK_DOWN) -> None:
        self._totals.refused[reason] += 1
        request.handler.refused(reason)

    async def open(self, destination: Destination) -> ByteStream:
        """A TCP stream to `destination`. Raises StreamRefused."""
        return await opened(self.start, StreamProtocol.TCP, destination)

    async def open_resolver(self) -> ByteStream:
        """A stream to the exit's own DNS resolver (RFC 7766). Raises StreamRefused."""
        return await opened(self.start, StreamProtocol.RESOLVER, NOWHERE)

    # --- for who chooses among several exits (exits.py) --------------------------------------------------------------

    @property
    def up(self) -> bool:
        """Whether there is a link, to an exit that takes new streams."""
        return self._carrier is not None and not self._leaving

    @property
    def heard(self) -> float:
        """When the exit last gave a sign of life, by carriers.tcp.clock; 0 before it ever did."""
        return 0.0 if self._session is None else self._session.liveness.last

    @property
    def round_trip(self) -> float | None:
        """Seconds, smoothed; None while it is not known."""
        session = self._session
        if session is None or not session.attached or session.liveness.round_trip == UNKNOWN_ROUND_TRIP:
            return None
        return session.liveness.round_trip

    @property
    def least_round_trip(self) -> float | None:
        """The shortest of the present carrier; None while it is not known."""
        session = self._session
        return None if session is None or self.round_trip is None else session.liveness.least_round_trip

    def _turned_away(self, stream: Stream, reason: StreamReason) -> bool:
        if reason is not StreamReason.SHUTTING_DOWN:
            return False
        if not self._leaving:
            self._leaving = True
            self.changed()
        return isinstance(stream.label, Request) and self.redirect(stream.label)

    def measure(self) -> None:
        """Ask for a sign of life. None coming ends the link no sooner than it would have ended anyway."""
        if self._session is not None:
            self._session.measure()

    def withdraw(self) -> list[Request]:
        """Take back what the exit has not answered and any exit could: the requests, to be made elsewhere.

        The exit may have reached the destination for some of them by now. Nothing was sent on them. Streams of
        datagrams that any exit could carry end: nothing that is on its way is worth waiting for.
        """
        withdrawn = []
        for stream in self.streams():
            request = stream.label
            if not isinstance(request, Request) or request.exit:
                continue
            if not stream.opened and not stream.sent:
                stream.reset(StreamReason.CANCELLED)
                withdrawn.append(request)
            elif stream.protocol is StreamProtocol.UDP:
                handler = stream.handler
                stream.reset(StreamReason.CANCELLED)
                handler.reset(StreamReason.SESSION_LOST)
        return withdrawn

    def streams(self) -> list[Stream]:
        """The open ones and those that are asked for, oldest first."""
        return [] if self._session is None else list(self._session.streams.values())

    def stream(self, id: int) -> Stream | None:
        return None if self._session is None else self._session.streams.get(id)

    @property
    def open_streams(self) -> int:
        return 0 if self._session is None else len(self._session.streams)

    def refused(self) -> Counter[Any]:
        """How many requests were refused since the start, by this exit and for want of it."""
        live: Counter[Any] = Counter() if self._session is None else self._session.refused
        return self._totals.refused + live

    # --- for system-wide mode ----------------------------------------------------------------------------------------

    def send_packet(self, buffer: memoryview, start: int, end: int, shape: Shape) -> None:
        """See PacketLink.send, with `more`; without a session the packet is dropped."""
        if self._beside is not None:
            self._beside.send(buffer, start, end, shape, True)

    @property
    def lane_size(self) -> int | None:
        """The largest UDP payload that the datagram lane takes now; None while it is not up."""
        lane = None if self._beside is None else self._beside.lane
        return lane.size if lane is not None and lane.up else None

    def redial(self) -> None:
        """The way to the exit has changed: leave the present carrier for a new one."""
        if self._carrier is not None:
            self._carrier.drop()

    # --- the link --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep the link up until `stop` is called. Raises CryprqError if the exit cannot do what is asked of it."""
        self._task = asyncio.current_task()
        backoff = BACKOFF_FIRST
        with contextlib.suppress(asyncio.CancelledError):
            while not self._stopping:
                try:
                    await self._connect()
                except PeerError as error:
                    if str(error) != self._last_error:
                        self._last_error = str(error)
                        _log.warning("no link to %s: %s%s", self._where(), error, self._advice(error))
                    await asyncio.sleep(backoff * random.uniform(0.8, 1.2))
                    backoff = min(backoff * 2, BACKOFF_LAST)
                    continue
                self._last_error = None
                since, before = clock(), self._moved()
                assert self._lost is not None
                reason = await self._lost
                if not self._stopping:
                    _log.warning("link down: %s", reason or "closed")
                if clock() - since >= STABLE_SECONDS or self._moved() != before:
                    backoff = BACKOFF_FIRST
                else:  # an exit that lets us in only to drop us is not asked again at once, nor in the same way
                    if self._way is not None:
                        self._ways.shun(self._way.endpoint)
                    await asyncio.sleep(backoff)
                    backoff = min(backoff * 2, BACKOFF_LAST)

    async def reach(self) -> None:
        """One attempt to bring the link up, for who has no use for `run`. Raises PeerError with the reason in a
        sentence."""
        await self._connect()

    async def stop(self) -> None:
        """Close the link; what waits for it is refused."""
        self._stopping = True
        if self._carrier is not None:
            self._carrier.close(CloseReason.NORMAL)
        self._drop_session()
        self._waiting.close()
        if self._expiry is not None:
            self._expiry.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await all_said()
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def _connect(self) -> None:
        """One attempt. Raises PeerError with the reason in a sentence."""
        loop = asyncio.get_running_loop()

        def offload(job: Callable[[], bytes]) -> Awaitable[bytes]:
            return loop.run_in_executor(self._executor, job)

        met = await self._ways.meet(self._handshake, offload)
        session = self._session
        self._attempt += 1
        invite = None if self._carriers else self._settings.invite
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT):
                admission = await admit_client(
                    met.pipe, met.handshake, session, self._attempt, offload, invite
                )
            self._attach(met, admission)
        except TimeoutError:
            met.pipe.close()
            self._ways.shun(met.endpoint)
            raise late() from None
        except BaseException as error:
            met.pipe.close()
            if isinstance(error, CarrierError):
                self._ways.shun(met.endpoint)
            raise

    def _handshake(self) -> ClientHandshake:
        settings = self._settings
        features = Feature(0)
        if settings.lane is not None and settings.upstream is None:
            features |= Feature.LANE
        if self._network is not None:
            features |= Feature.PACKETS
        return ClientHandshake(
            self._identity, settings.peer, self._provider, psk=settings.psk, features=features
        )

    def _attach(self, met: Met, admission: Admission) -> None:
        established = admission.established
        session = self._session
        if self._network is not None and not established.features & Feature.PACKETS:
            raise CryprqError(
                f"the exit at {met.endpoint} carries no packets of whole systems; run it as root with "
                "nftables installed, or use the local proxy without --tun"
            )
        if admission.resumed is not None and session is None:
            raise CarrierError(CloseReason.RESUME, "the session ended while it was being resumed")
        if admission.resumed is None:
            if session is not None:
                _log.warning("the exit no longer has the session: its %d streams end", len(session.streams))
            self._drop_session()
            session = self._session = Session(
                dialler=True,
                session_id=established.session_id,
                resume_secret=established.resume_secret,
                provider=self._provider,
                entropy=system_entropy,
                limits=self._settings.limits,
                budget=self._budget,
                slots=self.slots,
                offload=executor_offload(self._provider, self._executor, self._carrier_failed),
            )
            self._attempt = 0
            self._leaving = False
            session.turned_away = self._turned_away
            self._beside = session.sideband = self._make_beside(
                session, bool(established.features & Feature.LANE)
            )
        assert session is not None and self._beside is not None
        lane = self._beside.lane
        if isinstance(lane, ClientLane) and met.pipe.direct is not None:
            # By another carrier the exit's UDP address is not known: the lane stays where it is, if it is anywhere.
            lane.move(met.pipe.direct)
        try:
            session.attach(
                established.cipher,
                established.epoch,
                admission.sealer,
                admission.opener,
                admission.resumed or 0,
                clock(),
            )
        except PeerError:
            self._drop_session()
            raise
        if self._expiry is not None:
            self._expiry.cancel()
        loop = asyncio.get_running_loop()
        self._lost = loop.create_future()
        self._carriers += 1
        self._carrier = met.pipe.carrier(session, self)
        self._way = met
        if self._ways.worked(met.endpoint) and self._settings.on_winner is not None:
            self._settings.on_winner(met.endpoint)
        _log.info(
            "link %s: exit %s at %s (%s), %s, ML-KEM by %s",
            "resumed" if admission.resumed is not None else "up",
            self._settings.peer,
            met.endpoint,
            met.why,
            established.cipher.name,
            self._provider.name,
        )
        self._carrier.start()
        if self._network is not None:
            self._network.link_changed(True)
        self.changed()
        for request in self._waiting.take():
            self._start(request)

    def _make_beside(self, session: Session, lane: bool) -> PacketLink:
        network, settings = self._network, self._settings
        beside = PacketLink(
            session,
            None if network is None else network.received,
            None if network is None else network.addressed,
            _nothing if network is None else network.lane_changed,
        )
        if lane and settings.lane is not None:
            loop = asyncio.get_running_loop()
            beside.lane = ClientLane(loop, beside, beside.announce, settings.lane, mark=settings.mark)
        return beside

    def carrier_lost(self, carrier: Carrier, error: PeerError | None) -> None:
        self._carrier = None
        session = self._session
        if self._network is not None:
            self._network.link_changed(False)
        self.changed()
        if session is not None:
            if session.closed is not None:
                self._drop_session()
            else:
                loop = asyncio.get_running_loop()
                self._expiry = loop.call_later(RESUME_SECONDS, self._drop_session)
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(error)

    def _moved(self) -> int:
        """Bytes of the present session."""
        return 0 if self._session is None else self._session.bytes_sent + self._session.bytes_received

    def _carrier_failed(self, error: PeerError) -> None:
        if self._carrier is not None:
            self._carrier.fail(error)

    def _drop_session(self) -> None:
        session, self._session = self._session, None
        beside, self._beside = self._beside, None
        if beside is not None:
            beside.close()
        if session is not None:
            session.close(CloseReason.NORMAL)
            self._totals.add(session)

    def _advice(self, error: PeerError) -> str:
        if error.reason is CloseReason.NOT_AUTHORISED:
            return f" - add this peer id to the exit's list: {self._identity.peer_id}"
        return ""

    def _where(self) -> Endpoint:
        """By which the exit is reached now, or first tried."""
        if self._carrier is not None and self._way is not None:
            return self._way.endpoint
        return self._settings.endpoints[0]

    def _carrier_status(self) -> dict[str, str] | None:
        if self._carrier is None or self._way is None:
            return None
        endpoint = self._way.endpoint
        return {"kind": endpoint.carrier, "address": str(endpoint), "why": self._way.why}

    def status(self) -> dict[str, Any]:
        """What `cryprq-proxy status` shows."""
        return {
            "role": "client",
            "peer_id": str(self._identity.peer_id),
            "link": "up" if self._carrier is not None else "down",
            "exit": {"peer_id": str(self._settings.peer), "address": str(self._where())},
            "carrier": self._carrier_status(),
            "provider": self._provider.name,
            "carriers": self._carriers,
            "waiting": len(self._waiting),
            "last_error": self._last_error,
            "session": None if self._session is None else session_status(self._session, clock()),
            **self._totals.status(*[] if self._session is None else [self._session]),
            "packets": None if self._beside is None else self._beside.status(),
        }


def _nobody_else(request: Request) -> bool:
    """There is one exit."""
    return False


def _nothing() -> None:
    """Who has no network, or no choice, does not mind."""
