"""Opening a train: what the kernel delivers with UDP_GRO, datagrams of one size of which only the last may be shorter.

Most trains hold one whole super-packet. Its slices are opened from the last to the first into one buffer, so that the
payload of each slice overwrites the header of the slice after it:

    opened 3rd   | header, headers | payload 0 |
    opened 2nd         | header, headers | payload 1 |
    opened 1st               | header, headers | payload 2 |
    what remains | header, headers | payload 0 | payload 1 | payload 2 |

So nothing is copied, and decryption is the only work per slice. It is the same with a stretch of a stream.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from operator import length_hint
from typing import Final, NamedTuple

from ..crypto.primitives import Buffer, InvalidTag
from .joining import TOP, Room
from .layout import HEADER, OVERHEAD, SLICE, STREAM, STREAM_ASK, STREAM_HEADER, STREAM_OVERHEAD, STREAM_SIZE
from .slices import (
    FLAGS_MASK,
    KIND_MASK,
    MIN_HEADER,
    NEEDS_CSUM,
    PLAIN,
    SLICE_HEADER,
    SLICE_SIZE,
    Drops,
    Run,
    Shape,
)

WHOLE: Final = {flags: Run(Shape(flags, 0, 0), 0, 1, 1) for flags in (PLAIN, PLAIN | NEEDS_CSUM)}
"""The run of a whole packet in one slice, by its flags."""
STREAMS: Final = frozenset((STREAM, STREAM_ASK))
_INVALID: Final = (0, 0, 0, 0, 0, 0)


class StreamRun(NamedTuple):
    """Consecutive bytes of a stream, from `count` datagrams that followed each other."""

    stream: int
    offset: int
    count: int  # type: ignore[assignment]  # as in Run
    ask: bool
    """Whether the last datagram asks for an acknowledgement."""


type Decrypt = Callable[[Buffer, Buffer, Buffer, Buffer], int]
type SliceFields = tuple[int, int, int, int, int, int]
"""The fields of a slice header (slices.py)."""
type Found = tuple[int, int, int, Run | StreamRun | None, int]
"""Start and end of a message or a run of slices in `Room.opened`, the size of its datagram (0 for a run), the run, and
the position in the train of the message, of the packet's slice 0 (negative if the train does not hold it), or of the
first datagram of a stream's run."""


type Train = tuple[Decrypt, memoryview, int, int, int, int, int]
"""What opens the datagrams, the buffer that holds them, where the first of those that came with them begins, the size
of each, how many of these are before the train, the number of the train's own, and the size of the last one. So all
trains of one receive use the same views, wherever a loss has parted them."""


def open_train(train: Train, room: Room, drops: Drops) -> tuple[list[Found], list[int], int]:
    """What the datagrams hold, last first; the positions of those that do not authenticate; the bytes of the others.

    A train may hold several packets and other messages. It may begin or end inside of a packet.
    """
    decrypt, data, begin, segment, before, number, size = train
    begin += segment * before
    out, plain = room.opened, segment - OVERHEAD
    found: list[Found] = []
    failed: list[int] = []
    heard = 0
    at, place = number - 1, TOP
    while at >= 0:
        try:
            _open(decrypt, data, begin + segment * at, size, out, place)
        except InvalidTag:
            failed.append(at)
            at -= 1
            size = segment
            continue
        top = place + size - OVERHEAD
        count = 1
        kind = out[place]
        if kind in STREAMS:
            run, count, place = _open_stream(train, room, at, size, place)
            if run is not None:
                found.append(run)
            elif top - place > STREAM_SIZE:
                drops.disagreement += count
            else:
                drops.malformed += 1
        elif kind != SLICE:
            found.append((place, top, size, None, at))
            place -= plain
        else:
            fields = _, flags, _, of, gso, _ = slice_header(out, place, top)
            if of == 1 and not gso:
                found.append((place + SLICE_SIZE, top, 0, WHOLE[flags], at))
                place += SLICE_SIZE - plain
            elif not of:
                drops.malformed += 1
            else:
                packet, count, place = _open_packet(train, room, at, size, place, fields)
                if packet is None:
                    drops.disagreement += count
                else:
                    found.append(packet)
        heard += size + segment * (count - 1)
        at -= count
        size = segment
    return found, failed, heard


def _open_packet(
    train: Train, room: Room, at: int, size: int, place: int, fields: SliceFields
) -> tuple[Found | None, int, int]:
    """The packet whose last slice here is datagram `at` (of `size` bytes, opened at `place`), or None if its slices
    disagree; the number of its datagrams; the place for the datagram before them.

    The last slice says how many datagrams before it belong to the same packet; these are opened without a check of each
    header. A peer that has the keys can write any payload, so a wrong header in the middle gains it nothing. The first
    and the last header of a run are compared.
    """
    _, flags, index, of, gso, header = fields
    payload = train[3] - OVERHEAD - SLICE_SIZE - header
    count, lowest = 1, place
    if index and at and payload > 0:
        count += _open_below(train, room, at, min(index, at), size, place, payload)
        lowest -= payload * (count - 1)
    first = index - count + 1
    if count > 1 and SLICE_HEADER.unpack_from(room.opened, lowest) != (SLICE, flags, first, of, gso, header):
        return None, count, place
    run = Run(Shape(flags, gso, header), first, count, of)
    packet = lowest + SLICE_SIZE, place + size - OVERHEAD, 0, run, at - index
    return packet, count, lowest - header - payload


def _open_stream(train: Train, room: Room, at: int, size: int, place: int) -> tuple[Found | None, int, int]:
    """As `_open_packet`, for bytes of a stream: also None if there are none in the last datagram."""
    top, payload = place + size - OVERHEAD, train[3] - STREAM_OVERHEAD
    if top - place <= STREAM_SIZE:
        return None, 1, place
    kind, index, stream, offset = STREAM_HEADER.unpack_from(room.opened, place)
    count = 1
    if index and at and payload > 0:
        count += _open_below(train, room, at, min(index, at), size, place, payload)
        place -= payload * (count - 1)
        offset -= payload * (count - 1)
        header = STREAM_HEADER.unpack_from(room.opened, place)
        if header[0] not in STREAMS or header[1:] != (index - count + 1, stream, offset):
            return None, count, place
    run = StreamRun(stream, offset, count, kind == STREAM_ASK)
    return (place + STREAM_SIZE, top, 0, run, at - count + 1), count, place - payload


def _open_below(train: Train, room: Room, at: int, below: int, size: int, place: int, payload: int) -> int:
    """Open the `below` datagrams before the one at `at` (of `size` bytes, opened at `place`), last first, each at a
    place that is `payload` bytes lower. Returns how many opened before the first that failed."""
    decrypt, data, begin, segment, before, _, _ = train
    at += before
    row, out, low = room.row, room.opened, at - below
    places = iter(row(out, place - payload, -payload, segment - OVERHEAD, below)[:below])
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
        # `open_train` counts the failed one. It overwrote the header of the one after it: open that again.
        opened = below - length_hint(places) - 1
        begin += segment * (at - opened)
        _open(decrypt, data, begin, segment if opened else size, out, place - payload * opened)
        return opened
    return below


def _open(decrypt: Decrypt, data: memoryview, position: int, size: int, out: memoryview, place: int) -> None:
    """Open the datagram of `size` bytes at `position` in `data` to `place` in `out`. Raises InvalidTag."""
    body = position + HEADER
    decrypt(
        data[position + 1 : body],
        data[body : position + size],
        data[position:body],
        out[place : place + size - OVERHEAD],
    )


def slice_header(out: memoryview, start: int, end: int) -> SliceFields:
    """The fields of the slice header at `start`; all zero if they are invalid."""
    if end - start > SLICE_SIZE:
        fields: SliceFields = SLICE_HEADER.unpack_from(out, start)
        _, flags, index, of, gso, header = fields
        kind = flags & KIND_MASK
        if index < of and not flags & ~FLAGS_MASK and start + SLICE_SIZE + header < end:
            sensible = gso and header >= MIN_HEADER[kind] if kind else not gso and not header
            if sensible:
                return fields
    return _INVALID
