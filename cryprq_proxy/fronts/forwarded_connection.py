"""An application's connection to a local forward, until the target of that is connected.

There is nothing to negotiate and no answer to give: the application takes itself for connected, as over a line of its
own, so a refusal is a reset. The rules decide about the target as about every other one of an application: what they
send past the exit or block would else depend on how a program here gets there, and `explain` would not tell.
"""

from __future__ import annotations

import socket

from ..address import Destination
from ..base.sockets import set_reset_on_close
from ..errors import StreamReason
from ..session.wire import StreamProtocol
from .socks_connection import FrontListener, SocksConnection


class ForwardedConnection(SocksConnection):
    """It begins where a SOCKS negotiation ends."""

    __slots__ = ()

    def __init__(self, listener: FrontListener, sock: socket.socket) -> None:
        super().__init__(listener, sock)
        self.negotiating = False

    def ask(self, target: Destination) -> None:
        self._listener.source.request(StreamProtocol.TCP, target, self, self._begin)

    def opened(self) -> None:
        stream = self._stream
        if stream is None:
            return
        self._stream = None
        self._let_go()
        self._listener.relay(self._sock, stream).start()

    def refused(self, reason: StreamReason) -> None:
        self._stream = None
        set_reset_on_close(self._sock)
        self.close()
