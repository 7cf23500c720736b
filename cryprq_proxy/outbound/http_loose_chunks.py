"""Chunks of responses whose lines end with a bare LF or have spaces before an extension, or whose trailers are odd:
h11 gets them in the strict form.

Chunks that are in that form already are cut as those of a request (http_chunks.py) and are not copied.
"""

from __future__ import annotations

import re
from typing import Final

import h11

from .http_chunks import CHUNK_WORK, MAX_CHUNK_HEADER, SLICE_CHUNKS, ChunkScanner
from .http_heads import clean_trailers
from .http_sections import check_section, end_of_section

_LINE: Final = rb"([0-9A-Fa-f]{1,20})(?:([ \t]{1,32}(?=;))|[ \t]{0,32})(?:;[^\r\n]{0,960})?(?:\r\n|(\n))"
# Groups: a bare LF before the line, the size, the spaces before an extension, a bare LF at its end.
_FIRST: Final = re.compile(rb"()" + _LINE)
_NEXT: Final = re.compile(rb"(?:\r\n|(\n))" + _LINE)


class LooseChunkScanner(ChunkScanner):
    """Scans the chunked body of a response; with ENDLESS bytes left, any other body.

    Here `left` is without the line end behind the chunk: that goes to h11 together with the next line.
    """

    def __init__(self, left: int = 0) -> None:
        super().__init__(left)
        self._line = _FIRST

    def cut(self, data: bytes) -> tuple[int, int]:
        """The length of the next slice at the beginning of `data`, and its work; 0 if more must come first.

        `data` begins where the last slice ended. Raises h11.RemoteProtocolError.
        """
        self.rewritten = None
        total = len(data)
        if self.left >= total:
            self.left -= total
            return total, 0
        at, chunks, lines = self.left, 0, 0
        pieces: list[bytes] = []
        copied = 0
        while at < total and chunks < SLICE_CHUNKS and not self._trailers:
            match = self._line.match(data, at)
            if match is None:
                self._check_line(data, at)
                break
            chunks += 1
            if match[1] or match[3] or match[4]:
                pieces += data[copied:at], b"\r\n" if self._line is _NEXT else b"", match[2], b"\r\n"
                copied = match.end()
            size = int(match[2], 16)
            at = match.end() + size
            self._trailers = not size
            self._line = _NEXT
        if self._trailers and (end := end_of_section(data, at)) >= 0:
            section = data[at:end]
            lines = check_section(section)
            cleaned = clean_trailers(section)
            if cleaned is not section:
                pieces += data[copied:at], cleaned
                copied = end
            at = end
        self.left = max(at - total, 0)
        at = min(at, total)
        if pieces:
            self.rewritten = b"".join((*pieces, data[copied:at]))
        return at, (chunks + lines) * CHUNK_WORK

    def _check_line(self, data: bytes, at: int) -> None:
        """Raise h11.RemoteProtocolError if no more bytes make a line of what stands at `at`."""
        line = data[at : at + MAX_CHUNK_HEADER + 2]
        if self._line is _NEXT:
            before = line[:2] if line[:1] == b"\r" else line[:1]
            if before not in (b"\n", b"\r", b"\r\n"):
                raise h11.RemoteProtocolError("a chunk that ends elsewhere")
            line = line[len(before) :]
        if b"\n" in line or len(line) > MAX_CHUNK_HEADER - 2:
            raise h11.RemoteProtocolError("an invalid or too long chunk header")
