"""The packing of frames into records."""

from __future__ import annotations

from typing import Final

from .records import RecordSealer
from .wire import DATA

JOIN_LIMIT: Final = 2_048
"""Frames up to this many bytes share a record; a larger one is sealed from its own buffer."""
MAX_JOINED: Final = 16_384


class RecordWriter:
    """Packs frames into records: small ones together, a large one alone and without a copy.

    `before`: records of the path in earlier epochs; record numbers count on from there.
    """

    __slots__ = ("_joined", "_out", "_parts", "_sealer", "before", "position")

    def __init__(self, sealer: RecordSealer, before: int, out: memoryview) -> None:
        self._sealer = sealer
        self.before = before
        self._out = out
        self._parts: list[bytes | memoryview] = []
        self._joined = 0
        self.position = 0

    def add(self, frame: bytes | memoryview) -> int:
        """Returns the number of the record that carries the frame."""
        size = len(frame)
        sealer, parts = self._sealer, self._parts
        if size > JOIN_LIMIT and parts:
            self.flush()
        number = self.before + sealer.records
        last = frame[0] == DATA
        if size > JOIN_LIMIT or (last and not parts):
            self.position = sealer.seal_into(frame, self._out, self.position)
            return number
        parts.append(frame)
        self._joined += size
        if last or self._joined > MAX_JOINED - JOIN_LIMIT:
            self.flush()
        return number

    def flush(self) -> int:
        """Seal the joined frames. Returns the number of bytes written so far."""
        if self._parts:
            joined = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
            self._parts.clear()
            self._joined = 0
            self.position = self._sealer.seal_into(joined, self._out, self.position)
        return self.position

    def change_keys(self, sealer: RecordSealer, before: int) -> None:
        """What is added from now on is sealed by `sealer`."""
        self.flush()
        self._sealer, self.before = sealer, before
