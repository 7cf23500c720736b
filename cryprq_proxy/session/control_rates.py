"""Rates of the frames that a peer may send at any time and that no other bound holds: a flood of them ends the session.

Two allowances, in frames. *Control* frames are about the link itself. They are rare: a keepalive, and a few for each
epoch. So the allowance is full again with each epoch, however fast the keys rotate. *Late* frames are for streams that
have ended here. There may be one or two for each stream, and datagrams that were sent before. So is ABANDON for a path
that is not there: hundreds may come together, after as many paths that died before anything was acknowledged on them.
When a path is lost, the peer rightly sends again what that path had not acknowledged, much of which has come: then
both are full again. A path costs the peer a handshake, and those have rates of their own.
"""

from __future__ import annotations

from typing import Final

from ..errors import CloseReason, PeerError
from . import wire

CONTROL_BURST: Final = 256
CONTROL_RATE: Final = 64.0
"""Control frames at once, and for each second."""
LATE_BURST: Final = 65_536
LATE_RATE: Final = 20_000.0
"""Frames for dead streams at once, and for each second."""

CONTROL_FRAMES: Final = {
    wire.STREAMS: 1,
    wire.REKEY: 1,
    wire.REKEY_ANSWER: 1,
    wire.REKEY_PLEASE: 1,
    wire.LANE: 1,
    wire.GOAWAY: 1,
    wire.PREFER: 1,
    wire.PING: 1,
    wire.PONG: 1,
    wire.SWITCH: 1,
    wire.ADVERTISE: 1,
    # Addresses change in the system: 4 a second.
    wire.NETWORK: 16,
    wire.TAKEN: 16,
}
"""How many control frames each of them counts for, whatever it says."""


class ControlRates:
    """The allowances of one session's peer. Each method raises PeerError (LIMIT) for a frame too many."""

    __slots__ = ("_control", "_control_at", "_epoch", "_late", "_late_at")

    def __init__(self) -> None:
        self._control = float(CONTROL_BURST)
        self._control_at = 0.0
        self._late = float(LATE_BURST)
        self._late_at = 0.0
        self._epoch = 0

    def control(self, kind: int, epoch: int, now: float) -> None:
        """A frame of CONTROL_FRAMES, or an ACK that acknowledges nothing new, arrived in epoch number `epoch`."""
        if epoch != self._epoch:
            self._epoch = epoch
            self._control = CONTROL_BURST
        else:
            self._control = min(CONTROL_BURST, self._control + (now - self._control_at) * CONTROL_RATE)
        self._control_at = now
        self._control -= CONTROL_FRAMES.get(kind, 1)
        if self._control < 0:
            raise PeerError(CloseReason.LIMIT, f"the peer sends too many {wire.Kind(kind).name} frames")

    def late(self, kind: int, now: float) -> None:
        """A frame for a stream that has ended here arrived."""
        self._late = min(LATE_BURST, self._late + (now - self._late_at) * LATE_RATE) - 1
        self._late_at = now
        if self._late < 0:
            raise PeerError(
                CloseReason.LIMIT, f"the peer sends too many {wire.Kind(kind).name} frames for what has ended"
            )

    def path_lost(self) -> None:
        """A path of the session has ended: what it carried may come again."""
        self._control = CONTROL_BURST
        self._late = LATE_BURST
