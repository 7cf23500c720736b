"""Frames ahead of their stream: what came by the lane for streams whose OPEN has not come.

The lane loses and reorders, so the first bytes of a stream may overtake what opens it. They wait here, and are acted on
behind the OPEN. Only an exit has any: nobody else's streams are opened by the peer.

What finds no room is refused: it is not acknowledged, and the client sends it again.
"""

from __future__ import annotations

from typing import Final

from .wire import DATA, Frame

MAX_AHEAD: Final = 262_144
"""Bytes that wait in a session, with FRAME_COST for each frame."""
FRAME_COST: Final = 256
"""Bytes that a waiting frame counts for besides its data: the objects around it."""


class FramesAhead:
    """Those of one session, in the order in which they came. `bytes`: what they count for."""

    __slots__ = ("_frames", "bytes")

    def __init__(self) -> None:
        self._frames: dict[int, list[Frame]] = {}
        self.bytes = 0

    def __len__(self) -> int:
        """Of how many streams there are any."""
        return len(self._frames)

    def hold(self, frames: list[Frame]) -> bool:
        """Keep these frames, and copies of their data. False, with nothing kept, if there is no room for all."""
        cost = sum(_cost(kind, value) for kind, _, value in frames)
        if self.bytes + cost > MAX_AHEAD:
            return False
        self.bytes += cost
        for kind, stream, value in frames:
            kept = value
            if kind == DATA:
                offset, data = value  # type: ignore[misc]
                kept = offset, memoryview(bytes(data))  # type: ignore[has-type]
            self._frames.setdefault(stream, []).append((kind, stream, kept))
        return True

    def take(self, stream: int) -> list[Frame]:
        """The OPEN of `stream` has come: what waited for it."""
        frames = self._frames.pop(stream, [])
        self.bytes -= sum(_cost(kind, value) for kind, _, value in frames)
        return frames

    def clear(self) -> None:
        self._frames.clear()
        self.bytes = 0


def _cost(kind: int, value: object) -> int:
    return FRAME_COST + (len(value[1]) if kind == DATA else 0)  # type: ignore[index]
