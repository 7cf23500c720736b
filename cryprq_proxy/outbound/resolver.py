"""Names to addresses, at the exit: the host's resolver on threads, with a short-lived cache."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final, Protocol

from ..base.resolv_conf import nameservers
from ..errors import StreamReason, StreamRefused

_log = logging.getLogger(__name__)

RESOLVER_THREADS: Final = 64
RESOLVER_WAITING: Final = 256
"""Names that may wait for a thread; more are refused, since the answers would come too late."""
CACHE_SIZE: Final = 4096
"""Names remembered."""
CACHE_SECONDS: Final = 30.0
MAX_SERVERS: Final = 3
"""The C library uses no more."""

type LookupResult = tuple[str, ...] | StreamReason
"""The addresses of a name: at least one literal, or the reason for none."""

FAILURE_SECONDS: Final[dict[StreamReason, float]] = {
    StreamReason.NAME_NOT_FOUND: 5.0,
    StreamReason.NAME_FAILED: 1.0,  # the least of RFC 9520 section 3.2
}

RESOLVE_REASONS: Final[dict[int, StreamReason]] = {
    socket.EAI_NONAME: StreamReason.NAME_NOT_FOUND,
    socket.EAI_NODATA: StreamReason.NAME_NOT_FOUND,
    socket.EAI_ADDRFAMILY: StreamReason.NAME_NOT_FOUND,
}
"""All other errors mean that there was no answer: NAME_FAILED."""


def name_servers(file: Path = Path("/etc/resolv.conf")) -> list[str]:
    """The addresses of the host's DNS servers, the first MAX_SERVERS of resolv.conf(5), else this host itself."""
    try:
        servers = nameservers(file.read_bytes())
    except OSError:
        servers = ()
    return list(servers[:MAX_SERVERS]) or ["127.0.0.1"]


class Resolver(Protocol):
    async def resolve(self, name: str) -> Sequence[str]:
        """The IP literals of `name`, at least one, the best of its family first.

        Raises `StreamRefused` with NAME_NOT_FOUND, NAME_FAILED or SHUTTING_DOWN.
        """


def look_up(name: str) -> LookupResult:
    """Ask the C library; blocks. The addresses are in the order of RFC 6724."""
    try:
        # As bytes: the idna codec would convert a str, but the name has A-labels already.
        found = socket.getaddrinfo(name.encode("ascii"), None, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        return RESOLVE_REASONS.get(error.errno or 0, StreamReason.NAME_FAILED)
    except OSError:
        return StreamReason.NAME_FAILED
    except ValueError:  # not ASCII, or a null byte
        return StreamReason.NAME_NOT_FOUND
    return tuple(dict.fromkeys(str(entry[4][0]) for entry in found)) or StreamReason.NAME_NOT_FOUND


class SystemResolver:
    """The host's resolver (hosts file, DNS and others, as nsswitch says) on threads, with a short-lived cache.

    At most `threads` names are looked up at once, and `waiting` more may wait. A second question for a name
    waits for the answer to the first one. `now` is in seconds; `lookup` runs on a thread and must not raise.
    """

    def __init__(
        self,
        *,
        threads: int = RESOLVER_THREADS,
        waiting: int = RESOLVER_WAITING,
        cache_size: int = CACHE_SIZE,
        now: Callable[[], float] = time.monotonic,
        lookup: Callable[[str], LookupResult] = look_up,
    ) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="resolver")
        self._most_pending = threads + waiting
        self._pending: dict[str, asyncio.Future[LookupResult]] = {}
        self._cache: OrderedDict[str, tuple[float, LookupResult]] = OrderedDict()
        self._cache_size = cache_size
        self._now = now
        self._lookup = lookup
        self._closed = False

    async def resolve(self, name: str) -> Sequence[str]:
        """See `Resolver`. A cancellation does not affect others that wait for the same name."""
        expiry, answer = self._cache.get(name, (0.0, StreamReason.GENERAL))
        if answer is StreamReason.GENERAL or expiry <= self._now():
            answer = await asyncio.shield(self._pending.get(name) or self._ask(name))
        if isinstance(answer, StreamReason):
            raise StreamRefused(answer)
        return answer

    def close(self) -> None:
        """Refuse all names from now on, also those that wait for a thread."""
        self._closed = True
        self._cache.clear()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _ask(self, name: str) -> asyncio.Future[LookupResult]:
        if self._closed:
            raise StreamRefused(StreamReason.SHUTTING_DOWN)
        if len(self._pending) >= self._most_pending:
            raise StreamRefused(StreamReason.NAME_FAILED)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[LookupResult] = loop.create_future()
        self._pending[name] = answer
        loop.run_in_executor(self._pool, self._lookup, name).add_done_callback(partial(self._learn, name))
        return answer

    def _learn(self, name: str, asked: asyncio.Future[LookupResult]) -> None:
        answer: LookupResult
        if asked.cancelled():
            answer = StreamReason.SHUTTING_DOWN
        elif error := asked.exception():
            _log.error("the resolver failed unexpectedly", exc_info=error)
            answer = StreamReason.NAME_FAILED
        else:
            answer = asked.result()
        if not self._closed:
            seconds = FAILURE_SECONDS[answer] if isinstance(answer, StreamReason) else CACHE_SECONDS
            self._cache[name] = self._now() + seconds, answer
            self._cache.move_to_end(name)
            if len(self._cache) > self._cache_size:
                self._cache.popitem(last=False)
        self._pending.pop(name).set_result(answer)
