"""Rotation: when it happens, that no byte notices it, and what a peer gets who does it wrongly."""

from __future__ import annotations

import random
import weakref
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.crypto.primitives import Cipher
from cryprq_proxy.errors import CarrierError, CloseReason, LocalError, PeerError
from cryprq_proxy.session import wire
from cryprq_proxy.session.datagrams import BasePacketLink
from cryprq_proxy.session.epochs import EpochLedger
from cryprq_proxy.session.records import RecordOpener, RecordSealer
from cryprq_proxy.session.rotation import (
    MISSED_INTERVALS,
    PLEASE_INTERVAL,
    UNFINISHED,
    CarrierKeys,
    Rotation,
    RotationState,
    inline,
)
from cryprq_proxy.session.session import SessionLimits
from tests.support.links import FAST, App, LaterOffload, Link, ToyProvider, epoch, seeded
from tests.support.settings import rotation_limits, session_limits

INTERVAL = 60.0
LIMITS = session_limits(rotation=rotation_limits(interval=INTERVAL))
NEVER_AGAIN = session_limits(rotation=rotation_limits(interval=1e9))


def limits(**changes: Any) -> SessionLimits:
    return session_limits(rotation=replace(rotation_limits(interval=1e9), **changes))


def rotations(link: Link) -> tuple[int, int]:
    return link.client.ledger.rotations, link.exit.ledger.rotations


# --- when ---


def test_by_interval() -> None:
    link = Link(LIMITS)
    link.carrier.advance(INTERVAL - 1)
    assert rotations(link) == (0, 0)
    link.carrier.advance(2)
    assert rotations(link) == (1, 1)
    link.carrier.advance(10 * INTERVAL)
    assert rotations(link) == (11, 11) and link.carrier.open
    assert link.client.rotation.number == link.exit.rotation.number == 11
    assert link.client.rotation._epoch == link.exit.rotation._epoch


def test_by_records() -> None:
    link = Link(limits(records=200))
    up, down = link.pair()
    for _ in range(1000):
        up.say(b"a record")
        link.carrier.advance(0.0)
    assert link.carrier.open and rotations(link)[0] >= 4
    assert len(down.received) == 8000


def test_by_bytes() -> None:
    link = Link(limits(bytes=1 << 20))
    up, down = link.pair()
    for _ in range(64):
        down.say(bytes(1 << 17))
        link.carrier.advance(0.0)
    assert link.carrier.open and rotations(link)[0] >= 4
    assert len(up.received) == 8 << 20


def test_the_exit_asks_when_its_interval_is_shorter() -> None:
    link = Link(NEVER_AGAIN, exit_limits=LIMITS)
    link.carrier.advance(INTERVAL + 1)
    assert rotations(link) == (1, 1)
    link.carrier.advance(5 * INTERVAL)
    assert rotations(link) == (6, 6) and link.carrier.open


@pytest.mark.parametrize("interval", [0.1, 0.5, 1.0])
def test_the_exit_asks_very_often(interval: float) -> None:
    """The dialler heeds it once in PLEASE_INTERVAL, and that is often enough for both to stay."""
    link = Link(NEVER_AGAIN, exit_limits=limits(interval=interval), provider=ToyProvider())
    link.carrier.advance(40.0)
    assert link.carrier.open
    assert 30 <= rotations(link)[0] <= 40 / PLEASE_INTERVAL


def test_the_exit_asks_when_it_has_sent_enough() -> None:
    link = Link(NEVER_AGAIN, exit_limits=limits(bytes=1 << 20))
    link.pair()
    link.carrier.advance(2.0)
    link.served[1].say(bytes(1_500_000))
    link.carrier.advance(0.1)
    assert rotations(link) == (1, 1)


def test_asking_again_and_again_does_not_make_the_dialler_hurry() -> None:
    link = Link(NEVER_AGAIN, provider=ToyProvider())
    for _ in range(1000):
        link.exit.rotation.frames.append(wire.encode_bare(wire.REKEY_PLEASE))
        link.exit.wake()
        link.carrier.advance(0.01)
    assert link.carrier.open and 8 <= rotations(link)[0] <= 10


# --- without a pause ---


@pytest.mark.parametrize("cipher", list(Cipher), ids=lambda cipher: cipher.name)
@pytest.mark.parametrize("piece", [1 << 20, 977])
def test_traffic_in_both_directions_goes_on(cipher: Cipher, piece: int) -> None:
    link = Link(NEVER_AGAIN, cipher=cipher)
    ends = [end for _ in range(3) for end in link.pair()]
    link.carrier.to_left.piece = link.carrier.to_right.piece = piece
    link.carrier.to_left.capacity = link.carrier.to_right.capacity = 20_000
    source = random.Random(1)
    sent = {id(end): bytearray() for end in ends}
    for round in range(40):
        for end in ends:
            data = source.randbytes(source.randrange(1, 5000))
            sent[id(end)] += data
            end.say(data)
        if round % 4 == 0:
            link.client.rotation.start(link.carrier.now)
            link.client.wake()
        for _ in range(6):
            link.carrier.step()
    link.carrier.settle()
    assert min(rotations(link)) >= 5
    for one, other in zip(ends[::2], ends[1::2], strict=True):
        assert one.received == sent[id(other)] and other.received == sent[id(one)]


def test_the_border_stands_between_two_records() -> None:
    """What was queued before goes out in the old epoch, what comes after in the new one, in both directions."""
    link = Link(NEVER_AGAIN)
    up, down = link.pair()
    old = link.client.rotation.sealer, link.exit.rotation.sealer
    up.say(b"before")
    down.say(b"before")
    link.client.rotation.start(link.carrier.now)
    while link.client.ledger.rotations == 0:
        link.carrier.step()
    assert link.client.rotation.sealer is not old[0] and link.exit.rotation.sealer is not old[1]
    assert link.client.rotation.sealer.records == 0
    up.say(b"after")
    down.say(b"after")
    link.carrier.settle()
    assert down.received == up.received == b"beforeafter"


# --- the slow provider ---


def test_a_slow_provider_pauses_only_where_it_must() -> None:
    client, exit_ = LaterOffload(), LaterOffload()
    link = Link(NEVER_AGAIN, offload=client, exit_offload=exit_)
    up, down = link.pair()
    said = b""

    def talk(tag: bytes) -> None:
        nonlocal said
        said += tag
        up.say(tag)
        down.say(tag)
        link.carrier.settle()

    link.client.rotation.start(link.carrier.now)
    talk(b"asking ")
    assert up.received == down.received == said
    client.run()
    talk(b"asked ")
    assert exit_.waiting and up.received == down.received == said
    exit_.run()
    link.carrier.settle()
    talk(b"answered ")
    assert client.waiting and link.client.paused
    assert down.received == said and up.received != said, "the client cannot read the new epoch yet"
    client.run()
    link.carrier.settle()
    assert not link.client.paused and up.received == said
    talk(b"done")
    assert up.received == down.received == said and rotations(link) == (1, 1)


def test_much_data_waits_during_the_pause() -> None:
    client = LaterOffload()
    link = Link(NEVER_AGAIN, offload=client)
    up, down = link.pair()
    link.client.rotation.start(link.carrier.now)
    client.run()
    down.say(bytes(3 << 20))
    link.carrier.settle()
    assert link.client.paused
    link.carrier.advance(5.0)
    assert link.carrier.open
    client.run()
    link.carrier.settle()
    assert len(up.received) == 3 << 20


@pytest.mark.parametrize("moment", range(4))
@pytest.mark.parametrize("before", [True, False])
def test_a_result_for_a_lost_carrier_is_dropped(moment: int, before: bool) -> None:
    """The carrier is lost while something is being computed, and the result comes before or after the next one."""
    client, exit_ = LaterOffload(), LaterOffload()
    link = Link(NEVER_AGAIN, offload=client, exit_offload=exit_)
    up, down = link.pair()
    link.client.rotation.start(link.carrier.now)
    steps = [client, exit_, client]
    for offload in steps[:moment]:
        offload.run()
        link.carrier.settle()
    up.say(b"lost and found")
    down.say(b"lost and found")
    keys = keys_of(link)
    link.carrier.cut()
    late = client.waiting + exit_.waiting
    client.waiting, exit_.waiting = [], []
    assert len(late) == (moment < 3)
    if not before:
        link.resume()
    while late:
        job, done = late.pop()
        done(job)
        del job, done
    assert_no_keys(keys)
    if before:
        link.resume()
    assert not link.client.paused and link.client.rotation.final is link.exit.rotation.final is None
    link.carrier.settle()
    assert up.received == down.received == b"lost and found"
    assert rotations(link) == (moment // 3, moment // 3)
    link.client.rotation.start(link.carrier.now)
    for offload in steps:
        offload.run()
        link.carrier.settle()
    assert rotations(link) == (moment // 3 + 1,) * 2


def test_a_failure_on_the_other_thread_reaches_the_session() -> None:
    client, exit_ = LaterOffload(), LaterOffload()
    link = Link(NEVER_AGAIN, offload=client, exit_offload=exit_)
    feed(link.exit.rotation, wire.REKEY, bytes(1248))
    with pytest.raises(PeerError) as caught:
        exit_.run()
    assert caught.value.reason is CloseReason.REKEY and not isinstance(caught.value, CarrierError)


def test_a_failure_for_a_lost_carrier_reaches_nobody() -> None:
    exit_ = LaterOffload()
    link = Link(NEVER_AGAIN, exit_offload=exit_)
    feed(link.exit.rotation, wire.REKEY, bytes(1248))
    link.carrier.cut()
    exit_.run()
    link.resume()
    link.client.rotation.start(link.carrier.now)
    link.carrier.settle()
    exit_.run()
    link.carrier.settle()
    assert rotations(link) == (1, 1) and link.carrier.open


# --- keys that are no longer needed ---


def assert_nothing_under_way(rotation: Rotation) -> None:
    assert rotation._initiator is rotation._pending is rotation._next is rotation._next_opener is None


def keys_of(link: Link) -> list[weakref.ref[Rotation]]:
    """References to the only objects that hold the keys of the link's carrier; they keep nothing alive."""
    return [weakref.ref(peer.rotation) for peer in (link.client, link.exit)]


def assert_no_keys(keys: list[weakref.ref[Rotation]]) -> None:
    assert [key() for key in keys] == [None, None]


@pytest.mark.parametrize("steps", range(8))
def test_keys_go_with_their_carrier(steps: int) -> None:
    """At whatever moment of a rotation it is lost."""
    link = Link(NEVER_AGAIN)
    link.pair()
    link.client.rotation.start(link.carrier.now)
    moves = [
        lambda path=path, move=move: getattr(path, move)(link.carrier.now)
        for _ in range(2)
        for path in (link.carrier.to_right, link.carrier.to_left)
        for move in ("pull", "deliver")
    ]
    for move in moves[:steps]:
        move()
    keys = keys_of(link)
    link.carrier.cut()
    assert_no_keys(keys)
    for peer in (link.client, link.exit):
        assert not peer.paused
        with pytest.raises(LocalError, match="has no keys"):
            _ = peer.rotation


def test_a_closed_session_has_no_keys() -> None:
    link = Link(NEVER_AGAIN)
    link.client.rotation.start(link.carrier.now)
    keys = keys_of(link)
    link.client.close(CloseReason.NORMAL)
    link.carrier.settle()
    assert link.exit.closed is CloseReason.NORMAL
    assert_no_keys(keys)


def test_a_finished_rotation_leaves_only_the_new_keys() -> None:
    link = Link(NEVER_AGAIN)
    old = link.client.rotation._epoch
    for number in range(1, 4):
        link.client.rotation.start(link.carrier.now)
        assert link.client.rotation._initiator is not None
        link.carrier.settle()
        assert rotations(link) == (number, number)
        for rotation in (link.client.rotation, link.exit.rotation):
            assert_nothing_under_way(rotation)
            assert rotation.final is None and rotation._epoch != old
        old = link.client.rotation._epoch


# --- a carrier that is lost ---


@pytest.mark.parametrize("steps", range(1, 8))
def test_a_lost_carrier_abandons_the_rotation(steps: int) -> None:
    link = Link(NEVER_AGAIN)
    up, down = link.pair()
    up.say(b"one ")
    down.say(b"one ")
    link.client.rotation.start(link.carrier.now)
    for _ in range(steps):
        link.carrier.step()
    link.resume()
    up.say(b"two")
    down.say(b"two")
    link.carrier.settle()
    assert up.received == down.received == b"one two"
    assert link.client.rotation.number == link.exit.rotation.number == 0
    link.client.rotation.start(link.carrier.now)
    link.carrier.settle()
    assert link.client.rotation.number == link.exit.rotation.number == 1
    assert link.carrier.open


# --- in time or not at all ---


def test_unfinished_rotations_end_the_carrier() -> None:
    client = LaterOffload()
    link = Link(LIMITS, offload=client)
    link.carrier.advance(INTERVAL + UNFINISHED - 1)
    assert link.carrier.open
    link.carrier.advance(2.0)
    assert not link.carrier.open
    assert isinstance(link.carrier.error, CarrierError) and link.carrier.error.reason is CloseReason.REKEY
    assert link.client.closed is None and link.exit.closed is None


def test_an_answer_that_never_comes() -> None:
    link = Link(LIMITS, exit_offload=LaterOffload())
    link.carrier.advance(INTERVAL + UNFINISHED + 1)
    assert isinstance(link.carrier.error, CarrierError) and link.carrier.error.reason is CloseReason.REKEY


def test_the_exit_ends_the_carrier_of_a_client_that_never_rotates() -> None:
    link = Link(NEVER_AGAIN, exit_limits=LIMITS)
    link.client.rotation.receive = lambda *_: None  # type: ignore[method-assign]
    link.carrier.advance(MISSED_INTERVALS * INTERVAL + UNFINISHED - 1)
    assert link.carrier.open
    link.carrier.advance(2.0)
    assert not link.carrier.open
    assert isinstance(link.carrier.error, CarrierError) and link.carrier.error.reason is CloseReason.REKEY


@pytest.mark.parametrize("bound", [{"records": 100}, {"bytes": 100_000}])
def test_twice_a_limit_ends_the_carrier(bound: dict[str, int]) -> None:
    link = Link(NEVER_AGAIN, exit_limits=limits(**bound))
    link.client.rotation.receive = lambda *_: None  # type: ignore[method-assign]
    up, _ = link.pair()
    for _ in range(300):
        up.say(bytes(1000))
        link.carrier.advance(0.0)
    assert not link.carrier.open
    assert isinstance(link.carrier.error, CarrierError) and link.carrier.error.reason is CloseReason.REKEY
    assert link.exit.closed is None


# --- out of turn ---


def feed(rotation: Rotation, kind: int, message: bytes | None = None) -> None:
    rotation.receive(kind, message, 1000.0)


def assert_ends_session(rotation: Rotation, kind: int, message: bytes | None = None) -> None:
    with pytest.raises(PeerError) as caught:
        feed(rotation, kind, message)
    assert caught.value.reason is CloseReason.REKEY and not isinstance(caught.value, CarrierError)


def lone(*, dialler: bool, offload: Any = inline) -> Rotation:
    keys, cipher = epoch(1), Cipher.CHACHA20_POLY1305
    return Rotation(
        CarrierKeys(
            cipher,
            keys,
            RecordSealer(cipher, keys.client_record),
            RecordOpener(cipher, keys.client_record),
        ),
        1000.0,
        dialler=dialler,
        session_id=bytes(16),
        provider=FAST,
        limits=rotation_limits(),
        entropy=seeded(0),
        offload=offload,
        ready=lambda: None,
        packet_link=BasePacketLink,
        ledger=EpochLedger(),
    )


def test_nothing_but_a_start_is_welcome_in_idle() -> None:
    for kind in (wire.REKEY, wire.REKEY_ANSWER, wire.SWITCH):
        assert_ends_session(lone(dialler=True), kind, bytes(1152))
    for kind in (wire.REKEY_ANSWER, wire.SWITCH, wire.REKEY_PLEASE):
        assert_ends_session(lone(dialler=False), kind, bytes(1248))


def test_an_answer_before_the_question_has_been_computed() -> None:
    later = LaterOffload()
    rotation = lone(dialler=True, offload=later)
    rotation.start(1000.0)
    assert_ends_session(rotation, wire.REKEY_ANSWER, bytes(1152))


def test_a_second_answer() -> None:
    link = Link(NEVER_AGAIN)
    link.client.rotation.start(link.carrier.now)
    link.carrier.to_right.pull(link.carrier.now)
    link.carrier.to_right.deliver(link.carrier.now)
    answer = link.exit.rotation.final
    assert answer is not None
    link.carrier.to_left.pull(link.carrier.now)
    link.carrier.to_left.deliver(link.carrier.now)
    assert link.client.rotation.final is not None, "the switch is still to be sent"
    assert_ends_session(link.client.rotation, wire.REKEY_ANSWER, answer[3:])


def test_frames_in_the_middle_of_a_rotation() -> None:
    link = Link(NEVER_AGAIN)
    link.client.rotation.start(link.carrier.now)
    link.carrier.to_right.pull(link.carrier.now)
    for kind in (wire.REKEY, wire.SWITCH):
        assert_ends_session(link.client.rotation, kind, bytes(1248))
    link.carrier.to_right.deliver(link.carrier.now)
    assert link.exit.rotation._state is RotationState.ANSWERED
    for kind in (wire.REKEY, wire.REKEY_ANSWER):
        assert_ends_session(link.exit.rotation, kind, bytes(1248))


def test_a_switch_before_the_answer_was_sent() -> None:
    link = Link(NEVER_AGAIN)
    link.client.rotation.start(link.carrier.now)
    link.carrier.to_right.pull(link.carrier.now)
    link.carrier.to_right.deliver(link.carrier.now)
    assert_ends_session(link.exit.rotation, wire.SWITCH)


@pytest.mark.parametrize("size", [0, 1, 1247, 1248, 1249])
def test_a_question_that_does_not_open(size: int) -> None:
    assert_ends_session(lone(dialler=False), wire.REKEY, bytes(size))


@pytest.mark.parametrize("size", [0, 1, 1151, 1152, 1153])
def test_an_answer_that_does_not_open(size: int) -> None:
    rotation = lone(dialler=True)
    rotation.start(1000.0)
    assert_ends_session(rotation, wire.REKEY_ANSWER, bytes(size))


@pytest.mark.parametrize("kind", [wire.REKEY_ANSWER, wire.SWITCH])
@pytest.mark.parametrize("first", [True, False])
def test_the_end_of_an_epoch_stands_alone_in_its_record(kind: int, first: bool) -> None:
    link = Link(NEVER_AGAIN)
    link.client.rotation.start(link.carrier.now)
    right, left = link.carrier.to_right, link.carrier.to_left
    right.pull(link.carrier.now)
    right.deliver(link.carrier.now)
    victim, peer = link.client, link.exit
    if kind == wire.SWITCH:
        victim, peer = peer, victim
        left.pull(link.carrier.now)
        left.deliver(link.carrier.now)
    frames = [peer.rotation.final or b"", wire.encode_number(wire.PING, 1)]
    assert frames[0][0] == kind, "it would have been welcome"
    with pytest.raises(PeerError) as caught:
        link.forge(victim, *frames[:: 1 if first else -1])
    assert caught.value.reason is CloseReason.REKEY


@given(
    st.booleans(),
    st.lists(
        st.tuples(
            st.sampled_from([wire.REKEY, wire.REKEY_ANSWER, wire.SWITCH, wire.REKEY_PLEASE, -1, -2]),
            st.sampled_from([0, 1152, 1248]),
        ),
        max_size=6,
    ),
)
def test_only_peer_errors_come_out(dialler: bool, calls: list[tuple[int, int]]) -> None:
    """Whatever the other side sends, and however slow this one is."""
    later = LaterOffload()
    rotation = lone(dialler=dialler, offload=later)
    try:
        for kind, size in calls:
            if kind == -1:
                later.run()
            elif kind == -2:
                if dialler:
                    rotation.start(1000.0)
            elif not rotation.paused:
                feed(rotation, kind, bytes(size))
        later.run()
    except PeerError as error:
        assert type(error) is PeerError and error.reason is CloseReason.REKEY


def test_two_rotations_do_not_overlap() -> None:
    link = Link(NEVER_AGAIN)
    for _ in range(3):
        link.client.rotation.start(link.carrier.now)
    link.carrier.settle()
    assert rotations(link) == (1, 1)


def test_apps_do_not_notice() -> None:
    link = Link(limits(interval=0.1), provider=ToyProvider())
    app = link.open(App())
    link.carrier.advance(10.0)
    assert rotations(link)[0] >= 90 and app.events == [("opened",)]
