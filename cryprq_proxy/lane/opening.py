"""Opening received datagrams: the receiving half of the datagram lane (sealing.py is the other one).

`open_batch` distinguishes one datagram, a whole train and a mixture. A train is opened (train.py), then its counters
are marked as seen, then its packets are delivered. joining.py joins packets that come in parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ..crypto.primitives import Aead, InvalidTag
from .joining import BELOW, TOP, Joiner, Room, StreamJoiner
from .layout import (
    EXPRESS_KIND,
    FIELDS,
    FRAMES,
    FRAMES_ASK,
    HEADER,
    KIND,
    LANE_HEADER,
    MAX_TRAIN,
    OVERHEAD,
    SLICE,
    STREAM_ASK,
    STREAM_HEADER,
    STREAM_SIZE,
)
from .replay import ReplayWindow
from .slices import MAX_PACKET, SLICE_SIZE, Drops, LaneSink, Run, Shape, spaced
from .train import STREAMS, WHOLE, Found, StreamRun, Train, open_train, slice_header

_KINDS: Final = frozenset((KIND, EXPRESS_KIND))
_FRAMES: Final = frozenset((FRAMES, FRAMES_ASK))
_LEAST: Final = OVERHEAD + 1
"""Bytes of the smallest datagram."""


class Receiving:
    """The state that opens the datagrams of one index."""

    __slots__ = ("decrypt", "heard", "index", "number", "window")

    def __init__(self, aead: Aead, index: int, number: int) -> None:
        """`number` is that of the epoch; it rises from one to the next."""
        self.decrypt = aead.decrypt_into
        self.index = index
        self.number = number
        self.heard = 0
        """Authentic datagrams."""
        self.window = ReplayWindow()


class Opener:
    """Opens all datagrams of one session. `epochs` is a live view, by index."""

    __slots__ = (
        "_deliver",
        "_epochs",
        "_flush",
        "_hold",
        "_packets",
        "_room",
        "_sink",
        "_streams",
        "_top",
        "advanced",
        "assembly",
        "drops",
        "heard",
    )

    def __init__(self, epochs: Mapping[int, Receiving], sink: LaneSink, room: Room, drops: Drops) -> None:
        self._epochs = epochs
        self._sink = sink
        self._room = room
        self._top = -1
        self.drops = drops
        joiner = Joiner(sink, room, drops)
        self.assembly = joiner.assembly
        # Bound once, because they are called for every packet.
        self._hold = joiner.hold
        self._deliver = joiner.deliver
        self._flush = joiner.flush
        self._packets = joiner
        self._streams = StreamJoiner(sink, room)
        self.heard = 0
        """Authentic bytes (whole UDP payloads) of the last batch."""
        self.advanced = False
        """Whether the last batch had the highest counter so far."""

    def open_batch(self, data: memoryview, size: int, segment: int) -> int:
        """Open what one receive brought: data[:size], datagrams of `segment` bytes; the last may be shorter.

        Everything authentic goes to the sink before this or `flush` returns, in the order of arrival. Returns `heard`.
        """
        self.heard = 0
        self.advanced = False
        drops = self.drops
        if not _LEAST <= segment <= MAX_PACKET:
            drops.length += 1
            return 0
        if _LEAST <= size <= segment:
            self._open_one(data, size)
            return self.heard
        per_train = min(MAX_TRAIN, BELOW // segment)
        for begin in range(0, size, segment * per_train):
            count = min(per_train, -(-(size - begin) // segment))
            last = min(segment, size - begin - segment * (count - 1))
            if last < _LEAST:
                drops.length += 1
                count -= 1
                last = segment
                if not count:
                    break
            fields = spaced(FIELDS, count, segment - HEADER).unpack_from(data, begin)
            index, counter = fields[1], fields[2]
            epoch = self._epochs.get(index)
            if (
                epoch is not None
                and counter > epoch.window.highest
                and fields[0] in _KINDS
                and fields[::3] == fields[:1] * count
                and fields[1::3] == (index,) * count
                and fields[2::3] == tuple(range(counter, counter + count))
            ):
                self._open_train(epoch, counter, (epoch.decrypt, data, begin, segment, 0, count, last))
            else:
                self._open_mixture(fields, data, begin, segment, last)
        return self.heard

    def _open_one(self, data: memoryview, size: int) -> None:
        """Open a datagram that came alone: a small packet, or any packet without UDP_GRO. Takes half as long as a
        train of one."""
        kind, index, counter = LANE_HEADER.unpack_from(data)
        epoch = self._epochs.get(index)
        if epoch is None or kind not in _KINDS:
            self.drops.unknown += 1
            return
        window = epoch.window
        if not window.fresh(counter):
            self.drops.replay += 1
            return
        out, top = self._room.opened, TOP + size - OVERHEAD
        try:
            epoch.decrypt(data[1:HEADER], data[HEADER:size], data[:HEADER], out[TOP:top])
        except InvalidTag:
            self.drops.tag += 1
            return
        window.mark_range(counter, counter)
        epoch.heard += 1
        self.heard = size
        if counter > self._top:
            self._top = counter
            self.advanced = True
        if out[TOP] != SLICE:
            self._hand_on_one(counter, top, size)
            return
        _, flags, index, of, gso, header = slice_header(out, TOP, top)
        if of == 1 and not gso:
            self._flush()
            self._sink.run(out, TOP + SLICE_SIZE, top, WHOLE[flags])
        elif gso and of > 1:
            group = epoch.index, counter - index, flags, of, gso, header
            self._hold(TOP + SLICE_SIZE, top, index, 1, group)
        elif of:
            self._flush()
            run = Run(Shape(flags, gso, header), index, 1, of)
            self._deliver(out, TOP + SLICE_SIZE, top, run, (epoch.index, counter - index))
        else:
            self.drops.malformed += 1
        self._sink.opened(counter, counter)

    def _hand_on_one(self, counter: int, top: int, size: int) -> None:
        """Give what is no slice of a packet, and came alone, to the sink or to the joiner."""
        out, sink = self._room.opened, self._sink
        kind = out[TOP]
        if kind in STREAMS:
            if top - TOP > STREAM_SIZE:
                _, _, stream, offset = STREAM_HEADER.unpack_from(out, TOP)
                self._streams.hold(TOP + STREAM_SIZE, top, stream, offset, counter, kind == STREAM_ASK)
                return
            self.drops.malformed += 1
        elif kind in _FRAMES:
            self._streams.flush()
            sink.frames(out[TOP + 1 : top], counter, kind == FRAMES_ASK)
            return
        else:
            sink.message(kind, out[TOP + 1 : top], size)
        sink.opened(counter, counter)

    def _open_mixture(
        self, fields: tuple[int, ...], data: memoryview, begin: int, segment: int, last: int
    ) -> None:
        """Cut datagrams that are not one new train into trains; drop those that are not ours or not fresh."""
        kinds, indices, counters = fields[::3], fields[1::3], fields[2::3]
        at, count = 0, len(kinds)
        while at < count:
            index, counter = indices[at], counters[at]
            epoch = self._epochs.get(index)
            if epoch is None or kinds[at] not in _KINDS:
                self.drops.unknown += 1
                at += 1
                continue
            # Ask again for each train: the one before may have had the same counters.
            fresh = epoch.window.fresh
            if not fresh(counter):
                self.drops.replay += 1
                at += 1
                continue
            stop = at + 1
            while (
                stop < count
                and kinds[stop] == kinds[at]
                and indices[stop] == index
                and counters[stop] == counter + stop - at
                and fresh(counters[stop])
            ):
                stop += 1
            size = last if stop == count else segment
            train = (epoch.decrypt, data, begin, segment, at, stop - at, size)
            self._open_train(epoch, counter, train)
            at = stop

    def _open_train(self, epoch: Receiving, counter: int, train: Train) -> None:
        """Open fresh datagrams with consecutive counters from `counter` on."""
        found, failed, heard = open_train(train, self._room, self.drops)
        if self._account(epoch, counter, train[5], failed):
            self.heard += heard
            self._hand_on(epoch.index, counter, found, train[5], failed)

    def _account(self, epoch: Receiving, counter: int, number: int, failed: list[int]) -> bool:
        """Mark `number` counters from `counter` on as seen, but not the positions that `failed`; False if all did."""
        newest = counter + number - 1
        if failed:
            self.drops.tag += len(failed)
            opened = sorted(set(range(number)).difference(failed))
            if not opened:
                return False
            for position in opened:
                epoch.window.mark(counter + position)
            epoch.heard += len(opened)
            newest = counter + opened[-1]
        else:
            epoch.window.mark_range(counter, newest)
            epoch.heard += number
        if newest > self._top:
            self._top = newest
            self.advanced = True
        return True

    def _hand_on(self, epoch: int, counter: int, found: list[Found], number: int, failed: list[int]) -> None:
        """Give everything to the sink, or to the joiner if more parts of its packet may follow. The train has `number`
        datagrams from `counter` on, of which those at the positions `failed` did not open."""
        out = self._room.opened
        told: list[int] = []
        # In ascending order: what lies in front of a run is delivered already, so its headroom may overlap that.
        message, deliver = self._sink.message, self._sink.run
        for start, top, size, found_run, position in reversed(found):
            if found_run is None:
                kind = out[start]
                if kind in _FRAMES:
                    self._streams.flush()
                    self._sink.frames(out[start + 1 : top], counter + position, kind == FRAMES_ASK)
                    told.append(position)
                else:
                    message(kind, out[start + 1 : top], size)
                continue
            if isinstance(found_run, StreamRun):
                stream, offset, count, ask = found_run
                self._streams.flush()
                self._sink.stream(stream, offset, out, start, top, counter + position, count, ask)
                told.extend(range(position, position + count))
                continue
            (flags, gso, header), index, count, of = found_run
            if gso and count < of:
                self._hold(start, top, index, count, (epoch, counter + position, flags, of, gso, header))
                continue
            self._flush()
            if of == 1 and not gso:
                deliver(out, start, top, found_run)
            else:
                self._deliver(out, start, top, found_run, (epoch, counter + position))
        if not told and not failed:
            self._sink.opened(counter, counter + number - 1)
        elif len(told) + len(failed) < number:
            self._tell(counter, sorted(set(range(number)).difference(told, failed)))

    def _tell(self, counter: int, positions: list[int]) -> None:
        """Tell the sink of the datagrams at `positions` in a train, a call for all that follow each other."""
        first = last = positions[0]
        for position in positions[1:]:
            if position > last + 1:
                self._sink.opened(counter + first, counter + last)
                first = position
            last = position
        self._sink.opened(counter + first, counter + last)

    def flush(self) -> None:
        """At the end of a wake-up: deliver what came one by one and was joined."""
        self._flush()
        self._streams.flush()

    def forget(self) -> None:
        """The session is over: drop what `flush` would deliver."""
        self._packets.forget()
        self._streams.forget()
