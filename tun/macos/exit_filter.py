"""The exit's anchor in pf, put up and kept: its rules (exit_rules.py), pf itself, and connections begun without them.

While the rules do not stand as written, clients' packets are withheld: they would leave with their own addresses.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Self

from cryprq_proxy.base.changes import Changes, NoChanges
from cryprq_proxy.errors import CryprqError

from ..journal import Record
from ..reconciler import Fact
from ..settings import ExitNetworkSettings
from ..system import Withhold
from . import pfctl
from .asked import AnchorsAsked
from .exit_rules import ExitView, text
from .main_ruleset import not_evaluated
from .pfctl import PfError, PfRuleset
from .programs import Run, run


class MacExitFilter(Fact):
    """The rules of one exit, made by `up`. The journal's undo (pfctl.py) takes them away."""

    name = "packet filter"
    vital = True
    polled = True
    changes: Callable[[], Changes] = NoChanges

    def __init__(
        self, settings: ExitNetworkSettings, view: ExitView, ipv6: bool, record: Record, run: Run
    ) -> None:
        """For `up` only."""
        self._settings = settings
        self._view = view
        self._ipv6 = ipv6
        self._record = record
        self._run = run
        self._changing = asyncio.Lock()
        self._token = ""
        # Beside a client, whose anchor is asked before, and may decide about all that is sent here.
        self._asked = AnchorsAsked(pfctl.ANCHORS["exit"], pfctl.ANCHORS["client"], run=run)
        self._written = PfRuleset((), ())
        self._withhold: Withhold = _leave_all

    @classmethod
    async def up(
        cls,
        settings: ExitNetworkSettings,
        view: ExitView,
        record: Record,
        *,
        ipv6: bool,
        ours: bool,
        run: Run = run,
    ) -> Self:
        """Write the anchor to the journal and fill it, in place of what an earlier run left behind, and enable pf.

        `record` is the journal's; `ours` says that an older entry of the journal names the anchor. Raises PfError,
        ConfigError; then nothing is changed but what the journal has.
        """
        made = cls(settings, view, ipv6, record, run)
        await asyncio.to_thread(made._start, ours)
        return made

    def _start(self, ours: bool) -> None:
        if said := not_evaluated(self._run):
            raise PfError(said)
        anchor = pfctl.claim("exit", self._record, ours=ours)
        self._write()
        if not self._written:
            raise PfError(f"pf has taken the rules of {anchor} and has none of them: this is no known macOS")
        self._token = pfctl.enable(self._record, self._run)
        self._check_asked()
        # What began while an exit that was killed had no rules.
        self._end_untranslated()

    async def follow(self, view: ExitView, *, ipv6: bool) -> None:
        """From now on, the rules are for these addresses, and carry IPv6 or refuse it. Raises PfError."""
        async with self._changing:
            if (view, ipv6) != (self._view, self._ipv6):
                self._view, self._ipv6 = view, ipv6
                await asyncio.to_thread(self._write)

    def tell(self, withhold: Withhold) -> None:
        """From now on, call `withhold` with True when the rules do not stand as written, and with False when they do
        and what began without them has ended: that leaves untranslated."""
        self._withhold = withhold

    async def look(self) -> str:
        async with self._changing:
            try:
                found = await asyncio.to_thread(self._look)
            except CryprqError:
                self._withhold(True)
                raise
            self._withhold(bool(found))
            return found

    def _look(self) -> str:
        if not pfctl.enabled(self._run):
            return "pf was disabled"
        if not pfctl.holds(self._token, self._run):
            return "pf was disabled and enabled again"
        if said := not_evaluated(self._run):
            return said
        found = pfctl.loaded(pfctl.ANCHORS["exit"], self._run)
        if not found:
            return f"the rules of {pfctl.ANCHORS['exit']} were removed"
        if found != self._written:
            return f"the rules of {pfctl.ANCHORS['exit']} were changed"
        return self._asked.missing()

    async def put_back(self) -> None:
        async with self._changing:
            await asyncio.to_thread(self._put_back)
            self._withhold(False)

    def _put_back(self) -> None:
        if said := not_evaluated(self._run):
            raise PfError(said)
        self._write()
        if not pfctl.enabled(self._run) or not pfctl.holds(self._token, self._run):
            self._token = pfctl.enable(self._record, self._run)
        self._check_asked()
        self._end_untranslated()

    def _check_asked(self) -> None:
        if said := self._asked.missing():
            raise PfError(said)

    def _end_untranslated(self) -> None:
        """What began without our rules is known to pf as not translated, for as long as it goes on. The states do not
        tell which those are, so all connections of clients end."""
        pools = [self._settings.pool4, *([self._settings.pool6] if self._ipv6 else [])]
        pfctl.kill_states([(str(pool),) for pool in pools], self._run)

    def _write(self) -> None:
        anchor = pfctl.ANCHORS["exit"]
        pfctl.load(anchor, text(self._settings, self._view, ipv6=self._ipv6), self._run)
        self._written = pfctl.loaded(anchor, self._run)


def _leave_all(withhold: bool) -> None:
    """Before anybody wants to be told."""
