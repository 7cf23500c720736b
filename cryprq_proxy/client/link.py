"""The link to one exit: one session, kept up over one carrier after another.

    dial -> handshake -> a new session: its requests leave at once -> verdict -> link up
     ^                -> the session that is kept -> verdict, resumed          -> link up
     |                                                                            lost: dial again, session kept
     |                                                                            while the exit may still have it
     ├── backoff <── an attempt failed, or the link broke at once
     └── the exit is about to stop: its session runs out beside the next one

endpoints.py finds the exit, kept_session.py owns the session, leaving.py those that run out, backoff.py says how long
to wait. Between the third flight of a new session and the verdict on it the link *opens*: requests may use the session,
and nobody else takes the link for up. If the verdict is a refusal, or none comes, the session ends with all it has.

A fault of this program in any of these steps is like a failed attempt: the next one comes after the backoff.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from typing import Any, Final

from ..base.clock import clock
from ..base.faults import contained, is_fault, report_fault
from ..base.leftovers import left_by_client
from ..base.linger import farewells_ended
from ..base.work import Work
from ..carriers.admission import HANDSHAKE_TIMEOUT, Admission, introduce, resume
from ..carriers.carrier import Carrier
from ..carriers.dial.connect import Dialling
from ..carriers.dial.endpoint import Endpoint
from ..carriers.dial.tcp import Resolve
from ..crypto.handshake import ClientHandshake
from ..crypto.identity import Identity
from ..crypto.payloads import Feature
from ..crypto.primitives import Provider
from ..errors import CarrierError, CarrierFault, CloseReason, CryprqError, PeerError, StreamReason
from ..session.sendlog import SlotPool
from ..session.streams import Stream
from ..status import CarrierStatus
from .backoff import STABLE_SECONDS, Backoff
from .endpoints import Endpoints, ReachedExit, is_late
from .kept_session import KeptSession
from .leaving import LeavingSessions
from .link_user import LinkUser
from .packet_ports import NO_NETWORK, ClientNetwork
from .rest import Pause, Rest
from .settings import ClientSettings

_log = logging.getLogger(__name__)

STUCK_SECONDS: Final = 180.0
"""Without a link there is an attempt within a minute and a half, also of an exit that was given up for a minute."""


class ExitStops(PeerError):
    """The exit takes no new streams, and its session was left."""

    def __init__(self) -> None:
        super().__init__(CloseReason.SHUTTING_DOWN, "the exit is about to stop")


class LinkEnd(Enum):
    """What became of an attempt to have a link."""

    OF_USE = 0
    LEFT = 1
    """It was of use, until the exit said that it is about to stop."""
    OF_NO_USE = 2
    """There was none, or it broke at once."""


class ClientLink:
    """Owner of the carrier. Call `run` in a task; `close` and `ended` end it."""

    def __init__(
        self,
        identity: Identity,
        settings: ClientSettings,
        provider: Provider,
        network: ClientNetwork,
        resolve: Resolve,
        slots: SlotPool,
        user: LinkUser,
        pause: Pause,
    ) -> None:
        self._identity = identity
        self._settings = settings
        self._provider = provider
        self._user = user
        self._packets = network is not NO_NETWORK
        dialling = Dialling(settings.upstream, resolve, settings.mark, settings.ca)
        self._endpoints = Endpoints(settings.endpoints, dialling, settings.memory.last)
        self._executor = ThreadPoolExecutor(1, "handshake")
        self.kept = KeptSession(
            settings,
            provider,
            network,
            slots,
            self._executor,
            self._fail,
            user.stream_opened,
            self._refused,
            self.leave,
            user.streams_lost,
        )
        self.left = LeavingSessions(self.kept.totals, user.stream_refused, user.streams_lost)
        self._carrier: Carrier | None = None
        self._reached: ReachedExit | None = None
        self._verdict: asyncio.Future[None] | None = None
        """While the link opens."""
        self._lost: asyncio.Future[PeerError | None] | None = None
        self._task: asyncio.Task[Any] | None = None
        self._rest = Rest(pause, (lambda: self.kept.packets_wanted) if self._packets else None)
        self.stopping = False
        self._attempts = 0
        self.carriers = 0
        """How many there have been since the start."""
        self.last_error: str | None = None

    @property
    def up(self) -> bool:
        return self._verdict is None and self._carrier is not None and self._carrier.open

    @property
    def opens(self) -> bool:
        """Whether the exit's verdict on a new session is still to come, and requests may use it."""
        return self._verdict is not None and self._carrier is not None and self._carrier.open

    @property
    def endpoint(self) -> Endpoint:
        """By which the exit is reached now, or first tried."""
        if self.up and self._reached is not None:
            return self._reached.endpoint
        return self._settings.endpoints[0]

    async def run(self) -> None:
        """Keep the link up until `close` is called. Raises CryprqError if the exit cannot do what is asked of it."""
        self._task = asyncio.current_task()
        backoff = Backoff()
        with contextlib.suppress(asyncio.CancelledError):
            while not self.stopping:
                end = await self._one_link()
                if end is LinkEnd.OF_USE:
                    backoff.reset()
                elif end is LinkEnd.LEFT:
                    backoff.hasten()
                else:
                    await self._rest.take(backoff.next())

    def hasten(self) -> None:
        """Somebody waits for the link: see Rest.hasten."""
        self._rest.hasten()

    async def _one_link(self) -> LinkEnd:
        """Bring the link up and wait for its end."""
        try:
            try:
                await self.connect()
            except PeerError as error:
                self._note(error)
                return LinkEnd.OF_NO_USE
            self.last_error = None
            return await self._was_of_use()
        except Exception as error:
            if not is_fault(error):
                raise
            report_fault("ends an attempt to bring the link up", error)
            self.last_error = str(CarrierFault())
            return LinkEnd.OF_NO_USE

    async def connect(self) -> None:
        """One attempt to bring the link up. Raises PeerError with the reason in a sentence."""
        self._attempts += 1
        kept = self.kept
        # Both may be left of a link whose end has met a fault.
        self.drop_carrier()
        kept.carrier_lost()
        reached = await self._endpoints.race(self._handshake, self._offload, kept.advertised)
        began = clock()
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT):
                await (self._begin_session if kept.session is None else self._resume)(reached)
        except BaseException as error:
            if isinstance(error, CarrierError | TimeoutError):
                self._endpoints.shun(reached.endpoint)
            if is_late(error, began):
                raise self._endpoints.late(reached.endpoint, small_first=not reached.small) from None
            raise

    async def _begin_session(self, reached: ReachedExit) -> None:
        """Send the third flight of a new session, let its requests follow, and wait for the verdict."""
        invite = None if self.carriers else self._settings.invite
        try:
            admission = await introduce(reached.pipe, reached.handshake, self._offload, invite)
            self._check_features(reached, admission)
            verdict: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            carrier = self._attach(reached, admission, lambda: self._admitted(verdict, reached, admission))
        except BaseException:
            reached.pipe.close()
            self.kept.drop()
            raise
        self._verdict = verdict
        try:
            carrier.start()
            if self.opens:
                self._user.link_opens()
            await verdict
        except BaseException:
            if self._verdict is None:
                carrier.drop()
            else:
                self._carrier = self._verdict = None
                self.kept.drop()
                carrier.close(CloseReason.NORMAL)
            raise

    def _admitted(self, verdict: asyncio.Future[None], reached: ReachedExit, admission: Admission) -> None:
        """The exit lets the new session in."""
        if verdict.done():
            return  # too late: the attempt is over, and the session about to end
        self._verdict = None
        verdict.set_result(None)
        self._begin(reached, admission)
        self._user.link_up()

    async def _resume(self, reached: ReachedExit) -> None:
        """Ask the exit to go on with the session; if it no longer has it, begin another one."""
        kept = self.kept
        assert kept.session is not None
        try:
            admission = await resume(
                reached.pipe, reached.handshake, kept.session, kept.next_attempt(), self._offload
            )
            self._check_features(reached, admission)
            carrier = self._attach(reached, admission)
        except BaseException:
            reached.pipe.close()
            raise
        try:
            self._begin(reached, admission)
            carrier.start()
            if self.up:
                self._user.link_up()
        except Exception as error:  # noqa: BLE001  nobody else would end the carrier
            carrier.crash(error)

    def work(self, name: str) -> Work:
        """The attempts to bring it up while it is down, for the watchdog."""
        return Work(name, self._attempts, not self.up and not self.stopping, STUCK_SECONDS)

    def close(self) -> None:
        """End the link, for good. Await `ended` behind it."""
        self.stopping = True
        if self._carrier is not None:
            self._carrier.close(CloseReason.NORMAL)
        self.left.close()
        self.kept.drop()

    async def ended(self) -> None:
        """Return when the last record has left and nothing runs any more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await farewells_ended()
        self._executor.shutdown(wait=False, cancel_futures=True)

    def drop_carrier(self) -> None:
        """Leave the present carrier for a new one; one that opens is new enough."""
        if self._carrier is not None and self._verdict is None:
            self._carrier.drop()

    def carrier_status(self) -> CarrierStatus | None:
        carrier = self._carrier
        if carrier is None or not self.up or self._reached is None:
            return None
        endpoint = self._reached.endpoint
        return CarrierStatus(
            kind=endpoint.carrier,
            address=str(endpoint),
            why=self._reached.why,
            congestion=carrier.congestion.control,
            connection_round_trip=carrier.congestion.round_trip,
        )

    async def _offload(self, job: Callable[[], bytes]) -> bytes:
        return await asyncio.get_running_loop().run_in_executor(self._executor, job)

    def _handshake(self) -> ClientHandshake:
        settings = self._settings
        features = Feature.PACKETS if self._packets else Feature(0)
        if settings.lane is not None and settings.upstream is None:
            features |= Feature.LANE
        return ClientHandshake(
            self._identity, settings.peer, self._provider, psk=settings.psk, features=features
        )

    def _check_features(self, reached: ReachedExit, admission: Admission) -> None:
        """Raises CryprqError if the exit cannot do what is asked of it."""
        if self._packets and not admission.established.features & Feature.PACKETS:
            raise CryprqError(
                f"the exit at {reached.endpoint} carries no packets of whole systems; run it as root with "
                "nftables installed, or use the local proxy without --tun"
            )

    def _attach(
        self, reached: ReachedExit, admission: Admission, admitted: Callable[[], None] | None = None
    ) -> Carrier:
        """The carrier of the session, not yet started. For `admitted` see `Session.attach`."""
        pipe = reached.pipe
        session = self.kept.attach(admission, pipe.direct, admitted)
        self._lost = asyncio.get_running_loop().create_future()
        try:
            carrier = pipe.carrier(session, self)
        except Exception:
            session.detach()
            raise
        self._carrier, self._reached = carrier, reached
        return carrier

    def _begin(self, reached: ReachedExit, admission: Admission) -> None:
        """There is a link."""
        endpoint = reached.endpoint
        self.carriers += 1
        if self._endpoints.worked(endpoint):
            self._settings.memory.remember(endpoint)
        _log.info(
            "link %s: exit %s at %s (%s), %s, ML-KEM by %s",
            "resumed" if admission.resumed is not None else "up",
            self._settings.peer,
            endpoint,
            reached.why,
            admission.established.cipher.name,
            self._provider.name,
        )

    async def _was_of_use(self) -> LinkEnd:
        """Wait for the end of the link. The endpoint of one that broke at once is shunned."""
        assert self._lost is not None and self._reached is not None
        since, session = clock(), self.kept.session
        before = 0 if session is None else session.moved
        reason = await self._lost
        left = isinstance(reason, ExitStops)
        if not self.stopping and not left:
            _log.warning("link down: %s", reason or "closed")
        # A fault may come again with the next byte, so what was moved before it is no reason for haste.
        moved = session is not None and session.moved != before and not isinstance(reason, CarrierFault)
        stable = clock() - since >= STABLE_SECONDS
        if left and stable:
            return LinkEnd.LEFT
        # An exit that asks its clients to leave as soon as they have come is met with the backoff, whatever it moved.
        if not left and (stable or moved):
            return LinkEnd.OF_USE
        self._endpoints.shun(self._reached.endpoint)
        return LinkEnd.OF_NO_USE

    def leave(self) -> None:
        """The exit takes no new streams: let the session run out on its carrier, and dial anew at once."""
        carrier, self._carrier = self._carrier, None
        if carrier is None:
            return
        held = self.kept.leave()
        if held is None:
            carrier.drop()
        else:
            session, packet_link = held
            _log.info(
                "link left: the exit %s is about to stop; new streams wait for another link, %d go on to their end",
                self._settings.peer,
                len(session.streams),
            )
            self.left.add(session, packet_link, carrier)
        self._down(ExitStops())

    def _refused(self, stream: Stream, reason: StreamReason, untouched: bool) -> bool:
        """The exit refused a stream of the present session."""
        if reason is StreamReason.SHUTTING_DOWN:
            self.leave()
        return self._user.stream_refused(stream, reason, untouched)

    def carrier_lost(self, carrier: Carrier, error: PeerError | None) -> None:
        if carrier is not self._carrier:
            return
        self._carrier = None
        if self._verdict is None:
            self._down(error)
        elif not self._verdict.done():
            left = CarrierError(
                CloseReason.TIMED_OUT, "the link was left before the exit had let this client in"
            )
            self._verdict.set_exception(error or left)

    def _down(self, reason: PeerError | None) -> None:
        with contained("keeps the loss of the link from the client"):
            self._user.link_down()
        with contained("leaves the session of a lost link"):
            self.kept.carrier_lost()
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(reason)

    def _fail(self, session_id: bytes, error: PeerError) -> None:
        session = self.kept.session
        if session is None or session.session_id != session_id:
            self.left.fail(session_id, error)
        elif self._carrier is not None:
            self._carrier.fail(error)

    def _note(self, error: PeerError) -> None:
        """Log why there is no link, once for each reason."""
        text = str(error)
        if isinstance(error, CarrierError) and (left := left_by_client()):
            text += f"; {left}"
        if text == self.last_error:
            return
        self.last_error = text
        advice = ""
        if error.reason is CloseReason.NOT_AUTHORIZED:
            advice = f" - add this peer id to the exit's list: {self._identity.peer_id}"
        _log.warning("no link to %s: %s%s", self.endpoint, text, advice)
