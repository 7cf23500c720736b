"""A grammar of HTTP requests and answers, good and odd ones, and the truth about each of them.

Each request has a number, and so has everything that belongs to it: path, field, body, trailer, answer. A body holds
nothing that could stand in another message, and sometimes what looks like a request of its own.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Final

from cryprq_proxy.address import Destination
from tests.support.choices import Choices

SECRET: Final = b"open-sesame"
BASIC: Final = base64.b64encode(b"user:" + SECRET)
RIGHT: Final = b"Basic " + BASIC
EARLY: Final = b"{early}"
RAW: Final = b"{raw}"
SWITCH: Final = b"HTTP/1.1 101 Switching\r\nX-Mark: %s\r\nUpgrade: other\r\nConnection: Upgrade\r\n\r\n" + RAW
POISON: Final = b"HTTP/1.1 200 OK\r\nX-Mark: poison\r\nContent-Length: 8\r\n\r\n{poison}"
METHODS: Final = (b"GET", b"GET", b"POST", b"PUT", b"HEAD", b"OPTIONS", b"DELETE", b"BREW")
REPEATABLE: Final = frozenset((b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE"))
HOSTS: Final = (b"one.example", b"one.example", b"one.example:8080", b"[2001:db8::1]")
DESTINATIONS: Final = {
    b"one.example": Destination("one.example", 80),
    b"one.example:8080": Destination("one.example", 8080),
    b"[2001:db8::1]": Destination("2001:db8::1", 80),
}
OF_THE_HOP: Final = frozenset(
    (
        b"proxy-authorization",
        b"proxy-authenticate",
        b"proxy-connection",
        b"keep-alive",
        b"x-hop",
        b"http2-settings",
    )
)
ODDITIES: Final = (
    b"Connection: X-Hop, keep-alive\r\nX-Hop: 1\r\n",
    b"Connection: close\r\n",
    b"connection: proxy-authorization, x-hop\r\nx-hop: 1\r\n",
    b"Proxy-Connection: keep-alive\r\nKeep-Alive: timeout=5\r\n",
    b"Expect: 100-continue\r\n",
    b"TE: trailers, gzip\r\nConnection: TE\r\n",
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c, other\r\nHTTP2-Settings: x\r\n",
    b"X-Text: \xff\t\xfe\r\n",
    b"X-Empty:\r\nX-Folded: a\r\n\tb\r\n",
    b"X-Feed: bare\n",
    b"Max-Forwards: 7\r\n",
    b"Proxy-Authenticate: Basic\r\n",
)
SPOILING: Final = (
    b"X-Odd : 1\r\n",
    b"X\0Odd: 1\r\n",
    b"X-Odd: a\rb\r\n",
    b": nameless\r\n",
    b"no colon\r\n",
)
"""Lines for which the whole request must be refused."""
ODD_LINES: Final = (
    *SPOILING[:1],
    *SPOILING[3:],
    b"X Odd: 1\r\n",
    b"X/Odd: 1\r\n",
    b"\xff: 1\r\n",
    b"X-Hop : 1\r\nConnection : x-hop\r\n",
    b"Proxy-Authenticate : Basic\r\n",
    b"Transfer Encoding: chunked\r\n",
    b"Transfer-Encoding chunked\r\n",
    b"Content-Length 7\r\n",
    b"\xffContent-Length: 7\r\n",
    b"X-Odd: a\rb\r\n",
)
"""Lines of an answer that are left out or mended, and do not change its body."""
AMBIGUOUS: Final = (
    b"Content-Length: %d\r\nContent-Length: 7777\r\n",
    b"Content-Length: %d\r\nContent-Length : 7777\r\n",
    b"Content-Length: %d, 7777\r\n",
    b"Content-Length: +%d\r\n",
    b"Content-Length: %d\r\n 7\r\n",
    b"Content-Length: %d\r7\r\n",
    b"Transfer-Encoding: gzip, chunked\r\nContent-Length: %d\r\n",
    b"Transfer-Encoding:\x0bchunked\r\nContent-Length: %d\r\n",
    b"X: y\rTransfer-Encoding: chunked\r\nContent-Length: %d\r\n",
    b"X Y: y\r\n Transfer-Encoding: chunked\r\nContent-Length: %d\r\n",
    b"X: \0\r\nContent-Length: %d\r\n",
)
"""Framings of an answer that have no meaning, or more than one."""
PASSWORD_FIELDS: Final = (
    b"Proxy-Authorization: %s\r\n",
    b"proxy-authorization:%s\r\n",
    b"PROXY-AUTHORIZATION: \t%s \r\n",
    b"Proxy-Authorization: %s\r\nConnection: proxy-authorization\r\n",
    b"Proxy-Authorization: %s\r\nProxy-Authorization: Basic wrong\r\n",
)


@dataclass(slots=True)
class Wanted:
    """The truth about one request, and what its origin answers."""

    number: int
    method: bytes
    host: bytes
    body: bytes
    refused: bool
    """It must not reach an origin."""
    answer: Answer

    @property
    def mark(self) -> bytes:
        return b"%d" % self.number


@dataclass(slots=True)
class Answer:
    """What an origin sends for one request, in pieces; `end` is "", "eof" or "reset"."""

    pieces: list[bytes]
    body: bytes
    early: bool
    """Before the request is complete."""
    end: str
    whole: bool
    """Whether the bytes are one complete response."""


class HttpGrammar:
    """All bytes of one play. `said`: what the client sends; `wanted`: the truth about its requests."""

    def __init__(self, choices: Choices) -> None:
        self.choices = choices
        self.protected = choices.once_in(2)
        """Whether the proxy asks for a password."""
        self.wanted: list[Wanted] = []
        self.late: set[int] = set()
        """Requests whose fault stands in the body: they may begin to be forwarded."""
        self.connects = False
        said = b"".join(self._request(number) for number in range(choices.number(4) + 1))
        if choices.once_in(6):
            password = PASSWORD_FIELDS[0] % RIGHT
            said += b"CONNECT one.example:443 HTTP/1.1\r\nHost: one.example\r\n%s\r\n" % password + EARLY
            self.connects = True
        elif choices.once_in(6):
            said = said[: max(len(said) - choices.number(60), 1)]
        self.said = said

    def _request(self, number: int) -> bytes:
        choices, mark = self.choices, b"%d" % number
        method, host = choices.pick(METHODS), choices.pick(HOSTS)
        version = b"1.0" if choices.once_in(8) else b"1.1"
        framing, payload, body, refused, late = self._framed(mark, old=version == b"1.0")
        if late:
            self.late.add(number)
        authority = b"elsewhere.example" if choices.once_in(8) else host
        fields = [b"X-Mark: %s\r\n" % mark, b"Host: %s\r\n" % authority, *framing]
        fields.extend(choices.pick(ODDITIES) for _ in range(choices.number(4)))
        if choices.once_in(24):
            fields.append(choices.pick(SPOILING))
            refused = True
        password = choices.number(10)
        if password == 0:
            refused |= self.protected
        elif password == 1 and self.protected:
            fields.append(choices.pick(PASSWORD_FIELDS) % (b"Basic " + base64.b64encode(b"user:guess")))
            refused = True
        else:
            fields.append(choices.pick(PASSWORD_FIELDS) % RIGHT)
        if choices.once_in(2):
            fields.reverse()
        offers = any(b"Upgrade:" in field for field in fields)
        self.wanted.append(Wanted(number, method, host, body, refused, self._answer(mark, method, offers)))
        head = b"%s http://%s/r%s HTTP/%s\r\n" % (method, host, mark, version)
        return head + b"".join(fields) + b"\r\n" + payload

    def _body(self, mark: bytes) -> bytes:
        """Bytes that no other message has; some look like a request of their own."""
        own = b"{%s}" % mark
        if self.choices.once_in(2):
            return own + b"\r\n\r\nGET http://one.example/smuggled HTTP/1.1\r\nX-Mark: smuggled\r\n\r\n" + own
        return own * self.choices.pick((1, 5, 400))

    def _framed(self, mark: bytes, *, old: bool) -> tuple[list[bytes], bytes, bytes, bool, bool]:
        """Fields of the framing, the bytes of the body, what they mean, whether they must be refused,
        and whether that shows in the body only."""
        choices, body = self.choices, self._body(mark)
        size = b"%d" % len(body)
        length, coding = b"Content-Length: %s\r\n", b"Transfer-Encoding: %s\r\n"
        match choices.number(8):
            case 0 | 1 | 2:
                return [], b"", b"", False, False
            case 3 | 4:
                return [choices.pick((length, b"content-length:%s\r\n")) % size], body, body, False, False
            case 5 | 6:
                chunks, well = self._chunked(body, mark)
                name = choices.pick((coding, b"transfer-encoding:\t%s\r\n", b"Transfer-Encoding:\r\n %s\r\n"))
                value = choices.pick((b"chunked", b"chunked", b"Chunked"))
                return [name % value], chunks, body, old or not well, not well and not old
        chunks, _ = self._chunked(body, mark)
        fields, payload, meant, refused = choices.pick(
            (
                ([length % size, coding % b"chunked"], chunks, body, True),
                ([coding % b"chunked", length % size], chunks, body, True),
                ([length % b"0", coding % b"chunked"], chunks, body, True),
                ([length % size, length % b"7777"], body, body, True),
                ([length % b"%s, 7777" % size], body, body, True),
                ([length % b"+%s" % size], body, body, True),
                ([length % b"-1"], body, body, True),
                ([length % b"0x10"], body, body, True),
                ([length % b"1_0"], body, body, True),
                ([length % b""], body, body, True),
                ([length % (b"9" * 30)], body, body, True),
                ([coding % b"gzip, chunked"], chunks, body, True),
                ([coding % b"chunked, identity"], chunks, body, True),
                ([coding % b"identity"], body, body, True),
                ([coding % b"xchunked"], chunks, body, True),
                ([coding % b"chunked", coding % b"chunked"], chunks, body, True),
                ([coding % b"chunked", coding % b"identity"], chunks, body, True),
                ([b"Transfer-Encoding : chunked\r\n"], chunks, body, True),
                ([b"Transfer-Encoding:\x0bchunked\r\n"], chunks, body, True),
                ([b"X: y\rTransfer-Encoding: chunked\r\n"], chunks, body, True),
                ([length % b"%s, %s" % (size, size)], body, body, False),
                ([length % size, length % size], body, body, False),
            )
        )
        return fields, payload, meant, refused, False

    def _chunked(self, body: bytes, mark: bytes) -> tuple[bytes, bool]:
        """The body in chunks, with a trailer or not, and whether it is well formed."""
        choices = self.choices
        odd = choices.once_in(12)
        output = b""
        for piece in self.split(body):
            size = choices.pick((b"%x", b"%X", b"00%x", b"%x;ext=1")) % len(piece)
            if odd:
                # Each of them is another number to another reader, or none.
                size = choices.pick((b"0x%x", b"%x,", b"+%x", b"%x_0", b" %x", b"\x0b%x")) % len(piece)
            output += size + b"\r\n" + piece + b"\r\n"
        trailer = choices.pick(
            (
                b"",
                b"",
                b"X-Trail: %s\r\n" % mark,
                PASSWORD_FIELDS[0] % RIGHT,
                b"Content-Length: 3\r\nHost: x\r\n",
            )
        )
        return output + b"0\r\n" + trailer + b"\r\n", not odd

    def split(self, data: bytes) -> list[bytes]:
        size = self.choices.pick((0, 0, 1, 7, 100)) or len(data) or 1
        if len(data) // size > 200:
            size = len(data)
        return [data[start : start + size] for start in range(0, len(data), size)]

    # Making answers

    def _answer(self, mark: bytes, method: bytes, offers: bool) -> Answer:
        choices = self.choices
        if choices.once_in(2 if offers else 16):
            return Answer(self.split(SWITCH % mark), b"", early=False, end="", whole=True)
        status = choices.pick(
            (b"200 OK", b"200", b"204 No Content", b"304 Not Modified", b"404 \xff", b"206 Part")
        )
        version = b"1.0" if choices.once_in(6) else b"1.1"
        bare = method == b"HEAD" or status[:3] in (b"204", b"304")
        body = b"" if bare else self._body(mark)
        length = b"Content-Length: %d\r\n" % len(body)
        coding = choices.pick(
            (
                b"Transfer-Encoding: chunked\r\n",
                b"Transfer-Encoding: chunked\r\n",
                b"Transfer-Encoding : chunked\r\n",
                b"Transfer-Encoding: identity, chunked\r\n",
                b"TRANSFER-ENCODING:\tChunked \r\ntransfer-encoding: chunked\r\n",
                b"Transfer-Encoding:\r\n\tchunked\r\n",
            )
        )
        end, whole, ambiguous = "", True, choices.once_in(16)
        match 5 if ambiguous else choices.number(5):
            case 5:
                framing, payload = choices.pick(AMBIGUOUS) % len(body), body
            case 0 | 1:
                framing, payload = length, body
            case 2:
                framing, payload = coding, b"" if bare else self._chunked_answer(body, mark)
            case 3:
                framing, payload, end = b"", body, "eof"
            case _:
                framing, payload = length + coding, b"" if bare else self._chunked_answer(body, mark)
        if version == b"1.0" and coding in framing:
            version = b"1.1"
        fields = [
            b"X-Mark: %s\r\n" % mark,
            framing,
            *(choices.pick((*ODDITIES, *ODD_LINES)) for _ in range(choices.number(3))),
        ]
        before = b"".join(
            b"HTTP/1.1 103 Early Hints\r\nX-Mark: %s\r\nProxy-Authenticate: x\r\n\r\n" % mark
            for _ in range(choices.number(3) // 2)
        )
        start = choices.pick((b"HTTP/%s %s\r\n", b"HTTP/%s %s\r\n", b"\r\nhttp/%s %s\r\n", b"HTTP/%s  %s\n"))
        said = before + start % (version, status) + b"".join(fields) + b"\r\n" + payload
        match choices.number(8):
            case 1:
                said, whole = said[: -1 - choices.number(len(said) - 1)], False
                # Without framing an orderly end is a complete body.
                end = choices.pick(("reset", "eof")) if framing or bare else "reset"
            case 2:
                said += POISON
                body += b"" if framing or bare else POISON
            case 3:
                end = choices.pick(("eof", "reset"))
                whole = bool(framing) or bare or end == "eof"
            case 4 if choices.once_in(2):
                said, end, whole = b"", choices.pick(("eof", "reset")), False
        if ambiguous:
            whole, end = False, "eof"
        return Answer(self.split(said), body, choices.once_in(4), end, whole)

    def _chunked_answer(self, body: bytes, mark: bytes) -> bytes:
        line = self.choices.pick((b"%x\r\n%s\r\n", b"%x\r\n%s\r\n", b"%x\n%s\r\n", b"%X;a\r\n%s\n"))
        pieces = b"".join(line % (len(piece), piece) for piece in self.split(body))
        trailers = (b"", b"X-Trail: %s\r\n" % mark, b"X Trail: 1\nno colon\r\nX-Trail : %s\r\n" % mark)
        return pieces + b"0\r\n" + self.choices.pick(trailers) + b"\r\n"
