"""Where chunks end (RFC 9112 section 7.1), so that h11 gets no more of them at once than are little work.

h11 alone decides what is in a message. This scanner only cuts what h11 is given, and refuses a body early that h11
would refuse as well, or take very long for: the header of a chunk is bounded, and so are the trailers.
"""

from __future__ import annotations

import re
from typing import Final

import h11

from .http_sections import check_section, end_of_section

ENDLESS: Final = 1 << 62
"""`left` of a body that is not chunked."""
SLICE_CHUNKS: Final = 128
"""Chunks in one slice."""
CHUNK_WORK: Final = 8
"""Units of work (session/turns.py) for a chunk, whatever is in it."""
MAX_CHUNK_HEADER: Final = 1_024
"""Bytes of the line before a chunk, with its extensions."""

_HEADER: Final = re.compile(rb"([0-9A-Fa-f]{1,20})[ \t]{0,32}(?:;[^\r\n]{0,960})?\r\n")


class ChunkScanner:
    """Scans one chunked body; with ENDLESS bytes left, any other body."""

    def __init__(self, left: int = 0) -> None:
        self.left = left
        """Bytes of the present chunk that are still to come, with the line end behind it: h11 may get them uncut."""
        self.rewritten: bytes | None = None
        """The present slice for h11, where it is not what was received."""
        self._trailers = False

    def cut(self, data: bytes) -> tuple[int, int]:
        """The length of the next slice at the beginning of `data`, and its work; 0 if more must come first.

        `data` begins where the last slice ended. Raises h11.RemoteProtocolError.
        """
        total = len(data)
        if self.left >= total:
            self.left -= total
            return total, 0
        at, chunks, lines = self.left, 0, 0
        while at < total and chunks < SLICE_CHUNKS and not self._trailers:
            match = _HEADER.match(data, at)
            if match is None:
                if b"\n" in data[at : at + MAX_CHUNK_HEADER] or total - at > MAX_CHUNK_HEADER:
                    raise h11.RemoteProtocolError("an invalid or too long chunk header")
                break
            chunks += 1
            at = match.end()
            if size := int(match[1], 16):
                at += size + 2
            else:
                self._trailers = True
        if self._trailers and (end := end_of_section(data, at)) >= 0:
            lines = check_section(data[at:end])
            at = end
        if at <= total:
            self.left = 0
        else:
            self.left, at = at - total, total
        return at, (chunks + lines) * CHUNK_WORK
