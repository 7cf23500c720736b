"""The marks of connections that go past the tunnel on purpose: which get one, and how long it is accepted.

A mark (marks.py) has a kind: BYPASS for the link and excluded users, INBOUND for connections from outside, PAUSED for
those begun while the filter is open for a captive portal, DIRECT for those that a person's rule sends there
(user_rules.py), EXCLUDED for those of excluded cgroups. All of these get the link's fwmark, so that a single routing
rule serves, and the kernel's reverse path filter sees the right route. BLOCKED is for what a rule refuses.

A mark holds as long as its reason. It bears the numbers of its run and pause, and each accept stands in the table only
while its setting does. A mark of an earlier run is taken off, and its connection is judged anew (`earlier`); one of a
pause that is over is refused before anything else, since NAT has sent its connection elsewhere (`over`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from ...firewall.filter_settings import FilterSettings, Openings
from ...firewall.inbound import Inbound
from .cgroups import match
from .client_words import BEFORE_MANGLE, DNS_SET, base_chain
from .marks import KIND_MASK, OURS, OURS_MASK, RUN_MASK, MarkKind, Marks
from .nft import name

# A connection has no mark and is not known to conntrack before its first packet is let through.
_FIRST: Final = "ct state new ct mark 0 ct status & confirmed == 0"
_TCP_SYN: Final = "tcp flags & (syn | ack) == syn"


class Given(NamedTuple):
    """The marks of the present, and which kinds any setting gives."""

    marks: Marks
    inbound: bool
    direct: bool
    paused: bool
    excluded: bool

    @classmethod
    def of(cls, settings: FilterSettings, inbound: Inbound, openings: Openings, marks: Marks) -> Given:
        return cls(
            marks,
            inbound.keep,
            settings.rules.may_be_direct,
            openings.pause > 0,
            bool(settings.excluded_cgroups),
        )

    def mark(self, kind: MarkKind) -> str:
        return f"{self.marks.of(kind):#x}"

    def lasting(self, *others: MarkKind) -> str:
        """The set of those that hold for all of the run, and of `others`; empty if there are none."""
        kinds = [
            *others,
            *((MarkKind.INBOUND,) if self.inbound else ()),
            *((MarkKind.DIRECT,) if self.direct else ()),
            *((MarkKind.EXCLUDED,) if self.excluded else ()),
        ]
        return f"{{ {', '.join(map(self.mark, kinds))} }}" if kinds else ""

    def to_other_sources(self) -> str:
        """The set of those whose connections may have begun with the tunnel's address."""
        kinds = [
            *((MarkKind.PAUSED,) if self.paused else ()),
            *((MarkKind.DIRECT,) if self.direct else ()),
            *((MarkKind.EXCLUDED,) if self.excluded else ()),
        ]
        return f"{{ {', '.join(map(self.mark, kinds))} }}" if kinds else ""


def earlier(settings: FilterSettings, given: Given) -> Iterable[str]:
    """For a mark of an earlier run, or of earlier rules: taken over, or taken off and judged as at the first packet.

    An answer is not judged, since rules are about where a connection goes to: its mark waits for a packet out.
    """
    yield f"ct mark & {KIND_MASK:#x} == {MarkKind.PAUSED.any_run:#x} return"
    yield f"ct mark & {KIND_MASK:#x} == {MarkKind.BYPASS.any_run:#x} ct mark set {given.mark(MarkKind.BYPASS)} return"
    if given.inbound:
        inbound = f"ct mark & {KIND_MASK:#x} == {MarkKind.INBOUND.any_run:#x}"
        yield f"{inbound} ct mark set {given.mark(MarkKind.INBOUND)} return"
    for cgroup in sorted(settings.excluded_cgroups):
        excluded = f"ct mark & {KIND_MASK:#x} == {MarkKind.EXCLUDED.any_run:#x} {match(cgroup)}"
        yield f"{excluded} ct mark set {given.mark(MarkKind.EXCLUDED)} return"
    if settings.rules:
        yield f"ct mark & {KIND_MASK:#x} == {MarkKind.DIRECT.any_run:#x} ct direction reply return"
    yield "ct mark set 0"
    if settings.rules:
        yield (
            f"meta mark != {settings.mark:#x} ct direction original iifname != @uplinks fib daddr type != local "
            "jump rules"
        )


def _is_earlier(given: Given) -> str:
    return f"ct mark & {OURS_MASK:#x} == {OURS:#x} ct mark & {RUN_MASK:#x} != {given.marks.this_run:#x}"


def over(given: Given) -> Iterable[str]:
    """What is refused for its mark, wherever it goes. In a pause, `marked` has let its connections out before."""
    yield f"ct mark {given.mark(MarkKind.BLOCKED)} counter name by_rule goto refuse"
    yield f"ct mark & {KIND_MASK:#x} == {MarkKind.PAUSED.any_run:#x} counter name stale goto refuse"


def mark_in(settings: FilterSettings, inbound: Inbound, given: Given) -> Iterable[str]:
    yield base_chain("filter", "prerouting", BEFORE_MANGLE)
    yield f'iifname {{ {name(settings.tun)}, "lo" }} return'
    yield f"{_is_earlier(given)} jump earlier"
    if inbound.keep:
        fresh = "ct state new ct mark 0 fib daddr type local"
        marked = f"ct mark set {given.mark(MarkKind.INBOUND)}"
        low, high = inbound.ephemeral
        yield f"{fresh} {_TCP_SYN} {marked}"
        yield f"{fresh} udp sport >= 1024 udp dport != {low}-{high} {marked}"
        yield f"{fresh} icmp type echo-request {marked}"
        yield f"{fresh} icmpv6 type echo-request {marked}"
        # Also where the other end is the first to send: without the mark, a strict reverse path filter drops it.
        for version, ip in ((4, "ip"), (6, "ip6")):
            yield f"{ip} daddr . tcp dport . {ip} saddr . tcp sport @kept{version} {marked}"
    if settings.rules:
        yield f"iifname != @uplinks fib daddr type != local {_FIRST} jump rules"
    yield f"ct mark {given.lasting(MarkKind.BYPASS)} meta mark set {settings.mark:#x}"
    if given.paused:
        yield f"ct mark {given.mark(MarkKind.PAUSED)} meta nfproto @open meta mark set {settings.mark:#x}"


def mark_out(settings: FilterSettings, given: Given) -> Iterable[str]:
    """The kernel looks up the route again where the mark has changed (a chain of type route)."""
    mark = settings.mark
    yield base_chain("route", "output", "mangle")
    yield 'oifname "lo" return'
    yield "fib daddr type local return"
    yield f"{_is_earlier(given)} jump earlier"
    if settings.excluded_uids:
        yield f"meta skuid @uids ct mark 0 ct mark set {given.mark(MarkKind.BYPASS)}"
    for cgroup in sorted(settings.excluded_cgroups):
        for packets in (
            "meta l4proto != { tcp, udp }",
            f"meta l4proto {{ tcp, udp }} th dport != {DNS_SET}",
        ):
            yield f"{match(cgroup)} {_FIRST} {packets} ct mark set {given.mark(MarkKind.EXCLUDED)}"
    if given.inbound:
        for version, ip in ((4, "ip"), (6, "ip6")):
            yield (
                f"{ip} saddr . tcp sport . {ip} daddr . tcp dport @kept{version} "
                f"ct mark set {given.mark(MarkKind.INBOUND)}"
            )
    if given.paused:
        fresh = f"meta mark != {mark:#x} ct state new ct mark 0 meta nfproto @open"
        yield f"{fresh} ct mark set {given.mark(MarkKind.PAUSED)}"
    if settings.rules:
        yield f"meta mark != {mark:#x} {_FIRST} jump rules"
    if lasting := given.lasting():
        yield f"ct mark {lasting} meta mark set {mark:#x}"
    if given.paused:
        yield f"ct mark {given.mark(MarkKind.PAUSED)} meta nfproto @open meta mark set {mark:#x}"


def marked(given: Given) -> Iterable[str]:
    """For connections of this machine that bear a mark, perhaps another program's."""
    if given.paused:
        yield f"ct mark {given.mark(MarkKind.PAUSED)} meta nfproto @open accept"
    yield from over(given)
    if lasting := given.lasting():
        yield f"ct mark {lasting} accept"
