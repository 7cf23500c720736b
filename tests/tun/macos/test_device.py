"""macOS: the utun device on a pair of sockets that plays the kernel, and the exact commands of the set-up."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import os
import socket
import sys
from collections.abc import Iterator
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Any

import pytest

from cryprq_proxy.errors import ConfigError
from cryprq_proxy.lane.slices import HEADROOM, Run, Shape
from tests.support.macos import configd
from tests.support.macos.machine import FakeMac
from tests.support.macos.utun_pair import UtunPair
from tests.support.super_packets import KINDS, PAYLOAD, Flow, segments, super_packet
from tun.device.offload import COMPLETE
from tun.device.packets import Drop
from tun.macos.device import Utun, configuration, unit_of
from tun.macos.networks import MacInterface
from tun.macos.programs import Command

HEADS = {4: b"\0\0\0\x02", 6: b"\0\0\0\x1e"}
EXIT4, EXIT6 = ip_address("203.0.113.9"), ip_address("2001:db8:9::9")


@pytest.fixture
def utun() -> Iterator[tuple[Utun, socket.socket]]:
    near, kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    near.setblocking(False)
    kernel.setblocking(False)
    with kernel, contextlib.closing(Utun(near.detach(), "utun7", 1400)) as device:
        yield device, kernel


@pytest.mark.parametrize(("version", "protocol"), KINDS)
def test_super_packets_leave_as_packets_with_their_family(
    utun: tuple[Utun, socket.socket], version: int, protocol: int
) -> None:
    device, kernel = utun
    flow = Flow(version, protocol, PAYLOAD, 1400)
    buffer = memoryview(bytearray(HEADROOM) + super_packet(flow))
    assert device.write_run(buffer, HEADROOM, len(buffer), Run(flow.shape, 0, 4, 4))
    assert [kernel.recv(2000) for _ in range(4)] == [HEADS[version] + packet for packet in segments(flow)]
    with pytest.raises(BlockingIOError):
        kernel.recv(1)
    assert device.written_packets == 4
    assert device.status().writes == ()


def test_what_is_no_ip_packet_is_not_written(utun: tuple[Utun, socket.socket]) -> None:
    device, kernel = utun
    for packet in (b"", b"\x45", b"\x50" + bytes(39)):
        buffer = memoryview(bytearray(HEADROOM) + packet + b"\0")
        assert not device.write(buffer, HEADROOM, HEADROOM + len(packet), COMPLETE)
    assert device.drops == {Drop.VERSION: 3}
    with pytest.raises(BlockingIOError):
        kernel.recv(1)


async def test_packets_come_without_their_family(utun: tuple[Utun, socket.socket]) -> None:
    device, kernel = utun
    expected = [
        segments(Flow(version, protocol, bytes(300), 400))[0] for version, protocol in KINDS
    ]  # none is urgent
    for packet in expected:
        kernel.send(HEADS[packet[0] >> 4] + packet)
    kernel.send(HEADS[6] + expected[0])
    kernel.send(b"\0\0\0\x11" + expected[0])
    kernel.send(HEADS[4])
    got: list[tuple[bytes, Shape]] = []
    drained = asyncio.Event()

    def take(buffer: memoryview, start: int, end: int, shape: Shape) -> None:
        got.append((bytes(buffer[start:end]), shape))

    def lost(error: OSError) -> None:
        raise error

    device.start(asyncio.get_running_loop(), take, drained.set, lost)
    await drained.wait()
    assert got == [(packet, COMPLETE) for packet in expected]
    assert device.drops == {Drop.FAMILY: 2, Drop.SHORT: 1}


def test_units_are_one_more_than_names() -> None:
    assert [unit_of(name) for name in ("utun", "utun0", "utun12")] == [0, 1, 13]
    for name in ("", "tun0", "utun-1", "utun01", "utun99999", "utun0\n", "cryprq0"):
        with pytest.raises(ConfigError, match="no name for a tunnel"):
            unit_of(name)


@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac would create the device")
def test_elsewhere_there_is_no_utun() -> None:
    with pytest.raises(ConfigError, match="is it macOS"):
        Utun.open("utun", mtu=1400)


class FakeControl(socket.socket):
    """A kernel control socket as far as `open` uses one."""

    refusal: int | None = None
    connected: object = None

    def __init__(self, *family: int) -> None:
        assert family == (32, socket.SOCK_DGRAM, 2)
        super().__init__(socket.AF_UNIX, socket.SOCK_DGRAM)

    def connect(self, address: Any) -> None:
        FakeControl.connected = address
        if FakeControl.refusal is not None:
            raise OSError(FakeControl.refusal, os.strerror(FakeControl.refusal))

    def getsockopt(self, level: int, name: int, size: int = 0) -> Any:
        assert (level, name) == (2, 2)
        return b"utun7\0" + bytes(size - 6)


def test_opening_asks_the_control_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def ioctl(control: socket.socket, request: int, argument: bytes) -> bytes:
        assert request == 0xC0644E03
        assert argument == bytes(4) + b"com.apple.net.utun_control".ljust(96, b"\0")
        return (23).to_bytes(4, sys.byteorder) + argument[4:]

    monkeypatch.setattr("fcntl.ioctl", ioctl)
    monkeypatch.setattr("socket.socket", FakeControl)
    with contextlib.closing(Utun.open("utun7", mtu=1400)) as device:
        assert device.name == "utun7"
        assert FakeControl.connected == (23, 8)
    for number, text in (
        (errno.EBUSY, "already"),
        (errno.EPERM, "run as root"),
        (errno.EINVAL, "not create"),
    ):
        monkeypatch.setattr(FakeControl, "refusal", number)
        with pytest.raises(ConfigError, match=text):
            Utun.open("utun7", mtu=1400)


# --- what other programs do to it -------------------------------------------------------------------------------------


OTHERS = ("198.18.0.1", "198.18.0.2", "198.18.255.53")


class Repaired:
    """A device of a fake Mac, up, with addresses of both families and an alias."""

    def __init__(self, mac: FakeMac) -> None:
        self.mac = mac
        self.pair = UtunPair(mac)
        aliases = [ip_interface("198.18.255.53")]
        self.device = Utun.open("utun", mtu=1400, aliases=aliases, run=mac.run, control=self.pair)

    async def configure(self) -> None:
        await self.device.configure([ip_interface("198.18.0.7"), ip_interface("fd63:7279:7071::7")])

    def addresses(self, version: int) -> list[str]:
        found = self.mac.read().interface(self.device.name)
        assert found is not None
        texts = [each.address for each in found.addresses]
        return [each for each in texts if (":" in each) == (version == 6) and not each.startswith("fe80")]

    def ifconfig(self, *words: str) -> None:
        """Another program changes it."""
        assert not self.mac.run(Command(("ifconfig", self.device.name, *words))).code


@pytest.fixture
def repaired(tmp_path: Path) -> Iterator[Repaired]:
    stage = Repaired(FakeMac(tmp_path / "mac"))
    with contextlib.closing(stage.device):
        yield stage
    stage.pair.end()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ([], ""),
        ([["down"]], "it was down"),
        ([["mtu", "1280"]], "its MTU was 1280"),
        ([["inet", "198.18.0.7", "-alias"]], "the address 198.18.0.7/32 was removed"),
        ([["inet", "198.18.255.53", "-alias"]], "the address 198.18.255.53/32 was removed"),
        ([["inet6", "fd63:7279:7071::7", "-alias"]], "the address fd63:7279:7071::7/128 was removed"),
        ([["inet", "10.0.0.1/32", "10.0.0.1", "alias"]], "the address 10.0.0.1/32 was added"),
        (
            [["inet", "198.18.0.7", "-alias"], ["inet", "198.18.0.7/32", "198.18.0.7", "alias"]],
            "its addresses stood in another order",
        ),
        (
            [["down"], ["mtu", "1280"], ["inet", "198.18.0.7", "-alias"]],
            "it was down, its MTU was 1280, the address 198.18.0.7/32 was removed",
        ),
    ],
    ids=str,
)
async def test_what_others_change_is_told_and_put_back(
    repaired: Repaired, changes: list[list[str]], said: str
) -> None:
    await repaired.configure()
    for words in changes:
        repaired.ifconfig(*words)
    assert await repaired.device.difference() == said
    await repaired.device.restore()
    assert await repaired.device.difference() == ""
    assert repaired.addresses(4) == ["198.18.0.7", "198.18.255.53"]
    assert repaired.addresses(6) == ["fd63:7279:7071::7"]


async def test_another_address_of_the_exit_stands_first_too(repaired: Repaired) -> None:
    """Programs send from the first one; never is there none."""
    await repaired.configure()
    await repaired.device.configure([ip_interface("198.18.0.9")])
    assert repaired.addresses(4) == ["198.18.0.9", "198.18.255.53"]
    assert repaired.addresses(6) == []
    assert await repaired.device.difference() == ""


@pytest.mark.parametrize("there", [*itertools.permutations(OTHERS), OTHERS[:1], OTHERS[:2], OTHERS[2:]])
@pytest.mark.parametrize("wanted", [OTHERS[:1], OTHERS[:2], OTHERS[1::-1], OTHERS[::-1]])
def test_addresses_come_in_order_and_one_is_always_there(
    there: tuple[str, ...], wanted: tuple[str, ...]
) -> None:
    device = [ip_interface(each) for each in there]
    found = MacInterface("utun7", frozenset({"UP"}), 1400, tuple(device))
    expected = [ip_interface(each) for each in wanted]
    for command in configuration("utun7", 1400, expected, found):
        address = ip_interface(command.argv[3].partition("/")[0])
        if command.argv[-1] == "alias":
            device.append(address)
        else:
            device.remove(address)
        assert device and len(set(device)) == len(device), command
    assert device == expected


async def test_a_device_that_is_gone_is_told_to_its_reader(repaired: Repaired) -> None:
    await repaired.configure()
    lost: list[OSError] = []
    loop = asyncio.get_running_loop()
    repaired.device.start(loop, lambda buffer, start, end, shape: None, lambda: None, lost.append)
    with repaired.mac.change() as state:
        configd.remove_interface(state, repaired.device.name)
    for look in (repaired.device.difference, repaired.device.restore):
        with pytest.raises(ConfigError, match="another program removed the device"):
            await look()
    assert [error.errno for error in lost] == [errno.ENXIO]
