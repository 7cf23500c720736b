"""A machine that loses an address: what is connected from it is dialled anew at once.

Nobody tells a program that its connection has lost its address. Who sends is told by what stays unanswered, but a
download is sent by the other side, and here the silence would last until the next keepalive. In system-wide mode the
routes tell more than this (tun/routing/).
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from ..base.address_changes import address_changes
from ..base.changes import pause
from ..errors import reason_of

_log = logging.getLogger(__name__)


class Linked(Protocol):
    """Who has links (exits.py)."""

    def look_at_addresses(self) -> None:
        """An address of this machine may be gone."""


async def follow_addresses(linked: Linked) -> None:
    """Look after each change of addresses. Returns where the kernel tells none."""
    clock = asyncio.get_running_loop().time
    try:
        changes = address_changes()
    except OSError as error:
        _log.debug("the kernel tells no changes of addresses: %s", reason_of(error))
        return
    with changes:
        while True:
            await changes.wait()
            started = clock()
            linked.look_at_addresses()
            await asyncio.sleep(pause(clock() - started))
