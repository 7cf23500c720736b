"""Retention: what waits, what is sent, what is acknowledged, what goes again, and the bounds on it."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.session.retention import (
    DROPS,
    REPEATED,
    SLOT_HEADROOM,
    SLOT_MINIMUM,
    SLOT_SIZE,
    SMALL,
    UNIT_COST,
    MemoryBudget,
    PathLog,
    Retention,
    SlotPool,
    Unit,
    frame_slot,
)
from cryprq_proxy.session.wire import (
    DATA,
    DATA_HEADER,
    MAX_DATA,
    StreamProtocol,
    encode_data_header,
    encode_open,
)
from tests.support.links import TARGET

HEADER = encode_data_header(DATA, 7, 0)


class Kept:
    """A Retention with a path that puts each unit into a record of its own."""

    def __init__(
        self, bound: int = 1 << 20, budget: MemoryBudget | None = None, pool: SlotPool | None = None
    ) -> None:
        self.retention = Retention(bound, budget or MemoryBudget(1 << 30), pool or SlotPool())
        self.log = PathLog(0)
        self.records = 0

    def send_waiting(self, most: int = 1 << 30) -> list[bytes]:
        """Send up to `most` units."""
        frames: list[bytes] = []
        while len(frames) < most and (unit := self.retention.next()) is not None:
            frames.append(bytes(unit.frame))
            self.retention.mark_sent(self.log, self.records)
            self.records += 1
        return frames

    def send(self, unit: Unit) -> bool:
        """Send a unit that did not wait."""
        self.records += 1
        return self.retention.append_sent(unit, self.log, self.records - 1)

    def acknowledge(self, records: int) -> None:
        """The peer has the first `records` records of this path."""
        self.retention.acknowledge(self.log, records)
        assert not self.retention.drop()

    def next_path(self) -> PathLog:
        """The path is lost, and another one there. Returns the log of the lost one."""
        log = self.log
        self.retention.lose(log)
        self.log, self.records = PathLog(log.number + 1), 0
        return log


def data(size: int) -> Unit:
    return Unit(HEADER + bytes(size), size)


# --- slots ---


def test_the_slot_used_last_comes_first() -> None:
    pool = SlotPool(keep=2)
    slots = [pool.take() for _ in range(3)]
    assert all(len(slot) == SLOT_SIZE for slot in slots) and len({id(slot.obj) for slot in slots}) == 3
    for slot in slots:
        pool.give(slot)
    assert pool.take() is slots[1] and pool.take() is slots[0], "only two are kept"
    assert pool.take() is not slots[2]


@pytest.mark.parametrize("size", [1, SLOT_MINIMUM - 1, SLOT_MINIMUM, MAX_DATA])
def test_framing_a_slot(size: int) -> None:
    pool = SlotPool()
    slot = pool.take()
    data = bytes(index % 251 for index in range(size))
    slot[SLOT_HEADROOM : SLOT_HEADROOM + size] = data
    framed = frame_slot(slot, size, HEADER, pool)
    assert bytes(framed.frame) == HEADER + data and framed.size == size
    if size < SLOT_MINIMUM:
        cost = UNIT_COST + DATA_HEADER + size
        assert pool.take() is slot and framed.slot is None and framed.cost == cost
        slot[:] = bytes(SLOT_SIZE)
        assert framed.frame == HEADER + data, "the slot's next user must not change it"
    else:
        assert framed.slot is slot and pool.take() is not slot and framed.cost == UNIT_COST + SLOT_SIZE


def test_a_slot_comes_back_with_the_acknowledgement() -> None:
    pool = SlotPool()
    on = Kept(pool=pool)
    slot = pool.take()
    on.send(frame_slot(slot, MAX_DATA, HEADER, pool))
    assert pool.take() is not slot
    on.acknowledge(1)
    assert pool.take() is slot and on.retention.kept == 0


# --- order and acknowledgements ---


def test_frames_are_sent_in_order_and_once() -> None:
    on = Kept()
    for frame in (b"a", b"b"):
        on.retention.append(frame)
    assert on.send_waiting() == [b"a", b"b"]
    on.send(data(1))
    on.retention.append(b"c")
    assert on.retention.waits and on.send_waiting() == [b"c"] and not on.retention.waits
    assert [unit.record for unit in on.log.units] == [0, 1, 2, 3]


def test_control_frames_go_first_and_then_what_lost_paths_have_carried() -> None:
    on = Kept()
    on.retention.append(b"lost")
    on.send_waiting()
    on.next_path()
    on.retention.append(b"of a stream")
    on.retention.append_control(b"control")
    assert on.send_waiting() == [b"control", b"lost", b"of a stream"]


def test_an_acknowledgement_drops_what_the_records_carried() -> None:
    on = Kept()
    for frame in (b"a", b"b", b"c"):
        on.retention.append(frame)
    on.send_waiting()
    on.acknowledge(2)
    assert [bytes(unit.frame) for unit in on.log.units] == [b"c"]
    on.acknowledge(2)
    assert len(on.log.units) == 1 and on.retention.kept == UNIT_COST + 1
    on.acknowledge(3)
    assert not on.log.units and on.retention.kept == 0


def test_frames_of_one_record_are_dropped_together() -> None:
    on = Kept()
    for frame in (b"a", b"b"):
        on.retention.append(frame)
        on.retention.mark_sent(on.log, 5)
    on.acknowledge(5)
    assert len(on.log.units) == 2
    on.acknowledge(6)
    assert not on.log.units


def test_what_a_lost_path_has_carried_goes_again() -> None:
    on = Kept()
    for frame in (b"a", b"b", b"c"):
        on.retention.append(frame)
    on.send_waiting()
    on.acknowledge(1)
    on.retention.append(b"d")
    on.next_path()
    assert on.send_waiting() == [b"b", b"c", b"d"]
    assert [unit.record for unit in on.log.units] == [0, 1, 2], "in the records of the new path"
    on.acknowledge(3)
    assert on.retention.kept == 0


def test_a_late_acknowledgement_spares_what_has_not_left_again() -> None:
    on = Kept()
    for frame in (b"a", b"b", b"c", b"d"):
        on.retention.append(frame)
    on.send_waiting()
    lost = on.next_path()
    assert on.send_waiting(1) == [b"a"]
    assert list(on.retention.lost_logs(0)) == [lost] and not on.retention.lost_logs(1)
    on.retention.acknowledge(lost, 3)
    assert not on.retention.drop()
    assert on.send_waiting() == [b"d"]
    assert not on.retention.lost_logs(0), "nothing of it is left"
    on.acknowledge(2)
    assert on.retention.kept == 0


def test_a_path_that_is_lost_with_nothing_under_way_leaves_nothing() -> None:
    on = Kept()
    on.next_path()
    assert not on.retention.waits and not on.retention.lost_logs(0)


def test_the_path_that_was_lost_last_goes_first() -> None:
    """It has carried the beginning of what the one before has left: a stream's OPEN perhaps, and that goes first."""
    on = Kept()
    for frame in (b"open", b"data", b"more"):
        on.retention.append(frame)
    on.send_waiting()
    on.next_path()
    assert on.send_waiting(1) == [b"open"]
    on.retention.append_control(b"control")
    assert on.send_waiting(1) == [b"control"]
    on.next_path()
    assert on.send_waiting() == [b"open", b"control", b"data", b"more"]


def test_a_path_that_is_lost_piece_by_piece() -> None:
    """It was in doubt, went on, and is gone now: the last piece first, and one acknowledgement for all."""
    on = Kept()
    for frame in (b"open", b"data", b"more"):
        on.retention.append(frame)
    on.send_waiting()
    on.retention.lose(on.log)
    on.log = PathLog(0)
    assert on.send_waiting(1) == [b"open"]
    assert [unit.record for unit in on.log.units] == [3]
    on.next_path()
    pieces = list(on.retention.lost_logs(0))
    assert len(pieces) == 2
    for log in pieces:
        on.retention.acknowledge(log, 2)
    assert not on.retention.drop()
    assert on.send_waiting() == [b"open", b"more"]
    assert not on.retention.lost_logs(0)


def test_nothing_is_sent_behind_a_lost_log_that_is_still_being_dropped() -> None:
    """What comes behind what is dropped may be an OPEN, without which the rest must not leave."""
    on = Kept(bound=1 << 30)
    for index in range(DROPS + 2):
        on.retention.append(b"%d" % index)
    on.send_waiting()
    lost = on.next_path()
    on.retention.append(b"later")
    on.retention.acknowledge(lost, DROPS + 1)
    assert on.retention.drop() and on.retention.stalls and on.retention.waits
    assert on.send_waiting() == []
    on.retention.append_control(b"control")
    assert on.send_waiting() == [b"control"], "what is no part of a stream need not wait"
    assert not on.retention.drop() and not on.retention.stalls
    assert on.send_waiting() == [b"%d" % (DROPS + 1), b"later"]


def test_a_bounded_number_of_units_is_dropped_at_once() -> None:
    on = Kept(bound=1 << 30)
    for _ in range(3 * DROPS):
        on.send(data(1))
    on.retention.acknowledge(on.log, 3 * DROPS)
    on.retention.acknowledge(on.log, 3 * DROPS)
    assert on.retention.drop() and on.retention.dropped == DROPS
    assert on.retention.drop(10) and on.retention.dropped == DROPS + 10
    assert on.retention.drop()
    assert not on.retention.drop() and on.retention.kept == 0


# --- a path that takes over ---


def test_opens_are_repeated_when_another_path_takes_over() -> None:
    on = Kept()
    opens = [encode_open(number, StreamProtocol.TCP, TARGET) for number in (1, 2, 3)]
    for frame in (opens[0], b"\x06window", opens[1], opens[2]):
        on.retention.append(frame)
    on.send_waiting()
    on.send(data(5))
    on.acknowledge(1)
    first, kept = on.log, on.retention.kept
    on.retention.append(b"later")
    on.retention.repeat_opens(first)
    on.log, on.records = PathLog(1), 0
    assert on.send_waiting() == [opens[1], opens[2], b"later"]
    assert len(first.units) == 4, "the path goes on, and may be acknowledged"
    assert on.retention.kept == kept + sum(UNIT_COST + len(frame) for frame in (*opens[1:], b"later"))


def test_repeated_opens_do_not_multiply() -> None:
    """Two paths may take over from each other while nothing is acknowledged."""
    on = Kept()
    frame = encode_open(1, StreamProtocol.TCP, TARGET)
    logs = deque([on.log, PathLog(1)])
    on.retention.append(frame)
    on.send_waiting()
    for turn in range(1, 20):
        on.retention.repeat_opens(logs[0])
        logs.rotate()
        on.log = logs[0]
        assert on.send_waiting() == [frame]
        assert on.retention.kept == (turn + 1) * (UNIT_COST + len(frame))


def test_of_a_path_in_doubt_the_oldest_and_what_is_small_go_again() -> None:
    on = Kept()
    units = [data(SMALL + number) for number in range(1, 4)]
    small = [data(10), data(20)]
    for unit in (units[0], small[0], units[1], small[1], units[2]):
        on.send(unit)
    first, kept = on.log, on.retention.kept
    on.retention.repeat_oldest(first)
    assert list(first.units) == [units[1], units[2]], "the path goes on with the rest"
    on.log, on.records = PathLog(1), 0
    assert on.send_waiting() == [bytes(unit.frame) for unit in (units[0], *small)]
    assert on.retention.kept == kept


def test_of_a_path_in_doubt_what_is_acknowledged_does_not_go_again() -> None:
    on = Kept()
    for _ in range(5):
        on.send(data(10))
    first, on.log = on.log, PathLog(1)
    on.retention.acknowledge(first, 2)
    on.retention.repeat_oldest(first)
    on.retention.drop()
    on.retention.acknowledge(on.retention.lost_logs(0)[0], 3)
    on.retention.drop()
    assert len(on.send_waiting()) == 2 and on.retention.kept == 2 * data(10).cost


def test_a_path_in_doubt_keeps_the_opens_of_what_it_keeps() -> None:
    """Whichever of the two parts is lost again first: no stream's data goes before its OPEN."""
    on = Kept()
    frame = encode_open(1, StreamProtocol.TCP, TARGET)
    on.retention.append(frame)
    on.send_waiting()
    large = [data(SMALL + 1), data(SMALL + 2)]
    for unit in large:
        on.send(unit)
    first, on.log, on.records = on.log, PathLog(1), 0
    on.retention.repeat_oldest(first)
    kept = [bytes(unit.frame) for unit in first.units]
    assert kept == [frame, *[bytes(unit.frame) for unit in large]]
    assert on.retention.kept == 2 * (UNIT_COST + len(frame)) + sum(unit.cost for unit in large)
    on.retention.lose(first)
    assert on.send_waiting() == [*kept, frame]
    on.acknowledge(on.records)
    assert on.retention.kept == 0


def test_a_path_in_doubt_keeps_nothing_when_all_goes_again() -> None:
    on = Kept()
    on.retention.append(encode_open(1, StreamProtocol.TCP, TARGET))
    on.send_waiting()
    kept = on.retention.kept
    on.retention.repeat_oldest(on.log)
    assert not on.log.units and on.retention.kept == kept


def test_of_a_path_in_doubt_a_bounded_part_goes_again() -> None:
    on = Kept(bound=1 << 30)
    for size in (MAX_DATA, *[SMALL - DATA_HEADER] * 100):
        on.send(data(size))
    on.retention.repeat_oldest(on.log)
    [log] = on.retention.lost_logs(0)
    assert [len(unit.frame) for unit in log.units] == [MAX_DATA + DATA_HEADER]
    on.retention.repeat_oldest(on.log)
    sizes = [len(unit.frame) for unit in on.retention.lost_logs(0)[1].units]
    assert sum(sizes) == REPEATED and set(sizes) == {SMALL}


def test_of_a_path_in_doubt_a_bounded_number_of_units_is_looked_at() -> None:
    on = Kept(bound=1 << 40)
    for _ in range(DROPS):
        on.send(data(SMALL))
    on.send(small := data(1))
    on.retention.repeat_oldest(on.log)
    assert len(on.retention.lost_logs(0)[0].units) == 1
    assert on.log.units[-1] is small


# --- bounds ---


def test_the_bound_of_a_session() -> None:
    on = Kept(bound=4096)
    while on.retention.has_room():
        room = on.send(data(512))
        assert room is on.retention.has_room()
    assert 4096 <= on.retention.kept < 4096 + data(512).cost
    on.retention.append(b"small frames always may")
    on.acknowledge(1)
    assert on.retention.has_room() is (on.retention.kept < 4096)


def test_what_waits_to_go_again_takes_no_more_room_than_before() -> None:
    on = Kept(bound=4096)
    while on.retention.has_room():
        on.send(data(512))
    kept = on.retention.kept
    on.next_path()
    assert on.retention.kept == kept and not on.retention.has_room()
    on.send_waiting()
    assert on.retention.kept == kept
    on.acknowledge(1)
    assert on.retention.kept == kept - data(512).cost


def test_the_budget_of_the_process_leaves_each_session_its_share() -> None:
    budget = MemoryBudget(total=3000)
    greedy, modest = Kept(bound=16_000, budget=budget), Kept(bound=16_000, budget=budget)
    while greedy.retention.has_room():
        greedy.send(data(100))
    assert 3000 <= budget.used == greedy.retention.kept < 3000 + data(100).cost
    while modest.retention.has_room():
        modest.send(data(100))
    assert 1000 <= modest.retention.kept < 1000 + data(100).cost
    greedy.acknowledge(greedy.records)
    assert budget.used == modest.retention.kept
    assert greedy.retention.has_room() and modest.retention.has_room()


def test_the_end_gives_everything_back() -> None:
    budget, pool = MemoryBudget(1 << 20), SlotPool()
    on = Kept(budget=budget, pool=pool)
    slot = pool.take()
    on.send(frame_slot(slot, MAX_DATA, HEADER, pool))
    on.next_path()
    on.send(data(10))
    on.retention.append(b"a")
    on.retention.append_control(b"b")
    for _ in range(2):
        on.retention.clear([on.log])
        assert not on.retention.drop()
        assert budget.used == on.retention.kept == 0 and on.retention.next() is None
    assert pool.take() is slot and not on.retention.lost_logs(0)


# --- against a model ---

CALLS = ["append", "control", "data", "send", "ack", "late ack", "lose", "doubt"]


class Model:
    """A peer that gets records in order on each path, and what it has to get: `kept` is exactly what it has not
    acknowledged."""

    def __init__(self) -> None:
        self.budget = MemoryBudget(1 << 20)
        self.on = Kept(budget=self.budget)
        self.everything: list[bytes] = []
        self.carried: dict[int, list[bytes]] = {0: []}
        """By path: what each of its records held."""
        self.acknowledged: dict[int, int] = {0: 0}

    def call(self, name: str, argument: int) -> None:
        on, retention = self.on, self.on.retention
        if name in ("append", "control"):
            frame = b"%d" % len(self.everything)
            self.everything.append(frame)
            (retention.append if name == "append" else retention.append_control)(frame)
        elif name == "data" and not retention.waits:
            unit = Unit(HEADER + b"%d" % len(self.everything), 1)
            self.everything.append(bytes(unit.frame))
            on.send(unit)
            self.sent([bytes(unit.frame)])
        elif name == "send":
            self.sent(on.send_waiting(argument))
        elif name in ("ack", "late ack"):
            number = on.log.number if name == "ack" else argument % (on.log.number + 1)
            records = min(len(self.carried[number]), self.acknowledged[number] + argument)
            self.acknowledged[number] = records
            logs = [*retention.lost_logs(number), *([on.log] if number == on.log.number else [])]
            for log in logs:
                retention.acknowledge(log, records)
            assert not retention.drop()
        elif name == "lose":
            on.next_path()
            self.carried[on.log.number], self.acknowledged[on.log.number] = [], 0
        elif name == "doubt":
            retention.lose(on.log)
            on.log = PathLog(on.log.number, on.log.acknowledged)

    def sent(self, frames: list[bytes]) -> None:
        self.carried[self.on.log.number] += frames

    def check(self) -> None:
        logs = [self.on.log, *self.on.retention._lost]
        units = [unit for log in logs for unit in log.units]
        units += [*self.on.retention._control, *self.on.retention._streams]
        frames = [bytes(unit.frame) for unit in units]
        assert len(set(frames)) == len(frames), "each unit is in one place"
        assert self.on.retention.kept == self.budget.used == sum(unit.cost for unit in units)
        for frame in set(self.everything) - set(frames):
            assert any(
                frame in carried[: self.acknowledged[path]] for path, carried in self.carried.items()
            ), "only what is acknowledged is gone"


@given(st.lists(st.tuples(st.sampled_from(CALLS), st.integers(0, 5)), max_size=60))
def test_any_order_of_calls(calls: list[tuple[str, int]]) -> None:
    """Nothing is lost, whichever paths are."""
    model = Model()
    for name, argument in calls:
        model.call(name, argument)
        model.check()
    on = model.on
    model.sent(on.send_waiting())
    on.acknowledge(on.records)
    model.acknowledged[on.log.number] = on.records
    model.check()
    assert on.retention.kept == 0 and model.budget.used == 0
