"""The endpoints of one exit: which are tried in which order, and how the race between them is decided.

An endpoint has won when the exit there has proved its identity. An accepted connection says little: captive portals and
middleboxes accept everything. The losers are closed before the exit has heard which client asks, so nothing of them
remains there.

Their order is that of the configuration, with two exceptions. The one that worked last starts at the same moment as
the first one. One that led to a link that broke at once comes last in the next race. So a network where only a detour
passes costs no time, and a client that returns from such a network does not stay on the detour.

A resume begins where the exit itself advertises, if it does (advertised.py): the others may lead to another exit of the
same identity, which does not have the session.

An endpoint that fails is tried again in the same race while another one has not failed yet. So where one hears
nothing, as behind a firewall, the others need not wait for its time-out: an exit that starts anew is found soon.

A path may lose large packets without a word: no ICMP, no clamped MSS. TCP connects there, and no flight of the
handshake arrives. So where a handshake stays without an answer, the next race has a second attempt with small segments.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import Final, NamedTuple

from ..base.clock import clock
from ..carriers.admission import HANDSHAKE_TIMEOUT, AnyClientHandshake, RunStep, meet_exit
from ..carriers.dial.connect import Dialling
from ..carriers.dial.dial import dial
from ..carriers.dial.endpoint import Endpoint
from ..carriers.dial.race import AllFailed, race
from ..carriers.pipe import Pipe
from ..errors import CarrierError, CloseReason, HandshakeError, PeerError, Unanswered

DIAL_TIMEOUT: Final = 10.0
HEAD_START: Final = 0.5
"""Seconds before the next endpoint is tried too."""
AGAIN_SECONDS: Final = 1.0
"""Until one that failed is tried again in the same race. An exit counts what does not come to its end (60 a minute)."""
ADVERTISED_HEAD_START: Final = 2.0
"""Seconds for the address that the exit itself advertises: at the others the session may be unknown, and lost."""
SMALL_SEGMENT: Final = 1024
"""Bytes: what Linux falls back to as well (tcp_base_mss)."""
_SILENCE: Final = 5.0
"""Seconds in a handshake after which an end of the connection is the other side's own time-out."""
_ONLY_SMALL: Final = "only small packets get through, the path loses large ones without a word (MTU)"

type Dial = Callable[[Endpoint, Dialling], Awaitable[Pipe]]


class ReachedExit(NamedTuple):
    """A connection to the exit, which has proved its identity. The handshake is at the client's third flight."""

    endpoint: Endpoint
    pipe: Pipe
    handshake: AnyClientHandshake
    why: str
    """Why this endpoint and no other, in a sentence part for people."""
    small: bool = False
    """With small segments."""


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
        self._small = False
        """Whether the last race was won with small segments."""
        self._suspected: dict[Endpoint, bool] = {}
        """Where large packets may be lost; whether small segments are tried first, or second."""

    def order(self) -> list[Endpoint]:
        """The next race's starters."""
        ahead = {self._endpoints[0], self._worked}
        return sorted(self._endpoints, key=lambda one: (one == self._shunned, one not in ahead))

    def worked(self, endpoint: Endpoint) -> bool:
        """There is a link by `endpoint`; True if it is a configured one, and was another one before."""
        if endpoint not in self._endpoints:
            return False
        new, self._worked = endpoint != self._worked, endpoint
        return new

    def shun(self, endpoint: Endpoint) -> None:
        """It brought a link that broke at once: in the next race the others come first."""
        self._shunned = endpoint

    async def race(
        self,
        handshake: Callable[[], AnyClientHandshake],
        run_step: RunStep,
        advertised: Endpoint | None = None,
    ) -> ReachedExit:
        """One race. `advertised`, if given, is where the exit says that it has the session. Raises PeerError with the
        reason in a sentence, ConfigError for settings that do not work."""
        if advertised is None or self._endpoints == (advertised,):
            return await self._race_configured(handshake, run_step)
        starts = [
            lambda: self._reach_advertised(advertised, handshake, run_step),
            lambda: self._race_configured(handshake, run_step),
        ]
        shunned = advertised == self._shunned
        if shunned:
            self._shunned = None
            starts.reverse()
        try:
            return (await race(starts, ADVERTISED_HEAD_START, _discard, self._pause)).value
        except AllFailed as failure:
            raise _failed(str(failure.errors[0 if shunned else 1]), failure.errors) from None

    def place(self, endpoint: Endpoint) -> int:
        """Where it stands in the configuration; what the exit advertises comes first."""
        return self._endpoints.index(endpoint) if endpoint in self._endpoints else -1

    def has_others(self, avoided: Collection[Endpoint]) -> bool:
        """Whether there are endpoints besides the `avoided` ones."""
        return any(endpoint not in avoided for endpoint in self._endpoints)

    async def race_others(
        self,
        avoided: Collection[Endpoint],
        handshake: Callable[[], AnyClientHandshake],
        run_step: RunStep,
        advertised: Endpoint | None = None,
    ) -> ReachedExit:
        """A race of the endpoints that are not `avoided`, of which there are some. Raises as `race`."""
        starts = [endpoint for endpoint in self.order() if endpoint not in avoided]
        try:
            winner, (pipe, shaken), _ = await race(
                [partial(self._try, endpoint, self._small, handshake, run_step) for endpoint in starts],
                HEAD_START,
                lambda loser: loser[0].close(),
                self._pause,
            )
        except AllFailed as failure:
            raise _all_failed(starts, failure.errors) from None
        return ReachedExit(starts[winner], pipe, shaken, "it stood by for another one", self._small)

    async def _reach_advertised(
        self, endpoint: Endpoint, handshake: Callable[[], AnyClientHandshake], run_step: RunStep
    ) -> ReachedExit:
        pipe, shaken = await self._try(endpoint, self._small, handshake, run_step)
        return ReachedExit(endpoint, pipe, shaken, "the exit advertises it for the session", self._small)

    async def _race_configured(
        self, handshake: Callable[[], AnyClientHandshake], run_step: RunStep
    ) -> ReachedExit:
        order = self.order()
        self._shunned = None
        both = {self._endpoints[0], self._worked} == set(order[:2])
        starts = [(endpoint, self._suspected.get(endpoint, False)) for endpoint in order]
        starts += [(endpoint, not small) for endpoint, small in starts if endpoint in self._suspected]
        try:
            winner, (pipe, shaken), errors = await race(
                [partial(self._try, *start, handshake, run_step) for start in starts],
                HEAD_START,
                lambda loser: loser[0].close(),
                self._pause,
                abreast=2 if both else 1,
                again=AGAIN_SECONDS,
            )
        except AllFailed as failure:
            raise _all_failed(order, failure.errors[: len(order)]) from None
        endpoint, small = starts[winner]
        if winner < len(order) and not small:
            self._suspected.pop(endpoint, None)
        self._small = small
        why = _ONLY_SMALL if small else self._why(order, order.index(endpoint), errors)
        return ReachedExit(endpoint, pipe, shaken, why, small)

    async def _try(
        self, endpoint: Endpoint, small: bool, make: Callable[[], AnyClientHandshake], run_step: RunStep
    ) -> tuple[Pipe, AnyClientHandshake]:
        how = replace(self._dialling, segment=SMALL_SEGMENT) if small else self._dialling
        try:
            async with asyncio.timeout(DIAL_TIMEOUT):
                pipe = await self._dial(endpoint, how)
        except TimeoutError:
            if endpoint.carrier != "tcp":
                # Perhaps in TLS.
                self._suspected.setdefault(endpoint, False)
            raise CarrierError(CloseReason.TIMED_OUT, f"{endpoint} did not answer in time") from None
        began = clock()
        try:
            handshake = make()
            async with asyncio.timeout(HANDSHAKE_TIMEOUT):
                await meet_exit(pipe, handshake, run_step)
        except BaseException as error:
            pipe.close()
            if is_late(error, began):
                error = self.late(endpoint)
            if isinstance(error, CarrierError):
                raise Unanswered(error.reason, str(error)) from None
            raise
        return pipe, handshake

    def late(self, endpoint: Endpoint, *, small_first: bool = False) -> CarrierError:
        """The exit accepted a connection and then took too long: the next race tries small segments too.

        `small_first`: for the next race they are the better guess, as large ones have won one and then failed.
        """
        text = "the exit did not finish the handshake in time"
        if endpoint not in self._endpoints:
            return CarrierError(CloseReason.TIMED_OUT, text)
        if endpoint in self._suspected:
            text += ", with small packets neither"
        else:
            text += ": perhaps the path loses large packets (MTU), so small ones are tried next"
        self._suspected[endpoint] = small_first
        return CarrierError(CloseReason.TIMED_OUT, text)

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


def _discard(loser: ReachedExit) -> None:
    loser.pipe.close()


def is_late(error: BaseException, began: float) -> bool:
    """Whether a step of the handshake that began then failed for want of an answer.

    The exit has a time-out too, and ends the connection.
    """
    return isinstance(error, TimeoutError) or (
        isinstance(error, CarrierError) and clock() - began >= _SILENCE
    )


def _all_failed(order: Sequence[Endpoint], errors: Sequence[PeerError]) -> PeerError:
    if len(errors) == 1:
        return errors[0]
    reasons = "; ".join(f"{endpoint}: {error}" for endpoint, error in zip(order, errors, strict=True))
    return _failed(f"no endpoint of the exit works ({reasons})", errors)


def _failed(text: str, errors: Sequence[PeerError]) -> PeerError:
    """`text` as an error that says whether somebody has answered wrongly, or else not answered: the client judges by it
    whether it can do without a signature."""
    if any(isinstance(error, HandshakeError) for error in errors):
        return HandshakeError(text)
    unanswered = any(isinstance(error, Unanswered) for error in errors)
    return (Unanswered if unanswered else CarrierError)(CloseReason.TIMED_OUT, text)
