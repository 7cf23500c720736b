"""The endpoints of one exit: which are tried in which order, and how the race between them is decided.

An endpoint has won when the exit there has proved its identity. An accepted connection says little: captive portals and
middleboxes accept everything. The losers are closed before the exit has heard which client asks, so nothing of them
remains there.

Their order is that of the configuration, with two exceptions. The one that worked last starts at the same moment as
the first one. One that led to a link that broke at once comes last in the next race. So a network where only a detour
passes costs no time, and a client that returns from such a network does not stay on the detour.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final, NamedTuple

from ..carriers.admission import HANDSHAKE_TIMEOUT, RunStep, meet_exit
from ..carriers.dial.connect import Dialling
from ..carriers.dial.dial import dial
from ..carriers.dial.endpoint import Endpoint
from ..carriers.dial.race import AllFailed, race
from ..carriers.pipe import Pipe
from ..crypto.handshake import ClientHandshake
from ..errors import CarrierError, CloseReason, PeerError

DIAL_TIMEOUT: Final = 10.0
HEAD_START: Final = 0.5
"""Seconds before the next endpoint is tried too."""

type Dial = Callable[[Endpoint, Dialling], Awaitable[Pipe]]


class ReachedExit(NamedTuple):
    """A connection to the exit, which has proved its identity. The handshake is at the client's third flight."""

    endpoint: Endpoint
    pipe: Pipe
    handshake: ClientHandshake
    why: str
    """Why this endpoint and no other, in a sentence part for people."""


class Endpoints:
    """`remembered` is the text of the endpoint that worked last, if one is known."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        dialling: Dialling,
        remembered: str | None = None,
        *,
        dial: Dial = dial,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._endpoints = tuple(endpoints)
        self._dialling = dialling
        self._dial = dial
        self._pause = pause
        self._worked = next((one for one in endpoints if str(one) == remembered), None)
        self._shunned: Endpoint | None = None

    def order(self) -> list[Endpoint]:
        """The next race's starters."""
        ahead = {self._endpoints[0], self._worked}
        return sorted(self._endpoints, key=lambda one: (one == self._shunned, one not in ahead))

    def worked(self, endpoint: Endpoint) -> bool:
        """There is a link by `endpoint`; True if it was another one before."""
        new, self._worked = endpoint != self._worked, endpoint
        return new

    def shun(self, endpoint: Endpoint) -> None:
        """It brought a link that broke at once: in the next race the others come first."""
        self._shunned = endpoint

    async def race(self, handshake: Callable[[], ClientHandshake], run_step: RunStep) -> ReachedExit:
        """One race. Raises PeerError with the reason in a sentence, ConfigError for settings that do not work."""
        order = self.order()
        self._shunned = None
        both = {self._endpoints[0], self._worked} == set(order[:2])
        try:
            winner, (pipe, shaken), errors = await race(
                [partial(self._try, endpoint, handshake, run_step) for endpoint in order],
                HEAD_START,
                lambda loser: loser[0].close(),
                self._pause,
                abreast=2 if both else 1,
            )
        except AllFailed as failure:
            raise _all_failed(order, failure.errors) from None
        return ReachedExit(order[winner], pipe, shaken, self._why(order, winner, errors))

    async def _try(
        self, endpoint: Endpoint, make: Callable[[], ClientHandshake], run_step: RunStep
    ) -> tuple[Pipe, ClientHandshake]:
        try:
            async with asyncio.timeout(DIAL_TIMEOUT):
                pipe = await self._dial(endpoint, self._dialling)
        except TimeoutError:
            raise CarrierError(CloseReason.TIMED_OUT, f"{endpoint} did not answer in time") from None
        handshake = make()
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT):
                await meet_exit(pipe, handshake, run_step)
        except TimeoutError:
            pipe.close()
            raise handshake_late() from None
        except BaseException:
            pipe.close()
            raise
        return pipe, handshake

    def _why(self, order: Sequence[Endpoint], winner: int, errors: Sequence[PeerError | None]) -> str:
        if winner == 0:
            if len(order) == 1:
                return "the only one given"
            if order[0] == self._worked:
                return "it worked last time"
            return "the first one given" if order[0] == self._endpoints[0] else "the others broke"
        first, error = order[0], errors[0]
        kinds = {endpoint.carrier for endpoint in order}
        name = first.carrier if len(kinds) == len(order) else str(first)
        if error is None and order[winner] == self._worked:
            return f"it worked last time, and {name} did not answer sooner"
        if error is None:
            return f"{name} did not answer within {HEAD_START:g} s"
        return f"{name} failed: {error}"


def handshake_late() -> CarrierError:
    """The exit accepted the connection and then took too long."""
    return CarrierError(CloseReason.TIMED_OUT, "the exit did not finish the handshake in time")


def _all_failed(order: Sequence[Endpoint], errors: Sequence[PeerError]) -> PeerError:
    if len(errors) == 1:
        return errors[0]
    reasons = "; ".join(f"{endpoint}: {error}" for endpoint, error in zip(order, errors, strict=True))
    return CarrierError(CloseReason.TIMED_OUT, f"no endpoint of the exit works ({reasons})")
