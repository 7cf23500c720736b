"""What the forwarder's tests are made of: time that passes at once, streams in memory, and servers behind them."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import dns.edns
import dns.flags
import dns.message
import dns.rrset

from cryprq_proxy.base.tasks import spawn
from cryprq_proxy.errors import StreamReason, StreamRefused, StreamReset
from tun.dns.answer import Answer, encode
from tun.dns.forwarder import Forwarder
from tun.dns.inquiry import Inquiry, digest
from tun.dns.query import Query, parse_query


class _Selector(selectors.DefaultSelector):
    """Never sleeps: when nothing is ready, the time for which it should have slept is over at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise AssertionError("everything waits for something that never comes")
        ready = super().select(0)
        if not ready:
            self.now += max(timeout, 0)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop whose clock jumps to the next timer."""

    def __init__(self) -> None:
        self.virtual = _Selector()
        super().__init__(self.virtual)

    def time(self) -> float:
        return self.virtual.now


def run[T](main: Coroutine[Any, Any, T]) -> T:
    """Run a test in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


def now() -> float:
    return asyncio.get_running_loop().time()


class MemoryStream:
    """One end of a ByteStream; `write_limit` bytes may wait at the other one."""

    def __init__(self, write_limit: int = 1 << 16) -> None:
        self.peer: MemoryStream
        self._limit = write_limit
        self._incoming = bytearray()
        self._eof = False
        self._reset = False
        self._changed = asyncio.Event()

    async def read(self) -> bytes:
        while not self._incoming:
            if self._reset:
                raise StreamReset(StreamReason.CONNECTION_RESET)
            if self._eof:
                return b""
            await self._wait()
        data = bytes(self._incoming)
        self._incoming.clear()
        self.peer._changed.set()
        return data

    async def write(self, data: bytes) -> None:
        while data:
            if self._reset:
                raise StreamReset(StreamReason.CONNECTION_RESET)
            room = self._limit - len(self.peer._incoming)
            if room > 0:
                self.peer._incoming += data[:room]
                data = data[room:]
                self.peer._changed.set()
            else:
                await self._wait()

    async def _wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def write_eof(self) -> None:
        self.peer._eof = True
        self.peer._changed.set()

    def abort(self) -> None:
        for end in (self, self.peer):
            end._reset = True
            end._changed.set()

    @property
    def aborted(self) -> bool:
        return self._reset


def stream_pair(write_limit: int = 1 << 16) -> tuple[MemoryStream, MemoryStream]:
    one, other = MemoryStream(write_limit), MemoryStream(write_limit)
    one.peer, other.peer = other, one
    return one, other


type Handler = Callable[[dns.message.Message], bytes | None]
"""Answers a question, or does not."""


def reply(
    question: dns.message.Message,
    *records: str,
    rcode: int = 0,
    authority: str = "",
    edes: Sequence[tuple[int, str | None]] = (),
) -> bytes:
    """An answer with records like "name 300 IN A 192.0.2.1", and extended errors of code and text."""
    message = dns.message.make_response(question, recursion_available=True)
    message.set_rcode(dns.rcode.Rcode(rcode))
    for text in records:
        message.answer.append(record(text))
    if edes:
        message.use_edns(
            0, options=[dns.edns.EDEOption(dns.edns.EDECode.make(code), text) for code, text in edes]
        )
    if authority:
        message.authority.append(record(authority))
    return message.to_wire(max_size=65_535)


def record(text: str) -> dns.rrset.RRset:
    name, ttl, rdclass, rdtype, *values = text.split(" ", 4)
    return dns.rrset.from_text(name, int(ttl), rdclass, rdtype, *values[0].split("|"))


def address(question: dns.message.Message) -> bytes:
    """The same address for every name."""
    return reply(question, f"{question.question[0].name} 300 IN A 192.0.2.1")


SOA = "example. 900 IN SOA ns.example. admin.example. 1 2 3 4 60"


class FramedServer:
    """A DNS server behind streams in memory. It answers what `handler` returns, in the order of the questions."""

    def __init__(self, handler: Handler = address) -> None:
        self.handler = handler
        self.streams: list[MemoryStream] = []
        self.questions: list[dns.message.Message] = []
        self.down: StreamReason | None = None
        """Why streams are refused."""

    async def open(self) -> MemoryStream:
        if self.down is not None:
            raise StreamRefused(self.down)
        mine, theirs = stream_pair()
        self.streams.append(mine)
        spawn(self._serve(mine), "fake server")
        return theirs

    async def _serve(self, stream: MemoryStream) -> None:
        buffer = b""
        try:
            while data := await stream.read():
                buffer += data
                while len(buffer) >= 2 and len(buffer) >= 2 + int.from_bytes(buffer[:2]):
                    length = int.from_bytes(buffer[:2])
                    question = dns.message.from_wire(buffer[2 : 2 + length])
                    buffer = buffer[2 + length :]
                    self.questions.append(question)
                    answer = self.handler(question)
                    if answer is not None:
                        await stream.write(len(answer).to_bytes(2) + answer)
        except StreamReset:
            pass


def inquiry(name: str = "www.example.", rdtype: str = "A") -> Inquiry:
    wire = dns.name.from_text(name).to_digestable()
    return Inquiry((wire, int(dns.rdatatype.from_text(rdtype)), 0))


def query(name: str = "www.example.", rdtype: str = "A", **options: Any) -> bytes:
    return dns.message.make_query(name, rdtype, **options).to_wire()


def answered(
    *records: str, rdtype: str = "A", name: str = "www.example.", ipv6: bool = True, **more: str
) -> Answer:
    asked = inquiry(name, rdtype)
    return digest(reply(dns.message.from_wire(asked.wire()), *records, **more), asked, ipv6=ipv6)  # type: ignore[arg-type]


def text(answer: Answer, asked: bytes, limit: int = 65_535, **options: object) -> dns.message.Message:
    return dns.message.from_wire(encode(answer, parse_query(asked), limit, **options))  # type: ignore[arg-type]


# --- questions -----------------------------------------------------------------------------------------------------


async def answer_of(forwarder: Forwarder, wire: bytes, *, tcp: bool) -> bytes | None:
    """The reply to a client's message, got as the sockets of server.py get it."""
    found = forwarder.consider(wire, tcp=tcp)
    return await forwarder.resolve(found, tcp=tcp) if isinstance(found, Query) else found
