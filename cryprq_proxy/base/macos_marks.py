"""What system-wide mode leaves on macOS when it is killed, as every user can see it.

    marks of a client   our key in the dynamic store (SCDynamicStore(3))    any user can read it
                        rules in our anchor of the packet filter            root only
    marks of an exit    rules in its anchor of the packet filter            root only

Routes bear no mark, and those into the device end with it. There is no lockdown. It runs scutil and pfctl: some
milliseconds each.
"""

from __future__ import annotations

import os
from typing import Final

from . import macos_programs
from .macos_programs import said
from .paths import Role

RESOLVER_KEY: Final = "State:/Network/Service/cryprq-proxy/DNS"
"""Our setting of the resolver."""
ANCHORS: Final[dict[Role, str]] = {
    "client": "com.apple/010.cryprq-proxy",
    "exit": "com.apple/010.cryprq-proxy-exit",
}
"""Role -> the anchor of the packet filter with all of its rules, one of those that the system's own rules call."""
NO_KEY: Final = "No such key"
"""What scutil says of a key that is not there."""

_FILTER: Final = {role: f"the anchor {anchor} of the packet filter" for role, anchor in ANCHORS.items()}
_RESOLVER: Final = f"the resolver {RESOLVER_KEY}"
_RESOLVER_ALONE_SEEN: Final = f"{_RESOLVER} (and a packet filter, as far as can be told without root)"
HOLDING: Final = frozenset({_FILTER["client"], _RESOLVER_ALONE_SEEN})
"""The words of what holds this machine's traffic in."""


def marks(role: Role) -> tuple[str, ...]:
    """What a `role` has set, as far as this user can see, in words."""
    stands = table_stands(role)
    found = [_FILTER[role]] if stands else []
    if role == "client" and has_key():
        found.append(_RESOLVER_ALONE_SEEN if stands is None else _RESOLVER)
    return tuple(found)


def table_stands(role: Role) -> bool | None:
    """Whether rules of `role` are in the packet filter; None for a user who may not look. Blocks for milliseconds."""
    if os.geteuid():
        # Only root opens /dev/pf.
        return None
    anchor = ANCHORS[role]
    found = [said([macos_programs.PFCTL, "-a", anchor, "-s", what]) for what in ("rules", "nat")]
    return None if None in found else any(found)


def lockdown() -> bool:
    """There is none."""
    return False


def has_key() -> bool:
    """Whether our setting of the resolver stands."""
    found = said([macos_programs.SCUTIL], f"show {RESOLVER_KEY}\nquit\n")
    return bool(found and NO_KEY not in found)
