"""What macOS gives to system-wide mode, beyond its parts."""

from __future__ import annotations

import contextlib
import socket
from ipaddress import ip_interface
from pathlib import Path
from typing import cast

from cryprq_proxy.base.paths import ROLES
from cryprq_proxy.lane.slices import HEADROOM
from tun.device.offload import COMPLETE
from tun.dns.forwarder import Forwarder
from tun.dns.packet_server import PacketDnsServer
from tun.macos import pfctl
from tun.macos.device import Utun
from tun.macos.programs import Command, ProgramAnswer
from tun.macos.system import MacOS


def nothing(command: Command) -> ProgramAnswer:
    raise AssertionError(f"{command} was run")


def test_the_forwarder_is_asked_at_aliases_of_the_device() -> None:
    system = MacOS(nothing)
    four, six = ip_interface("198.18.0.7/32"), ip_interface("fd63:7279:7071::7/128")
    assert system.forwarder_places([four, six]) == (["198.18.255.53", "fd63:7279:7071::53"], 53)
    assert system.forwarder_places([four]) == (["198.18.255.53"], 53)


def test_what_is_found_without_a_journal(tmp_path: Path) -> None:
    asked: list[str] = []

    def run(command: Command) -> ProgramAnswer:
        asked.append(str(command))
        if command.argv == ("scutil",):
            return ProgramAnswer("  No such key\n")
        if command.argv[0] == "ifconfig":
            return ProgramAnswer("lo0: flags=8049<UP,LOOPBACK,RUNNING,MULTICAST> mtu 16384\n")
        if command.argv[0] == "netstat":
            left = (
                "198.18             127.0.0.1          UGRSc                 lo0\n"
                if "inet" in command.argv
                else ""
            )
            return ProgramAnswer(
                f"Destination        Gateway            Flags               Netif Expire\n{left}"
            )
        return ProgramAnswer("pass quick on lo0 all no state\n" if "rules" in command.argv else "")

    for role, anchor in pfctl.ANCHORS.items():
        *others, step = MacOS(run).undo(role, tmp_path).by_mark
        assert [other() for other in others] == ["" if role == "client" else "routes to clients"]
        assert step() == f"the packet filter's anchor {anchor}"
        assert asked[-1] == f"pfctl -a {anchor} -F all"
    assert MacOS(lambda command: ProgramAnswer("")).undo("client", tmp_path).by_mark[-1]() == ""


def test_each_role_knows_which_changes_it_takes_over(tmp_path: Path) -> None:
    """A client's routes are undone at a start: the packet filter holds everything in meanwhile."""
    system = MacOS(nothing)
    for role, kept in zip(ROLES, ("", "mac_route"), strict=True):
        how = system.undo(role, tmp_path)
        assert (how.filter, how.routes, how.settings) == ("pf", kept, "mac_sysctl")
        assert set(how.undoers) >= {"pf", "mac_route", "mac_sysctl", "mac_resolver"}


def test_questions_and_packets_to_this_mac_are_taken_out() -> None:
    passed: list[int] = []
    near, kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with kernel, contextlib.closing(Utun(near.detach(), "utun7", 1400)) as device:
        on_packet = MacOS(nothing).on_packet(
            cast(Forwarder, object()), device, lambda buffer, start, end, shape: passed.append(end)
        )
        device.own = frozenset({bytes([10, 0, 0, 2])})
        for last in (1, 2):
            packet = bytes([0x45, *bytes(15), 10, 0, 0, last, *bytes(20)])
            buffer = memoryview(bytearray(HEADROOM) + packet)
            on_packet(buffer, HEADROOM, len(buffer), COMPLETE)
        assert passed == [HEADROOM + 40]
        assert kernel.recv(100) == b"\0\0\0\x02" + packet
    assert isinstance(getattr(on_packet, "__self__", None), PacketDnsServer)
