"""How a path to the exit comes about: an endpoint is reached, the handshake, the verdict.

    no session   signed handshake -> a new session, whose requests leave at once    -> verdict
    a session    short handshake  -> another path of it; what it has leaves at once -> verdict
                 signed handshake -> if the short one came to nothing, several found no answer, or none is possible
                                  -> verdict: joined, or the session is lost and a new one begins

A short handshake proves nothing about the exit before the verdict. So what fails there says nothing about the session
either, and the next handshake is a signed one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from concurrent.futures import Executor
from functools import partial
from typing import NamedTuple, Protocol

from ..base.clock import clock
from ..base.faults import is_fault
from ..carriers.admission import HANDSHAKE_TIMEOUT, Admission, AnyClientHandshake, claim, introduce, join
from ..carriers.carrier import Carrier, CarrierOwner
from ..carriers.dial.endpoint import Endpoint
from ..crypto.client_handshake import ClientHandshake, ShortClientHandshake
from ..crypto.identity import Identity
from ..crypto.payloads import Feature
from ..crypto.primitives import Provider
from ..errors import (
    CarrierError,
    CarrierFault,
    CloseReason,
    CryprqError,
    HandshakeError,
    NotAdmitted,
    PeerError,
    Unanswered,
)
from .endpoints import Endpoints, ReachedExit, is_late
from .kept_session import KeptSession
from .settings import ClientSettings

_log = logging.getLogger(__name__)


class LivePath(NamedTuple):
    """A path that the exit has let in, or, while its session opens, is about to."""

    carrier: Carrier
    reached: ReachedExit
    begins: bool
    """Whether its handshake began the session."""

    @property
    def number(self) -> int:
        return self.carrier.path.number


class PathOwner(CarrierOwner, Protocol):
    """Who gets the paths (link.py). It owns their carriers from `path_up` on."""

    def path_opens(self, path: LivePath) -> None:
        """Requests of a new session may leave before the verdict."""

    def path_up(self, path: LivePath) -> None: ...

    def sign_anew(self) -> None:
        """End all paths: the next one joins by a signed handshake."""


class PathOpener:
    """`packets`: whether the exit must carry packets. `invite` is shown with a session that begins, until one has."""

    def __init__(
        self,
        identity: Identity,
        settings: ClientSettings,
        provider: Provider,
        endpoints: Endpoints,
        kept: KeptSession,
        executor: Executor,
        owner: PathOwner,
        *,
        packets: bool,
    ) -> None:
        self._identity = identity
        self._settings = settings
        self._provider = provider
        self._endpoints = endpoints
        self._kept = kept
        self._executor = executor
        self._owner = owner
        self._packets = packets
        self._invite = settings.invite
        self.opening: Carrier | None = None
        """That of a new session on which the exit has not given its verdict."""

    async def open(self) -> None:
        """Bring up the first path of a session, or join the one that is kept: by a signed handshake if a short one came
        to nothing, or several found no answer. Raises PeerError with the reason in a sentence, CryprqError if the exit
        cannot do what is asked."""
        kept = self._kept
        if kept.joins_short:
            try:
                await self._attempt(self._endpoints.race, kept.next_path, short=True)
                return
            except PeerError as error:
                if isinstance(error, HandshakeError):
                    kept.sign_next = True
                unanswered = isinstance(error, Unanswered) and kept.unanswered.one_more()
                if not kept.sign_next and not unanswered:
                    raise
            _log.debug("the session could not be joined by its ticket; a signed handshake follows")
        await self._attempt(self._endpoints.race, 0 if kept.session is None else kept.next_path, short=False)

    async def open_beside(self, avoided: Collection[Endpoint]) -> None:
        """Join the session by one more path, by another endpoint than the `avoided` ones if there is another. Raises as
        `open`; the session goes on.

        A day after the last signed handshake no ticket counts, and a signed one takes the place of all paths. Then they
        are ended as soon as the exit has answered, so that `open` signs.
        """
        kept = self._kept
        if not kept.joins_short and not kept.signature_due:
            raise CarrierError(CloseReason.RESUME, "another path can join by a signed handshake only")
        race = partial(self._endpoints.race_others, avoided) if avoided else self._endpoints.race
        try:
            if kept.signature_due:
                reached = await race(self._handshake, self._offload, kept.advertised)
                reached.pipe.close()
                self._owner.sign_anew()
                return
            await self._attempt(race, kept.next_path, short=True)
        finally:
            if kept.session is not None and kept.session.attached:
                # The exit has the session, whatever was met by another endpoint.
                kept.sign_next = False

    async def _attempt(
        self, race: Callable[..., Awaitable[ReachedExit]], number: int, *, short: bool
    ) -> None:
        make, epoch = self._short_handshakes(number) if short else (self._handshake, 0)
        reached = await race(make, self._offload, self._kept.advertised)
        began = clock()
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT):
                await self._go_on(reached, number, epoch)
        except BaseException as error:
            if isinstance(error, CarrierError | TimeoutError):
                self._endpoints.shun(reached.endpoint)
            if isinstance(error, Exception) and is_fault(error):
                reached.pipe.close()
            if is_late(error, began):
                raise self._endpoints.late(reached.endpoint, small_first=not reached.small) from None
            raise

    async def _go_on(self, reached: ReachedExit, number: int, epoch: int) -> None:
        """From the second flight to the verdict."""
        handshake = reached.handshake
        if self._kept.session is not None:
            self._kept.take_path(number)
        if isinstance(handshake, ShortClientHandshake):
            self._kept.sign_next = True
            await self._send_third(reached, partial(join, reached.pipe, handshake, epoch, self._offload))
        elif self._kept.session is None:
            third = partial(introduce, reached.pipe, handshake, self._offload, self._invite)
            await self._send_third(reached, third)
        else:
            await self._claim(reached, handshake, number)

    async def _send_third(self, reached: ReachedExit, third: Callable[[], Awaitable[Admission]]) -> None:
        """Send the third flight, let records follow it at once, and wait for the verdict."""
        kept = self._kept
        begins = kept.session is None
        verdict = _Verdict(self._owner)
        try:
            admission = await third()
            self._check_features(reached, admission)
            path = kept.attach(admission, reached.pipe.direct, verdict.admitted)
            try:
                carrier = reached.pipe.carrier(path, verdict)
            except Exception:
                path.lost(clock())
                raise
        except BaseException:
            reached.pipe.close()
            if begins:
                kept.drop()
            raise
        verdict.path = LivePath(carrier, reached, begins)
        verdict.accepted = self._accepted
        self.opening = carrier if begins else self.opening
        try:
            carrier.start()
            if begins and carrier.open and not verdict.given.done():
                self._owner.path_opens(verdict.path)
            await verdict.given
        except BaseException as error:
            if isinstance(error, NotAdmitted):
                kept.sign_next = False
            if begins and self.opening is carrier:
                self.opening = None
                kept.drop()
                carrier.close(CloseReason.NORMAL)
            else:
                carrier.drop()
            raise

    def _accepted(self, path: LivePath) -> None:
        self._kept.sign_next = False
        self._kept.unanswered.reset()
        if path.begins:
            self.opening = self._invite = None

    async def _claim(self, reached: ReachedExit, handshake: ClientHandshake, number: int) -> None:
        """Ask the exit to go on with the session; if it no longer has it, another one begins."""
        kept = self._kept
        assert kept.session is not None
        try:
            admission = await claim(reached.pipe, handshake, kept.session, number, self._offload)
            self._check_features(reached, admission)
            if admission.begins is None:
                kept.session.rotation.bind(admission.epoch, clock())
            path = kept.attach(admission, reached.pipe.direct)
            try:
                carrier = reached.pipe.carrier(path, self._owner)
            except Exception:
                path.lost(clock())
                raise
        except BaseException:
            reached.pipe.close()
            raise
        try:
            kept.signed()
            self._owner.path_up(LivePath(carrier, reached, admission.begins is not None))
            carrier.start()
        except Exception as error:  # noqa: BLE001  nobody else would end the carrier
            carrier.crash(error)
            raise CarrierFault from None

    async def _offload(self, job: Callable[[], bytes]) -> bytes:
        return await asyncio.get_running_loop().run_in_executor(self._executor, job)

    @property
    def _features(self) -> Feature:
        features = Feature.REPORT | (Feature.PACKETS if self._packets else Feature(0))
        if self._settings.lane is not None and self._settings.upstream is None:
            features |= Feature.LANE
        return features

    def _handshake(self) -> AnyClientHandshake:
        settings = self._settings
        return ClientHandshake(
            self._identity, settings.peer, self._provider, psk=settings.psk, features=self._features
        )

    def _short_handshakes(self, number: int) -> tuple[Callable[[], AnyClientHandshake], int]:
        """What makes them for path `number`, and the epoch whose resume secret they take."""
        settings, session = self._settings, self._kept.session
        if session is None:
            raise CarrierError(CloseReason.RESUME, "the session ended while a path joined it")
        secret = session.rotation.known.joining_secret

        def make() -> AnyClientHandshake:
            return ShortClientHandshake(
                settings.peer, self._provider, secret, number, psk=settings.psk, features=self._features
            )

        return make, session.rotation.current

    def _check_features(self, reached: ReachedExit, admission: Admission) -> None:
        """Raises CryprqError if the exit cannot do what is asked of it."""
        if self._packets and not admission.features & Feature.PACKETS:
            raise CryprqError(
                f"the exit at {reached.endpoint} carries no packets of whole systems; run it as root with "
                "nftables installed, or use the local proxy without --tun"
            )


class _Verdict:
    """Owner of a carrier until the exit has given its verdict on the path. `given` is done then, or when it is lost."""

    def __init__(self, owner: PathOwner) -> None:
        self._owner = owner
        self.given: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # Nobody waits for it where a fault has ended the attempt.
        self.given.add_done_callback(lambda given: given.cancelled() or given.exception())
        self.path: LivePath
        self.accepted: Callable[[LivePath], None]

    def admitted(self) -> None:
        """The exit lets the path in."""
        if self.given.done():
            return  # too late: the attempt is over, and the path about to end
        path = self.path
        try:
            self.accepted(path)
            path.carrier.pass_to(self._owner)
            self._owner.path_up(path)
        except Exception:
            # The carrier ends with it, and the attempt too.
            self.given.set_exception(CarrierFault())
            raise
        self.given.set_result(None)

    def carrier_lost(self, carrier: Carrier, error: PeerError | None) -> None:
        if not self.given.done():
            left = CarrierError(
                CloseReason.TIMED_OUT, "the link was left before the exit had let this client in"
            )
            self.given.set_exception(error or left)
