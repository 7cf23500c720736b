"""The choice of DNS servers: their order, the time until the next one is asked, and their health.

Servers are asked in the order of the configuration. The next one is asked too when one has failed, or has not answered
for `hedge` seconds. The first answer wins and the other questions are cancelled. A server that fails goes to the end
of the order for a while, twice as long each time. If no server is reachable, the link is probably down: then all are
tried again for `link_wait` seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from cryprq_proxy.base.tasks import spawn
from cryprq_proxy.status import UpstreamStatus

from .answer import Answer
from .codes import NOERROR, NXDOMAIN, YXDOMAIN
from .framed import Upstream, UpstreamError
from .inquiry import BadAnswer, Inquiry, digest
from .settings import DnsSettings

FIRST_PENALTY: Final = 1.0
MAX_PENALTY: Final = 60.0
"""Seconds for which a failed server goes behind the others."""
RETRY_SECONDS: Final = 0.25
"""Seconds between two attempts to reach any server."""
SHORT_MESSAGE: Final = 2048
"""Bytes. Longer messages are parsed on a thread: at 70 us a record, 64 KiB would stop all traffic for 0.3 s."""
SMOOTHING: Final = 0.25
"""Weight of the newest latency in the shown average."""


class Member:
    """A server of a group: its transport, and its recent results."""

    def __init__(self, name: str, upstream: Upstream, clock: Callable[[], float]) -> None:
        self.status = UpstreamStatus(name=name)
        self.upstream = upstream
        self._clock = clock
        self._penalty = 0.0
        self.down_until = 0.0

    async def ask(self, inquiry: Inquiry, ipv6: bool) -> Answer | UpstreamError:
        """The answer, which may report a failure of the server; or the reason for no answer."""
        begun = self._clock()
        try:
            message = await self.upstream.ask(inquiry)
            if len(message) > SHORT_MESSAGE:
                answer = await asyncio.to_thread(digest, message, inquiry, ipv6=ipv6)
            else:
                answer = digest(message, inquiry, ipv6=ipv6)
        except UpstreamError as error:
            self.failed(str(error))
            return error
        except BadAnswer as error:
            self.failed(str(error))
            return UpstreamError(str(error))
        status = self.status
        took = max(self._clock() - begun, 0.0)
        status.latency = (
            took if status.latency is None else status.latency + SMOOTHING * (took - status.latency)
        )
        status.answers += 1
        self.recover()
        return answer

    def failed(self, text: str) -> None:
        self._penalty = min(max(2 * self._penalty, FIRST_PENALTY), MAX_PENALTY)
        self.down_until = self._clock() + self._penalty
        self.status.failures += 1
        self.status.last_error = text
        self.status.healthy = False

    def recover(self) -> None:
        """End the wait after failures."""
        self._penalty = self.down_until = 0.0
        self.status.healthy = True
        self.status.last_error = ""


class Group:
    """Servers that know the same names."""

    def __init__(self, members: Sequence[Member], settings: DnsSettings, clock: Callable[[], float]) -> None:
        self.members = tuple(members)
        self._settings = settings
        self._clock = clock
        self.in_use = self.members[0]
        """The server that answered last."""
        self.link_up = True
        """Whether it is useful to wait for more than `link_wait`."""

    async def ask(self, inquiry: Inquiry, *, ipv6: bool) -> Answer:
        """An answer with NOERROR, NXDOMAIN or YXDOMAIN, else the error answer of a server.

        Raises UpstreamError after at most `timeout` seconds.
        """
        settings = self._settings
        begun = asyncio.get_running_loop().time()
        while True:
            most = settings.timeout if self.link_up else min(settings.timeout, settings.link_wait)
            left = begun + most - asyncio.get_running_loop().time()
            found = await self._round(inquiry, ipv6, left)
            if isinstance(found, Answer):
                return found
            if not found.unreachable or (
                asyncio.get_running_loop().time() + RETRY_SECONDS >= begun + settings.link_wait
            ):
                raise found
            await asyncio.sleep(RETRY_SECONDS)

    def recover(self) -> None:
        """After the link is back: try all servers again."""
        self.link_up = True
        for member in self.members:
            member.recover()

    def close(self) -> None:
        for member in self.members:
            member.upstream.close()

    async def _round(self, inquiry: Inquiry, ipv6: bool, seconds: float) -> Answer | UpstreamError:
        """Ask each server at most once. The error has `unreachable` only if all servers were unreachable."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        waiting = self._order()
        asked: dict[asyncio.Task[Answer | UpstreamError], Member] = {}
        refusal: Answer | None = None
        errors: list[UpstreamError] = []
        try:
            while True:
                if waiting:
                    member = waiting.pop(0)
                    asked[spawn(member.ask(inquiry, ipv6), "dns ask")] = member
                if not asked:
                    return refusal or next((error for error in errors if not error.unreachable), errors[-1])
                left = end - loop.time()
                done, _ = await asyncio.wait(
                    asked,
                    timeout=min(left, self._settings.hedge) if waiting else left,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                for task in done:
                    member = asked.pop(task)
                    result = task.result()
                    if isinstance(result, UpstreamError):
                        errors.append(result)
                    elif result.rcode in (NOERROR, NXDOMAIN, YXDOMAIN):
                        self.in_use = member
                        return result
                    else:
                        refusal = result
                if not done and loop.time() >= end:
                    for member in asked.values():
                        member.failed("the server did not answer in time")
                    return refusal or UpstreamError("the server did not answer in time")
        finally:
            for task in asked:
                task.cancel()

    def _order(self) -> list[Member]:
        now = self._clock()
        return sorted(self.members, key=lambda member: max(member.down_until - now, 0.0))
