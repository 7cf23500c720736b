"""The targets of an exit: each OPEN frame ends in a relay, or in a refusal with its reason.

outbound/dialer.py connects. Data that comes before the target is connected is kept; the stream's credit bounds it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from typing import Final

from ..base.tasks import spawn
from ..errors import StreamReason
from ..outbound.address_race import Cancellable
from ..outbound.backlog import Backlog
from ..outbound.dialer import connect_literal, connect_target
from ..outbound.relay import Relay
from ..outbound.relays import TARGETS, Relays
from ..outbound.resolving.name_server import NameServer
from ..outbound.resolving.resolver import Resolver, SystemResolver
from ..outbound.socket_group import SocketLoop
from ..session.retention import SlotPool
from ..session.streams import Stream, StreamHandler
from ..session.turns import TurnBudget
from .datagram_resolver import DatagramResolver, answering
from .descriptor_shares import Claim
from .egress_policy import EgressPolicy

DNS_PORT: Final = 53
RESOLVER_SECONDS: Final = 2.0
"""For all servers of the host together to take a connection: a client waits 3 s for the stream."""


class Targets:
    """Opens targets for the streams of all sessions of an exit. `timeout` is in seconds, as is `idle_timeout`, which
    outbound/relays.py explains."""

    def __init__(
        self,
        policy: EgressPolicy,
        resolver: SystemResolver,
        slots: SlotPool,
        timeout: float,
        idle_timeout: float = 0.0,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.policy = policy
        self.resolver = resolver
        self.slots = slots
        self.timeout = timeout
        self.relays: Relays[Relay] = Relays(self.loop, TARGETS, idle_timeout=idle_timeout)

    def take_timeouts(self, timeout: float, idle_timeout: float) -> None:
        """`timeout` for targets from now on, `idle_timeout` for all."""
        self.timeout = timeout
        self.relays.take_idle_timeout(idle_timeout)

    def open(
        self, stream: Stream, resolver: Resolver, sockets: SocketLoop, turn: TurnBudget, claim: Claim
    ) -> None:
        """Connect the target of a new stream, or refuse the stream. `resolver`, `sockets` and `turn` are those of its
        peer. `claim` is released with the socket."""
        PendingTarget(self, stream, sockets, claim).start(resolver, turn)

    def open_resolver(self, stream: Stream, sockets: SocketLoop, claim: Claim) -> None:
        """Connect the stream to this host's DNS server. No policy is asked, since the peer chooses no target."""
        PendingTarget(self, stream, sockets, claim).start_resolver()


class PendingTarget(StreamHandler):
    """Handler of a stream until its target is connected; then a Relay takes over."""

    __slots__ = ("_attempt", "_claim", "_early", "_eof", "_sockets", "_stream", "_targets")

    def __init__(self, targets: Targets, stream: Stream, sockets: SocketLoop, claim: Claim) -> None:
        self._targets = targets
        self._sockets = sockets
        self._stream = stream
        self._claim = claim
        self._early: Backlog | None = None
        self._eof = False
        self._attempt: Cancellable | None = None

    def start(self, resolver: Resolver, turn: TurnBudget) -> None:
        stream, targets = self._stream, self._targets
        stream.handler = self
        self._attempt = connect_target(
            self._sockets,
            stream.destination,
            targets.policy,
            resolver,
            self._connected,
            targets.timeout,
            turn,
            self._claim,
        )

    def start_resolver(self) -> None:
        self._stream.handler = self
        self._attempt = spawn(self._find_servers(), "servers of the host")

    async def _find_servers(self) -> None:
        servers = await self._targets.resolver.servers()
        self._try_servers(servers, servers, min(self._targets.timeout, RESOLVER_SECONDS / len(servers)))

    def _try_servers(self, servers: Sequence[str], all_: Sequence[str], seconds: float) -> None:
        """Connect to the first of `servers` that takes the connection within `seconds`."""
        self._attempt = None

        def done(sock: socket.socket | None, reason: StreamReason | None) -> None:
            if sock is None and servers[1:]:
                self._try_servers(servers[1:], all_, seconds)
            elif sock is None:
                self._attempt = spawn(self._ask_by_datagrams(all_, reason), "resolver over UDP")
            else:
                self._connected(sock, reason)

        attempt = connect_literal(self._sockets, servers[0], DNS_PORT, done, seconds)
        if self._attempt is None:  # else it has failed already, and that is the next server's
            self._attempt = attempt

    async def _ask_by_datagrams(self, servers: Sequence[str], reason: StreamReason | None) -> None:
        good = await answering([NameServer(server, DNS_PORT) for server in servers])
        self._attempt = None
        if not good:
            self._connected(None, reason)
            return
        resolver = DatagramResolver(self._stream, good, self._claim)
        self._stream.accept()
        early, self._early = self._early, None
        while early:
            resolver.data_received(memoryview(early.pop()))
        if self._eof:
            resolver.eof_received()

    def _connected(self, sock: socket.socket | None, reason: StreamReason | None) -> None:
        stream = self._stream
        if sock is None:
            self._claim.release()
            stream.refuse(reason or StreamReason.GENERAL)
            return
        targets = self._targets
        relay = Relay(self._sockets, sock, stream, targets.slots, self._ended)
        targets.relays.add(relay)
        stream.accept()
        # The relay keeps this object: a deque for each of its streams would be most of what an idle one takes.
        early, self._early = self._early, None
        relay.start(received=early, ended=self._eof)

    def _ended(self, relay: Relay) -> None:
        self._targets.relays.discard(relay)
        self._claim.release()

    # --- handler ---------------------------------------------------------------------------------------------------

    def data_received(self, data: memoryview) -> None:
        if self._early is None:
            self._early = Backlog()
        self._early.append(data)

    def eof_received(self) -> None:
        self._eof = True

    def reset(self, reason: StreamReason) -> None:
        if self._attempt is not None:
            self._attempt.cancel()
        self._claim.release()
