"""The dialer: one literal on real loopback sockets, the race on a scripted connector, names on a fake resolver."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Iterator, Sequence
from typing import cast

import pytest

from cryprq_proxy.address import Destination
from cryprq_proxy.base.sockets import UNSENT
from cryprq_proxy.errors import StreamReason, StreamRefused
from cryprq_proxy.exit.egress_policy import EgressPolicy
from cryprq_proxy.outbound import dialer
from cryprq_proxy.outbound.dialer import (
    ATTEMPT_DELAY,
    ATTEMPT_PATIENCE,
    CONNECT_REASONS,
    MAX_RUNNING,
    AddressRace,
    Done,
    connect_literal,
    dial,
    interleave,
)
from cryprq_proxy.outbound.socket_group import SocketLoop
from tests.support.fake_exits import Timers
from tests.support.settle import until
from tests.support.targets import has_ipv6

OPEN = EgressPolicy(allow_private=True)
NEVER = 3600.0
"""A delay that no test lives to see."""


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this host has no ::1")


@pytest.fixture
def no_leaks() -> Iterator[None]:
    def descriptors() -> set[str]:
        return set(os.listdir("/proc/self/fd"))

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("descriptors cannot be counted without /proc")
    before = len(descriptors())
    yield
    assert len(descriptors()) == before


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


@pytest.fixture
def refused_port() -> Iterator[int]:
    """Bound but not listening, so nobody else gets it meanwhile."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@pytest.fixture
def black_hole() -> Iterator[int]:
    """A listener whose queue is full: Linux drops further SYNs."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        waiting: list[socket.socket] = []
        try:
            for _ in range(64):
                sock = socket.socket()
                sock.setblocking(False)
                waiting.append(sock)
                sock.connect_ex(server.getsockname())
                if sock.connect_ex(server.getsockname()) == errno.EALREADY:
                    break
            else:
                pytest.skip("this kernel's queue does not fill up")
            yield server.getsockname()[1]
        finally:
            for sock in waiting:
                sock.close()


class Outcome:
    """A `Done` that can be awaited."""

    def __init__(self) -> None:
        self.calls: list[tuple[socket.socket | None, StreamReason | None]] = []
        self.called = asyncio.Event()

    def __call__(self, sock: socket.socket | None, reason: StreamReason | None) -> None:
        self.calls.append((sock, reason))
        self.called.set()

    async def socket(self) -> socket.socket:
        await self.called.wait()
        [(sock, reason)] = self.calls
        assert sock is not None and reason is None
        return sock

    async def reason(self) -> StreamReason:
        await self.called.wait()
        [(sock, reason)] = self.calls
        assert sock is None and reason is not None
        return reason


class SlowSocket(socket.socket):
    """A socket that never connects at once, as one to a distant target."""

    def connect_ex(self, address: object) -> int:
        super().connect_ex(address)  # type: ignore[arg-type]
        return errno.EALREADY


# ---- connect_literal


def check_connected(sock: socket.socket, server: socket.socket) -> None:
    with sock, server.accept()[0] as accepted:
        assert sock.gettimeout() == 0.0
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == UNSENT
        assert not sock.get_inheritable()
        accepted.sendall(b"hello")
        sock.setblocking(True)
        assert sock.recv(5) == b"hello"


async def test_a_literal_is_connected(no_leaks: None) -> None:
    done = Outcome()
    with socket.create_server(("127.0.0.1", 0)) as server:
        attempt = connect_literal(asyncio.get_running_loop(), "127.0.0.1", server.getsockname()[1], done)
        sock = await done.socket()
        attempt.cancel()
        check_connected(sock, server)


@needs_ipv6
async def test_an_ipv6_literal_is_connected(no_leaks: None) -> None:
    done = Outcome()
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        connect_literal(asyncio.get_running_loop(), "::1", server.getsockname()[1], done)
        check_connected(await done.socket(), server)


async def test_a_distant_literal_is_connected(
    monkeypatch: pytest.MonkeyPatch, listener: socket.socket, no_leaks: None
) -> None:
    done = Outcome()
    monkeypatch.setattr(socket, "socket", SlowSocket)
    attempt = connect_literal(asyncio.get_running_loop(), "127.0.0.1", listener.getsockname()[1], done)
    assert not done.calls
    sock = await done.socket()
    monkeypatch.undo()
    attempt.cancel()
    check_connected(sock, listener)


async def test_a_refused_literal(refused_port: int, no_leaks: None) -> None:
    done = Outcome()
    connect_literal(asyncio.get_running_loop(), "127.0.0.1", refused_port, done)
    assert await done.reason() is StreamReason.CONNECTION_REFUSED


async def test_a_distant_refused_literal(
    monkeypatch: pytest.MonkeyPatch, refused_port: int, no_leaks: None
) -> None:
    done = Outcome()
    monkeypatch.setattr(socket, "socket", SlowSocket)
    connect_literal(asyncio.get_running_loop(), "127.0.0.1", refused_port, done)
    assert not done.calls
    assert await done.reason() is StreamReason.CONNECTION_REFUSED


async def test_silence_times_out(black_hole: int, no_leaks: None) -> None:
    done = Outcome()
    connect_literal(asyncio.get_running_loop(), "127.0.0.1", black_hole, done, 0.0)
    assert not done.calls
    assert await done.reason() is StreamReason.TIMED_OUT


async def test_a_cancelled_attempt_calls_nobody(black_hole: int, no_leaks: None) -> None:
    done = Outcome()
    attempt = connect_literal(asyncio.get_running_loop(), "127.0.0.1", black_hole, done, 0.0)
    attempt.cancel()
    attempt.cancel()
    await turn()
    assert not done.calls


@pytest.mark.parametrize(("code", "reason"), CONNECT_REASONS.items())
async def test_what_connecting_answers(
    code: int, reason: StreamReason, monkeypatch: pytest.MonkeyPatch, no_leaks: None
) -> None:
    class Failing(socket.socket):
        def connect_ex(self, address: object) -> int:
            return code

    done = Outcome()
    monkeypatch.setattr(socket, "socket", Failing)
    connect_literal(asyncio.get_running_loop(), "127.0.0.1", 9, done)
    assert done.calls == [(None, reason)]


async def test_an_unknown_error_while_connecting(monkeypatch: pytest.MonkeyPatch, no_leaks: None) -> None:
    class Failing(socket.socket):
        def connect_ex(self, address: object) -> int:
            raise OSError("no number")

    done = Outcome()
    monkeypatch.setattr(socket, "socket", Failing)
    connect_literal(asyncio.get_running_loop(), "127.0.0.1", 9, done)
    assert done.calls == [(None, StreamReason.GENERAL)]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (errno.EMFILE, StreamReason.EXHAUSTED),
        (errno.EAFNOSUPPORT, StreamReason.NETWORK_UNREACHABLE),
    ],
)
async def test_no_socket_to_be_had(code: int, reason: StreamReason, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> socket.socket:
        raise OSError(code, os.strerror(code))

    done = Outcome()
    monkeypatch.setattr(socket, "socket", failing)
    connect_literal(asyncio.get_running_loop(), "::1", 9, done).cancel()
    assert done.calls == [(None, reason)]


# ---- the race, on a scripted connector


async def turn() -> None:
    """Let everything run that is ready, twice over: callbacks, then what they have scheduled."""
    for _ in range(4):
        await asyncio.sleep(0)


class Attempt:
    def __init__(self, ip: str, port: int, done: Done, timeout: float) -> None:
        self.ip = ip
        self.port = port
        self.done = done
        self.timeout = timeout
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True

    def succeed(self) -> socket.socket:
        sock = socket.socket()
        self.done(sock, None)
        return sock


class Connector:
    """Takes the place of `connect_literal`: `script` has what an address answers at once; the rest hangs."""

    def __init__(self, script: dict[str, StreamReason] | None = None) -> None:
        self.script = script or {}
        self.attempts: list[Attempt] = []

    def __call__(self, loop: SocketLoop, ip: str, port: int, done: Done, timeout: float, /) -> Attempt:
        attempt = Attempt(ip, port, done, timeout)
        self.attempts.append(attempt)
        if ip in self.script:
            done(None, self.script[ip])
        return attempt

    @property
    def tried(self) -> list[str]:
        return [attempt.ip for attempt in self.attempts]


def always(ip: str) -> bool:
    return True


@pytest.mark.parametrize(
    ("given", "tried"),
    [
        ([], []),
        (["1.1.1.1", "1.1.1.2"], ["1.1.1.1", "1.1.1.2"]),
        (["1.1.1.1", "1.1.1.2", "2::1"], ["2::1", "1.1.1.1", "1.1.1.2"]),
        (["2::2", "2::1", "2::3", "1.1.1.2", "1.1.1.1"], ["2::2", "1.1.1.2", "2::1", "1.1.1.1", "2::3"]),
        (["1.1.1.1", "2::1", "1.1.1.1", "2::1"], ["2::1", "1.1.1.1"]),
    ],
)
def test_families_take_turns(given: list[str], tried: list[str]) -> None:
    assert interleave(given) == tried


async def test_the_next_address_starts_after_the_delay_and_the_winner_ends_the_others() -> None:
    connector, done = Connector(), Outcome()
    loop = asyncio.get_running_loop()
    AddressRace(loop, ["1.1.1.1", "1.1.1.2"], 443, always, done, NEVER, 0.0, connector)
    assert connector.tried == ["1.1.1.1"]
    while len(connector.attempts) < 2:
        await asyncio.sleep(0)
    first, second = connector.attempts
    assert not first.cancelled
    sock = second.succeed()
    sock.close()
    assert first.cancelled
    assert done.calls == [(sock, None)]


async def test_the_first_may_still_win_after_the_second_has_started() -> None:
    connector, done = Connector(), Outcome()
    loop = asyncio.get_running_loop()
    AddressRace(loop, ["1.1.1.1", "1.1.1.2", "1.1.1.3"], 443, always, done, NEVER, 0.0, connector)
    while len(connector.attempts) < 2:
        await asyncio.sleep(0)
    connector.attempts[0].succeed().close()
    assert connector.attempts[1].cancelled
    await turn()
    assert connector.tried == ["1.1.1.1", "1.1.1.2"]
    assert len(done.calls) == 1


async def test_a_failure_starts_the_next_at_once() -> None:
    connector = Connector({"1.1.1.1": StreamReason.CONNECTION_REFUSED})
    done = Outcome()
    loop = asyncio.get_running_loop()
    AddressRace(loop, ["1.1.1.1", "1.1.1.2", "1.1.1.3"], 443, always, done, NEVER, NEVER, connector)
    assert connector.tried == ["1.1.1.1", "1.1.1.2"]
    connector.attempts[1].done(None, StreamReason.HOST_UNREACHABLE)
    assert connector.tried == ["1.1.1.1", "1.1.1.2", "1.1.1.3"]
    connector.attempts[2].done(None, StreamReason.TIMED_OUT)
    assert done.calls == [(None, StreamReason.CONNECTION_REFUSED)]


@pytest.mark.parametrize(
    ("reasons", "reported"),
    [
        (
            [StreamReason.NETWORK_UNREACHABLE, StreamReason.CONNECTION_REFUSED],
            StreamReason.CONNECTION_REFUSED,
        ),
        ([StreamReason.CONNECTION_REFUSED, StreamReason.TIMED_OUT], StreamReason.CONNECTION_REFUSED),
        ([StreamReason.HOST_UNREACHABLE, StreamReason.TIMED_OUT], StreamReason.TIMED_OUT),
        ([StreamReason.NETWORK_UNREACHABLE, StreamReason.HOST_UNREACHABLE], StreamReason.HOST_UNREACHABLE),
        ([StreamReason.GENERAL, StreamReason.NETWORK_UNREACHABLE], StreamReason.NETWORK_UNREACHABLE),
        ([StreamReason.NOT_ALLOWED, StreamReason.GENERAL], StreamReason.GENERAL),
        ([StreamReason.NOT_ALLOWED], StreamReason.NOT_ALLOWED),
        ([], StreamReason.GENERAL),
    ],
)
async def test_the_most_telling_reason_is_reported(
    reasons: list[StreamReason], reported: StreamReason
) -> None:
    script = {f"1.1.1.{n}": reason for n, reason in enumerate(reasons)}
    done = Outcome()
    AddressRace(asyncio.get_running_loop(), script, 443, always, done, NEVER, NEVER, Connector(script))
    assert done.calls == [(None, reported)]


async def test_each_address_is_approved_right_before_its_attempt() -> None:
    events: list[str] = []
    script = {f"1.1.1.{n}": StreamReason.CONNECTION_REFUSED for n in (1, 2, 3)}
    connector = Connector(script)

    def allowed(ip: str) -> bool:
        events.append(f"{len(connector.attempts)} tried, {ip}?")
        return ip != "1.1.1.2"

    done = Outcome()
    AddressRace(asyncio.get_running_loop(), script, 443, allowed, done, NEVER, NEVER, connector)
    assert events == ["0 tried, 1.1.1.1?", "1 tried, 1.1.1.2?", "1 tried, 1.1.1.3?"]
    assert connector.tried == ["1.1.1.1", "1.1.1.3"]
    assert done.calls == [(None, StreamReason.CONNECTION_REFUSED)]


async def test_a_failure_while_the_last_forbidden_is_left_waits_for_who_runs() -> None:
    connector, done = Connector(), Outcome()
    loop = asyncio.get_running_loop()
    addresses = ["1.1.1.1", "1.1.1.2"]
    AddressRace(loop, addresses, 443, lambda ip: ip != "1.1.1.2", done, NEVER, 0.0, connector)
    await turn()
    await turn()
    assert not done.calls
    connector.attempts[0].succeed().close()
    assert connector.tried == ["1.1.1.1"]
    assert len(done.calls) == 1


async def test_no_attempt_starts_after_the_deadline() -> None:
    connector, done = Connector(), Outcome()
    AddressRace(asyncio.get_running_loop(), ["1.1.1.1"], 443, always, done, 0.0, NEVER, connector)
    assert connector.tried == []
    assert done.calls == [(None, StreamReason.TIMED_OUT)]


async def test_an_attempt_gets_no_more_than_the_time_left() -> None:
    connector = Connector()
    race = AddressRace(asyncio.get_running_loop(), ["1.1.1.1"], 443, always, Outcome(), 5.0, 1.0, connector)
    assert connector.attempts[0].port == 443
    assert 0 < connector.attempts[0].timeout <= 5.0
    race.cancel()
    assert connector.attempts[0].cancelled


async def test_a_cancelled_race_starts_nothing_more() -> None:
    connector, done = Connector(), Outcome()
    loop = asyncio.get_running_loop()
    race = AddressRace(loop, ["1.1.1.1", "1.1.1.2"], 443, always, done, NEVER, 0.0, connector)
    race.cancel()
    race.cancel()
    await turn()
    assert connector.tried == ["1.1.1.1"]
    assert connector.attempts[0].cancelled
    assert not done.calls


async def test_a_name_with_very_many_addresses_gets_a_bounded_number_of_attempts() -> None:
    script = {f"1.1.{n >> 8}.{n & 255}": StreamReason.CONNECTION_REFUSED for n in range(4000)}
    connector, done = Connector(script), Outcome()
    AddressRace(asyncio.get_running_loop(), script, 443, always, done, NEVER, NEVER, connector)
    assert len(connector.attempts) == dialer.MAX_ADDRESSES
    assert len(done.calls) == 1


# ---- dial


class FakeResolver:
    """Answers from a table; a name that is not in it gets no answer."""

    def __init__(self, **names: Sequence[str] | StreamReason) -> None:
        self.names = {name.replace("_", "."): answer for name, answer in names.items()}
        self.asked: list[str] = []

    async def resolve(self, name: str) -> Sequence[str]:
        self.asked.append(name)
        answer = self.names.get(name)
        if answer is None:
            await asyncio.Event().wait()
        if isinstance(answer, StreamReason):
            raise StreamRefused(answer)
        return answer or ()


async def refused(awaitable: asyncio.Task[socket.socket] | asyncio.Future[socket.socket]) -> StreamReason:
    with pytest.raises(StreamRefused) as caught:
        await awaitable
    return caught.value.reason


class Dialling:
    """`dial` with a fake resolver and connector, as a task."""

    def __init__(
        self,
        host: str,
        policy: EgressPolicy | None = None,
        resolver: FakeResolver | None = None,
        connector: Connector | None = None,
        timeout: float = NEVER,
    ) -> None:
        self.resolver = resolver or FakeResolver(a_test=["1.1.1.1", "1.1.1.2"])
        self.connector = connector or Connector()
        self.task = asyncio.ensure_future(
            dial(
                Destination(host, 443),
                policy or EgressPolicy(),
                resolver=self.resolver,
                timeout=timeout,
                attempt_delay=NEVER,
                connect=self.connector,
            )
        )


async def test_dial_resolves_and_returns_the_winner() -> None:
    dialling = Dialling("a.test")
    await turn()
    assert dialling.resolver.asked == ["a.test"]
    sock = dialling.connector.attempts[0].succeed()
    assert await dialling.task is sock
    sock.close()


async def test_dial_does_not_resolve_a_literal() -> None:
    dialling = Dialling("2606:4700::1")
    await turn()
    assert dialling.resolver.asked == []
    assert dialling.connector.tried == ["2606:4700::1"]
    dialling.connector.attempts[0].succeed().close()
    await dialling.task


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "::ffff:10.0.0.1", "169.254.169.254", "localhost"])
async def test_dial_asks_the_policy_first(host: str) -> None:
    dialling = Dialling(host)
    assert await refused(dialling.task) is StreamReason.NOT_ALLOWED
    assert not dialling.resolver.asked
    assert not dialling.connector.attempts


async def test_dial_does_not_resolve_a_denied_name() -> None:
    dialling = Dialling("a.test", EgressPolicy(deny=["*.test"]))
    assert await refused(dialling.task) is StreamReason.NOT_ALLOWED
    assert not dialling.resolver.asked


async def test_a_name_that_resolves_to_forbidden_addresses_only() -> None:
    inside = FakeResolver(a_test=["127.0.0.1", "::1", "::ffff:127.0.0.1", "10.0.0.1", "169.254.169.254"])
    dialling = Dialling("a.test", resolver=inside)
    assert await refused(dialling.task) is StreamReason.NOT_ALLOWED
    assert not dialling.connector.attempts


async def test_a_name_that_resolves_to_forbidden_and_good_addresses() -> None:
    dialling = Dialling(
        "a.test", resolver=FakeResolver(a_test=["::1", "127.0.0.1", "8.8.8.8", "fe80::1%eth0"])
    )
    await turn()
    assert dialling.connector.tried == ["8.8.8.8"]
    dialling.connector.attempts[0].done(None, StreamReason.TIMED_OUT)
    assert await refused(dialling.task) is StreamReason.TIMED_OUT


async def test_an_answer_that_changes_is_judged_each_time() -> None:
    resolver = FakeResolver(a_test=["8.8.8.8"])
    first = Dialling("a.test", resolver=resolver)
    await turn()
    first.connector.attempts[0].succeed().close()
    await first.task
    resolver.names["a.test"] = ["127.0.0.1"]
    assert await refused(Dialling("a.test", resolver=resolver).task) is StreamReason.NOT_ALLOWED


async def test_the_names_of_only_hold_for_what_they_resolve_to() -> None:
    only = EgressPolicy(only=["a.test"])
    dialling = Dialling("a.test", only)
    await turn()
    dialling.connector.attempts[0].succeed().close()
    await dialling.task
    assert await refused(Dialling("1.1.1.1", only).task) is StreamReason.NOT_ALLOWED
    assert await refused(Dialling("b.test", only).task) is StreamReason.NOT_ALLOWED


@pytest.mark.parametrize(
    "reason", [StreamReason.NAME_NOT_FOUND, StreamReason.NAME_FAILED, StreamReason.NAME_TIMED_OUT]
)
async def test_dial_passes_the_resolvers_refusal_on(reason: StreamReason) -> None:
    assert await refused(Dialling("a.test", resolver=FakeResolver(a_test=reason)).task) is reason


async def test_a_resolver_that_takes_all_the_time() -> None:
    dialling = Dialling("silent.test", timeout=0.0)
    assert await refused(dialling.task) is StreamReason.NAME_TIMED_OUT


async def test_a_resolver_that_answers_nothing() -> None:
    assert await refused(Dialling("a.test", resolver=FakeResolver(a_test=[])).task) is StreamReason.GENERAL


async def test_a_cancelled_dial_ends_its_attempts(no_leaks: None) -> None:
    dialling = Dialling("a.test")
    await turn()
    dialling.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await dialling.task
    assert [attempt.cancelled for attempt in dialling.connector.attempts] == [True]


async def test_a_dial_cancelled_while_resolving() -> None:
    dialling = Dialling("silent.test")
    await turn()
    dialling.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await dialling.task
    assert not dialling.connector.attempts


async def test_a_winner_that_meets_a_cancellation_is_closed(no_leaks: None) -> None:
    dialling = Dialling("a.test")
    await turn()
    sock = dialling.connector.attempts[0].succeed()
    dialling.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await dialling.task
    assert sock.fileno() == -1


async def test_a_winner_after_the_cancellation_is_closed(no_leaks: None) -> None:
    dialling = Dialling("a.test")
    await turn()
    dialling.task.cancel()
    sock = dialling.connector.attempts[0].succeed()
    with pytest.raises(asyncio.CancelledError):
        await dialling.task
    assert sock.fileno() == -1


async def test_a_failure_that_meets_a_cancellation() -> None:
    dialling = Dialling("1.1.1.1")
    await turn()
    dialling.connector.attempts[0].done(None, StreamReason.CONNECTION_REFUSED)
    dialling.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await dialling.task


async def test_a_failure_after_the_cancellation() -> None:
    dialling = Dialling("1.1.1.1")
    await turn()
    dialling.task.cancel()
    dialling.connector.attempts[0].done(None, StreamReason.CONNECTION_REFUSED)
    with pytest.raises(asyncio.CancelledError):
        await dialling.task


async def test_dial_on_loopback_goes_on_after_a_refusal(listener: socket.socket, no_leaks: None) -> None:
    resolver = FakeResolver(a_test=["127.0.0.3", "127.0.0.1"])  # the listener is bound to the second only
    destination = Destination("a.test", listener.getsockname()[1])
    sock = await dial(destination, OPEN, resolver=resolver)
    assert sock.getpeername()[0] == "127.0.0.1"
    check_connected(sock, listener)


@needs_ipv6
async def test_dial_on_loopback_prefers_ipv6(no_leaks: None) -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        destination = Destination("a.test", server.getsockname()[1])
        sock = await dial(destination, OPEN, resolver=FakeResolver(a_test=["127.0.0.1", "::1"]))
        assert sock.getpeername()[0] == "::1"
        check_connected(sock, server)


async def test_dial_on_loopback_past_a_black_hole(black_hole: int, no_leaks: None) -> None:
    with socket.create_server(("127.0.0.2", black_hole)) as server:
        resolver = FakeResolver(a_test=["127.0.0.1", "127.0.0.2"])
        sock = await dial(Destination("a.test", black_hole), OPEN, resolver=resolver, attempt_delay=0.0)
        assert sock.getpeername()[0] == "127.0.0.2"
        check_connected(sock, server)


async def test_dial_on_loopback_refused(refused_port: int, no_leaks: None) -> None:
    resolver = FakeResolver(a_test=["127.0.0.1", "127.0.0.1"])
    task = asyncio.ensure_future(dial(Destination("a.test", refused_port), OPEN, resolver=resolver))
    assert await refused(task) is StreamReason.CONNECTION_REFUSED


@pytest.mark.parametrize("first", ["1.1.1.1", "1.1.1.2"])
async def test_a_fault_in_a_race_ends_it(first: str, caplog: pytest.LogCaptureFixture) -> None:
    """Who waited for it waited for ever."""
    outcome: list[StreamReason | None] = []

    def allowed(ip: str) -> bool:
        if ip == first:
            raise ZeroDivisionError
        return True

    connector = Connector()
    AddressRace(
        asyncio.get_running_loop(),
        ["1.1.1.1", "1.1.1.2"],
        1,
        allowed,
        lambda sock, reason: outcome.append(reason),
        10.0,
        0.0,
        connector,
    )
    await until(lambda: outcome)
    assert outcome == [StreamReason.GENERAL]
    assert all(attempt.cancelled for attempt in connector.attempts)
    assert len(caplog.records) == 1


class Room:
    """A SocketRoom of a size; `taken` of it is in use, `most` was."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.taken = self.most = 0

    def more(self) -> bool:
        if self.taken == self.size:
            return False
        self.taken += 1
        self.most = max(self.most, self.taken)
        return True

    def less(self) -> None:
        assert self.taken > 0
        self.taken -= 1


class Race:
    """A race of many addresses of which none answers, on the test's clock."""

    def __init__(self, room: Room, addresses: int = 12) -> None:
        self.timers = Timers()
        self.room = room
        self.connector = Connector()
        self.outcome: list[object] = []
        self.race = AddressRace(
            cast(asyncio.AbstractEventLoop, self.timers),
            [f"192.0.2.{number}" for number in range(1, addresses + 1)],
            1,
            always,
            lambda sock, reason: self.outcome.append(sock or reason),
            10.0,
            ATTEMPT_DELAY,
            self.connector,
            room,
        )

    @property
    def open(self) -> list[int]:
        """The numbers of the addresses whose attempts run."""
        return [number for number, one in enumerate(self.connector.attempts, 1) if not one.cancelled]


def test_the_sockets_of_a_race_are_bounded_and_counted() -> None:
    """There were as many as addresses, 32, and they counted as one. The ninth takes the place of the first, whose SYN
    was sent twice by then."""
    race = Race(Room(100))
    assert (race.open, race.room.taken) == ([1], 0)
    race.timers.advance(7.5 * ATTEMPT_DELAY)
    assert (race.open, race.room.taken) == (list(range(1, MAX_RUNNING + 1)), MAX_RUNNING - 1)
    race.timers.advance(4 * ATTEMPT_DELAY)
    assert (race.open, race.room.taken) == (list(range(5, 13)), MAX_RUNNING - 1)
    race.connector.attempts[-1].done(None, StreamReason.TIMED_OUT)
    assert race.room.taken == MAX_RUNNING - 2
    race.connector.attempts[4].succeed().close()
    assert race.room.taken == 0 and len(race.outcome) == 1
    assert race.open == [5, 12], "those that ended by themselves"


def test_without_room_the_next_one_waits_for_the_first() -> None:
    race = Race(Room(1))
    race.timers.advance(ATTEMPT_PATIENCE - 0.01)
    assert (race.open, race.room.taken) == ([1, 2], 1)
    race.timers.advance(0.02)
    assert (race.open, race.room.taken) == ([2, 3], 1)
    race.connector.attempts[1].done(None, StreamReason.CONNECTION_REFUSED)
    assert race.connector.tried[-1] == "192.0.2.4" and race.room.taken == 1
    race.race.cancel()
    assert race.room.taken == 0


def test_a_race_that_fails_gives_everything_back() -> None:
    race = Race(Room(100), addresses=3)
    race.timers.advance(1.0)
    for attempt in race.connector.attempts:
        attempt.done(None, StreamReason.TIMED_OUT)
    assert race.outcome == [StreamReason.TIMED_OUT] and race.room.taken == 0 and race.room.most == 2
