"""Datagrams of UDP associations that wait for the addresses of a name.

    HeldBytes          what waits in all associations of one peer
    WaitingDatagrams   those of one association: for each name a queue, and one task that asks

A peer may have thousands of associations, and names that no server answers. So a name and a datagram count with what
they take beside the payload. Sending them, and giving them up, is work of the peer's turn.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from ..base.tasks import spawn
from ..errors import StreamRefused
from ..session.turns import DATAGRAM_WORK, END_WORK, TurnBudget
from .resolving.resolver import Resolver

MAX_WAITING: Final = 64
MAX_HELD: Final = 65_536
"""Datagrams of one association that may wait for names, and the bytes of their payloads; more are dropped."""
MAX_HELD_TOGETHER: Final = 1 << 20
"""Bytes that may wait in all associations of one peer, with the next two."""
DATAGRAM_OVERHEAD: Final = 256
"""Bytes that a waiting datagram counts beside its payload."""
NAME_OVERHEAD: Final = 3_072
"""Bytes that a name counts for which datagrams of one association wait: a task and its place at the resolver."""

type SendToName = Callable[[str, Sequence[str], int, bytes], object]
"""Called with a name, its addresses, a port and a payload."""


class HeldBytes:
    """The number of bytes that wait for a name in all associations of one peer, or of all applications."""

    __slots__ = ("together",)

    def __init__(self) -> None:
        self.together = 0


def _drop(name: str, addresses: Sequence[str], port: int, payload: bytes) -> None:
    """Send nothing: the association has ended."""


class _WaitingName:
    """The datagrams of one association to one name, as port and payload. `cost` is what they count together."""

    __slots__ = ("cost", "datagrams", "task")

    def __init__(self, task: asyncio.Task[None]) -> None:
        self.task = task
        self.datagrams: deque[tuple[int, bytes]] = deque()
        self.cost = NAME_OVERHEAD


class WaitingDatagrams:
    """The datagrams of one association that wait for names. `send` gets each, in the order in which it came, when the
    addresses of its name are known; there are none if the name has none."""

    __slots__ = ("_bytes", "_closed", "_count", "_held", "_names", "_resolver", "_send", "_turn")

    def __init__(self, resolver: Resolver, turn: TurnBudget, held: HeldBytes, send: SendToName) -> None:
        self._resolver = resolver
        self._turn = turn
        self._held = held
        self._send: SendToName = send
        self._names: dict[str, _WaitingName] = {}
        self._count = 0
        self._bytes = 0
        self._closed = False

    def __contains__(self, name: object) -> bool:
        """Whether datagrams wait for `name`."""
        return name in self._names

    def add(self, name: str, port: int, payload: bytes | memoryview) -> None:
        """Let a datagram wait for the addresses of `name`, or drop it."""
        size = len(payload)
        waiting = self._names.get(name)
        cost = size + DATAGRAM_OVERHEAD
        if (
            self._closed
            or self._count >= MAX_WAITING
            or self._bytes + size > MAX_HELD
            or self._held.together + cost + (0 if waiting else NAME_OVERHEAD) > MAX_HELD_TOGETHER
        ):
            return
        if waiting is None:
            waiting = self._names[name] = _WaitingName(spawn(self._ask(name), "resolve for UDP"))
            self._held.together += NAME_OVERHEAD
        # A copy: the view is of a buffer that later datagrams, also of other peers, are opened into.
        waiting.datagrams.append((port, bytes(payload)))
        waiting.cost += cost
        self._held.together += cost
        self._count += 1
        self._bytes += size

    async def _ask(self, name: str) -> None:
        addresses: Sequence[str] = ()
        try:
            addresses = await self._resolver.resolve(name)
        except StreamRefused:
            pass
        finally:
            self._deliver(name, addresses)

    def _deliver(self, name: str, addresses: Sequence[str]) -> None:
        """Send what waits for `name`, and go on in a later turn when the budget of this one is used up."""
        waiting, turn = self._names.get(name), self._turn
        if waiting is None:  # given up
            turn.spend(1)
            return
        while waiting.datagrams:
            if turn.left <= 0:
                turn.wait(partial(self._deliver, name, addresses))
                return
            port, payload = waiting.datagrams.popleft()
            cost = len(payload) + DATAGRAM_OVERHEAD
            waiting.cost -= cost
            self._held.together -= cost
            self._count -= 1
            self._bytes -= len(payload)
            turn.spend(DATAGRAM_WORK)
            self._send(name, addresses, port, payload)
        # Sending may have ended the association.
        if self._names.pop(name, None) is not None:
            self._held.together -= waiting.cost

    def close(self) -> None:
        """Give all of them up, in later turns what is left when the budget of this one is used up."""
        self._closed = True
        # The association is freed without a collection of garbage.
        self._send = _drop
        names, turn = self._names, self._turn
        while names:
            if turn.left <= 0:
                turn.wait(self.close)
                return
            _, waiting = names.popitem()
            waiting.task.cancel()
            waiting.datagrams.clear()
            self._held.together -= waiting.cost
            turn.spend(END_WORK)
