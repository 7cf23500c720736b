"""The local forwards of a client that runs, and what a reload makes of them.

    listens no longer in the configuration   closed; connections that it has accepted go on
    a new one                                opened
    another target                           for connections from now on; its socket stays, so none is refused meanwhile
    as it was                                not touched

One whose address cannot be had is no reason to leave the others: it is said, and tried again by the next reload.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ..address import Destination
from ..base.text import counted
from ..client.direct import Direct
from ..config.forwards import ForwardTable
from ..errors import CryprqError
from ..fronts.listener import MixedListener, OpenForward, listening_socket
from ..status import ForwardStatus
from .startup import explained

_log = logging.getLogger(__name__)

_ASKED_BY = "-L or [[forward]]"


class ForwardChange(NamedTuple):
    """What has become of the forwards with another configuration: where they listen, and what was wrong."""

    added: tuple[Destination, ...]
    removed: tuple[Destination, ...]
    turned: tuple[Destination, ...]
    """To another target."""
    number: int
    """Forwards there are now."""
    failed: tuple[str, ...]
    """One sentence for each that there should be too."""

    def __str__(self) -> str:
        """ ", 3 forwards (new: 127.0.0.1:5432)", to be added to what else has changed; empty where there are none."""
        told = (("new", self.added), ("removed", self.removed), ("other target", self.turned))
        changed = "; ".join(f"{word}: {', '.join(map(str, places))}" for word, places in told if places)
        if not (self.number or changed or self.failed):
            return ""
        said = f", {counted(self.number, 'forward')}" + (f" ({changed})" if changed else "")
        return "; ".join((said, *self.failed))


class Forwards:
    """Those of `listener`, once it has started. `direct` makes connections past the tunnel, and none of them to a
    forward. One call of `start` or `change` at a time."""

    def __init__(self, listener: MixedListener, direct: Direct) -> None:
        self._listener = listener
        self._direct = direct
        self._open: dict[Destination, OpenForward] = {}
        """By the address in the configuration."""

    def status(self) -> tuple[ForwardStatus, ...]:
        return tuple(
            ForwardStatus(listen=str(each.listen), to=str(each.to), connections=each.connections)
            for each in self._open.values()
        )

    async def start(self, wanted: Iterable[ForwardTable]) -> None:
        """Open all. Raises CryprqError for the first one that cannot be had."""
        for forward in wanted:
            await self._begin(forward)

    async def change(self, wanted: Sequence[ForwardTable]) -> ForwardChange:
        """Have these from now on."""
        kept = {forward.listen for forward in wanted}
        removed = [listen for listen in self._open if listen not in kept]
        for listen in removed:  # first, since a new one may need the port
            self._end(listen)
        added, turned, failed = [], [], []
        for forward in wanted:
            present = self._open.get(forward.listen)
            if present is None:
                try:
                    await self._begin(forward)
                except CryprqError as error:
                    _log.warning("no forward to %s: %s", forward.to, error)
                    failed.append(f"no forward to {forward.to}: {error}")
                else:
                    added.append(forward.listen)
            elif present.to != forward.to:
                present.turn_to(forward.to)
                turned.append(forward.listen)
        return ForwardChange(tuple(added), tuple(removed), tuple(turned), len(self._open), tuple(failed))

    async def _begin(self, forward: ForwardTable) -> None:
        """Raises CryprqError."""
        if forward.listen in self._direct.policy.listening:
            raise CryprqError(
                f"{forward.listen} is where the proxy, the dashboard or another forward listens until a restart; "
                "give it another port"
            )
        with explained([forward.listen], _ASKED_BY):
            # On a thread: a name may be looked up, by a resolver that gets there through this very client.
            sock = await asyncio.to_thread(listening_socket, forward.listen)
        if not self._listener.listens:
            sock.close()
            raise CryprqError("the client stops")
        opened = self._listener.forward(sock, forward.to)
        self._direct.never_to(opened.listen)
        self._open[forward.listen] = opened
        _log.info("%s is forwarded to %s", forward.listen, forward.to)

    def _end(self, listen: Destination) -> None:
        forward = self._open.pop(listen)
        self._listener.end_forward(forward)
        self._direct.allow_again(forward.listen)
        _log.info("%s is no longer forwarded", listen)
