"""The client's filter in pf: loads the text of pf_rules.py into our anchor, replaces it, opens it for a while.

`PfFilter.up` comes before anything else changes. `update` follows when addresses, exits, LAN prefixes or the uplink
become known or change. The journal's undo (pfctl.py) empties the anchor, last of all, and needs pf no more. If the
process ends in any other manner, the anchor stays and holds everything in.

pf has no clock. What is open for a time is closed by a process of its own (closing.py), which is there before anything
is opened, and by this one. Counters begin anew with each load, so what they had is kept here.

Connections whose reason has ended are those whose states let them through (pf_states.py); all others are judged by
rules at each packet.

Not yet run on a Mac.
"""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import Final, Protocol, Self

from cryprq_proxy.base.clock import clock as base_clock
from cryprq_proxy.errors import LocalError
from cryprq_proxy.process.actions import MAX_PAUSE

from ..firewall.filter_settings import FilterSettings
from ..firewall.inbound import NOT_KEPT, Address, Inbound
from ..journal import Record
from ..routing.lan import Uplink
from ..system import Count
from . import networks, pfctl
from .asked import AnchorsAsked
from .closing import Closing, Stage
from .main_ruleset import not_evaluated
from .open_connections import observe
from .pf_rules import CLOSED, COUNTERS, Opened, anchor_rules, refuse
from .pf_states import Reasons, read_states, to_kill
from .pfctl import ANCHORS, PfError, PfRuleset
from .programs import ProgramError, Run, run

_log = logging.getLogger(__name__)

RESOLVING: Final = 30
"""Seconds after which the opening for an exit's name closes by itself."""
PF_CONF: Final = "/etc/pf.conf"
"""The system's main ruleset, loaded again where another program has taken all of it away."""
_ANCHOR: Final = ANCHORS["client"]


class Stoppable(Protocol):
    """A `Closing`."""

    def stop(self) -> None: ...


type StartClosing = Callable[[str, str, list[Stage]], Stoppable]


class PfFilter:
    """The client's packet filter, made by `up`. All methods block for some milliseconds and raise PfError."""

    def __init__(
        self,
        settings: FilterSettings,
        inbound: Inbound,
        record: Record,
        run: Run,
        clock: Callable[[], float],
        closing: StartClosing,
    ) -> None:
        """For `up` only."""
        self.settings = settings
        self._inbound = inbound
        self._record = record
        self._run = run
        self._clock = clock
        self._start_closing = closing
        self._closing: Stoppable | None = None
        self._uplinks: Mapping[int, Uplink] = {}
        self._asked: list[tuple[frozenset[Address], float]] = []
        """Resolvers that are being asked for an exit's name, and until when they may be, by `clock`."""
        self._pause_until = -math.inf
        self._opened = CLOSED
        self._written = PfRuleset((), ())
        self._counted: dict[str, Count] = {}
        """What was counted before the present rules were loaded."""
        self._token = ""
        self._asked_rules = AnchorsAsked(_ANCHOR, run=run)

    @classmethod
    def up(
        cls,
        settings: FilterSettings,
        record: Record,
        *,
        ours: bool,
        keep_inbound: bool = False,
        run: Run = run,
        clock: Callable[[], float] = base_clock,
        closing: StartClosing = Closing.start,
    ) -> Self:
        """Write the anchor to the journal, fill it, in place of what an earlier run left behind, and enable pf.

        `record` is the journal's; `ours` says that an older entry of the journal names the anchor. `keep_inbound`:
        connections from outside, those open now included, go on past the tunnel. `clock` must be that of
        base/clock.py where `closing` starts a process.

        Raises ConfigError for what pf cannot do, and PfError where the main ruleset asks no anchor of ours; then
        nothing was changed. Raises PfError also where pf asks none of our rules all the same; the journal has all.
        """
        refuse(settings)
        if said := not_evaluated(run):
            if settings.kill_switch:
                raise PfError(said)
            _log.warning("%s", said)
        inbound = observe(run) if keep_inbound else NOT_KEPT
        made = cls(settings, inbound, record, run, clock, closing)
        made._uplinks = made._present_uplinks(settings)
        pfctl.claim("client", record, ours=ours)
        made._load(settings)
        made._token = pfctl.enable(record, run)
        if said := made._not_asked():
            raise PfError(said)
        made.ended()()
        return made

    def update(self, settings: FilterSettings) -> bool:
        """From now on, the filter is that of `settings`; what is open stays open and the counters go on. Returns
        whether anything has changed.

        The rules are replaced in one step, also if another program has removed them in between.
        """
        uplinks = self._present_uplinks(settings)
        if (settings, uplinks) == (self.settings, self._uplinks):
            return False
        refuse(settings)
        before, self._uplinks = self._uplinks, uplinks
        try:
            self._load(settings)
        except BaseException:
            self._uplinks = before
            raise
        return True

    def restore(self) -> None:
        """Put back what another program has removed or changed: see `difference`. What is left of a pause is put back
        too.

        The rules are loaded also where no look works. Raises PfError where anything fails, and where the main ruleset,
        which is not ours, does not ask the anchor.
        """
        failed = []
        for step in (
            self._restore_main,
            partial(self._load, self.settings),
            self._enable_again,
            self._check_main,
        ):
            try:
                step()
            except PfError as error:
                failed.append(error)
        if failed:
            raise failed[0]

    def _restore_main(self) -> None:
        if not_evaluated(self._run) and not any(pfctl.loaded_main(self._run)):
            # Flushed: nobody's rules stand there whom this could hurt.
            pfctl.load_main(PF_CONF, self._run)

    def _enable_again(self) -> None:
        if not pfctl.enabled(self._run) or not pfctl.holds(self._token, self._run):
            self._token = pfctl.enable(self._record, self._run)

    def _check_main(self) -> None:
        if self.settings.kill_switch and (said := not_evaluated(self._run) or self._not_asked()):
            raise PfError(said)

    def _not_asked(self) -> str:
        return self._asked_rules.missing() if self.settings.kill_switch else ""

    def _load(self, settings: FilterSettings) -> None:
        """The rules for these settings, and for what is to be open now."""
        self._keep_counters()
        opened = self._to_open()
        closing = None
        if opened.mark:
            closing = self._start_closing(_ANCHOR, opened.mark, self._stages(settings, opened))
        try:
            pfctl.load(_ANCHOR, self._text(settings, opened), self._run)
        except BaseException:
            if closing is not None:
                closing.stop()
            raise
        self.settings, self._opened = settings, opened
        if self._closing is not None:
            self._closing.stop()
        self._closing = closing
        self._written = pfctl.loaded(_ANCHOR, self._run)

    def _text(self, settings: FilterSettings, opened: Opened) -> str:
        return anchor_rules(settings, self._inbound, opened, self._uplinks)

    def _present_uplinks(self, settings: FilterSettings) -> dict[int, Uplink]:
        """Where packets are sent that do not go by routes; not asked for where there are none."""
        if not (settings.excluded_uids or settings.rules.may_be_direct or self._inbound.keep):
            return {}
        try:
            state = networks.look(self._run)
        except ProgramError as error:
            raise PfError(str(error)) from None
        found = {version: state.uplink(version, settings.tun) for version in (4, 6)}
        return {version: uplink for version, uplink in found.items() if uplink is not None}

    def ended(self) -> Callable[[], object]:
        """What ends the connections that only a state lets through, and none of the present rules."""
        reasons = Reasons(self.settings, self._inbound.keep, self.paused() > 0)
        return partial(self._end, reasons)

    def _end(self, reasons: Reasons) -> None:
        states = read_states(pfctl.state_lines(self._run))
        pfctl.kill_states(to_kill(states, reasons), self._run)

    def at_rest(self) -> None:
        """macOS has no lockdown."""

    def difference(self) -> str:
        """What another program has done to the filter, in words; nothing if it stands as written."""
        if not pfctl.enabled(self._run):
            return "pf was disabled"
        if not pfctl.holds(self._token, self._run):
            return "pf was disabled and enabled again"
        if (said := not_evaluated(self._run)) and self.settings.kill_switch:
            return said
        found = pfctl.loaded(_ANCHOR, self._run)
        if found != self._written and self._opened.mark and self._is_over():
            # Closed in time.
            self._load(self.settings)
            return ""
        if not found:
            return f"the rules of {_ANCHOR} were removed"
        return self._not_asked() if found == self._written else f"the rules of {_ANCHOR} were changed"

    def standing(self) -> bool:
        """Whether pf is enabled and asks our rules."""
        return (
            pfctl.enabled(self._run)
            and bool(pfctl.loaded(_ANCHOR, self._run))
            and not not_evaluated(self._run)
            and not self._not_asked()
        )

    def counters(self) -> dict[str, Count]:
        """What was kept in, by cause (COUNTERS)."""
        now = pfctl.counted(_ANCHOR, self._run)
        return {cause: _sum(self._counted.get(cause), now.get(cause)) for cause in COUNTERS}

    def _keep_counters(self) -> None:
        if self._written:
            # What cannot be read is lost: the rules do not wait for it.
            with suppress(PfError):
                self._counted = self.counters()

    # --- openings ---

    @contextmanager
    def resolving(self, resolvers: Iterable[Address]) -> Iterator[None]:
        """While inside, at most RESOLVING seconds: root's sockets may ask these resolvers on port 53.

        May be entered again before it is left: the last one out closes.
        """
        asked = frozenset(resolvers), self._clock() + RESOLVING
        self._asked.append(asked)
        try:
            self._load(self.settings)
            yield
        finally:
            self._asked.remove(asked)
            self._load(self.settings)

    def pause(self, seconds: int) -> None:
        """This machine's packets go past the tunnel where routes lead them, for `seconds`.

        Tunnelled connections wait meanwhile: their source is an address of the tunnel. Raises LocalError if out of
        range.
        """
        if not 0 < seconds <= MAX_PAUSE:
            raise LocalError(f"a pause lasts from 1 to {MAX_PAUSE} seconds")
        before = self._pause_until
        self._pause_until = self._clock() + seconds
        try:
            self._load(self.settings)
        except BaseException:
            self._pause_until = before
            raise

    def end_pause(self) -> None:
        """Close what is closed by now. What was begun in the pause has a wrong source or is refused."""
        self._pause_until = -math.inf
        self._load(self.settings)

    def pause_left(self) -> int:
        """Whole seconds that the pause was asked for from now on, also where another program has removed the rules."""
        return math.floor(max(self._pause_until - self._clock(), 0))

    def paused(self) -> int:
        """Whole seconds for which pf lets everything out."""
        left = self.pause_left()
        if not left or not self._opened.paused:
            return 0
        rules = pfctl.loaded(_ANCHOR, self._run).rules
        return left if any(f'"{self._opened.mark}"' in rule for rule in rules) else 0

    def _to_open(self) -> Opened:
        now = self._clock()
        asked = frozenset[Address]().union(*(resolvers for resolvers, until in self._asked if until > now))
        paused = self._pause_until > now
        mark = f"open-{secrets.token_hex(8)}" if asked or paused else ""
        return Opened(mark, paused, asked)

    def _is_over(self) -> bool:
        now = self._to_open()
        return (now.paused, now.resolvers) != (self._opened.paused, self._opened.resolvers)

    def _stages(self, settings: FilterSettings, opened: Opened) -> list[Stage]:
        """What is left of the opening after each of its ends, with the same mark while anything is."""
        ends = {self._pause_until} if opened.paused else set[float]()
        resolving = max((until for _, until in self._asked), default=-math.inf)
        if opened.resolvers:
            ends.add(resolving)
        stages = []
        for end in sorted(ends):
            left = Opened(
                opened.mark,
                opened.paused and self._pause_until > end,
                opened.resolvers if resolving > end else frozenset(),
            )
            if not (left.paused or left.resolvers):
                left = CLOSED
            stages.append(Stage(end, self._text(settings, left)))
        return stages


def _sum(one: Count | None, other: Count | None) -> Count:
    found = [each for each in (one, other) if each is not None]
    return Count(sum(each.packets for each in found), sum(each.bytes for each in found))
