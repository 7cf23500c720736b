"""The benchmark's delay line: its queue on a virtual clock, and as a real cable between two hosts."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.lab.net import Lab, Namespace, missing

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))
from line import Line, is_udp  # noqa: E402

DELAY = 0.005
Pair = tuple[Namespace, Namespace, Callable[..., subprocess.Popen[str]]]
times = st.lists(st.floats(0, 1), max_size=60).map(sorted)


@given(times, st.floats(0, 0.2), times)
def test_frames_come_in_order_and_never_early(
    arrivals: list[float], delay: float, polls: list[float]
) -> None:
    line = Line(delay)
    sent = [(at, index.to_bytes(2)) for index, at in enumerate(arrivals)]
    steps = sorted([(at, frame) for at, frame in sent] + [(at, b"") for at in polls])
    arrived: list[tuple[float, bytes]] = []
    for now, frame in steps:
        if frame:
            line.offer(now, [frame])
        arrived += [(now, out) for out in line.due(now)]
    while line.next is not None:
        now = line.next
        arrived += [(now, out) for out in line.due(now)]
    assert [frame for _, frame in arrived] == [frame for _, frame in sent]
    assert all(late >= at + delay for (late, _), (at, _) in zip(arrived, sent, strict=True))
    assert line.counters.forwarded == len(sent)


def test_what_is_due_is_known_to_the_moment() -> None:
    line = Line(0.5)
    assert line.next is None
    line.offer(1.0, [b"a", b"b"])
    line.offer(1.25, [b"c"])
    assert line.next == 1.5
    assert line.due(1.499) == []
    assert line.due(1.5) == [b"a", b"b"]
    assert line.next == 1.75
    assert line.due(9.0) == [b"c"]
    assert line.next is None


def test_a_full_line_drops_what_comes_and_takes_it_again_later() -> None:
    line = Line(1.0, limit=10)
    line.offer(0.0, [bytes(6), bytes(5), bytes(4)])
    assert line.counters.overflowed == 1
    assert [len(frame) for frame in line.due(1.0)] == [6, 4]
    line.offer(1.0, [bytes(10)])
    assert line.counters.overflowed == 1
    assert line.due(2.0) == [bytes(10)]


def test_a_rate_spaces_frames_out_and_forgets_idle_time() -> None:
    line = Line(1.0, rate=80.0)  # ten bytes a second
    line.offer(0.0, [bytes(10), bytes(5)])
    line.offer(0.5, [bytes(10)])
    line.offer(8.0, [bytes(10)])
    seen = []
    while line.next is not None:
        seen.append(line.next)
        line.due(line.next)
    assert seen == [2.0, 2.5, 3.5, 10.0]


def test_the_same_seed_loses_the_same_frames() -> None:
    def survivors(seed: int) -> list[bytes]:
        line = Line(0.0, loss=0.01, seed=seed)
        line.offer(0.0, [index.to_bytes(4) for index in range(100_000)])
        assert line.counters.lost == 100_000 - len(line._waiting)
        return line.due(0.0)

    first = survivors(1)
    assert first == survivors(1)
    assert first != survivors(2)
    assert 98_800 < len(first) < 99_200  # six standard deviations are 190


@pytest.mark.parametrize(
    ("delay", "loss", "limit", "rate"),
    [(-1, 0, 1, 0), (0, 1.1, 1, 0), (0, -0.1, 1, 0), (0, 0, 0, 0), (0, 0, 1, -1)],
)
def test_impossible_lines_are_refused(delay: float, loss: float, limit: int, rate: float) -> None:
    with pytest.raises(ValueError):
        Line(delay, loss, limit, rate=rate)


def frame(protocol: int, size: int = 100, header: int = 0) -> bytes:
    """An Ethernet frame with an IPv4 packet of that protocol, behind `header` bytes."""
    head = bytes(12) + b"\x08\x00" + bytes(9) + bytes([protocol])
    return bytes(header) + head.ljust(size, b"x")


DATAGRAM, SEGMENT = frame(17), frame(6)


def through(line: Line, now: float, *frames: bytes) -> list[bytes]:
    line.offer(now, frames)
    return line.due(now + 100)


def test_a_frame_that_is_late_comes_behind_those_that_passed_it() -> None:
    line = Line(1.0, reorder=1.0, later=0.5)
    line.offer(0.0, [b"late"])
    line.obey(0.0, "reorder 0 0")
    line.offer(0.1, [b"a"])
    line.offer(0.5, [b"b"])
    line.offer(0.6, [b"c"])
    assert line.next == 1.1
    assert line.due(1.2) == [b"a"]
    assert line.due(9.0) == [b"late", b"b", b"c"]
    assert line.next is None
    assert line.counters.late == 1


@given(st.floats(0, 1), st.integers(0, 5))
def test_reordering_loses_and_doubles_nothing(chance: float, seed: int) -> None:
    line = Line(0.1, reorder=chance, later=0.05, seed=seed)
    sent = [index.to_bytes(2) for index in range(200)]
    for index, each in enumerate(sent):
        line.offer(index / 100, [each])
    arrived = []
    while line.next is not None:
        arrived += line.due(line.next)
    assert sorted(arrived) == sent
    assert line.counters.forwarded == len(sent)


def test_a_black_out_takes_what_comes_and_leaves_what_is_under_way() -> None:
    line = Line(1.0)
    line.offer(0.0, [b"before"])
    line.obey(0.5, "blackout 2")
    line.offer(0.5, [b"x", b"y"])
    line.offer(2.4, [b"z"])
    assert line.due(2.4) == [b"before"]
    line.offer(2.5, [b"after"])
    assert line.due(9.0) == [b"after"]
    assert line.counters.dark == 3


@pytest.mark.parametrize(
    ("frame", "udp"),
    [
        (DATAGRAM, True),
        (SEGMENT, False),
        (bytes(12) + b"\x86\xdd" + bytes(6) + b"\x11" + bytes(40), True),
        (bytes(12) + b"\x86\xdd" + bytes(6) + b"\x06" + bytes(40), False),
        (bytes(12) + b"\x08\x06" + bytes(9) + b"\x11", False),
        (bytes(14), False),
        (b"", False),
    ],
)
def test_what_is_udp(frame: bytes, udp: bool) -> None:
    assert is_udp(frame) is udp
    assert is_udp(bytes(10) + frame, 10) is udp


def test_udp_alone_is_blocked_and_let_through_again() -> None:
    line = Line(0.0)
    line.obey(0.0, "udp off")
    assert through(line, 0.0, DATAGRAM, SEGMENT, DATAGRAM) == [SEGMENT]
    assert line.counters.udp_dropped == 2
    line.obey(1.0, "udp on")
    assert through(line, 1.0, DATAGRAM) == [DATAGRAM]


@pytest.mark.parametrize("header", [0, 10])
def test_the_police_let_a_burst_through_and_then_their_rate(header: int) -> None:
    """Two frames at once, then one a second; TCP does not count, nor does the header in front of a frame."""
    line = Line(0.0, header=header)
    line.obey(0.0, "police 800 200")
    datagram, segment = frame(17, header=header), frame(6, header=header)
    assert through(line, 0.0, datagram, segment, datagram, datagram) == [datagram, segment, datagram]
    assert through(line, 0.9, datagram) == []
    assert through(line, 1.0, datagram) == [datagram]
    assert through(line, 9.0, datagram, datagram, datagram) == [datagram, datagram]
    assert line.counters.udp_dropped == 3
    line.obey(9.0, "police off")
    assert through(line, 9.0, datagram, datagram) == [datagram, datagram]


def test_what_a_line_is_can_be_changed_while_frames_wait() -> None:
    line = Line(1.0, rate=80.0)
    line.offer(0.0, [bytes(10)])
    for command in ("delay 3", "rate 800", "limit 30"):
        line.obey(0.5, command)
    line.offer(5.0, [bytes(10), bytes(10), bytes(1)])
    assert line.counters.overflowed == 1
    assert [line.next, len(line.due(2.0))] == [2.0, 1]
    assert [line.next, len(line.due(8.1))] == [8.1, 1]
    line.obey(9.0, "loss 1")
    assert through(line, 9.0, b"x") == [bytes(10)]
    assert line.counters.lost == 1


def test_frames_do_not_overtake_when_the_delay_becomes_shorter() -> None:
    line = Line(2.0)
    line.offer(0.0, [b"a"])
    line.obey(0.0, "delay 0.5")
    line.offer(0.0, [b"b"])
    assert line.due(1.0) == []
    assert line.due(2.0) == [b"a", b"b"]


@pytest.mark.parametrize(
    "command",
    [
        "", "black-out 3", "blackout", "blackout soon", "udp", "udp maybe", "police 0 10", "police 10 0", "police 10",
        "loss 2", "loss", "delay -1", "delay 1 2", "rate -1", "limit 0", "reorder 0.1", "reorder 2 1", "reorder 1 -1",
        "delay nan", "rate inf", "limit inf", "limit nan", "loss nan", "reorder 0.1 inf", "blackout nan",
        "blackout inf", "blackout -1", "police inf 9", "police nan 9",
    ],
)  # fmt: skip
def test_what_is_no_command_is_refused(command: str) -> None:
    line = Line(1.0)
    with pytest.raises(ValueError):
        line.obey(0.0, command)


@pytest.fixture
def lab() -> Iterator[Lab]:
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    with Lab() as lab:
        yield lab


@pytest.fixture
def pair(lab: Lab) -> Iterator[Pair]:
    """Two hosts, and what joins them by a delay line with more options."""
    one, two = lab.namespace("one"), lab.namespace("two")
    cables: list[subprocess.Popen[str]] = []

    def join(*options: str) -> subprocess.Popen[str]:
        ends = (f"{one.name}:eth0", f"{two.name}:eth0")
        cable = subprocess.Popen(
            [sys.executable, str(ROOT / "bench/delayline.py"), *ends, "--delay", str(DELAY), *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        cables.append(cable)
        assert cable.stdout is not None
        assert cable.stdout.readline() == "ready\n"
        for host, address in ((one, "10.9.0.1/24"), (two, "10.9.0.2/24")):
            lab.address(host, "eth0", address)
            host.ip("link set eth0 up")
        return cable

    yield one, two, join
    for cable in cables:
        with cable:
            cable.terminate()


@pytest.mark.root
@pytest.mark.parametrize("offload", [False, True])
def test_two_hosts_talk_through_it(pair: Pair, offload: bool) -> None:
    """A TCP transfer of many segments crosses; its handshake takes both delays."""
    one, two, join = pair
    cable = join(*(["--offload"] if offload else []))
    size = 5 << 20
    receiver = two.popen([sys.executable, "-c", RECEIVE], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert receiver.stdout is not None
    assert receiver.stdout.readline() == "listening\n"
    one.run([sys.executable, "-c", SEND, str(size), str(2 * DELAY)])
    assert receiver.stdout.readline() == f"{size}\n"
    output, _ = cable.communicate()
    there, back = json.loads(output)
    assert there["lost"] == there["overflowed"] == back["lost"] == back["overflowed"] == 0
    segments = size / 1448
    assert there["forwarded"] < segments if offload else there["forwarded"] > segments
    assert "eth0" not in one.ip("-br link")


@pytest.mark.root
@pytest.mark.parametrize("offload", [False, True])
def test_it_obeys_while_it_runs(pair: Pair, offload: bool) -> None:
    """Datagrams cross, then none does until they may again, and TCP crosses all the time."""
    one, two, join = pair
    cable = join(*(["--offload"] if offload else []))
    assert cable.stdin is not None
    with two.entered():
        listener = socket.create_server(("10.9.0.2", 9))
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with one.entered():
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def connected() -> None:
        """A round trip: what was sent before has come to the line, and what was told it is done."""
        with one.entered():
            socket.create_connection(("10.9.0.2", 9), 20).close()

    with listener, receiver, sender:
        receiver.bind(("10.9.0.2", 9))
        receiver.settimeout(20)
        for command, datagram in (("udp on", b"before"), ("udp off", b"lost"), ("udp on", b"after")):
            cable.stdin.write(f"{command}\n")
            cable.stdin.flush()
            connected()
            sender.sendto(datagram, ("10.9.0.2", 9))
            connected()
        assert [receiver.recv(100), receiver.recv(100)] == [b"before", b"after"]
    output, _ = cable.communicate()
    assert json.loads(output)[0]["udp_dropped"] == 1


@pytest.mark.root
def test_a_command_that_it_does_not_know_ends_it_with_a_sentence(pair: Pair) -> None:
    cable = pair[2]()
    _, said = cable.communicate("black out\n")
    assert "'black out' is no command" in said
    assert cable.returncode == 2


RECEIVE = """
import socket
with socket.create_server(("10.9.0.2", 9)) as listener:
    print("listening", flush=True)
    sock, _ = listener.accept()
    count = 0
    while data := sock.recv(65536):
        assert not data.strip(b"x")
        count += len(data)
    print(count, flush=True)
"""
SEND = """
import socket, sys, time
start = time.monotonic()
with socket.create_connection(("10.9.0.2", 9)) as sock:
    assert time.monotonic() - start >= float(sys.argv[2])
    sock.sendall(b"x" * int(sys.argv[1]))
"""
