"""Heads of responses, written in the one strict form before h11 reads them.

Servers send lines that browsers read over and h11 refuses. Such a head is written anew here; a clean one costs one
match. Requests never come here: what is odd in a request is refused.

    status line   bytes before `HTTP`, lower case, `ICY`, a missing number: as Chromium reads it
    fields        spaces around a name are removed (RFC 9112 section 5.1), folded lines are joined, a line without a
                  valid name is left out, and a control character in a value becomes a space
    framing       Content-Length is left to h11, which refuses two different ones; of Transfer-Encoding only `chunked`
                  is kept, `identity` is nothing, and any other coding is refused

A line that one reader takes for a field of the framing, and another for something else, makes the head invalid. And who
wrote an odd head may err about its end too: the caller does not use such a connection again.
"""

from __future__ import annotations

import re
from typing import Final

import h11

MAX_RESPONSE_HEAD: Final = 256 * 1024
"""The most bytes of a response's header section, as in Chromium."""
MAX_RESPONSE_FIELDS: Final = 1_024
"""Lines in it."""
MAX_RESPONSE_MEMBERS: Final = 32_768
"""Commas in it, and spaces with tabs: h11 takes about a microsecond for each word."""
MAX_EMPTY_LINES: Final = 64
"""Bytes of line ends before it."""

_TOKEN: Final = rb"[-!#$%&'*+.^_`|~0-9A-Za-z]++"
_VALUE: Final = rb"[^\x00\r\n\x0b\x0c]*+\r\n"
_LINE: Final = rb"(?:(?![Tt][Rr][Aa][Nn][Ss][Ff][Ee][Rr]-[Ee])" + _TOKEN + rb":" + _VALUE + rb")*+"
_CLEAN: Final = re.compile(
    rb"HTTP/1\.[0-9] [0-9]{3}(?: " + _VALUE + rb"|\r\n)" + _LINE
    # One field at most, as h11 takes it.
    + rb"(?:[Tt]ransfer-[Ee]ncoding: ?chunked\r\n" + _LINE + rb")?+\r\n"
)  # fmt: skip
_CLEAN_TRAILERS: Final = re.compile(_LINE + rb"\r\n")
_NAME: Final = re.compile(_TOKEN)
_BLANK_LINE: Final = re.compile(rb"\n\r{0,2}\n")
_STATUS: Final = re.compile(
    rb"(?s).{0,4}?(?i:http|(icy))(?:/([0-9])\.([0-9]))?[^ \t]*[ \t]*([0-9]*)[ \t]*(.*)"
)
_FRAMING: Final = re.compile(rb"(?i)content-length|transfer-encoding")
_FRAMING_FIELD: Final = re.compile(rb"(?i)(?:content-length|transfer-encoding)[^:]*:")
_FRAMING_NAMES: Final = (b"content-length", b"transfer-encoding")
_CONTROLS: Final = re.compile(rb"[\r\x0b\x0c]")
_TO_SPACES: Final = bytes.maketrans(b"\r\x0b\x0c", b"   ")


def end_of_head(data: bytes, start: int = 0) -> int:
    """The index behind the blank line that ends the head, if the end stands beyond `start`; -1 if it has not come.

    Raises h11.RemoteProtocolError if the head is too long, whether its end has come or not.
    """
    match = _BLANK_LINE.search(data, max(start - 3, 0))
    if (len(data) if match is None else match.end()) > MAX_RESPONSE_HEAD:
        raise h11.RemoteProtocolError("a head beyond the bound")
    return -1 if match is None else match.end()


def check_head(head: bytes) -> int:
    """The number of lines of a whole head. Raises h11.RemoteProtocolError beyond a bound."""
    lines = head.count(b"\n")
    spaces = head.count(b" ") + head.count(b"\t")
    if lines > MAX_RESPONSE_FIELDS + 2 or max(spaces, head.count(b",")) > MAX_RESPONSE_MEMBERS:
        raise h11.RemoteProtocolError("fields beyond the bounds")
    return lines


def clean_head(head: bytes) -> bytes:
    """The head of a response in the strict form; the same object if it has that already.

    Raises h11.RemoteProtocolError if it has no meaning, or more than one.
    """
    if _CLEAN.fullmatch(head):
        return head
    first, *lines = _lines(head)
    return _status_line(first) + _fields(lines) + b"\r\n"


def clean_trailers(section: bytes) -> bytes:
    """The trailers of a chunked body in the same manner, with their blank line."""
    if _CLEAN_TRAILERS.fullmatch(section):
        return section
    return _fields(_lines(section)) + b"\r\n"


def _lines(section: bytes) -> list[bytes]:
    """The lines without their ends, and without the blank one."""
    if b"\0" in section:
        raise h11.RemoteProtocolError("a NUL in a head")
    lines = [line.rstrip(b"\r") for line in section.rstrip(b"\r\n").split(b"\n")]
    if len(lines) > 1 and b"" in lines:
        # The head ends here to a reader that skips each CR.
        raise h11.RemoteProtocolError("a line of CR alone")
    return lines


def _status_line(line: bytes) -> bytes:
    match = _STATUS.fullmatch(line)
    if match is None:
        raise h11.RemoteProtocolError("this is no status line")
    icy, major, minor, code, reason = match.groups()
    modern = not icy and major is not None and (major, minor) >= (b"1", b"1")
    # Without a number it is 200, as in Chromium.
    start = b"HTTP/1.1 %b" if modern else b"HTTP/1.0 %b"
    return start % (code or b"200") + b" " + reason.translate(_TO_SPACES) + b"\r\n"


def _fields(lines: list[bytes]) -> bytes:
    """The fields of these lines, each with its line end."""
    kept: list[bytes] = []
    codings: list[bytes] = []
    for name, value in _unfold(lines):
        framing = name.lower() in _FRAMING_NAMES
        if (odd := _CONTROLS.search(value)) and (framing or _FRAMING.search(value)):
            raise h11.RemoteProtocolError("a field of the framing beside a control character")
        if name.lower() == b"transfer-encoding":
            codings += value.split(b",")
        else:
            kept += name, b": ", value.translate(_TO_SPACES).strip(b" \t") if odd else value, b"\r\n"
    if _chunked(codings):
        kept.append(b"Transfer-Encoding: chunked\r\n")
    return b"".join(kept)


def _unfold(lines: list[bytes]) -> list[tuple[bytes, bytes]]:
    """Names and values; what follows a line that is left out and begins with a space is left out too."""
    found: list[tuple[bytes, list[bytes]]] = []
    unused: list[bytes] = []
    last = unused
    for line in lines:
        if line[:1] in (b" ", b"\t"):
            text = line.strip(b" \t")
            if _FRAMING_FIELD.match(text):
                # To another reader this is a line of its own.
                raise h11.RemoteProtocolError("a field of the framing in a folded line")
            last.append(text)
            continue
        name, colon, value = line.partition(b":")
        name = name.rstrip(b" \t")
        last = unused
        if colon and _NAME.fullmatch(name):
            last = [value.strip(b" \t")]
            found.append((name, last))
        elif b"\r" in line and _FRAMING.search(line):
            raise h11.RemoteProtocolError("a field of the framing behind a bare CR")
    return [(name, b" ".join(parts).strip(b" \t")) for name, parts in found]


def _chunked(codings: list[bytes]) -> bool:
    """Whether the body is chunked. Raises h11.RemoteProtocolError for a coding that would have to be undone."""
    wanted = {coding.strip(b" \t").lower() for coding in codings} - {b"", b"identity"}
    if wanted - {b"chunked"}:
        raise h11.RemoteProtocolError("an unknown transfer coding")
    return bool(wanted)
