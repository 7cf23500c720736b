"""What tells of changed addresses on this system."""

from __future__ import annotations

import sys

from .changes import Changes


def address_changes(*, routes: bool = False) -> Changes:
    """Changes of this machine's addresses, and of `routes`. Raises OSError where the kernel tells none."""
    if sys.platform == "darwin":
        from .route_socket import route_changes

        return route_changes()
    from .netlink_watch import ADDRESSES, ROUTES, netlink_changes

    return netlink_changes(ADDRESSES | ROUTES if routes else ADDRESSES)
