"""The bytes of one HTTP peer, given to h11 in slices that are little work, each in a turn that has room for it.

    head          as a whole, when its last line has come and it is within the bounds (http_sections.py)
    chunked body  up to SLICE_CHUNKS chunks at a time (http_chunks.py)
    other body    as it comes, like the rest of a chunk

A peer chooses how it divides its messages, and h11 takes far longer for a chunk or a field than for its bytes. So the
work is counted, and all HTTP connections of the proxy have one TurnBudget together: in each turn of the loop they stop
when it is used up, and those that wait go on in their order.
"""

from __future__ import annotations

import asyncio
from typing import Final

import h11

from ..session.turns import BYTES_PER_UNIT, READ_WORK, TurnBudget
from .bytestream import ByteStream
from .http_chunks import CHUNK_WORK, ENDLESS, SLICE_CHUNKS, ChunkScanner
from .http_heads import MAX_EMPTY_LINES, check_head, clean_head, end_of_head
from .http_loose_chunks import LooseChunkScanner
from .http_sections import MAX_HEADER, check_section, end_of_section, escape_target

HEAD_WORK: Final = 200
"""Units of work for a head, whatever is in it; for that of a request also its stream and its answer."""
LINE_WORK: Final = 6
"""For each line of a head."""
HEAD_BYTES_PER_UNIT: Final = 32
"""Bytes of the head of a response for one unit."""
LARGE_HEAD: Final = 16 * 1024
"""Bytes of a head of which one turn reads what the next one passes on."""
MAX_INTERIM: Final = 100
"""Answers of a kind like 103 before the response itself."""
_SLICE_WORK: Final = SLICE_CHUNKS * CHUNK_WORK

type Role = type[h11.CLIENT] | type[h11.SERVER]


class HttpReader:
    """Gives what comes on `stream` to `http`, an h11 connection in the role `role`. A cancelled call loses nothing.

    With `lenient`, for the responses of any server, odd heads and chunk lines are written anew before h11 gets them
    (http_heads.py, http_loose_chunks.py).
    """

    def __init__(self, stream: ByteStream, role: Role, turns: TurnBudget, *, lenient: bool = False) -> None:
        self._stream = stream
        self._role = role
        self._turns = turns
        self._lenient = lenient
        self._scanner = LooseChunkScanner if lenient else ChunkScanner
        self._searched = 0
        """Bytes of `waiting` in which no head ends."""
        self._empty_lines = 0
        self._large = False
        self.odd = False
        """Whether any of the present response was written anew, so that where it ends is in doubt."""
        self._body = ChunkScanner()
        self._interim = 0
        self.http = h11.Connection(role, MAX_HEADER)
        self.waiting = b""
        """Received, and not given to h11."""
        self.ended = False
        """Whether the end was received, after what is waiting."""
        self.silent = True
        """Whether no byte was received since the last message."""

    @property
    def rest(self) -> bytes:
        """What was received after the present message."""
        return self.http.trailing_data[0] + self.waiting

    def restart(self) -> None:
        """Prepare for another message, which may have begun with what was received after the last one."""
        self.waiting = self.rest
        self.http = h11.Connection(self._role, MAX_HEADER)
        self._body.left = 0

    def renew(self) -> None:
        """Prepare for the answer to another request, on a connection whose last messages were complete."""
        self.http.start_next_cycle()
        self._body.left = 0
        self._interim = 0
        self._empty_lines = 0
        self.silent = True

    def keep(self, data: bytes) -> None:
        """Take bytes that were received by somebody else."""
        self.waiting += data

    def skip(self, ignored: bytes) -> bool:
        """Drop these bytes before a message; whether others are there."""
        self.waiting = self.waiting.lstrip(ignored)
        return bool(self.waiting)

    async def read(self) -> None:
        """Receive some bytes, or the end, without giving them to h11. Raises StreamReset."""
        if self._turns.left <= 0:
            await _next_turn(self._turns)
        self._add(await self._stream.read())

    async def head(self) -> object:
        """Receive until h11 has an event, while a head is due. Raises StreamReset, h11.RemoteProtocolError."""
        event: object = h11.NEED_DATA
        while event is h11.NEED_DATA:
            await self.receive()
            event = self.http.next_event()
        if self._large:
            self._large = False
            await _next_turn(self._turns)
        if isinstance(event, (h11.Request, h11.Response)):
            # Not `event.headers` itself: it makes a call for each field.
            names = [name.lower() for name, _ in event.headers.raw_items()]
            self._body = self._scanner(0 if b"transfer-encoding" in names else ENDLESS)
        elif isinstance(event, h11.InformationalResponse):
            self._interim += 1
            if self._interim > MAX_INTERIM:
                raise h11.RemoteProtocolError("too many answers before the response")
        return event

    async def receive(self) -> None:
        """Give h11 the next slice, or the end. Raises StreamReset, h11.RemoteProtocolError."""
        turns = self._turns
        while True:
            if turns.left <= 0:
                await _next_turn(turns)
            if self.waiting and self.feed():
                return
            if self.ended:
                self.http.receive_data(b"")
                return
            # Not `read`, and not `feed` inside a chunk or a body by length: they would slow down each piece.
            data = await self._stream.read()
            if self.waiting or not 0 < len(data) <= self._body.left:
                self._add(data)
                continue
            self._body.left -= len(data)
            turns.spend(READ_WORK + len(data) // BYTES_PER_UNIT)
            self.http.receive_data(data)
            return

    def feed(self) -> bool:
        """Give h11 the next slice if one waits, in this turn. Raises h11.RemoteProtocolError."""
        state = self.http.their_state
        if self._lenient and state is h11.SEND_RESPONSE:
            return self._feed_loose_head()
        data = self.waiting
        rewritten = None
        if state is h11.SEND_BODY:
            size, work = self._body.cut(data)
            rewritten = self._body.rewritten
        elif state in (h11.IDLE, h11.SEND_RESPONSE):
            size, work = _cut_head(data)
        else:
            size, work = len(data), 0
        if work:
            self._turns.spend(work)
        if self.ended and not size:
            # After the end h11 gets the rest as well, and tells what is missing.
            size = len(data)
        if not size:
            return False
        self.waiting = data[size:]
        data = data[:size]
        if rewritten is not None:
            data, self.odd = rewritten, True
        elif state is h11.IDLE and self._role is h11.SERVER and not data.isascii():
            data = escape_target(data)
        self.http.receive_data(data)
        return True

    def _feed_loose_head(self) -> bool:
        """Give h11 the head of a response, written anew if need be, when it is there."""
        data = self.waiting
        if data[:1] in (b"\r", b"\n"):
            self.waiting = data.lstrip(b"\r\n")
            self._empty_lines += len(data) - len(self.waiting)
            if self._empty_lines > MAX_EMPTY_LINES:
                raise h11.RemoteProtocolError("too many empty lines before a response")
            self.odd = True
            data = self.waiting
        end = end_of_head(data, self._searched)
        if end < 0:
            if self.ended and data:
                raise h11.RemoteProtocolError("a head that was cut short")
            self._searched = len(data)
            return False
        self._searched = 0
        head = data[:end]
        self._turns.spend(HEAD_WORK + LINE_WORK * check_head(head) + end // HEAD_BYTES_PER_UNIT)
        cleaned = clean_head(head)
        self.odd |= cleaned is not head
        self.waiting = data[end:]
        self._large = end > LARGE_HEAD
        self.http.receive_data(cleaned)
        return True

    def _add(self, data: bytes) -> None:
        """Take what a read has returned, and count the work."""
        if data:
            self.silent = False
            self.waiting = data = self.waiting + data if self.waiting else data
        else:
            self.ended = True
        self._turns.spend(READ_WORK + len(data) // BYTES_PER_UNIT)


def _cut_head(data: bytes) -> tuple[int, int]:
    if not data or data[0] <= ord(" "):
        return len(data), 0  # h11 refuses it at once
    end = end_of_section(data)
    return (0, 0) if end < 0 else (end, HEAD_WORK + LINE_WORK * check_section(data[:end]))


async def _next_turn(turns: TurnBudget) -> None:
    """Wait for a turn of the loop with room for a slice, after those that wait already."""
    granted = asyncio.get_running_loop().create_future()

    def grant() -> None:
        if not granted.done():
            # In advance, so that no more go on in one turn than it has room for.
            turns.spend(_SLICE_WORK)
            granted.set_result(None)

    turns.wait(grant)
    await granted
