"""The tiny kernel of the fake Mac: devices that live as long as somebody holds them, and where packets go."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cryprq_proxy.errors import ConfigError
from tests.support.logged import ROOT
from tests.support.macos import disturbances, packet
from tests.support.macos.default import ADDRESS
from tests.support.macos.kernel import Fate, Kernel
from tests.support.macos.machine import FakeMac
from tests.support.macos.packet import End
from tests.support.macos.state import Anchor, Route
from tests.support.macos.utun_hub import control_of, watch_of
from tun.macos.device import AF_INET

FAR = "93.184.20.10"
HOLDER = """
import sys
from pathlib import Path
from tests.support.macos.utun_hub import control_of
print(control_of(Path(sys.argv[1]))("utun")[1], flush=True)
sys.stdin.read()
"""


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    with Kernel(FakeMac(tmp_path / "mac")) as kernel:
        yield kernel


def through(kernel: Kernel, name: str) -> None:
    """Half of all addresses go into this device."""
    with kernel.mac.change() as state:
        interface = state.interface(name)
        assert interface is not None
        interface.flags.insert(0, "UP")
        state.routes.append(Route("0.0.0.0/1", f"link#{interface.index}", name, "USc"))


def datagram(destination: str = FAR, port: int = 7) -> bytes:
    return packet.udp(End(ADDRESS, 5000), End(destination, port), b"hello")


def test_a_packet_is_read_as_it_was_written() -> None:
    seen = packet.read_packet(packet.tcp(End("2001:db8::1", 5), End("2001:db8::2", 443), "SA", 7, 8, b"x"))
    assert (str(seen.source), seen.source_port, str(seen.destination), seen.destination_port) == (
        "2001:db8::1",
        5,
        "2001:db8::2",
        443,
    )
    assert (seen.proto, seen.flags) == ("tcp", "SA")
    assert packet.payload_of(datagram()) == b"hello"
    assert packet.read_packet(packet.ping(ADDRESS, FAR)).icmp_type == 8


def test_a_device_goes_with_its_descriptor_and_takes_its_routes_along(kernel: Kernel) -> None:
    before = kernel.mac.snapshot()
    fd, name = control_of(kernel.mac.directory)("utun")
    assert name == "utun4" and kernel.hub.devices() == ["utun4"]
    through(kernel, name)
    with pytest.raises(ConfigError, match="utun4"):
        control_of(kernel.mac.directory)("utun4")
    os.close(fd)
    assert kernel.hub.devices() == []
    assert kernel.mac.snapshot() == before


@pytest.mark.process
def test_a_device_goes_with_a_process_that_is_killed(kernel: Kernel) -> None:
    before = kernel.mac.snapshot()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(kernel.mac.directory)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "utun4\n"
        assert kernel.hub.devices() == ["utun4"]
        holder.send_signal(signal.SIGKILL)
    assert kernel.hub.devices() == []
    assert kernel.mac.snapshot() == before


def test_packets_enter_a_device_and_come_out_of_it(kernel: Kernel) -> None:
    fd, name = control_of(kernel.mac.directory)("utun")
    through(kernel, name)
    got: list[tuple[str, bytes]] = []
    kernel.on_local = lambda interface, data: got.append((interface, data))
    sent, answer = datagram(), packet.udp(End(FAR, 7), End(ADDRESS, 5000), b"back")
    assert kernel.send(datagram("8.8.8.8")) == Fate(name)
    assert os.read(fd, 2000) == AF_INET.to_bytes(4) + datagram("8.8.8.8")
    os.write(fd, AF_INET.to_bytes(4) + answer)
    # For nobody here.
    os.write(fd, AF_INET.to_bytes(4) + sent)
    kernel.hub.settle()
    assert got == [(name, answer)]
    os.close(fd)


def test_the_longest_prefix_decides_and_a_scope_is_for_those_that_are_bound(kernel: Kernel) -> None:
    assert kernel.send(datagram()) == Fate("en0")
    assert [(each.interface, str(each.packet.destination)) for each in kernel.left] == [("en0", FAR)]
    disturbances.plug_in(kernel.mac)
    assert kernel.fate(datagram()) == Fate("en1")
    assert kernel.fate(datagram(), scope="en0") == Fate("en0")
    assert kernel.fate(datagram("127.0.0.1")) == Fate("lo0")
    with kernel.mac.change() as state:
        state.routes.append(Route(f"{FAR}/32", "127.0.0.1", "lo0", "UGHRS"))
    assert kernel.fate(datagram()) == Fate("", "reject")
    disturbances.lose_network(kernel.mac, "en1")
    disturbances.lose_network(kernel.mac)
    assert kernel.fate(datagram("8.8.8.8")) == Fate("", "no route")


def test_pf_is_asked_where_the_packet_leaves_and_by_whose_it_is(kernel: Kernel) -> None:
    with kernel.mac.change() as state:
        state.pf.enabled = True
        state.pf.anchors["com.apple/test"] = Anchor(
            f"pass out quick on en0 inet proto udp from any to {FAR} user = 0 no state\n"
            "block drop out quick on en0 all\n"
        )
    assert kernel.send(datagram(), uid=501) == Fate("", "pf")
    assert kernel.send(datagram(), uid=0) == Fate("en0")
    assert len(kernel.left) == 1
    disturbances.pf_disabled(kernel.mac)
    assert kernel.send(datagram(), uid=501) == Fate("en0")


def test_changes_of_routes_are_told_and_others_are_not(kernel: Kernel) -> None:
    with watch_of(kernel.mac.directory) as watch:
        kernel.hub.settle()
        watch.setblocking(False)
        with kernel.mac.change() as state:
            state.pf.enabled = True
        kernel.hub.settle()
        with pytest.raises(BlockingIOError):
            watch.recv(100)
        disturbances.roam(kernel.mac)
        kernel.hub.settle()
        assert watch.recv(100)
