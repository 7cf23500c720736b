"""A strict reader of HTTP/1.1, for what this proxy writes: one form of everything, and a RuntimeError for all else.

It shares no code with the proxy and its library. A reader that is lenient in another manner than the proxy is what
request smuggling needs; this one would refuse what any server could read differently: two lengths, a length beside
chunks, folded lines, bare line feeds, spaces around names, signs and prefixes of numbers, NUL.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
REQUEST = re.compile(rb"(" + TOKEN + rb") ([\x21-\x7e]+) HTTP/1\.1")
STATUS = re.compile(rb"HTTP/1\.1 ([1-5][0-9][0-9]) ([\t\x20-\x7e\x80-\xff]*)")
FIELD = re.compile(
    rb"(" + TOKEN + rb"): ((?:[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?)"
)
SIZE = re.compile(rb"[0-9a-f]{1,8}")

type Fields = list[tuple[bytes, bytes]]


@dataclass(slots=True)
class StrictMessage:
    """A message as far as it came; `start` has the parts of its first line, names of `fields` are in lower case."""

    start: tuple[bytes, ...]
    fields: Fields
    body: bytes = b""
    trailers: Fields = field(default_factory=list)
    complete: bool = False
    until_close: bool = False

    def values(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.fields if key == name]


def wrong(what: str, data: bytes) -> RuntimeError:
    return RuntimeError(f"{what}: {data[:300]!r}")


def read_requests(data: bytes) -> list[StrictMessage]:
    """All requests in `data`; only the last one may be incomplete."""
    messages: list[StrictMessage] = []
    while data:
        head = _head(data, REQUEST)
        if head is None:
            break
        message, rest = head
        message.complete, data = _body(message, rest, has_body=True, ends=False)
        messages.append(message)
    return messages


def read_responses(data: bytes, methods: list[bytes]) -> list[StrictMessage]:
    """All responses in `data` to requests with these methods, informational ones between them; the last one may be
    incomplete."""
    messages: list[StrictMessage] = []
    waiting = list(methods)
    while data:
        head = _head(data, STATUS)
        if head is None:
            break
        message, rest = head
        status = message.start[0]
        informational = status.startswith(b"1")
        if not informational and not waiting:
            raise wrong("a response without a request", data)
        bare = informational or status in (b"204", b"304") or waiting[0] == b"HEAD"
        if status == b"204" or informational:
            _framing(message, allowed=False)
        message.complete, data = _body(message, rest, has_body=not bare, ends=True)
        if not informational:
            waiting.pop(0)
        messages.append(message)
    return messages


def _head(data: bytes, first: re.Pattern[bytes]) -> tuple[StrictMessage, bytes] | None:
    head, end, rest = data.partition(b"\r\n\r\n")
    if not end:
        return None
    start, *lines = head.split(b"\r\n")
    match = first.fullmatch(start)
    if not match:
        raise wrong("an odd first line", data)
    return StrictMessage(match.groups(), _fields(lines)), rest


def _fields(lines: list[bytes]) -> Fields:
    fields = []
    for line in lines:
        match = FIELD.fullmatch(line)
        if not match:
            raise wrong("an odd field", line)
        fields.append((match[1].lower(), match[2]))
    return fields


def _framing(message: StrictMessage, *, allowed: bool = True) -> tuple[int | None, bool]:
    """The length, and whether there are chunks."""
    lengths, codings = message.values(b"content-length"), message.values(b"transfer-encoding")
    if len(lengths) + len(codings) > allowed or any(coding != b"chunked" for coding in codings):
        raise wrong("a body with two ends, or one where none may be", repr(message.fields).encode())
    if lengths and not re.fullmatch(rb"[0-9]{1,18}", lengths[0]):
        raise wrong("an odd length", lengths[0])
    return (int(lengths[0]) if lengths else None), bool(codings)


def _body(message: StrictMessage, data: bytes, *, has_body: bool, ends: bool) -> tuple[bool, bytes]:
    """Read the body. Returns whether it is complete, and what follows."""
    length, chunked = _framing(message)
    if not has_body:
        return True, data
    if chunked:
        return _chunks(message, data)
    if length is None and ends:
        message.until_close = True
        message.body = data
        return False, b""
    length = length or 0
    message.body = data[:length]
    return len(message.body) == length, data[length:]


def _chunks(message: StrictMessage, data: bytes) -> tuple[bool, bytes]:
    while True:
        line, end, rest = data.partition(b"\r\n")
        if not end:
            return False, b""
        if not SIZE.fullmatch(line):
            raise wrong("an odd size of a chunk", data)
        size = int(line, 16)
        if not size:
            break
        message.body += rest[:size]
        if len(rest) < size + 2:
            return False, b""
        if rest[size : size + 2] != b"\r\n":
            raise wrong("a chunk that ends elsewhere", rest[size:])
        data = rest[size + 2 :]
    if rest.startswith(b"\r\n"):
        return True, rest[2:]
    trailers, end, rest = rest.partition(b"\r\n\r\n")
    if not end:
        return False, b""
    message.trailers = _fields(trailers.split(b"\r\n"))
    return True, rest
