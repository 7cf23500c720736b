"""The dialer: one literal on real loopback sockets, names on a fake resolver and a scripted connector."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Iterator, Sequence

import pytest

from cryprq_proxy.address import Destination
from cryprq_proxy.base.sockets import UNSENT
from cryprq_proxy.errors import StreamReason, StreamRefused
from cryprq_proxy.exit.egress_policy import EgressPolicy
from cryprq_proxy.outbound.dialer import CONNECT_REASONS, connect_literal, dial
from tests.support.connectors import NEVER, Connector, Outcome, plenty, turn
from tests.support.targets import has_ipv6

OPEN = EgressPolicy(allow_private=True)

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

    def remembered(self, name: str) -> Sequence[str] | None:
        return None


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
                turn=plenty(),
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
    sock = await dial(destination, OPEN, turn=plenty(), resolver=resolver)
    assert sock.getpeername()[0] == "127.0.0.1"
    check_connected(sock, listener)


@needs_ipv6
async def test_dial_on_loopback_prefers_ipv6(no_leaks: None) -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        destination = Destination("a.test", server.getsockname()[1])
        sock = await dial(
            destination, OPEN, turn=plenty(), resolver=FakeResolver(a_test=["127.0.0.1", "::1"])
        )
        assert sock.getpeername()[0] == "::1"
        check_connected(sock, server)


async def test_dial_on_loopback_past_a_black_hole(black_hole: int, no_leaks: None) -> None:
    with socket.create_server(("127.0.0.2", black_hole)) as server:
        resolver = FakeResolver(a_test=["127.0.0.1", "127.0.0.2"])
        sock = await dial(
            Destination("a.test", black_hole), OPEN, turn=plenty(), resolver=resolver, attempt_delay=0.0
        )
        assert sock.getpeername()[0] == "127.0.0.2"
        check_connected(sock, server)


async def test_dial_on_loopback_refused(refused_port: int, no_leaks: None) -> None:
    resolver = FakeResolver(a_test=["127.0.0.1", "127.0.0.1"])
    task = asyncio.ensure_future(
        dial(Destination("a.test", refused_port), OPEN, turn=plenty(), resolver=resolver)
    )
    assert await refused(task) is StreamReason.CONNECTION_REFUSED
