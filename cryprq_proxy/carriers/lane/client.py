"""The client's side of the datagram lane: one connected socket, replaced when the network changes.

The socket has a port of its own and sends to the address and port number of the TCP carrier's peer. It is replaced when
the carrier's peer has another address, when its own address is no longer one of this host, and when the path is silent.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import closing
from math import inf
from typing import Final

from ...base.clock import clock
from ...crypto.primitives import Entropy, system_entropy
from ...errors import ConfigError
from .batch import Batch, SocketAddress, UdpOffload
from .carrier import MAX_PAYLOAD, LaneCarrier, LaneHandler
from .inbox import Inbox
from .train import Outlet
from .udp_socket import UdpSocket, error_name

REOPEN_SECONDS: Final = 1.0
"""Between two sockets of one client at least."""

_log = logging.getLogger(__name__)


class ClientLane(LaneCarrier):
    """The client's side of a lane. It has no socket until `move` is called."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        handler: LaneHandler,
        offload: UdpOffload,
        *,
        mark: int = 0,
        entropy: Entropy = system_entropy,
        clock: Callable[[], float] = clock,
    ) -> None:
        super().__init__(loop, handler, dialler=True, ceiling=MAX_PAYLOAD, entropy=entropy, clock=clock)
        self._offload = offload
        self._mark = mark
        self._exit: SocketAddress | None = None
        self._here: Outlet | None = None
        self._inbox: Inbox | None = None
        self._own = ""
        """The present socket's address, or that of the last one."""
        self._opened_at = -inf
        self._reopen_at = inf

    def move(self, exit: SocketAddress) -> None:
        """Use the address and port number to which the TCP carrier is connected now.

        A lane that is up and would send from the same local address as before stays as it is. Raises ConfigError if
        the link's packets must be marked and this process may not.
        """
        if exit == self._exit and self.up and self._stays():
            return
        self._exit = exit
        self._open(self._clock())

    def look_at_address(self) -> None:
        """The addresses of this machine have changed. If a new socket would have another one, have one at once: else a
        client with nothing to send would be found only after its next probe."""
        if not self._stays():
            self._reopen_at = self._clock()
            self._arm(self._reopen_at)

    def _stays(self) -> bool:
        """Whether a new socket would have the local address of the present one."""
        if self._exit is None or self._here is None:
            return False
        try:
            with closing(UdpSocket.connected(self._exit, self._offload, self._mark)) as other:
                return other.address[0] == self._here.socket.address[0]
        except OSError:
            return False

    def _open(self, now: float) -> None:
        """Replace the socket and start the path anew; without a route, try again later."""
        if self._exit is None or self._closed:
            return
        self._shut()
        self._opened_at = now
        try:
            sock = UdpSocket.connected(self._exit, self._offload, self._mark)
        except OSError as error:
            _log.debug("no socket for the datagram lane: %s", error_name(error))
            self._reopen_at = now + REOPEN_SECONDS
        else:
            self._reopen_at = inf
            self._here = Outlet(sock, None)
            self._inbox = Inbox(self._loop, sock, self._take, self._turn_ended)
            own = sock.address[0]
            if self.driver is not None and own != self._own:
                self.driver.moved(now)
            self._own = own
            self._started = False
            self._begin(now)
        self.after(now)

    def _shut(self) -> None:
        if self._here is not None:
            sock = self._here.socket
            self._offload = sock.offload  # what failed at run time stays off
            if self._inbox is not None:
                self._inbox.close()
            sock.close()
            self._here = None

    def _begin(self, now: float) -> None:
        if not self._started and self._here is not None and self.lane.ready:
            self._started = True
            self.path.restart(min(self._here.socket.mtu(), MAX_PAYLOAD), now)

    def _take(self, batch: Batch) -> None:
        if self._here is not None:
            self.receive(batch, self._here, self._clock())

    def _turn_ended(self, more: bool) -> None:
        self.after(self._clock(), more)

    def _outlet(self) -> Outlet | None:
        return self._here

    def _unreachable(self, now: float) -> None:
        """Close the socket and open another one soon. Meanwhile packets go over the carrier."""
        self._shut()
        self._reopen_at = max(now, self._opened_at + REOPEN_SECONDS)
        self._arm(now)

    def _fell(self, now: float) -> None:
        self._reopen_at = min(self._reopen_at, max(now, self._opened_at + REOPEN_SECONDS))

    def _deadline(self) -> float:
        if self._here is None:
            return min(self.lane.deadline(), self._reopen_at)
        return min(super()._deadline(), self._reopen_at)

    def _tick(self, now: float) -> None:
        if self._reopen_at <= now:
            try:
                self._open(now)
            except ConfigError as error:  # the right to mark packets is gone since the start
                _log.warning("there is no datagram lane any more: %s", error)
                self._reopen_at = inf
        super()._tick(now)

    def close(self) -> None:
        super().close()
        self._shut()
