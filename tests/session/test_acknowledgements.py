"""What a side believes of the other's acknowledgements: what it has sent, and no more news than there are."""

from __future__ import annotations

from typing import Any

import pytest

from cryprq_proxy.errors import CloseReason, PeerError
from cryprq_proxy.session import wire
from cryprq_proxy.session.acknowledgements import acknowledge
from cryprq_proxy.session.control_rates import CONTROL_BURST
from cryprq_proxy.session.session import Session
from tests.support.links import Link

SIDES = pytest.mark.parametrize("side", ["client", "exit"])
KINDS = pytest.mark.parametrize("kind", [wire.ACK, wire.ABANDON])


def used(side: str) -> tuple[Link, Session]:
    """A link on which both sides have sent records, and one of them."""
    link = Link()
    app, other = link.pair()
    app.say(b"hello")
    other.say(b"hello")
    link.quiesce()
    return link, getattr(link, side)


def broken(link: Link, victim: Any, frame: bytes) -> CloseReason:
    with pytest.raises(PeerError) as caught:
        link.forge(victim, frame)
    return caught.value.reason


@SIDES
@KINDS
def test_the_last_record_may_be_acknowledged(side: str, kind: int) -> None:
    link, victim = used(side)
    link.forge(victim, wire.encode_records(kind, 0, victim.paths[0].keys.records_sent))
    assert victim.closed is None and not victim.retention.lost_logs(0)


@SIDES
@KINDS
def test_the_next_one_may_not(side: str, kind: int) -> None:
    link, victim = used(side)
    frame = wire.encode_records(kind, 0, victim.paths[0].keys.records_sent + 1)
    assert broken(link, victim, frame) is CloseReason.RESUME


@SIDES
def test_a_path_that_never_was_cannot_be_acknowledged(side: str) -> None:
    link, victim = used(side)
    assert broken(link, victim, wire.encode_records(wire.ACK, 1, 0)) is CloseReason.RESUME


@SIDES
def test_old_acknowledgements_take_nothing_back_and_have_a_rate(side: str) -> None:
    """Each is looked at and says nothing: so a flood of them is one of control frames."""
    link, victim = used(side)
    log = victim.paths[0].log
    before = log.acknowledged
    assert before > 0
    old = wire.encode_records(wire.ACK, 0, 0)
    link.forge(victim, *[old] * (CONTROL_BURST // 2))
    assert log.acknowledged == before and victim.closed is None
    assert broken(link, victim, old * CONTROL_BURST) is CloseReason.LIMIT


@SIDES
def test_news_have_no_rate(side: str) -> None:
    """There are no more of them than records that this side has sent."""
    link, victim = used(side)
    peer = link.exit if side == "client" else link.client
    app = link.served[1] if side == "exit" else next(iter(link.client.streams.values())).handler
    peer.paths[0]._write_own = lambda *given: None  # type: ignore[method-assign]
    sent = victim.paths[0].keys.records_sent
    for _ in range(2 * CONTROL_BURST):
        app.say(b"x")  # type: ignore[attr-defined]
        link.carrier.settle()
    records = range(sent, victim.paths[0].keys.records_sent + 1)
    assert len(records) > 2 * CONTROL_BURST
    link.forge(victim, *[wire.encode_records(wire.ACK, 0, number) for number in records])
    assert victim.closed is None and not victim.retention.kept


@SIDES
def test_what_was_on_a_lost_path_may_be_acknowledged_later(side: str) -> None:
    """By whichever path: then it does not go again."""
    link, victim = used(side)
    app = link.served[1] if side == "exit" else next(iter(link.client.streams.values())).handler
    app.say(b"on its way")  # type: ignore[attr-defined]
    path = victim.paths[0]
    out = memoryview(bytearray(1 << 20))
    assert path.fill(out, 1 << 16, link.carrier.now)
    path.lost(link.carrier.now)
    [log] = victim.retention.lost_logs(0)
    assert log.units
    acknowledge(victim, 0, path.keys.records_sent)
    assert not log.units and not victim.retention.lost_logs(0)[0].units
