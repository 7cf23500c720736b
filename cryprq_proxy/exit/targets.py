"""At the exit: from an OPEN frame to a relay, or to a refusal with the precise reason.

A literal address is judged and connected by callbacks, without a task: this is the way of every new connection whose
name the client's system has resolved, and of every benchmark. A name takes a task, which resolves and races.
Data that comes before the target is connected is kept; the stream's window bounds it.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Final

from ..address import Destination
from ..base.tasks import spawn
from ..errors import StreamReason, StreamRefused
from ..outbound.dialer import Cancellable, connect_literal, dial
from ..outbound.relay import Relay
from ..outbound.resolver import Resolver, name_servers
from ..session.sendlog import SlotPool
from ..session.streams import Stream, StreamHandler
from .egress import EgressPolicy

DNS_PORT: Final = 53


class Targets:
    """Opens targets for the streams of all sessions of an exit. `timeout` is in seconds."""

    def __init__(self, policy: EgressPolicy, resolver: Resolver, slots: SlotPool, timeout: float) -> None:
        self.loop = asyncio.get_running_loop()
        self.policy = policy
        self.resolver = resolver
        self.slots = slots
        self.timeout = timeout
        self.relays: set[Relay] = set()

    def open(self, stream: Stream) -> None:
        """Connect a stream that was just opened, or refuse it."""
        Opening(self, stream).start()

    def open_resolver(self, stream: Stream) -> None:
        """Connect it to this host's own DNS server. No policy is asked: the peer chooses nothing here."""
        Opening(self, stream).start_resolver()


class Opening(StreamHandler):
    """Handler of a stream until its target is connected; then a Relay takes over."""

    __slots__ = ("_attempt", "_early", "_eof", "_stream", "_targets", "_task")

    def __init__(self, targets: Targets, stream: Stream) -> None:
        self._targets = targets
        self._stream = stream
        self._early: list[bytes] = []
        self._eof = False
        self._attempt: Cancellable | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._stream.handler = self
        targets = self._targets
        destination = self._stream.destination
        if not destination.is_ip:
            self._task = spawn(self._dial(destination), "dial")
        elif not targets.policy.check_address(destination.host, destination.port):
            self._stream.refuse(StreamReason.NOT_ALLOWED)
        else:
            self._attempt = connect_literal(
                targets.loop, destination.host, destination.port, self._connected, targets.timeout
            )

    async def _dial(self, destination: Destination) -> None:
        targets = self._targets
        try:
            sock = await dial(destination, targets.policy, resolver=targets.resolver, timeout=targets.timeout)
        except StreamRefused as refusal:
            self._connected(None, refusal.reason)
        except Exception:
            self._connected(
                None, StreamReason.GENERAL
            )  # the application is not to wait for ever on a bug of ours
            raise
        else:
            self._connected(sock, None)

    def start_resolver(self) -> None:
        self._stream.handler = self
        self._try_servers(name_servers())

    def _try_servers(self, servers: list[str]) -> None:
        targets = self._targets
        self._attempt = None

        def done(sock: socket.socket | None, reason: StreamReason | None) -> None:
            if sock is None and servers[1:]:
                self._try_servers(servers[1:])
            else:
                self._connected(sock, reason)

        attempt = connect_literal(targets.loop, servers[0], DNS_PORT, done, targets.timeout)
        if self._attempt is None:  # else it has failed already, and that is the next server's
            self._attempt = attempt

    def _connected(self, sock: socket.socket | None, reason: StreamReason | None) -> None:
        stream = self._stream
        if sock is None:
            stream.refuse(reason or StreamReason.GENERAL)
            return
        targets = self._targets
        relay = Relay(targets.loop, sock, stream, targets.slots, targets.relays.discard)
        targets.relays.add(relay)
        stream.accept()
        relay.start()
        for data in self._early:
            relay.data_received(data)
        if self._eof:
            relay.eof_received()

    # --- handler ---------------------------------------------------------------------------------------------------

    def data_received(self, data: memoryview) -> None:
        self._early.append(bytes(data))

    def eof_received(self) -> None:
        self._eof = True

    def reset(self, reason: StreamReason) -> None:
        if self._attempt is not None:
            self._attempt.cancel()
        if self._task is not None:
            self._task.cancel()
