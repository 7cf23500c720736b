"""The send log: what it keeps, for how long, and what that counts for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.errors import CloseReason, PeerError
from cryprq_proxy.session.sendlog import (
    FRAME_COST,
    SLOT_HEADROOM,
    SLOT_MINIMUM,
    SLOT_SIZE,
    Chunk,
    MemoryBudget,
    SendLog,
    SlotPool,
    frame_slot,
)
from cryprq_proxy.session.wire import DATA, MAX_DATA, encode_data_header

HEADER = encode_data_header(DATA, 7)


def new_log(
    bound: int = 1 << 20, budget: MemoryBudget | None = None, pool: SlotPool | None = None
) -> SendLog:
    return SendLog(bound, budget or MemoryBudget(1 << 30), pool or SlotPool())


def send_waiting(log: SendLog) -> list[bytes]:
    frames = []
    while (frame := log.next_unsent()) is not None:
        frames.append(bytes(frame))
        log.mark_sent()
    return frames


def chunk(size: int) -> Chunk:
    return Chunk(HEADER + bytes(size), size, None)


def refused(call: object, count: int) -> None:
    with pytest.raises(PeerError) as caught:
        call(count)  # type: ignore[operator]
    assert type(caught.value) is PeerError and caught.value.reason is CloseReason.RESUME


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
        assert pool.take() is slot and framed.slot is None and framed.cost == FRAME_COST + size
        slot[:] = bytes(SLOT_SIZE)
        assert framed.frame == HEADER + data, "the slot's next user must not change it"
    else:
        assert framed.slot is slot and pool.take() is not slot and framed.cost == FRAME_COST + SLOT_SIZE


def test_a_slot_comes_back_with_the_acknowledgement() -> None:
    pool = SlotPool()
    log = new_log(pool=pool)
    slot = pool.take()
    log.append_sent(frame_slot(slot, MAX_DATA, HEADER, pool))
    assert pool.take() is not slot
    log.acknowledge(1)
    log.drop()
    assert pool.take() is slot and log.kept == 0


# --- order and counts ---


def test_frames_are_sent_in_order_and_once() -> None:
    log = new_log()
    for frame in (b"a", b"b"):
        log.append(frame)
    assert send_waiting(log) == [b"a", b"b"]
    log.append_sent(chunk(1))
    log.append(b"c")
    assert send_waiting(log) == [b"c"]
    assert (log.acknowledged, log.sent) == (0, 4)


def test_acknowledgements_out_of_range() -> None:
    log = new_log()
    log.append(b"a")
    refused(log.acknowledge, 1)  # not sent yet
    send_waiting(log)
    log.acknowledge(1)
    log.drop()
    log.acknowledge(1)
    log.drop()
    refused(log.acknowledge, 0)
    refused(log.acknowledge, 2)
    refused(log.acknowledge, 2**64 - 1)
    assert (log.acknowledged, log.sent, log.kept) == (1, 1, 0)


def test_rewinding_sends_again_what_did_not_arrive() -> None:
    log = new_log()
    for frame in (b"a", b"b", b"c"):
        log.append(frame)
    send_waiting(log)
    log.append(b"d")
    log.rewind(1)
    assert (log.acknowledged, log.sent) == (1, 1)
    assert send_waiting(log) == [b"b", b"c", b"d"]
    assert log.sent == 4
    log.rewind(4)
    assert send_waiting(log) == [] and log.kept > 0
    assert not log.drop() and log.kept == 0


def test_rewinding_out_of_range() -> None:
    log = new_log()
    for frame in (b"a", b"b", b"c"):
        log.append(frame)
    send_waiting(log)
    log.acknowledge(2)
    log.drop()
    log.append(b"never sent")
    refused(log.rewind, 1)
    refused(log.rewind, 4)
    log.rewind(3)
    assert send_waiting(log) == [b"never sent"]


# --- bounds ---


def test_the_bound_of_a_session() -> None:
    log = new_log(bound=4096)
    while log.has_room():
        log.append_sent(chunk(512))
    assert 4096 <= log.kept < 4096 + FRAME_COST + 512
    log.append(b"small frames always may")
    log.acknowledge(1)
    log.drop()
    assert log.has_room() is (log.kept < 4096)


def test_the_budget_of_the_process_leaves_each_session_its_share() -> None:
    budget = MemoryBudget(total=3000)
    greedy, modest = new_log(bound=16_000, budget=budget), new_log(bound=16_000, budget=budget)
    while greedy.has_room():
        greedy.append_sent(chunk(100))
    assert 3000 <= budget.used == greedy.kept < 3000 + FRAME_COST + 100
    while modest.has_room():
        modest.append_sent(chunk(100))
    assert 1000 <= modest.kept < 1000 + FRAME_COST + 100
    greedy.acknowledge(greedy.sent)
    greedy.drop()
    assert budget.used == modest.kept and greedy.has_room() and modest.has_room()


def test_the_end_gives_everything_back() -> None:
    budget = MemoryBudget(1 << 20)
    log = new_log(budget=budget)
    log.append_sent(chunk(10))
    log.append(b"a")
    log.clear()
    assert not log.drop()
    assert budget.used == log.kept == 0 and log.next_unsent() is None
    log.clear()
    assert not log.drop()
    assert budget.used == 0


# --- against a model ---


@given(
    st.lists(
        st.tuples(st.sampled_from(["append", "data", "send", "ack", "rewind"]), st.integers(0, 5)),
        max_size=60,
    )
)
def test_any_order_of_calls(calls: list[tuple[str, int]]) -> None:
    """The peer gets every frame in order; `kept` is exactly what it has not acknowledged."""
    budget = MemoryBudget(1 << 20)
    log = new_log(budget=budget)
    everything: list[bytes] = []
    sent = acknowledged = 0
    for index, (call, argument) in enumerate(calls):
        if call == "append" or (call == "data" and sent < len(everything)):
            everything.append(b"%d" % index)
            log.append(everything[-1])
        elif call == "data":
            piece = chunk(argument + 1)
            everything.append(bytes(piece.frame))
            log.append_sent(piece)
            sent += 1
        elif call == "send":
            for _ in range(argument):
                frame = log.next_unsent()
                assert (frame is None) is (sent == len(everything))
                if frame is None:
                    break
                assert frame == everything[sent]
                log.mark_sent()
                sent += 1
        else:
            acknowledged = min(sent, acknowledged + argument)
            if call == "ack":
                log.acknowledge(acknowledged)
            else:
                log.rewind(acknowledged)
                sent = acknowledged
            log.drop()
        assert (log.acknowledged, log.sent) == (acknowledged, sent)
        kept = everything[acknowledged:]
        data_overhead = sum(len(HEADER) for frame in kept if frame.startswith(HEADER))
        assert log.kept == budget.used == sum(map(len, kept)) + FRAME_COST * len(kept) - data_overhead
