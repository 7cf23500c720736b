"""Linux tells by netlink what changes in this thread's network namespace: addresses, routes, rules, packet filters."""

from __future__ import annotations

from typing import Final

from .changes import Changes
from .netlink import NETFILTER, ROUTE, netlink_socket

ADDRESSES: Final = 0x10 | 0x100
"""IPv4 and IPv6 addresses: groups of rtnetlink(7), as the mask that bind takes."""
ROUTES: Final = 0x40 | 0x400
"""IPv4 and IPv6 routes."""
GROUPS: Final = (
    ADDRESSES
    | ROUTES
    | 0x1  # links
    | 0x80  # IPv4 rules
    | 1 << 18  # IPv6 rules, RTNLGRP_IPV6_RULE
    | 1 << 23  # IPv4 forwarding and rp_filter, RTNLGRP_IPV4_NETCONF
    | 1 << 24  # IPv6 forwarding, RTNLGRP_IPV6_NETCONF
)
FILTER_GROUPS: Final = 1 << 6  # NFNLGRP_NFTABLES
"""Those of nfnetlink: each change of any table of nftables."""


def netlink_changes(groups: int = GROUPS, protocol: int = ROUTE) -> Changes:
    """Changes of links, addresses, routes and rules, or of other groups. Raises OSError where the kernel tells none."""
    sock = netlink_socket(protocol)
    try:
        sock.bind((0, groups))
    except BaseException:
        sock.close()
        raise
    return Changes(sock)


def filter_changes() -> Changes:
    """Each change of any table of the packet filter. Raises OSError as netlink_changes."""
    return netlink_changes(FILTER_GROUPS, NETFILTER)
