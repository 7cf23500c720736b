"""Turns: how much work one peer may cause in one turn of the event loop.

A peer chooses which frames it sends, and small ones cost much more per byte than data. So work is counted, in units of
about a microsecond on a fast machine, and all sessions of a peer have one TurnBudget together. A session stops in the
middle of what has arrived when the budget is used up; its carrier keeps the rest and waits. The sockets of its targets
wait too (outbound/socket_group.py). In the next turn of the loop the budget is full again, and those that waited go on
in their order. Between two turns everybody else is served.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from . import wire

TURN_WORK: Final = 2_000
"""Units in one turn of the loop, of all sessions of one peer together."""
RECORD_WORK: Final = 4
"""Opening a record, whatever is in it."""
FILL_WORK: Final = 8
"""Filling a buffer and handing it to the kernel."""
FRAME_WORK: Final = 1
"""Writing a frame into a record."""
DATAGRAM_WORK: Final = 12
"""Sending a datagram or a packet, or taking one."""
READ_WORK: Final = 8
"""Letting a stream read from its socket."""
EVENT_WORK: Final = 16
"""Serving a ready socket of the peer's targets."""
END_WORK: Final = 30
"""Ending a stream with its socket."""
ATTEMPT_WORK: Final = 80
"""An attempt to connect to one of the addresses of a name."""
JUDGE_WORK: Final = 10
"""Asking the policy about an address of a name, or trying to send a datagram to it."""
ACK_WORK: Final = 8
"""Settling what an acknowledgement of the lane says."""
ACK_BYTES_PER_UNIT: Final = 16
"""Two ranges of such an acknowledgement."""
BYTES_PER_UNIT: Final = 4_096
"""Bytes for one unit: of records that are opened or sealed, of reads from sockets, and of writes that have waited."""

DROPS_PER_UNIT: Final = 4
"""Acknowledged frames that are dropped for one unit."""

_HALF: Final = TURN_WORK >> 1
_WORK: Final = {
    wire.OPEN: 120,
    wire.OPENED: 20,
    wire.REFUSED: END_WORK,
    wire.DATA: 6,
    wire.FIN: END_WORK,
    wire.RESET: END_WORK,
    wire.REKEY: 500,
    wire.REKEY_ANSWER: 500,
    wire.REKEY_PLEASE: 3,
    wire.LANE: 20,
    wire.NETWORK: 500,
    wire.TAKEN: 500,
    wire.ABANDON: END_WORK,
    wire.SWITCH: 20,
    wire.DATAGRAM: DATAGRAM_WORK,
    wire.PACKET: DATAGRAM_WORK,
}
FRAME_COSTS: Final = tuple(_WORK.get(kind, 2) for kind in range(256))
"""Units that a received frame costs, by its kind: decoding it, and what its handler does at once."""
DATA_COST: Final = RECORD_WORK + FRAME_COSTS[wire.DATA]
"""Units of a record that is one DATA frame."""


class TurnBudget:
    """The work of one peer. `left` is what may still be done in this turn.

    `soon(callback)` calls back in the next turn of the loop, before the loop looks at sockets: `call_soon` of asyncio.
    It is used only when half of the budget is spent, so little work costs no turn of its own.
    """

    __slots__ = ("_due", "_soon", "_waiting", "left")

    def __init__(self, soon: Callable[[Callable[[], None]], object]) -> None:
        self._soon = soon
        self._due = False
        self._waiting: deque[Callable[[], None]] = deque()
        self.left = TURN_WORK

    def spend(self, work: int) -> None:
        """`work` units were done."""
        self.left -= work
        if self.left < _HALF:
            self._ask()

    def wait(self, callback: Callable[[], None]) -> None:
        """Call `callback` once, in a turn in which something is left, after those that wait already."""
        self._waiting.append(callback)
        self._ask()

    def renew(self) -> None:
        """A new turn of the loop has begun: let those that wait go on."""
        self._due = False
        self.left = TURN_WORK
        waiting = self._waiting
        try:
            for _ in range(len(waiting)):
                if self.left <= 0:
                    break
                waiting.popleft()()
        finally:
            if waiting:
                self._ask()

    def _ask(self) -> None:
        if not self._due:
            self._due = True
            self._soon(self.renew)
