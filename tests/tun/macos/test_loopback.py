"""Packets to the tunnel's own addresses, which macOS gives to the device: tun/macos/loopback.py."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from ipaddress import ip_interface
from pathlib import Path

import pytest

from cryprq_proxy.lane.slices import HEADROOM, Shape
from tests.support.macos import packet
from tests.support.macos.machine import FakeMac
from tests.support.macos.packet import End
from tests.support.macos.utun_pair import UtunPair
from tun.device.offload import COMPLETE
from tun.macos.device import Utun
from tun.macos.loopback import Loopback

OWN4, OWN6 = "198.18.0.7", "fd63:7279:7071::7"
RESOLVER = "198.18.255.53"


class Stage:
    """A device of a fake Mac with these addresses, and what goes on to the link."""

    def __init__(self, mac: FakeMac) -> None:
        self.pair = UtunPair(mac)
        aliases = [ip_interface(RESOLVER)]
        self.device = Utun.open("utun", mtu=1400, aliases=aliases, run=mac.run, control=self.pair)
        self.passed: list[bytes] = []
        self.loopback = Loopback(self.device, self._then)

    def _then(self, buffer: memoryview, start: int, end: int, shape: Shape) -> None:
        self.passed.append(bytes(buffer[start:end]))

    def send(self, data: bytes) -> None:
        buffer = memoryview(bytearray(HEADROOM) + data)
        self.loopback.packet(buffer, HEADROOM, len(buffer), COMPLETE)

    def back(self) -> bytes | None:
        """What the kernel has got, without its family."""
        try:
            return self.pair.kernel.recv(2000)[4:]
        except BlockingIOError:
            return None


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(FakeMac(tmp_path / "mac"))
    with stage.pair.kernel, contextlib.closing(stage.device):
        yield stage


@pytest.mark.parametrize(
    ("source", "destination"), [(OWN4, OWN4), (OWN4, RESOLVER), (RESOLVER, OWN4), (OWN6, OWN6)]
)
async def test_those_to_its_own_addresses_come_back_as_they_were(
    stage: Stage, source: str, destination: str
) -> None:
    await stage.device.configure([ip_interface(OWN4), ip_interface(OWN6)])
    sent = packet.tcp(End(source, 50_000), End(destination, 53), payload=b"question")
    stage.send(sent)
    assert stage.back() == sent
    assert not stage.passed


async def test_all_others_go_to_the_link(stage: Stage) -> None:
    await stage.device.configure([ip_interface(OWN4)])
    sent = [
        packet.udp(End(OWN4, 1), End("203.0.113.1", 2)),
        packet.udp(End(OWN6, 1), End(OWN6, 2)),  # not handed out
        packet.udp(End(OWN4, 1), End("198.18.0.8", 2)),
        b"\x45" + bytes(17) + bytes([198, 18]),  # cut in its destination
    ]
    for each in sent:
        stage.send(each)
    assert stage.passed == sent
    assert stage.back() is None


async def test_addresses_that_the_exit_hands_out_no_more_are_no_longer_its_own(stage: Stage) -> None:
    sent = packet.udp(End("192.0.2.1", 1), End(OWN4, 2))
    stage.send(sent)
    await stage.device.configure([ip_interface(OWN4)])
    await stage.device.configure([ip_interface("198.18.0.8")])
    stage.send(sent)
    assert stage.passed == [sent, sent]
