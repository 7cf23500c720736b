"""pf's states: which of them let packets through that no rule would, so that they are to be ended.

A state lets a connection's packets through before any rule is asked, whoever's rule made it. So at the start the states
of other rules that lead past the tunnel are ended, and after each change of ours those whose reason has gone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final, NamedTuple

from ..firewall.filter_rules import DNS_PORTS
from ..firewall.filter_settings import FilterSettings
from ..firewall.inbound import Address

MANY: Final = 64
"""Pairs of addresses that are ended one by one; of more, all that begins at their own end is."""
_NUMBERS: Final = {"tcp": 6, "udp": 17}
_END: Final = re.compile(r"([0-9a-fA-F:.]+?)(?:%\w+)?(?:\[(\d+)\]|:(\d+))?")
_LINE: Final = re.compile(r"(\S+) (\S+) (\S+) (->|<-) (\S+)(?: (?:->|<-) (\S+))?\s.*")


class State(NamedTuple):
    """One line of `pfctl -s states`."""

    interface: str
    """ALL for one that holds everywhere."""
    proto: str
    incoming: bool
    local: Address
    remote: Address
    port: int
    """The other end's; 0 where there is none."""
    translated: bool

    @property
    def ends(self) -> tuple[str, str]:
        """Source and destination, for `pfctl -k`."""
        pair = (str(self.local), str(self.remote))
        return pair[::-1] if self.incoming else pair


def read_states(lines: Iterable[str]) -> Iterator[State]:
    """Lines that do not look like states are passed over."""
    for line in lines:
        match = _LINE.fullmatch(f"{line.strip()} ")
        if match is None:
            continue
        local, remote = _END.fullmatch(match[3]), _END.fullmatch(match[6] or match[5])
        if local is None or remote is None:
            continue
        try:
            ends = ip_address(local[1]), ip_address(remote[1])
        except ValueError:
            continue
        port = int(remote[2] or remote[3] or 0)
        yield State(match[1], match[2], match[4] == "<-", *ends, port, match[6] is not None)


@dataclass(frozen=True, slots=True)
class Reasons:
    """For which a state may stand."""

    settings: FilterSettings
    keep_inbound: bool
    paused: bool

    def ends(self, state: State) -> bool:
        """Whether it has none."""
        settings = self.settings
        if state.interface == "lo0" or state.local.is_loopback:
            return False
        tunnels = (settings.tunnel4, settings.tunnel6)
        if state.interface == settings.tun:
            return state.local not in tunnels or self._ruled(state) is not None
        if state.translated and state.local in tunnels:
            # Whose it is cannot be told.
            return not settings.excluded_uids and self._ruled(state) is not True
        if not settings.kill_switch or self.paused:
            return False
        if state.incoming and self.keep_inbound:
            return False
        return not self._goes_past(state)

    def _ruled(self, state: State) -> bool | None:
        """Whether a person's rule sends it past the tunnel; None if it goes through."""
        rules = self.settings.rules
        if not rules:
            return None
        number = _NUMBERS.get(state.proto, 0)
        if number and state.port in DNS_PORTS:
            return None
        return True if rules.sends_past_the_tunnel(state.remote, number, state.port) else None

    def _goes_past(self, state: State) -> bool:
        settings = self.settings
        if any(state.remote == exit.address and state.port == exit.port for exit in settings.exits):
            return True
        if state.proto in _NUMBERS and state.port in DNS_PORTS and not state.incoming:
            return False
        past = [*settings.excluded, *settings.guests, *(settings.lan if settings.lan_allowed else ())]
        if any(state.remote in network for network in past) or self._ruled(state):
            return True
        if not settings.included:
            return False
        inside = (*settings.included, *settings.lan)
        return not any(state.remote in network for network in inside)


def to_kill(states: Iterable[State], reasons: Reasons) -> list[tuple[str, ...]]:
    """What is given to `pfctl -k`, one call each."""
    pairs = sorted({state.ends for state in states if reasons.ends(state)})
    if len(pairs) <= MANY:
        return [tuple(pair) for pair in pairs]
    return [(source,) for source in sorted({source for source, _ in pairs})]
