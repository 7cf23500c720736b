"""A handler that raises: its stream is reset on both sides, the others and the path go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from cryprq_proxy.errors import CloseReason, StreamReason
from cryprq_proxy.session.streams import Stream
from cryprq_proxy.session.wire import StreamProtocol
from tests.support.fault_watch import FaultWatch
from tests.support.links import TARGET, App, Link


@pytest.fixture(autouse=True)
def only_the_fault_of_the_test(fault_watch: FaultWatch) -> Iterator[None]:
    yield
    assert {type(fault) for fault in fault_watch.faults} <= {ZeroDivisionError}
    fault_watch.faults.clear()


class Faulty(App):
    """Raises once, where it is told to."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self._place = place
        setattr(self, place, self._raise)

    def _raise(self, *_: object) -> bool:
        delattr(self, self._place)
        raise ZeroDivisionError(self._place)


def say(link: Link, faulty: Faulty, far: App) -> None:
    far.say(b"data")


def say_packed(link: Link, faulty: Faulty, far: App) -> None:
    """In a record with other frames."""
    far.say(b"data")
    link.exit.measure()


def end(link: Link, faulty: Faulty, far: App) -> None:
    far.say(b"", finish=True)


def end_both(link: Link, faulty: Faulty, far: App) -> None:
    faulty.say(b"", finish=True)
    link.carrier.settle()
    far.say(b"", finish=True)


def send(link: Link, faulty: Faulty, far: App) -> None:
    assert faulty.stream is not None
    faulty.stream.wait_for_turn()
    link.client.wake()


def say_datagram(link: Link, faulty: Faulty, far: App) -> None:
    assert far.stream is not None
    far.stream.send_datagram(TARGET, b"datagram")


def say_datagram_on_the_lane(link: Link, faulty: Faulty, far: App) -> None:
    assert faulty.stream is not None
    link.client.receiver.datagram_from_lane(faulty.stream.id, TARGET, memoryview(b"datagram"))


@pytest.mark.parametrize(
    ("place", "happens"),
    [
        ("opened", lambda link, faulty, far: None),
        ("data_received", say),
        ("data_received", say_packed),
        ("eof_received", end),
        ("eof_received", end_both),
        ("writable", send),
        ("datagram_received", say_datagram),
        ("datagram_received", say_datagram_on_the_lane),
    ],
)
def test_a_fault_in_a_handler_resets_its_stream(
    place: str, happens: Callable[[Link, Faulty, App], None], caplog: pytest.LogCaptureFixture
) -> None:
    """The frame counted as received, so after a resume the stream went on without its bytes."""
    link = Link()
    other, far_other = link.pair()
    udp = place == "datagram_received"
    faulty = Faulty(place)
    link.open(faulty, StreamProtocol.UDP if udp else StreamProtocol.TCP)
    link.carrier.settle()
    assert faulty.stream is not None
    far = link.served[faulty.stream.id]
    happens(link, faulty, far)
    link.carrier.settle()
    assert link.carrier.open and link.carrier.error is None
    assert faulty.events[-1] == ("reset", StreamReason.GENERAL)
    if happens is not end_both:
        assert far.events[-1] == ("reset", StreamReason.GENERAL)
    assert link.client.streams.keys() == link.exit.streams.keys() == {1}
    far_other.say(b"on")
    link.carrier.settle()
    assert other.received == b"on"
    [record] = caplog.records
    assert record.exc_info is not None and record.exc_info[0] is ZeroDivisionError
    for app in (other, far_other):
        app.say(b"", finish=True)
    link.quiesce()
    link.assert_clean()


def test_a_fault_in_the_answer_to_a_refusal_ends_the_request() -> None:
    def refuse(stream: Stream) -> App:
        stream.refuse(StreamReason.NOT_ALLOWED)
        return App()

    link = Link(serve=refuse)
    faulty = link.open(Faulty("refused"))
    link.carrier.settle()
    assert link.carrier.open and faulty.events == [("reset", StreamReason.GENERAL)]


def test_a_fault_in_a_reset_leaves_the_link() -> None:
    link = Link()
    faulty = Faulty("reset")
    link.open(faulty)
    link.carrier.settle()
    assert faulty.stream is not None
    far = link.served[faulty.stream.id].stream
    assert far is not None
    far.reset(StreamReason.GENERAL)
    link.carrier.settle()
    assert link.carrier.open and not link.client.streams


def test_a_fault_in_one_reset_leaves_none_of_a_closed_session_behind() -> None:
    link = Link()
    first, _ = link.pair()
    link.open(Faulty("reset"))
    last, _ = link.pair()
    link.client.close(CloseReason.NORMAL)
    assert first.ended and last.ended


def test_a_stream_that_cannot_be_served_is_reset() -> None:
    def fail(stream: Stream) -> App:
        raise ZeroDivisionError

    link = Link(serve=fail)
    app = link.open()
    link.carrier.settle()
    assert link.carrier.open and app.events == [("reset", StreamReason.GENERAL)]
    assert not link.exit.streams


def test_a_path_whose_loss_a_fault_kept_from_its_session_keeps_nothing_up() -> None:
    link = Link()
    near, far = link.pair()
    link.quiesce()
    stale, lost = link.carrier.paths
    lost.lost(link.carrier.now)
    stale.announce(b"\0stale")
    near.say(b"on")
    link.now = link.carrier.now
    link.connect()
    link.carrier.settle()
    assert far.received == b"on" and link.carrier.error is None
    assert stale.ended, "the exit says that it has closed it"
