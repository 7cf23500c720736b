"""The send log: every numbered frame from the moment it may be sent until the peer has acknowledged it.

A session outlives its carrier because every numbered frame is kept until its ACK. The frames are in the order of
their numbers: first those sent on this carrier (`_sent`), then those still to be sent (`_unsent`). When a new carrier
replaces a lost one, all frames that the peer has not received move back to `_unsent`, as plaintext, and are sealed
again with the new keys.

This module also owns the buffers into which stream data is read. A slot has room for the frame header in front of the
data, so a chunk is read, framed, sealed and kept without a copy.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import Final

from ..errors import CloseReason, PeerError
from .wire import DATA_HEADER, MAX_DATA

SLOT_HEADROOM: Final = 8
"""Bytes in front of the data of a slot; the last DATA_HEADER of them hold the frame header."""
SLOT_SIZE: Final = SLOT_HEADROOM + MAX_DATA
SLOT_MINIMUM: Final = 32_768
"""Fewer bytes than this are copied out of their slot: 128 KiB kept for a hundred bytes would waste the bound."""
ASSURED: Final = 1 << 20
"""Bytes that a session may keep even if the budget of the process is spent, or a sixteenth of its bound if that is
less. Its windows may be larger by as much, too."""
FRAME_COST: Final = 128
"""Bytes that a kept frame costs besides its own: the objects around it."""


DROPS: Final = 4_096
"""Acknowledged frames that are dropped at once; then others have their turn."""


class SlotPool:
    """Reusable 128 KiB buffers, shared by all streams of a process; at most `keep` of them idle.

    Last in, first out: the slot used last is the one still in the processor's cache.
    """

    def __init__(self, keep: int = 32) -> None:
        self._free: list[memoryview] = []
        self._keep = keep

    def take(self) -> memoryview:
        """A slot of SLOT_SIZE bytes with arbitrary content; write data from SLOT_HEADROOM on."""
        return self._free.pop() if self._free else memoryview(bytearray(SLOT_SIZE))

    def give(self, slot: memoryview) -> None:
        """Take back a slot that has no other reference."""
        if len(self._free) < self._keep:
            self._free.append(slot)

    def give_all(self, slots: list[memoryview]) -> None:
        """As `give`, for each of `slots`."""
        for slot in slots:
            self.give(slot)


class MemoryBudget:
    """A bound on bytes for all sessions of a process together."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.used = 0


class Chunk:
    """A framed piece of one stream's data: the scheduler passes it to the log.

    `frame`: the whole DATA frame; `slot`: the buffer that holds it, None if the frame owns its bytes; `size`: bytes of
    data; `cost`: bytes that it counts for while it is kept.
    """

    __slots__ = ("cost", "frame", "size", "slot")

    def __init__(self, frame: bytes | memoryview, size: int, slot: memoryview | None) -> None:
        self.frame = frame
        self.size = size
        self.slot = slot
        self.cost = FRAME_COST + (SLOT_SIZE if slot is not None else size)


def frame_slot(slot: memoryview, size: int, header: bytes, pool: SlotPool) -> Chunk:
    """Frame `size` bytes of data that were read into `slot`. The slot belongs to the chunk or goes back to `pool`."""
    start = SLOT_HEADROOM - DATA_HEADER
    slot[start:SLOT_HEADROOM] = header
    frame = slot[start : SLOT_HEADROOM + size]
    if size >= SLOT_MINIMUM:
        return Chunk(frame, size, slot)
    chunk = Chunk(bytes(frame), size, None)
    pool.give(slot)
    return chunk


class SendLog:
    """Numbered frames of one direction of one session.

    `acknowledged` and `sent` are counts since the session began: 0 <= acknowledged <= sent. `kept` is in bytes.
    """

    def __init__(self, bound: int, budget: MemoryBudget, pool: SlotPool) -> None:
        self._sent: deque[Chunk] = deque()
        self._unsent: deque[Chunk] = deque()
        self._bound = bound
        self._budget = budget
        self._pool = pool
        self._assured = min(bound >> 4, ASSURED)
        self.acknowledged = 0
        self.sent = 0
        self.kept = 0
        self.dropped = 0
        """Count of frames that are no longer here, at most `acknowledged`."""

    def has_room(self) -> bool:
        """Whether stream data may be added. Small frames always may: the number of streams bounds theirs.

        A session may always use what is assured to it, even if the budget of the process is spent.
        """
        kept, budget = self.kept, self._budget
        return kept < self._bound and (kept < self._assured or budget.used < budget.total)

    def append(self, frame: bytes) -> None:
        """Add a small numbered frame, to be sent in its turn."""
        chunk = Chunk(frame, len(frame), None)
        self._unsent.append(chunk)
        self._charge(chunk.cost)

    def append_sent(self, chunk: Chunk) -> bool:
        """Add a chunk that is being sent right now. Returns whether there is room for more (`has_room`).

        Call it only if nothing waits (`next_unsent` is None).
        """
        self._sent.append(chunk)
        self.sent += 1
        cost, budget = chunk.cost, self._budget
        self.kept = kept = self.kept + cost
        budget.used += cost
        return kept < self._bound and (kept < self._assured or budget.used < budget.total)

    def next_unsent(self) -> bytes | memoryview | None:
        """The next frame to send; it stays in the log."""
        return self._unsent[0].frame if self._unsent else None

    def mark_sent(self) -> None:
        """The frame that `next_unsent` returned has been sealed."""
        self._sent.append(self._unsent.popleft())
        self.sent += 1

    def acknowledge(self, count: int) -> None:
        """The peer has received the first `count` numbered frames of the session. Call `drop` afterwards.

        Raises PeerError (RESUME) for a count that goes back or is beyond what was sent.
        """
        if not self.acknowledged <= count <= self.sent:
            raise PeerError(CloseReason.RESUME, "the peer acknowledged frames that were never sent")
        self.acknowledged = count

    def drop(self, most: int = DROPS) -> bool:
        """Drop up to `most` frames that the peer has. Whether there are more of them."""
        freed = 0
        due = self.acknowledged - self.dropped
        number = min(due, most)
        for _ in range(number):
            chunk = self._sent.popleft()
            freed += chunk.cost
            if chunk.slot is not None:
                slot, chunk.slot = chunk.slot, None
                self._pool.give(slot)
        self.dropped += number
        self._charge(-freed)
        return number < due

    def rewind(self, received: int) -> None:
        """A new carrier: the peer has `received` frames; send the others again. Raises as `acknowledge`. Call `drop`
        afterwards."""
        self.acknowledge(received)
        known = received - self.dropped
        again = deque(islice(self._sent, known, None))
        again.extend(self._unsent)
        self._sent, self._unsent = deque(islice(self._sent, known)), again
        self.sent = received

    def clear(self) -> None:
        """The session ended: no frame is needed any more. Call `drop` afterwards."""
        self._sent.extend(self._unsent)
        self._unsent = deque()
        self.sent = self.acknowledged = self.dropped + len(self._sent)

    def _charge(self, cost: int) -> None:
        self.kept += cost
        self._budget.used += cost
