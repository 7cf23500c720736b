"""The exit role: who may come in, and which session each carrier belongs to.

    accept -> bounds (in flight, per address) -> first flight opens? -> not seen before? -> second flight
           -> third flight -> listed, or invited? -> a new session, or the one it proves to know -> verdict -> carrier

Strangers cost little and learn nothing: everything before the verdict is bounded in number and time, and what fails is
closed without a byte.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import socket
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from ..address import Destination
from ..base.linger import all_said
from ..base.sockets import prepare
from ..base.tasks import spawn
from ..carriers.admission import frame_flight, read_flight
from ..carriers.carrier import Carrier, clock
from ..carriers.lane.listener import LaneListener
from ..carriers.lane.packet_link import PacketLink
from ..carriers.lane.udp_socket import SocketAddress, UdpOffload
from ..carriers.pipe import Pipe, TcpPipe
from ..carriers.rekey_thread import executor_offload
from ..crypto.handshake import FIRST_SIZE, THIRD_SIZE, Established, ExitHandshake
from ..crypto.identity import Identity, PeerId
from ..crypto.payloads import Feature, resume_proof
from ..crypto.primitives import Provider, system_entropy
from ..errors import CloseReason, ConfigError, CryprqError, HandshakeError, PeerError, StreamReason
from ..lane.slices import Run
from ..outbound.resolver import Resolver
from ..outbound.udp_association import UdpAssociation
from ..session import wire
from ..session.records import RecordOpener, RecordSealer
from ..session.sendlog import MemoryBudget, SlotPool
from ..session.session import Session, SessionLimits
from ..session.status import Totals, by_name, session_status
from ..session.streams import Stream
from ..session.wire import StreamProtocol
from .egress import EgressPolicy
from .limits import PrefixLimiter, ReplayMemory, TokenBucket
from .targets import Targets

if TYPE_CHECKING:
    from .websocket_listener import WebEntrance

_log = logging.getLogger(__name__)

HANDSHAKE_TIMEOUT: Final = 10.0
BACKLOG: Final = 256
ACCEPTS: Final = 64
"""Connections accepted in one wake-up."""
SIGNATURES_WAITING: Final = 8
"""Handshakes that may be at the slow steps at once; more are closed."""
REFUSALS_LOGGED: Final = 20
"""Lines about peers that are refused, at once; after that one every REFUSAL_SECONDS, with the number of the others."""
REFUSAL_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class WebSocketSettings:
    """`certificate` and `key` are PEM files, None where a reverse proxy ends TLS. `forwarded`: connections from this
    machine are those of a reverse proxy, and the last entry of their X-Forwarded-For says who the client is."""

    listen: Destination
    path: str
    certificate: Path | None = None
    key: Path | None = None
    forwarded: bool = False


@dataclass(frozen=True, slots=True)
class ExitSettings:
    """Counts, and times in seconds; `handshakes_per_minute` is per IPv4 address or IPv6 /64. `lane`: what the kernel's
    batching can do for the datagram lane; None: no lane. `websocket`: the second entrance, if there is one."""

    listen: tuple[Destination, ...]
    websocket: WebSocketSettings | None = None
    psk: bytes | None = field(default=None, repr=False)
    lane: UdpOffload | None = None
    limits: SessionLimits = field(default_factory=SessionLimits)
    retained_total: int = 256 << 20
    opens_per_second: float = 10_000
    handshakes_in_flight: int = 64
    handshakes_per_minute: float = 60
    sessions_per_peer: int = 8
    detached_sessions_per_peer: int = 2
    resume_seconds: float = 300.0
    connect_timeout: float = 10.0


class PacketNetwork(Protocol):
    """The exit's network interface, with which clients exchange packets."""

    def join(self, peer: PeerId, link: PacketLink) -> tuple[bytes, bytes]:
        """From now on packets for `peer` go to `link`, and to no earlier link of that peer. Its addresses: 4 and 16
        bytes, zeros for a family that is not carried. Raises CryprqError if the interface cannot be had."""

    def leave(self, link: PacketLink) -> None:
        """`link` is over; harmless if it never joined."""

    def received(self, link: PacketLink, buffer: memoryview, start: int, end: int, run: Run) -> None:
        """A packet came from a client."""

    def status(self) -> dict[str, Any]:
        """What `cryprq-proxy status` shows."""


class Invites(Protocol):
    """Who else may come in, once, and is on the list from then on."""

    async def redeem(self, secret: bytes, peer: PeerId) -> bool:
        """Use up the invite that has this secret (16 bytes) and write `peer` down as let in, both for good when this
        returns True. False for a secret that is good for nothing. Never raises."""


class PeerSession:
    """One session of one peer, its carrier if it has one, and what it has beside its streams."""

    def __init__(self, exit: Exit, peer: PeerId, session: Session) -> None:
        self.beside: PacketLink | None = None
        self.addresses: tuple[bytes, bytes] | None = None
        self._exit = exit
        self.peer = peer
        self.session = session
        self.carrier: Carrier | None = None
        self.attempt = 0
        self.expiry: asyncio.TimerHandle | None = None

    def carrier_lost(self, carrier: Carrier, error: PeerError | None) -> None:
        if self.carrier is carrier:
            self.carrier = None
        self._exit.carrier_lost(self, error)

    def carrier_failed(self, error: PeerError) -> None:
        if self.carrier is not None:
            self.carrier.fail(error)


class Exit:
    """`start`, then `stop`. `authorised` is the set of peers let in; `authorise` replaces it, `invites` add to it."""

    def __init__(
        self,
        identity: Identity,
        settings: ExitSettings,
        authorised: frozenset[PeerId],
        policy: EgressPolicy,
        resolver: Resolver,
        provider: Provider,
        network: PacketNetwork | None = None,
        invites: Invites | None = None,
    ) -> None:
        self._network = network
        self._invites = invites
        self._lanes: LaneListener | None = None
        self._identity = identity
        self._settings = settings
        self._authorised = authorised
        self._policy = policy
        self._resolver = resolver
        self._provider = provider
        self._loop = asyncio.get_running_loop()
        self._slots = SlotPool()
        self._budget = MemoryBudget(settings.retained_total)
        self._targets = Targets(policy, resolver, self._slots, settings.connect_timeout)
        self._listeners: list[socket.socket] = []
        self._entrances: dict[socket.socket, WebEntrance] = {}
        """Of the listeners that are not for bare TCP."""
        self._sessions: dict[bytes, PeerSession] = {}
        self._opens: dict[PeerId, TokenBucket] = {}
        self._handshakes: set[asyncio.Task[None]] = set()
        per_minute = settings.handshakes_per_minute
        self._per_address = PrefixLimiter(rate=per_minute / 60, burst=per_minute)
        self._flights = ReplayMemory()
        self._refusals = TokenBucket(1 / REFUSAL_SECONDS, REFUSALS_LOGGED, clock())
        self._unsaid = 0
        self._slow = 0
        self._executor = ThreadPoolExecutor(1, "handshake")
        self._stopping = False
        self._totals = Totals()
        self._streams_total = 0
        self._refused: Counter[CloseReason] = Counter()
        """Peers that proved who they are and were not let in."""
        self._strangers: Counter[str] = Counter()
        """Connections that came to nothing before that, by cause."""

    async def start(self) -> list[Destination]:
        """Listen; the addresses as bound, that for WebSocket last. Raises OSError, or ConfigError for the datagram
        lane's or a certificate."""
        try:
            addresses = [self._listen(address) for address in self._settings.listen]
            if self._settings.lane is not None:
                self._lanes = LaneListener(self._loop, addresses, self._settings.lane)
            if self._settings.websocket is not None:
                from .websocket_listener import WebEntrance  # aiohttp takes a third of a second to load

                entrance = WebEntrance(self._settings.websocket, self._welcome, self._allow)
                addresses.append(self._listen(self._settings.websocket.listen))
                self._entrances[self._listeners[-1]] = entrance
        except (OSError, ConfigError):
            self._close_listeners()
            raise
        for sock in self._listeners:
            self._loop.add_reader(sock, self._on_acceptable, sock)
        return addresses

    def _listen(self, address: Destination) -> Destination:
        """Begin to; the address as bound. Raises OSError."""
        host, port = address
        sock = socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=BACKLOG
        )
        sock.setblocking(False)
        self._listeners.append(sock)
        return Destination(*sock.getsockname()[:2])

    def authorise(self, peers: frozenset[PeerId]) -> None:
        """Let in `peers` and no others; sessions of those no longer listed end."""
        self._authorised = peers
        for entry in list(self._sessions.values()):
            if entry.peer not in peers:
                self._end(entry, CloseReason.NOT_AUTHORISED)

    async def stop(self, grace: float) -> None:
        """Let no one in, open no streams, give those that are open `grace` seconds to end, then close all links."""
        self._stopping = True
        self._close_listeners()
        for task in self._handshakes:
            task.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                while any(
                    entry.carrier is not None and entry.session.streams for entry in self._sessions.values()
                ):
                    await asyncio.sleep(0.1)
        for entry in list(self._sessions.values()):
            self._end(entry, CloseReason.SHUTTING_DOWN)
        if self._lanes is not None:
            self._lanes.close()
        await all_said()
        for entrance in self._entrances.values():
            await entrance.close()
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _close_listeners(self) -> None:
        for sock in self._listeners:
            self._loop.remove_reader(sock)
            sock.close()
        self._listeners.clear()

    # --- strangers -------------------------------------------------------------------------------------------------

    def _on_acceptable(self, listener: socket.socket) -> None:
        for _ in range(ACCEPTS):
            try:
                sock, address = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                _log.warning("a connection could not be accepted: %s", error.strerror)
                return
            host, entrance = address[0], self._entrances.get(listener)
            free = len(self._handshakes) < self._settings.handshakes_in_flight
            # Whom a reverse proxy brings is counted once it has said who that is.
            behind = entrance is not None and entrance.is_proxy(host)
            if not free or not (behind or self._allow(host)):
                self._strangers["too_many"] += 1
                sock.close()
                continue
            prepare(sock, host)
            work = self._welcome(TcpPipe(sock), host) if entrance is None else entrance.visit(sock, host)
            task = spawn(work, "handshake")
            self._handshakes.add(task)
            task.add_done_callback(self._handshakes.discard)

    def _allow(self, host: str) -> bool:
        """Whether one more handshake may come from there."""
        return self._per_address.allow(host, clock())

    async def _welcome(self, pipe: Pipe, host: str) -> None:
        """One connection, from its first byte to its carrier or its end."""
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT):
                await self._handshake(pipe, host)
        except TimeoutError:
            _log.debug("a handshake from %s was not finished in time", host)
            self._strangers["too_slow"] += 1
            pipe.close()
        except PeerError as error:
            _log.debug("a handshake from %s failed: %s", host, error)
            self._strangers["no_handshake"] += 1
            pipe.close()
        except BaseException:
            pipe.close()
            raise

    async def _handshake(self, pipe: Pipe, host: str) -> None:
        features = Feature(0)
        if self._lanes is not None:
            features |= Feature.LANE
        if self._network is not None:
            features |= Feature.PACKETS
        handshake = ExitHandshake(self._identity, self._provider, psk=self._settings.psk, features=features)
        first = await read_flight(pipe, FIRST_SIZE)
        if self._provider.fast:
            handshake.read_first(first)
        else:
            await self._run(handshake.read_first, first)
        if self._flights.seen(hashlib.sha256(first).digest(), clock()):
            raise HandshakeError("its first flight was replayed")
        await pipe.write(frame_flight(await self._run(handshake.write_second)))
        third = await read_flight(pipe, THIRD_SIZE)
        await self._run(handshake.read_third, third)
        await self._admit(pipe, host, handshake)

    async def _run(self, step: Any, *args: Any) -> Any:
        """A slow step, on the one thread for them; raises HandshakeError when too many wait."""
        if self._slow >= SIGNATURES_WAITING:
            raise HandshakeError("too many handshakes at once")
        self._slow += 1
        try:
            return await self._loop.run_in_executor(self._executor, step, *args)
        finally:
            self._slow -= 1

    # --- peers -----------------------------------------------------------------------------------------------------

    async def _admit(self, pipe: Pipe, host: str, handshake: ExitHandshake) -> None:
        """The verdict on a peer that has proved who it is."""
        established, request = handshake.result, handshake.resume
        peer = established.peer
        sealer = RecordSealer(established.cipher, established.epoch.exit_record)
        opener = RecordOpener(established.cipher, established.epoch.client_record)
        entry = None if request is None else self._sessions.get(request.session_id)
        secret = handshake.invite
        if secret is not None and peer not in self._authorised and not self._stopping:
            # A connection that breaks meanwhile does not stop it: an invite that is used up has let somebody in.
            await asyncio.shield(spawn(self._redeem(secret, peer), "invite"))
        refusal = self._refusal(peer, entry)
        if refusal is not None:
            self._refused[refusal] += 1
            self._log_refusal(peer, host, refusal, secret is not None)
            await pipe.write(sealer.seal(wire.encode_close(refusal)))
            pipe.close()
            return
        resumed = (
            entry is not None
            and request is not None
            and entry.peer == peer
            and request.proves(entry.session.resume_secret, handshake.resume_hash)
            and request.attempt > entry.attempt
        )
        if resumed and entry is not None and request is not None:
            entry.attempt = request.attempt
            if entry.carrier is not None:
                entry.carrier.drop()
            count = entry.session.received
            proof = resume_proof(
                entry.session.resume_secret, b"resume S", handshake.resume_hash, request.attempt, count
            )
            verdict, received = wire.encode_resumed(count, proof), request.rx
        else:
            entry = self._new_session(established, pipe.direct)
            verdict, received = wire.encode_bare(wire.ACCEPT if request is None else wire.NO_SESSION), 0
        attempt = entry.attempt
        self._keep_detached(entry)
        await pipe.write(sealer.seal(verdict))
        if entry.session.closed is not None or entry.attempt != attempt:
            pipe.close()  # ended, or overtaken by a later attempt, while the verdict was written
            return
        if entry.expiry is not None:
            entry.expiry.cancel()
        try:
            entry.session.attach(established.cipher, established.epoch, sealer, opener, received, clock())
        except PeerError:
            self._end(entry, CloseReason.RESUME)
            raise
        entry.carrier = pipe.carrier(entry.session, entry)
        _log.info(
            "link %s: %s from %s, %s", "resumed" if resumed else "up", peer, host, established.cipher.name
        )
        if entry.addresses is not None:
            entry.session.announce(wire.encode_network(*entry.addresses))
        entry.carrier.start()

    async def _redeem(self, secret: bytes, peer: PeerId) -> None:
        if self._invites is not None and await self._invites.redeem(secret, peer):
            self._authorised |= {peer}

    def _log_refusal(self, peer: PeerId, host: str, refusal: CloseReason, invited: bool) -> None:
        """Bounded, since anybody who knows the exit's id can make as many identities as they like."""
        if not self._refusals.allow(clock()):
            self._unsaid += 1
            return
        others, self._unsaid = self._unsaid, 0
        _log.warning(
            "refused %s from %s%s: %s%s",
            peer,
            host,
            " with an invite that is good for nothing"
            if invited and refusal is CloseReason.NOT_AUTHORISED
            else "",
            refusal.name.lower().replace("_", " "),
            f" ({others} other refusals were not written down)" if others else "",
        )

    def _refusal(self, peer: PeerId, resuming: PeerSession | None) -> CloseReason | None:
        if peer not in self._authorised:
            return CloseReason.NOT_AUTHORISED
        if self._stopping:
            return CloseReason.SHUTTING_DOWN
        attached = sum(
            entry.peer == peer and entry.carrier is not None and entry is not resuming
            for entry in self._sessions.values()
        )
        return CloseReason.LIMIT if attached >= self._settings.sessions_per_peer else None

    def _new_session(self, established: Established, client: SocketAddress | None) -> PeerSession:
        entry: PeerSession
        session_id = established.session_id
        session = Session(
            dialler=False,
            session_id=session_id,
            resume_secret=established.resume_secret,
            provider=self._provider,
            entropy=system_entropy,
            limits=self._settings.limits,
            budget=self._budget,
            slots=self._slots,
            acceptor=lambda stream: self._accept_stream(entry, stream),
            offload=executor_offload(
                self._provider, self._executor, lambda error: entry.carrier_failed(error)
            ),
        )
        entry = self._sessions[session_id] = PeerSession(self, established.peer, session)
        self._equip(entry, established.features, client)
        return entry

    def _equip(self, entry: PeerSession, features: int, client: SocketAddress | None) -> None:
        """Give a new session the lane and the way for packets that were agreed on."""
        if not features:
            return
        network = self._network if features & Feature.PACKETS else None
        link: PacketLink
        if network is None:
            link = PacketLink(entry.session)
        else:
            received = network.received
            link = PacketLink(entry.session, lambda *packet: received(link, *packet))
            try:
                entry.addresses = network.join(entry.peer, link)
            except CryprqError as error:
                _log.error("%s gets no packets: %s", entry.peer, error)
                entry.addresses = bytes(4), bytes(16)
        if features & Feature.LANE and self._lanes is not None:
            link.lane = self._lanes.carrier(link, link.announce, client)
        entry.beside = entry.session.sideband = link

    def _accept_stream(self, entry: PeerSession, stream: Stream) -> None:
        peer, now = entry.peer, clock()
        self._streams_total += 1
        bucket = self._opens.get(peer)
        if bucket is None:
            rate = self._settings.opens_per_second
            bucket = self._opens[peer] = TokenBucket(rate, rate, now)
        if self._stopping:
            stream.refuse(StreamReason.SHUTTING_DOWN)
        elif not bucket.allow(now):
            stream.refuse(StreamReason.LIMIT)
        elif stream.protocol is StreamProtocol.UDP:
            UdpAssociation(self._loop, stream, self._policy, self._resolver)
        elif stream.protocol is StreamProtocol.RESOLVER:
            if entry.addresses is None:  # its names come from a whole system, or it has no business here
                stream.refuse(StreamReason.NOT_ALLOWED)
            else:
                self._targets.open_resolver(stream)
        else:
            self._targets.open(stream)

    def carrier_lost(self, entry: PeerSession, error: PeerError | None) -> None:
        """Keep the session for a resume, unless it is over or the peer has left too many."""
        if entry.session.closed is not None:
            self._forget(entry)
        else:
            self._keep_detached(entry)
        if error is not None:
            _log.info("link down: %s: %s", entry.peer, error)

    def _keep_detached(self, entry: PeerSession) -> None:
        """A session without a carrier: bounded in time, and those of one peer in number, the oldest going first."""
        if entry.expiry is not None:
            entry.expiry.cancel()
        entry.expiry = self._loop.call_later(
            self._settings.resume_seconds, self._end, entry, CloseReason.NORMAL
        )
        self._sessions[entry.session.session_id] = self._sessions.pop(entry.session.session_id)
        detached = [
            other for other in self._sessions.values() if other.peer == entry.peer and other.carrier is None
        ]
        for old in detached[: max(0, len(detached) - self._settings.detached_sessions_per_peer)]:
            self._end(old, CloseReason.LIMIT)

    def _end(self, entry: PeerSession, reason: CloseReason) -> None:
        if entry.carrier is not None:
            entry.carrier.close(reason)
        else:
            entry.session.close(reason)
        self._forget(entry)

    def _forget(self, entry: PeerSession) -> None:
        if entry.expiry is not None:
            entry.expiry.cancel()
        if self._sessions.pop(entry.session.session_id, None) is not None:
            self._totals.add(entry.session)
        if entry.beside is not None:
            entry.beside.close()
            if self._network is not None:
                self._network.leave(entry.beside)
        if not any(other.peer == entry.peer for other in self._sessions.values()):
            self._opens.pop(entry.peer, None)

    def status(self) -> dict[str, Any]:
        """What `cryprq-proxy status` shows."""
        now = clock()
        return {
            "role": "exit",
            "peer_id": str(self._identity.peer_id),
            "provider": self._provider.name,
            "authorised": len(self._authorised),
            "targets": len(self._targets.relays),
            "handshakes": len(self._handshakes),
            **self._totals.status(*(entry.session for entry in self._sessions.values())),
            "streams_total": self._streams_total,
            "streams_refused": by_name(
                self._totals.refused, *(entry.session.refused for entry in self._sessions.values())
            ),
            "refused": by_name(self._refused) | self._strangers,
            "lanes": None if self._lanes is None else self._lanes.status(),
            "network": None if self._network is None else self._network.status(),
            "sessions": [
                {"peer_id": str(entry.peer), "link": "up" if entry.carrier is not None else "down"}
                | session_status(entry.session, now)
                | {"packets": None if entry.beside is None else entry.beside.status()}
                for entry in self._sessions.values()
            ],
        }
