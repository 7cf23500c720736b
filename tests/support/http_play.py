"""A play of one client, the HTTP proxy and its origins, with messages of a grammar (http_grammar.py).

The origins record what they get, the client what comes back, and a strict reader (strict_http.py) judges both.
`HttpPlay.run` raises RuntimeError when

    a byte of one message stands in another one, or a body holds anything but the whole of its own
    a message has two ends, or none that every server reads alike
    the client's password, or a field of its connection with the proxy, reaches an origin
    a request is forwarded that must be refused: without the password, or with two meanings
    a stream is left open, or a cut answer looks complete
"""

from __future__ import annotations

import asyncio

from cryprq_proxy.address import Destination
from cryprq_proxy.client.requests import Early
from cryprq_proxy.errors import StreamReason, StreamRefused, StreamReset
from cryprq_proxy.fronts.credentials import Credentials
from cryprq_proxy.fronts.http_proxy import ESTABLISHED, HttpProxy, HttpTunnel
from cryprq_proxy.session.turns import TurnBudget
from tests.support.choices import Choices
from tests.support.fault_watch import FaultWatch
from tests.support.http_fakes import PATIENCE, FakeStream
from tests.support.http_grammar import (
    BASIC,
    DESTINATIONS,
    OF_THE_HOP,
    RAW,
    REPEATABLE,
    SECRET,
    HttpGrammar,
    Wanted,
)
from tests.support.strict_http import StrictMessage, read_requests, read_responses


class RecordingStream(FakeStream):
    """A stream to an origin that reads strictly, and answers each request as the play says."""

    def __init__(self, play: HttpPlay, destination: Destination) -> None:
        super().__init__()
        self.play = play
        self.destination = destination
        self.answered = 0

    async def write(self, data: bytes) -> None:
        await super().write(data)
        messages = read_requests(bytes(self.sent))
        while self.answered < len(messages):
            answer = self.play.wanted_for(messages[self.answered]).answer
            if not messages[self.answered].complete and not answer.early:
                break
            self.answered += 1
            for piece in answer.pieces:
                self.feed(piece)
            if answer.end == "eof":
                self.feed_eof()
            elif answer.end == "reset":
                self.reset()


class HttpPlay:
    """One connection of a client. The requests are made before the play begins, so the truth is known."""

    def __init__(self, choices: Choices) -> None:
        self.choices = choices
        self.grammar = grammar = HttpGrammar(choices)
        self.wanted = grammar.wanted
        self.order: list[int] = []
        self.streams: list[RecordingStream] = []
        self.tunnel: HttpTunnel | None = None
        self.client = FakeStream(*grammar.split(grammar.said))
        self.client.feed_eof()

    # The play

    async def open(self, destination: Destination, early: Early) -> FakeStream:
        if self.choices.once_in(20):
            raise StreamRefused(StreamReason.CONNECTION_REFUSED)
        stream = RecordingStream(self, destination)
        self.streams.append(stream)
        return stream

    async def run(self) -> None:
        credentials = Credentials.parse(f"user:{SECRET.decode()}") if self.grammar.protected else None
        aborted = False
        try:
            async with asyncio.timeout(PATIENCE):
                turns = TurnBudget(asyncio.get_running_loop().call_soon)
                self.tunnel = await HttpProxy(self.client, self, turns, credentials=credentials).run(b"")
        except StreamReset:
            aborted = True
        self._check_streams()
        self._check_client(aborted)

    # The judge

    def wanted_for(self, message: StrictMessage) -> Wanted:
        """The request that an origin has got; RuntimeError if it is none of the client's."""
        marks = message.values(b"x-mark")
        if len(marks) != 1 or not marks[0].isdigit() or int(marks[0]) >= len(self.wanted):
            raise RuntimeError(f"an origin got a request that the client did not make: {message}")
        return self.wanted[int(marks[0])]

    def _check_streams(self) -> None:
        for stream in self.streams:
            if stream.aborted == (self.tunnel is not None and stream is self.tunnel.stream):
                raise RuntimeError("a stream was left open")
            for message in read_requests(bytes(stream.sent)):
                self._check_request(message, stream.destination)
        for wanted in self.wanted:
            sent = self.order.count(wanted.number)
            if sent > 1 and (wanted.method not in REPEATABLE or wanted.body):
                raise RuntimeError(f"request {wanted.number} was sent {sent} times")

    def _check_request(self, message: StrictMessage, destination: Destination) -> None:
        wanted = self.wanted_for(message)
        self.order.append(wanted.number)
        if wanted.refused and (message.complete or wanted.number not in self.grammar.late):
            raise RuntimeError(f"a request was forwarded that must be refused: {message}")
        if message.start != (wanted.method, b"/r" + wanted.mark) or message.values(b"host") != [wanted.host]:
            raise RuntimeError(f"another request was forwarded than was made: {message}")
        if destination != DESTINATIONS[wanted.host]:
            raise RuntimeError(f"{destination} got the request for {wanted.host!r}")
        same = message.body == wanted.body if message.complete else wanted.body.startswith(message.body)
        if not same:
            raise RuntimeError(f"the body is not that of the request: {message}")
        names = {name for name, _ in [*message.fields, *message.trailers]}
        if names & OF_THE_HOP or SECRET in repr(message.fields).encode() or BASIC in repr(message).encode():
            raise RuntimeError(f"an origin got what was for the proxy: {message}")

    def _check_client(self, aborted: bool) -> None:
        said = bytes(self.client.sent)
        methods = [wanted.method for wanted in self.wanted] + [b"CONNECT"] * self.grammar.connects
        responses = read_responses(said, methods)
        number = 0
        for response in responses:
            own = bool(response.values(b"proxy-status"))
            final = not response.start[0].startswith(b"1")
            if not own:
                self._check_response(response, number, aborted, last=response is responses[-1])
            number += final
        if self.tunnel is not None:
            self._check_tunnel(self.tunnel)

    def _check_tunnel(self, tunnel: HttpTunnel) -> None:
        """Only the rest of what the client sent goes on, and only what its origin sent comes back."""
        if not self.grammar.said.endswith(tunnel.early + b"".join(self.client._incoming)):
            raise RuntimeError(f"the tunnel begins with {tunnel.early!r}")
        if tunnel.to_client == ESTABLISHED:
            if not self.grammar.connects:
                raise RuntimeError("a tunnel was made for no CONNECT")
            return
        if tunnel.early:
            raise RuntimeError(f"bytes from before the switch go to the origin: {tunnel.early!r}")
        head, _, raw = tunnel.to_client.partition(b"\r\n\r\n")
        (switch,) = read_responses(head + b"\r\n\r\n", [])
        assert isinstance(tunnel.stream, RecordingStream)
        number = self.wanted_for(read_requests(bytes(tunnel.stream.sent))[-1]).mark
        if switch.values(b"x-mark") != [number] or not RAW.startswith(raw):
            raise RuntimeError(f"the answer to request {number!r} is {tunnel.to_client!r}")

    def _check_response(self, response: StrictMessage, number: int, aborted: bool, *, last: bool) -> None:
        marks = response.values(b"x-mark")
        if number >= len(self.wanted) or marks != [b"%d" % number]:
            raise RuntimeError(f"the answer to request {number} is {response}")
        names = {name for name, _ in [*response.fields, *response.trailers]}
        if names & OF_THE_HOP:
            raise RuntimeError(f"the client got a field of another connection: {response}")
        answer = self.wanted[number].answer
        if response.start[0].startswith(b"1"):
            return
        ended = response.complete or (response.until_close and not aborted)
        if ended and (response.body != answer.body or not answer.whole):
            raise RuntimeError(f"a cut or foreign answer looks complete: {response}")
        if not ended and not answer.body.startswith(response.body):
            raise RuntimeError(f"an answer holds foreign bytes: {response}")
        if not ended and not aborted and last:
            raise RuntimeError(f"the connection of a cut answer was closed in order: {response}")


def play(choices: Choices, loop: asyncio.AbstractEventLoop) -> HttpPlay:
    """Run one play on `loop`."""
    http = HttpPlay(choices)
    with FaultWatch():
        loop.run_until_complete(http.run())
    return http
