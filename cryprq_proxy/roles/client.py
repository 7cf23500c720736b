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
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from ..address import Destination
from ..carriers.admission import Admission, admit_client
from ..carriers.dial import Resolve, Upstream, by_system, dial
from ..carriers.farewell import all_said
from ..carriers.lane_client import ClientLane
from ..carriers.tcp import TcpCarrier, clock
from ..carriers.udp import UdpOffload
from ..crypto.handshake import ClientHandshake
from ..crypto.identity import Identity, PeerId
from ..crypto.payloads import Feature
from ..crypto.primitives import Provider, system_entropy
from ..errors import CarrierError, CloseReason, CryprqError, PeerError, StreamReason, StreamRefused
from ..session.sendlog import MemoryBudget, SlotPool
from ..session.session import Session, SessionLimits
from ..session.slices import Run, Shape
from ..session.streams import Stream, StreamHandler
from ..tasks import spawn
from ..wire import StreamProtocol
from .bytestream import ByteStream, LinkStream
from .offload import executor_offload
from .packets import PacketLink
from .status import session_status

_log = logging.getLogger(__name__)

DIAL_TIMEOUT: Final = 10.0
HANDSHAKE_TIMEOUT: Final = 10.0
BACKOFF_FIRST: Final = 0.25
BACKOFF_LAST: Final = 15.0
STABLE_SECONDS: Final = 1.0
"""A link that lasted so long, or carried data, is dialled again without delay."""
NOWHERE: Final = Destination("0.0.0.0", 0)
RESUME_SECONDS: Final = 300.0
"""How long a session without a carrier is kept, as the exit does by default."""


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """`wait_for_link` is in seconds: how long a request may wait for the link. `lane`: what the kernel's batching can
    do for the datagram lane; None: no lane. `mark` is the SO_MARK of the link's own sockets, or 0."""

    peer: PeerId
    address: Destination
    psk: bytes | None = field(default=None, repr=False)
    upstream: Upstream | None = None
    wait_for_link: float = 10.0
    lane: UdpOffload | None = None
    mark: int = 0
    limits: SessionLimits = field(default_factory=SessionLimits)


class ClientNetwork(Protocol):
    """Where the client's packets come from and go to: its network interface."""

    def received(self, buffer: memoryview, start: int, end: int, run: Run) -> None:
        """A packet came from the exit; see session/slices.py."""

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
    ) -> None:
        self._network = network
        self._resolve = resolve
        self._beside: PacketLink | None = None
        self._identity = identity
        self._settings = settings
        self._provider = provider
        self.slots = SlotPool()
        self._budget = MemoryBudget(settings.limits.retained)
        self._session: Session | None = None
        self._carrier: TcpCarrier | None = None
        self._attempt = 0
        self._carriers = 0
        self._lost: asyncio.Future[PeerError | None] | None = None
        self._waiting: deque[tuple[float, Callable[[], None], StreamHandler]] = deque()
        self._sweeper: asyncio.TimerHandle | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._stopping = False
        self._task: asyncio.Task[Any] | None = None
        self._last_error: str | None = None
        self._executor = ThreadPoolExecutor(1, "handshake")

    # --- for the front-ends ----------------------------------------------------------------------------------------

    def request(
        self,
        protocol: StreamProtocol,
        destination: Destination,
        handler: StreamHandler,
        opening: Callable[[Stream], None],
    ) -> None:
        """Open a stream, now or when the link is up. `opening` gets it before anything is called on `handler`; if
        the link does not come up in time, `handler.refused(LINK_DOWN)` is called without."""

        def start() -> None:
            session = self._session
            try:
                if session is None:
                    raise StreamRefused(StreamReason.LINK_DOWN)
                stream = session.open(protocol, destination, handler)
            except StreamRefused as refusal:
                handler.refused(refusal.reason)
            else:
                opening(stream)

        if self._carrier is not None:
            start()
        elif self._stopping:
            handler.refused(StreamReason.LINK_DOWN)
        else:
            loop = asyncio.get_running_loop()
            self._waiting.append((loop.time() + self._settings.wait_for_link, start, handler))
            if self._sweeper is None:
                self._sweep()

    async def open(self, destination: Destination) -> ByteStream:
        """A TCP stream to `destination`. Raises StreamRefused."""
        return await self._open(StreamProtocol.TCP, destination)

    async def open_resolver(self) -> ByteStream:
        """A stream to the exit's own DNS resolver (RFC 7766). Raises StreamRefused."""
        return await self._open(StreamProtocol.RESOLVER, NOWHERE)

    async def _open(self, protocol: StreamProtocol, destination: Destination) -> ByteStream:
        link = LinkStream()
        self.request(protocol, destination, link, link.begin)
        try:
            await link.wait_opened()
        except asyncio.CancelledError:
            link.give_up()
            raise
        return link

    def _sweep(self) -> None:
        """Refuse who has waited long enough; they stand in the order of their deadlines."""
        loop = asyncio.get_running_loop()
        self._sweeper = None
        while self._waiting and self._waiting[0][0] <= loop.time():
            self._waiting.popleft()[2].refused(StreamReason.LINK_DOWN)
        if self._waiting:
            self._sweeper = loop.call_at(self._waiting[0][0], self._sweep)

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
                        _log.warning(
                            "no link to %s: %s%s", self._settings.address, error, self._advice(error)
                        )
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
                else:  # an exit that lets us in only to drop us is not asked again at once
                    await asyncio.sleep(backoff)
                    backoff = min(backoff * 2, BACKOFF_LAST)

    async def stop(self) -> None:
        """Close the link; what waits for it is refused."""
        self._stopping = True
        if self._carrier is not None:
            self._carrier.close(CloseReason.NORMAL)
        self._drop_session()
        while self._waiting:
            self._waiting.popleft()[2].refused(StreamReason.LINK_DOWN)
        for timer in (self._sweeper, self._expiry):
            if timer is not None:
                timer.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await all_said()
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def _connect(self) -> None:
        """One attempt. Raises PeerError with the reason in a sentence."""
        settings = self._settings
        try:
            async with asyncio.timeout(DIAL_TIMEOUT):
                sock = await dial(settings.address, settings.upstream, self._resolve, settings.mark)
        except TimeoutError:
            raise CarrierError(CloseReason.TIMED_OUT, f"{settings.address} did not answer in time") from None
        features = Feature(0)
        if settings.lane is not None and settings.upstream is None:
            features |= Feature.LANE
        if self._network is not None:
            features |= Feature.PACKETS
        handshake = ClientHandshake(
            self._identity, settings.peer, self._provider, psk=settings.psk, features=features
        )
        session = self._session
        self._attempt += 1
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT):
                admission = await admit_client(
                    sock,
                    handshake,
                    session,
                    self._attempt,
                    lambda job: loop.run_in_executor(self._executor, job),
                )
            self._attach(sock, admission)
        except TimeoutError:
            sock.close()
            raise CarrierError(
                CloseReason.TIMED_OUT, "the exit did not finish the handshake in time"
            ) from None
        except BaseException:
            sock.close()
            raise

    def _attach(self, sock: Any, admission: Admission) -> None:
        established = admission.established
        session = self._session
        if self._network is not None and not established.features & Feature.PACKETS:
            raise CryprqError(
                f"the exit at {self._settings.address} carries no packets of whole systems; run it as root with "
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
            self._beside = session.sideband = self._make_beside(
                session, bool(established.features & Feature.LANE)
            )
        assert session is not None and self._beside is not None
        lane = self._beside.lane
        if isinstance(lane, ClientLane):
            lane.move(sock.getpeername())
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
        self._carrier = TcpCarrier(loop, sock, session, self)
        _log.info(
            "link %s: exit %s at %s, %s, ML-KEM by %s",
            "resumed" if admission.resumed is not None else "up",
            self._settings.peer,
            self._settings.address,
            established.cipher.name,
            self._provider.name,
        )
        self._carrier.start()
        if self._network is not None:
            self._network.link_changed(True)
        waiting, self._waiting = self._waiting, deque()
        for _, start, _ in waiting:
            start()

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

    def carrier_lost(self, carrier: TcpCarrier, error: PeerError | None) -> None:
        self._carrier = None
        session = self._session
        if self._network is not None:
            self._network.link_changed(False)
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

    def _advice(self, error: PeerError) -> str:
        if error.reason is CloseReason.NOT_AUTHORISED:
            return f" - add this peer id to the exit's list: {self._identity.peer_id}"
        return ""

    def status(self) -> dict[str, Any]:
        """What `cryprq-proxy status` shows."""
        return {
            "role": "client",
            "peer_id": str(self._identity.peer_id),
            "link": "up" if self._carrier is not None else "down",
            "exit": {"peer_id": str(self._settings.peer), "address": str(self._settings.address)},
            "provider": self._provider.name,
            "carriers": self._carriers,
            "waiting": len(self._waiting),
            "last_error": self._last_error,
            "session": None if self._session is None else session_status(self._session, clock()),
            "packets": None if self._beside is None else self._beside.status(),
        }


def _nothing() -> None:
    """A client without a network does not mind how large datagrams may be."""


def keep_up(client: Client) -> asyncio.Task[None]:
    """Run `client` in a task of its own."""
    return spawn(client.run(), "link")
