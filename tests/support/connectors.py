"""Attempts to connect that a test answers: in place of `connect_literal` and of who waits for it."""

from __future__ import annotations

import asyncio
import socket
from typing import Final

from cryprq_proxy.errors import StreamReason
from cryprq_proxy.outbound.address_race import Done
from cryprq_proxy.outbound.socket_group import SocketLoop
from cryprq_proxy.session.turns import TurnBudget

NEVER: Final = 3600.0
"""A delay that no test lives to see."""


def plenty() -> TurnBudget:
    """A budget that is never used up."""
    budget = TurnBudget(lambda callback: None)
    budget.left = 1 << 30
    return budget


async def turn() -> None:
    """Let everything run that is ready, twice over: callbacks, then what they have scheduled."""
    for _ in range(4):
        await asyncio.sleep(0)


class Outcome:
    """A `Done` that can be awaited."""

    def __init__(self) -> None:
        self.calls: list[tuple[socket.socket | None, StreamReason | None]] = []
        self.called = asyncio.Event()

    def __call__(self, sock: socket.socket | None, reason: StreamReason | None) -> None:
        self.calls.append((sock, reason))
        self.called.set()

    async def socket(self) -> socket.socket:
        await self.called.wait()
        [(sock, reason)] = self.calls
        assert sock is not None and reason is None
        return sock

    async def reason(self) -> StreamReason:
        await self.called.wait()
        [(sock, reason)] = self.calls
        assert sock is None and reason is not None
        return reason


class Attempt:
    def __init__(self, ip: str, port: int, done: Done, timeout: float) -> None:
        self.ip = ip
        self.port = port
        self.done = done
        self.timeout = timeout
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True

    def succeed(self) -> socket.socket:
        sock = socket.socket()
        self.done(sock, None)
        return sock


class Connector:
    """Takes the place of `connect_literal`: `script` has what an address answers at once; the rest hangs."""

    def __init__(self, script: dict[str, StreamReason] | None = None) -> None:
        self.script = script or {}
        self.attempts: list[Attempt] = []

    def __call__(self, loop: SocketLoop, ip: str, port: int, done: Done, timeout: float, /) -> Attempt:
        attempt = Attempt(ip, port, done, timeout)
        self.attempts.append(attempt)
        if ip in self.script:
            done(None, self.script[ip])
        return attempt

    @property
    def tried(self) -> list[str]:
        return [attempt.ip for attempt in self.attempts]
