"""The benchmark's delay line: its queue on a virtual clock, and once as a real cable between two hosts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.lab.net import Lab, missing

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))
from delayline import Line  # noqa: E402

DELAY = 0.005
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


@pytest.fixture
def lab() -> Iterator[Lab]:
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    with Lab() as lab:
        yield lab


@pytest.mark.root
@pytest.mark.parametrize("offload", [False, True])
def test_two_hosts_talk_through_it(lab: Lab, offload: bool) -> None:
    """A TCP transfer of many segments crosses; its handshake takes both delays."""
    one, two = lab.namespace("one"), lab.namespace("two")
    ends = (f"{one.name}:eth0", f"{two.name}:eth0")
    options = ("--delay", str(DELAY), *(["--offload"] if offload else []))
    with subprocess.Popen(
        [sys.executable, str(ROOT / "bench/delayline.py"), *ends, *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as cable:
        assert cable.stdout is not None
        assert cable.stdout.readline() == "ready\n"
        for host, address in ((one, "10.9.0.1/24"), (two, "10.9.0.2/24")):
            lab.address(host, "eth0", address)
            host.ip("link set eth0 up")
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
