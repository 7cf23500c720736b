"""The link to one exit: one session, kept up over one path after another, or two at a time.

    path_opening.py brings a path up     -> link up
                                            each path that is lost: the others carry on; the last one: dial again,
                                            session kept while the exit may still have it
     ^
     ├── backoff <── an attempt failed, or the link broke at once
     └── the exit is about to stop: its session runs out beside the next one

second_path.py keeps another path beside the one in use where that is of use. endpoints.py finds the exit,
kept_session.py owns the session, leaving.py those that run out, backoff.py says how long to wait. While a new session
opens, between its third flight and the verdict, requests may use it, and nobody else takes the link for up. If the
verdict is a refusal, or none comes, the session ends with all it has.

A fault of this program in any of these steps is like a failed attempt: the next one comes after the backoff.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from typing import Any, Final

from ..base.clock import clock
from ..base.faults import contained, is_fault, report_fault
from ..base.leftovers import left_by_client
from ..base.linger import farewells_ended
from ..base.work import Work
from ..carriers.carrier import Carrier
from ..carriers.dial.connect import Dialling
from ..carriers.dial.endpoint import Endpoint
from ..carriers.dial.tcp import Resolve
from ..crypto.identity import Identity
from ..crypto.primitives import Provider
from ..errors import CarrierError, CarrierFault, CloseReason, PeerError, StreamReason, to_be_let_in
from ..session.retention import SlotPool
from ..session.streams import Stream
from ..status import CarrierStatus
from .backoff import STABLE_SECONDS, Backoff
from .endpoints import Endpoints
from .kept_session import KeptSession
from .leaving import LeavingSessions
from .link_user import LinkUser
from .own_listeners import is_this_machine
from .packet_ports import NO_NETWORK, ClientNetwork
from .path_opening import LivePath, PathOpener
from .rest import Pause, Rest
from .second_path import SecondPath
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
    """Owner of the carriers. Call `run` in a task; `close` and `ended` end it."""

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
        packets = network is not NO_NETWORK
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
            user.lane_proven,
            user.streams_lost,
        )
        self.left = LeavingSessions(self.kept.totals, user.stream_refused, user.streams_lost)
        self._opener = PathOpener(
            identity,
            settings,
            provider,
            self._endpoints,
            self.kept,
            self._executor,
            self,
            packets=packets,
        )
        self.paths: dict[int, LivePath] = {}
        """Those of the session, by number; the exit has let them in."""
        self._second = SecondPath(self._opener.open_beside, self.paths, self._endpoints, self.kept, pause)
        self._brought_up: LivePath | None = None
        """The path by which the link came up."""
        self._lost: asyncio.Future[PeerError | None] | None = None
        self._task: asyncio.Task[Any] | None = None
        self._rest = Rest(pause, (lambda: self.kept.packets_wanted) if packets else None)
        self.stopping = False
        self._attempts = 0
        self.carriers = 0
        """How many there have been since the start."""
        self.last_error: str | None = None

    @property
    def up(self) -> bool:
        return bool(self.paths)

    @property
    def opens(self) -> bool:
        """Whether the exit's verdict on a new session is still to come, and requests may use it."""
        opening = self._opener.opening
        return opening is not None and opening.open

    @property
    def _used(self) -> LivePath | None:
        """The path that carries what belongs to the session."""
        session = self.kept.session
        current = None if session is None else session.current
        return None if current is None else self.paths.get(current.number)

    @property
    def endpoint(self) -> Endpoint:
        """By which the exit is reached now, or first tried."""
        used = self._used
        return self._settings.endpoints[0] if used is None else used.reached.endpoint

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
        # Both may be left of a link whose end has met a fault.
        for path in list(self.paths.values()):
            path.carrier.drop()
        self.kept.carrier_lost()
        self._lost = asyncio.get_running_loop().create_future()
        await self._opener.open()

    # --- paths -----------------------------------------------------------------------------------------------------

    def path_opens(self, path: LivePath) -> None:
        self._user.link_opens()

    def path_up(self, path: LivePath) -> None:
        """The exit has let a path in."""
        was_up, endpoint = self.up, path.reached.endpoint
        self.paths[path.number] = path
        self.carriers += 1
        if not was_up:
            self._brought_up = path
            if self._endpoints.worked(endpoint):
                self._settings.memory.remember(endpoint)
        _log.info(
            "link %s: exit %s, %s, %s, ML-KEM by %s",
            "up" if path.begins else "has another path" if was_up else "resumed",
            self._settings.shown_at(endpoint),
            path.reached.why,
            path.carrier.path.keys.cipher.name,
            self._provider.name,
        )
        self._second.path_up(path)
        if not was_up:
            self._user.link_up()

    def carrier_lost(self, carrier: Carrier, error: PeerError | None) -> None:
        path = self.paths.get(carrier.path.number)
        if path is None or path.carrier is not carrier:
            return
        del self.paths[path.number]
        if not self.paths:
            self._down(error)
            return
        if error is not None:
            _log.warning("the path by %s is lost, another one carries on: %s", path.reached.endpoint, error)
        self._second.path_lost(path)

    def sign_anew(self) -> None:
        """A day has passed since the last signed handshake, and only by such a one there are further paths."""
        _log.info("exit %s is dialled anew, as it is once a day for another path", self._settings.shown)
        for path in list(self.paths.values()):
            path.carrier.drop()

    def redial(self) -> None:
        """The route to the exit has changed: have new paths, and leave the present ones as soon as one is there."""
        self._second.replace()

    def look_at_addresses(self) -> None:
        """As `redial`, if a path is connected from an address that this machine has lost: the lane follows the new one.
        Without any path the lane looks itself."""
        gone = [path for path in self.paths.values() if not is_this_machine(path.carrier.local)]
        if gone:
            _log.info("the address is gone from which %s was reached", gone[0].reached.endpoint)
            self.redial()
        elif not self.paths:
            self.kept.look_at_address()

    def work(self, name: str) -> Work:
        """The attempts to bring it up while it is down, for the watchdog."""
        return Work(name, self._attempts, not self.up and not self.stopping, STUCK_SECONDS)

    def retire(self) -> None:
        """Dial no more, and let the session run out on the paths there are. Await `left.ended` behind it, then
        `close`."""
        self.stopping = True
        self._second.stop()
        if self._opener.opening is not None:
            self._opener.opening.close(CloseReason.NORMAL)
        if self.paths:
            self._let_run_out("it is not wanted any more")
        self.kept.drop()
        if self._task is not None:
            self._task.cancel()

    def close(self) -> None:
        """End the link, for good. Await `ended` behind it."""
        self.stopping = True
        self._second.stop()
        for path in list(self.paths.values()):
            path.carrier.close(CloseReason.NORMAL)
        if self._opener.opening is not None:
            self._opener.opening.close(CloseReason.NORMAL)
        self.left.close()
        self.kept.drop()

    async def ended(self) -> None:
        """Return when the last record has left and nothing runs any more."""
        tasks = [task for task in (self._task, self._second.task) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await farewells_ended()
        self._executor.shutdown(wait=False, cancel_futures=True)

    def carrier_status(self) -> CarrierStatus | None:
        used = self._used
        if used is None:
            return None
        endpoint, congestion = used.reached.endpoint, used.carrier.congestion
        return CarrierStatus(
            kind=endpoint.carrier,
            address=str(endpoint),
            why=used.reached.why,
            congestion=congestion.control,
            connection_round_trip=congestion.round_trip,
        )

    def carriers_of_paths(self) -> dict[int, tuple[str, str]]:
        """Kind and address of each, by the numbers of the paths."""
        return {
            number: (path.reached.endpoint.carrier, str(path.reached.endpoint))
            for number, path in self.paths.items()
        }

    async def _was_of_use(self) -> LinkEnd:
        """Wait for the end of the link. The endpoint of one that broke at once is shunned."""
        assert self._lost is not None and self._brought_up is not None
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
        self._endpoints.shun(self._brought_up.reached.endpoint)
        return LinkEnd.OF_NO_USE

    def leave(self) -> None:
        """The exit takes no new streams: let the session run out on its paths, and dial anew at once."""
        if not self.paths:
            self.kept.takes_streams = False
            return
        self._let_run_out("it is about to stop")

    def _let_run_out(self, why: str) -> None:
        carriers = [path.carrier for path in self.paths.values()]
        self.paths.clear()
        held = self.kept.leave()
        if held is None:
            for carrier in carriers:
                carrier.drop()
        else:
            session, packet_link = held
            _log.info(
                "link to the exit %s left, since %s: no new streams, %d go on to their end",
                self._settings.shown,
                why,
                len(session.streams),
            )
            self.left.add(session, packet_link, carriers)
        self._down(ExitStops())

    def _refused(self, stream: Stream, reason: StreamReason, untouched: bool) -> bool:
        """The exit refused a stream of the present session."""
        if reason is StreamReason.SHUTTING_DOWN:
            self.leave()
        return self._user.stream_refused(stream, reason, untouched)

    def _down(self, reason: PeerError | None) -> None:
        self._second.stop()
        with contained("keeps the loss of the link from the client"):
            self._user.link_down()
        with contained("leaves the session of a lost link"):
            self.kept.carrier_lost()
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(reason)

    def _fail(self, session_id: bytes, error: PeerError) -> None:
        """The peer did something wrong in a slow key exchange of a session, or this program did: the session ends."""
        session = self.kept.session
        if session is None or session.session_id != session_id:
            self.left.fail(session_id, error)
            return
        for path in list(self.paths.values()):
            path.carrier.fail(error)
        if session.closed is None:
            self.kept.drop()

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
            advice = f" - {to_be_let_in(self._identity.peer_id)}"
        _log.warning("no link to %s: %s%s", self.endpoint, text, advice)
