"""TUN devices: the drain and its fall-backs on a pair of sockets, and real devices in namespaces of their own.

A namespace here has no name: it belongs to threads that entered it and to the descriptors made in it, and the kernel
removes it, devices and all, with the last of them. So nothing is left behind, whatever happens to the test.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
import socket
import struct
import subprocess
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from ipaddress import ip_interface
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from pyroute2 import AsyncIPRoute

from cryprq_proxy.base.changes import NoChanges
from cryprq_proxy.errors import ConfigError
from cryprq_proxy.lane.slices import EXPRESS, HEADROOM, MAX_PACKET, Run, Shape
from tests.support.super_packets import KINDS, PAYLOAD, Flow, segments, super_packet
from tests.support.udp_packets import udp
from tun.device.device import BUFFERS, QUEUE_BYTES, READS_PER_WAKEUP, PacketDevice, Reading
from tun.device.kept import DeviceFact
from tun.device.offload import COMPLETE, GSO_MAX_SEGS, GSO_MAX_SIZE, UNSUMMED, VNET, VNET_SIZE
from tun.device.packets import ICMP, TCP, UDP, Drop
from tun.linux.device import Tun

TSO = 0x07
USO = 0x60
NO_LAB = (
    "needs root" if os.geteuid() else "" if Path("/dev/net/tun").exists() else "there is no /dev/net/tun here"
)
lab = pytest.mark.skipif(bool(NO_LAB), reason=NO_LAB)


class Namespace:
    """A network namespace; `run` does something inside of it, on a thread of its own."""

    def __init__(self) -> None:
        self._fd = self._thread(self._make)

    def run[T](self, function: Callable[[], T]) -> T:
        def inside() -> T:
            os.setns(self._fd, os.CLONE_NEWNET)
            return function()

        return self._thread(inside)

    def close(self) -> None:
        os.close(self._fd)

    @staticmethod
    def _make() -> int:
        os.unshare(os.CLONE_NEWNET)
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    @staticmethod
    def _thread[T](function: Callable[[], T]) -> T:
        results: list[T] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                results.append(function())
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        return results[0]


@pytest.fixture
def namespaces() -> Iterator[tuple[Namespace, Namespace]]:
    with contextlib.ExitStack() as stack:
        pair = Namespace(), Namespace()
        for namespace in pair:
            stack.callback(namespace.close)
        yield pair


def lost(error: OSError) -> None:
    raise error


def nothing() -> None:
    pass


class Inbox:
    """Collects what a device hands over."""

    def __init__(self) -> None:
        self.packets: list[tuple[bytes, Shape]] = []
        self.wakeups: list[int] = []
        self.changed = asyncio.Event()

    def take(self, buffer: memoryview, start: int, end: int, shape: Shape) -> None:
        assert start >= HEADROOM
        self.packets.append((bytes(buffer[start:end]), shape))

    def drained(self) -> None:
        self.wakeups.append(len(self.packets))
        self.changed.set()

    async def until(self, count: int) -> list[tuple[bytes, Shape]]:
        while len(self.packets) < count:
            self.changed.clear()
            await self.changed.wait()
        return self.packets


@pytest.fixture
async def pair() -> AsyncIterator[Callable[[int | None], tuple[Tun, socket.socket]]]:
    """Makes a Tun on one end of a socket pair that keeps messages apart, and gives the other: the "kernel"."""
    with contextlib.ExitStack() as stack:

        def make(offloads: int | None) -> tuple[Tun, socket.socket]:
            near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            near.setblocking(False)
            far.setblocking(False)
            stack.callback(far.close)
            tun = Tun(near.detach(), "fake0", 1400, offloads)
            stack.callback(tun.close)
            return tun, far

        yield make


type Pair = Callable[[int | None], tuple[Tun, socket.socket]]


@pytest.mark.parametrize(("protocol", "shape"), [(TCP, COMPLETE), (UDP, Shape(EXPRESS, 0, 0))])
async def test_a_drain_is_bounded_and_comes_back(pair: Pair, protocol: int, shape: Shape) -> None:
    tun, kernel = pair(None)
    count = READS_PER_WAKEUP + 5
    sent = [small(protocol, number) for number in range(count)]
    for packet in sent:
        kernel.send(packet)
    inbox = Inbox()
    tun.start(asyncio.get_running_loop(), inbox.take, inbox.drained, lost)
    packets = await inbox.until(count)
    assert packets == [(packet, shape) for packet in sent]
    assert inbox.wakeups == [READS_PER_WAKEUP, count]
    assert (tun.status().read_packets, tun.status().read_bytes) == (
        count,
        sum(len(packet) for packet, _ in packets),
    )
    tun.stop()
    kernel.send(b"later")
    await asyncio.sleep(0)
    assert len(inbox.packets) == count
    inbox.changed.clear()
    tun.start(asyncio.get_running_loop(), inbox.take, inbox.drained, lost)
    assert (await inbox.until(count + 1))[-1] == (b"later", COMPLETE)


async def test_a_turn_hands_on_so_many_bytes_and_the_rest_in_the_next() -> None:
    big = [bytes((0x45, *[number] * 59_999)) for number in range(4)]
    taken: list[bytes] = []
    file: Any = Packets(*big)
    loop = Mock(asyncio.AbstractEventLoop)
    reading = reading_of(file, loop, lambda buffer, start, end, shape: taken.append(bytes(buffer[start:end])))
    reading._readable()
    assert taken == big[:3]  # 120,000 bytes were not enough yet
    loop.call_soon.assert_called_once_with(reading._next_turn)
    reading._readable()  # the turn that was promised has not been yet
    assert taken == big[:3]
    reading._next_turn()
    assert taken == big
    assert (reading.packets, reading.bytes) == (4, 240_000)
    loop.call_soon.assert_called_once()


@pytest.mark.parametrize("protocol", [UDP, ICMP])
async def test_what_waits_is_bounded_and_what_is_urgent_overtakes_it(protocol: int) -> None:
    """A queue of super-packets in front of a ping would be a queue of milliseconds."""
    sent = 3 * QUEUE_BYTES // 60_000
    taken: list[bytes] = []
    drops: Counter[Drop] = Counter()
    file: Any = Packets(*(bytes((0x45, *[number] * 59_999)) for number in range(sent)))
    loop = Mock(asyncio.AbstractEventLoop)
    reading = reading_of(
        file, loop, lambda buffer, start, end, shape: taken.append(bytes(buffer[start:end])), drops
    )
    turn = reading._readable
    while file.packets:
        turn()
        turn = reading._next_turn
        assert reading._held <= QUEUE_BYTES + 60_000
    waited = len(reading._waiting)
    assert waited > QUEUE_BYTES // 60_000 - 4
    assert drops == {Drop.QUEUE: sent - waited - len(taken)}
    urgent = small(protocol, 1)
    file.packets += [small(TCP, 1), urgent]
    before = len(taken)
    turn()
    assert taken[before] == urgent and urgent not in taken[before + 1 :]


async def test_small_datagrams_pass_others_and_none_of_their_own_flow() -> None:
    taken: list[tuple[bytes, Shape]] = []
    large, small_of_it, call = (
        udp(b"x" * 1200),
        udp(b"x" * 60),
        udp(b"x" * 60, port=9),
    )
    download = [bytes((0x45, *[number] * 59_999)) for number in range(4)]
    file: Any = Packets(*download, large, small_of_it, call)
    loop = Mock(asyncio.AbstractEventLoop)

    def take(buffer: memoryview, start: int, end: int, shape: Shape) -> None:
        taken.append((bytes(buffer[start:end]), shape))

    reading = reading_of(file, loop, take)
    reading._readable()
    reading._next_turn()
    assert taken[0] == (call, Shape(EXPRESS, 0, 0))
    assert taken[1:] == [(packet, COMPLETE) for packet in (*download, large, small_of_it)]


async def test_further_small_packets_wait_in_the_kernel_s_queue() -> None:
    packets = [bytes((0x45, number, *[TCP] * 9_998)) for number in range(2 * BUFFERS - 1)]
    taken: list[bytes] = []
    drops: Counter[Drop] = Counter()
    file: Any = Packets(*packets)
    loop = Mock(asyncio.AbstractEventLoop)
    reading = reading_of(
        file, loop, lambda buffer, start, end, shape: taken.append(bytes(buffer[start:end])), drops
    )
    longest, turn = 0, reading._readable
    while len(taken) < len(packets):
        turn()
        turn = reading._next_turn
        longest = max(longest, len(reading._waiting))
    assert longest < BUFFERS
    assert len(reading._spare) <= BUFFERS
    assert taken == packets
    assert not drops


async def test_a_callback_may_close_the_device(pair: Pair) -> None:
    tun, kernel = pair(None)
    kernel.send(b"one")
    kernel.send(b"two")
    closed = asyncio.Event()

    def take(buffer: memoryview, start: int, end: int, shape: Shape) -> None:
        assert not closed.is_set()
        tun.close()
        closed.set()

    tun.start(asyncio.get_running_loop(), take, nothing, lost)
    await closed.wait()
    tun.close()


def small(protocol: int, number: int) -> bytes:
    """An IPv4 packet without payload, as far as the drain looks at it."""
    return struct.pack(">BBHHHBBHII8x", 0x45, 0, 28, number, 0, 64, protocol, 0, 1, 2)


def reading_of(
    file: Any,
    loop: Any,
    take: Callable[[memoryview, int, int, Shape], None],
    drops: Counter[Drop] | None = None,
) -> Reading:
    return Reading(
        file, 0, lambda *_: COMPLETE, Counter() if drops is None else drops, loop, take, nothing, lost
    )


class GoneFile:
    """A descriptor that is readable for ever and gives errors: a device that was removed."""

    def __init__(self) -> None:
        self._near, self._far = socket.socketpair()
        self._far.send(b"x")

    def fileno(self) -> int:
        return self._near.fileno()

    def readinto(self, buffer: memoryview) -> int:
        raise OSError(errno.EBADFD, "File descriptor in bad state")

    def close(self) -> None:
        self._near.close()
        self._far.close()


async def test_a_device_that_is_gone_is_told_once_and_read_no_more() -> None:
    file: Any = GoneFile()
    errors: list[OSError] = []
    told = asyncio.Event()
    inbox = Inbox()

    def gone(error: OSError) -> None:
        errors.append(error)
        told.set()

    reading = Reading(
        file,
        0,
        lambda *_: COMPLETE,
        Counter(),
        asyncio.get_running_loop(),
        inbox.take,
        inbox.drained,
        gone,
    )
    await told.wait()
    for _ in range(3):
        await asyncio.sleep(0)
    assert [error.errno for error in errors] == [errno.EBADFD]
    assert (reading.packets, inbox.packets) == (0, [])
    reading.stop()
    file.close()


class Packets:
    """A descriptor that gives each of some packets."""

    def __init__(self, *packets: bytes) -> None:
        self.packets = list(packets)

    def fileno(self) -> int:
        return -1

    def readinto(self, buffer: memoryview) -> int | None:
        if not self.packets:
            return None
        packet = self.packets.pop(0)
        buffer[: len(packet)] = packet
        return len(packet)


def test_a_fault_drops_a_packet_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """The next turn takes the rest."""
    file: Any = Packets(b"bad", b"good", b"bad", b"good")
    taken: list[bytes] = []

    def take(buffer: memoryview, start: int, end: int, shape: Shape) -> None:
        packet = bytes(buffer[start:end])
        if packet == b"bad":
            raise ZeroDivisionError
        taken.append(packet)

    loop = Mock(asyncio.AbstractEventLoop)
    reading = Reading(file, 0, lambda *_: COMPLETE, Counter(), loop, take, lambda: taken.append(b"."), lost)
    reading._readable()
    for _ in range(2):
        reading._next_turn()
    assert b"".join(taken) == b"goodgood."
    assert reading.packets == 4
    [record] = caplog.records
    assert record.getMessage() == "a fault in this program drops packets of the interface"


async def test_reading_with_and_without_offloads(pair: Pair) -> None:
    flow = Flow(4, TCP, PAYLOAD, 1400)
    inbox = Inbox()
    tun, kernel = pair(TSO)
    kernel.send(VNET.pack(1, 1, 0, 1400, 20, 16) + super_packet(flow))
    kernel.send(VNET.pack(1, 0x81, 0, 1400, 20, 16) + super_packet(flow))  # ECN, which we did not ask for
    kernel.send(b"short")
    kernel.send(VNET.pack(0, 0, 0, 0, 0, 0) + segments(flow)[0])
    tun.start(asyncio.get_running_loop(), inbox.take, inbox.drained, lost)
    assert await inbox.until(2) == [(super_packet(flow), flow.shape), (segments(flow)[0], COMPLETE)]
    assert tun.drops == {Drop.OFFLOAD: 1, Drop.SHORT: 1}
    status = tun.status()
    assert status.reads == ("csum", "tso4", "tso6")
    assert status.writes == ("tso4", "tso6")
    assert status.drops == {"bad offload description": 1, "shorter than its headers": 1}
    assert status.read_packets == 2


def put(tun: PacketDevice, packet: bytes, shape: Shape) -> bool:
    buffer = memoryview(bytearray(HEADROOM) + packet)
    return tun.write(buffer, HEADROOM, HEADROOM + len(packet), shape)


def received(kernel: socket.socket) -> list[bytes]:
    messages = []
    with contextlib.suppress(BlockingIOError):
        while True:
            messages.append(kernel.recv(VNET_SIZE + MAX_PACKET))
    return messages


@pytest.mark.parametrize(("version", "protocol"), KINDS)
async def test_writing_with_and_without_offloads(pair: Pair, version: int, protocol: int) -> None:
    flow = Flow(version, protocol, PAYLOAD, 1400)
    offset = 16 if protocol == TCP else 6
    kind = flow.flags_and_type[1]
    whole = VNET.pack(1, kind, flow.header, 1400, flow.network, offset) + super_packet(flow)
    plain = [bytes(VNET_SIZE) + segment for segment in segments(flow)]

    tun, kernel = pair(TSO | USO)
    assert put(tun, super_packet(flow), flow.shape)
    assert received(kernel) == [whole]
    assert (tun.written_packets, tun.written_bytes) == (1, len(super_packet(flow)))

    tun, kernel = pair(TSO)
    assert put(tun, super_packet(flow), flow.shape)
    assert received(kernel) == (plain if protocol == UDP else [whole])

    tun, kernel = pair(None)
    assert put(tun, super_packet(flow), flow.shape)
    assert received(kernel) == segments(flow)
    assert tun.written_packets == len(plain)
    one = Flow(version, protocol, b"x" * 99, 1400)
    assert put(tun, super_packet(one), UNSUMMED)
    assert received(kernel) == segments(one)


async def test_a_run_that_does_not_fit_is_counted(pair: Pair) -> None:
    tun, kernel = pair(TSO)
    flow = Flow(4, TCP, PAYLOAD, 1400)
    buffer = memoryview(bytearray(HEADROOM) + super_packet(flow)[: flow.header + 1400])
    assert tun.write_run(buffer, HEADROOM, len(buffer), Run(flow.shape, 1, 1, 4))
    assert len(received(kernel)) == 1
    assert not tun.write_run(buffer, HEADROOM, len(buffer), Run(flow.shape, 1, 2, 4))
    assert received(kernel) == []
    assert tun.drops == {Drop.LENGTH: 1}


async def test_a_full_queue_drops_and_counts(pair: Pair) -> None:
    tun, _ = pair(None)
    while put(tun, bytes(4096), COMPLETE):
        pass
    assert tun.drops == {Drop.BUSY: 1}


class Choosy(Tun):
    """A device whose kernel refuses super-packets: all of them, or those after the first."""

    def __init__(self, fd: int, accepted: int) -> None:
        super().__init__(fd, "fake0", 1400, TSO)
        self.accepted = accepted
        self.tried = 0

    def _write_message(self, message: memoryview, size: int) -> int:
        if message[1]:
            self.tried += 1
            if self.tried > self.accepted:
                return errno.EINVAL
        return super()._write_message(message, size)


def test_super_packets_are_cut_once_the_kernel_refuses_them() -> None:
    flow = Flow(4, TCP, PAYLOAD, 1400)
    near, kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    near.setblocking(False)
    kernel.setblocking(False)
    plain = [bytes(VNET_SIZE) + segment for segment in segments(flow)]
    with kernel, contextlib.closing(Choosy(near.detach(), 0)) as tun:
        for _ in range(2):
            assert put(tun, super_packet(flow), flow.shape)
            assert received(kernel) == plain
        assert tun.tried == 1
        assert tun.status().writes == ("tso6",)


def test_one_strange_super_packet_does_not_end_offload() -> None:
    flow = Flow(4, TCP, PAYLOAD, 1400)
    near, kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    near.setblocking(False)
    kernel.setblocking(False)
    with kernel, contextlib.closing(Choosy(near.detach(), 1)) as tun:
        assert put(tun, super_packet(flow), flow.shape)
        assert put(tun, super_packet(flow), flow.shape)
        assert len(received(kernel)) == 1 + flow.of
        tun.accepted = 9
        assert put(tun, super_packet(flow), flow.shape)
        assert len(received(kernel)) == 1
        assert tun.status().writes == ("tso4", "tso6")


@pytest.mark.parametrize("name", ["", "a" * 16, "a/b", "a b", "tun%d", "a:b", "a\n"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(ConfigError, match="no name for a network device"):
        Tun.open(name, mtu=1400)


@pytest.mark.parametrize("mtu", [0, 1279, 65536])
def test_an_mtu_out_of_range(mtu: int) -> None:
    with pytest.raises(ConfigError, match="MTU"):
        Tun.open("cqt0", mtu=mtu)


def test_no_device_and_no_right(monkeypatch: pytest.MonkeyPatch) -> None:
    for number, text in (
        (errno.ENOENT, "load the kernel module tun"),
        (errno.ENXIO, "load the kernel module tun"),
        (errno.EACCES, "run as root"),
    ):

        def refuse(*_: object, number: int = number) -> int:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "open", refuse)
        with pytest.raises(ConfigError, match=text):
            Tun.open("cqt0", mtu=1400)


# Real devices from here on.

OURS4, THEIRS4 = ip_interface("198.18.7.1/32"), ip_interface("198.18.7.2/32")
OURS6, THEIRS6 = ip_interface("fd63:7279:7071:7::1/128"), ip_interface("fd63:7279:7071:7::2/128")


async def links(name: str) -> list[Any]:
    async with AsyncIPRoute() as netlink:
        return [link async for link in await netlink.get_links(ifname=name)]


async def routed(name: str) -> None:
    """A default route of both families into the device."""
    async with AsyncIPRoute() as netlink:
        index = (await netlink.link_lookup(ifname=name))[0]
        for destination in ("0.0.0.0/0", "::/0"):
            await netlink.route("add", dst=destination, oif=index)


def opened(namespace: Namespace, name: str, offload: bool, *addresses: Any, mtu: int = 1400) -> Tun:
    """A configured device with a default route in a namespace."""

    async def configure(tun: Tun) -> None:
        assert await tun.configure(addresses) == addresses
        await routed(name)

    def inside() -> Tun:
        tun = Tun.open(name, mtu=mtu, offload=offload)
        asyncio.run(configure(tun))
        return tun

    return namespace.run(inside)


@pytest.mark.root
@lab
def test_a_device_is_set_up_as_asked(namespaces: tuple[Namespace, Namespace]) -> None:
    async def look(tun: Tun) -> None:
        assert await tun.configure([OURS4, OURS6]) == (OURS4, OURS6)
        (link,) = await links("cqt0")
        assert link["flags"] & 1
        for attribute, value in (
            ("IFLA_MTU", 1400),
            ("IFLA_TXQLEN", 1000),
            ("IFLA_GSO_MAX_SIZE", GSO_MAX_SIZE),
            ("IFLA_GSO_MAX_SEGS", GSO_MAX_SEGS),
        ):
            assert link.get_attr(attribute) == value, attribute
        legacy = link.get_attr("IFLA_GSO_IPV4_MAX_SIZE")
        assert legacy in (None, GSO_MAX_SIZE)
        assert await tun.configure([THEIRS4, OURS6]) == (THEIRS4, OURS6)  # another address from the exit
        await tun.set_mtu(1300)
        assert tun.mtu == 1300
        async with AsyncIPRoute() as netlink:
            present = {
                (message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS"), message["prefixlen"])
                async for message in await netlink.get_addr(index=link["index"])
            }
        assert present == {(str(THEIRS4.ip), 32), (str(OURS6.ip), 128)}
        (link,) = await links("cqt0")
        assert link.get_attr("IFLA_MTU") == 1300
        with pytest.raises(ConfigError, match="MTU"):
            await tun.set_mtu(1000)

    def inside() -> None:
        tun = Tun.open("cqt0", mtu=1400)
        with pytest.raises(ConfigError, match="there is a network device cqt0 already"):
            Tun.open("cqt0", mtu=1400)
        with pytest.raises(ConfigError, match="there is a network device lo already"):
            Tun.open("lo", mtu=1400)
        asyncio.run(look(tun))
        tun.close()
        with pytest.raises(ConfigError, match="removed the device"):
            asyncio.run(tun.configure([OURS4]))
        Tun.open("cqt0", mtu=1400, offload=False).close()  # the name is free again

    namespaces[0].run(inside)


@pytest.mark.root
@lab
def test_a_kernel_without_ipv6_gets_ipv4_alone(namespaces: tuple[Namespace, Namespace]) -> None:
    def inside() -> None:
        tun = Tun.open("cqt0", mtu=1400)
        Path("/proc/sys/net/ipv6/conf/cqt0/disable_ipv6").write_text("1")
        assert asyncio.run(tun.configure([OURS4, OURS6])) == (OURS4,)
        tun.close()

    namespaces[0].run(inside)


@pytest.mark.root
@lab
def test_what_others_change_at_a_device_is_put_back(namespaces: tuple[Namespace, Namespace]) -> None:
    def ip(command: str) -> None:
        subprocess.run(["ip", *command.split()], check=True)

    async def inside() -> None:
        tun = Tun.open("cqt0", mtu=1400)
        await tun.configure([OURS4, OURS6])
        fact = DeviceFact(tun, NoChanges)
        for commands, found in (
            (["addr flush dev cqt0"], f"the address {OURS4} was removed, the address {OURS6} was removed"),
            (["link set cqt0 down"], f"it was down, the address {OURS6} was removed"),
            (["link set cqt0 down", "link set cqt0 name other0 up"], "it was renamed to other0"),
            (["link set cqt0 mtu 1300"], "its MTU was 1300"),
            (["link set cqt0 multicast on"], "it took multicast"),
        ):
            assert await fact.look() == ""
            for command in commands:
                ip(command)
            assert found.split(", ")[0] in await fact.look()
            await fact.put_back()
        assert await fact.look() == ""
        Path("/proc/sys/net/ipv6/conf/cqt0/disable_ipv6").write_text("1")
        assert await fact.look() == f"the address {OURS6} was removed"
        await fact.put_back()
        assert await fact.look() == ""
        tun.close()
        with pytest.raises(ConfigError, match="removed the device"):
            await fact.look()

    namespaces[0].run(lambda: asyncio.run(inside()))


@pytest.mark.root
@lab
async def test_a_device_that_somebody_removes(namespaces: tuple[Namespace, Namespace]) -> None:
    tun = opened(namespaces[0], "cqt0", True, OURS4)
    gone: asyncio.Future[OSError] = asyncio.get_running_loop().create_future()
    inbox = Inbox()
    tun.start(asyncio.get_running_loop(), inbox.take, inbox.drained, gone.set_result)

    async def remove() -> None:
        async with AsyncIPRoute() as netlink:
            await netlink.link("del", index=(await netlink.link_lookup(ifname="cqt0"))[0])

    namespaces[0].run(lambda: asyncio.run(remove()))
    assert (await gone).errno == errno.EBADFD
    assert not put(tun, segments(Flow(4, TCP, b"x", 9))[0], COMPLETE)
    assert tun.drops[Drop.REFUSED] == 1
    tun.close()


@pytest.mark.root
@lab
@pytest.mark.parametrize(("version", "protocol"), KINDS)
async def test_the_kernel_cuts_super_packets_as_we_do(
    namespaces: tuple[Namespace, Namespace], version: int, protocol: int
) -> None:
    """A super-packet written to a device with offloads is forwarded to one without: the kernel has to cut it."""
    namespace = namespaces[0]
    near = opened(namespace, "cqt0", True, OURS4, OURS6)

    async def reach() -> None:
        async with AsyncIPRoute() as netlink:
            index = (await netlink.link_lookup(ifname="cqt1"))[0]
            for destination in ("198.51.100.0/24", "2001:db8:ffff::/48"):
                await netlink.route("add", dst=destination, oif=index)

    def inside() -> Tun:
        for knob in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            Path(f"/proc/sys/net/{knob}").write_text("1")
        tun = Tun.open("cqt1", mtu=1500, offload=False)
        asyncio.run(tun.configure([THEIRS4, THEIRS6]))
        asyncio.run(reach())
        return tun

    far = namespace.run(inside)
    inbox = Inbox()
    far.start(asyncio.get_running_loop(), inbox.take, inbox.drained, lost)
    flow = Flow(version, protocol, PAYLOAD * 3, 1400)
    ahead = super_packet(flow)
    if version == 4:  # one hop more, which the kernel will take off
        head = bytearray(ahead[:20])
        head[8] += 1
        head[10] -= 1
        ahead = bytes(head) + ahead[20:]
    else:
        ahead = ahead[:7] + bytes([ahead[7] + 1]) + ahead[8:]
    assert put(near, ahead, flow.shape)
    expected = segments(flow)
    got: list[bytes] = []
    while len(got) < len(expected):
        await inbox.until(len(inbox.packets) + 1)
        got = [
            packet
            for packet, _ in inbox.packets
            if packet[0] >> 4 == version and packet[9 if version == 4 else 6] == protocol
        ]
    assert got == expected
    near.close()
    far.close()


class Wire:
    """Carries what one device reads to another, like the lane: in slices, some of which get lost."""

    def __init__(self, out: Tun, loss: random.Random | None, in_software: bool) -> None:
        self.out = out
        self.loss = loss
        self.super_packets = self.partial = self.lost = 0
        self.in_software = in_software
        if in_software:
            out._whole = dict.fromkeys(out._whole, False)

    def carry(self, buffer: memoryview, start: int, end: int, shape: Shape) -> None:
        _, gso_size, header = shape
        if not gso_size:
            self.out.write_run(buffer, start, end, Run(shape, 0, 1, 1))
            return
        self.super_packets += 1
        of = -(-(end - start - header) // gso_size)
        keep = [self.loss is None or self.loss.random() > 0.02 for _ in range(of)]
        self.lost += keep.count(False)
        headers, payload = bytes(buffer[start : start + header]), bytes(buffer[start + header : end])
        first = 0
        while first < of:
            count = 0
            while first + count < of and keep[first + count]:
                count += 1
            if count:
                self.partial += count < of
                piece = headers + payload[first * gso_size : (first + count) * gso_size]
                room = memoryview(bytearray(HEADROOM) + piece)
                assert self.out.write_run(room, HEADROOM, len(room), Run(shape, first, count, of)), (
                    self.out.drops
                )
            first += count + 1


DATA = random.Random(1).randbytes(1 << 16)
BLOCKS = 64


async def transfer(namespaces: tuple[Namespace, Namespace], version: int) -> None:
    """4 MiB each way over TCP, compared byte by byte."""
    loop = asyncio.get_running_loop()
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    ours, theirs = (OURS4, THEIRS4) if version == 4 else (OURS6, THEIRS6)

    def endpoint() -> socket.socket:
        end = socket.socket(family)
        end.setblocking(False)
        return end

    async def send(end: socket.socket) -> None:
        for _ in range(BLOCKS):
            await loop.sock_sendall(end, DATA)

    async def receive(end: socket.socket) -> None:
        left = b""
        for _ in range(BLOCKS):
            while len(left) < len(DATA):
                more = await loop.sock_recv(end, 1 << 20)
                assert more
                left += more
            assert left[: len(DATA)] == DATA
            left = left[len(DATA) :]
        assert left == b""

    with namespaces[0].run(endpoint) as near, namespaces[1].run(endpoint) as listener:
        near.bind((str(ours.ip), 0))
        listener.bind((str(theirs.ip), 4433))
        listener.listen()
        await loop.sock_connect(near, (str(theirs.ip), 4433))
        far, _ = await loop.sock_accept(listener)
        with far:
            far.setblocking(False)
            await asyncio.gather(send(near), receive(far), send(far), receive(near))


@pytest.mark.root
@lab
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("mode", ["offloads", "lossy", "cut by us", "without offloads"])
async def test_tcp_between_two_namespaces(
    namespaces: tuple[Namespace, Namespace], version: int, mode: str
) -> None:
    offload = mode != "without offloads"
    near = opened(namespaces[0], "cqt0", offload, OURS4, OURS6)
    far = opened(namespaces[1], "cqt1", offload, THEIRS4, THEIRS6)
    loss = random.Random(7) if mode == "lossy" else None
    loop = asyncio.get_running_loop()
    wires = []
    for tun, out in ((near, far), (far, near)):
        wire = Wire(out, loss, mode == "cut by us")
        wires.append(wire)
        tun.start(loop, wire.carry, nothing, lost)
    await transfer(namespaces, version)
    for wire, tun in zip(wires, (near, far), strict=True):
        assert (wire.super_packets > 0) is offload
        assert (wire.partial > 0 and wire.lost > 0) is (mode == "lossy")
        assert not {*tun.drops} - {Drop.QUEUE}
        status = tun.status()
        assert status.read_bytes > BLOCKS * len(DATA)
        if mode == "offloads":
            assert tun.status().writes[:2] == ("tso4", "tso6")
            assert status.read_packets < status.read_bytes / 3000  # super-packets and not segments
    near.close()
    far.close()


@pytest.mark.root
@lab
async def test_udp_super_packets_between_two_namespaces(namespaces: tuple[Namespace, Namespace]) -> None:
    """An application's own UDP_SEGMENT sends cross as super-packets and arrive as the datagrams that they are."""
    near = opened(namespaces[0], "cqt0", True, OURS4, OURS6)
    far = opened(namespaces[1], "cqt1", True, THEIRS4, THEIRS6)
    if "uso" not in near.status().reads:
        pytest.skip("this kernel has no UDP segmentation for TUN (Linux 6.2)")
    loop = asyncio.get_running_loop()
    wire = Wire(far, None, False)
    sent = DATA[:12345]
    near.start(loop, wire.carry, nothing, lost)

    def endpoint() -> socket.socket:
        end = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        end.setblocking(False)
        return end

    with namespaces[0].run(endpoint) as sender, namespaces[1].run(endpoint) as receiver:
        receiver.bind((str(THEIRS4.ip), 4433))
        sender.bind((str(OURS4.ip), 0))
        sender.sendmsg([sent], [(socket.SOL_UDP, 103, struct.pack("H", 1200))], 0, (str(THEIRS4.ip), 4433))
        got = [await loop.sock_recv(receiver, 65536) for _ in range(11)]
    assert got == [sent[at : at + 1200] for at in range(0, len(sent), 1200)]
    assert wire.super_packets == 1
    near.close()
    far.close()
