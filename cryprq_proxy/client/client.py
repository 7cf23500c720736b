"""The client role: what front-ends and Exits (exits.py) ask of one exit.

`start` asks for a stream. While the link (link.py) is down, requests wait for a bounded time (waiting.py) and are then
refused. While it opens they are sent already, and wait no longer than others. Nothing ever goes out directly. When the
exit is about to stop, streams of its session run out beside the next one (leaving.py), and requests that it has not
served are made again.

When a stream has begun, its handler may be told to go on before the exit has answered (requests.Early). What it sends
then follows the OPEN in its session, and goes nowhere else: a request on whose stream something was sent is never made
again, here or at another exit.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from dataclasses import replace
from typing import Any, Final

from ..address import Destination
from ..base.clock import clock
from ..base.faults import contained
from ..base.work import Work
from ..carriers.dial.tcp import Resolve, by_system
from ..crypto.identity import Identity
from ..crypto.payloads import Feature
from ..crypto.primitives import Provider
from ..errors import StreamReason, StreamRefused, words_of
from ..outbound.bytestream import OriginStream
from ..session.liveness import UNKNOWN_ROUND_TRIP
from ..session.retention import SlotPool
from ..session.session import Session, SessionLimits
from ..session.status import session_status
from ..session.streams import Stream, StreamHandler
from ..session.wire import StreamProtocol
from ..status import ClientStatus, ExitAddress, Traffic
from .kept_session import PROOF_SECONDS
from .link import ClientLink
from .packet_ports import NO_NETWORK, ClientNetwork
from .reached import ReachedTargets
from .requests import NO_OBSERVER, Begin, ClientObserver, Early, StreamRequest, opened
from .rest import Pause
from .settings import ClientSettings
from .waiting import WaitingRoom

_log = logging.getLogger(__name__)

SILENCE: Final = 1.0
"""Seconds without a sign of life after which a request makes the exit prove that it is still there."""
SWEEP_SECONDS: Final = 0.25
"""Between two looks at the requests that nobody has answered, at least."""


class Client:
    """Call `run` in a task; `stop` ends it. With a `network`, packets are carried too, and `send_packet` sends them.

    `observer` may be replaced before `run`. `pause` is how the link waits between two attempts.
    """

    def __init__(
        self,
        identity: Identity,
        settings: ClientSettings,
        provider: Provider,
        network: ClientNetwork = NO_NETWORK,
        resolve: Resolve = by_system,
        slots: SlotPool | None = None,
        pause: Pause = asyncio.sleep,
    ) -> None:
        self._identity = identity
        self.settings = settings
        self._provider = provider
        self._network = network
        self.slots = slots or SlotPool()
        self._link = ClientLink(identity, settings, provider, network, resolve, self.slots, self, pause)
        self._kept = self._link.kept
        self._waiting = WaitingRoom(settings.wait_for_link, self._refuse)
        self._reached = ReachedTargets(clock)
        self.early = 0
        """Applications that were answered before the exit had connected their target."""
        self.early_refused: Counter[Any] = Counter()
        """How many of their requests were refused, by reason."""
        self._sweeper: asyncio.TimerHandle | None = None
        self.observer: ClientObserver = NO_OBSERVER
        self.send_packet = self._kept.send_packet

    async def run(self) -> None:
        """Keep the link up until `stop` is called. Raises CryprqError if the exit cannot do what is asked of it."""
        await self._link.run()

    def work(self, name: str) -> Work:
        """That of its link, for the watchdog."""
        return self._link.work(name)

    async def reach(self) -> None:
        """One attempt to bring the link up, instead of `run`. Raises PeerError with the reason in a sentence."""
        await self._link.connect()

    def take_limits(self, limits: SessionLimits) -> None:
        """Other limits; see KeptSession.take_limits."""
        self.settings = replace(self.settings, limits=limits)
        self._kept.take_limits(limits)

    def retire(self) -> list[StreamRequest]:
        """Dial no more and take no new streams. What applications have open runs out on the paths there are; streams of
        this program's own, as for names, are reset and made anew elsewhere. Returns the requests that wait for the
        link. Await `retired` behind it, then `stop`."""
        waiting = self._waiting.take()
        for stream in self.streams():
            request = stream.label
            if isinstance(request, StreamRequest) and request.decision is None:
                request.leave(stream)
                request.handler.reset(StreamReason.SESSION_LOST)
        self._link.retire()
        return waiting

    async def retired(self) -> None:
        """Return when nothing runs out any more."""
        await self._link.left.ended()

    async def stop(self) -> None:
        """Close the link; requests that wait for it are refused."""
        self._link.close()
        self._waiting.close()
        await self._link.ended()

    # --- for the front-ends ----------------------------------------------------------------------------------------

    def request(
        self, protocol: StreamProtocol, destination: Destination, handler: StreamHandler, begin: Begin
    ) -> None:
        """See requests.StreamSource."""
        self.start(StreamRequest(protocol, destination, handler, begin, early=Early.AS_CONFIGURED))

    async def open(self, destination: Destination, early: Early = Early.NEVER) -> OriginStream:
        """See requests.StreamSource. Raises StreamRefused."""
        return await opened(self.start, StreamProtocol.TCP, destination, early=early)

    def start(self, request: StreamRequest) -> None:
        """Ask for the stream that `request` describes, now or when the link is up; `request` becomes its label. If the
        link does not come up in time, only `handler.refused(LINK_DOWN)` is called."""
        if self._link.up:
            request.wait_until = None
            self._start(request)
        elif self._link.opens or self.up:
            self._start_early(request)
        elif self._link.stopping:
            self._refuse(request)
        else:
            self._waiting.add(request)
            self._link.hasten()

    def _start_early(self, request: StreamRequest) -> None:
        """Begin `request` before there is a link."""
        loop = asyncio.get_running_loop()
        until = self._waiting.until(request, loop)
        self._start(request)
        if self._sweeper is None or self._sweeper.when() > until:
            self._sweep_at(until, loop)

    def _sweep_at(self, when: float, loop: asyncio.AbstractEventLoop) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
        self._sweeper = loop.call_at(when, self._refuse_unanswered)

    def _start(self, request: StreamRequest) -> None:
        session = self._kept.session
        try:
            if session is None:
                raise StreamRefused(StreamReason.LINK_DOWN)
            if request.protocol is StreamProtocol.REPORT and not self._kept.features & Feature.REPORT:
                raise StreamRefused(StreamReason.NOT_ALLOWED)
            stream = session.open(request.protocol, request.destination, request.handler)
        except StreamRefused as refusal:
            self._refuse(request, refusal.reason)
        else:
            stream.label = request
            now = clock()
            if self._link.up and now - session.heard > SILENCE:
                session.prove(PROOF_SECONDS, now)
            try:
                request.begin(stream)
                if self._goes_early(request, session.liveness.overdue(now)):
                    request.handler.expected()
            except Exception as error:  # noqa: BLE001  the others that wait for the link would not begin
                session.table.stream_failed(stream, stream.handler, error)

    def _goes_early(self, request: StreamRequest, silent: bool) -> bool:
        """Whether its front goes on before the exit has answered. While its first link opens, "eager" relies on an exit
        that has proved who it is. Later ones open when an exit was restarted: a verdict that says it stops again would
        reset what could be made again. "learned" promises precise replies, and always waits for the verdict. Of a
        `silent` exit no answer may come at all, and what is not answered early can go to another one."""
        if request.protocol is not StreamProtocol.TCP or request.answered:
            return False
        if request.early is not Early.AS_CONFIGURED:
            return request.early is Early.ALWAYS
        connect, link = self.settings.connect, self._link
        request.answered = not silent and (
            (connect == "eager" and (link.up or not link.carriers))
            or (connect == "learned" and link.up and request.destination in self._reached)
        )
        self.early += request.answered
        return request.answered

    def _refuse(self, request: StreamRequest, reason: StreamReason = StreamReason.LINK_DOWN) -> None:
        self._kept.totals.refused[reason] += 1
        self._note_late(request, reason)
        request.handler.refused(reason)

    def _note_late(self, request: StreamRequest, reason: StreamReason) -> None:
        """A refusal that an application sees as a reset, if it has been answered."""
        if request.answered:
            self.early_refused[reason] += 1
            _log.debug("a connection is reset whose target was not reached: %s", words_of(reason))

    # --- for the choice among several exits (exits.py) ---------------------------------------------------------------

    @property
    def up(self) -> bool:
        """Whether there is a link, or the lane without one, to an exit that takes new streams."""
        return self._link.up or self._kept.lane_proven

    @property
    def opens(self) -> bool:
        """Whether streams may be requested, although the exit has not said yet whether it lets this client in."""
        return self._link.opens

    @property
    def heard(self) -> float:
        """When the exit last gave a sign of life, by base.clock; 0 before the first one."""
        session = self._kept.session
        return 0.0 if session is None else session.heard

    @property
    def round_trip(self) -> float | None:
        """Seconds, smoothed; None while it is not known."""
        session = self._kept.session
        if session is None or not session.attached or session.liveness.round_trip == UNKNOWN_ROUND_TRIP:
            return None
        return session.liveness.round_trip

    @property
    def least_round_trip(self) -> float | None:
        """The shortest of the present carrier; None while it is not known."""
        session = self._kept.session
        return None if session is None or self.round_trip is None else session.liveness.least_round_trip

    def measure(self) -> None:
        """Ask for a sign of life. If none comes, the link ends no sooner than without the question."""
        if self._kept.session is not None:
            self._kept.session.measure()

    def withdraw(self) -> list[StreamRequest]:
        """Take back the requests that this exit has not answered and any exit could serve; the caller makes them again.

        The exit may have reached the destination for some of them by now. Nothing was sent on them. Where something
        was, the stream ends, so that who sent it may try again, at an exit that answers; unless the link opens, and the
        answer is to come. So do streams of datagrams: one that was sent is not worth waiting for.
        """
        withdrawn = []
        for stream in self.streams():
            request = stream.label
            if not isinstance(request, StreamRequest) or request.exit:
                continue
            if stream.untouched:
                request.leave(stream)
                withdrawn.append(request)
            elif stream.protocol is StreamProtocol.UDP or self._is_stuck(stream):
                request.leave(stream)
                self._note_late(request, StreamReason.SESSION_LOST)
                request.handler.reset(StreamReason.SESSION_LOST)
        return withdrawn

    def _is_stuck(self, stream: Stream) -> bool:
        """Whether the exit does not answer it. Of a session that was left it serves what it has, and in one that opens
        the answer is to come."""
        return not stream.opened and stream.id in self._kept.streams and not self._link.opens

    def streams(self) -> list[Stream]:
        """The open and the requested ones, oldest first; also those of sessions that were left."""
        left = [stream for session in self._link.left for stream in session.streams.values()]
        return [*left, *self._kept.streams.values()]

    def stream(self, id: int) -> Stream | None:
        return self._kept.streams.get(id) or self._link.left.stream(id)

    @property
    def open_streams(self) -> int:
        return len(self._kept.streams) + sum(len(session.streams) for session in self._link.left)

    def refused(self) -> Counter[Any]:
        """How many requests were refused since the start, by reason."""
        return self._kept.refused() + self._link.left.refused()

    def look_at_addresses(self) -> None:
        """This machine may have lost an address: leave paths that are connected from it."""
        self._link.look_at_addresses()

    # --- for system-wide mode ----------------------------------------------------------------------------------------

    @property
    def lane_size(self) -> int | None:
        """The largest UDP payload that the datagram lane takes now; None while it is not up."""
        link = self._kept.packet_link
        lane = None if link is None else link.lane
        return lane.size if lane is not None and lane.up else None

    def redial(self) -> None:
        """The route to the exit has changed: leave the present paths for a new one."""
        self._link.redial()

    # --- called by the link ------------------------------------------------------------------------------------------

    def link_opens(self) -> None:
        """Requests need not wait for the exit's verdict."""
        for request in self._waiting.take():
            self._start_early(request)
        self.observer.opens()

    def link_up(self) -> None:
        """Requests need not wait any more."""
        for stream in self._kept.streams.values():
            if isinstance(stream.label, StreamRequest):
                stream.label.wait_until = None
        self._network.link_changed(True)
        self._serve()

    def _serve(self) -> None:
        self.observer.changed()
        for request in self._waiting.take():
            self.start(request)

    def lane_proven(self) -> None:
        """There is no link, and the lane goes on without it. Called in the middle of the session's work."""
        asyncio.get_running_loop().call_soon(self._go_on_by_lane)

    def _go_on_by_lane(self) -> None:
        if self.up:
            self._serve()

    def link_down(self) -> None:
        self._refuse_unanswered()
        with contained("keeps the loss of the link from the network interface"):
            self._network.link_changed(False)
        with contained("delays the choice of an exit"):
            self.observer.changed()

    def _refuse_unanswered(self) -> None:
        """While the link is down, refuse requests that the exit has not answered in the time that others wait for the
        link: they were made when it was not known yet to be dead."""
        if self._link.up:
            return
        loop = asyncio.get_running_loop()
        if self.up:
            # By the lane, which may fall before there is a link again.
            self._sweep_at(loop.time() + SWEEP_SECONDS, loop)
            return
        now, next_due = loop.time(), None
        for stream in list(self._kept.streams.values()):
            request = stream.label
            if stream.opened or not isinstance(request, StreamRequest):
                continue
            due = request.wait_until or request.since + self.settings.wait_for_link
            if due <= now:
                with contained("leaves a request that nobody answers"):
                    request.leave(stream)
                    self._refuse(request)
            else:
                next_due = min(due, next_due or due)
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        if next_due is not None:
            self._sweep_at(max(next_due, now + SWEEP_SECONDS), loop)

    def stream_opened(self, stream: Stream) -> None:
        """The exit has connected the destination."""
        if stream.protocol is StreamProtocol.TCP:
            self._reached.add(stream.destination)

    def stream_refused(self, stream: Stream, reason: StreamReason, untouched: bool) -> bool:
        """The exit has not connected the destination. True if the request is made again, so that its handler is not
        told: where the exit is about to stop, and nothing was sent on the stream."""
        self._reached.discard(stream.destination)
        request = stream.label
        if not isinstance(request, StreamRequest):
            return False
        if reason is StreamReason.SHUTTING_DOWN and untouched:
            self._make_again(stream, request)
            return True
        self._note_late(request, reason)
        return False

    def streams_lost(self, streams: list[Stream]) -> None:
        """A session ends: make its requests again on which nothing was sent."""
        for stream in streams:
            request = stream.label
            if not isinstance(request, StreamRequest) or stream.opened:
                continue
            if stream.untouched:
                self._make_again(stream, request)
            else:
                self._note_late(request, StreamReason.SESSION_LOST)

    def _make_again(self, stream: Stream, request: StreamRequest) -> None:
        request.leave(stream)
        if not self.observer.take_over(request):
            self.start(request)

    # --- what others read --------------------------------------------------------------------------------------------

    def traffic(self) -> Traffic:
        """Bytes of all sessions since the start."""
        return self._kept.totals.bytes(*self._live())

    def _live(self) -> list[Session]:
        session = self._kept.session
        return [*self._link.left] if session is None else [*self._link.left, session]

    def status(self) -> ClientStatus:
        """What `cryprq-proxy status` shows of this link."""
        link, kept = self._link, self._kept
        session, packet_link = kept.session, kept.packet_link
        packets = None if packet_link is None else packet_link.status()
        return ClientStatus(
            peer_id=str(self._identity.peer_id),
            link="up" if self.up else "down",
            exit=ExitAddress(peer_id=str(self.settings.peer), address=str(link.endpoint)),
            carrier=link.carrier_status(),
            provider=self._provider.name,
            carriers=link.carriers,
            waiting=len(self._waiting),
            last_error=link.last_error,
            session=None
            if session is None or link.opens
            else session_status(session, clock(), link.carriers_of_paths(), packets),
            bytes=self.traffic(),
            rotations=kept.totals.rotations(*self._live()),
            packets=packets,
        )
