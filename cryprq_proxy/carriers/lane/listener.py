"""The datagram lanes of an exit: one UDP socket per listening address, for all sessions.

    datagram -> index (5 bytes) -> the session's lane -> its handler

Each lane draws the indices under which it receives, one per epoch, and one table here has them all. They end with the
tag of this process, by which the kernel tells its datagrams from those of a successor (shared_port.py). A datagram
without a known index is counted and dropped: strangers get no answer, so that a port with a lane looks like one
without. A datagram with a known index goes to its lane, which answers only what it can open.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from functools import partial
from socket import AF_INET6
from typing import Final

from ...base.clock import clock
from ...crypto.primitives import Entropy, system_entropy
from ...errors import ConfigError, reason_of
from ...lane.layout import EXPRESS_KIND, KIND, OVERHEAD
from ...status import LaneSocketStatus, LanesStatus
from .batch import Batch, SocketAddress, UdpOffload, UdpPeer
from .carrier import LaneCarrier, LaneHandler
from .inbox import Inbox
from .shared_port import new_tag, tagged
from .train import Outlet
from .udp_socket import ETHERNET_MTU, HEADERS, UdpSocket

ETHERNET_PAYLOAD: Final = ETHERNET_MTU - HEADERS[AF_INET6]
"""Bytes of a UDP payload that fits an Ethernet in either family."""

_LEAST: Final = OVERHEAD + 1


class ExitLane(LaneCarrier):
    """The exit's side of a lane; made by LaneListener."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        handler: LaneHandler,
        lanes: dict[int, ExitLane],
        *,
        ceiling: int,
        entropy: Entropy,
        tag: int,
        clock: Callable[[], float],
    ) -> None:
        super().__init__(
            loop,
            handler,
            dialler=False,
            ceiling=ceiling,
            taken=lanes,
            entropy=entropy,
            indices=tagged(entropy, tag),
            clock=clock,
        )
        self._lanes = lanes

    def _outlet(self) -> Outlet | None:
        address = self.path.address
        return address if isinstance(address, Outlet) and not self._closed else None

    def _register(self, index: int) -> None:
        self._lanes[index] = self

    def _unregister(self, index: int) -> None:
        self._lanes.pop(index, None)


class LaneListener:
    """The exit's sockets, for all sessions. Close it after the lanes.

    `addresses` are those on which the exit listens for TCP. Raises ConfigError if one of them is not available.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        addresses: Iterable[SocketAddress],
        offload: UdpOffload,
        *,
        mark: int = 0,
        clock: Callable[[], float] = clock,
    ) -> None:
        self._loop = loop
        self._offload = offload
        self._mark = mark
        self._tag = new_tag()
        self._clock = clock
        self._lanes: dict[int, ExitLane] = {}
        self._sockets: list[UdpSocket] = []
        self._inboxes: list[Inbox] = []
        self._last: ExitLane | None = None
        self.strangers = 0
        """Datagrams of no session: too short, of another kind, or with an index that is not in use."""
        for where in addresses:
            try:
                sock = UdpSocket(where, offload, mark, self._tag)
            except OSError as error:
                self.close()
                raise ConfigError(
                    f"the datagram lane cannot listen on UDP {UdpPeer(where)}"
                    f" ({reason_of(error)}); free the port or choose another one to listen on"
                ) from None
            except ConfigError:
                self.close()
                raise
            self._sockets.append(sock)
            self._inboxes.append(Inbox(loop, sock, partial(self._take, sock), self._turn_ended))

    def carrier(
        self, handler: LaneHandler, client: SocketAddress | None = None, entropy: Entropy = system_entropy
    ) -> LaneCarrier:
        """The lane of a new session. `client` is the address of its TCP carrier's peer: the device on the route there
        bounds the size of datagrams. Without it, an Ethernet is assumed."""
        return ExitLane(
            self._loop,
            handler,
            self._lanes,
            ceiling=self._ceiling(client),
            entropy=entropy,
            tag=self._tag,
            clock=self._clock,
        )

    def _ceiling(self, client: SocketAddress | None) -> int:
        """The largest UDP payload that the device on the route to `client` takes, in bytes."""
        if client is None:
            return ETHERNET_PAYLOAD
        try:
            # Nothing is sent: connecting makes the kernel choose the route.
            with closing(UdpSocket.connected(client, self._offload, self._mark)) as sock:
                return sock.mtu()
        except OSError:
            return ETHERNET_PAYLOAD

    @property
    def addresses(self) -> Sequence[SocketAddress]:
        """Where the sockets are bound."""
        return [sock.address for sock in self._sockets]

    @property
    def shared(self) -> bool:
        """Whether another exit may have the same ports at the same time."""
        return all(sock.shared for sock in self._sockets)

    def status(self) -> LanesStatus:
        return LanesStatus(
            sockets=tuple(
                LaneSocketStatus(address=str(UdpPeer(sock.address)), offload=sock.offload.status())
                for sock in self._sockets
            ),
            strangers=self.strangers,
        )

    def _take(self, sock: UdpSocket, batch: Batch) -> None:
        lane = self._owner(batch)
        if lane is None:
            self.strangers += -(-batch.size // batch.segment)
            return
        if lane is not self._last:
            self._turn_ended(False)
            self._last = lane
        lane.receive(batch, Outlet(sock, batch.peer), self._clock())

    def _turn_ended(self, more: bool) -> None:
        if self._last is not None:
            self._last.after(self._clock(), more)
            if not more:
                self._last = None

    def _owner(self, batch: Batch) -> ExitLane | None:
        """The lane of a batch: that of the first index in it that is in use.

        A forger of a client's address can bring a datagram into a batch, in front of the client's. The client's must
        still reach their lane, which drops the forged one.
        """
        data, size, segment = batch[:3]
        if segment >= _LEAST:
            lanes = self._lanes
            for start in range(0, size - 4, segment):
                if data[start] in (KIND, EXPRESS_KIND):
                    lane = lanes.get(int.from_bytes(data[start + 1 : start + 5]))
                    if lane is not None:
                        return lane
        return None

    def close(self) -> None:
        for inbox in self._inboxes:
            inbox.close()
        for sock in self._sockets:
            sock.close()
        self._inboxes.clear()
        self._sockets.clear()
