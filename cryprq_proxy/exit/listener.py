"""Strangers at the exit: accepting connections, bounding them, and the handshake up to the peer's proof of identity.

    accept -> bounds (in flight, per prefix) -> first flight opens? -> not replayed? -> second flight -> third flight
           -> `admit` (exit.py)

Strangers cost little and learn nothing: every step is bounded in number and time, and a connection that fails is closed
without a byte.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Final

from ..address import Destination
from ..base.accept_loop import Acceptor
from ..base.clock import clock
from ..base.sockets import prepare
from ..base.tasks import spawn
from ..carriers.admission import HANDSHAKE_TIMEOUT, frame_flight, read_flight
from ..carriers.pipe import Pipe, TcpPipe
from ..crypto.handshake import FIRST_SIZE, THIRD_SIZE, ExitHandshake
from ..crypto.identity import Identity
from ..crypto.payloads import Feature
from ..crypto.primitives import Provider
from ..errors import ConfigError, HandshakeError, PeerError
from .limits import PrefixLimiter, ReplayMemory
from .settings import ExitSettings

if TYPE_CHECKING:
    from .websocket_listener import WebEntrance

_log = logging.getLogger(__name__)

BACKLOG: Final = 256
SIGNATURES_WAITING: Final = 8
"""Handshakes that may be at the slow steps at once; more are closed."""

type Admit = Callable[[Pipe, str, ExitHandshake], Awaitable[None]]
"""Judges a peer that proved its identity; the text is its IP address. Raises PeerError."""


class HandshakeThread:
    """One thread for the slow computations, with a bound on those that wait for it."""

    def __init__(self) -> None:
        self.executor = ThreadPoolExecutor(1, "handshake")
        self._waiting = 0

    async def run[*Args, T](self, step: Callable[[*Args], T], *args: *Args) -> T:
        """The result of `step(*args)`. Raises what it raises, and HandshakeError when too many wait."""
        if self._waiting >= SIGNATURES_WAITING:
            raise HandshakeError("too many handshakes at once")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self.executor, step, *args)
        finally:
            self._waiting -= 1

    def close(self) -> None:
        self.executor.shutdown(wait=False, cancel_futures=True)


class ExitListener:
    """`bind`, `start`, then `stop_accepting` and `close`."""

    def __init__(
        self,
        identity: Identity,
        settings: ExitSettings,
        provider: Provider,
        thread: HandshakeThread,
        admit: Admit,
    ) -> None:
        self._identity = identity
        self._settings = settings
        self._provider = provider
        self._thread = thread
        self._admit = admit
        self._features = Feature(0)
        self._loop = asyncio.get_running_loop()
        self._acceptors: list[Acceptor] = []
        self._entrance: WebEntrance | None = None
        """What accepts WebSocket connections."""
        self._handshakes: set[asyncio.Task[None]] = set()
        per_minute = settings.bounds.handshakes_per_minute
        self._per_prefix = PrefixLimiter(rate=per_minute / 60, burst=per_minute)
        self._flights = ReplayMemory()
        self.failed: Counter[str] = Counter()
        """Connections that ended before their peer proved who it is, by cause."""

    @property
    def in_flight(self) -> int:
        """Connections between their acceptance and the verdict."""
        return len(self._handshakes)

    def bind(self) -> list[Destination]:
        """Take the addresses, and return them as bound, that for WebSocket last. Raises OSError, and ConfigError for a
        certificate; then no address is held."""
        websocket = self._settings.websocket
        try:
            addresses = [self._listen(address) for address in self._settings.listen]
            if websocket is not None:
                from .websocket_listener import WebEntrance  # aiohttp takes a third of a second to load

                self._entrance = WebEntrance(websocket, self.welcome, self._allow)
                addresses.append(self._listen(websocket.listen, self._entrance))
        except (OSError, ConfigError):
            self.stop_accepting()
            raise
        return addresses

    def _listen(self, address: Destination, entrance: WebEntrance | None = None) -> Destination:
        host, port = address
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.create_server((host, port), family=family, backlog=BACKLOG)
        self._acceptors.append(Acceptor(self._loop, sock, partial(self.accepted, entrance)))
        return Destination(*sock.getsockname()[:2])

    def start(self, features: Feature) -> None:
        """Accept connections on what `bind` took, and offer them `features`."""
        self._features = features
        for acceptor in self._acceptors:
            acceptor.start()

    def stop_accepting(self) -> None:
        """Close the listening sockets and end all handshakes; established links go on."""
        for acceptor in self._acceptors:
            acceptor.close()
        self._acceptors.clear()
        for task in self._handshakes:
            task.cancel()

    async def close(self) -> None:
        """Cut what is left of the HTTP connections."""
        if self._entrance is not None:
            await self._entrance.close()

    def accepted(self, entrance: WebEntrance | None, sock: socket.socket, host: str) -> None:
        free = len(self._handshakes) < self._settings.bounds.handshakes_in_flight
        # A client behind a reverse proxy is counted later, once the proxy has named its address.
        behind = entrance is not None and entrance.is_proxy(host)
        if not free or not (behind or self._allow(host)):
            self.failed["too_many"] += 1
            sock.close()
            return
        prepare(sock, host)
        work = self.welcome(TcpPipe(sock), host) if entrance is None else entrance.visit(sock, host)
        task = spawn(work, "handshake")
        self._handshakes.add(task)
        task.add_done_callback(self._handshakes.discard)

    def _allow(self, host: str) -> bool:
        """Whether one more handshake may come from `host`."""
        return self._per_prefix.allow(host, clock())

    async def welcome(self, pipe: Pipe, host: str) -> None:
        """One connection, from its first byte to its carrier or its end."""
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT):
                await self._admit(pipe, host, await self._identify(pipe))
        except TimeoutError:
            _log.debug("a handshake from %s was not finished in time", host)
            self.failed["too_slow"] += 1
            pipe.close()
        except PeerError as error:
            _log.debug("a handshake from %s failed: %s", host, error)
            self.failed["no_handshake"] += 1
            pipe.close()
        except BaseException:
            pipe.close()
            raise

    async def _identify(self, pipe: Pipe) -> ExitHandshake:
        """The three flights; afterwards the handshake has its result. Raises HandshakeError and CarrierError."""
        settings = self._settings
        handshake = ExitHandshake(self._identity, self._provider, psk=settings.psk, features=self._features)
        first = await read_flight(pipe, FIRST_SIZE)
        if self._provider.fast:
            handshake.read_first(first)
        else:
            await self._thread.run(handshake.read_first, first)
        if self._flights.seen(hashlib.sha256(first).digest(), clock()):
            raise HandshakeError("its first flight was replayed")
        await pipe.write(frame_flight(await self._thread.run(handshake.write_second)))
        third = await read_flight(pipe, THIRD_SIZE)
        await self._thread.run(handshake.read_third, third)
        return handshake
