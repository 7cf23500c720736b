"""Which of several servers is asked, and when: by scripted servers, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import dns.message
import pytest

from tests.support.dns_fakes import address, inquiry, now, reply, run
from tests.support.settings import dns_settings
from tun.dns.answer import Answer
from tun.dns.codes import NXDOMAIN, SERVFAIL
from tun.dns.framed import UpstreamError
from tun.dns.inquiry import Inquiry
from tun.dns.upstreams import Group, Member


class Server:
    """Answers after `delay` seconds, or fails."""

    def __init__(self, delay: float = 0.0, answer: Callable[[dns.message.Message], bytes] = address) -> None:
        self.delay = delay
        self.answer = answer
        self.error: UpstreamError | None = None
        self.asked = 0
        self.given_up = 0
        self.closed = False

    async def ask(self, inquiry: Inquiry) -> bytes:
        self.asked += 1
        try:
            await asyncio.sleep(self.delay)
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        if self.error:
            raise self.error
        return self.answer(dns.message.from_wire(inquiry.wire()))

    def close(self) -> None:
        self.closed = True


def group(*servers: Server) -> Group:
    members = [Member(f"s{number}", server, now) for number, server in enumerate(servers)]
    return Group(members, dns_settings(), now)


async def took(group: Group) -> tuple[float, Answer | UpstreamError]:
    begun = now()
    try:
        found: Answer | UpstreamError = await group.ask(inquiry(), ipv6=True)
    except UpstreamError as error:
        found = error
    await asyncio.sleep(0)  # those given up hear of it
    return round(now() - begun, 3), found


def test_the_first_server_is_enough() -> None:
    async def main() -> None:
        servers = Server(0.5), Server()
        seconds, found = await took(group(*servers))
        assert (seconds, servers[1].asked) == (0.5, 0)
        assert isinstance(found, Answer)

    run(main())


def test_a_slow_server_is_overtaken() -> None:
    async def main() -> None:
        servers = Server(4), Server(0.25)
        both = group(*servers)
        seconds, found = await took(both)
        assert (seconds, isinstance(found, Answer)) == (1.25, True)
        assert servers[0].given_up == 1
        assert both.in_use.status.name == "s1"

    run(main())


def test_a_slow_server_may_still_be_first() -> None:
    async def main() -> None:
        servers = Server(1.5), Server(3)
        assert (await took(group(*servers)))[0] == 1.5
        assert (servers[1].asked, servers[1].given_up) == (1, 1)

    run(main())


def test_after_a_failure_the_next_one_is_asked_at_once_and_first_from_then_on() -> None:
    async def main() -> None:
        servers = Server(), Server()
        servers[0].error = UpstreamError("no")
        both = group(*servers)
        assert (await took(both))[0] == 0
        await took(both)
        assert (servers[0].asked, servers[1].asked) == (1, 2)
        assert (both.members[0].status.healthy, both.members[0].status.last_error) == (False, "no")
        servers[0].error = None
        await asyncio.sleep(1.5)
        await took(both)
        assert (servers[0].asked, servers[1].asked) == (2, 2)
        assert both.members[0].status.healthy

    run(main())


def test_the_penalty_grows_and_ends_with_the_link() -> None:
    async def main() -> None:
        bad = Server()
        bad.error = UpstreamError("no")
        member = Member("x", bad, now)
        penalties = []
        for _ in range(8):
            await member.ask(inquiry(), True)
            penalties.append(member.down_until - now())
        assert penalties == [1, 2, 4, 8, 16, 32, 60, 60]
        member.recover()
        assert member.down_until == 0

    run(main())


@pytest.mark.parametrize(
    "answer", [lambda q: reply(q, rcode=SERVFAIL), lambda q: reply(q, rcode=5), lambda q: b"junk"]
)
def test_a_server_without_an_answer_leaves_it_to_the_next(
    answer: Callable[[dns.message.Message], bytes],
) -> None:
    async def main() -> None:
        servers = Server(answer=answer), Server()
        _, found = await took(group(*servers))
        assert isinstance(found, Answer)
        assert found.rcode == 0

    run(main())


def test_that_a_name_does_not_exist_is_an_answer() -> None:
    async def main() -> None:
        servers = Server(answer=lambda q: reply(q, rcode=NXDOMAIN)), Server()
        _, found = await took(group(*servers))
        assert isinstance(found, Answer)
        assert (found.rcode, servers[1].asked) == (NXDOMAIN, 0)

    run(main())


def test_a_failure_of_all_is_the_failure_of_one() -> None:
    async def main() -> None:
        servers = Server(), Server(answer=lambda q: reply(q, rcode=SERVFAIL))
        servers[0].error = UpstreamError("no")
        both = group(*servers)
        _, found = await took(both)
        assert isinstance(found, Answer)
        assert found.rcode == SERVFAIL
        assert both.members[1].status.healthy  # the name is what is broken

    run(main())


def test_silence_ends_in_time_and_is_remembered() -> None:
    async def main() -> None:
        servers = Server(99), Server(99)
        both = group(*servers)
        seconds, found = await took(both)
        assert seconds == 4.5
        assert isinstance(found, UpstreamError)
        assert [server.given_up for server in servers] == [1, 1]
        assert [member.status.failures for member in both.members] == [1, 1]

    run(main())


def test_a_link_that_is_down_is_waited_for() -> None:
    async def main() -> None:
        server = Server()
        server.error = UpstreamError("link down", unreachable=True)
        one = group(server)
        seconds, found = await took(one)
        assert 2.5 < seconds <= 3
        assert isinstance(found, UpstreamError)
        loop = asyncio.get_running_loop()
        loop.call_later(1.1, lambda: setattr(server, "error", None))
        seconds, found = await took(one)
        assert seconds == 1.25
        assert isinstance(found, Answer)

    run(main())


def test_latency_is_a_moving_average() -> None:
    async def main() -> None:
        server = Server(0.1)
        one = group(server)
        await took(one)
        assert one.members[0].status.latency == pytest.approx(0.1)
        server.delay = 0.5
        await took(one)
        assert one.members[0].status.latency == pytest.approx(0.2)
        assert one.members[0].status.answers == 2
        one.close()
        assert server.closed

    run(main())


def test_a_long_answer_is_judged_beside_the_loop() -> None:
    records = "www.example. 300 IN A " + "|".join(f"10.0.{i // 250}.{i % 250}" for i in range(600))

    async def main() -> None:
        found = await group(Server(answer=lambda q: reply(q, records))).ask(inquiry(), ipv6=True)
        assert len(found.ttls) == 600

    asyncio.run(main())  # threads know no virtual time
