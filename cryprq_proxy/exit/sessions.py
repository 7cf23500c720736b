"""The sessions of an exit: which peer has which, what each is given, and how long one without a carrier is kept. One of
them is a PeerSession (peer_session.py).

A session outlives its carriers: until `resume_seconds` have passed its peer may join it by another one. What one peer
may hold is bounded in number: sessions without a carrier and the carriers of one here, sessions with one in exit.py.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Container, Iterator
from concurrent.futures import Executor
from contextlib import suppress
from typing import Final

from ..base.clock import clock
from ..base.descriptors import for_streams
from ..base.faults import contained
from ..carriers.lane.batch import SocketAddress
from ..carriers.lane.listener import LaneListener
from ..carriers.lane.packet_link import NO_ADDRESSES, NetworkLink, PacketLink
from ..carriers.rekey_thread import executor_offload
from ..crypto.handshake import Established
from ..crypto.identity import PeerId
from ..crypto.payloads import Feature
from ..crypto.primitives import Provider, system_entropy
from ..errors import CloseReason, CryprqError, PeerError, StreamReason
from ..outbound.udp_association import MAX_SOCKETS, UdpAssociation
from ..session.retention import MemoryBudget
from ..session.session import Session
from ..session.status import Totals
from ..session.streams import Stream
from ..session.windows import WindowBudget
from ..session.wire import StreamProtocol
from .descriptor_shares import Claim, DescriptorShares
from .limits import TokenBucket
from .peer_book import PeerBook
from .peer_session import PeerSession, PeerShare
from .providers import PacketNetwork
from .report import Reporter, ReportStream
from .settings import ExitSettings
from .targets import Targets
from .ticket_book import TicketBook

_log = logging.getLogger(__name__)

_PACKET_LINK: Final = Feature.LANE | Feature.PACKETS


class Sessions:
    """All sessions of an exit."""

    def __init__(
        self,
        settings: ExitSettings,
        provider: Provider,
        executor: Executor,
        targets: Targets,
        network: PacketNetwork,
        book: PeerBook,
    ) -> None:
        self._settings = settings
        self._book = book
        self._provider = provider
        self._executor = executor
        self._targets = targets
        self._network = network
        self._reporter = Reporter(targets.resolver)
        self._loop = asyncio.get_running_loop()
        self._budget = MemoryBudget(settings.bounds.retained_total)
        self._window_budget = WindowBudget(settings.bounds.window_total)
        self._by_id: dict[bytes, PeerSession] = {}
        self._shares: dict[PeerId, PeerShare] = {}
        self.tickets: TicketBook[PeerSession] = TicketBook()
        self._descriptors = DescriptorShares(for_streams())
        self.lanes: LaneListener | None = None
        self._loss = asyncio.Event()
        """Set when a carrier is lost."""
        self.totals = Totals()
        self.streams_total = 0

    def take_limits(self, settings: ExitSettings) -> None:
        """What the limits say of all sessions together, of streams and of waiting holds at once; `retained` and
        `window_pool` are those of the next session. Nothing ends by it."""
        self._settings = settings
        bounds = settings.bounds
        self._budget.total, self._window_budget.total = bounds.retained_total, bounds.window_total
        for share in self._shares.values():
            share.opens.take_rate(bounds.opens_per_second, bounds.opens_per_second)
        for entry in self:
            entry.session.table.take_most(settings.limits.streams)

    def __iter__(self) -> Iterator[PeerSession]:
        return iter(list(self._by_id.values()))

    def __len__(self) -> int:
        return len(self._by_id)

    def by_id(self, session_id: bytes) -> PeerSession | None:
        """The session that a client asks for; whether it may have it is not judged here."""
        return self._by_id.get(session_id)

    def attached(self, peer: PeerId, *, but: PeerSession | None) -> int:
        """How many sessions of `peer` have a carrier, without `but`."""
        return sum(bool(entry.carriers) and entry is not but for entry in self.of(peer))

    def counts(self) -> dict[PeerId, int]:
        """How many sessions each peer has that has some."""
        return {peer: len(share.sessions) for peer, share in self._shares.items()}

    def of(self, peer: PeerId) -> Collection[PeerSession]:
        held = self._shares.get(peer)
        return () if held is None else held.sessions.values()

    # --- beginning ---

    def new(self, established: Established, client: SocketAddress | None) -> PeerSession:
        """A session for a peer that was let in. `client` is its UDP address, if the lane can use that."""
        entry: PeerSession
        share = self._share(established.peer)
        session = Session(
            dialler=False,
            session_id=established.session_id,
            epoch=established.epoch,
            cipher=established.cipher,
            provider=self._provider,
            entropy=system_entropy,
            limits=self._settings.limits,
            budget=self._budget,
            window_budget=self._window_budget,
            slots=self._targets.slots,
            turn=share.turn,
            now=clock(),
            accept_stream=lambda stream: self._accept_stream(entry, share, stream),
            offload=executor_offload(self._provider, self._executor, lambda error: entry.failed(error)),
        )
        entry = self._by_id[established.session_id] = share.sessions[established.session_id] = PeerSession(
            self, established.peer, session, self._targets.resolver.of(str(established.peer))
        )
        session.events.renewed = lambda: self.tickets.renew(entry, session.rotation.known.resume_secrets)
        session.events.renewed()
        try:
            if established.features & _PACKET_LINK:
                self._link_packets(entry, established.features, client)
            session.begin_lane(clock())
        except Exception:
            self.end(entry, CloseReason.NORMAL)
            raise
        return entry

    def _share(self, peer: PeerId) -> PeerShare:
        share = self._shares.get(peer)
        if share is None:
            rate = self._settings.bounds.opens_per_second
            opens = TokenBucket(rate, rate, clock())
            share = self._shares[peer] = PeerShare(opens, self._loop)
        return share

    def _link_packets(self, entry: PeerSession, features: int, client: SocketAddress | None) -> None:
        """Give a new session the packets and the lane that were agreed on."""
        link: PacketLink
        if features & Feature.PACKETS:
            received = self._network.received
            link = NetworkLink(
                entry.session,
                lambda *packet: received(link, *packet),
                taken=lambda networks: self._network.avoid(link, networks),
            )
            try:
                self._network.join(entry.peer, link, self._book.shown(entry.peer))
            except CryprqError as error:
                _log.error("%s gets no packets: %s", self._book.shown(entry.peer), error)
                link.assign(*NO_ADDRESSES)
        else:
            link = PacketLink(entry.session)
        lane = self._settings.lane
        if features & Feature.LANE and self.lanes is not None and lane is not None:
            link.lane = self.lanes.carrier(link, client)
            link.lane.carry(entry.session.attach_lane(clock()), entry.failed, lane.control)
        entry.packet_link = entry.session.packet_link = link

    def _accept_stream(self, entry: PeerSession, share: PeerShare, stream: Stream) -> None:
        self.streams_total += 1
        now = clock()
        if now >= entry.opens_until:
            stream.refuse(StreamReason.SHUTTING_DOWN)
            return
        udp = stream.protocol is StreamProtocol.UDP
        allowed = share.opens.allow(now) and share.sockets.open()
        claim = self._descriptors.claim(entry.peer, MAX_SOCKETS if udp else 1) if allowed else None
        if claim is None:
            stream.refuse(StreamReason.LIMIT)
            return
        try:
            self._serve(entry, share, stream, claim)
        except Exception:
            claim.release()
            raise

    def _serve(self, entry: PeerSession, share: PeerShare, stream: Stream, claim: Claim) -> None:
        """Give an accepted stream the handler that connects its target."""
        targets = self._targets
        if stream.protocol is StreamProtocol.UDP:
            stream.handler = UdpAssociation(
                share.sockets,
                stream.send_datagram,
                stream.reset,
                targets.policy,
                entry.resolver,
                share.held,
                share.turn,
                claim.release,
            )
            stream.accept()
        elif stream.protocol is StreamProtocol.RESOLVER:
            # Only a client in system-wide mode sends its system's questions here.
            if entry.packet_link is None or entry.packet_link.addresses is None:
                claim.release()
                stream.refuse(StreamReason.NOT_ALLOWED)
            else:
                targets.open_resolver(stream, share.sockets, claim)
        elif stream.protocol is StreamProtocol.REPORT:
            ReportStream(self._reporter, entry, stream, claim)
        else:
            targets.open(stream, entry.resolver, share.sockets, share.turn, claim)

    def signed(self, entry: PeerSession, epoch: int) -> None:
        """Its peer has claimed it by a signed handshake and the secret of `epoch`, and is about to get a path: all
        before that one end, and no other joins by a ticket until a rotation has followed. So who has learned the
        secrets of an epoch, and has paths of his own by them, has no part in the next one."""
        entry.signed_at = clock()
        carriers = list(entry.carriers.values())
        # The session is not without a carrier in the sense of `keep_detached`.
        entry.carriers.clear()
        for carrier in carriers:
            carrier.drop()
        self._loss.set()
        entry.session.rotation.bind(epoch, entry.signed_at)

    # --- without a carrier, and ending ---

    def carrier_lost(self, entry: PeerSession, error: PeerError | None) -> None:
        """Keep the session for a resume, unless it is closed or its peer has too many of them."""
        self._loss.set()
        if not entry.carriers:
            for path in list(entry.session.paths.values()):
                path.lost(clock())  # left of a carrier whose end has met a fault
        if entry.session.closed is not None:
            self.end(entry, entry.session.closed)
        else:
            self.keep_detached(entry)
        if error is not None:
            _log.info("link down: %s: %s", self._book.shown(entry.peer), error)

    def keep_detached(self, entry: PeerSession, *, admitted: bool = False) -> None:
        """Bound a session without a carrier in time, and those of its peer in number: the oldest ends first. One that
        is `admitted` is about to get a carrier, and takes no place of the others."""
        self._wait_for_path(entry)
        session_id, sessions = entry.session.session_id, self._shares[entry.peer].sessions
        sessions[session_id] = sessions.pop(session_id)
        detached = [
            other for other in sessions.values() if not other.carriers and not (admitted and other is entry)
        ]
        for old in detached[: max(0, len(detached) - self._settings.bounds.detached_sessions_per_peer)]:
            self.end(old, CloseReason.LIMIT)

    def _wait_for_path(self, entry: PeerSession) -> None:
        if entry.expiry is not None:
            entry.expiry.cancel()
        entry.expiry = self._loop.call_later(self._settings.bounds.resume_seconds, self._expire, entry)

    def _expire(self, entry: PeerSession) -> None:
        """No path has joined in time. While the lane works none is missed."""
        if entry.session.attached:
            self._wait_for_path(entry)
        else:
            self.end(entry, CloseReason.NORMAL)

    def end_unlisted(self, peers: Container[PeerId]) -> int:
        """End the sessions of all peers but these. Returns their number."""
        unlisted = [entry for entry in self if entry.peer not in peers]
        for entry in unlisted:
            self.end(entry, CloseReason.NOT_AUTHORIZED)
        return len(unlisted)

    def retire(self) -> None:
        """Ask the peers to leave. Lanes whose ports the next exit could not have are closed."""
        lanes = None if self.lanes is None or self.lanes.shared else self.lanes
        for entry in self:
            entry.ask_to_leave()
            if lanes is not None and entry.packet_link is not None:
                entry.packet_link.close()
        if lanes is not None:
            lanes.close()

    async def left(self, seconds: float) -> None:
        """Return when no session has a carrier any more, or after so many seconds.

        It is the client that closes a session when its last stream has ended: closed from here, an OPEN that has been
        sent would be lost.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while carried := [entry for entry in self if entry.carriers]:
                    for entry in carried:
                        while entry.carriers:
                            self._loss.clear()
                            await self._loss.wait()

    def end_all(self) -> None:
        for entry in self:
            self.end(entry, CloseReason.SHUTTING_DOWN)
        if self.lanes is not None:
            self.lanes.close()

    def end(self, entry: PeerSession, reason: CloseReason) -> None:
        """Tell the peer if it has a carrier, and forget the session."""
        with contained("leaves the streams of a session that has ended"):
            for carrier in list(entry.carriers.values()):
                carrier.close(reason)
            entry.session.close(reason)
        self._forget(entry)

    def _forget(self, entry: PeerSession) -> None:
        if entry.expiry is not None:
            entry.expiry.cancel()
        self.tickets.forget(entry)
        session_id = entry.session.session_id
        if self._by_id.pop(session_id, None) is not None:
            share = self._shares[entry.peer]
            del share.sessions[session_id]
            if not share.sessions:
                del self._shares[entry.peer]
                with contained("leaves the sockets of a peer that has gone"):
                    share.sockets.retire()
            self.totals.add(entry.session)
            self._book.left(entry.peer, entry.session)
        if entry.packet_link is not None:
            with contained("leaves a datagram lane behind"):
                entry.packet_link.close()
            with contained("leaves the addresses of a peer that has gone"):
                self._network.leave(entry.packet_link)
