"""The result of a leak test: what became of each canary, as lines for a terminal and as plain values for JSON."""

from __future__ import annotations

import enum
from collections import Counter
from dataclasses import dataclass
from typing import Any, NamedTuple


class CanaryVerdict(enum.StrEnum):
    TUNNELLED = "tunnelled"
    """Seen on the tunnel's interface and nowhere else."""
    HERE = "answered here"
    """Answered, and seen on no interface: by the DNS forwarder of this machine."""
    BLOCKED = "blocked"
    """Seen nowhere, and not answered."""
    ALLOWED = "allowed"
    """Seen outside, where a setting (the LAN, an exclusion) lets it go."""
    LEAKED = "LEAKED"


class CanaryRow(NamedTuple):
    """The result for one canary."""

    name: str
    target: str
    verdict: CanaryVerdict
    seen: str
    """For people: the interfaces, whether it was answered, what the system said."""


@dataclass(frozen=True, slots=True)
class LeakReport:
    """The result of a leak test."""

    rows: tuple[CanaryRow, ...]
    link: int
    """Packets of the link to an exit, outside."""
    others: tuple[tuple[str, str, int], ...]
    """Of what else left outside: interface, protocol and destination, packets. No canaries: no proof of a leak, since
    a setting may let it go (`--exclude-uid`, `--inbound keep`)."""
    other_packets: int
    missed: int
    """Packets that the capture lost; then a canary may have been among them."""
    counters: dict[str, int]
    """Packets that left meanwhile, by interface, from the kernel's counters."""

    @property
    def leaks(self) -> tuple[CanaryRow, ...]:
        return tuple(row for row in self.rows if row.verdict is CanaryVerdict.LEAKED)

    @property
    def exit_code(self) -> int:
        """1 on any leak, and also where the capture has lost packets, so that nothing is proved; else 0."""
        return 1 if self.leaks or self.missed else 0


def render(report: LeakReport) -> str:
    """The report as lines for a terminal, without colours."""
    head = ("canary", "target", "verdict", "seen")
    table = [head, *((row.name, row.target, str(row.verdict), row.seen) for row in report.rows)]
    widths = [max(len(line[column]) for line in table) for column in range(3)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[3]]).rstrip()
        for line in table
    ]
    lines.append("")
    if report.counters:
        sent = ", ".join(f"{interface} {count}" for interface, count in sorted(report.counters.items()))
        lines.append(f"packets that left meanwhile: {sent}; {report.link} of them seen to be the link")
    for interface, shown, count in report.others:
        lines.append(f"also left outside of the tunnel: {shown} on {interface} ({count} packets)")
    listed = sum(count for _, _, count in report.others)
    if report.other_packets > listed:
        lines.append(f"and {report.other_packets - listed} packets more to other destinations")
    counts = Counter(row.verdict for row in report.rows)
    summary = ", ".join(f"{counts[verdict]} {verdict}" for verdict in CanaryVerdict if counts[verdict])
    if report.leaks:
        lines.append(f"LEAK: {summary}")
    elif report.missed:
        lines.append(f"nothing proved: the capture lost {report.missed} packets; try again with less traffic")
    else:
        lines.append(f"no leak: {summary or 'nothing was sent'}")
    return "\n".join(lines)


def plain(report: LeakReport) -> dict[str, Any]:
    """The report as plain values, for programs."""
    return {
        "leak": bool(report.leaks),
        "canaries": [row._asdict() for row in report.rows],
        "link_packets": report.link,
        "others": [
            {"interface": interface, "what": what, "packets": packets}
            for interface, what, packets in report.others
        ],
        "missed": report.missed,
        "packets_sent": report.counters,
    }
