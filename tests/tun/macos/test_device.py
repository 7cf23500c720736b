"""macOS: the utun device on a pair of sockets that plays the kernel, and the exact commands of the set-up."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.errors import ConfigError, CryprqError
from cryprq_proxy.lane.slices import HEADROOM, Run, Shape
from tests.support.super_packets import KINDS, PAYLOAD, Flow, segments, super_packet
from tun.device.offload import COMPLETE
from tun.device.packets import Drop
from tun.macos.device import Utun, unit_of
from tun.macos.network import (
    FLUSH,
    UNDO,
    Command,
    MacHop,
    MacNetwork,
    address_commands,
    device_route,
    exit_route,
    hop_query,
    parse_hop,
    reject_route,
    resolver_command,
    run,
    undo,
    undo_command,
)

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


def line(command: Command) -> str:
    return " ".join(command.argv)


def test_the_commands() -> None:
    assert list(
        map(line, address_commands("utun7", 1400, [ip_address("198.18.0.2"), ip_address("fd63::2")]))
    ) == [
        "ifconfig utun7 mtu 1400",
        "ifconfig utun7 inet 198.18.0.2/32 198.18.0.2 alias",
        "ifconfig utun7 inet6 fd63::2/128 alias",
        "ifconfig utun7 up",
    ]
    assert (
        line(device_route("add", "0.0.0.0/1", "utun7"))
        == "route -q -n add -inet -net 0.0.0.0/1 -interface utun7"
    )
    assert line(device_route("add", "::/1", "utun7")) == "route -q -n add -inet6 -net ::/1 -interface utun7"
    assert line(reject_route("add", "8000::/1")) == "route -q -n add -inet6 -net 8000::/1 ::1 -reject"
    assert line(exit_route("add", EXIT4, MacHop("en0", "192.168.1.1"))) == (
        "route -q -n add -inet -host 203.0.113.9 192.168.1.1"
    )
    assert line(exit_route("delete", EXIT6, MacHop("en0", ""))) == (
        "route -q -n delete -inet6 -host 2001:db8:9::9 -interface en0"
    )
    assert line(hop_query(EXIT4)) == "route -n get -inet 203.0.113.9"
    assert resolver_command([ip_address("198.18.255.53"), ip_address("fd63::53")]) == Command(
        ("scutil",),
        "d.init\n"
        "d.add ServerAddresses * 198.18.255.53 fd63::53\n"
        'd.add SupplementalMatchDomains * ""\n'
        "set State:/Network/Service/cryprq-proxy/DNS\n"
        "quit\n",
    )


ROUTE_GET = """\
   route to: 203.0.113.9
destination: default
       mask: default
    gateway: 192.168.1.1
  interface: en0
      flags: <UP,GATEWAY,DONE,STATIC,PRCLONING,GLOBAL>
 recvpipe  sendpipe  ssthresh  rtt,msec    rttvar  hopcount      mtu     expire
       0         0         0         0         0         0      1500         0
"""


def test_reading_the_way_to_the_exit() -> None:
    assert parse_hop(ROUTE_GET) == MacHop("en0", "192.168.1.1")
    assert parse_hop(ROUTE_GET.replace("192.168.1.1", "fe80::1%en0")) == MacHop("en0", "fe80::1%en0")
    assert parse_hop(ROUTE_GET.replace("    gateway: 192.168.1.1\n", "")) == MacHop("en0", "")
    assert parse_hop(ROUTE_GET.replace("192.168.1.1", "link#4")) == MacHop("en0", "")
    with pytest.raises(ConfigError, match="no route to the exit"):
        parse_hop("route: writing to routing socket: not in table\n")


@given(st.text())
def test_any_answer_is_a_hop_or_a_config_error(text: str) -> None:
    with contextlib.suppress(ConfigError):
        hop = parse_hop(text)
        assert undo_command({"kind": "macos-exit", "address": str(EXIT4), **hop._asdict()})


class Machine:
    """Notes commands and journal entries in the order in which they come."""

    def __init__(self) -> None:
        self.log: list[str | Mapping[str, object]] = []

    def record(self, entry: Mapping[str, object]) -> None:
        self.log.append(dict(entry))

    def run(self, command: Command) -> str:
        self.log.append(line(command))
        return ROUTE_GET if "get" in command.argv else ""


def test_every_change_is_recorded_before_it_is_made_and_undone_by_its_entry() -> None:
    machine = Machine()
    network = MacNetwork("utun7", machine.record, machine.run)
    network.address(1400, [ip_address("198.18.0.2")])
    assert len(machine.log) == 3
    machine.log.clear()
    assert network.keep_exit(EXIT4) == MacHop("en0", "192.168.1.1")
    network.route(ipv6=False)
    network.resolve([ip_address("198.18.255.53")])
    expected: list[str | Mapping[str, object]] = [
        "route -n get -inet 203.0.113.9",
        {"kind": "macos-exit", "address": "203.0.113.9", "interface": "en0", "gateway": "192.168.1.1"},
        "route -q -n add -inet -host 203.0.113.9 192.168.1.1",
        "route -q -n add -inet -net 0.0.0.0/1 -interface utun7",
        "route -q -n add -inet -net 128.0.0.0/1 -interface utun7",
        {"kind": "macos-reject", "prefix": "::/1"},
        "route -q -n add -inet6 -net ::/1 ::1 -reject",
        {"kind": "macos-reject", "prefix": "8000::/1"},
        "route -q -n add -inet6 -net 8000::/1 ::1 -reject",
        {"kind": "macos-resolver"},
        "scutil",
        *map(line, FLUSH),
    ]
    assert machine.log == expected
    undone = [undo_command(entry) for entry in reversed(expected) if not isinstance(entry, str)]
    assert undone == [
        Command(("scutil",), "remove State:/Network/Service/cryprq-proxy/DNS\nquit\n"),
        reject_route("delete", "8000::/1"),
        reject_route("delete", "::/1"),
        exit_route("delete", EXIT4, MacHop("en0", "192.168.1.1")),
    ]
    assert {entry["kind"] for entry in expected if not isinstance(entry, str)} == set(UNDO)


def test_with_ipv6_both_families_go_into_the_device() -> None:
    machine = Machine()
    MacNetwork("utun7", machine.record, machine.run).route(ipv6=True)
    assert machine.log == [
        f"route -q -n add {family} -net {prefix} -interface utun7"
        for family, prefixes in (("-inet", ("0.0.0.0/1", "128.0.0.0/1")), ("-inet6", ("::/1", "8000::/1")))
        for prefix in prefixes
    ]


@pytest.mark.parametrize(
    "entry",
    [
        {},
        {"kind": "macos-exit"},
        {"kind": "macos-exit", "address": "-x", "interface": "en0", "gateway": ""},
        {"kind": "macos-exit", "address": "203.0.113.9", "interface": "-iface", "gateway": ""},
        {"kind": "macos-exit", "address": "203.0.113.9", "interface": "en0", "gateway": "$(reboot)"},
        {"kind": "macos-exit", "address": 7, "interface": "en0", "gateway": ""},
        {"kind": "macos-reject", "prefix": "10.0.0.0/8"},
        {"kind": "macos-reject", "prefix": []},
        {"kind": "route"},
    ],
)
def test_a_journal_cannot_name_anything_else(entry: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="journal"):
        undo_command(entry)


def test_what_is_gone_already_is_no_error() -> None:
    def failing(text: str) -> Callable[[Command], str]:
        def fail(command: Command) -> str:
            raise CryprqError(text)

        return fail

    entry = {"kind": "macos-reject", "prefix": "::/1"}
    undo(entry, failing("route failed: route: writing to routing socket: not in table"))
    undo({"kind": "macos-resolver"}, failing("scutil failed: No such key"))
    with pytest.raises(CryprqError, match="not permitted"):
        undo(entry, failing("route failed: route: not permitted"))


@pytest.mark.process
def test_the_real_runner() -> None:
    assert run(Command(("cat",), "text")) == "text"
    with pytest.raises(CryprqError, match=r"^sh failed: first$"):
        run(Command(("sh", "-c", "echo first >&2; echo second >&2; exit 3")))
    with pytest.raises(CryprqError, match="exit code 3"):
        run(Command(("sh", "-c", "exit 3")))
    with pytest.raises(CryprqError, match="cannot be run"):
        run(Command(("no-such-program-here",)))
