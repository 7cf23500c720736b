"""Several exits, seen as one: each has a Client of its own, and new streams go to the active one of them.

    request -> active exit healthy?  yes -> its Client, as soon as its link opens
                                     no  -> wait for whichever is healthy first, `wait_for_link` seconds at most
    request for one exit by name    -> that one, or wait for it, and nowhere else

selection.py says which one is active. This file asks each link for a sign of life every second. At a change it makes
requests that the lost exit has not answered again at the next one. Open streams stay with their session, which resumes
when its exit comes back.

In system-wide mode each Client has an ExitPort (packet_ports.py) for its network interface. With a single exit
nothing of all this happens: its Client works as it does alone.

`change` has other exits from then on. What stays is not touched; what goes takes no new streams, and those that it has
run out on its link beside the others (leaving.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final

from msgspec import structs

from ..address import Destination
from ..base.clock import clock
from ..base.faults import report_fault
from ..base.tasks import spawn
from ..base.work import Work
from ..errors import ConfigError, CryprqError, StreamReason
from ..lane.slices import Shape
from ..outbound.bytestream import ByteStream, OriginStream
from ..session.retention import SlotPool
from ..session.wire import StreamProtocol
from ..status import AskedExit, ClientStatus, KnownExit, Traffic
from .ask_exit import ask_exit
from .exit_entry import ExitChange, ExitEntry, MakeEntry, PlannedExit
from .requests import NO_OBSERVER, NOWHERE, ClientObserver, Early, StreamRequest, opened
from .selection import PROBE_SECONDS, Selection
from .waiting import WaitingRoom

_log = logging.getLogger(__name__)

RETRY_SECONDS: Final = 60.0
"""An exit that cannot do what the client needs is tried again so much later."""
MOST_LEAVING: Final = 32
"""Exits that were taken out and run out at the same time; one more ends the oldest."""


def plan_exits(plans: Sequence[PlannedExit], make: MakeEntry, slots: SlotPool, *, failback: float) -> Exits:
    """The exits of a configuration. Raises ConfigError for names that are taken."""
    wait = max(plan.settings.wait_for_link for plan in plans)
    return Exits([make(plan) for plan in plans], slots, wait_for_link=wait, failback=failback)


class Exits(ClientObserver):
    """Call `run` in a task; `stop` ends it. Times are in seconds."""

    def __init__(
        self,
        entries: Sequence[ExitEntry],
        slots: SlotPool,
        *,
        wait_for_link: float,
        failback: float,
        clock: Callable[[], float] = clock,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.slots = slots
        self._clock = clock
        self._loop = loop or asyncio.get_running_loop()
        self._waiting = WaitingRoom(wait_for_link, self._refuse, self._loop)
        self._refused: Counter[Any] = Counter()
        self._early = 0
        self._early_refused: Counter[Any] = Counter()
        self._past = Traffic()
        self._past_rotations = 0
        """These five also of exits that are gone."""
        self._timer: asyncio.TimerHandle | None = None
        self._probed = clock()
        self._stopping = False
        self._over: asyncio.Future[None] | None = None
        """The end of `run`, while it runs."""
        self._links: dict[ExitEntry, asyncio.Task[None]] = {}
        self.leaving: list[ExitEntry] = []
        """Those that were taken out, and still have streams."""
        self.left: Callable[[], object] = _nobody_waits
        """Called when the last stream of one of these has ended."""
        self._selection = Selection([entry.priority for entry in entries], failback, clock())
        self._arrange(entries)
        self.active = self.entries[self._selection.active]
        if self.active.port is not None:
            self.active.port.activate()

    def _arrange(self, entries: Sequence[ExitEntry]) -> None:
        names = [entry.name for entry in entries]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"two exits are called {name}; give one of them another name")
        self.entries = tuple(entries)
        self._by_name = dict(zip(names, self.entries, strict=True))
        self._single = len(self.entries) == 1
        for entry in self.entries:
            entry.client.observer = NO_OBSERVER if self._single else self
            if entry.port is not None:
                entry.port.observer = entry.client.observer
                entry.port.alone = self._single
        if self._single:
            self.entries[0].healthy = True  # its Client lets requests wait

    # --- another configuration -------------------------------------------------------------------------------------

    def change(self, plans: Sequence[PlannedExit], make: MakeEntry) -> ExitChange:
        """Have these exits from now on, new ones as `make` makes them."""
        before = self.entries
        entries = [self._kept(plan) or make(plan) for plan in plans]
        for entry, plan in zip(entries, plans, strict=True):
            entry.priority = plan.priority
            entry.client.take_limits(plan.settings.limits)
        places = [before.index(entry) if entry in before else None for entry in entries]
        self._selection.rearrange([entry.priority for entry in entries], places, self._clock())
        self._arrange(entries)
        active = self.entries[self._selection.active]
        if active is not self.active:
            self._switch(active)
        for entry in self.entries:
            if entry not in before and self._over is not None:
                self._begin(entry)
        for entry in before:
            if entry not in self.entries:
                self._take_out(entry)
        self._watch_time()
        self.changed()
        for request in self._waiting.take(self._need_not_wait):
            self.start(request)
        names, old = list(self._by_name), [entry.name for entry in before]
        return ExitChange(
            added=tuple(name for name in names if name not in old),
            removed=tuple(name for name in old if name not in names),
            renewed=tuple(entry.name for entry in entries if entry.name in old and entry not in before),
            number=len(entries),
        )

    def _kept(self, plan: PlannedExit) -> ExitEntry | None:
        """The entry whose link stays."""
        return next((entry for entry in self.entries if entry.serves(plan)), None)

    def _need_not_wait(self, request: StreamRequest) -> bool:
        entry = self._entry(request)
        return entry is None or entry.healthy

    def _take_out(self, entry: ExitEntry) -> None:
        """Let its streams run out; what waits for it goes elsewhere, unless it was asked for by name."""
        if entry.port is not None:
            entry.port.observer = NO_OBSERVER
        entry.client.observer = self  # what it has not served is asked of another one
        self._links.pop(entry, None)
        for oldest in self.leaving[: max(0, len(self.leaving) + 1 - MOST_LEAVING)]:
            spawn(oldest.client.stop(), f"end of the link to {oldest.name}")
        self.leaving.append(entry)
        for request in entry.client.retire():
            self.start(request)
        spawn(self._see_off(entry), f"end of the link to {entry.name}")

    async def _see_off(self, entry: ExitEntry) -> None:
        await entry.client.retired()
        await entry.client.stop()
        if entry not in self.leaving:
            return
        self.leaving.remove(entry)
        status = entry.client.status()
        self._past = Traffic(
            sent=self._past.sent + status.bytes.sent, received=self._past.received + status.bytes.received
        )
        self._past_rotations += status.rotations
        self._refused += entry.client.refused()
        self._early += entry.client.early
        self._early_refused += entry.client.early_refused
        self.left()

    @property
    def all(self) -> tuple[ExitEntry, ...]:
        """Also those that are leaving."""
        return *self.entries, *self.leaving

    @property
    def plans(self) -> tuple[PlannedExit, ...]:
        """What `change` would need to change nothing."""
        return tuple(PlannedExit(entry.name, entry.priority, entry.client.settings) for entry in self.entries)

    @property
    def addresses(self) -> tuple[Destination, ...]:
        """All places where a link is dialled, or still is."""
        return tuple(endpoint.address for entry in self.all for endpoint in entry.client.settings.endpoints)

    # --- for the front-ends ----------------------------------------------------------------------------------------

    def start(self, request: StreamRequest) -> None:
        """As `Client.start`, through the active exit, or through the one that `request` names and no other."""
        entry = self._entry(request)
        if entry is None or self._stopping:
            self._refuse(request)
        elif entry.healthy or entry.client.opens:
            entry.client.start(request)
        else:
            self._waiting.add(request)

    def take_over(self, request: StreamRequest) -> bool:
        self.start(request)
        return True

    def _entry(self, request: StreamRequest) -> ExitEntry | None:
        return self._by_name.get(request.exit) if request.exit else self.active

    def _refuse(self, request: StreamRequest) -> None:
        self._refused[StreamReason.LINK_DOWN] += 1
        self._early_refused[StreamReason.LINK_DOWN] += request.answered
        request.handler.refused(StreamReason.LINK_DOWN)

    async def open(self, destination: Destination, early: Early = Early.NEVER) -> OriginStream:
        """See requests.StreamSource. Raises StreamRefused."""
        return await opened(self.start, StreamProtocol.TCP, destination, early=early)

    async def open_resolver(self) -> ByteStream:
        """A stream to the active exit's own DNS resolver (RFC 7766). Raises StreamRefused."""
        return await opened(self.start, StreamProtocol.RESOLVER, NOWHERE)

    async def report(self, name: str = "") -> AskedExit:
        """What the exit of that name, or the active one, tells about itself. Raises CryprqError with one sentence."""
        if name:
            self._require(name)
        return await ask_exit(self.start, name or self.active.name)

    # --- for system-wide mode --------------------------------------------------------------------------------------

    def send_packet(self, buffer: memoryview, start: int, end: int, shape: Shape) -> None:
        """See Client.send_packet: to the active exit."""
        self.active.client.send_packet(buffer, start, end, shape)

    @property
    def lane_size(self) -> int | None:
        """See Client.lane_size: that of the active exit."""
        return self.active.client.lane_size

    def redial(self) -> None:
        """The machine is on another network: leave all carriers for new ones."""
        self._selection.begin_anew(self._clock())
        for entry in self.entries:
            entry.client.redial()

    # --- for proxies alone -----------------------------------------------------------------------------------------

    def look_at_addresses(self) -> None:
        """See Client.look_at_addresses: that of each exit."""
        for entry in self.entries:
            entry.client.look_at_addresses()

    # --- for a person ----------------------------------------------------------------------------------------------

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._by_name)

    def pin(self, name: str | None) -> None:
        """Use this exit and no other, also while it cannot be reached; None: choose among them again.

        Raises CryprqError if there is none of that name.
        """
        if name is not None:
            self._require(name)
        self._selection.pin(None if name is None else self.names.index(name), self._clock())
        self.changed()

    def _require(self, name: str) -> None:
        if name not in self._by_name:
            raise CryprqError(f"there is no exit of that name; choose one of: {', '.join(self.names)}")

    # --- the choice ------------------------------------------------------------------------------------------------

    def opens(self) -> None:
        """Requests that wait for an exit whose link opens need not wait for its verdict."""
        for request in self._waiting.take(self._opens_for):
            self.start(request)

    def _opens_for(self, request: StreamRequest) -> bool:
        entry = self._entry(request)
        return entry is not None and entry.client.opens

    def changed(self) -> None:
        """Look at all exits anew: something has changed, or it is time."""
        if self._single or self._stopping:
            return
        selection, now = self._selection, self._clock()
        selection.observe([entry.state() for entry in self.entries], now)
        changed = False
        for entry, healthy in zip(self.entries, selection.healthy, strict=True):
            if entry.healthy != healthy:
                changed = True
                entry.healthy = healthy
                _log.log(
                    logging.INFO if healthy else logging.WARNING,
                    "exit %s %s",
                    entry.name,
                    "answers" if healthy else "does not answer",
                )
        active = self.entries[selection.active]
        if active is not self.active:
            changed = True
            self._switch(active)
        if changed:
            self._move()

    def _switch(self, active: ExitEntry) -> None:
        before, self.active = self.active, active
        if active.name == before.name:
            _log.info("new connections go through exit %s as it is configured now", active.name)
        else:
            _log.warning("new connections go through exit %s, no longer through %s", active.name, before.name)
        if before.port is not None:
            before.port.deactivate()
        if active.port is not None:
            active.port.activate()

    def _move(self) -> None:
        """Move waiting and unanswered requests to the exits that are healthy now."""
        for request in self._waiting.take(self._can_be_served):
            self.start(request)
        if self.active.healthy:
            for entry in self.entries:
                if not entry.healthy:
                    for request in entry.client.withdraw():
                        self.start(request)

    def _can_be_served(self, request: StreamRequest) -> bool:
        entry = self._entry(request)
        return entry is not None and entry.healthy

    def _tick(self) -> None:
        now = self._clock()
        due = now + PROBE_SECONDS
        try:
            if now - self._probed >= PROBE_SECONDS:
                self._probed = now
                for entry in self.entries:
                    entry.client.measure()
            self.changed()
            due = min(self._probed + PROBE_SECONDS, self._selection.deadline())
        except Exception as error:  # noqa: BLE001  without its timer a silent exit would stay the active one
            report_fault("delays the choice of an exit", error)
        self._timer = self._loop.call_later(max(due - self._clock(), 0.0), self._tick)

    # --- life ------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep the links up until `stop`. Raises CryprqError if no exit can do what is asked of it."""
        self._over = asyncio.get_running_loop().create_future()
        for entry in self.entries:
            self._begin(entry)
        self._watch_time()
        try:
            await self._over
        finally:
            for link in list(self._links.values()):
                link.cancel()

    def _begin(self, entry: ExitEntry) -> None:
        link = self._links[entry] = spawn(self._keep(entry), f"link to {entry.name}")
        link.add_done_callback(self._link_ended)

    def _link_ended(self, link: asyncio.Task[None]) -> None:
        over = self._over
        if over is None or over.done():
            return
        if not link.cancelled() and (error := link.exception()) is not None:
            over.set_exception(error)
        elif all(each.done() for each in self._links.values()):
            over.set_result(None)

    def _watch_time(self) -> None:
        """Ask for signs of life as long as there is a choice."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._single and not self._stopping:
            self._tick()

    async def _keep(self, entry: ExitEntry) -> None:
        """Keep one link up. Raises CryprqError if no exit is left that can do what is asked of it."""
        while not self._stopping:
            try:
                entry.failure = None
                await entry.client.run()
                return
            except CryprqError as error:
                entry.failure = str(error)
                if all(one.failure is not None for one in self.entries):
                    raise
                _log.error("exit %s is not used: %s", entry.name, error)
                self.changed()
            await asyncio.sleep(RETRY_SECONDS)

    async def stop(self) -> None:
        """Close all links; what waits for one is refused."""
        self._stopping = True
        if self._timer is not None:
            self._timer.cancel()
        self._waiting.close()
        for entry in self.all:
            await entry.client.stop()

    # --- what others read ------------------------------------------------------------------------------------------

    def work(self) -> list[Work]:
        """For the watchdog."""
        return [entry.client.work(f"the link to {entry.name}") for entry in self.entries]

    def refused(self) -> Counter[Any]:
        """How many requests were refused since the start, by reason."""
        return sum((entry.client.refused() for entry in self.all), self._refused)

    def early(self) -> tuple[int, Counter[Any]]:
        """How many applications were answered early since the start, and how many of these refused then, by reason."""
        clients = [entry.client for entry in self.all]
        refused = sum((client.early_refused for client in clients), self._early_refused)
        return sum((client.early for client in clients), self._early), refused

    def traffic(self) -> Traffic:
        """Bytes of all links since the start."""
        each = [self._past, *(entry.client.traffic() for entry in self.all)]
        return Traffic(sent=sum(one.sent for one in each), received=sum(one.received for one in each))

    def status(self) -> ClientStatus:
        """That of the active exit's link, and all exits."""
        links = [(entry, entry.client.status()) for entry in self.entries]
        [active] = [link for entry, link in links if entry is self.active]
        moved = [link for _, link in links] + [entry.client.status() for entry in self.leaving]
        return structs.replace(
            active,
            waiting=active.waiting + len(self._waiting),
            bytes=self.traffic(),
            rotations=sum((link.rotations for link in moved), self._past_rotations),
            exits=tuple(self._entry_status(entry, link) for entry, link in links),
        )

    def _entry_status(self, entry: ExitEntry, link: ClientStatus) -> KnownExit:
        pinned = self._selection.pinned
        round_trip = entry.client.round_trip
        return KnownExit(
            name=entry.name,
            priority=entry.priority,
            active=entry is self.active,
            pinned=pinned is not None and entry is self.entries[pinned],
            healthy=entry.client.up if self._single else entry.healthy,
            link=link.link,
            peer_id=link.exit.peer_id,
            address=link.exit.address,
            carrier=link.carrier,
            round_trip=None if round_trip is None else round(round_trip, 6),
            last_error=entry.problem or link.last_error,
            session=link.session,
            carriers=link.carriers,
        )


def _nobody_waits() -> None:
    """For the end of an exit that was taken out."""


def keep_up(exits: Exits) -> asyncio.Task[None]:
    """Run `exits` in a task of its own."""
    return spawn(exits.run(), "link")
