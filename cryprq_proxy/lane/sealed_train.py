"""Sealing a train: datagrams with consecutive counters, all of one size but the last, which may be shorter.

A packet is overwritten: the header of slice k + 1 goes over the tail of slice k, which is already sealed. A stretch of
a stream may have to go again, in datagrams of another size. It is copied together with all headers, in two calls
for the whole train: that costs less than the views of a buffer that is another one each time, and leaves it alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from ..crypto.primitives import Buffer
from .joining import Room
from .layout import (
    FIELDS,
    HEADER,
    KIND,
    LANE_HEADER,
    MAX_TRAIN,
    OVERHEAD,
    STREAM,
    STREAM_ASK,
    STREAM_FIELDS,
    STREAM_HEADER,
    STREAM_SIZE,
    TAG,
)
from .slices import spaced

MAX_SEND: Final = 65_000
"""Largest number of bytes in one send."""

type Send = tuple[int, int, int]
"""(begin, end, size): one send of `out[begin:end]`, in datagrams of `size` bytes; the last may be shorter."""


type Encrypt = Callable[[Buffer, Buffer, Buffer, Buffer], int]


class SendKey(Protocol):
    """What a train is sealed with."""

    encrypt: Encrypt
    peer_index: int


def seal_slices(
    key: SendKey,
    row: Callable[[memoryview, int, int, int, int], list[memoryview]],
    counter: int,
    count: int,
    prefix: bytearray,
    piece: int,
    buffer: memoryview,
    at: int,
    end: int,
    out: memoryview,
    position: int,
) -> list[Send]:
    """Seal a packet in `count` slices of `piece` payload bytes each (the last may have fewer), to `out[position:]`,
    with counters from `counter` on.

    `prefix`: slice header and the packet's own headers. The first slice goes to `buffer[at:]`, the packet ends at
    `end`. `row`: that of Rows. All are sealed in one go and cut into sends only then.
    """
    encrypt, width, last = key.encrypt, len(prefix), count - 1
    segment = OVERHEAD + width + piece
    _write_headers(out, position, segment, key.peer_index, counter, count)
    for k, top, plain, nonce, head, place in zip(
        range(last),
        row(buffer, at, piece, width, last),
        row(buffer, at, piece, width + piece, last),
        row(out, position + 1, segment, HEADER - 1, last),
        row(out, position, segment, HEADER, last),
        row(out, position + HEADER, segment, segment - HEADER, last),
        strict=False,
    ):
        prefix[2] = k
        top[:] = prefix
        encrypt(nonce, plain, head, place)
    # The last one may be shorter.
    prefix[2] = last
    at += piece * last
    buffer[at : at + width] = prefix
    return _seal_last(key, buffer[at:end], out, position, segment, last)


def seal_stretch(
    key: SendKey,
    room: Room,
    counter: int,
    count: int,
    stream: int,
    offset: int,
    data: memoryview,
    piece: int,
    out: memoryview,
    position: int,
    ask: bool,
) -> list[Send]:
    """Seal the bytes `data` of a stream, which begin at `offset`, in `count` datagrams with `piece` of them each (the
    last may have fewer), to `out[position:]`, with counters from `counter` on. The last one may ask for an
    acknowledgement."""
    plain, last, done = room.plain, count - 1, piece * (count - 1)
    width = STREAM_SIZE + piece
    segment = OVERHEAD + width
    if last:
        _write_headers(out, position, segment, key.peer_index, counter, count)
        fields: list[int | bytes] = [STREAM, 0, stream, offset, b""] * last
        fields[1::5] = range(last)
        fields[3::5] = range(offset, offset + done, piece)
        fields[4::5] = spaced(f"{piece}s", last, 0).unpack_from(data)
        spaced(f"{STREAM_FIELDS}{piece}s", last, 0).pack_into(plain, 0, *fields)
        row = room.row
        deque(
            map(
                key.encrypt,
                row(out, position + 1, segment, HEADER - 1, last)[:last],
                row(plain, 0, width, width, last),
                row(out, position, segment, HEADER, last),
                row(out, position + HEADER, segment, segment - HEADER, last),
            ),
            maxlen=0,
        )
    else:
        segment = OVERHEAD + STREAM_SIZE + len(data)
        LANE_HEADER.pack_into(out, position, KIND, key.peer_index, counter)
    STREAM_HEADER.pack_into(plain, 0, STREAM_ASK if ask else STREAM, last, stream, offset + done)
    top = STREAM_SIZE + len(data) - done
    plain[STREAM_SIZE:top] = data[done:]
    return _seal_last(key, plain[:top], out, position, segment, last)


def _write_headers(
    out: memoryview, position: int, segment: int, index: int, counter: int, count: int
) -> None:
    """Write the lane headers of `count` datagrams, `segment` bytes from one to the next."""
    fields = [KIND, index, 0] * count
    fields[2::3] = range(counter, counter + count)
    spaced(FIELDS, count, segment - HEADER).pack_into(out, position, *fields)


def _seal_last(
    key: SendKey, plain: memoryview, out: memoryview, position: int, segment: int, last: int
) -> list[Send]:
    """Seal `plain` as the last datagram, number `last`, and cut all of them into sends."""
    final = position + segment * last
    body = final + HEADER
    finish = body + len(plain) + TAG
    key.encrypt(out[final + 1 : body], plain, out[final:body], out[body:finish])
    step = segment * min(MAX_TRAIN, MAX_SEND // segment)
    return [(begin, min(begin + step, finish), segment) for begin in range(position, finish, step)]
