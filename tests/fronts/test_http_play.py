"""Generated requests and answers, from fixed seeds and the fuzzer's corpus; and the judge finds what is wrong."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from cryprq_proxy.address import Destination
from cryprq_proxy.fronts.http_proxy import ESTABLISHED
from tests.support.choices import Choices
from tests.support.http_grammar import RIGHT
from tests.support.http_play import HttpPlay, RecordingStream, play
from tests.support.strict_http import read_requests, read_responses

CORPUS = sorted((Path(__file__).parents[1] / "fuzz/corpus/http_messages").iterdir())
SEEDS = 600
BLOCK = 300
"""Plays of one test."""


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def seeded(seed: int) -> Choices:
    return Choices(random.Random(seed).randbytes(300))


@pytest.mark.parametrize("first", range(0, SEEDS, BLOCK))
def test_messages_stay_apart_and_mean_one_thing(first: int, loop: asyncio.AbstractEventLoop) -> None:
    plays = [play(seeded(seed), loop) for seed in range(first, first + BLOCK)]
    assert sum(len(play.order) for play in plays) > BLOCK // 2
    tunnels = [play.tunnel for play in plays if play.tunnel is not None]
    assert {tunnel.to_client == ESTABLISHED for tunnel in tunnels} == {True, False}
    assert any(wanted.refused for play in plays for wanted in play.wanted)


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_messages_of_the_corpus_stay_apart(path: Path, loop: asyncio.AbstractEventLoop) -> None:
    play(Choices(path.read_bytes()), loop)


def judged(sent: bytes = b"", answered: bytes = b"") -> None:
    """Let the judge look at what an origin and the client would have got, in a play of two plain requests."""
    http = HttpPlay(Choices(b"\0\1"))
    stream = RecordingStream(http, Destination("one.example", 80))
    stream.aborted = True
    http.streams.append(stream)
    stream.sent += sent
    http.client.sent += answered
    http._check_streams()
    http._check_client(False)


FIRST = b"GET /r0 HTTP/1.1\r\nHost: one.example\r\nX-Mark: 0\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nX-Mark: 0\r\nContent-Length: 3\r\n\r\n{0}"


def test_the_judge_takes_what_is_right() -> None:
    judged(FIRST, ANSWER)


@pytest.mark.parametrize(
    "sent",
    [
        FIRST.replace(b"/r0", b"/r1"),
        FIRST.replace(b"X-Mark: 0", b"X-Mark: 7"),
        FIRST.replace(b"GET", b"BREW"),
        FIRST.replace(b"one.example", b"elsewhere.example"),
        FIRST.replace(b"\r\n\r\n", b"\r\nContent-Length: 3\r\n\r\n{1}"),
        FIRST.replace(b"X-Mark", b"Proxy-Authorization: x\r\nX-Mark"),
        FIRST.replace(b"X-Mark", b"X-Other: " + RIGHT + b"\r\nX-Mark"),
        FIRST.replace(b"X-Mark", b"X-Hop: 1\r\nX-Mark"),
    ],
)
def test_the_judge_sees_what_an_origin_may_not_get(sent: bytes) -> None:
    with pytest.raises(RuntimeError):
        judged(sent)


@pytest.mark.parametrize(
    "answered",
    [
        ANSWER.replace(b"X-Mark: 0", b"X-Mark: 1"),
        ANSWER.replace(b"{0}", b"{1}"),
        ANSWER.replace(b"{0}", b"{0"),
        ANSWER.replace(b"X-Mark", b"Proxy-Authenticate: Basic\r\nX-Mark"),
        ANSWER + ANSWER,
        ANSWER + ANSWER.replace(b"0", b"1") * 2,
    ],
)
def test_the_judge_sees_what_the_client_may_not_get(answered: bytes) -> None:
    with pytest.raises(RuntimeError):
        judged(answered=answered)


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 3\r\nTransfer-Encoding: chunked",
        b"Content-Length: 3\r\nContent-Length: 3",
        b"Content-Length: +3",
        b"Transfer-Encoding: gzip, chunked",
        b"Transfer-Encoding : chunked",
        b"A: b\r\n c",
        b"A: b\nB: c",
        b"A: \0",
    ],
)
def test_the_strict_reader_takes_one_form_only(head: bytes) -> None:
    with pytest.raises(RuntimeError):
        read_requests(b"POST / HTTP/1.1\r\n" + head + b"\r\n\r\n0\r\n\r\n")
    with pytest.raises(RuntimeError):
        read_responses(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n0\r\n\r\n", [b"GET"])


@pytest.mark.parametrize("size", [b"0x3", b"+3", b"3;x", b" 3", b"3 ", b"3_0", b""])
def test_the_strict_reader_takes_plain_chunks_only(size: bytes) -> None:
    with pytest.raises(RuntimeError):
        read_requests(
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + size + b"\r\nabc\r\n0\r\n\r\n"
        )


def test_the_strict_reader_takes_messages_apart() -> None:
    chunked = b"POST /b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\nX: y\r\n\r\n"
    first, second, third = read_requests(b"PUT /a HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi" + chunked + FIRST)
    assert (first.start, first.body, first.complete) == ((b"PUT", b"/a"), b"hi", True)
    assert (second.body, second.trailers, second.complete) == (b"abc", [(b"x", b"y")], True)
    assert third.values(b"x-mark") == [b"0"]
    (cut,) = read_requests(chunked[:-20])
    assert not cut.complete
    early, last = read_responses(b"HTTP/1.1 100 \r\n\r\nHTTP/1.1 200 OK\r\n\r\nrest", [b"GET"])
    assert early.complete and (last.body, last.until_close) == (b"rest", True)
