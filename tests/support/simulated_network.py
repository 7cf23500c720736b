"""Connections of the simulator, and who dials them.

A `Connection` is two wires with an End on each host. It begins with a handshake that is as long as a real one and as
simple as can be: one byte for each flight. `Network` dials, with the secrets by which paths join as the two roles do.
Connections break at both ends at once, at one before the other, or unnoticed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from cryprq_proxy.crypto.primitives import Cipher, Provider
from cryprq_proxy.session.path import MAX_EARLY
from cryprq_proxy.session.retention import SlotPool
from cryprq_proxy.session.rotation import Offload, inline
from cryprq_proxy.session.session import Session, SessionLimits
from cryprq_proxy.session.streams import Stream
from cryprq_proxy.session.wire import ACCEPT, encode_bare
from tests.support.links import ToyProvider
from tests.support.simulator import Broken, Clock, End, Host, Route, Wire, nothing

DIAL_SECONDS: Final = 10.0
"""After which a handshake is given up."""
LONGEST_PAUSE: Final = 1.0
MEMORY: Final = 64 << 20
"""The bound of each process, in bytes: of what is kept, and of windows."""


class Connection:
    """A path and its handshake: a byte for each flight. With `early` it is of the short pattern: the client sends
    records behind its second flight, and the exit's first record is the verdict. Else the exit's last flight is one."""

    def __init__(self, network: Network, number: int, route: Route, *, early: bool) -> None:
        self._network = network
        self.clock = network.clock
        self.number = number
        self.early = early
        self.up, self.down = Wire(network.clock, route), Wire(network.clock, route)
        self.client = End(network.client, self.up, self.down, self._client_ended)
        self.exit = End(network.exit, self.down, self.up, nothing)
        self.secret, self.joined = b"", 0
        """By which it joins, and its epoch."""
        self.established = False
        self.established_at = 0.0
        for wire in (self.up, self.down):
            wire.cut = self.reset
        self.up.deliver = lambda data: network.exit.do(lambda: self._flight_at_exit(data))
        self.down.deliver = lambda data: network.client.do(lambda: self._flight_at_client(data))
        self.up.put(b"1")
        self.clock.after(DIAL_SECONDS, self._too_late)

    def _too_late(self) -> None:
        if not self.established:
            self.reset()

    # --- handshake -------------------------------------------------------------------------------------------------

    def _flight_at_exit(self, data: bytes) -> None:
        if not data:
            self.exit.lose()
        elif not self.exit.open:
            self.down.put(b"")
        elif data[:1] == b"1":
            self.down.put(b"2")
        else:
            self._third_flight(data[1:])

    def _flight_at_client(self, data: bytes) -> None:
        network = self._network
        if not data or not self.client.open or network.client.session.closed is not None:
            self.client.close()
        elif data[:1] == b"2":
            rotation = network.client.session.rotation
            self.secret = rotation.known.resume_secrets[0]
            self.joined = rotation.known.resume_epoch(self.secret)
            self.up.put(b"3")
            if self.early:
                self._begin_client(admitted=self._admitted)
        else:
            self._begin_client()
            if not self.client.open:
                return
            self._admitted()
            if data[1:]:
                self.client.arrive(data[1:])

    def _third_flight(self, rest: bytes) -> None:
        network = self._network
        session = network.exit.session
        if session.closed is not None or not network.admits(self):
            self.exit.close()
            return
        keys = network.exit.keys(self.number)
        self.down.put(keys.sealer.seal(encode_bare(ACCEPT)) if self.early else b"4")
        self.up.deliver = lambda data: network.exit.do(lambda: self.exit.arrive(data))
        self.exit.attach(self.number, keys, self.joined, early=MAX_EARLY if self.early else None)
        if rest:
            self.exit.arrive(rest)

    def _begin_client(self, admitted: Callable[[], None] | None = None) -> None:
        network = self._network
        session = network.client.session
        if session.closed is not None or self.number <= session.last_path:
            self.client.close()  # it is over, or a later attempt was faster
            return
        self.down.deliver = lambda data: network.client.do(lambda: self.client.arrive(data))
        self.client.attach(self.number, network.client.keys(self.number), self.joined, admitted)

    def _admitted(self) -> None:
        self.established = True
        self.established_at = self.clock.now
        self._network.established(self)

    # --- faults ----------------------------------------------------------------------------------------------------

    def reset(self, client_after: float = 0.0, exit_after: float = 0.0) -> None:
        """What is on its way is lost; each end learns of it in its time, or never."""
        self.vanish()
        for end, seconds in ((self.client, client_after), (self.exit, exit_after)):
            if seconds <= 0:
                end.host.do(end.lose)
            elif seconds != float("inf"):
                self.clock.after(seconds, lambda end=end: end.host.do(end.lose))  # type: ignore[misc]

    def vanish(self) -> None:
        """Nobody learns of it."""
        self.up.kill()
        self.down.kill()

    def stop(self, *, up: bool = True, down: bool = True) -> None:
        if up:
            self.up.stop()
        if down:
            self.down.stop()

    def go_on(self) -> None:
        self.up.go_on()
        self.down.go_on()

    def change(self, **changes: Any) -> None:
        for wire in (self.up, self.down):
            wire.route = replace(wire.route, **changes)

    @property
    def alive(self) -> bool:
        return self.client.open or self.exit.open

    @property
    def works(self) -> bool:
        """Whether bytes come to the other end, in both directions."""
        return self.client.open and self.exit.open and not self.up.dead and not self.up.stopped

    def _client_ended(self) -> None:
        self._network.client_ended(self)


class Network:
    """Two hosts and the connections between them. It dials by itself while there are fewer than `wanted`."""

    def __init__(
        self,
        limits: SessionLimits,
        accept_stream: Callable[[Stream], None],
        *,
        route: Route | None = None,
        cipher: Cipher = Cipher.AES_256_GCM,
        provider: Provider | ToyProvider | None = None,
        offload: Offload = inline,
        exit_offload: Offload = inline,
        memory: int = MEMORY,
    ) -> None:
        self.clock = Clock()
        slots = SlotPool()
        shared: dict[str, Any] = {
            "limits": limits,
            "provider": provider or ToyProvider(),
            "cipher": cipher,
            "memory": memory,
        }
        self.client = Host(self.clock, dialler=True, slots=slots, offload=offload, **shared)
        self.exit = Host(
            self.clock,
            dialler=False,
            slots=slots,
            offload=exit_offload,
            accept_stream=accept_stream,
            **shared,
        )
        self.hosts = (self.client, self.exit)
        self.route = route or Route()
        self.connections: list[Connection] = []
        """All that are not at an end on both sides."""
        self.dialled = 0
        self.refused = 0
        """Tickets that the exit did not take."""
        self.wanted = 1
        self.pause = 0.02
        """Seconds between a loss and the next attempt, twice as long for each one that fails, up to LONGEST_PAUSE."""
        self.early: Callable[[], bool] = lambda: True
        self.routes: Callable[[], Route] = lambda: self.route
        self.on_connection: Callable[[Connection], None] = lambda connection: None
        self.on_established: Callable[[Connection], None] = lambda connection: None
        self._signed = False
        """The next attempt is of the full pattern."""
        self._dial_due = False
        self._failures = 0

    @property
    def sessions(self) -> tuple[Session, Session]:
        return self.client.session, self.exit.session

    def dial(self, route: Route | None = None, *, early: bool | None = None) -> Connection:
        """A path beside those that are there."""
        if early is None:
            early = self.early() and not self._signed
        connection = Connection(self, self.dialled, route or self.routes(), early=early)
        self.dialled += 1
        self.connections = [other for other in self.connections if other.alive]
        self.connections.append(connection)
        self.on_connection(connection)
        return connection

    def keep_up(self) -> None:
        """Dial as often as there are too few, in a moment."""
        if not self._dial_due and self.client.session.closed is None:
            self._dial_due = True
            pause = min(self.pause * 2**self._failures, LONGEST_PAUSE)
            self.clock.after(pause, lambda: self.client.do(self._redial))

    def _redial(self) -> None:
        self._dial_due = False
        if self.client.session.closed is None:
            living = [connection for connection in self.connections if connection.client.open]
            for _ in range(self.wanted - len(living)):
                self.dial()

    def client_ended(self, connection: Connection) -> None:
        if connection.early and not connection.established:
            self._signed = True
        lived = connection.established and self.clock.now - connection.established_at > LONGEST_PAUSE
        self._failures = 0 if lived else self._failures + 1
        self.keep_up()

    def established(self, connection: Connection) -> None:
        self._signed = False
        self.on_established(connection)

    def admits(self, connection: Connection) -> bool:
        """Whether the exit knows the secret by which a path joins, and its number is a new one. While the client has
        not gone on to another secret the exit must know it."""
        session = self.exit.session
        if connection.number <= session.last_path:
            return False
        if connection.secret in session.rotation.known.resume_secrets:
            return True
        if connection.secret == self.client.session.rotation.known.resume_secrets[0]:
            raise Broken(f"path {connection.number} has a ticket that the exit does not know")
        self.refused += 1
        return False
