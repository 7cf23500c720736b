"""Answers to other programs of the machine, which take their turns: the loop has links to serve.

OneATurn        of all that wait, one goes on in each turn of the loop
SharedAnswer    one answer for all that ask before it is made
json_by_turns   a long one, encoded a part in each turn
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
from msgspec import Raw, Struct, structs

from ..base.tasks import spawn
from ..base.text import to_json

ENCODED_AT_ONCE: Final = 250
"""Members of a list that are encoded in one turn, about 130 KB of sessions."""


class OneATurn:
    """A queue in which everybody waits before what takes a millisecond. A single one waits two turns."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._due = False

    async def turn(self) -> None:
        """Return in a turn of the loop in which this returns for nobody else."""
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(mine)
        self._call_next()
        await mine

    def _call_next(self) -> None:
        if self._waiting and not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        self._due = False
        while self._waiting:
            first = self._waiting.popleft()
            if not first.done():  # cancelled
                first.set_result(None)
                break
        self._call_next()


class SharedAnswer[T]:
    """What `make` gives, once for all that ask before it begins. It never runs twice at the same time."""

    def __init__(self, make: Callable[[], Awaitable[T]]) -> None:
        self._make = make
        self._making = asyncio.Lock()
        self._next: asyncio.Task[T] | None = None

    async def get(self) -> T:
        """Raises what `make` raises."""
        if self._next is None:
            self._next = spawn(self._make_next(), "answer")
        return await asyncio.shield(self._next)

    async def _make_next(self) -> T:
        async with self._making:
            self._next = None
            return await self._make()


async def json_by_turns(value: Struct) -> bytes:
    """As `to_json`; of long tuples ENCODED_AT_ONCE members in each turn of the loop."""
    long: dict[str, tuple[object, ...]] = {}
    for name in value.__struct_fields__:
        members = getattr(value, name)
        if isinstance(members, tuple) and len(members) > ENCODED_AT_ONCE:
            long[name] = members
    if not long:
        return to_json(value)
    short = msgspec.to_builtins(structs.replace(value, **dict.fromkeys(long, ())))
    encoded = {name: Raw(to_json(field)) for name, field in short.items()}
    for name, members in long.items():
        parts = []
        for start in range(0, len(members), ENCODED_AT_ONCE):
            await asyncio.sleep(0)
            parts.append(to_json(members[start : start + ENCODED_AT_ONCE])[1:-1])
        encoded[name] = Raw(b"[%b]" % b",".join(parts))
    return to_json(encoded)
