"""The path: a script of probes and answers on a virtual clock, and two paths joined by a network that can be broken."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.lane.layout import CHALLENGE, KEEPALIVE, OVERHEAD, PROBE, PROBE_ACK, RESPONSE
from cryprq_proxy.lane.path import (
    AMPLIFICATION,
    BASE,
    CHALLENGE_INTERVAL,
    LEAST,
    RAISE,
    RETRY,
    RETRY_SOON,
    SILENCE,
    SOON,
    STEP,
    Path,
)

HOME = ("192.0.2.1", 1000)
AWAY = ("198.51.100.7", 2000)
EXIT = ("203.0.113.5", 443)


def counting() -> Callable[[int], bytes]:
    numbers = count(1)
    return lambda size: next(numbers).to_bytes(size)


class Net:
    """Client and exit, and what lies between them. `passes(size, to_exit, client's address)` decides."""

    def __init__(self, ceiling: int = 1472, delay: float = 0.01) -> None:
        self.now = 100.0
        self.delay = delay
        self.client = Path(True, ceiling, counting(), self.now)
        self.exit = Path(False, ceiling, counting(), self.now)
        self.source = HOME
        self.passes: Callable[[int, bool], bool] = lambda size, to_exit: True
        self.flying: list[tuple[float, bool, bytes, tuple[object, ...]]] = []
        self.sent: list[tuple[bool, int, int]] = []
        self.ticks = 0

    def run(self, seconds: float, client_sends: int = 0, exit_sends: int = 0) -> None:
        """Let time pass; with sizes, each side sends a datagram every 100 ms."""
        until, beat = self.now + seconds, self.now
        while True:
            for path, to_exit in ((self.client, True), (self.exit, False)):
                for message, address in path.outgoing:
                    self.put(to_exit, message, address)
                path.outgoing.clear()
            step = min(
                [flight[0] for flight in self.flying] + [self.client.deadline(), self.exit.deadline(), beat]
            )
            if step > until:
                self.now = until
                return
            self.now = max(self.now, step)
            if self.now >= beat:
                beat += 0.1
                if client_sends and self.client.up:
                    self.client.sent(self.now)
                    self.put(True, bytes((1,)).ljust(client_sends - OVERHEAD), None)
                if exit_sends and self.exit.up:
                    self.exit.sent(self.now)
                    self.put(False, bytes((1,)).ljust(exit_sends - OVERHEAD), None)
            landing = [flight for flight in self.flying if flight[0] <= self.now]
            self.flying = [flight for flight in self.flying if flight[0] > self.now]
            for _, to_exit, message, source in landing:
                receiver = self.exit if to_exit else self.client
                size = len(message) + OVERHEAD
                receiver.message(message[0], memoryview(message)[1:], size, source, self.now)
                receiver.received_from(source, size, True, self.now)
            for path in (self.client, self.exit):
                if path.deadline() <= self.now:
                    self.ticks += 1
                    path.tick(self.now)

    def put(self, to_exit: bool, message: bytes, address: object) -> None:
        size = len(message) + OVERHEAD
        self.sent.append((to_exit, message[0], size))
        target = EXIT if to_exit else (address or self.exit.address)
        if self.passes(size, to_exit) and (to_exit or target == self.source):
            self.flying.append((self.now + self.delay, to_exit, message, self.source if to_exit else EXIT))


def test_a_clear_path() -> None:
    net = Net()
    assert not net.client.up
    assert not net.exit.up
    assert net.exit.deadline() == inf
    net.run(1)
    assert net.client.up
    assert net.exit.up
    assert (net.client.size, net.exit.size) == (1472, 1472)
    assert net.exit.address == HOME
    assert net.client.round_trip == pytest.approx(0.02)
    assert net.client.reason == "probes are answered"
    assert net.client.counters.falls == net.exit.counters.falls == 0


def test_the_least_round_trip_is_that_without_queues() -> None:
    net = Net()
    net.run(1)
    net.delay = 0.1
    net.run(200)
    for path in (net.client, net.exit):
        assert path.round_trip == pytest.approx(0.2, rel=0.2)
        assert path.least_round_trip == pytest.approx(0.02)
    net.client.restart(1472, net.now)
    assert net.client.least_round_trip == inf, "another network"


@pytest.mark.parametrize("limit", [1471, 1400, 1252, 1200, 1199, 1124, 616, 600])
def test_the_largest_size_is_found(limit: int) -> None:
    net = Net()
    net.passes = lambda size, to_exit: size <= limit
    net.run(30)
    for path in (net.client, net.exit):
        assert path.up
        assert limit - STEP < path.size <= limit


def test_a_search_says_that_it_runs() -> None:
    """Before its end the size is only the largest so far."""
    net = Net()
    net.passes = lambda size, to_exit: size <= 1400
    assert net.client.searching
    assert not net.exit.searching, "nobody is there yet"
    net.run(0.1)
    assert net.client.up and net.client.size == BASE
    assert net.client.searching and net.exit.searching
    net.run(30)
    assert not net.client.searching and not net.exit.searching


def test_each_direction_has_a_size_of_its_own() -> None:
    net = Net()
    net.passes = lambda size, to_exit: size <= (1472 if to_exit else 1300)
    net.run(30)
    assert net.client.size == 1472
    assert 1300 - STEP < net.exit.size <= 1300


def test_udp_is_blocked_from_the_start_and_later_not() -> None:
    net = Net()
    net.passes = lambda size, to_exit: False
    net.run(60)
    assert not net.client.up
    assert "UDP is blocked" in net.client.reason
    assert len(net.sent) < 2 * (60 / RETRY + 5)
    net.passes = lambda size, to_exit: True
    net.run(RETRY + 1)
    assert net.client.up
    assert net.exit.up


@pytest.mark.parametrize("dead", ["both", "to the exit", "to the client"])
def test_blocked_in_the_middle_and_back(dead: str) -> None:
    net = Net()
    net.run(5, 1000, 1000)
    blocked = {"both": (True, False), "to the exit": (True,), "to the client": (False,)}[dead]
    net.passes = lambda size, to_exit: to_exit not in blocked
    net.run(SILENCE + 4, 1000, 1000)
    if True in blocked:
        assert not net.client.up
    if False in blocked:
        assert not net.exit.up
    assert net.client.counters.shrinks == net.exit.counters.shrinks == 0
    assert net.client.counters.falls + net.exit.counters.falls >= 1
    net.passes = lambda size, to_exit: True
    net.run(RETRY + 3, 1000, 1000)
    assert net.client.up
    assert net.exit.up
    assert net.client.size == 1472


def test_after_a_black_out_it_is_up_again_at_once() -> None:
    net = Net()
    net.run(5, 1000, 1000)
    net.passes = lambda size, to_exit: False
    net.run(SILENCE + 2, 1000, 1000)
    assert not net.client.up and not net.exit.up
    net.passes = lambda size, to_exit: True
    net.run(RETRY_SOON + 0.3, 1000, 1000)
    assert net.client.up and net.exit.up


def test_while_it_stays_down_it_is_tried_less_often() -> None:
    net = Net()
    net.run(5, 1000, 1000)
    net.passes = lambda size, to_exit: False
    net.run(SILENCE + SOON + 5)
    probes = net.client.counters.probes
    net.run(60)
    assert net.client.counters.probes - probes <= 2 * (60 / RETRY + 1)


def test_only_receiving_is_not_silence() -> None:
    net = Net()
    net.run(3)
    net.sent.clear()
    net.run(9, client_sends=500)
    assert net.client.up
    assert net.client.counters.falls == 0
    keepalives = [to_exit for to_exit, kind, _ in net.sent if kind == KEEPALIVE]
    assert 3 <= len(keepalives) <= 9
    assert not any(keepalives)


def test_two_idle_sides_exchange_only_probes() -> None:
    net = Net()
    net.run(5)
    net.sent.clear()
    net.run(100)
    assert {kind for _, kind, _ in net.sent} == {PROBE, PROBE_ACK}
    assert len(net.sent) <= 4 * 11


def test_an_idle_side_is_called_for_its_probes_only() -> None:
    net = Net()
    net.run(5)
    net.sent.clear()
    net.ticks = 0
    net.run(100)
    assert net.ticks == sum(kind == PROBE for _, kind, _ in net.sent)
    assert net.client.dozes and net.exit.dozes


def test_a_side_that_dozed_notices_silence_as_soon_as_another() -> None:
    net = Net()
    net.run(25)
    assert net.client.dozes
    net.passes = lambda size, to_exit: to_exit
    net.run(0.1, client_sends=500)
    assert not net.client.dozes
    net.run(SILENCE + 1.0, client_sends=500)
    assert not net.client.up


def test_a_side_that_dozed_answers_what_comes_with_a_keepalive() -> None:
    net = Net()
    net.run(25)
    net.sent.clear()
    net.run(1.0, exit_sends=500)
    assert not net.client.dozes
    net.run(2.5)
    assert (True, KEEPALIVE) in [(to_exit, kind) for to_exit, kind, _ in net.sent]
    assert net.client.dozes and net.exit.dozes


def test_the_path_shrinks_under_load() -> None:
    net = Net()
    net.run(5, 1472)
    net.passes = lambda size, to_exit: size <= 1252
    net.run(6, 1472, 1000)
    assert net.client.up
    assert net.client.size <= 1252
    net.run(10, 1000, 1000)
    assert 1252 - STEP < net.client.size <= 1252
    assert net.client.counters.falls == 0
    assert net.client.counters.shrinks >= 1
    net.passes = lambda size, to_exit: True
    net.run(RAISE + 20)
    assert net.client.size == 1472


def test_in_doubt_the_path_shrinks_soon() -> None:
    net = Net()
    net.run(10)
    net.passes = lambda size, to_exit: size <= 1280
    net.client.doubt(net.now)
    net.client.doubt(net.now)
    net.run(1.0, client_sends=1472)
    assert net.client.up and net.client.size == BASE and net.client.counters.shrinks == 1
    net.run(10, client_sends=1200)
    assert net.client.up and 1280 - STEP <= net.client.size <= 1280 and net.client.counters.falls == 0


@pytest.mark.parametrize("dark", [0.2, 1.0, 2.0])
def test_a_doubt_in_a_short_black_out_changes_nothing(dark: float) -> None:
    net = Net()
    net.run(10)
    net.passes = lambda size, to_exit: False
    net.client.doubt(net.now)
    net.run(dark, client_sends=1472)
    net.passes = lambda size, to_exit: True
    net.run(5, client_sends=1472)
    counters = net.client.counters
    assert net.client.up and net.client.size == 1472 and counters.falls == counters.shrinks == 0


def test_the_kernel_refuses_a_size() -> None:
    net = Net()
    net.run(3)
    net.client.too_big(1472, net.now)
    assert net.client.size == BASE
    net.passes = lambda size, to_exit: size < 1472
    net.run(10)
    assert 1472 - STEP <= net.client.size < 1472
    net.client.too_big(BASE, net.now)
    assert net.client.size == LEAST
    assert net.client.up
    net.client.too_big(LEAST, net.now)
    assert not net.client.up
    assert "local network" in net.client.reason


def test_another_network_at_the_client() -> None:
    net = Net()
    net.run(3)
    net.source = AWAY
    net.client.restart(1400, net.now)
    assert not net.client.up
    net.run(3)
    assert net.exit.address == AWAY
    assert net.exit.counters.migrations == 1
    assert net.client.up
    assert net.client.size == 1400
    assert net.exit.size == 1472


def test_an_address_change_that_only_the_exit_sees() -> None:
    net = Net()
    net.run(3, 1000, 1000)
    net.source = AWAY
    net.run(1, 1000, 1000)
    assert net.exit.address == AWAY
    assert net.client.counters.falls == net.exit.counters.falls == 0


def exit_at_home() -> Path:
    path = Path(False, 1472, counting(), 0.0)
    path.received_from(HOME, 500, True, 0.0)
    path.outgoing.clear()
    return path


def test_migration_needs_the_token_from_the_new_address() -> None:
    path = exit_at_home()
    path.received_from(AWAY, 500, False, 1.0)
    assert path.outgoing == []
    path.received_from(AWAY, 500, True, 1.0)
    ((challenge, address),) = path.outgoing
    assert (challenge[0], address) == (CHALLENGE, AWAY)
    token = memoryview(challenge)[1:]
    path.message(RESPONSE, memoryview(bytes(8)), 38, AWAY, 1.1)
    path.message(RESPONSE, token, 38, HOME, 1.1)
    path.message(RESPONSE, token[:7], 37, AWAY, 1.1)
    assert path.address == HOME
    path.message(RESPONSE, token, 38, AWAY, 1.1)
    assert path.address == AWAY
    path.message(RESPONSE, token, 38, HOME, 1.2)
    assert path.address == AWAY


def test_little_is_sent_to_an_unproven_address() -> None:
    path = exit_at_home()
    sent = 0
    for received in range(1, 2000):
        path.received_from(AWAY, 1, True, received / 10)
        sent += sum(len(message) + OVERHEAD for message, address in path.outgoing if address == AWAY)
        path.outgoing.clear()
        assert sent <= AMPLIFICATION * received
    assert sent


def test_little_is_sent_to_the_first_address_before_it_answers() -> None:
    path = Path(False, 1472, counting(), 0.0)
    sent = 0
    for received in range(1, 5000):
        now = received / 100
        path.received_from(HOME, 1, True, now)
        if path.deadline() <= now:
            path.tick(now)
        for message, _ in path.outgoing:
            size = len(message) + OVERHEAD
            if path.affords(size):
                sent += size
                probe = message
        path.outgoing.clear()
        assert sent <= AMPLIFICATION * received and not path.up
    assert sent and not path.affords(1 << 20)
    answer = probe[1:9] + (len(probe) + OVERHEAD).to_bytes(2)
    path.message(PROBE_ACK, memoryview(answer), 40, HOME, 51.0)
    assert path.up and path.affords(1 << 20)


def test_an_address_that_has_answered_a_challenge_is_proved() -> None:
    path = exit_at_home()
    assert not path.affords(1 << 20)
    path.received_from(AWAY, 500, True, 1.0)
    ((challenge, _),) = [sent for sent in path.outgoing if sent[1] == AWAY]
    path.message(RESPONSE, memoryview(challenge)[1:], 38, AWAY, 1.1)
    assert path.affords(1 << 20)


def test_an_unproven_address_is_asked_at_intervals() -> None:
    path = exit_at_home()
    asked = []
    for tick in range(8):
        now = 1.0 + tick * CHALLENGE_INTERVAL / 4
        path.received_from(AWAY, 10_000, True, now)
        asked += [now for _, address in path.outgoing if address == AWAY]
        path.outgoing.clear()
    assert asked == [1.0, 1.0 + CHALLENGE_INTERVAL]


def test_an_acknowledgement_must_fit_the_probe() -> None:
    path = Path(True, 1472, counting(), 0.0)
    path.tick(0.0)
    probes = [message for message, _ in path.outgoing]
    assert [len(probe) + OVERHEAD for probe in probes] == [BASE, LEAST]
    token = probes[0][1:9]
    for body in (
        token + (BASE - 1).to_bytes(2),
        bytes(8) + BASE.to_bytes(2),
        token,
        token + BASE.to_bytes(3),
    ):
        path.message(PROBE_ACK, memoryview(body), 40, EXIT, 0.1)
        assert not path.up
    path.message(PROBE_ACK, memoryview(probes[1][1:9] + LEAST.to_bytes(2)), 40, EXIT, 0.1)
    assert path.up


@given(
    st.booleans(),
    st.lists(
        st.tuples(
            st.integers(0, 255),
            st.binary(max_size=12),
            st.integers(0, 3),
            st.floats(0, 20),
            st.integers(30, 70_000),
        ),
        max_size=80,
    ),
)
def test_whatever_comes_the_path_stays_within_its_bounds(
    dialler: bool, steps: list[tuple[int, bytes, int, float, int]]
) -> None:
    path, now = Path(dialler, 1472, counting(), 0.0), 0.0
    for kind, body, choice, later, size in steps:
        now += later
        if choice == 0:
            path.sent(now)
        elif choice == 1:
            path.too_big(size, now)
        else:
            address = (HOME, AWAY)[choice - 2]
            path.message(kind % 10, memoryview(body), size, address, now)
            path.received_from(address, size, bool(kind & 1), now)
        if path.deadline() <= now:
            path.tick(now)
        assert path.deadline() == inf or path.deadline() > now or path.outgoing
        assert LEAST <= path.size <= 1472
        assert len(path._probes) <= 16
        assert len(path.outgoing) <= 4
        path.outgoing.clear()
