"""Several attempts against each other, with a head start for the better ones (RFC 8305, for whole handshakes).

first ----------------------.        still nothing after the delay: the second starts too
         second ---------------- ok  the first one that succeeds wins, the others are cancelled
                 third ----x         one that fails lets the next one start at once
                       third ------  and is made again, where that is asked for, while another one has not failed yet
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from typing import Any, NamedTuple

from ...base.faults import is_fault, report_fault
from ...base.tasks import spawn
from ...errors import CarrierFault, CryprqError, PeerError


class Outcome[T](NamedTuple):
    """The result of a race."""

    winner: int
    """The number of the attempt that succeeded."""
    value: T
    errors: tuple[PeerError | None, ...]
    """For each attempt why it failed last; None for the winner and for those that were too slow or did not start."""


class AllFailed(CryprqError):
    """No attempt succeeded; `errors` has the reason of each."""

    def __init__(self, errors: Sequence[PeerError]) -> None:
        super().__init__("; ".join(map(str, errors)))
        self.errors = tuple(errors)


async def race[T](
    starts: Sequence[Callable[[], Coroutine[Any, Any, T]]],
    delay: float,
    discard: Callable[[T], None],
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    *,
    abreast: int = 1,
    again: float | None = None,
) -> Outcome[T]:
    """Start the first `abreast` attempts, then one after the other, `delay` seconds apart or as soon as one fails.
    End with the first one that returns. One that fails is made again `again` seconds later, if that is given, until
    each has failed: else one that only hears nothing would hold up those that can soon be of use.

    When this returns or raises, no attempt is running; `discard` gets what late ones have returned. Raises AllFailed.
    A fault of this program ends its attempt only. Any other CryprqError ends the race and is raised.
    """
    errors: list[PeerError | None] = [None] * len(starts)
    running: dict[asyncio.Future[T], int] = {}
    waiting = list(range(len(starts)))
    due = abreast
    head_start: asyncio.Future[None] | None = None
    try:
        while True:
            if due:
                running |= {spawn(_attempt(starts[number]), "dial"): number for number in waiting[:due]}
                del waiting[:due]
                _stop(head_start)
                head_start = spawn(_awaited(pause, delay), "head start") if waiting else None
            failed = [error for error in errors if error is not None]
            if len(failed) == len(starts):
                raise AllFailed(failed)
            waited_for: list[asyncio.Future[Any]] = [*running]
            if head_start is not None:
                waited_for.append(head_start)
            await asyncio.wait(waited_for, return_when=asyncio.FIRST_COMPLETED)
            due = int(head_start is not None and head_start.done())
            for attempt in [future for future in running if future.done()]:
                number = running.pop(attempt)
                try:
                    value = attempt.result()
                except PeerError as error:
                    errors[number] = error
                    due = 1
                    if again is not None:
                        running[spawn(_repeat(starts[number], pause, again), "dial")] = number
                else:
                    errors[number] = None
                    return Outcome(number, value, tuple(errors))
    finally:
        _stop(head_start)
        await _end(running, discard)


async def _attempt[T](start: Callable[[], Coroutine[Any, Any, T]]) -> T:
    try:
        return await start()
    except Exception as error:
        if not is_fault(error):
            raise
        report_fault("ends an attempt to reach the exit", error)
        raise CarrierFault from None


async def _repeat[T](
    start: Callable[[], Coroutine[Any, Any, T]], pause: Callable[[float], Awaitable[None]], seconds: float
) -> T:
    await pause(seconds)
    return await _attempt(start)


async def _end[T](running: Collection[asyncio.Future[T]], discard: Callable[[T], None]) -> None:
    """Cancel all; `discard` gets what some have returned nevertheless."""
    for attempt in running:
        attempt.cancel()
    if running:
        await asyncio.wait(running)
    for attempt in running:
        if not attempt.cancelled() and attempt.exception() is None:
            discard(attempt.result())


async def _awaited(pause: Callable[[float], Awaitable[None]], delay: float) -> None:
    await pause(delay)


def _stop(head_start: asyncio.Future[None] | None) -> None:
    if head_start is not None:
        head_start.cancel()
