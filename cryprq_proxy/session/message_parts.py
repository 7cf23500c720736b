"""The parts of a message of the rotation, as they come: in any order, by several paths, and perhaps twice."""

from __future__ import annotations

from ..errors import CloseReason, PeerError
from .wire import PARTS


class MessageParts:
    """Those of one message, at most PARTS * MAX_PART bytes."""

    __slots__ = ("_epoch", "_parts")

    def __init__(self) -> None:
        self._epoch = 0
        self._parts: dict[int, bytes] = {}

    def add(self, epoch: int, part: int, data: bytes) -> bytes | None:
        """A part of the message that makes `epoch`: it takes the place of what there is of an earlier one. Returns the
        message if all of it is there.

        Raises PeerError (REKEY) for a part that differs from the first copy: two know the chain, and one of them is not
        the client.
        """
        if epoch != self._epoch:
            self._epoch, self._parts = epoch, {}
        parts = self._parts
        if parts.setdefault(part, data) != data:
            raise PeerError(CloseReason.REKEY, "another rotation to the same epoch has begun before")
        return b"".join(parts[part] for part in range(PARTS)) if len(parts) == PARTS else None
