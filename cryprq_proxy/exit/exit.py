"""The exit role: which peers come in, and which session each carrier belongs to.

handshake done (listener.py) -> listed, or invited? -> a new session, or the one it proves to know -> verdict
                             -> carrier

The end: retire -> no new peers or streams, all peers hear GOAWAY -> stop -> their streams run out -> all closed
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

from ..address import Destination
from ..base.clock import clock
from ..base.linger import farewells_ended
from ..base.passed_sockets import NO_SOCKETS, PassedSockets
from ..base.tasks import spawn
from ..base.work import Work
from ..carriers.admission import first_keys
from ..carriers.lane.listener import LaneListener
from ..carriers.pipe import Pipe
from ..crypto.exit_handshake import ExitHandshake
from ..crypto.identity import Identity, PeerId
from ..crypto.payloads import JOIN_EXIT, SIGNED_SECONDS, Feature, JoinClaim, Pattern, join_proof
from ..crypto.primitives import Provider
from ..errors import CloseReason, ConfigError, HandshakeError, words_of
from ..outbound.resolving.resolver import SystemResolver
from ..session import wire
from ..session.path import MAX_EARLY
from ..session.path_keys import CarrierKeys
from ..session.retention import SlotPool
from ..session.session import SessionLimits
from ..session.status import by_name
from ..status import ExitStatus, PeerSessionStatus, PeersPage, PeerStatus
from .egress_policy import EgressPolicy
from .flight_memory import FlightMemory
from .handshake_thread import HandshakeThread
from .limits import TokenBucket
from .listener import ExitListener
from .peer_book import PeerBook
from .peer_session import PeerSession
from .providers import NO_INVITES, NO_PACKETS, Invites, PacketNetwork, Redeemed
from .sessions import Sessions
from .settings import ExitBounds, ExitSettings
from .targets import Targets

_log = logging.getLogger(__name__)

TOLD_AT_ONCE: Final = 250
"""Sessions whose status is read in one turn of the loop, of about 10 us each."""
REFUSALS_LOGGED: Final = 20
"""Log lines about refused peers at once; after that one every REFUSAL_SECONDS, with the number of the others."""
REFUSAL_SECONDS: Final = 10.0


class Exit:
    """`start`, then `retire` or `stop`. `authorized`: the peers that are let in, each with its name on the list or "";
    `authorize` replaces them, `invites` add to them. `flights`: the first flights that were answered earlier."""

    def __init__(
        self,
        identity: Identity,
        settings: ExitSettings,
        authorized: Mapping[PeerId, str],
        policy: EgressPolicy,
        resolver: SystemResolver,
        provider: Provider,
        network: PacketNetwork = NO_PACKETS,
        invites: Invites = NO_INVITES,
        flights: FlightMemory | None = None,
    ) -> None:
        self._identity = identity
        self._settings = settings
        self.book = PeerBook(authorized)
        self._provider = provider
        self._network = network
        self._invites = invites
        self._thread = HandshakeThread()
        bounds = settings.bounds
        self._targets = Targets(policy, resolver, SlotPool(), bounds.connect_timeout, bounds.idle_timeout)
        self.sessions = Sessions(
            settings, provider, self._thread.executor, self._targets, self._network, self.book
        )
        flights = FlightMemory() if flights is None else flights
        self.listener = ExitListener(identity, settings, provider, self._thread, self._admit, flights)
        self.list_turn = asyncio.Lock()
        """Held from the reading of the list until `authorize`, and while an invite puts a peer on it: a list that was
        read before the invite was used would take that peer's session, one that was read later a revoked peer back."""
        self._stopping = False
        self._refusals = TokenBucket(1 / REFUSAL_SECONDS, REFUSALS_LOGGED, clock())
        self._unlogged = 0
        self._refused: Counter[CloseReason] = Counter()
        """Peers that proved who they are and were not let in."""

    async def start(self, passed: PassedSockets = NO_SOCKETS) -> list[Destination]:
        """Listen; the addresses as bound, that for WebSocket last. Raises OSError, or ConfigError for the datagram
        lane's, a certificate or a passed socket."""
        addresses = self.listener.bind(passed)
        features = self._network.features | Feature.REPORT
        if self._settings.lane is not None:
            try:
                of_links = addresses[: len(self._settings.listen)]
                self.sessions.lanes = LaneListener(
                    asyncio.get_running_loop(), of_links, self._settings.lane.offload
                )
            except (OSError, ConfigError):
                self.listener.stop_accepting()
                raise
            features |= Feature.LANE
        self.listener.start(features)
        return addresses

    def authorize(self, peers: Mapping[PeerId, str]) -> int:
        """Let in `peers` and no others; sessions of peers no longer listed end. Returns how many have ended."""
        ended = self.sessions.end_unlisted(peers)
        self.book.replace(peers)
        return ended

    def take_limits(self, limits: SessionLimits, bounds: ExitBounds) -> None:
        """For peers, sessions and streams from now on; what is there stays."""
        self._settings = replace(self._settings, limits=limits, bounds=bounds)
        self.listener.take_limits(bounds)
        self.sessions.take_limits(self._settings)
        self._targets.take_timeouts(bounds.connect_timeout, bounds.idle_timeout)

    def retire(self) -> None:
        """Free the ports, let no new peer in, and ask all peers to leave when their streams have ended. Handshakes that
        have begun go on: who resumes a session still can. A second call does nothing."""
        if self._stopping:
            return
        self._stopping = True
        self.listener.stop_accepting()
        self.sessions.retire()

    async def stop(self, grace: float) -> None:
        """`retire`, give the open streams `grace` seconds to end, then close all links."""
        self.retire()
        await self.sessions.left(grace)
        self.sessions.end_all()
        await farewells_ended()
        await self.listener.close()
        self._thread.close()

    # --- the verdict -----------------------------------------------------------------------------------------------

    async def _admit(self, pipe: Pipe, host: str, handshake: ExitHandshake, third: bytes) -> PeerId | None:
        """The verdict on a client whose third flight has come, and opened if the pattern is the signed one. Returns its
        peer id if it is on the list. Raises CarrierError if the connection breaks, HandshakeError for a client that is
        to get no answer."""
        if handshake.pattern is Pattern.SHORT:
            return await self._admit_path(pipe, host, handshake, third)
        established, claim, secret = handshake.result, handshake.joins, handshake.invite
        peer = established.peer
        invited = True
        if secret is not None and not self._stopping:
            # An invite that is used up has let a peer in: a connection that breaks meanwhile does not stop it.
            invited = await asyncio.shield(spawn(self._redeem(secret, peer), "invite"))
        number = 0 if claim is None else claim.path
        keys = first_keys(established.cipher, established.epoch.records, number, dialler=False)
        claimed = None if claim is None else self._claimed(peer, claim, handshake.join_hash)
        entry, proof, epoch = claimed or (None, b"", 0)
        refusal = self._refusal(peer, entry) if invited else CloseReason.NOT_AUTHORIZED
        if refusal is not None:
            await self._refuse(pipe, keys, peer, host, refusal, invited=secret is not None)
            return None if refusal is CloseReason.NOT_AUTHORIZED else peer
        if entry is not None:
            self.sessions.signed(entry, epoch)
            verdict = wire.encode_joined(proof)
        else:
            entry = self.sessions.new(established, pipe.direct)
            verdict = wire.encode_bare(wire.ACCEPT if claim is None else wire.NO_SESSION)
        # Behind a claim nothing may be sent before the verdict is read: the session may be another one.
        early = MAX_EARLY if claim is None else 0
        await self._let_in(pipe, host, entry, number, keys, epoch, verdict, early, resumed=bool(proof))
        return peer

    def _claimed(self, peer: PeerId, claim: JoinClaim, h: bytes) -> tuple[PeerSession, bytes, int] | None:
        """The session that the claim is for, if it is of `peer` and the client knows its secret; this exit's proof that
        it knows that, too; and the epoch of the secret. A session whose own peer does not know its secret ends.

        Raises HandshakeError for a late claim, before its proof is looked at: that may be by a secret which a rotation
        has replaced since, and who has only held a claim up must not end a session by it.
        """
        entry = self.sessions.by_id(claim.session_id)
        if entry is None or entry.peer != peer:
            return None
        if claim.path <= entry.taken:
            raise HandshakeError("it claims a path whose number was used before")
        for epoch, secret in entry.session.rotation.known.claim_secrets.items():
            if claim.proves(secret, h):
                return entry, join_proof(secret, JOIN_EXIT, h, claim.path), epoch
        # Whoever has its paths is not this client.
        _log.warning("the session of %s has other keys than its client, and ends", self.book.shown(peer))
        self.sessions.end(entry, CloseReason.NORMAL)
        return None

    async def _admit_path(
        self, pipe: Pipe, host: str, handshake: ExitHandshake, third: bytes
    ) -> PeerId | None:
        """As `_admit`, for the short pattern."""
        ticket = handshake.read_short_third(third, self.sessions.tickets.find)
        entry, path = ticket.owner, handshake.path
        epoch = entry.session.rotation.known.resume_epoch(ticket.secret)
        if clock() - entry.signed_at > SIGNED_SECONDS:
            raise HandshakeError("its session has not been signed for too long")
        keys = first_keys(path.cipher, path.records, path.number, dialler=False)
        refusal = self._refusal(entry.peer, entry)
        if refusal is not None:
            await self._refuse(pipe, keys, entry.peer, host, refusal)
            return None if refusal is CloseReason.NOT_AUTHORIZED else entry.peer
        verdict = wire.encode_bare(wire.ACCEPT)
        await self._let_in(pipe, host, entry, path.number, keys, epoch, verdict, MAX_EARLY, resumed=True)
        return entry.peer

    async def _refuse(
        self,
        pipe: Pipe,
        keys: CarrierKeys,
        peer: PeerId,
        host: str,
        refusal: CloseReason,
        *,
        invited: bool = False,
    ) -> None:
        self._refused[refusal] += 1
        self._log_refusal(peer, host, refusal, invited=invited)
        # What has followed the third flight waits unread, and is dropped.
        await pipe.part(keys.sealer.seal(wire.encode_close(refusal)))

    async def _let_in(
        self,
        pipe: Pipe,
        host: str,
        entry: PeerSession,
        number: int,
        keys: CarrierKeys,
        epoch: int,
        verdict: bytes,
        early: int,
        *,
        resumed: bool,
    ) -> None:
        """Say `verdict`, and begin path `number` of the session, which joins by the resume secret of `epoch`. `early`
        bytes of early records may come on it."""
        entry.taken = number
        self.sessions.tickets.advance(entry, number)
        if not entry.carriers:
            try:
                self.sessions.keep_detached(entry, admitted=True)
            except Exception:
                self.sessions.end(entry, CloseReason.NORMAL)
                raise
        await pipe.write(keys.sealer.seal(verdict))
        if entry.session.closed is not None or entry.taken != number:
            pipe.close()  # ended, or overtaken by a later path, while the verdict was written
            return
        beside = bool(entry.carriers)
        self._attach(pipe, entry, number, keys, epoch, early)
        kind = "has another path" if beside else "resumed" if resumed else "up"
        self.book.came(entry.peer, host, clock())
        _log.info("link %s: %s from %s, %s", kind, self.book.shown(entry.peer), host, keys.cipher.name)

    def _attach(
        self, pipe: Pipe, entry: PeerSession, number: int, keys: CarrierKeys, epoch: int, early: int
    ) -> None:
        """Start the carrier of a path."""
        if entry.expiry is not None:
            entry.expiry.cancel()
        try:
            path = entry.session.attach(number, keys, clock(), epoch=epoch, early=early)
            carrier = pipe.carrier(path, entry)
            entry.attach(carrier)
        except Exception:
            self.sessions.end(entry, CloseReason.RESUME)
            raise
        try:
            if self._settings.advertise is not None:
                path.announce(wire.encode_advertise(self._settings.advertise))
            if self._stopping:
                entry.ask_to_leave()
            carrier.start()
        except Exception as error:  # noqa: BLE001  nobody else would end the carrier
            carrier.crash(error)

    async def _redeem(self, secret: bytes, peer: PeerId) -> bool:
        """Whether the secret is good for this peer, which is on the list then, unless it has been revoked since."""
        async with self.list_turn:
            redeemed, name = await self._invites.redeem(secret, peer)
            if redeemed is Redeemed.NOW:
                self.book.replace({**self.book.listed, peer: name})
            return redeemed is not Redeemed.NOT

    def _refusal(self, peer: PeerId, resuming: PeerSession | None) -> CloseReason | None:
        if peer not in self.book.listed:
            return CloseReason.NOT_AUTHORIZED
        if self._stopping and resuming is None:
            return CloseReason.SHUTTING_DOWN
        attached = self.sessions.attached(peer, but=resuming)
        return CloseReason.LIMIT if attached >= self._settings.bounds.sessions_per_peer else None

    def _log_refusal(self, peer: PeerId, host: str, refusal: CloseReason, *, invited: bool) -> None:
        """Bounded, since anyone with the exit's id can make any number of identities."""
        if not self._refusals.allow(clock()):
            self._unlogged += 1
            return
        others, self._unlogged = self._unlogged, 0
        useless = invited and refusal is CloseReason.NOT_AUTHORIZED
        _log.warning(
            "refused %s from %s%s: %s%s",
            self.book.shown(peer),
            host,
            " with an invite that is invalid, used or expired" if useless else "",
            words_of(refusal),
            f" ({others} other refusals were not logged)" if others else "",
        )

    # --- status ----------------------------------------------------------------------------------------------------

    def work(self) -> list[Work]:
        """For the watchdog."""
        return [*self.listener.work(), self._thread.work()]

    def counts(self) -> tuple[int, int]:
        """How many sessions and targets there are."""
        return len(self.sessions), len(self._targets.relays)

    async def status(self) -> ExitStatus:
        """What `cryprq-proxy status` shows; a part of the sessions is read in each turn of the loop. Sessions that end
        meanwhile count once."""
        told: list[PeerSessionStatus] = []
        totals, lanes = self.sessions.totals.copy(), self.sessions.lanes
        for number, entry in enumerate(self.sessions, 1):
            told.append(entry.status(clock()))
            totals.add(entry.session)
            if not number % TOLD_AT_ONCE:
                await asyncio.sleep(0)
        await asyncio.sleep(0)
        peers = await self._told(self.book.first(self.sessions.counts()))
        return ExitStatus(
            peer_id=str(self._identity.peer_id),
            provider=self._provider.name,
            authorized=len(self.book.listed),
            targets=len(self._targets.relays),
            strangers=self.listener.strangers,
            handshakes=self.listener.handshakes,
            bytes=totals.bytes(),
            rotations=totals.rotations(),
            streams_total=self.sessions.streams_total,
            streams_refused=by_name(totals.refused),
            refused=by_name(self._refused) | self.listener.failed,
            names=self._targets.resolver.status(),
            lanes=None if lanes is None else lanes.status(),
            network=self._network.status(),
            sessions=tuple(told),
            peers=peers,
        )

    async def peers(self, start: int) -> PeersPage:
        """What was seen of the peers of the list from place `start` on."""
        page = self.book.page(start)
        after = start + len(page)
        return PeersPage(peers=await self._told(page), next=after if after < len(self.book.listed) else None)

    async def _told(self, peers: Iterable[PeerId]) -> tuple[PeerStatus, ...]:
        """A part of them in each turn of the loop."""
        told, epoch = [], time.time() - clock()
        for number, peer in enumerate(peers, 1):
            told.append(self.book.status(peer, self.sessions.of(peer), epoch))
            if number % TOLD_AT_ONCE == 0:
                await asyncio.sleep(0)
        return tuple(told)
