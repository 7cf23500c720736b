"""A stream to the host's DNS server where that answers over UDP alone: its questions go as datagrams.

    stream: length, question, length, question ...  ->  a datagram for each, from a socket of its own
                                                    <-  length, answer ...

TCP is tried first (targets.py). The stream is accepted only if a server answers a question for the root: where none
does, it is refused with what TCP has met.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from functools import partial
from typing import Final

from ..base.tasks import spawn
from ..errors import StreamReason
from ..outbound.resolving.dns_answer import is_answer
from ..outbound.resolving.name_server import NameServer
from ..session.streams import Stream, StreamHandler
from .descriptor_shares import Claim

PROBE_SECONDS: Final = 0.8
ANSWER_SECONDS: Final = 2.0
"""For one server; the next one is asked then."""
MAX_QUESTIONS: Final = 32
"""At once on one stream, each with a socket that counts as a descriptor of the peer. The others wait."""
MAX_QUESTION: Final = 1_024
"""Bytes."""
MAX_UNSENT: Final = 65_536
"""Bytes of answers that wait for the peer until no more questions are asked."""
_HEADER: Final = 12


async def answering(servers: Sequence[NameServer]) -> list[NameServer]:
    """Those of them that answer over UDP."""
    asked = secrets.token_bytes(2) + b"\1\0\0\1\0\0\0\0\0\0" + b"\0\0\2\0\1"

    async def answers(server: NameServer) -> bool:
        try:
            await server.ask_over_udp(asked, partial(is_answer, asked=asked), PROBE_SECONDS)
        except OSError:
            return False
        return True

    good = await asyncio.gather(*map(answers, servers))
    return [server for server, answered in zip(servers, good, strict=True) if answered]


def _question_end(message: bytes) -> int:
    """Where the only question of `message` ends; 0 if it is none."""
    at = _HEADER
    while at < len(message) and 0 < message[at] < 64:
        at += message[at] + 1
    end = at + 5
    return end if end <= len(message) and not message[at] and message[4:6] == b"\0\1" else 0


class DatagramResolver(StreamHandler):
    """Handler of an accepted stream. `claim` has one descriptor, and is released with the stream."""

    __slots__ = ("_asked", "_asking", "_claim", "_eof", "_over", "_servers", "_stream", "_unsent")

    def __init__(self, stream: Stream, servers: Sequence[NameServer], claim: Claim) -> None:
        self._stream = stream
        self._servers = servers
        self._claim = claim
        self._asked = bytearray()
        self._unsent = bytearray()
        self._asking: set[asyncio.Task[None]] = set()
        self._eof = False
        self._over = False
        stream.handler = self

    def _go_on(self) -> None:
        """Ask what can be asked, and end what is over."""
        asked = self._asked
        if self._over:
            return
        while len(self._asking) < MAX_QUESTIONS and len(self._unsent) < MAX_UNSENT and len(asked) >= 2:
            size = int.from_bytes(asked[:2])
            if not _HEADER < size <= MAX_QUESTION:
                self._stream.reset(StreamReason.GENERAL)
                self.reset(StreamReason.GENERAL)
                return
            if len(asked) < 2 + size or (self._asking and not self._claim.more()):
                break
            message = bytes(asked[2 : 2 + size])
            del asked[: 2 + size]
            self._stream.consumed(2 + size)
            task = spawn(self._ask(message), "question to the host's resolver")
            self._asking.add(task)
            task.add_done_callback(self._answered)
        if self._eof and not self._asking and not self._unsent:
            self._over = True
            self._stream.finish()
            self._claim.release()

    def _answered(self, task: asyncio.Task[None]) -> None:
        self._asking.discard(task)
        if task.cancelled():
            return
        if self._asking:
            self._claim.less()
        self.writable()

    async def _ask(self, message: bytes) -> None:
        """Without an answer nothing is said: the peer gives its question up."""
        end = _question_end(message)
        matches = partial(is_answer, asked=message[:end])
        for server in self._servers if end else ():
            try:
                answer = await server.ask_over_udp(message, matches, ANSWER_SECONDS)
                if answer is None:
                    answer = await server.ask_over_tcp(message, ANSWER_SECONDS)
            except (OSError, EOFError, ValueError):
                continue
            self._unsent += len(answer).to_bytes(2) + answer
            return

    # --- handler ---

    def writable(self) -> None:
        while self._unsent and (room := self._stream.request_room()):
            self._stream.send(bytes(self._unsent[:room]))
            del self._unsent[:room]
        self._go_on()

    def data_received(self, data: memoryview) -> None:
        self._asked += data
        self._go_on()

    def eof_received(self) -> None:
        self._eof = True
        self._go_on()

    def reset(self, reason: StreamReason) -> None:
        self._over = True
        for task in self._asking:
            task.cancel()
        self._asked.clear()
        self._unsent.clear()
        self._claim.release()
