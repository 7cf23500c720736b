"""What one turn of the loop does for HTTP, counted in events: a peer that divides its messages finely gets no more."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from contextlib import AsyncExitStack

import pytest

from cryprq_proxy.outbound.http_chunks import CHUNK_WORK, MAX_CHUNK_HEADER, SLICE_CHUNKS
from cryprq_proxy.outbound.http_heads import (
    MAX_EMPTY_LINES,
    MAX_RESPONSE_FIELDS,
    MAX_RESPONSE_HEAD,
    MAX_RESPONSE_MEMBERS,
)
from cryprq_proxy.outbound.http_reader import HEAD_BYTES_PER_UNIT, HEAD_WORK, MAX_INTERIM
from cryprq_proxy.outbound.http_sections import MAX_FIELDS, MAX_HEADER, MAX_MEMBERS
from cryprq_proxy.session.turns import TURN_WORK, TurnBudget
from tests.support.http_fakes import PATIENCE, Stage

GET = b"GET http://example.org/ HTTP/1.1\r\nHost: example.org\r\n\r\n"
GET_FORWARDED = b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
POST = b"POST http://example.org/ HTTP/1.1\r\nHost: example.org\r\nTransfer-Encoding: chunked\r\n\r\n"
INTERIM = b"HTTP/1.1 103 E\r\n\r\n"
NO_BODY = b"HTTP/1.1 204 N\r\n\r\n"
MANY = 10_000
CHUNKS_A_TURN = TURN_WORK // CHUNK_WORK + SLICE_CHUNKS
HEADS_A_TURN = TURN_WORK // HEAD_WORK + 1


async def turns_until(total: int, count: Callable[[], int]) -> list[int]:
    """What `count` says after each turn of the loop, until it says `total`."""
    seen = [count()]
    async with asyncio.timeout(PATIENCE):
        while seen[-1] < total:
            await asyncio.sleep(0)
            seen.append(count())
    return seen


def most(seen: list[int]) -> int:
    return max(after - before for before, after in itertools.pairwise(seen))


async def test_tiny_chunks_of_an_origin_pass_a_turn_at_a_time() -> None:
    async with Stage() as stage:
        stage.says(GET)
        origin = await stage.origin()
        await origin.gets(GET_FORWARDED)
        origin.feed(CHUNKED + b"1\r\nz\r\n" * MANY)
        seen = await turns_until(MANY, lambda: stage.client.sent.count(b"z"))
    assert most(seen) <= CHUNKS_A_TURN


async def test_many_reads_of_tiny_chunks_have_the_same_turn() -> None:
    async with Stage() as stage:
        stage.says(GET)
        origin = await stage.origin()
        await origin.gets(GET_FORWARDED)
        origin.feed(CHUNKED)
        for _ in range(MANY // 10):
            origin.feed(b"1\r\nz\r\n" * 10)
        seen = await turns_until(MANY, lambda: stage.client.sent.count(b"z"))
    assert most(seen) <= CHUNKS_A_TURN


async def test_tiny_chunks_of_an_application_pass_a_turn_at_a_time() -> None:
    async with Stage() as stage:
        stage.says(POST)
        origin = await stage.origin()
        stage.says(b"1\r\nz\r\n" * MANY)
        seen = await turns_until(MANY, lambda: origin.sent.count(b"z"))
    assert most(seen) <= CHUNKS_A_TURN


async def test_refused_requests_in_one_piece_are_answered_a_turn_at_a_time() -> None:
    async with Stage() as stage:
        stage.says(b"GET http://a:0/ HTTP/1.1\r\nHost: a\r\n\r\n" * 500)
        seen = await turns_until(500, lambda: stage.client.sent.count(b"HTTP/1.1 400"))
    assert most(seen) <= HEADS_A_TURN


async def test_answers_before_the_response_pass_a_turn_at_a_time() -> None:
    async with Stage() as stage:
        stage.says(GET)
        origin = await stage.origin()
        origin.feed(INTERIM * MAX_INTERIM)
        seen = await turns_until(MAX_INTERIM, lambda: stage.client.sent.count(b"103"))
    assert most(seen) <= HEADS_A_TURN


async def test_all_connections_have_one_budget_and_all_of_them_their_turn() -> None:
    turns = TurnBudget(asyncio.get_running_loop().call_soon)
    async with AsyncExitStack() as stack:
        stages = [await stack.enter_async_context(Stage(turns=turns)) for _ in range(10)]
        for stage in stages:
            stage.says(GET)
            await (await stage.origin()).gets(GET_FORWARDED)
        for stage in stages:
            stage.opened[0][1].feed(CHUNKED + b"1\r\nz\r\n" * 2_000)

        def passed() -> int:
            return sum(stage.client.sent.count(b"z") for stage in stages)

        seen = await turns_until(MANY, passed)
        fewest = min(stage.client.sent.count(b"z") for stage in stages)
    # Those that the turn before let go on, and those that begin before the waiting ones.
    assert most(seen) <= 2 * CHUNKS_A_TURN
    assert fewest > 500


async def test_large_chunks_are_not_cut() -> None:
    async with Stage() as stage:
        stage.says(GET)
        origin = await stage.origin()
        await origin.gets(GET_FORWARDED)
        body = b"%x\r\n%b\r\n" % (60_000, b"z\r\n" * 20_000)
        origin.feed(CHUNKED + body)
        await stage.client.gets(CHUNKED + body)


# Bounds


def sections(*, trailers: bool) -> list[bytes]:
    """Fields at a bound, and beyond it."""
    lines = MAX_FIELDS - (0 if trailers else 2)
    return [
        b"a: b\r\n" * (lines + 3),
        b"A: " + b"," * (MAX_MEMBERS + 1) + b"\r\n",
        b"A:" + b" " * 256 + b"\x00\r\n",
        b"A:" + b"\t " * 128 + b"b\r\n",
    ]


@pytest.mark.parametrize("fields", sections(trailers=False), ids=["lines", "commas", "spaces", "tabs"])
async def test_sections_beyond_the_bounds_are_refused(fields: bytes) -> None:
    async with Stage() as stage:
        stage.says(GET[:-2] + fields + b"\r\n")
        assert b"HTTP/1.1 431" in await stage.client.gets_message()
        await stage.ends()


async def test_sections_at_the_bounds_pass() -> None:
    async with Stage() as stage:
        fields = b"a: b\r\n" * (MAX_FIELDS - 2) + b"b:" + b" " * 255 + b"," * MAX_MEMBERS + b"\r\n"
        stage.says(GET[:-2] + fields + b"\r\n")
        head = await (await stage.origin()).gets_message_head()
    assert head.count(b"a: b") == MAX_FIELDS - 2
    assert head.count(b",") == MAX_MEMBERS


def sized(size: int) -> bytes:
    """A head without a body of `size` bytes."""
    return NO_BODY[:-2] + b"A: " + b"b" * (size - len(NO_BODY) - 5) + b"\r\n\r\n"


RESPONSES_AT_THE_BOUNDS = [
    sized(MAX_RESPONSE_HEAD),
    NO_BODY[:-2] + b"a: b\r\n" * MAX_RESPONSE_FIELDS + b"\r\n",
    NO_BODY[:-2] + b"A: " + b"," * MAX_RESPONSE_MEMBERS + b"\r\n\r\n",
    NO_BODY[:-2] + b"A:" + b"b\t" * (MAX_RESPONSE_MEMBERS - 4) + b"b\r\n\r\n",
    b"\n" * MAX_EMPTY_LINES + NO_BODY,
]
RESPONSES_BEYOND_THE_BOUNDS = [
    sized(MAX_RESPONSE_HEAD + 1),
    NO_BODY[:-2] + b"a: b\r\n" * (MAX_RESPONSE_FIELDS + 1) + b"\r\n",
    NO_BODY[:-2] + b"A: " + b"," * (MAX_RESPONSE_MEMBERS + 1) + b"\r\n\r\n",
    NO_BODY[:-2] + b"A:" + b"b\t" * (MAX_RESPONSE_MEMBERS + 1) + b"b\r\n\r\n",
    b"\n" * (MAX_EMPTY_LINES + 1) + NO_BODY,
]
BOUNDED = ["bytes", "lines", "commas", "spaces", "empty lines"]


@pytest.mark.parametrize("piece", [1 << 20, 65_536, 1_000])
@pytest.mark.parametrize("head", RESPONSES_AT_THE_BOUNDS, ids=BOUNDED)
async def test_responses_at_the_bounds_pass_in_any_cut(head: bytes, piece: int) -> None:
    async with Stage() as stage:
        stage.says(GET)
        origin = await stage.origin()
        for start in range(0, len(head), piece):
            origin.feed(head[start : start + piece])
        assert b"HTTP/1.1 204" in await stage.client.gets_message_head()


@pytest.mark.parametrize("piece", [1 << 20, 65_536, 1_000])
@pytest.mark.parametrize("head", RESPONSES_BEYOND_THE_BOUNDS, ids=BOUNDED)
async def test_responses_beyond_the_bounds_are_refused_in_any_cut(head: bytes, piece: int) -> None:
    async with Stage() as stage:
        stage.says(GET)
        origin = await stage.origin()
        for start in range(0, len(head), piece):
            origin.feed(head[start : start + piece])
        assert b"HTTP/1.1 502" in await stage.client.gets_message()


@pytest.mark.parametrize("piece", [1 << 20, 1_000])
@pytest.mark.parametrize("more", [0, 1])
async def test_requests_have_one_bound_in_any_cut(more: int, piece: int) -> None:
    head = GET[:-2] + b"A: " + b"b" * (MAX_HEADER - len(GET) - 5 + more) + b"\r\n\r\n"
    async with Stage() as stage:
        stage.expect(NO_BODY)
        for start in range(0, len(head), piece):
            stage.says(head[start : start + piece])
        answer = await stage.client.gets_message_head()
    assert answer.startswith(b"HTTP/1.1 431" if more else b"HTTP/1.1 204")


async def test_a_large_head_is_read_in_one_turn_and_passed_on_in_another() -> None:
    async with Stage() as stage:
        stage.says(GET)
        origin = await stage.origin()
        await origin.gets(GET_FORWARDED)
        budget = stage.proxy._turns
        origin.feed(NO_BODY)
        await stage.client.gets(NO_BODY)
        stage.says(GET)
        await origin.gets(GET_FORWARDED)
        origin.feed(sized(MAX_RESPONSE_HEAD))
        lefts: list[int] = []

        def sent() -> int:
            lefts.append(budget.left)
            return len(stage.client.sent)

        await turns_until(1, sent)
    # The head's bytes are paid for before the turn in which it is passed on.
    assert min(lefts) <= TURN_WORK - MAX_RESPONSE_HEAD // HEAD_BYTES_PER_UNIT
    assert lefts[-1] > 0


@pytest.mark.parametrize(
    "fields",
    [*sections(trailers=True), b"A: " + b"b" * MAX_HEADER],
    ids=["lines", "commas", "spaces", "tabs", "bytes"],
)
async def test_trailers_beyond_the_bounds_are_refused(fields: bytes) -> None:
    async with Stage() as stage:
        stage.says(POST + b"0\r\n" + fields + b"\r\n")
        assert b"HTTP/1.1 400" in await stage.client.gets_message()
        await stage.ends()
    async with Stage() as stage:
        stage.says(GET)
        origin = await stage.origin()
        origin.feed(CHUNKED + b"0\r\n")
        await stage.client.gets(CHUNKED)
        origin.feed(fields)
        origin.feed(b"\r\n")
        await stage.ends()
        assert stage.reset is not None


async def test_answers_before_the_response_are_bounded() -> None:
    async with Stage() as stage:
        for _ in range(2):
            stage.says(GET)
            origin = await stage.origin()
            await origin.gets(GET_FORWARDED)
            origin.feed(INTERIM * MAX_INTERIM + NO_BODY)
            await stage.client.gets(INTERIM * MAX_INTERIM + NO_BODY)
        stage.says(GET)
        await origin.gets(GET_FORWARDED)
        origin.feed(INTERIM * (MAX_INTERIM + 1) + NO_BODY)
        await stage.client.gets(INTERIM * MAX_INTERIM)
        assert b"HTTP/1.1 502" in await stage.client.gets_message()


@pytest.mark.parametrize(
    "header",
    [
        b"1;" + b" " * MAX_CHUNK_HEADER,
        b"1;" + b"x" * MAX_CHUNK_HEADER + b"\r\n",
        b"1; \n \r\n",
        b"1;\r;\r\n",
        b"\r\n",
        b"x\r\n",
        b"f" * 21 + b"\r\n",
    ],
)
async def test_the_line_before_a_chunk_is_bounded(header: bytes) -> None:
    async with Stage() as stage:
        stage.says(POST + b"1\r\nz\r\n" + header)
        assert b"HTTP/1.1 400" in await stage.client.gets_message()
        await stage.ends()
