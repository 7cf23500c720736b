"""Responses with odd heads, as servers send them: name, head, and whether the body is in chunks.

`LISTED` are those that a browser shows for certain. Of `OTHERS` a browser decides; what it shows, the proxy shows too.
"""

from __future__ import annotations

from typing import Final

BODY: Final = b"the whole body"
SIZE: Final = b"%d" % len(BODY)
CORS: Final = b"Access-Control-Allow-Origin: *\r\n"
"""So that a page of another origin may read the body."""


def head(*fields: bytes, start: bytes = b"HTTP/1.1 200 OK", length: bool = True) -> bytes:
    lines = [start, *fields, *([b"Content-Length: " + SIZE] if length else [])]
    return b"\r\n".join(lines) + b"\r\n" + CORS + b"\r\n"


CHUNKED: Final = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n" + CORS + b"\r\n"
HALVES: Final = (BODY[:5], BODY[5:])


def chunks(line: bytes = b"\r\n", after: bytes = b"\r\n", trailers: bytes = b"\r\n") -> bytes:
    return b"".join(b"%x%b%b%b" % (len(half), line, half, after) for half in HALVES) + b"0" + line + trailers


LISTED: Final = {
    "plain": head() + BODY,
    "space before the colon": head(b"X-Odd : 1", b"Content-Type\t: text/plain") + BODY,
    "space before the colon of the length": head(b"Content-Length : " + SIZE, length=False) + BODY,
    "space in a name": head(b"X Odd: 1") + BODY,
    "slash in a name": head(b"X/Odd: 1") + BODY,
    "empty name": head(b": 1") + BODY,
    "non-ASCII name": head("X-Größe: 1".encode()) + BODY,
    "no colon": head(b"just some words") + BODY,
    "identity": head(b"Transfer-Encoding: identity") + BODY,
    "identity until the end": head(b"Transfer-Encoding: identity", length=False) + BODY,
    "ICY": head(start=b"ICY 200 OK", length=False) + BODY,
    "lower case": head(start=b"http/1.1 200 ok") + BODY,
    "empty lines": b"\r\n\r\n" + head() + BODY,
    "LF only": head().replace(b"\r\n", b"\n") + BODY,
    "LF chunks": CHUNKED + chunks(b"\n", b"\n", b"\n"),
    "LF chunk lines": CHUNKED + chunks(b"\n"),
    "LF behind chunks": CHUNKED + chunks(after=b"\n"),
    "folded with the name of a length": head(b"Access-Control-Expose-Headers: X-Other,", b"\tContent-Length")
    + BODY,
    "folded": head(b"X-Long: 1", b" 2", b"\t3") + BODY,
    "100 KB": head(b"X-Long: " + b"x" * 100_000) + BODY,
    "250 KB in fields": head(*[b"X-%d: " % number + b"x" * 1_000 for number in range(250)]) + BODY,
}
OTHERS: Final = {
    "junk before": b"x " + head() + BODY,
    "no reason": head(start=b"HTTP/1.1 200") + BODY,
    "no number": head(start=b"HTTP/1.1 OK") + BODY,
    "many spaces": head(start=b"HTTP/1.1   200   OK") + BODY,
    "no space": head(start=b"HTTP/1.1 200OK") + BODY,
    "version 2": head(start=b"HTTP/2.0 200 OK") + BODY,
    "version 1.2": head(start=b"HTTP/1.2 200 OK") + BODY,
    "no version": head(start=b"HTTP 200 OK") + BODY,
    "more than the bound": head(*[b"X-%d: " % number + b"x" * 1_000 for number in range(270)]) + BODY,
    "NUL": head(b"X-Odd: \0") + BODY,
    "NUL in a name": head(b"X\0Odd: 1") + BODY,
    "vertical tab": head(b"X-Odd: a\x0bb") + BODY,
    "control": head(b"X-Odd: a\x01b") + BODY,
    "bare CR": head(b"X-Odd: a\rb") + BODY,
    "two CR": head(b"X-Odd: a\r") + BODY,
    "CR at the end": head()[:-2] + b"\r\r\n" + BODY,
    "many spaces in a value": head(b"X-Odd:" + b" " * 1_000 + b"a" + b" " * 1_000) + BODY,
    "space before a name": head(b" X-Odd: 1") + BODY,
    "folded length": head(b"Content-Length:", b" " + SIZE, length=False) + BODY,
    "same length twice": head(b"Content-Length: " + SIZE) + BODY,
    "two lengths": head(b"Content-Length: 3") + BODY,
    "chunks and a length": head(b"Transfer-Encoding: chunked") + chunks(),
    "identity, chunked": head(b"Transfer-Encoding: identity, chunked", length=False) + chunks(),
    "chunked, identity": head(b"Transfer-Encoding: chunked, identity", length=False) + chunks(),
    "chunked twice": head(b"Transfer-Encoding: chunked, chunked", length=False) + chunks(),
    "chunked in two fields": head(*[b"Transfer-Encoding: chunked"] * 2, length=False) + chunks(),
    "CHUNKED": head(b"TRANSFER-ENCODING:CHUNKED", length=False) + chunks(),
    "chunked with tabs": head(b"Transfer-Encoding:\t \tchunked\t ", length=False) + chunks(),
    "chunked with a space before the colon": head(b"Transfer-Encoding : chunked", length=False) + chunks(),
    "folded chunked": head(b"Transfer-Encoding:", b" chunked", length=False) + chunks(),
    "empty coding": head(b"Transfer-Encoding:") + BODY,
    "odd trailers": CHUNKED + chunks(trailers=b"X Odd: 1\r\nno colon\r\nY : 2\r\n\r\n"),
    "spaces behind a size": CHUNKED + chunks(b"  \r\n"),
    "extensions": CHUNKED + chunks(b";a=b\n"),
    "early hints": b"HTTP/1.1 103 E\r\nX Odd: 1\r\n\r\n" * 3 + head() + BODY,
}
