"""One connection by several addresses: a dead one costs little, a failed one lets the next one start."""

from __future__ import annotations

import asyncio
import errno
import select
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import pytest

from cryprq_proxy.address import Destination
from cryprq_proxy.carriers.dial.tcp import Resolve, by_system, connect_tcp
from cryprq_proxy.errors import CarrierError, CryprqError

DEAD = "2001:db8::1"
OTHER_DEAD = "2001:db8::2"
DEAD_IPV4 = "192.0.2.1"
pytestmark = pytest.mark.timeout(20)

HERE = "127.0.0.1"
NAME = "exit.example"


def resolving(*addresses: str) -> Resolve:
    async def resolve(name: str) -> Sequence[str]:
        assert name == NAME
        return addresses

    return resolve


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server((HERE, 0)) as sock:
        yield sock


class Network:
    """The running loop's: addresses of documentation are black holes or fail. A timer fires as soon as the last attempt
    is found to hang, and `waited` counts the seconds that it would have taken. `tried` are the addresses in order.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loop = asyncio.get_running_loop()
        self.tried: list[str] = []
        self.given_up: list[str] = []
        self.sockets: list[socket.socket] = []
        self.waited = 0.0
        self.errors: dict[str, int] = {}
        self._timer: tuple[float, asyncio.Handle] | None = None
        self._loop = loop
        self._connect = loop.sock_connect
        monkeypatch.setattr(loop, "sock_connect", self.connect)
        monkeypatch.setattr(loop, "call_later", self.call_later)

    async def connect(self, sock: socket.socket, address: tuple[str, int]) -> None:
        host, _ = address
        self.tried.append(host)
        self.sockets.append(sock)
        if host in self.errors:
            raise OSError(self.errors[host], "what the system says")
        if host == HERE:
            await self._connect(sock, address)
            return
        if self._timer is not None:
            delay, handle = self._timer
            self.waited += delay
            self._loop.call_soon(self._fire, handle)
        try:
            await self._loop.create_future()
        finally:
            self.given_up.append(host)

    def _fire(self, handle: asyncio.Handle) -> None:
        if not handle.cancelled():
            handle._run()

    def call_later(self, delay: float, callback: Callable[..., Any], *args: Any) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self._loop)
        self._timer = (delay, handle)
        return handle


@pytest.fixture
async def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    return Network(monkeypatch)


async def reach(listener: socket.socket, *addresses: str) -> None:
    """A connection to the listener comes of these addresses, as the program wants it."""
    with await connect_tcp(Destination(NAME, listener.getsockname()[1]), resolving(*addresses)) as sock:
        assert sock.getpeername() == listener.getsockname()
        assert not sock.getblocking()
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def refused(*addresses: str, mark: int = 0) -> str:
    with pytest.raises(CarrierError) as caught:
        await connect_tcp(Destination(NAME, 4433), resolving(*addresses), mark)
    return str(caught.value)


@pytest.mark.parametrize(
    ("addresses", "tried"),
    [
        ((DEAD, HERE), [DEAD, HERE]),
        ((DEAD, OTHER_DEAD, HERE), [DEAD, HERE]),  # the families take turns
        ((DEAD, DEAD, HERE), [DEAD, HERE]),
        ((DEAD_IPV4, HERE), [DEAD_IPV4, HERE]),
    ],
)
async def test_a_dead_address_in_front_costs_half_a_second_at_most(
    network: Network, listener: socket.socket, addresses: tuple[str, ...], tried: list[str]
) -> None:
    await reach(listener, *addresses)
    assert network.tried == tried
    assert network.given_up == tried[:-1]
    assert 0.1 <= network.waited <= 0.5
    assert [sock.fileno() for sock in network.sockets] == [-1, -1]


async def test_an_address_that_answers_waits_for_no_other(network: Network, listener: socket.socket) -> None:
    await reach(listener, HERE, DEAD)
    assert network.tried == [HERE]


@pytest.mark.parametrize("number", [errno.ENETUNREACH, errno.ECONNREFUSED, errno.EHOSTUNREACH])
async def test_a_failed_address_lets_the_next_one_start(
    network: Network, listener: socket.socket, number: int
) -> None:
    network.errors[DEAD] = number
    await reach(listener, DEAD, HERE)
    assert network.tried == [DEAD, HERE]


async def test_a_socket_that_cannot_be_had_is_one_failed_address(
    network: Network, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a kernel without IPv6."""
    real = socket.socket

    def only_ipv4(family: int, kind: int, protocol: int) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return real(family, kind, protocol)

    monkeypatch.setattr(socket, "socket", only_ipv4)
    await reach(listener, DEAD, HERE)
    assert network.tried == [HERE]
    assert await refused(DEAD) == (
        f"the exit at {NAME}:4433 cannot be reached: address family not supported by protocol"
    )


async def test_no_descriptors_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(family: int, kind: int, protocol: int) -> socket.socket:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket, "socket", none_left)
    assert (await refused(DEAD, HERE)).endswith("cannot be reached: too many open files")


async def test_a_mark_that_is_not_allowed_leaves_no_socket_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[socket.socket] = []

    class Unmarkable(socket.socket):
        def setsockopt(self, *args: Any) -> None:
            opened.append(self)
            assert args == (socket.SOL_SOCKET, socket.SO_MARK, 7)
            raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(socket, "socket", Unmarkable)
    assert (await refused(HERE, mark=7)).endswith("cannot be reached: operation not permitted")
    assert [sock.fileno() for sock in opened] == [-1]


async def test_every_reason_is_said_once(network: Network) -> None:
    network.errors = {
        DEAD: errno.ENETUNREACH,
        OTHER_DEAD: errno.ENETUNREACH,
        DEAD_IPV4: errno.ECONNREFUSED,
    }
    assert await refused(DEAD, OTHER_DEAD, DEAD_IPV4) == (
        f"the exit at {NAME}:4433 cannot be reached: network is unreachable, connection refused"
    )


async def test_a_name_without_an_address() -> None:
    assert await refused() == f"the name {NAME} could not be resolved: it has no address"


async def test_what_the_resolver_says_is_passed_on() -> None:
    async def resolve(name: str) -> Sequence[str]:
        raise CryprqError("no resolver answers")

    with pytest.raises(CarrierError, match=r"^no resolver answers$"):
        await connect_tcp(Destination(NAME, 1), resolve)


async def test_an_address_needs_no_resolver(listener: socket.socket) -> None:
    (await connect_tcp(Destination(*listener.getsockname()), resolving())).close()


async def test_an_address_without_a_route_is_reached_by_nat64(
    network: Network, listener: socket.socket
) -> None:
    network.errors[DEAD_IPV4] = errno.ENETUNREACH
    port = listener.getsockname()[1]
    found: list[str] = [HERE]
    asked: list[str] = []

    async def translate(name: str) -> Sequence[str]:
        asked.append(name)
        return found

    with await connect_tcp(Destination(DEAD_IPV4, port), translate) as sock:
        assert sock.getpeername() == listener.getsockname()
    assert asked == [DEAD_IPV4]
    found.clear()
    with pytest.raises(CarrierError, match="network is unreachable, and this network's DNS names no NAT64"):
        await connect_tcp(Destination(DEAD_IPV4, port), translate)
    network.errors[DEAD_IPV4] = errno.ECONNREFUSED
    with pytest.raises(CarrierError, match=r"connection refused$"):
        await connect_tcp(Destination(DEAD_IPV4, port), translate)
    assert asked == [DEAD_IPV4] * 2


async def test_the_system_translates_by_a_name_that_all_know(monkeypatch: pytest.MonkeyPatch) -> None:
    async def known(name: str, *args: object, **options: object) -> object:
        assert name == "ipv4only.arpa"
        return [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("64:ff9b::c000:aa", 0, 0, 0))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", known)
    assert await by_system("192.0.2.33") == ("64:ff9b::c000:221",)


async def test_both_sides_keep_to_the_largest_segment(listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    with await connect_tcp(Destination(host, port), segment=1024) as sock, listener.accept()[0] as other:
        sizes = [end.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) for end in (sock, other)]
    assert all(size <= 1024 for size in sizes)


async def test_who_gives_up_leaves_no_socket_behind(network: Network) -> None:
    dialling = asyncio.ensure_future(connect_tcp(Destination(NAME, 1), resolving(DEAD, DEAD_IPV4)))
    while len(network.tried) < 2:
        await asyncio.sleep(0)
    dialling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await dialling
    assert [sock.fileno() for sock in network.sockets] == [-1, -1]


async def test_the_systems_resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    assert HERE in await by_system("localhost")

    async def no_such(*args: object, **options: object) -> object:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", no_such)
    with pytest.raises(CarrierError, match=r"^the name exit\.example could not be resolved: \S+"):
        await by_system(NAME)


async def test_a_host_that_takes_no_more_connections_is_passed_over(listener: socket.socket) -> None:
    """The real thing: the queue of the first address is full, so the kernel drops what comes; on Linux."""
    port = listener.getsockname()[1]
    with ExitStack() as stack:
        silent = stack.enter_context(socket.create_server(("127.0.0.2", port), backlog=0))
        while True:
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(silent.getsockname())
            if not select.select([], [waiting], [], 0)[1]:
                break
        await reach(listener, "127.0.0.2", HERE)
