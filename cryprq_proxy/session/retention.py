"""Retention: every unit from the moment it may be sent until the peer has acknowledged it.

A unit is what is sent again: a DATA frame or a control frame, as plaintext. It is in one place at a time:

    control   control frames of the session that wait; they leave first
    lost      the logs of lost paths; that of the path which was lost last goes first
    streams   small frames of streams that wait: OPEN, RESET, FIN
    log       of a path: sent in one of its records, and not yet acknowledged
    the lane  carries them, and knows of each byte where it is (lane_path.py)

An acknowledgement of a path drops what its log begins with. When a path is lost its log moves to `lost`, and leaves by
the next path, sealed anew. An acknowledgement that still comes for it drops what has not left again.

When a path falls in doubt, the oldest of its log moves there, and the path goes on with the rest.

The order of all this is not that of the streams' bytes, which need none. But on each path an OPEN goes before whatever
else belongs to its stream, unless it is acknowledged. So nothing goes before what a lost path has carried, and if
several are lost, the last one has carried what the others had begun with. On the lane nothing keeps its order.

This module also owns the buffers into which stream data is read. A slot has room for the frame header in front of the
data, so a unit is read, framed, sealed and kept without a copy.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Sequence
from typing import Final, Protocol

from .wire import DATA_HEADER, MAX_DATA, OPEN

SLOT_HEADROOM: Final = 16
"""Bytes in front of the data of a slot; the last DATA_HEADER of them hold the frame header."""
SLOT_SIZE: Final = SLOT_HEADROOM + MAX_DATA
SLOT_MINIMUM: Final = 32_768
"""Fewer bytes than this are copied out of their slot: 128 KiB kept for a hundred bytes would waste the bound."""
ASSURED: Final = 1 << 20
"""Bytes that a session may keep even if the budget of the process is spent, or a sixteenth of its bound if that is
less. Its windows may be larger by as much, too."""
UNIT_COST: Final = 128
"""Bytes that a kept unit costs besides its frame: the objects around it."""
DROPS: Final = 4_096
"""Acknowledged units that are dropped at once; then others have their turn."""
REPEATED: Final = 65_536
SMALL: Final = 4_096
"""When a path falls in doubt so many bytes go again at once, and a little more: the oldest unit, and then those with
frames of up to so many bytes, as requests and their answers are."""
_ALL: Final = 1 << 63


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


class Unit:
    """One frame that is kept.

    `frame`: the whole frame; `slot`: the buffer that holds it, None if the frame owns its bytes; `size`: bytes of
    stream data in it; `cost`: bytes that it counts for; `record`: which record of its path has carried it.
    """

    __slots__ = ("cost", "frame", "record", "size", "slot")

    def __init__(self, frame: bytes | memoryview, size: int = 0, slot: memoryview | None = None) -> None:
        self.frame = frame
        self.size = size
        self.slot = slot
        self.cost = UNIT_COST + (SLOT_SIZE if slot is not None else len(frame))
        self.record = 0


def frame_slot(slot: memoryview, size: int, header: bytes, pool: SlotPool) -> Unit:
    """Frame `size` bytes of data that were read into `slot`. The slot belongs to the unit or goes back to `pool`."""
    start = SLOT_HEADROOM - DATA_HEADER
    slot[start:SLOT_HEADROOM] = header
    frame = slot[start : SLOT_HEADROOM + size]
    if size >= SLOT_MINIMUM:
        return Unit(frame, size, slot)
    unit = Unit(bytes(frame), size)
    pool.give(slot)
    return unit


class PathLog:
    """What path `number` has carried and the peer has not acknowledged.

    `acknowledged`: records of the path of which all units are dropped, or are about to be.
    """

    __slots__ = ("acknowledged", "dropping", "number", "units")

    def __init__(self, number: int, acknowledged: int = 0) -> None:
        self.number = number
        self.units: deque[Unit] = deque()
        self.acknowledged = acknowledged
        self.dropping = False
        """Whether Retention goes on dropping units of it."""

    @property
    def due(self) -> bool:
        """Whether it begins with an acknowledged unit."""
        return bool(self.units) and self.units[0].record < self.acknowledged


class Carried(Protocol):
    """The log of a path, or of the lane."""

    @property
    def units(self) -> Collection[Unit]: ...


class Retention:
    """The units of one direction of one session. `kept` is in bytes; `dropped` counts units."""

    def __init__(self, bound: int, budget: MemoryBudget, pool: SlotPool) -> None:
        self._control: deque[Unit] = deque()
        self._lost: deque[PathLog] = deque()
        self._lost_logs: dict[int, list[PathLog]] = {}
        """The same by number: a path that was in doubt may have several."""
        self._streams: deque[Unit] = deque()
        self._dropping: deque[PathLog] = deque()
        self._bound = bound
        self._budget = budget
        self._pool = pool
        self._assured = min(bound >> 4, ASSURED)
        self.kept = 0
        self.dropped = 0

    def has_room(self) -> bool:
        """Whether stream data may be added. Small frames always may: other bounds hold their number.

        A session may always use what is assured to it, even if the budget of the process is spent.
        """
        kept, budget = self.kept, self._budget
        return kept < self._bound and (kept < self._assured or budget.used < budget.total)

    def append(self, frame: bytes) -> None:
        """Add a small frame of a stream, to be sent in its turn."""
        unit = Unit(frame)
        self._streams.append(unit)
        self.kept += unit.cost
        self._budget.used += unit.cost

    def append_control(self, frame: bytes) -> None:
        """Add a control frame of the session, to be sent next."""
        unit = Unit(frame)
        self._control.append(unit)
        self._charge(unit.cost)

    def append_sent(self, unit: Unit, log: PathLog, record: int) -> bool:
        """Add a unit that is being sent right now. Returns whether there is room for more (`has_room`)."""
        unit.record = record
        log.units.append(unit)
        cost, budget = unit.cost, self._budget
        self.kept = kept = self.kept + cost
        budget.used += cost
        return kept < self._bound and (kept < self._assured or budget.used < budget.total)

    def add_taken(self, unit: Unit) -> None:
        """Add a unit that the lane is going to carry."""
        self._charge(unit.cost)

    def withdraw(self, kind: int) -> None:
        """Control frames of this kind that wait need not be sent any more."""
        waiting, self._control = self._control, deque[Unit]()
        for unit in waiting:
            if unit.frame[0] == kind:
                self._charge(-unit.cost)
            else:
                self._control.append(unit)

    @property
    def waits(self) -> bool:
        """Whether there is a unit to send."""
        return bool(self._control or self._lost or self._streams)

    def next(self) -> Unit | None:
        """The next unit to send; it stays here until `mark_sent`. None too while it `stalls`."""
        if self._control:
            return self._control[0]
        lost = self._lost
        while lost:
            log = lost[0]
            if log.dropping:
                return None
            if log.units:
                return log.units[0]
            lost.popleft()
            logs = self._lost_logs[log.number]
            logs.remove(log)
            if not logs:
                del self._lost_logs[log.number]
        return self._streams[0] if self._streams else None

    def mark_sent(self, log: PathLog, record: int) -> None:
        """What `next` returned is in record `record` of the path of `log`."""
        unit = self.take()
        unit.record = record
        log.units.append(unit)

    def take(self) -> Unit:
        """What `next` returned leaves by the lane."""
        if self._control:
            return self._control.popleft()
        return self._lost[0].units.popleft() if self._lost else self._streams.popleft()

    @property
    def stalls(self) -> bool:
        """Whether units of lost paths, which the peer has, are still to be dropped: until then no stream data may be
        sent, since they may need what comes behind those."""
        return bool(self._lost) and any(log.dropping for log in self._lost)

    def lose(self, log: PathLog) -> None:
        """The path of `log` is lost, or in doubt: what it has carried goes again."""
        if log.units:
            self._lost.appendleft(log)
            self._lost_logs.setdefault(log.number, []).append(log)

    def repeat_oldest(self, log: PathLog) -> None:
        """The path of `log` is in doubt: the oldest unit that it has carried goes again, and small ones, any of which
        may be all that somebody waits for. The log keeps a copy of each OPEN that others in it need."""
        units, rest, again = log.units, deque[Unit](), PathLog(log.number)
        opens, left = 0, REPEATED
        for _ in range(min(len(units), DROPS)):
            unit = units.popleft()
            if again.units and len(unit.frame) > SMALL:
                rest.append(unit)
                continue
            again.units.append(unit)
            left -= len(unit.frame)
            if unit.frame[0] == OPEN:
                rest.append(copy := Unit(unit.frame))
                copy.record = unit.record
                opens += 1
            if left <= 0:
                break
        if units or len(rest) > opens:
            units.extendleft(reversed(rest))
            self._charge(sum(unit.cost for unit in rest if unit.frame[0] == OPEN))
        self.lose(again)
        self.acknowledge(again, log.acknowledged)

    def repeat_opens(self, log: Carried) -> None:
        """Another path takes over while that of `log` goes on: what follows an OPEN there may overtake it, so those
        that are not acknowledged go again."""
        opens = dict.fromkeys(unit.frame for unit in log.units if unit.frame[0] == OPEN)
        again = [Unit(frame) for frame in opens]
        self._charge(sum(unit.cost for unit in again))
        self._control.extend(again)

    def lost_logs(self, number: int) -> Sequence[PathLog]:
        """What path `number` has carried and has not left again."""
        return self._lost_logs.get(number, ())

    def acknowledge(self, log: PathLog, records: int) -> None:
        """The peer has the first `records` records of the path of `log`. Call `drop` afterwards."""
        log.acknowledged = records
        if not log.dropping and log.due:
            log.dropping = True
            self._dropping.append(log)

    def drop(self, most: int = DROPS) -> bool:
        """Drop up to `most` units that the peer has. Whether there are more of them."""
        left, freed = most, 0
        while self._dropping and left:
            log = self._dropping[0]
            units, acknowledged = log.units, log.acknowledged
            while units and left:
                unit = units[0]
                if unit.record >= acknowledged:
                    break
                left -= 1
                units.popleft()
                freed += unit.cost
                if unit.slot is not None:
                    slot, unit.slot = unit.slot, None
                    self._pool.give(slot)
            if not log.due:
                log.dropping = False
                self._dropping.popleft()
        self.dropped += most - left
        self._charge(-freed)
        return bool(self._dropping)

    def free(self, units: Iterable[Unit]) -> None:
        """The lane has carried these, and the peer has them, or nobody needs them any more."""
        freed = 0
        for unit in units:
            freed += unit.cost
            if unit.slot is not None:
                slot, unit.slot = unit.slot, None
                self._pool.give(slot)
        self._charge(-freed)

    def clear(self, logs: list[PathLog]) -> None:
        """The session ended: no unit is needed any more, nor those in `logs`, of its paths. Call `drop` afterwards."""
        waiting = PathLog(-1)
        waiting.units = self._control + self._streams
        self._control, self._streams = deque(), deque()
        for log in (waiting, *self._lost, *logs):
            self.acknowledge(log, _ALL)
        self._lost.clear()
        self._lost_logs.clear()

    def _charge(self, cost: int) -> None:
        self.kept += cost
        self._budget.used += cost
