"""Where chunks end (RFC 9112 section 7.1), so that h11 gets no more of them at once than are little work.

h11 alone decides what is in a message. This scanner only cuts what h11 is given, and refuses a body early that h11
would refuse as well, or take very long for: the header of a chunk is bounded, and so are the trailers.
"""

from __future__ import annotations

import re
from typing import Final

import h11

from .http_sections import check_section, end_of_section

SLICE_CHUNKS: Final = 128
"""Chunks in one slice."""
CHUNK_WORK: Final = 8
"""Units of work (session/turns.py) for a chunk, whatever is in it."""
MAX_CHUNK_HEADER: Final = 1_024
"""Bytes of the line before a chunk, with its extensions."""

_HEADER: Final = re.compile(rb"([0-9A-Fa-f]{1,20})[ \t]{0,32}(?:;[^\r\n]{0,960})?\r\n")


class ChunkScanner:
    """Scans one chunked body."""

    def __init__(self) -> None:
        self._left = 0
        """Bytes of the present chunk that are still to come, with the line end behind it."""
        self._trailers = False

    def cut(self, data: bytes) -> tuple[int, int]:
        """The length of the next slice at the beginning of `data`, and its work; 0 if more must come first.

        `data` begins where the last slice ended. Raises h11.RemoteProtocolError.
        """
        at = chunks = lines = 0
        while at < len(data) and chunks < SLICE_CHUNKS and not lines:
            if self._left:
                taken = min(self._left, len(data) - at)
                self._left -= taken
                at += taken
            elif self._trailers:
                end = end_of_section(data, at)
                if end < 0:
                    break
                lines = check_section(data[at:end])
                at = end
            elif match := _HEADER.match(data, at):
                size = int(match[1], 16)
                chunks += 1
                at = match.end()
                self._trailers, self._left = size == 0, size + 2 if size else 0
            elif b"\n" in data[at : at + MAX_CHUNK_HEADER] or len(data) - at > MAX_CHUNK_HEADER:
                raise h11.RemoteProtocolError("an invalid or too long chunk header")
            else:
                break
        return at, (chunks + lines) * CHUNK_WORK
