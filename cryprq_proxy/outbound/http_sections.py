"""Sections of header or trailer fields, before h11 parses them: where one ends, and whether it is within the bounds."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote_from_bytes

import h11

MAX_HEADER: Final = 64 * 1024
"""The most bytes of a message's header section, or of its trailers."""
MAX_FIELDS: Final = 256
"""Lines in one of them."""
MAX_MEMBERS: Final = 4_096
"""Commas in one of them: h11 and we split lists."""

# The time that h11 takes for an invalid value grows with the square of the spaces before it.
_MANY_SPACES: Final = re.compile(rb":[ \t]{256}")
_ASCII: Final = bytes(range(128))
_BLANK_LINE: Final = re.compile(rb"\n\r?\n")
_AT_ONCE: Final = re.compile(rb"\r?\n")


def end_of_section(data: bytes, start: int = 0) -> int:
    """The index behind the blank line that ends the section at `start`, as h11 finds it; -1 if it has not come.

    Raises h11.RemoteProtocolError if it is too long, whether its end has come or not.
    """
    match = _AT_ONCE.match(data, start) or _BLANK_LINE.search(data, start)
    if (len(data) if match is None else match.end()) - start > MAX_HEADER:
        raise h11.RemoteProtocolError("a section beyond the bound", error_status_hint=431)
    return -1 if match is None else match.end()


def escape_target(head: bytes) -> bytes:
    """The head of a request, with a percent escape for each byte beyond ASCII in its target. Programs send such bytes
    as their users type them; a URI holds none (RFC 3986 section 2)."""
    line, end, rest = head.partition(b"\n")
    method, space, after = line.partition(b" ")
    target, last, version = after.rpartition(b" ")
    if target.isascii():
        return head
    return method + space + quote_from_bytes(target, _ASCII).encode("ascii") + last + version + end + rest


def check_section(section: bytes) -> int:
    """The number of lines of a whole section. Raises h11.RemoteProtocolError beyond a bound."""
    lines = section.count(b"\n")
    # Beside the fields there are the start line and the blank one.
    if lines > MAX_FIELDS + 2 or section.count(b",") > MAX_MEMBERS or _MANY_SPACES.search(section):
        raise h11.RemoteProtocolError("fields beyond the bounds", error_status_hint=431)
    return lines
