"""What system-wide mode leaves on Linux when it is killed, as every user can see it.

    marks of a client   routing rules with our protocol number      any user can read them
                        the header of /etc/resolv.conf              any user
                        the table of the packet filter              root only
    lockdown            an empty table of the packet filter         root; all others see its unit
    marks of an exit    routes with its protocol number             any user
                        the table of the packet filter              root only

It reads netlink (rtnetlink(7)): a dump takes well under a millisecond.
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Final

from .netlink import DUMP, NETFILTER, NetlinkSocket, attributes
from .paths import Role
from .systemd import UNIT_DIRECTORY

RULE_PROTOCOL: Final = 0x72
"""FRA_PROTOCOL and rtm_protocol of all that a client sets; not registered (iproute2, rt_protos)."""
EXIT_PROTOCOL: Final = 0x73
"""rtm_protocol of an exit's routes: both roles may run on one machine."""
RESOLV_CONF: Final = "/etc/resolv.conf"
RESOLV_CONF_HEADER: Final = "# cryprq-proxy "
"""The first line of our resolv.conf begins so."""
TABLES: Final[dict[Role, str]] = {"client": "cryprq", "exit": "cryprq_exit"}
"""Our tables of the packet filter, of family inet."""
LOCKDOWN: Final = "cryprq_lockdown"
"""One more, empty: it stands from `lockdown on` to `lockdown off`."""
LOCKDOWN_UNIT: Final = "cryprq-lockdown.service"
LOCKDOWN_WANTED: Final = UNIT_DIRECTORY / "sysinit.target.wants" / LOCKDOWN_UNIT
"""Stands while the unit is enabled; every user can see it."""

_FILTER: Final = {role: f"the table {table} of the packet filter" for role, table in TABLES.items()}
_RULES: Final = "routing rules"
_ROUTES: Final = "routes to clients"
_RULES_ALONE_SEEN: Final = "routing rules (and a packet filter, as far as can be told without root)"
HOLDING: Final = frozenset({_FILTER["client"], _RULES_ALONE_SEEN})
"""The words of what holds this machine's traffic in."""
_GET_RULES: Final = 34  # RTM_GETRULE
_RULE_HEADER: Final = 12  # struct fib_rule_hdr
_FRA_PROTOCOL: Final = 21
_GET_ROUTES: Final = 26  # RTM_GETROUTE
_ROUTE_HEADER: Final = 12  # struct rtmsg
_ROUTE_PROTOCOL: Final = 5
"""Where rtm_protocol is in it."""
_GET_TABLES: Final = 0x0A01  # NFNL_SUBSYS_NFTABLES, NFT_MSG_GETTABLE
_TABLE_NAME: Final = 1  # NFTA_TABLE_NAME
_NFPROTO_INET: Final = 1


def marks(role: Role) -> tuple[str, ...]:
    """What a `role` has set, as far as this user can see, in words."""
    tables = _tables()
    found = [_FILTER[role]] if tables is not None and TABLES[role] in tables else []
    if role == "client" and lockdown():
        # That it stands is as it should be.
        found.clear()
    if role == "client":
        rules = _RULES_ALONE_SEEN if tables is None and not lockdown() else _RULES
        found += [rules] if _has_rules() else []
        found += [RESOLV_CONF] if has_header() else []
    elif _has_routes():
        found.append(_ROUTES)
    return tuple(found)


def table_stands(role: Role) -> bool | None:
    """Whether the table of `role` is in the packet filter; None for a user who may not list it.

    Blocks for well under a millisecond: nft takes longer.
    """
    tables = _tables()
    return None if tables is None else TABLES[role] in tables


def lockdown() -> bool:
    """Whether `lockdown on` is in force in this network namespace, as far as this user can see."""
    tables = _tables()
    return LOCKDOWN in tables if tables is not None else os.path.lexists(LOCKDOWN_WANTED)


def _has_rules() -> bool:
    with contextlib.suppress(OSError), NetlinkSocket(socket.NETLINK_ROUTE) as kernel:
        request = bytes(_RULE_HEADER)  # of all families
        return any(
            attributes(body[_RULE_HEADER:]).get(_FRA_PROTOCOL) == bytes([RULE_PROTOCOL])
            for _, body in kernel.ask(_GET_RULES, DUMP, request)
        )
    return False


def _has_routes() -> bool:
    with contextlib.suppress(OSError), NetlinkSocket(socket.NETLINK_ROUTE) as kernel:
        request = bytes(_ROUTE_HEADER)  # of all families
        return any(
            len(body) >= _ROUTE_HEADER and body[_ROUTE_PROTOCOL] == EXIT_PROTOCOL
            for _, body in kernel.ask(_GET_ROUTES, DUMP, request)
        )
    return False


def _tables() -> set[str] | None:
    """The tables of family inet; None for a user who may not list them."""
    with contextlib.suppress(OSError), NetlinkSocket(NETFILTER) as kernel:
        request = bytes([_NFPROTO_INET, 0, 0, 0])
        names = [
            attributes(body[len(request) :]).get(_TABLE_NAME, b"")
            for _, body in kernel.ask(_GET_TABLES, DUMP, request)
        ]
        return {name.rstrip(b"\0").decode("ascii", "replace") for name in names}
    return None


def has_header() -> bool:
    """Whether our resolv.conf stands."""
    mark = RESOLV_CONF_HEADER.encode()
    try:
        # A pipe at this path must not block.
        with open(os.open(RESOLV_CONF, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            return file.read(len(mark)) == mark
    except OSError:
        return False
