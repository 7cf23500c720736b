"""The rules, applied: which route each connection through the local proxy takes.

    request -> rules -> tunnel   the active exit     exits.py
                        exit     one exit, by name   exits.py
                        direct   this machine        direct.py
                        block    refused, NOT_ALLOWED

Where there are rules, the datagrams of one UDP association may take different routes, so each is judged on its own:
split_association.py. Without rules the default holds for all. With several exits, though, the stream of
the tunnel may have to be requested anew at another exit, which is the same to such an association.

The client's own name (OWN_NAME) goes nowhere: a name that does not exist goes in its place. So no resolver sees it, and
who asks for it hears as late as of any other name that there is none.

A connection keeps the decision that it began with; rules that are loaded later hold for those that come later.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Iterator
from string import ascii_lowercase
from typing import Any, Final

from ..address import OWN_NAME, Destination
from ..errors import ConfigError, DirectRefused, StreamBlocked, StreamReason, StreamRefused
from ..outbound.bytestream import OriginStream
from ..rules.engine import Decision, RuleSet
from ..rules.syntax import RuleAction, Verdict
from ..session.retention import SlotPool
from ..session.status import by_name
from ..session.streams import Stream, StreamHandler
from ..session.wire import StreamProtocol
from ..status import ConnectionCounts, OpenConnection
from .direct import Direct, DirectAssociation, DirectStream
from .exits import Exits
from .requests import Begin, Early, StreamRequest, opened
from .split_association import SplitAssociation

MAX_ROWS: Final = 1_000
"""Connections that are listed; of the oldest only the number is told."""
DIRECT_NAME: Final = "direct"
"""Stands where an exit's name does in the id of a direct connection: no exit may be called so."""


class Dispatcher:
    """The StreamSource of the front-ends. Call `stop` in the end; the exits are the caller's own to stop."""

    def __init__(self, exits: Exits, rules: RuleSet, direct: Direct | None = None) -> None:
        if DIRECT_NAME in exits.names:
            raise ConfigError(f'an exit cannot be called "{DIRECT_NAME}"; give it another name')
        self.exits = exits
        self.direct = direct or Direct(exits.slots)
        self._no_name = _no_name()
        self._counts = dict.fromkeys(Verdict, 0)
        self._rules: RuleSet
        self._always: Decision | None
        self._splits: bool
        self.rules = rules

    @property
    def slots(self) -> SlotPool:
        return self.exits.slots

    @property
    def rules(self) -> RuleSet:
        """May be set at any time. Raises ConfigError for rules that name an exit which is not there."""
        return self._rules

    @rules.setter
    def rules(self, rules: RuleSet) -> None:
        known = self.exits.names
        for action in (*(rule.action for rule in rules.rules), rules.default):
            if action.verdict is Verdict.EXIT and action.exit not in known:
                raise ConfigError(
                    f"a rule sends connections to the exit {action.exit}, which is not configured; "
                    f"there are: {', '.join(known)}"
                )
        self._rules = self.direct.policy.rules = rules
        self._always = None if rules.rules else Decision(rules.default, "default", -1)
        self._splits = bool(rules.rules) or (rules.default.verdict is Verdict.TUNNEL and len(known) > 1)

    # --- StreamSource ----------------------------------------------------------------------------------------------

    def request(
        self, protocol: StreamProtocol, destination: Destination, handler: StreamHandler, begin: Begin
    ) -> None:
        """See requests.StreamSource; `handler.refused(NOT_ALLOWED)` where a rule blocks the destination."""
        if protocol is StreamProtocol.UDP and self._splits:
            association = SplitAssociation(handler, self.decide, self.start, self._count_blocked)
            begin(association)
            handler.opened()
            return
        destination = self._outward(destination)
        decision = self._always or self._rules.decide(*destination)
        exit = decision.action.exit
        self.start(StreamRequest(protocol, destination, handler, begin, exit, decision, Early.AS_CONFIGURED))

    async def open(self, destination: Destination, early: Early = Early.NEVER) -> OriginStream:
        """See requests.StreamSource. Raises StreamBlocked where a rule blocks the destination, DirectRefused where it
        cannot be reached from this machine, and StreamRefused."""
        destination = self._outward(destination)
        decision = self.decide(destination)
        verdict = decision.action.verdict
        if verdict is Verdict.BLOCK:
            self._count_blocked()
            raise StreamBlocked(decision.rule)
        try:
            return await opened(
                self.start, StreamProtocol.TCP, destination, decision.action.exit, decision, early
            )
        except StreamRefused as refusal:
            if verdict is Verdict.DIRECT:
                raise DirectRefused(refusal.reason) from None
            raise

    def _outward(self, destination: Destination) -> Destination:
        return Destination(self._no_name, destination.port) if destination.host == OWN_NAME else destination

    def decide(self, destination: Destination) -> Decision:
        """What the rules say of `destination`."""
        return self._always or self._rules.decide(*destination)

    def start(self, request: StreamRequest) -> None:
        """Send a request along its route."""
        verdict = Verdict.TUNNEL if request.decision is None else request.decision.action.verdict
        self._counts[verdict] += 1
        if verdict is Verdict.DIRECT:
            self.direct.start(request)
        elif verdict is Verdict.BLOCK:
            request.handler.refused(StreamReason.NOT_ALLOWED)
        else:
            self.exits.start(request)

    def _count_blocked(self) -> None:
        self._counts[Verdict.BLOCK] += 1

    def stop(self) -> None:
        """End the direct connections."""
        self.direct.stop()

    # --- read by others ------------------------------------------------------------------------------------------

    def connections(self) -> list[OpenConnection]:
        """The open connections, newest first, at most MAX_ROWS."""
        now = time.monotonic()
        found = [
            (request.since, name, stream, request)
            for name, stream in self._all()
            if isinstance(request := stream.label, StreamRequest)
        ]
        found.sort(key=lambda row: row[0], reverse=True)
        return [_row(name, stream, request, now) for _, name, stream, request in found[:MAX_ROWS]]

    def _all(self) -> Iterator[tuple[str, Stream | DirectStream | DirectAssociation]]:
        """The newest MAX_ROWS of each route, with the first part of their ids."""
        for entry in self.exits.all:
            for stream in entry.client.streams()[-MAX_ROWS:]:
                yield entry.name, stream
        for direct in list(self.direct.streams.values())[-MAX_ROWS:]:
            yield DIRECT_NAME, direct

    def close(self, id: str) -> bool:
        """Reset a connection by the id of its row, on both sides; False if it is not there (any more)."""
        name, _, number = id.rpartition("/")
        if not (number.isascii() and number.isdecimal() and len(number) <= 20):
            return False
        stream = self._find(name, int(number))
        if stream is None:
            return False
        handler = stream.handler
        stream.reset(StreamReason.CANCELLED)
        handler.reset(StreamReason.CANCELLED)
        return True

    def _find(self, name: str, number: int) -> Stream | DirectStream | DirectAssociation | None:
        if name == DIRECT_NAME:
            return self.direct.streams.get(number)
        found = (entry.client.stream(number) for entry in self.exits.all if entry.name == name)
        return next((stream for stream in found if stream is not None), None)

    def counts(self) -> ConnectionCounts:
        """How many connections there are and were, by which routes, and how many were refused."""
        blocked = self._counts[Verdict.BLOCK]
        early, early_refused = self.exits.early()
        refused: Counter[Any] = Counter({StreamReason.NOT_ALLOWED: blocked} if blocked else {})
        return ConnectionCounts(
            open=sum(entry.client.open_streams for entry in self.exits.all) + len(self.direct.streams),
            total=sum(self._counts.values()),
            by={verdict.value: count for verdict, count in self._counts.items()},
            refused=by_name(self.exits.refused(), self.direct.refused, refused),
            early=early,
            early_refused=by_name(early_refused),
        )


def _no_name() -> str:
    """A name as long as OWN_NAME, below the same domain; one for each start, so that an answer is kept as that of any
    other name."""
    label, _, domain = OWN_NAME.partition(".")
    return "".join(secrets.choice(ascii_lowercase) for _ in label) + "." + domain


def _row(
    name: str, stream: Stream | DirectStream | DirectAssociation, request: StreamRequest, now: float
) -> OpenConnection:
    decision = request.decision
    return OpenConnection(
        id=f"{name}/{stream.id}",
        target=str(request.destination) if request.destination.port else "*",
        protocol=_PROTOCOLS[request.protocol],
        to=str(_TUNNEL if decision is None else decision.action),
        rule="" if decision is None else decision.rule,
        exit="" if name == DIRECT_NAME else name,
        age=round(now - request.since, 3),
        sent=stream.sent,
        received=stream.received,
    )


_TUNNEL: Final = RuleAction(Verdict.TUNNEL)
_PROTOCOLS: Final = {
    StreamProtocol.TCP: "tcp",
    StreamProtocol.UDP: "udp",
    StreamProtocol.RESOLVER: "dns",
    StreamProtocol.REPORT: "report",
}
