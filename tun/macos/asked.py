"""The proof that pf asks our anchors: it has asked the first rule of one for a packet.

That the main ruleset names `com.apple/*` is text only; of one Mac it was reported that rules below it are loaded and
never asked. pf counts how often a rule was asked, whether it has matched or not, and it asks the first filter rule of
an anchor for each packet that comes to it, by any interface in either direction. So that rule has the label FIRST.
Where it was asked for nothing yet, a datagram of our own is sent: to this machine, and then by the uplink, where the
client's rules refuse it.

`set skip on lo0` keeps pf away from what this machine sends to itself, as virtual machines of macOS may leave it, and a
rule of the main ruleset may decide about that before ours. If there is no uplink either, nothing can be proved yet; it
is tried again at each look. Where pf is kept away from an interface that leads outside, nothing is held in there: that
is looked at each time. Any may lead outside but loopback, those of AirDrop, and, while no default route of all programs
leads there, those of virtual machines.

Not yet run on a Mac.
"""

from __future__ import annotations

import logging
import re
import socket
from ipaddress import ip_address
from typing import Final

from cryprq_proxy.errors import CryprqError

from . import networks, pfctl
from .pfctl import PfError
from .programs import Run, run

_log = logging.getLogger(__name__)

FIRST: Final = "first"
"""Label of the first filter rule of each of our anchors."""
NOT_ASKED: Final = (
    "pf has taken our rules and asks none of them, so nothing would be held in: load the system's own rules (pfctl -f "
    "/etc/pf.conf) and start again; if that does not help, --tun cannot work on this Mac"
)
SKIPPED: Final = (
    "pf is kept away from {} (set skip), so nothing would be held in there: take that line out of /etc/pf.conf, or end "
    "the program that has loaded it, and load the system's own rules (pfctl -f /etc/pf.conf)"
)
_LOOPBACKS: Final = frozenset({"lo0", "lo"})
"""The interface, and the group of all such."""
_INSIDE: Final = _LOOPBACKS | {"awdl0", "llw0"}
"""These lead to this machine, and to devices beside it without a router."""
_OF_MACHINES: Final = re.compile(r"bridge1[0-9][0-9]|vmenet[0-9]+", re.ASCII)
"""Those of virtual machines. bridge0 and its like are a person's, and may be the uplink."""
_UNPROVED: Final = (
    "whether pf asks our rules is not proved yet: nothing can be sent but by lo0, where it does not"
)
_OURS: Final = '"com.apple/*"'
"""How the main ruleset calls our anchors."""
_LOOPBACK: Final = "127.0.0.1"
TARGETS: Final = (_LOOPBACK, "192.0.2.1", "2001:db8::1")
"""This machine, then addresses that nobody has (RFC 5737, RFC 3849), by the uplink."""
_PORT: Final = 9
"""Discard (RFC 863)."""


def send(address: str) -> bool:
    """Send an empty datagram there; whether it was taken."""
    version = ip_address(address).version
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.sendto(b"", (address, _PORT))
    except OSError:
        return False
    return True


class AnchorsAsked:
    """Whether pf asks any of these anchors, which stand side by side. Once proved, that is not looked at again."""

    def __init__(self, *anchors: str, run: Run = run) -> None:
        self._anchors = anchors
        self._run = run
        self._proved = False
        self._told = False

    def missing(self) -> str:
        """A sentence where pf is on, our rules stand, and it asks none of them, or not for all interfaces; empty where
        it does, or where nothing can be known yet. Blocks. Raises PfError."""
        skipped = pfctl.skipped(self._run)
        if outside := sorted(self._outside(skipped)):
            return SKIPPED.format(", ".join(outside))
        if self._is_proved():
            return ""
        taken = []
        for address in TARGETS:
            if send(address):
                taken.append(address)
            # Also where it was refused: that may have been one of our rules.
            if self._is_proved():
                return ""
        if taken not in ([], [_LOOPBACK]) or self._is_loopback_asked(skipped):
            return NOT_ASKED
        if not self._told:
            _log.warning("%s", _UNPROVED)
        self._told = True
        return ""

    def _outside(self, skipped: set[str]) -> set[str]:
        """Those of them that may lead outside."""
        machines = set(filter(_OF_MACHINES.fullmatch, skipped))
        # Most Macs have none, and are spared a look at their routes.
        return (skipped - _INSIDE - machines) | (machines & self._uplinks() if machines else set())

    def _uplinks(self) -> set[str]:
        """Where the default routes lead that all programs use."""
        try:
            state = networks.look(self._run)
        except CryprqError as error:
            raise PfError(str(error)) from None
        defaults = set(networks.DEFAULTS.values())
        return {route.interface for route in state.routes if route.prefix in defaults and not route.scoped}

    def _is_loopback_asked(self, skipped: set[str]) -> bool:
        """Whether nothing but our rules can decide about what this machine sends to itself."""
        others = [rule for rule in pfctl.loaded_main(self._run).rules if _OURS not in rule]
        return not others and not _LOOPBACKS & skipped

    def _is_proved(self) -> bool:
        self._proved = self._proved or any(pfctl.asked(anchor, FIRST, self._run) for anchor in self._anchors)
        return self._proved
