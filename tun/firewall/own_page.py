"""Our own page (cryprq_proxy/fronts/own_page.py) in system-wide mode: for minutes, when a person has asked for it.

    open    an address of loopback, drawn each time -> a socket that listens there -> the filter sends its port 80 to
            that socket -> the forwarder answers for the name
    close   in reverse, OPEN_SECONDS later

All the rest of the time the name does not exist, like every name below "test". A page of the web learns by WebRTC
whether a name has an address: the browser says of a STUN server that its name was not found, or else nothing. No answer
to a request for the page can hide that. So a page can tell that we are here only in minutes that a person has chosen.

An address of loopback leaves no machine, whatever the filter says, and needs no link. Nothing else has one beyond
127.0.0.0/16, and the rest is large: who does not ask for the name tries 16 million.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Final

from cryprq_proxy.address import Destination
from cryprq_proxy.base.accept_loop import Acceptor
from cryprq_proxy.base.sockets import prepare_listener
from cryprq_proxy.base.tasks import spawn
from cryprq_proxy.errors import CryprqError, reason_of

from ..dns.forwarder import Forwarder
from .filter_settings import PagePlace
from .kill_switch import KillSwitch

_log = logging.getLogger(__name__)

OPEN_SECONDS: Final = 300.0
_FIRST: Final = int(IPv4Address("127.1.0.0"))
_ADDRESSES: Final = int(IPv4Address("127.255.255.0")) - _FIRST

type ServePage = Callable[[socket.socket, str], object]
"""Takes over a connection to the page, and the address of its other end."""


class OwnPage:
    """`open`, as often as asked for; `close` in the end."""

    def __init__(self, forwarder: Forwarder, kill_switch: KillSwitch) -> None:
        self._forwarder = forwarder
        self._kill_switch = kill_switch
        self._loop = asyncio.get_running_loop()
        self._changing = asyncio.Lock()
        self._acceptor: Acceptor | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def open(self, serve: ServePage) -> int:
        """Let the page be there for OPEN_SECONDS from now, and return them. Raises CryprqError."""
        async with self._changing:
            if self._acceptor is None:
                await self._begin(serve)
            self._stop_timer()
            self._timer = self._loop.call_later(
                OPEN_SECONDS, lambda: spawn(self.close(), "end of our own page")
            )
        return int(OPEN_SECONDS)

    async def _begin(self, serve: ServePage) -> None:
        address = IPv4Address(_FIRST + secrets.randbelow(_ADDRESSES))
        try:
            listener = socket.create_server(Destination(str(address), 0))
        except OSError as error:
            raise CryprqError(f"the page cannot be served on {address}: {reason_of(error)}") from None
        prepare_listener(listener, str(address))
        acceptor = Acceptor(self._loop, listener, serve)
        try:
            await self._kill_switch.follow_page(PagePlace(address, listener.getsockname()[1]))
        except BaseException:
            acceptor.close()
            raise
        acceptor.start()
        self._acceptor = acceptor
        self._forwarder.answer_own_name(address)

    async def close(self) -> None:
        """No effect where it is not open. Connections that were accepted go on."""
        async with self._changing:
            self._stop_timer()
            acceptor, self._acceptor = self._acceptor, None
            if acceptor is None:
                return
            self._forwarder.answer_own_name(None)
            acceptor.close()
            try:
                await self._kill_switch.follow_page(None)
            except CryprqError as error:
                _log.warning(
                    "the packet filter still has a rule for our own page, which is closed: %s", error
                )

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
