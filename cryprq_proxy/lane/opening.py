"""Opening received datagrams: the receiving half of the datagram lane (sealing.py has the layout).

A *train* is what the kernel delivers with UDP_GRO: datagrams of one size, only the last may be shorter. Most trains
hold one whole super-packet. Its slices are opened from the last to the first into one buffer, so that the payload of
each slice overwrites the header of the slice after it:

    opened 3rd   | header, headers | payload 0 |
    opened 2nd         | header, headers | payload 1 |
    opened 1st               | header, headers | payload 2 |
    what remains | header, headers | payload 0 | payload 1 | payload 2 |

So nothing is copied, and decryption is the only work per slice.

Order: `open_batch` distinguishes one datagram, a whole train and a mixture; `_open_train` opens, marks the counters as
seen and delivers. joining.py joins packets that come in parts.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Mapping
from operator import length_hint
from typing import Final

from ..crypto.primitives import Aead, Buffer, InvalidTag
from .joining import Joiner, Room
from .replay import ReplayWindow
from .slices import (
    FLAGS_MASK,
    HEADROOM,
    KIND_MASK,
    MAX_PACKET,
    MIN_HEADER,
    NEEDS_CSUM,
    PLAIN,
    SLICE,
    SLICE_HEADER,
    SLICE_SIZE,
    Drops,
    LaneSink,
    Run,
    Shape,
    spaced,
)

KIND: Final = 0x01
"""First byte of a lane datagram."""
EXPRESS_KIND: Final = 0x02
"""The same for a datagram that may be opened before earlier ones. It holds a whole packet that depends on no order and
is so small that an observer learns nothing from this byte."""
_KINDS: Final = frozenset((KIND, EXPRESS_KIND))
HEADER: Final = 13
TAG: Final = 16
OVERHEAD: Final = HEADER + TAG
"""Bytes of a UDP payload that are not plaintext."""
MAX_TRAIN: Final = 64
"""Largest number of datagrams in one send: the limit of older kernels for UDP_SEGMENT."""
LAYOUT: Final = "BIQ"
_HEADER: Final = struct.Struct("!" + LAYOUT)

_LEAST: Final = OVERHEAD + 1
# The last datagram of a train is opened at _TOP, the earlier ones below it.
_TOP: Final = HEADROOM + MAX_PACKET
_NOTHING: Final = (0, 0, 0, 0, 0, 0)
_WHOLE: Final = {flags: Run(Shape(flags, 0, 0), 0, 1, 1) for flags in (PLAIN, PLAIN | NEEDS_CSUM)}

type _Decrypt = Callable[[Buffer, Buffer, Buffer, Buffer], int]
type _Found = tuple[int, int, int, Run | None, int]
"""Start and end of a message or a run of slices in the room, the size of its datagram (0 for a run), the run, and the
counter of the packet's slice 0 (-1 for a whole packet)."""


class Receiving:
    """The state that opens the datagrams of one index."""

    __slots__ = ("decrypt", "heard", "index", "serial", "window")

    def __init__(self, aead: Aead, index: int, serial: int) -> None:
        """`serial` rises from epoch to epoch."""
        self.decrypt = aead.decrypt_into
        self.index = index
        self.serial = serial
        self.heard = 0
        """Authentic datagrams."""
        self.window = ReplayWindow()


class Opener:
    """Opens all datagrams of one session. `epochs` is a live view, by index."""

    __slots__ = (
        "_deliver",
        "_epochs",
        "_hold",
        "_room",
        "_sink",
        "_top",
        "advanced",
        "assembly",
        "drops",
        "flush",
        "forget",
        "heard",
    )

    def __init__(self, epochs: Mapping[int, Receiving], sink: LaneSink, room: Room, drops: Drops) -> None:
        self._epochs = epochs
        self._sink = sink
        self._room = room
        self._top = (-1, -1)
        self.drops = drops
        joiner = Joiner(sink, room, drops)
        self.assembly = joiner.assembly
        # Bound once, because they are called for every packet.
        self._hold = joiner.hold
        self._deliver = joiner.deliver
        self.flush = joiner.flush
        self.forget = joiner.forget
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
        per_train = min(MAX_TRAIN, MAX_PACKET // segment)
        for begin in range(0, size, segment * per_train):
            count = min(per_train, -(-(size - begin) // segment))
            last = min(segment, size - begin - segment * (count - 1))
            if last < _LEAST:
                drops.length += 1
                count -= 1
                last = segment
                if not count:
                    break
            fields = spaced(LAYOUT, count, segment - HEADER).unpack_from(data, begin)
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
                self._open_train(epoch, counter, data, begin, segment, 0, count, last)
            else:
                self._open_mixture(fields, data, begin, segment, last)
        return self.heard

    def _open_one(self, data: memoryview, size: int) -> None:
        """Open a datagram that came alone: a small packet, or any packet without UDP_GRO. Takes half as long as a
        train of one."""
        kind, index, counter = _HEADER.unpack_from(data)
        epoch = self._epochs.get(index)
        if epoch is None or kind not in _KINDS:
            self.drops.unknown += 1
            return
        window = epoch.window
        if not window.fresh(counter):
            self.drops.replay += 1
            return
        out, top = self._room.opened, _TOP + size - OVERHEAD
        try:
            epoch.decrypt(data[1:HEADER], data[HEADER:size], data[:HEADER], out[_TOP:top])
        except InvalidTag:
            self.drops.tag += 1
            return
        window.mark_range(counter, counter)
        epoch.heard += 1
        self.heard = size
        if (epoch.serial, counter) > self._top:
            self._top = (epoch.serial, counter)
            self.advanced = True
        if out[_TOP] != SLICE:
            self._sink.message(out[_TOP], out[_TOP + 1 : top], size)
            return
        _, flags, index, of, gso, header = _slice(out, _TOP, top)
        if of == 1 and not gso:
            self.flush()
            self._sink.run(out, _TOP + SLICE_SIZE, top, _WHOLE[flags])
        elif gso and of > 1:
            group = epoch.index, counter - index, flags, of, gso, header
            self._hold(_TOP + SLICE_SIZE, top, index, 1, group)
        elif of:
            self.flush()
            run = Run(Shape(flags, gso, header), index, 1, of)
            self._deliver(out, _TOP + SLICE_SIZE, top, run, (epoch.index, counter - index))
        else:
            self.drops.malformed += 1

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
            self._open_train(
                epoch, counter, data, begin, segment, at, stop, last if stop == count else segment
            )
            at = stop

    def _open_train(
        self,
        epoch: Receiving,
        counter: int,
        data: memoryview,
        begin: int,
        segment: int,
        first: int,
        stop: int,
        last: int,
    ) -> None:
        """Open datagrams `first` to `stop` - 1 of those in `data` from `begin` on. They are fresh, of one epoch, with
        consecutive counters from `counter` on; the last one has `last` bytes.

        A train may hold several packets and other messages. It may begin or end inside of a packet.
        """
        found, failed, heard = self._open_backwards(
            epoch, counter, data, begin + segment * first, segment, stop - first, last
        )
        if self._account(epoch, counter, counter + stop - first - 1, failed):
            self.heard += heard
            self._hand_on(epoch.index, found)

    def _open_backwards(
        self,
        epoch: Receiving,
        counter: int,
        data: memoryview,
        begin: int,
        segment: int,
        datagrams: int,
        last: int,
    ) -> tuple[list[_Found], list[int], int]:
        """What the datagrams of a train hold, last first; the counters of those that do not authenticate; the number of
        bytes of those that do.

        The last datagram of each packet is opened alone. It says how many before it belong to the same packet; these
        are opened without a check of each header. A peer that has the keys can write any payload, so a wrong header in
        the middle gains it nothing. The first and the last header of a run are compared.
        """
        drops, decrypt, out = self.drops, epoch.decrypt, self._room.opened
        plain = segment - OVERHEAD
        found: list[_Found] = []
        failed: list[int] = []
        heard = 0
        at, size, place = datagrams - 1, last, _TOP
        while at >= 0:
            number = counter + at
            top = place + size - OVERHEAD
            try:
                _open(decrypt, data, begin + segment * at, size, out, place)
            except InvalidTag:
                failed.append(number)
                at -= 1
                size = segment
                continue
            count = 1
            if out[place] != SLICE:
                found.append((place, top, size, None, number))
                place -= plain
            else:
                fields = _, flags, index, of, gso, header = _slice(out, place, top)
                lowest = place
                if index and at and plain > SLICE_SIZE + header:
                    below = min(index, at)
                    count += self._open_below(decrypt, data, begin, segment, at, below, size, place, header)
                    lowest -= (plain - SLICE_SIZE - header) * (count - 1)
                if of == 1 and not gso:
                    found.append((place + SLICE_SIZE, top, 0, _WHOLE[flags], -1))
                    place += SLICE_SIZE - plain
                elif not of:
                    drops.malformed += 1
                elif count > 1 and SLICE_HEADER.unpack_from(out, lowest) != (
                    *fields[:2],
                    index - count + 1,
                    *fields[3:],
                ):
                    drops.disagreement += count
                else:
                    run = Run(Shape(flags, gso, header), index - count + 1, count, of)
                    found.append((lowest + SLICE_SIZE, top, 0, run, number - index))
                    place = lowest + SLICE_SIZE - plain
            heard += size + segment * (count - 1)
            at -= count
            size = segment
        return found, failed, heard

    def _account(self, epoch: Receiving, counter: int, newest: int, failed: list[int]) -> bool:
        """Mark the counters from `counter` to `newest` as seen, except for those that `failed`; False if all did."""
        if failed:
            self.drops.tag += len(failed)
            opened = sorted(set(range(counter, newest + 1)).difference(failed))
            if not opened:
                return False
            for number in opened:
                epoch.window.mark(number)
            epoch.heard += len(opened)
            newest = opened[-1]
        else:
            epoch.window.mark_range(counter, newest)
            epoch.heard += newest + 1 - counter
        if (epoch.serial, newest) > self._top:
            self._top = (epoch.serial, newest)
            self.advanced = True
        return True

    def _hand_on(self, epoch: int, found: list[_Found]) -> None:
        """Give everything to the sink, or to the joiner if more parts of its packet may follow."""
        out = self._room.opened
        # In ascending order: what lies in front of a run is delivered already, so its headroom may overlap that.
        message, deliver = self._sink.message, self._sink.run
        for start, top, size, found_run, group in reversed(found):
            if found_run is None:
                message(out[start], out[start + 1 : top], size)
                continue
            (flags, gso, header), index, count, of = found_run
            if gso and count < of:
                self._hold(start, top, index, count, (epoch, group, flags, of, gso, header))
                continue
            self.flush()
            if group < 0:
                deliver(out, start, top, found_run)
            else:
                self._deliver(out, start, top, found_run, (epoch, group))

    def _open_below(
        self,
        decrypt: _Decrypt,
        data: memoryview,
        begin: int,
        segment: int,
        at: int,
        below: int,
        size: int,
        place: int,
        header: int,
    ) -> int:
        """Open the `below` datagrams before the one at `at` (of `size` bytes, opened at `place`), last first, each at a
        lower place. Returns how many opened before the first that failed."""
        row, out, low = self._room.row, self._room.opened, at - below
        plain = segment - OVERHEAD
        payload = plain - SLICE_SIZE - header
        places = iter(row(out, place - payload, -payload, plain, below)[:below])
        try:
            deque(
                map(
                    decrypt,
                    reversed(row(data, begin + 1, segment, HEADER - 1, at)[low:at]),
                    reversed(row(data, begin + HEADER, segment, segment - HEADER, at)[low:at]),
                    reversed(row(data, begin, segment, HEADER, at)[low:at]),
                    places,
                ),
                maxlen=0,
            )
        except InvalidTag:
            # `_open_backwards` counts the failed one. It overwrote the header of the one after it: open that again.
            opened = below - length_hint(places) - 1
            _open(
                decrypt,
                data,
                begin + segment * (at - opened),
                segment if opened else size,
                out,
                place - payload * opened,
            )
            return opened
        return below


def _open(decrypt: _Decrypt, data: memoryview, position: int, size: int, out: memoryview, place: int) -> None:
    """Open the datagram of `size` bytes at `position` in `data` to `place` in `out`. Raises InvalidTag."""
    body = position + HEADER
    decrypt(
        data[position + 1 : body],
        data[body : position + size],
        data[position:body],
        out[place : place + size - OVERHEAD],
    )


def _slice(out: memoryview, start: int, end: int) -> tuple[int, int, int, int, int, int]:
    """The fields of the slice header at `start`; all zero if they are invalid."""
    if end - start > SLICE_SIZE:
        fields: tuple[int, int, int, int, int, int] = SLICE_HEADER.unpack_from(out, start)
        _, flags, index, of, gso, header = fields
        kind = flags & KIND_MASK
        if index < of and not flags & ~FLAGS_MASK and start + SLICE_SIZE + header < end:
            sensible = gso and header >= MIN_HEADER[kind] if kind else not gso and not header
            if sensible:
                return fields
    return _NOTHING
