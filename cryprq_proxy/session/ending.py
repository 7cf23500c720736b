"""The streams of a session that has ended: their handlers are told, as many in one turn as it allows."""

from __future__ import annotations

from ..base.faults import Faults
from ..errors import StreamReason
from .stream_table import ENDED
from .streams import Stream
from .turns import END_WORK, TurnBudget


def reset_in_turns(streams: list[Stream], reason: StreamReason, turn: TurnBudget, faults: Faults) -> None:
    """Call `reset` of the handlers of `streams`, the last one first, and take those out that were called."""
    for _ in range(max(turn.left // END_WORK, 1)):
        if not streams:
            return
        turn.spend(END_WORK)
        stream = streams.pop()
        handler, stream.handler = stream.handler, ENDED
        try:
            handler.reset(reason)
        except Exception as error:  # noqa: BLE001  the others are still to be told
            faults.report(error)
    if streams:
        turn.wait(lambda: reset_in_turns(streams, reason, turn, faults))
