"""Which entries of conntrack have lost their reason, and what becomes of answers that make no sense."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_network
from typing import Any, Self

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.base.netlink import NetlinkSocket, attributes
from tun.linux.firewall import conntrack
from tun.linux.firewall.conntrack import CtEntry, Ended, EndedWithTable, Flow, parse_entry
from tun.linux.firewall.marks import MarkKind, Marks

NOW = Marks(5, 2)
HOST, OLD, TUNNEL, GUEST, FAR, LAN = map(
    ip_address, ("192.168.77.2", "192.168.1.2", "100.96.0.7", "172.20.0.2", "93.184.20.10", "192.168.77.1")
)
DNS = 1022
ANSWERED, SNAT, DNAT = 1 << 1, 1 << 4, 1 << 5
ENDED = Ended(
    marks=NOW,
    own=frozenset({HOST, TUNNEL}),
    guests=(ip_network("172.20.0.0/24"),),
    forwarder=frozenset({(TUNNEL, DNS)}),
)


def entry(
    mark: int = 0,
    *,
    source: Any = TUNNEL,
    to: Any = FAR,
    port: int = 443,
    answers: Any = None,
    answers_from: Any = None,
    answer_port: int | None = None,
    answered: bool = True,
) -> CtEntry:
    """`answers` is where answers go to, `answers_from` and `answer_port` where they come from."""
    status = (SNAT if answers is not None else 0) | (DNAT if answers_from is not None else 0)
    status |= ANSWERED if answered else 0
    return CtEntry(
        socket.AF_INET,
        Flow(source, to, 17, 40000, port),
        Flow(answers_from or to, answers or source, 17, answer_port or port, 40000),
        mark,
        status,
        b"",
    )


def test_what_a_guest_has_begun_without_a_filter_ends_until_it_is_answered() -> None:
    assert ENDED(entry(source=GUEST, answered=False))
    assert not ENDED(entry(source=GUEST))
    assert not ENDED(entry(source=GUEST, answers=TUNNEL, answered=False))
    assert not ENDED(entry(source=GUEST, to=ip_address("172.20.0.3"), answered=False))
    assert not ENDED(entry(answered=False))


def test_what_a_guest_asks_this_machine_or_another_guest_waits_for_its_answer() -> None:
    """Nobody needs our NAT to answer; the redirection of a question is needed for as long as the forwarder thinks."""
    asked = entry(source=GUEST, to=LAN, port=53, answers_from=TUNNEL, answer_port=DNS, answered=False)
    assert not ENDED(asked)
    assert not ENDED(entry(source=GUEST, to=HOST, answered=False))
    neighbour = ip_address("172.20.0.3")
    assert not ENDED(entry(source=GUEST, answers_from=neighbour, answered=False))
    assert ENDED(entry(source=GUEST, to=HOST, answers_from=FAR, answered=False))


def replaced(**changes: Any) -> Ended:
    fields = {name: getattr(ENDED, name) for name in Ended.__dataclass_fields__}
    return Ended(**fields | changes)


def test_connections_of_a_pause_end_with_it() -> None:
    mark = NOW.of(MarkKind.PAUSED)
    assert ENDED(entry(mark))
    assert not replaced(paused=True)(entry(mark))
    assert not replaced(paused=True)(entry(mark, port=53, answers_from=LAN, answer_port=53))
    for other in (Marks(5, 1), Marks(4, 2)):
        assert replaced(paused=True)(entry(other.of(MarkKind.PAUSED)))


@pytest.mark.parametrize("run", [5, 4])
def test_connections_from_outside_stay_while_they_are_kept(run: int) -> None:
    mark = Marks(run).of(MarkKind.INBOUND)
    assert ENDED(entry(mark))
    assert not replaced(keep_inbound=True)(entry(mark))


@pytest.mark.parametrize("run", [5, 4])
def test_connections_of_a_rule_stay_while_it_says_so(run: int) -> None:
    mark = Marks(run).of(MarkKind.DIRECT)
    kept = replaced(direct=lambda flow: flow.destination == FAR)
    assert not kept(entry(mark, answers=HOST))
    assert kept(entry(mark, to=LAN, answers=HOST))
    assert kept(entry(mark, answers=OLD)), "the address is no longer this machine's"
    assert ENDED(entry(mark, answers=HOST))


def test_the_link_and_other_programs_are_left_alone() -> None:
    for mark in (Marks(4).of(MarkKind.BYPASS), NOW.of(MarkKind.BYPASS)):
        assert not ENDED(entry(mark, source=HOST, to=LAN, port=53))
    for mark in (0, 1, 0x63800003, 0x80000):
        assert not ENDED(entry(mark))
        assert not ENDED(entry(mark, answers=HOST))
    assert ENDED(entry(Marks(4).of(MarkKind.BLOCKED)))
    assert not ENDED(entry(NOW.of(MarkKind.BLOCKED)))


def test_questions_go_to_the_present_forwarder() -> None:
    for source in (HOST, TUNNEL, GUEST):
        assert ENDED(entry(source=source, to=LAN, port=53))
        assert not ENDED(entry(source=source, to=LAN, port=53, answers_from=TUNNEL, answer_port=DNS))
        assert ENDED(entry(source=source, to=LAN, port=53, answers_from=TUNNEL, answer_port=40001))
        assert ENDED(entry(source=source, to=LAN, port=53, answers_from=OLD, answer_port=DNS))
    # Somebody else's, whom this machine forwards; and those to a resolver of this machine.
    assert not ENDED(entry(source=OLD, to=LAN, port=53))
    assert not ENDED(entry(source=GUEST, to=HOST, port=53))
    assert not ENDED(entry(source=HOST, to=ip_address("127.0.0.53"), port=53))
    assert not ENDED(entry(source=HOST, to=LAN, port=853))
    icmp = entry(source=HOST, to=LAN, port=53)
    assert not ENDED(icmp._replace(original=icmp.original._replace(protocol=1)))


def test_flows_of_cgroups_stay_while_any_is_excluded() -> None:
    for run in (NOW, NOW.next_run()):
        assert ENDED(entry(run.of(MarkKind.EXCLUDED)))
        assert not replaced(excludes=True)(entry(run.of(MarkKind.EXCLUDED)))


def test_nothing_goes_on_with_an_address_that_the_tunnel_has_left() -> None:
    guest = entry(source=GUEST, answers=OLD)
    assert not ENDED(guest)
    assert replaced(left=frozenset({OLD}))(guest)
    assert replaced(left=frozenset({OLD}))(entry(source=OLD, to=LAN, port=53))


def test_at_the_end_nat_of_ours_goes_and_the_rest_stays() -> None:
    over = EndedWithTable(tunnels=frozenset({TUNNEL}), dns_port=DNS)
    assert over(entry(source=HOST, to=LAN, port=53, answers_from=OLD, answer_port=DNS))
    assert over(entry(source=HOST, to=LAN, port=53, answers_from=TUNNEL, answer_port=4))
    assert over(entry(source=GUEST, answers=TUNNEL))
    assert over(entry(NOW.of(MarkKind.DIRECT), answers=HOST))
    assert over(entry(NOW.of(MarkKind.PAUSED)))
    assert not over(entry(NOW.of(MarkKind.INBOUND), source=FAR, to=HOST, port=22))
    assert not over(entry(NOW.of(MarkKind.BYPASS), answers=HOST))
    assert not over(entry(source=GUEST, answers=HOST))
    assert not over(entry(source=GUEST, to=HOST, port=53, answers_from=LAN, answer_port=53))


# --- the kernel ---


def nested(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def tuple_of(source: bytes, destination: bytes, ports: tuple[int, int]) -> bytes:
    protocol = nested(1, b"\x11") + nested(2, ports[0].to_bytes(2)) + nested(3, ports[1].to_bytes(2))
    return nested(0x8001, nested(1, source) + nested(2, destination)) + nested(0x8002, protocol)


ORIGINAL = tuple_of(TUNNEL.packed, LAN.packed, (40000, 53))
REPLY = tuple_of(HOST.packed, TUNNEL.packed, (1022, 40000))
BODY = (
    b"\x02\x00\x00\x00"
    + nested(0x8001, ORIGINAL)
    + nested(0x8002, REPLY)
    + nested(3, (DNAT).to_bytes(4))
    + nested(8, (7).to_bytes(4))
    + nested(12, b"\x01\x02\x03\x04")
    + nested(18, b"\x00\x09")
)


def test_an_entry_is_named_by_tuple_id_and_zone() -> None:
    found = parse_entry(BODY)
    assert found is not None
    assert found.original == Flow(TUNNEL, LAN, 17, 40000, 53)
    assert found.reply == Flow(HOST, TUNNEL, 17, 1022, 40000)
    assert (found.mark, found.is_dnat, found.is_snat, found.family) == (7, True, False, 2)
    assert attributes(found.identity) == {1: ORIGINAL, 12: b"\x01\x02\x03\x04", 18: b"\x00\x09"}


@given(st.binary(max_size=200) | st.integers(0, len(BODY)).map(lambda end: BODY[:end]))
def test_garbage_is_no_entry(data: bytes) -> None:
    parse_entry(data)


class FakeKernel(NetlinkSocket):
    """As the netlink socket: `answers` to each request, and what was deleted."""

    def __init__(self, *dumps: Any) -> None:
        self.dumps = list(dumps)
        self.deleted: list[bytes] = []
        self.refusal: OSError | None = None

    def __call__(self, protocol: int) -> Self:
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def ask(self, kind: int, flags: int, body: bytes) -> Iterator[tuple[int, bytes]]:
        if kind == 0x102:
            self.deleted.append(body)
            if self.refusal is not None:
                raise self.refusal
            return
        answer = self.dumps.pop(0)
        if isinstance(answer, OSError):
            raise answer
        yield from answer


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeKernel]:
    def made(*dumps: Any) -> FakeKernel:
        fake = FakeKernel(*dumps)
        monkeypatch.setattr(conntrack, "NetlinkSocket", fake)
        monkeypatch.setattr(conntrack, "_told", set())
        return fake

    return made


ENTRY = (0x100, BODY)


def test_it_is_dumped_again_until_none_is_left(kernel: Callable[..., FakeKernel]) -> None:
    fake = kernel([ENTRY, (0x100, b"garbage"), (3, b"")], [ENTRY], [])
    assert conntrack.delete(lambda entry: True) == 2
    assert not fake.dumps
    assert {attributes(body[4:])[12] for body in fake.deleted} == {b"\x01\x02\x03\x04"}
    assert all(body[:4] == b"\x02\x00\x00\x00" for body in fake.deleted)


def test_the_rounds_are_bounded(kernel: Callable[..., FakeKernel]) -> None:
    fake = kernel(*[[ENTRY]] * 100)
    assert conntrack.delete(lambda entry: True) == conntrack.ROUNDS
    assert len(fake.dumps) == 100 - conntrack.ROUNDS


def test_what_is_not_chosen_is_not_touched(kernel: Callable[..., FakeKernel]) -> None:
    fake = kernel([ENTRY])
    assert conntrack.delete(lambda entry: False) == 0
    assert not fake.deleted


def test_an_entry_that_has_ended_by_itself_is_no_error(
    kernel: Callable[..., FakeKernel], caplog: pytest.LogCaptureFixture
) -> None:
    fake = kernel([ENTRY], [])
    fake.refusal = OSError(errno.ENOENT, "gone")
    assert conntrack.delete(lambda entry: True) == 0
    assert not caplog.records


def test_an_overrun_is_asked_again(
    kernel: Callable[..., FakeKernel], caplog: pytest.LogCaptureFixture
) -> None:
    kernel(OSError(errno.ENOBUFS, "overrun"), [ENTRY], [])
    assert conntrack.delete(lambda entry: True) == 1
    assert not caplog.records


@pytest.mark.parametrize("number", [errno.EPROTONOSUPPORT, errno.EPERM])
def test_a_kernel_that_cannot_is_named_once(
    kernel: Callable[..., FakeKernel], caplog: pytest.LogCaptureFixture, number: int
) -> None:
    kernel(*[OSError(number, os.strerror(number))] * 3)
    assert conntrack.delete(lambda entry: True) == 0
    assert conntrack.delete(lambda entry: True) == 0
    assert conntrack.seen_runs() == ()
    assert len(caplog.records) == 1
    assert "nothing of them leaves past the tunnel" in caplog.text
