"""The rules of pf about connections that begin outside: who comes in, and how answers leave.

With `--inbound keep` answers go back by the uplink, wherever routes lead. Without it, who may not be answered does not
come in. It is not enough that our rules hold the answers in: another program's `pass in` makes a state, before ours or
behind, quick or not, and by that the answers leave before a rule is asked. Whoever may be answered comes in if others
let them in; ours are not quick.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from ipaddress import ip_network

from cryprq_proxy.rules.ranges import IPNetwork

from ..device.names import checked_name
from ..firewall.filter_settings import FilterSettings
from ..firewall.inbound import Inbound
from ..routing.lan import Uplink
from .pf_words import BOUND, KINDS, gateway, label


class FromOutside:
    def __init__(
        self, settings: FilterSettings, inbound: Inbound, uplinks: Mapping[int, Uplink], *, paused: bool
    ) -> None:
        """`uplinks`: those that have a gateway and an address."""
        self._settings = settings
        self._inbound = inbound
        self._uplinks = uplinks
        self._everybody = inbound.keep or not settings.kill_switch
        """Whether answers leave to everybody."""
        unknown = settings.excluded_uids or settings.included or settings.rules.may_be_direct
        self._refuses = not (self._everybody or unknown or paused)
        """Whether the address alone tells to whom they leave, so that all others need not come in."""
        self._past = f"on ! {checked_name(settings.tun)}"
        """By any interface but the tunnel's."""

    def lines(self) -> Iterator[str]:
        if self._settings.rules or self._inbound.keep:
            # Rules for ports are not meant for answers, so these have a state.
            for source in ["any"] if self._everybody else [f"<{title}>" for title in self._tables()]:
                for new in self._new("", source):
                    yield f"pass in {self._past} {new} {BOUND}"
        if self._refuses:
            for new in self._new("", "! <answered>" if self.answered() else "any"):
                yield f"block drop in quick {self._past} {new}{label('unsolicited')}"
        if self._inbound.keep:
            yield from self._answers()
            yield from self._open_already()

    def answered(self) -> list[IPNetwork]:
        """To whom answers leave past the tunnel, for the table of that name; none where no rule asks for it."""
        if not self._refuses:
            return []
        exits = [ip_network(exit.address) for exit in self._settings.exits]
        return [
            *exits,
            *(network for title in self._tables() for network in getattr(self._settings, title)),
        ]

    def _tables(self) -> list[str]:
        found = ["lan"] if self._settings.lan_allowed else []
        return [title for title in (*found, "guests", "excluded") if getattr(self._settings, title)]

    def _answers(self) -> Iterator[str]:
        for version, uplink in self._uplinks.items():
            name = checked_name(uplink.name)
            for new in self._new(KINDS[version]):
                yield f"pass in on {name} reply-to ({name} {gateway(uplink)}) {new} keep state"
        if self._settings.lan:
            # Not through the gateway, as to all others.
            for new in self._new("", "<lan>"):
                yield f"pass in {self._past} {new} {BOUND}"

    def _open_already(self) -> Iterator[str]:
        for one in sorted(self._inbound.connections, key=str):
            uplink = self._uplinks.get(one.local.version)
            ends = (
                f"{KINDS[one.local.version]} proto tcp from {one.local} port {one.local_port} "
                f"to {one.remote} port {one.remote_port}"
            )
            if uplink is not None:
                by = f"route-to ({checked_name(uplink.name)} {gateway(uplink)})"
                yield f"pass out quick on {self._settings.tun} {by} {ends} no state"
            yield f"pass out quick {self._past} {ends} no state"

    def _new(self, kind: str, source: str = "any") -> Iterator[str]:
        """What begins a conversation."""
        low, high = self._inbound.ephemeral
        before = f"{kind} " if kind else ""
        yield f"{before}proto tcp from {source} to any flags S/SA"
        yield f"{before}proto udp from {source} port >= 1024 to any port {low} <> {high}"
        if kind in ("", "inet"):
            yield f"inet proto icmp from {source} to any icmp-type 8"
        if kind in ("", "inet6"):
            yield f"inet6 proto ipv6-icmp from {source} to any icmp6-type 128"
