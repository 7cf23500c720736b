"""The capture of the leak test on macOS, with socket pairs in place of BPF devices."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Iterable, Iterator
from typing import Any, cast

import pytest

from cryprq_proxy.errors import ConfigError, CryprqError
from tests.support.bpf_records import (
    ETHERNET4,
    NULL4,
    FakeBpf,
    FakeIoctl,
    bpf_files,
    record,
)
from tests.support.canary_packets import of
from tun.leaktest.canaries import Canary, CanaryTargets, canaries
from tun.leaktest.report import CanaryVerdict
from tun.leaktest.watch import MAX_INTERFACES, Watch
from tun.macos import capture as macos
from tun.macos.bpf import DLT_EN10MB, DLT_NULL
from tun.macos.capture import BpfCapture
from tun.macos.programs import ProgramAnswer

SENT = canaries(CanaryTargets(dns=(), hosts=("192.0.2.1",)))
SYN, QUIC, STUN, PING = SENT


@pytest.fixture
def bpf() -> Iterator[FakeBpf]:
    kernel = FakeBpf()
    kernel.links["en0"] = DLT_EN10MB
    yield kernel
    kernel.close()


def capture(watch: Watch, bpf: FakeBpf) -> BpfCapture:
    return BpfCapture(watch, attach=bpf.attach, interfaces=bpf.interfaces, ioctl=bpf.ioctl)


def a_watch() -> Watch:
    return Watch(SENT, tunnel="utun7")


def verdicts(watch: Watch) -> dict[str, CanaryVerdict]:
    return {row.name: row.verdict for row in watch.report().rows}


async def until(watch: Watch, name: str, verdict: CanaryVerdict) -> None:
    async with asyncio.timeout(20):
        while verdicts(watch)[name] is not verdict:
            await asyncio.sleep(0.005)


def on_wire(canary: Canary, **more: Any) -> bytes:
    return record(ETHERNET4 + of(canary), **more)


async def test_what_leaves_by_each_interface_is_told(bpf: FakeBpf) -> None:
    watch = a_watch()
    bpf.links["utun7"] = DLT_NULL
    with capture(watch, bpf) as running:
        bpf.give("utun7", record(NULL4 + of(QUIC), size=20) + record(NULL4 + of(STUN), size=20))
        bpf.give("en0", on_wire(STUN) + on_wire(PING, outgoing=False))
        await until(watch, "STUN", CanaryVerdict.LEAKED)
        assert running.finish() == 0
    assert verdicts(watch) == {
        "TCP": CanaryVerdict.BLOCKED,
        "QUIC": CanaryVerdict.TUNNELLED,
        "STUN": CanaryVerdict.LEAKED,
        "ping": CanaryVerdict.BLOCKED,
    }


async def test_an_interface_that_comes_later_is_seen_and_one_that_goes_does_not_end_the_capture(
    bpf: FakeBpf,
) -> None:
    watch = a_watch()
    with capture(watch, bpf) as running:
        bpf.links["en1"] = DLT_EN10MB
        async with asyncio.timeout(20):
            while len(running._devices) < 2:
                await asyncio.sleep(0.005)
        bpf.give("en1", on_wire(PING))
        await until(watch, "ping", CanaryVerdict.LEAKED)
        bpf.remove("en1")
        async with asyncio.timeout(20):
            while len(running._devices) > 1:
                await asyncio.sleep(0.005)
        bpf.give("en0", on_wire(QUIC))
        await until(watch, "QUIC", CanaryVerdict.LEAKED)
        assert running.finish() == 0


async def test_loopback_and_the_interfaces_of_tcpdump_are_left_out(bpf: FakeBpf) -> None:
    bpf.links |= {"lo0": DLT_NULL, "pktap0": 149}
    with capture(a_watch(), bpf) as running:
        assert [name for _, name in running._devices] == ["en0"]


class FaultyWatch:
    def frame(self, interface: str, packet: bytes) -> None:
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("buffer", "link", "dropped", "missed"),
    [
        (on_wire(PING), DLT_EN10MB, 3, 3),
        (on_wire(PING) + b"damaged", DLT_EN10MB, 0, 1),
        (on_wire(PING) + on_wire(QUIC) + on_wire(QUIC, outgoing=False), 105, 0, 2),
    ],
    ids=["dropped", "damaged", "unknown link"],
)
async def test_what_was_not_looked_at_is_told(
    bpf: FakeBpf, buffer: bytes, link: int, dropped: int, missed: int
) -> None:
    bpf.links["en0"] = link
    bpf.dropped = dropped
    with capture(a_watch(), bpf) as running:
        bpf.give("en0", buffer)
        assert running.finish() == missed


async def test_what_an_interface_that_went_had_dropped_is_told(bpf: FakeBpf) -> None:
    bpf.dropped = 2
    with capture(a_watch(), bpf) as running:
        bpf.remove("en0")
        running._look()
        assert running.finish() == 2


async def test_packets_that_a_fault_leaves_unseen_are_told(
    bpf: FakeBpf, caplog: pytest.LogCaptureFixture
) -> None:
    with capture(cast(Watch, FaultyWatch()), bpf) as running:
        bpf.give("en0", on_wire(PING) + on_wire(QUIC))
        assert running.finish() == 2
    assert len(caplog.records) == 1


async def test_an_interface_that_cannot_be_captured_proves_nothing(bpf: FakeBpf) -> None:
    with capture(a_watch(), bpf) as running:
        bpf.links["en1"] = DLT_EN10MB
        bpf.refused = OSError(errno.EMFILE, "too many open files")
        with pytest.raises(OSError):
            running._look()
        assert running._look() == []
        assert running.finish() == 1


async def test_interfaces_above_the_bound_are_not_captured_and_told(bpf: FakeBpf) -> None:
    bpf.links |= {f"en{number}": DLT_EN10MB for number in range(MAX_INTERFACES + 2)}
    with capture(a_watch(), bpf) as running:
        assert len(running._devices) == MAX_INTERFACES
        assert running.finish() == 2


def test_a_start_that_cannot_capture_says_why(bpf: FakeBpf) -> None:
    bpf.refused = OSError(errno.ENODEV, "Operation not supported by device")
    with pytest.raises(ConfigError, match="cannot capture packets"):
        capture(a_watch(), bpf)


# --- devices ---

BIOCSETIF, BIOCSBLEN = 0x8020426C, 0xC0044266


def test_a_device_is_set_before_it_has_its_interface() -> None:
    """BIOCSBLEN is refused afterwards, and packets from before would be recorded without their direction."""
    opened, open_file = bpf_files(errno.EBUSY, errno.EBUSY)
    kernel = FakeIoctl(link=DLT_NULL)
    device = macos.attach("utun3", open_file, kernel)
    assert device is not None
    os.close(device.fd)
    assert opened == ["/dev/bpf0", "/dev/bpf1", "/dev/bpf2"]
    assert device[1:] == (32_768, DLT_NULL)
    assert kernel.interface == b"utun3"
    assert kernel.asked[0] == BIOCSBLEN
    assert kernel.asked.index(BIOCSETIF) == len(kernel.asked) - 2


def test_an_interface_that_is_down_or_gone_is_none() -> None:
    for error in (errno.ENXIO, errno.ENETDOWN):
        assert macos.attach("en5", bpf_files()[1], FakeIoctl(BIOCSETIF, error)) is None
    with pytest.raises(OSError):
        macos.attach("en5", bpf_files()[1], FakeIoctl(BIOCSBLEN, errno.EINVAL))


@pytest.mark.parametrize(
    ("errors", "said"),
    [
        ([errno.EACCES], "run it as root"),
        ([errno.EBUSY, errno.ENOENT], "/dev/bpf1 cannot be opened"),
        ([errno.EBUSY] * macos.MAX_BPF, "all BPF devices are taken"),
    ],
)
def test_no_device(errors: list[int], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        macos.attach("en0", bpf_files(*errors)[1], FakeIoctl())


# --- counters and sockets ---

NETSTAT = """\
Name       Mtu   Network       Address            Ipkts Ierrs     Ibytes    Opkts Oerrs     Obytes  Coll
lo0        16384 <Link#1>                        201336     0   38521440   201336     0   38521440     0
lo0        16384 127           127.0.0.1         201336     -   38521440   201336     -   38521440     -
gif0*      1280  <Link#2>                             0     0          0        0     0          0     0
en0        1500  <Link#4>    f8:ff:c2:00:00:01  5120321     0 4432167231  2231456     0  512876543     0
en0        1500  fe80::10b4: fe80:4::10b4:8d2a  5120321     - 4432167231  2231456     -  512876543     -
en0        1500  192.168.1     192.168.1.20     5120321     - 4432167231  2231456     -  512876543     -
utun0      1380  <Link#15>                            0     0          0        4     0        340     0
bridge0    1500  <Link#9>    82:0f:00:00:00:01        0     0          0        1     0        342     0
"""


def test_packets_sent() -> None:
    assert macos.packets_sent(lambda _: ProgramAnswer(NETSTAT)) == {
        "gif0": 0,
        "en0": 2_231_456,
        "utun0": 4,
        "bridge0": 1,
    }


@pytest.mark.parametrize("answer", ["", "netstat: sysctl: no\n"])
def test_an_unknown_answer_of_netstat(answer: str) -> None:
    with pytest.raises(CryprqError, match="no table of interfaces"):
        macos.packets_sent(lambda _: ProgramAnswer(answer))


def test_lines_of_netstat_that_are_none() -> None:
    assert macos.packets_sent(
        lambda _: ProgramAnswer(NETSTAT + "en9\nen8 1500 <Link#8> - -\n\n")
    ) == macos.packets_sent(lambda _: ProgramAnswer(NETSTAT))


class Bound:
    """A socket that remembers its options: this kernel has others."""

    def __init__(self, family: int) -> None:
        self.family = family
        self.options: list[tuple[int, int, int]] = []

    def setsockopt(self, *option: int) -> None:
        self.options.append(cast(tuple[int, int, int], option))


def test_sockets_are_bound_by_the_number_of_the_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "if_nametoindex", {"en0": 4}.__getitem__)
    four, six = Bound(socket.AF_INET), Bound(socket.AF_INET6)
    sockets: Iterable[Bound] = (four, six)
    for sock in sockets:
        macos.bind_to(cast(socket.socket, sock), "en0")
    assert four.options == [(socket.IPPROTO_IP, 25, 4)]
    assert six.options == [(socket.IPPROTO_IPV6, 125, 4)]
