"""Names to addresses for all askers of one process: a short-lived cache, and one look-up for many equal questions.

    resolve -> the cache -> a look-up that runs already -> a slot (fair_slots.py) -> a look-up of its own

An asker is a peer at the exit. While it waits for a slot it waits alone: a name that another asker has in its queue
gets no place there. A look-up for which nobody waits any more is cancelled.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, NamedTuple, Protocol

from ...base.tasks import spawn
from ...errors import StreamReason, StreamRefused
from ...status import NamesStatus
from .asker_queues import AskerQueues
from .c_library import LibraryNames
from .dns_names import DnsNames
from .host_configuration import ConfigurationReader, described
from .outcome import LookupResult, NameSource

WOKEN: Final = 16
"""Of those that wait for one name, so many go on in one turn of the loop."""
CACHE_SIZE: Final = 4096
"""Names remembered."""
LEAST_SECONDS: Final = 1.0
MOST_SECONDS: Final = 30.0
"""How long addresses are remembered: by their TTL, within these bounds."""

FAILURE_SECONDS: Final[dict[StreamReason, float]] = {
    StreamReason.NAME_NOT_FOUND: 5.0,
    StreamReason.NAME_FAILED: 1.0,  # the least of RFC 9520 section 3.2
    StreamReason.NAME_TIMED_OUT: 1.0,
}
"""How long a failure is remembered; one of this machine is not."""


class Resolver(Protocol):
    async def resolve(self, name: str) -> Sequence[str]:
        """The IP literals of `name`, at least one, the best of its family first.

        Raises `StreamRefused` with NAME_NOT_FOUND, NAME_FAILED, NAME_TIMED_OUT, EXHAUSTED, LIMIT or SHUTTING_DOWN.
        """

    def remembered(self, name: str) -> Sequence[str] | None:
        """The addresses of `name` that are in memory, none if it is known to have none; None: `resolve` it."""


class ResolverOfAsker(NamedTuple):
    """The Resolver of one asker."""

    shared: SystemResolver
    asker: str

    async def resolve(self, name: str) -> Sequence[str]:
        """See Resolver. A cancellation does not affect others that wait for the same name."""
        return await self.shared.resolve(name, self.asker)

    def remembered(self, name: str) -> Sequence[str] | None:
        """See Resolver."""
        return self.shared.remembered(name)


class SystemResolver:
    """The names as this host knows them. `now` is in seconds.

    The host's DNS servers are asked, or the C library where the host's files ask for more than files and DNS.
    """

    def __init__(
        self,
        *,
        dns: NameSource | None = None,
        library: NameSource | None = None,
        reader: ConfigurationReader | None = None,
        cache_size: int = CACHE_SIZE,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.reader = ConfigurationReader() if reader is None else reader
        self._dns: NameSource = DnsNames(self.reader) if dns is None else dns
        self._library: NameSource = LibraryNames() if library is None else library
        self._running: dict[str, _LookUp] = {}
        self._cache: OrderedDict[str, tuple[float, LookupResult]] = OrderedDict()
        self._cache_size = cache_size
        self._now = now
        self._closed = False

    def of(self, asker: str) -> Resolver:
        """The resolver whose questions count as those of `asker`."""
        return ResolverOfAsker(self, asker)

    async def servers(self) -> Sequence[str]:
        """The addresses of the host's DNS servers, the best first; this host itself if its files name none."""
        return (await self.reader.current()).servers

    async def resolve(self, name: str, asker: str) -> Sequence[str]:
        """See Resolver."""
        answer = self._remembered(name)
        if answer is None:
            running = self._running.get(name) or await self._turn(name, asker)
            answer = await self._answer_of(running, asker) if isinstance(running, _LookUp) else running
        if isinstance(answer, StreamReason):
            raise StreamRefused(answer)
        return answer.addresses

    async def resolve_anew(self, name: str, asker: str) -> Sequence[str]:
        """As `resolve`, whatever is in memory."""
        self._cache.pop(name, None)
        return await self.resolve(name, asker)

    def remembered(self, name: str) -> Sequence[str] | None:
        """See Resolver."""
        answer = self._remembered(name)
        return () if isinstance(answer, StreamReason) else answer and answer.addresses

    def status(self) -> NamesStatus:
        both = (self._dns.slots, self._library.slots)
        return NamesStatus(
            by=described(self.reader.latest),
            running=sum(slots.in_use for slots in both),
            waiting=sum(slots.waiting for slots in both),
            cached=len(self._cache),
        )

    def close(self) -> None:
        """Refuse all names from now on, also those that wait or are being looked up."""
        self._closed = True
        self._cache.clear()
        self._dns.close()
        self._library.close()
        self.reader.close()
        for running in list(self._running.values()):
            if running.source.cancellable:
                running.task.cancel()

    async def _turn(self, name: str, asker: str) -> _LookUp | LookupResult:
        """Wait for a slot, and use it for `name` unless another asker has done so in the meantime."""
        if self._closed:
            raise StreamRefused(StreamReason.SHUTTING_DOWN)
        source = self._library if (await self.reader.current()).library else self._dns
        await source.slots.take(asker)
        found: _LookUp | LookupResult | None = self._remembered(name)
        if found is None:
            found = self._running.get(name)
        if found is None:
            return self._start(name, source, asker)
        source.slots.give_back(asker)
        return found

    def _start(self, name: str, source: NameSource, asker: str) -> _LookUp:
        running = self._running[name] = _LookUp(name, source, asker)
        running.task.add_done_callback(partial(self._ended, running))
        return running

    async def _answer_of(self, running: _LookUp, asker: str) -> LookupResult:
        waiter = running.join(asker)
        try:
            return await waiter
        finally:
            running.leave(asker, waiter)
            if running.is_unwanted() and running.source.cancellable:
                # Nobody may join it from now on.
                self._forget(running)
                running.task.cancel()

    def _ended(self, running: _LookUp, task: asyncio.Task[LookupResult]) -> None:
        running.source.slots.give_back(running.asker)
        self._forget(running)
        if task.cancelled():
            running.tell(StreamReason.SHUTTING_DOWN)
            return
        # An exception is a bug, and base/tasks.py has logged it.
        answer = StreamReason.NAME_FAILED if task.exception() else task.result()
        self._remember(running.name, answer)
        running.tell(answer)

    def _forget(self, running: _LookUp) -> None:
        if self._running.get(running.name) is running:
            del self._running[running.name]

    def _remembered(self, name: str) -> LookupResult | None:
        expiry, answer = self._cache.get(name, (0.0, None))
        return answer if expiry > self._now() else None

    def _remember(self, name: str, answer: LookupResult) -> None:
        seconds = (
            FAILURE_SECONDS.get(answer, 0.0)
            if isinstance(answer, StreamReason)
            else min(max(answer.seconds, LEAST_SECONDS), MOST_SECONDS)
        )
        if self._closed or not seconds:
            return
        self._cache[name] = self._now() + seconds, answer
        self._cache.move_to_end(name)
        if len(self._cache) > self._cache_size:
            self._cache.popitem(last=False)


class _LookUp:
    """A look-up that runs. It holds a slot of `asker`, who may not be the only one that waits for it."""

    __slots__ = ("_ended", "_waiters", "asker", "name", "source", "task")

    def __init__(self, name: str, source: NameSource, asker: str) -> None:
        self.name = name
        self.source = source
        self.asker = asker
        self._waiters: AskerQueues[LookupResult] = AskerQueues()
        self._ended = False
        self.task = spawn(source.look_up(name), "look-up of a name")

    def join(self, asker: str) -> asyncio.Future[LookupResult]:
        """What `tell` answers, or its caller cancels."""
        waiter: asyncio.Future[LookupResult] = asyncio.get_running_loop().create_future()
        self._waiters.add(asker, waiter)
        return waiter

    def leave(self, asker: str, waiter: asyncio.Future[LookupResult]) -> None:
        self._waiters.discard(asker, waiter)

    def is_unwanted(self) -> bool:
        """Whether it still runs and nobody waits for it."""
        return not self._ended and not self._waiters

    def tell(self, answer: LookupResult) -> None:
        """Answer WOKEN of those that wait, askers in turn, and the others in the next turns of the loop: each of them
        connects at once, and thousands may wait for one name."""
        self._ended = True
        waiters = self._waiters
        for _ in range(WOKEN):
            if not waiters:
                return
            asker = next(iter(waiters))
            waiter = waiters.pop(asker)
            waiters.pass_turn(asker)
            if not waiter.done():
                waiter.set_result(answer)
        if waiters:
            asyncio.get_running_loop().call_soon(self.tell, answer)
