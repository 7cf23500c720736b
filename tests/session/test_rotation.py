"""The rotation of a session: when it happens, paths that come and go under it, and a peer who does it wrongly."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.crypto.primitives import Cipher
from cryprq_proxy.errors import CarrierError, CloseReason, LocalError, PeerError
from cryprq_proxy.session import wire
from cryprq_proxy.session.frame_reader import decode_frames
from cryprq_proxy.session.key_limits import RotationLimits
from cryprq_proxy.session.rotation import (
    JOIN_PATIENCE,
    MISSED_INTERVALS,
    NEVER,
    PLEASE_INTERVAL,
    UNFINISHED,
    Rotation,
    RotationState,
)
from tests.support.links import App, LaterOffload, Link, ToyProvider
from tests.support.rotations import START, PathEnd, Rotations, RotationSide
from tests.support.settings import rotation_limits, session_limits

INTERVAL = 60.0
LIMITS = rotation_limits(interval=INTERVAL)
NEVER_AGAIN = rotation_limits(interval=1e9)
PING = 9 + 16
"""Bytes of a sealed record that holds one."""
OVERDUE = MISSED_INTERVALS * INTERVAL + UNFINISHED


def limits(**changes: Any) -> RotationLimits:
    return replace(NEVER_AGAIN, **changes)


def content(frames: list[bytes]) -> tuple[int, int, bytes]:
    """Kind, epoch and message of a REKEY or its answer, of which these are the parts."""
    parts = {}
    for frame in frames:
        ((kind, _, value),) = decode_frames(frame)
        number, part, data = cast("tuple[int, int, bytes]", value)
        parts[part] = data
    return kind, number, b"".join(parts[part] for part in range(wire.PARTS))


def tell(rotation: Rotation, kind: int, number: int, message: bytes, now: float) -> None:
    """The peer has sent this message."""
    if kind == wire.REKEY_PLEASE:
        rotation.asked(number, now)
    else:
        for frame in wire.encode_message(kind, number, message):
            ((_, _, value),) = decode_frames(frame)
            rotation.receive(kind, *cast("tuple[int, int, bytes]", value), now)


def rotate(both: Rotations) -> None:
    both.client.rotation.start(both.now)
    both.settle()


# --- when ---


def test_by_interval() -> None:
    both = Rotations(LIMITS)
    both.advance(INTERVAL - 1)
    assert both.current == (0, 0)
    both.advance(2)
    both.assert_together(1)
    both.advance(10 * INTERVAL)
    both.assert_together(11)
    assert not both.errors


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("source", [0, 1])
@pytest.mark.parametrize("bound", [{"records": 400}, {"bytes": 400 * PING}])
def test_by_what_the_busiest_path_has_carried(side: int, source: int, bound: dict[str, int]) -> None:
    """`side` has such a limit, on what it sends and on what it gets."""
    bounds = [NEVER_AGAIN, NEVER_AGAIN]
    bounds[side] = limits(**bound)
    both = Rotations(bounds[0], exit_limits=bounds[1], paths=2)
    both.advance(5.0)
    both.assert_together(1)
    busiest = both.sides[source].ends[0]
    busiest.carry(395, both.now)
    both.advance(5.0)
    assert both.current == (1, 1)
    busiest.carry(5, both.now)
    both.advance(0.0)
    both.assert_together(2)
    assert not both.errors


@pytest.mark.parametrize("side", [0, 1])
def test_by_datagrams_of_the_lane(side: int) -> None:
    both = Rotations(limits(datagrams=1000))
    both.sides[side].link.count = 999
    both.advance(1.0)
    assert both.current == (0, 0)
    both.sides[side].link.count = 1000
    both.advance(0.0)
    assert both.current == (1, 1)


def test_the_exit_asks_when_its_interval_is_shorter() -> None:
    both = Rotations(NEVER_AGAIN, exit_limits=LIMITS)
    both.advance(INTERVAL + 1)
    both.assert_together(1)
    both.advance(5 * INTERVAL)
    both.assert_together(6)
    pleas = [frame for frame in both.exit.sent if frame[0] == wire.REKEY_PLEASE]
    assert pleas == [wire.encode_epoch(wire.REKEY_PLEASE, number) for number in range(1, 7)]


@pytest.mark.parametrize("interval", [0.1, 0.5, 1.0])
def test_the_exit_asks_very_often(interval: float) -> None:
    """The dialler heeds it once in PLEASE_INTERVAL, and that is often enough for both to stay."""
    both = Rotations(NEVER_AGAIN, exit_limits=limits(interval=interval))
    both.advance(40.0)
    assert not both.errors and 30 <= both.current[0] <= 40 / PLEASE_INTERVAL


def test_asking_again_and_again_does_not_make_the_dialler_hurry() -> None:
    both = Rotations()
    for _ in range(1000):
        both.client.rotation.asked(both.current[0] + 1, both.now)
        both.advance(0.01)
    assert 8 <= both.current[0] <= 10


def test_a_path_that_joins_makes_a_rotation_due() -> None:
    both = Rotations()
    both.advance(5.0)
    secret = both.client.rotation.known.resume_secrets
    both.join()
    both.advance(0.0)
    both.assert_together(1)
    assert both.client.rotation.known.resume_secrets != secret
    for _ in range(20):
        both.join()
    both.advance(0.0)
    assert both.current == (1, 1), "many at once are one rotation"
    both.advance(PLEASE_INTERVAL)
    both.assert_together(2)


def test_the_exit_asks_for_the_rotation_that_a_join_makes_due() -> None:
    """Somebody has joined by a stolen secret, and the client knows of no path that has: it rotated when that was due
    anyway, and until then the secret was good."""
    both = Rotations(LIMITS)
    both.advance(20.0)
    both.exit.attach(9, 0, both.now)
    both.exit.ends = dict(
        reversed(both.exit.ends.items())
    )  # what the exit says goes by the path of the client
    both.advance(JOIN_PATIENCE - 0.1)
    assert both.current == (0, 0)
    both.advance(0.2)
    assert both.current == (1, 1) and not both.errors
    both.advance(UNFINISHED + 1)
    assert set(both.exit.ends) == {0}, "the path that does not follow is closed"


def test_a_path_that_has_joined_and_is_never_followed_by_a_rotation_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    both = Rotations()
    monkeypatch.setattr(both.client.rotation, "start", lambda now: None)
    monkeypatch.setattr(both.client.rotation, "deadline", lambda keys: NEVER)
    both.advance(20.0)
    both.join()
    both.advance(10.0)
    both.join()
    both.advance(2 * UNFINISHED - 11)
    assert [frame[0] for frame in both.exit.sent] == [wire.REKEY_PLEASE] and not both.errors
    both.advance(2.0)
    assert set(both.exit.ends) == {0, 2}
    both.advance(10.0)
    assert set(both.exit.ends) == {0}
    both.advance(2 * UNFINISHED)
    assert set(both.exit.ends) == {0} and len(both.errors) == 2


def test_two_rotations_do_not_overlap() -> None:
    later = LaterOffload()
    both = Rotations(exit_offload=later)
    for _ in range(3):
        rotate(both)
    later.run()
    both.settle()
    both.assert_together(1)


# --- borders ---


def test_the_sides_go_over_one_after_the_other() -> None:
    both = Rotations(paths=2)
    both.client.rotation.start(both.now)
    client, exit_ = (side.rotation for side in both.sides)
    assert [frame[0] for frame in both.client.sent] == [wire.REKEY] * 3 and both.client.switches == 0
    both.pump(both.client, both.client.ends[0])
    both.client.ends[0].arrive(both.now)
    assert [frame[0] for frame in both.exit.sent] == [wire.REKEY_ANSWER] * 3
    assert (exit_.current, exit_.sending, both.exit.switches) == (1, 0, 0)
    assert len(exit_.known.resume_secrets) == 2 and len(both.exit.link.epochs) == 2
    both.pump(both.exit, both.exit.ends[1])
    both.exit.ends[1].arrive(both.now)
    assert (client.current, client.sending, both.client.switches) == (1, 1, 1)
    assert client.known.resume_secrets == exit_.known.resume_secrets[:1]
    both.client.ends[1].fill(both.now)
    both.client.ends[1].arrive(both.now)
    assert (exit_.sending, both.exit.switches, exit_.known.resume_secrets) == (
        1,
        1,
        client.known.resume_secrets,
    )
    assert both.exit.ends[0].keys.receive_epoch == 0, "the other path follows by itself"
    both.settle()
    both.assert_together(1)


def test_no_rotation_begins_before_a_path_that_joined_by_an_older_epoch_has_come_to_this_one() -> None:
    both = Rotations(LIMITS)
    rotate(both)
    both.advance(UNFINISHED + 1)
    rotation, first = both.client.rotation, both.client.ends[0]
    assert rotation.deadline(first.keys) == START + INTERVAL
    both.client.attach(1, 0, both.now)
    assert rotation.deadline(first.keys) == START + OVERDUE


def test_no_rotation_begins_before_all_paths_have_come_to_the_last_one() -> None:
    both = Rotations(LIMITS, paths=2)
    stuck = both.client.ends[0]
    stuck.other = None
    rotate(both)
    assert both.client.ends[1].keys.settled(1) and not stuck.keys.settled(1)
    assert both.client.rotation.deadline(stuck.keys) == START + UNFINISHED
    both.now = START + UNFINISHED - 1
    both.client.rotation.asked(2, both.now)
    for end in both.client.ends.values():
        both.client.rotation.tick(both.now, end.keys)
    assert both.client.rotation._state is RotationState.IDLE
    both.advance(1.0)
    assert both.errors and set(both.client.ends) == {1}, "the one that held it up is closed"
    both.advance(1.0)
    both.assert_together(2)


def test_acknowledgements_count_for_that_too() -> None:
    """SWITCH has left here; whether the exit has read it is not known."""
    both = Rotations(LIMITS)
    rotate(both)
    keys = both.client.ends[0].keys
    keys.acknowledged = keys.sent_before - 1
    both.client.rotation.asked(2, both.now + 5)
    assert both.client.rotation._state is RotationState.IDLE


def test_the_epoch_before_is_forgotten() -> None:
    both = Rotations()
    rotate(both)
    for side in both.sides:
        assert side.rotation.known.secret(0) is not None
    both.advance(UNFINISHED - 1)
    assert both.client.rotation.known.secret(0) is not None
    both.advance(2.0)
    for side in both.sides:
        assert side.rotation.known.secret(0) is None and side.rotation.known.secret(1) is not None
        assert list(side.rotation.known._records) == [1] == list(side.rotation.known._resume)
    rotate(both)
    both.assert_together(2)


def test_two_epochs_are_known_at_most() -> None:
    both = Rotations()
    for number in range(1, 5):
        rotate(both)
        for side in both.sides:
            assert list(side.rotation.known._records) == [number, number - 1]
            assert side.rotation._initiator is None


# --- paths that come and go ---


@pytest.mark.parametrize("moment", range(9))
@pytest.mark.parametrize("joins", ["before", "after", "meanwhile"])
def test_a_rotation_outlives_its_path(moment: int, joins: str) -> None:
    """The only path is lost at any moment, and another one joins before that or later, slowly or not."""
    both = Rotations()
    both.client.rotation.start(both.now)
    begun = both.begin_join() if joins == "meanwhile" else None
    for step in range(moment):
        side = both.sides[step // 2 % 2]
        end = side.ends[0]
        if step % 2:
            while end.deliver(both.now):
                pass
        else:
            both.pump(side, end)
            end.fill(both.now)
    if joins == "before":
        both.join()
    both.cut(0)
    if joins == "after":
        both.join()
    if begun is not None and not both.let_in(begun):
        both.join()
    both.settle()
    assert both.current == (1, 1)
    both.assert_together(1)
    rotate(both)
    both.assert_together(2)


def test_who_joins_by_the_new_secret_confirms_it() -> None:
    """The path on which the client's SWITCH went is lost before the exit has read it."""
    both = Rotations()
    both.client.rotation.start(both.now)
    for side in both.sides:
        both.pump(side, side.ends[0])
        side.ends[0].arrive(both.now)
    assert both.current == (1, 1) and both.exit.rotation.sending == 0
    both.cut(0)
    end = both.client.ends[both.join()]
    assert end.joined == 1 and both.exit.rotation.sending == 1
    both.settle()
    both.assert_together(1)
    assert end.keys.sent_before == 0, "the keys of its handshake are newer than those of the epoch"
    rotate(both)
    both.assert_together(2)


def test_a_path_that_joined_by_the_old_secret_follows_at_once() -> None:
    both = Rotations()
    begun = both.begin_join()
    both.client.rotation.start(both.now)
    for side in both.sides:
        both.pump(side, side.ends[0])
        side.ends[0].arrive(both.now)
    assert both.let_in(begun), "the exit takes it until the new epoch is confirmed"
    both.settle()
    both.assert_together(1)
    assert begun.keys.sent_before > 0


def test_an_old_secret_is_over_when_the_new_epoch_is_confirmed() -> None:
    both = Rotations()
    begun = both.begin_join()
    (old,) = both.client.rotation.known.resume_secrets
    both.client.rotation.start(both.now)
    side, end = both.client, both.client.ends[0]
    both.pump(side, end)
    for _ in range(3):
        for end in (both.client.ends[0], both.exit.ends[0]):
            both.pump(end.side, end)
            end.fill(both.now)
            while end.deliver(both.now):
                pass
    assert both.exit.rotation.sending == 1 and not both.let_in(begun)
    with pytest.raises(LocalError):
        both.exit.rotation.known.resume_epoch(old)
    assert both.exit.rotation.known.resume_epoch(both.client.rotation.known.resume_secrets[0]) == 1


def test_a_path_that_comes_late_has_the_whole_time() -> None:
    """The client was away for minutes in the middle of a rotation."""
    later = LaterOffload()
    both = Rotations(LIMITS, offload=later)
    both.client.rotation.start(both.now)
    later.run()
    both.settle()
    assert both.exit.rotation._state is RotationState.ANSWERED
    both.cut(0)
    both.now += 250.0
    both.join()
    both.advance(UNFINISHED - 1)
    assert not both.errors
    later.run()
    both.settle()
    both.assert_together(1)


def test_copies_change_nothing() -> None:
    both = Rotations()
    for _ in range(3):
        rotate(both)
        for side, other in (both.sides, both.sides[::-1]):
            for at in range(0, len(side.sent), wire.PARTS):
                tell(other.rotation, *content(side.sent[at : at + wire.PARTS]), both.now)
    both.assert_together(3)
    assert len(both.client.sent) == len(both.exit.sent) == 3 * wire.PARTS


def test_copies_while_it_computes_change_nothing() -> None:
    client, exit_ = LaterOffload(), LaterOffload()
    both = Rotations(offload=client, exit_offload=exit_)
    rotate(both)
    client.run()
    question = content(both.client.sent)
    for _ in range(3):
        tell(both.exit.rotation, *question, both.now)
    assert len(exit_.waiting) == 1
    exit_.run()
    answer = content(both.exit.sent)
    for _ in range(3):
        tell(both.client.rotation, *answer, both.now)
        tell(both.exit.rotation, *question, both.now)
    assert len(client.waiting) == 1
    client.run()
    both.settle()
    both.assert_together(1)


class Storm:
    """Whatever may happen to two rotations, in a random order. Time passes, but not so much that a path must end."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.offloads = LaterOffload(), LaterOffload()
        self.both = Rotations(limits(), offload=self.offloads[0], exit_offload=self.offloads[1])
        self.begun: list[PathEnd] = []
        self.side = self.both.client
        """That which moves now."""

    def step(self) -> None:
        moves = (
            (
                self.join,
                self.let_in,
                self.lose,
                self.notice,
                self.compute,
                self.rotate,
                self.repeat,
                self.reorder,
            )
            + (self.send, self.fill) * 2
            + (self.deliver,) * 3
        )
        self.side = self.random.choice(self.both.sides)
        self.random.choice(moves)()
        self.both.now += self.random.random() * 0.01

    @property
    def end(self) -> PathEnd | None:
        ends = list(self.side.ends.values())
        return self.random.choice(ends) if ends else None

    def join(self) -> None:
        if len(self.both.client.ends) < 4:
            self.begun.append(self.both.begin_join())

    def let_in(self) -> None:
        if self.begun:
            self.both.let_in(self.begun.pop(self.random.randrange(len(self.begun))))

    def lose(self) -> None:
        """On one side; the other one has not noticed."""
        if (end := self.end) is not None and self.random.random() < 0.3:
            self.side.lose(end.keys.number)

    def notice(self) -> None:
        gone = self.both.client.ends.keys() ^ self.both.exit.ends.keys()
        for number in gone - {end.keys.number for end in self.begun}:
            self.both.cut(number)

    def compute(self) -> None:
        self.offloads[self.both.sides.index(self.side)].run()

    def rotate(self) -> None:
        rotation = self.both.client.rotation
        if all(keys.settled(rotation.current) for keys in self.both.client.path_keys):
            rotation.start(self.both.now)

    def repeat(self) -> None:
        """A late copy of any frame so far."""
        if self.side.sent:
            self.side.waiting.append(self.random.choice(self.side.sent))

    def reorder(self) -> None:
        if self.side.waiting:
            self.side.waiting.rotate(self.random.randrange(len(self.side.waiting)))

    def send(self) -> None:
        if (end := self.end) is not None and self.side.waiting:
            end.send(self.side.waiting.popleft())

    def fill(self) -> None:
        if (end := self.end) is not None:
            end.fill(self.both.now)

    def deliver(self) -> None:
        for end in list(self.side.ends.values()):
            for _ in range(self.random.randrange(3)):
                end.deliver(self.both.now)

    def calm(self) -> None:
        """Let everything arrive by one new path."""
        both = self.both
        for number in set(both.client.ends) | set(both.exit.ends):
            both.cut(number)
        both.join()
        for _ in range(4):
            for offload in self.offloads:
                offload.run()
            both.settle()


@pytest.mark.parametrize("seed", range(150))
def test_whatever_happens_both_sides_agree(seed: int) -> None:
    storm = Storm(seed)
    both = storm.both
    for _ in range(6):
        for _ in range(150):
            storm.step()
            client, exit_ = both.current
            assert client <= exit_ <= client + 1
            for side in both.sides:
                assert len(side.rotation.known._records) <= 2
        storm.begun.clear()
        storm.calm()
        number = both.current[0]
        both.assert_together(number)
        rotate(both)
        storm.calm()
        both.assert_together(number + 1)


# --- the slow provider ---


def test_nothing_waits_for_a_slow_computation() -> None:
    client, exit_ = LaterOffload(), LaterOffload()
    rotation_alone = session_limits(rotation=NEVER_AGAIN)
    link = Link(rotation_alone, offload=client, exit_offload=exit_)
    up, down = link.pair()
    said = b""
    link.client.rotation.start(link.carrier.now)
    for run in (lambda: None, client.run, exit_.run, client.run, lambda: None):
        run()
        said += b"more "
        up.say(b"more ")
        down.say(b"more ")
        link.carrier.settle()
        assert up.received == down.received == said
    assert link.client.ledger.rotations == link.exit.ledger.rotations == 1


@pytest.mark.parametrize("moment", range(3))
def test_a_result_for_a_session_that_is_over_is_dropped(moment: int) -> None:
    client, exit_ = LaterOffload(), LaterOffload()
    both = Rotations(offload=client, exit_offload=exit_)
    rotate(both)
    for offload in (client, exit_, client)[:moment]:
        offload.run()
        both.settle()
    sent = len(both.client.sent), len(both.exit.sent)
    for side in both.sides:
        side.rotation.end()
    for offload in (client, exit_):
        offload.run()
    assert (len(both.client.sent), len(both.exit.sent)) == sent and both.current[0] == 0
    for side in both.sides:
        rotation = side.rotation
        assert rotation.known.resume_secrets == () and rotation.known.secret(0) is None
        assert rotation.known.newest is rotation._initiator is None
        rotation.start(both.now)
        keys = side.ends[0].keys
        assert rotation.deadline(keys) == float("inf")
        rotation.tick(both.now + 1e12, keys)


def test_a_failure_on_the_other_thread_reaches_the_session() -> None:
    later = LaterOffload()
    both = Rotations(exit_offload=later)
    tell(both.exit.rotation, wire.REKEY, 1, bytes(1248), both.now)
    with pytest.raises(PeerError) as caught:
        later.run()
    assert caught.value.reason is CloseReason.REKEY and not isinstance(caught.value, CarrierError)


# --- in time or not at all ---


@pytest.mark.parametrize("slow", [0, 1])
def test_unfinished_rotations_end_the_path(slow: int) -> None:
    offloads: list[Any] = [None, None]
    offloads[slow] = LaterOffload()
    names = ("offload", "exit_offload")
    both = Rotations(LIMITS, **{names[slow]: offloads[slow]})
    both.advance(INTERVAL + UNFINISHED - 1)
    assert not both.errors
    both.advance(2.0)
    assert [error.reason for error in both.errors] == [CloseReason.REKEY]
    both.join()
    both.advance(1.0)
    offloads[slow].run()
    both.settle()
    offloads[slow].run()
    both.settle()
    both.assert_together(1)


def test_the_exit_ends_the_paths_of_a_client_that_never_rotates() -> None:
    both = Rotations(NEVER_AGAIN, exit_limits=LIMITS)
    both.client.rotation.asked = unheard  # type: ignore[assignment,method-assign]
    both.advance(OVERDUE - 1)
    assert not both.errors
    both.advance(2.0)
    assert [error.reason for error in both.errors] == [CloseReason.REKEY]


def unheard(*_: object) -> None:
    """A peer that ignores what is asked."""


@pytest.mark.parametrize("bound", [{"records": 400}, {"bytes": 400 * PING}])
@pytest.mark.parametrize("source", [0, 1])
def test_twice_a_limit_ends_the_path_that_has_reached_it(bound: dict[str, int], source: int) -> None:
    both = Rotations(NEVER_AGAIN, exit_limits=limits(**bound), paths=2)
    both.client.rotation.asked = unheard  # type: ignore[assignment,method-assign]
    both.sides[source].ends[1].carry(750, both.now)
    both.advance(0.0)
    assert not both.errors
    both.sides[source].ends[1].carry(50, both.now)
    both.advance(0.0)
    assert len(both.errors) == 1 and set(both.exit.ends) == {0}


def test_twice_the_limit_of_the_lane_ends_each_path() -> None:
    both = Rotations(NEVER_AGAIN, exit_limits=limits(datagrams=1000), paths=2)
    both.client.rotation.asked = unheard  # type: ignore[assignment,method-assign]
    both.exit.link.count = 2000
    both.advance(0.0)
    assert len(both.errors) == 2


# --- out of turn ---


def lone(*, dialler: bool, offload: Any = None) -> RotationSide:
    offload = offload or LaterOffload()
    both = Rotations(offload=offload, exit_offload=offload)
    return both.sides[not dialler]


def assert_ends_session(side: RotationSide, kind: int, number: int = 1, message: bytes = b"") -> None:
    with pytest.raises(PeerError) as caught:
        tell(side.rotation, kind, number, message, START)
    assert caught.value.reason is CloseReason.REKEY and not isinstance(caught.value, CarrierError)


def test_frames_of_the_wrong_side() -> None:
    for number in range(3):
        assert_ends_session(lone(dialler=True), wire.REKEY, number, bytes(1248))
        for kind in (wire.REKEY_ANSWER, wire.REKEY_PLEASE):
            assert_ends_session(lone(dialler=False), kind, number, bytes(1152))


def test_epochs_that_are_not_the_next() -> None:
    for number in (2, 3, 2**32 - 1):
        assert_ends_session(lone(dialler=False), wire.REKEY, number, bytes(1248))
        for kind in (wire.REKEY_ANSWER, wire.REKEY_PLEASE):
            assert_ends_session(lone(dialler=True), kind, number, bytes(1152))


def test_an_answer_that_was_not_asked_for() -> None:
    assert_ends_session(lone(dialler=True), wire.REKEY_ANSWER, 1, bytes(1152))
    computing = lone(dialler=True)
    computing.rotation.start(START)
    assert_ends_session(computing, wire.REKEY_ANSWER, 1, bytes(1152))


def test_a_rotation_before_the_last_one_is_confirmed() -> None:
    both = Rotations()
    both.client.rotation.start(both.now)
    both.pump(both.client, both.client.ends[0])
    both.client.ends[0].arrive(both.now)
    assert both.exit.rotation._state is RotationState.ANSWERED
    assert_ends_session(both.exit, wire.REKEY, 2, bytes(1248))


def test_a_border_confirms_only_the_epoch_that_it_names() -> None:
    both = Rotations()
    both.client.rotation.start(both.now)
    both.pump(both.client, both.client.ends[0])
    both.client.ends[0].arrive(both.now)
    for number in (0, 2):
        both.exit.rotation.peer_switched(number, both.now)
    assert both.exit.rotation.sending == 0


@pytest.mark.parametrize("size", [0, 1, 1246, 1247, 1248])
def test_a_question_that_does_not_open(size: int) -> None:
    assert_ends_session(Rotations().exit, wire.REKEY, 1, bytes(size))


@pytest.mark.parametrize("size", [0, 1, 1151, 1152, 1153])
def test_an_answer_that_does_not_open(size: int) -> None:
    both = Rotations()
    both.client.rotation.start(both.now)
    assert_ends_session(both.client, wire.REKEY_ANSWER, 1, bytes(size))


@given(
    st.booleans(),
    st.lists(
        st.tuples(
            st.sampled_from([wire.REKEY, wire.REKEY_ANSWER, wire.REKEY_PLEASE, wire.SWITCH, -1, -2]),
            st.integers(0, 3),
            st.sampled_from([0, 1152, 1248]),
        ),
        max_size=6,
    ),
)
def test_only_peer_errors_come_out(dialler: bool, calls: list[tuple[int, int, int]]) -> None:
    """Whatever the other side sends, and however slow this one is."""
    later = LaterOffload()
    rotation = lone(dialler=dialler, offload=later).rotation
    try:
        for kind, number, size in calls:
            if kind == -1:
                later.run()
            elif kind == -2:
                if dialler:
                    rotation.start(START)
            elif kind == wire.SWITCH:
                rotation.peer_switched(number, START)
            else:
                tell(rotation, kind, number, bytes(size), START)
        later.run()
    except PeerError as error:
        assert type(error) is PeerError and error.reason is CloseReason.REKEY


# --- with a session ---


@pytest.mark.parametrize("cipher", list(Cipher), ids=lambda cipher: cipher.name)
@pytest.mark.parametrize("piece", [1 << 20, 977])
def test_traffic_in_both_directions_goes_on(cipher: Cipher, piece: int) -> None:
    link = Link(session_limits(rotation=NEVER_AGAIN), cipher=cipher)
    ends = [end for _ in range(3) for end in link.pair()]
    link.carrier.to_left.piece = link.carrier.to_right.piece = piece
    link.carrier.to_left.capacity = link.carrier.to_right.capacity = 20_000
    source = random.Random(1)
    sent = {id(end): bytearray() for end in ends}
    for turn in range(40):
        for end in ends:
            data = source.randbytes(source.randrange(1, 5000))
            sent[id(end)] += data
            end.say(data)
        if turn % 8 == 0:
            link.client.rotation.start(link.carrier.now)
        for _ in range(6):
            link.carrier.step()
    link.carrier.settle()
    assert link.client.ledger.rotations == link.exit.ledger.rotations >= 3
    for one, other in zip(ends[::2], ends[1::2], strict=True):
        assert one.received == sent[id(other)] and other.received == sent[id(one)]


def test_the_secret_by_which_a_path_has_joined_is_replaced() -> None:
    link = Link(session_limits(rotation=NEVER_AGAIN))
    link.carrier.advance(5.0)
    assert link.client.rotation.current == 0, "the first path has joined nothing"
    for number in range(1, 4):
        link.resume()
        link.carrier.advance(2 * PLEASE_INTERVAL)
        assert link.client.rotation.current == link.exit.rotation.current == number


@pytest.mark.parametrize("first", [True, False])
def test_a_border_stands_alone_in_its_record(first: bool) -> None:
    link = Link(session_limits(rotation=NEVER_AGAIN))
    frames = [wire.encode_epoch(wire.SWITCH, 1), wire.encode_number(wire.PING, 1)]
    with pytest.raises(PeerError) as caught:
        link.forge(link.exit, *frames[:: 1 if first else -1])
    assert caught.value.reason is CloseReason.REKEY


def test_a_border_to_an_unknown_epoch_ends_the_path_only() -> None:
    link = Link(session_limits(rotation=NEVER_AGAIN))
    with pytest.raises(CarrierError):
        link.forge(link.exit, wire.encode_epoch(wire.SWITCH, 1))


def test_apps_do_not_notice() -> None:
    link = Link(session_limits(rotation=limits(interval=0.1)), provider=ToyProvider())
    app = link.open(App())
    link.carrier.advance(10.0)
    assert link.client.ledger.rotations >= 50 and app.events == [("opened",)]


def test_keys_go_with_the_session() -> None:
    link = Link(session_limits(rotation=NEVER_AGAIN))
    link.client.rotation.start(link.carrier.now)
    link.client.close(CloseReason.NORMAL)
    link.carrier.settle()
    assert link.exit.closed is CloseReason.NORMAL
    for session in (link.client, link.exit):
        assert session.rotation.known.secret(0) is None and session.rotation.known.resume_secrets == ()
