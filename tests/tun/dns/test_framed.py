"""DNS on a byte stream: many questions on one connection, its end, and servers that misbehave."""

from __future__ import annotations

import asyncio

import dns.message
import pytest

from cryprq_proxy.errors import StreamReason
from tests.support.dns_fakes import FramedServer, MemoryStream, address, inquiry, now, reply, run
from tun.dns import framed
from tun.dns.framed import CONNECT_SECONDS, IDLE_SECONDS, FramedUpstream, UpstreamError


def name_of(wire: bytes) -> str:
    return str(dns.message.from_wire(wire).question[0].name)


def test_questions_share_a_connection_and_answers_come_in_any_order() -> None:
    async def main() -> None:
        held: list[dns.message.Message] = []

        def hold(question: dns.message.Message) -> None:
            held.append(question)

        server = FramedServer(hold)
        upstream = FramedUpstream(server.open)
        asked = [asyncio.ensure_future(upstream.ask(inquiry(f"n{i}.example."))) for i in range(50)]
        while len(held) < 50:
            await asyncio.sleep(0)
        assert len({question.id for question in held}) == 50
        data = b"".join(len(a := address(q)).to_bytes(2) + a for q in reversed(held))
        for at in range(0, len(data), 7):  # in pieces that fit nothing
            await server.streams[0].write(data[at : at + 7])
            await asyncio.sleep(0)
        for number, answer in enumerate(await asyncio.gather(*asked)):
            assert name_of(answer) == f"n{number}.example."
        assert len(server.streams) == 1
        upstream.close()

    run(main())


def test_questions_on_one_connection_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(framed, "MAX_IN_FLIGHT", 3)

    async def main() -> None:
        held: list[dns.message.Message] = []
        server = FramedServer(held.append)
        upstream = FramedUpstream(server.open)
        asked = [asyncio.ensure_future(upstream.ask(inquiry(f"n{i}.example."))) for i in range(3)]
        while len(held) < 3:
            await asyncio.sleep(0)
        with pytest.raises(UpstreamError, match="too many questions wait for the server"):
            await upstream.ask(inquiry("more.example."))
        server.handler = address
        upstream.close()
        await asyncio.gather(*asked, return_exceptions=True)
        assert name_of(await upstream.ask(inquiry("later.example."))) == "later.example."
        upstream.close()

    run(main())


def test_an_idle_connection_is_closed_and_opened_anew() -> None:
    async def main() -> None:
        server = FramedServer()
        upstream = FramedUpstream(server.open)
        await upstream.ask(inquiry())
        await asyncio.sleep(IDLE_SECONDS - 1)
        await upstream.ask(inquiry())
        assert len(server.streams) == 1
        await asyncio.sleep(IDLE_SECONDS + 1)
        assert server.streams[0].aborted
        await upstream.ask(inquiry())
        assert len(server.streams) == 2
        upstream.close()

    run(main())


def test_a_question_on_a_connection_that_ends_is_asked_once_more() -> None:
    async def main() -> None:
        server = FramedServer()
        upstream = FramedUpstream(server.open)
        await upstream.ask(inquiry())

        def hang_up(question: dns.message.Message) -> None:
            server.handler = address
            server.streams[0].write_eof()

        server.handler = hang_up
        assert name_of(await upstream.ask(inquiry("again.example."))) == "again.example."
        assert len(server.streams) == 2
        upstream.close()

    run(main())


def test_a_server_that_always_hangs_up_is_not_asked_for_ever() -> None:
    async def main() -> None:
        server = FramedServer(lambda question: server.streams[-1].abort())
        upstream = FramedUpstream(server.open)
        with pytest.raises(UpstreamError, match="without an answer") as caught:
            await upstream.ask(inquiry())
        assert not caught.value.unreachable
        assert len(server.streams) == 1

    run(main())


@pytest.mark.parametrize(
    "wrong",
    [
        lambda q: reply(dns.message.make_query("other.example.", "A", id=q.id)),
        lambda q: (q.id ^ 1).to_bytes(2) + address(q)[2:],
        lambda q: q.to_wire(),
        lambda q: b"",
        lambda q: address(q)[:11],
    ],
    ids=["another question", "another id", "no answer", "empty", "cut"],
)
def test_what_answers_nothing_is_dropped_and_the_right_answer_still_taken(wrong) -> None:  # type: ignore[no-untyped-def]
    async def main() -> None:
        server = FramedServer()

        async def answer_twice(stream: MemoryStream) -> None:
            data = await stream.read()
            question = dns.message.from_wire(data[2:])
            for message in (wrong(question), address(question)):
                await stream.write(len(message).to_bytes(2) + message)

        server._serve = answer_twice  # type: ignore[method-assign]
        upstream = FramedUpstream(server.open)
        assert dns.message.from_wire(await upstream.ask(inquiry())).answer
        upstream.close()

    run(main())


def test_why_a_server_cannot_be_reached() -> None:
    async def main() -> None:
        server = FramedServer()
        server.down = StreamReason.LINK_DOWN
        with pytest.raises(UpstreamError, match=r"cannot be reached: .*link down") as caught:
            await FramedUpstream(server.open).ask(inquiry())
        assert caught.value.unreachable

        async def never() -> MemoryStream:
            return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]

        begun = now()
        keep = asyncio.get_running_loop().call_later(100, lambda: None)
        with pytest.raises(UpstreamError, match="timed out"):
            await FramedUpstream(never).ask(inquiry())
        keep.cancel()
        assert now() - begun == pytest.approx(CONNECT_SECONDS, abs=0.01)

    run(main())


def test_a_question_given_up_leaves_the_connection_to_others() -> None:
    async def main() -> None:
        server = FramedServer(lambda question: None)
        upstream = FramedUpstream(server.open)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await upstream.ask(inquiry())
        server.handler = address
        await upstream.ask(inquiry("two.example."))
        assert len(server.streams) == 1
        upstream.close()

    run(main())


def test_a_connection_that_went_dumb_is_not_used_again() -> None:
    async def main() -> None:
        server = FramedServer(lambda question: None)
        upstream = FramedUpstream(server.open)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(4):
                await upstream.ask(inquiry())
        server.handler = address
        await upstream.ask(inquiry())
        assert len(server.streams) == 2
        upstream.close()

    run(main())


def test_closing_ends_what_waits() -> None:
    async def main() -> None:
        server = FramedServer(lambda question: None)
        upstream = FramedUpstream(server.open)
        asked = asyncio.ensure_future(upstream.ask(inquiry()))
        while not server.questions:
            await asyncio.sleep(0)
        upstream.close()
        with pytest.raises(UpstreamError):
            await asked
        assert server.streams[0].aborted

    run(main())
