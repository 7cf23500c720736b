"""Each reliable frame is absolute: on the lane they come in any order, and twice, and the outcome is the same."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import permutations

import pytest

from cryprq_proxy.errors import CloseReason, StreamReason
from cryprq_proxy.session import wire
from cryprq_proxy.session.session import Session
from cryprq_proxy.session.wire import DATA, StreamProtocol
from tests.support.lane_pair import LanePair
from tests.support.links import TARGET, App
from tests.support.settings import session_limits


def data(stream: int, offset: int, payload: bytes) -> bytes:
    return wire.encode_data_header(DATA, stream, offset) + payload


def orders(frames: Sequence[bytes]) -> Iterable[tuple[bytes, ...]]:
    """Each order in which they may come, and each with a copy of every frame at the end."""
    for order in permutations(frames):
        yield order
        yield order + order[::-1]


def give(on: LanePair, session: Session, frames: Iterable[bytes]) -> None:
    for frame in frames:
        session.turn.renew()
        assert on.lane(session).frames(memoryview(frame), on.now)
    session.turn.renew()


def test_at_the_exit_a_stream_with_all_that_belongs_to_it() -> None:
    frames = [
        wire.encode_open(1, StreamProtocol.TCP, TARGET),
        data(1, 0, b"one, "),
        data(1, 5, b"two"),
        wire.encode_fin(1, 8),
        wire.encode_window(1, 1 << 20),
    ]
    for order in orders(frames):
        on = LanePair()
        give(on, on.exit, order)
        served = on.link.served[1]
        assert served.received == b"one, two" and served.events[-1] == ("eof",), order
        assert served.stream is not None and served.stream.send_limit == 1 << 20
        assert not on.exit.receiver.ahead.bytes


def test_at_the_exit_a_stream_that_is_reset() -> None:
    """Its bytes may come, or not: only the credit counts."""
    frames = [
        wire.encode_open(1, StreamProtocol.TCP, TARGET),
        data(1, 0, b"one"),
        wire.encode_reset(1, StreamReason.CANCELLED, 3),
        wire.encode_window(1, 1 << 20),
    ]
    for order in orders(frames):
        on = LanePair()
        give(on, on.exit, order)
        assert on.link.served[1].events[-1] == ("reset", StreamReason.CANCELLED)
        credit = on.exit.table.received_credit
        assert credit.received == credit.consumed == 3 and not on.exit.streams


@pytest.mark.parametrize("opened", [True, False])
def test_at_the_client_a_stream_with_all_that_belongs_to_it(opened: bool) -> None:
    frames = [data(1, 0, b"one, "), data(1, 5, b"two"), wire.encode_fin(1, 8), wire.encode_window(1, 1 << 20)]
    if opened:
        frames.append(wire.encode_opened(1))
    for order in orders(frames):
        on = LanePair()
        app = on.link.open()
        give(on, on.client, order)
        assert app.received == b"one, two" and app.events[-1] == ("eof",), order
        assert app.events[0] == ("opened",) and app.events.count(("opened",)) == 1
        assert app.stream is not None and app.stream.send_limit == 1 << 20


@pytest.mark.parametrize(
    "end",
    [wire.encode_refused(1, StreamReason.GENERAL), wire.encode_reset(1, StreamReason.GENERAL, 0)],
    ids=["refused", "reset"],
)
def test_at_the_client_a_stream_that_has_no_success(end: bytes) -> None:
    frames = [end, wire.encode_window(1, 1 << 20), wire.encode_window(1, 1 << 19)]
    for order in orders(frames):
        on = LanePair()
        app = on.link.open()
        give(on, on.client, order)
        assert app.ended and not on.client.streams, order


def test_what_is_absolute_counts_once_and_the_largest_of_it() -> None:
    """Credit of all streams, and how many may be opened."""
    frames = [
        wire.encode_window(0, 1 << 28),
        wire.encode_window(0, 1 << 29),
        wire.encode_number(wire.STREAMS, 20_000),
        wire.encode_number(wire.STREAMS, 30_000),
    ]
    for order in orders(frames):
        on = LanePair()
        give(on, on.client, order)
        assert on.client.table.credit == 1 << 29 and on.client.table.numbers.may_open == 30_000


def test_what_has_a_serial_number_counts_if_it_is_the_newest() -> None:
    frames = [wire.encode_prefer(1, 0), wire.encode_prefer(2, 7), wire.encode_prefer(3, 5)]
    for order in orders(frames):
        on = LanePair()
        give(on, on.exit, order)
        assert (on.exit._prefer_serial, on.exit._preferred) == (3, 5)


def test_paths_that_the_peer_has_closed() -> None:
    """Twice, and with what it has received of them."""
    frames = [wire.encode_records(wire.ABANDON, 0, 1), wire.encode_records(wire.ABANDON, 1, 0)]
    for order in orders(frames):
        on = LanePair()
        on.link.join()
        give(on, on.client, order)
        assert not on.client.paths and on.client.closed is None


def test_what_asks_the_client_to_leave() -> None:
    on = LanePair()
    asked: list[bool] = []
    on.client.events.goaway = lambda: asked.append(True)
    give(on, on.client, [wire.encode_bare(wire.GOAWAY), wire.encode_bare(wire.GOAWAY)])
    assert asked and on.client.closed is None


def moved(on: LanePair, session: Session) -> list[bytes]:
    """What `session` says about keys."""
    frames = [bytes(unit.frame) for unit in session.retention._control]
    session.retention._control.clear()
    return [
        frame for frame in frames if frame[0] in (wire.REKEY, wire.REKEY_ANSWER, wire.REKEY_PLEASE, wire.LANE)
    ]


def test_rotations_with_copies_of_all_that_belonged_to_the_last_one() -> None:
    """And without what confirms an epoch: the next rotation does."""
    on = LanePair(limits=session_limits())
    on.cut()
    moved(on, on.client), moved(on, on.exit)
    copies_for_exit: list[bytes] = []
    copies_for_client: list[bytes] = []
    for number in range(1, 5):
        on.client.rotation.start(on.now)
        question = moved(on, on.client)
        give(on, on.exit, [*copies_for_exit, *question, *question, *copies_for_exit])
        answer = moved(on, on.exit)
        give(on, on.client, [*copies_for_client, *answer, *answer, *copies_for_client])
        copies_for_exit, copies_for_client = question, answer
        moved(on, on.client)
        assert on.client.rotation.current == on.exit.rotation.current == number
    assert on.client.closed is None and on.exit.closed is None


def test_the_end_of_a_session_and_what_comes_behind_it() -> None:
    frames = [
        wire.encode_close(CloseReason.NORMAL),
        wire.encode_open(1, StreamProtocol.TCP, TARGET),
        data(1, 0, b"one"),
    ]
    for order in orders(frames):
        on = LanePair()
        give(on, on.exit, order)
        assert on.exit.closed is CloseReason.NORMAL and not on.exit.streams
        assert not on.exit.receiver.ahead.bytes


@pytest.mark.parametrize("reset", [True, False])
def test_bytes_that_come_behind_the_end_of_their_stream(reset: bool) -> None:
    """The session's credit agrees at both sides, whatever came of a stream that is gone here."""
    last = wire.encode_reset(1, StreamReason.GENERAL, 9) if reset else wire.encode_fin(1, 9)
    for order in orders([data(1, 0, b"abc"), data(1, 3, b"defghi"), last]):
        on = LanePair()
        _, served = on.pair()
        assert served.stream is not None
        served.stream.reset(StreamReason.GENERAL)
        give(on, on.exit, order)
        credit = on.exit.table.received_credit
        assert credit.received == credit.consumed == 9 and not on.exit.table.numbers.awaited


def test_an_app_that_ends_its_stream_in_the_middle() -> None:
    """What comes for it behind that is counted, and dropped."""

    class Leaver(App):
        def data_received(self, data: memoryview) -> None:
            super().data_received(data)
            if self.stream is not None and len(self.received) >= 3:
                self.stream.reset(StreamReason.CANCELLED)

    for order in orders([data(1, 0, b"abc"), data(1, 3, b"def"), wire.encode_fin(1, 6)]):
        on = LanePair()
        app = on.link.open(Leaver())
        give(on, on.client, order)
        assert app.received[:3] == b"abc"
        assert not on.client.streams and not on.client.table.numbers.awaited
