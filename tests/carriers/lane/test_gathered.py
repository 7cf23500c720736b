"""Many datagrams by one system call: over loopback, which delivers before a send returns."""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Iterator

import pytest

from cryprq_proxy.carriers.lane.batch import RECEIVE_SIZE
from cryprq_proxy.carriers.lane.gathered import MOST_LAYOUTS, PLACES, Gathered, OneByOne, reader

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="recvmmsg is Linux's")

type Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other,
    ):
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        one.connect(other.getsockname())
        other.setblocking(False)
        yield one, other


def test_one_call_reads_many_and_says_that_nothing_is_left(pair: Pair) -> None:
    left, right = pair
    for number in range(20):
        left.send(bytes((7, number)))
    found = Gathered(right)
    found.read(2, 30)
    assert (found.left, found.dry, found.kind) == (20, True, 7)
    assert found.head() == (2, [], left.getsockname())
    assert found.alike(30) == 20
    room = memoryview(bytearray(40))
    found.take(20, room)
    assert (bytes(room), found.left) == (b"".join(bytes((7, number)) for number in range(20)), 0)


def test_it_reads_no_more_than_it_is_asked_for(pair: Pair) -> None:
    left, right = pair
    for _ in range(PLACES + 1):
        left.send(b"1a")
    found = Gathered(right)
    found.read(2, 3)
    assert (found.left, found.dry) == (3, False)
    found.take(3, memoryview(bytearray(6)))
    found.read(2, 2 * PLACES)
    assert found.left == PLACES - 2


def test_alike_ends_at_the_first_that_differs(pair: Pair) -> None:
    left, right = pair
    for datagram in (b"1a", b"1b", b"1ccc", b"1d", b"2e", b"2f"):
        left.send(datagram)
    found, room = Gathered(right), memoryview(bytearray(8))
    found.read(2, 8)
    counts = []
    while found.left:
        counts.append(found.alike(8))
        found.take(counts[-1], room)
    assert counts == [2, 1, 1, 2]


def test_what_is_larger_than_its_place_comes_whole(pair: Pair) -> None:
    left, right = pair
    large = [bytes((number,)) * 60_000 for number in (1, 2)]
    for datagram in large:
        left.send(datagram)
    found, room = Gathered(right), memoryview(bytearray(RECEIVE_SIZE))
    found.read(1_000, 8)
    for datagram in large:
        assert found.head()[0] == len(datagram)
        found.take(1, room)
        assert room[: len(datagram)] == datagram


def test_sizes_that_change_all_the_time_are_not_kept_for_ever(pair: Pair) -> None:
    left, right = pair
    found = Gathered(right)
    for size in range(1, 2 * MOST_LAYOUTS):
        left.send(bytes(size))
        found.read(size, 1)
        found.take(1, memoryview(bytearray(size)))
        assert len(found._layouts) <= MOST_LAYOUTS


def test_nothing_waits(pair: Pair) -> None:
    for kind in (Gathered, OneByOne):
        found = kind(pair[1])
        found.read(100, 8)
        assert (found.left, found.dry) == (0, True)


def test_an_error_of_the_network_is_raised_and_changes_no_reader(pair: Pair) -> None:
    left, right = pair
    right.close()
    left.setblocking(False)
    left.send(b"nobody is there")
    found = reader(left)
    assert isinstance(found, Gathered)
    left.send(b"nobody is there")
    with pytest.raises(ConnectionRefusedError):
        found.read(100, 8)


def test_where_the_call_is_forbidden_each_datagram_is_read_by_itself(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(self: Gathered, size: int, most: int) -> None:
        raise PermissionError(errno.EPERM, "forbidden")

    monkeypatch.setattr(Gathered, "read", forbidden)
    assert isinstance(reader(pair[1]), OneByOne)
