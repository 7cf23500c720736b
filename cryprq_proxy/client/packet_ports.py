"""Where a client's packets come from and go to: the network interface of system-wide mode, or nowhere.

Each exit has a port to the interface, and one port is active. What the active exit's Client tells passes through. Of
the others only the state is kept. The interface is told it when they become active, so it moves to another exit by the
same calls by which it follows a link that comes back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from ..address import Destination
from ..lane.slices import Run
from ..rules.ranges import IPNetwork
from .requests import NO_OBSERVER, ClientObserver


class ClientNetwork(Protocol):
    """A network interface, as a client sees it."""

    def received(self, buffer: memoryview, start: int, end: int, run: Run) -> None:
        """A packet came from the exit; see lane/slices.py."""

    def addressed(self, ipv4: bytes, ipv6: bytes) -> None:
        """The exit hands out these addresses: 4 and 16 bytes, zeros for a family that it does not carry."""

    def collisions(self, ipv4: bytes, ipv6: bytes) -> Sequence[IPNetwork]:
        """The networks of this machine that hold one of these addresses: the exit is asked for others."""

    def lets_out(self, address: Destination) -> bool:
        """Whether the link's own connections to it get out of this machine."""

    def link_changed(self, up: bool) -> None:
        """The link has come, or gone."""

    def lane_changed(self) -> None:
        """The datagram lane has come or gone, or its size is another (`Client.lane_size`)."""


class NoNetwork:
    """The ClientNetwork of a client that carries no packets."""

    def received(self, buffer: memoryview, start: int, end: int, run: Run) -> None: ...
    def addressed(self, ipv4: bytes, ipv6: bytes) -> None: ...

    def collisions(self, ipv4: bytes, ipv6: bytes) -> Sequence[IPNetwork]:
        return ()

    def lets_out(self, address: Destination) -> bool:
        return True

    def link_changed(self, up: bool) -> None: ...
    def lane_changed(self) -> None: ...


NO_NETWORK: Final = NoNetwork()


class ExitPort:
    """The ClientNetwork of one exit. `observer` is told when `usable` may have changed. `alone`: there is no other
    exit, so the interface hears also that this one carries nothing."""

    def __init__(self, network: ClientNetwork) -> None:
        self._network = network
        self._active = False
        self._up = False
        self.alone = False
        self._addresses: tuple[bytes, bytes] | None = None
        self.observer: ClientObserver = NO_OBSERVER

    @property
    def complaint(self) -> str | None:
        """What is wrong with an exit that says it carries nothing."""
        if self._addresses is None or self.usable:
            return None
        return "the exit carries no packets at the moment; its log says why"

    @property
    def usable(self) -> bool:
        """Whether the exit has handed out an address: without one it carries no packets."""
        return self._addresses is not None and any(self._addresses[0])

    def activate(self) -> None:
        """This exit's packets are those of the interface from now on."""
        self._active = True
        if self._addresses is not None and (self.alone or any(self._addresses[0])):
            self._network.addressed(*self._addresses)
        self._network.link_changed(self._up)
        self._network.lane_changed()

    def deactivate(self) -> None:
        """Another exit's are."""
        self._active = False

    def received(self, buffer: memoryview, start: int, end: int, run: Run) -> None:
        if self._active:
            self._network.received(buffer, start, end, run)

    def addressed(self, ipv4: bytes, ipv6: bytes) -> None:
        """None at all are kept from the interface where another exit's will follow, or its own once it has some
        again."""
        self._addresses = ipv4, ipv6
        if self._active and (self.alone or any(ipv4)):
            self._network.addressed(ipv4, ipv6)
        self.observer.changed()

    def collisions(self, ipv4: bytes, ipv6: bytes) -> Sequence[IPNetwork]:
        return self._network.collisions(ipv4, ipv6)

    def lets_out(self, address: Destination) -> bool:
        return self._network.lets_out(address)

    def link_changed(self, up: bool) -> None:
        self._up = up
        if self._active:
            self._network.link_changed(up)

    def lane_changed(self) -> None:
        if self._active:
            self._network.lane_changed()
