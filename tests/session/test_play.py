"""Two sessions with a liar among them, from fixed seeds and the fuzzer's corpus; and the judge finds what is wrong."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from cryprq_proxy.address import Destination
from cryprq_proxy.errors import CloseReason, PeerError, StreamReason
from cryprq_proxy.session.streams import Stream
from cryprq_proxy.session.wire import StreamProtocol
from tests.support import session_play
from tests.support.choices import Choices
from tests.support.fault_watch import FaultWatch
from tests.support.planted_faults import PLANTED, SEEDS, finds
from tests.support.session_judge import Witness
from tests.support.session_play import Play

CORPUS = sorted(SEEDS.iterdir())
PLAYS = 200
BLOCK = 20
"""Plays of one test."""
HONEST = b"\0\0\0\3"
"""The setting, the bound on streams, and the one number in four that makes a play without a liar."""


def seeded_play(seed: int) -> Play:
    return Play(Choices(random.Random(seed).randbytes(400)))


@pytest.mark.parametrize("first", range(0, PLAYS, BLOCK))
def test_a_victim_keeps_its_promises(first: int) -> None:
    for seed in range(first, first + BLOCK):
        seeded_play(seed).run()


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_a_victim_keeps_its_promises_in_plays_of_the_corpus(path: Path) -> None:
    Play(Choices(path.read_bytes())).run()


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_a_play_of_the_corpus_finds_a_planted_fault(
    plant: Callable[[pytest.MonkeyPatch], None], fault_watch: FaultWatch
) -> None:
    """Faults that handlers raise were contained by the session, and the others were nowhere counted but there."""
    assert finds(plant, SEEDS.joinpath(plant.__name__).read_bytes())
    fault_watch.faults.clear()


def test_a_play_fails_for_a_fault_that_the_session_contains(
    monkeypatch: pytest.MonkeyPatch, fault_watch: FaultWatch
) -> None:
    def fail(witness: Witness) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Witness, "opened", fail)
    with pytest.raises(RuntimeError, match="a fault was contained") as failure:
        for path in CORPUS:
            Play(Choices(path.read_bytes())).run()
    assert isinstance(failure.value.__cause__, ZeroDivisionError)
    fault_watch.faults.clear()


def test_plays_have_liars_and_honest_peers_and_end_for_many_reasons() -> None:
    plays = [seeded_play(seed) for seed in range(4 * BLOCK)]
    for play in plays:
        play.run()
    assert {play.honest for play in plays} == {True, False}
    assert {play.liar.dialler for play in plays} == {True, False}
    assert {play.deferred for play in plays} == {True, False}
    assert len({str(error) for play in plays for error in play.errors}) > 12


def honest_play() -> Play:
    play = Play(Choices(HONEST))
    play._open()
    play._advance(0.1)
    return play


def test_the_judge_sees_bytes_that_nobody_counts() -> None:
    play = honest_play()
    play.judges[0].check()
    play.victim.retention.kept += 1
    with pytest.raises(RuntimeError, match="are kept"):
        play.judges[0].check()


def test_the_judge_sees_a_window_that_is_lost() -> None:
    play = honest_play()
    play.victim.windows.free -= 1
    with pytest.raises(RuntimeError, match="of the pool"):
        play.judges[0].check()


def test_the_judge_sees_more_streams_than_are_allowed() -> None:
    play = honest_play()
    play.judges[0].streams = 0
    with pytest.raises(RuntimeError, match="streams and"):
        play.judges[0].check()


def test_the_judge_sees_more_data_than_credit() -> None:
    play = honest_play()
    stream = next(iter(play.victim.streams.values()))
    assert isinstance(stream.handler, Witness)
    stream.handler.received += bytes(stream.announced + 1)
    stream.received = stream.delivered = stream.announced + 1
    play.judges[0].count.highest[stream.id] = stream.received
    with pytest.raises(RuntimeError, match="credit"):
        play.judges[0].check()


def test_the_judge_counts_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """It believed the session's own count of what came, which a session without `take_data` leaves at 0."""
    monkeypatch.setattr(Stream, "take_data", lambda stream, end, now, pool: True)
    play = honest_play()
    next(app for app in play.apps if app.dialler).say(b"one two")
    play._advance(0.1)
    (judge,) = [judge for judge in play.judges if not judge.session.dialler]
    with pytest.raises(RuntimeError, match="bytes are counted that never came"):
        judge.check()


def test_the_judge_counts_the_credit_of_the_session_by_itself() -> None:
    play = honest_play()
    next(app for app in play.apps if app.dialler).say(b"one two")
    play._advance(0.1)
    (judge,) = [judge for judge in play.judges if not judge.session.dialler]
    judge.check()
    judge.session.table.received_credit.received -= 1
    with pytest.raises(RuntimeError, match="7 bytes of all streams came, 6 are counted"):
        judge.check()


def test_the_judge_sees_credit_that_never_comes_back() -> None:
    play = honest_play()
    play.victim.table.received_credit.consumed -= 1
    with pytest.raises(RuntimeError, match="1 bytes never give credit again"):
        play.judges[0].check()


def test_the_judge_sees_a_frame_in_two_places() -> None:
    play = honest_play()
    for judge in play.judges:
        judge.session.retention.append(b"-")
        (unit,) = judge.session.retention._streams
        judge.session.retention._control.append(unit)
        judge.session.retention._charge(unit.cost)
        with pytest.raises(RuntimeError, match="in two places"):
            judge.check()


def test_the_judge_sees_pieces_that_nobody_counts() -> None:
    play = honest_play()
    play.victim.receiver.pieces.used += 1
    with pytest.raises(RuntimeError, match="0 pieces wait, 1 are counted"):
        play.judges[0].check()


def test_the_first_copy_of_each_byte_counts() -> None:
    """Also if a later one comes with what was missing."""
    play = honest_play()
    (stream,) = play.victim.streams.values()
    app = stream.handler
    assert isinstance(app, Witness)
    receive = play.victim.receiver.receive_data
    receive(stream.id, 3, memoryview(b"def"))
    receive(stream.id, 1, memoryview(b"BCDEFG"))
    receive(stream.id, 0, memoryview(b"a"))
    assert app.received == b"aBCdefG"
    app.received[0] = 0
    app.received += b"-"
    with pytest.raises(RuntimeError, match="9 bytes of a stream were delivered of 8"):
        receive(stream.id, 7, memoryview(b"h"))


def test_a_witness_counts_its_credit_by_itself() -> None:
    play = honest_play()
    (stream,) = play.link.exit.streams.values()
    assert isinstance(stream.handler, Witness)
    stream.handler.received += bytes(stream.announced)
    with pytest.raises(RuntimeError, match="credit"):
        stream.handler.data_received(memoryview(b"-"))


def test_a_play_of_the_corpus_reaches_the_bound_on_ended_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the judge sees a session that has none."""
    awaited = next(path for path in CORPUS if path.name == "awaited").read_bytes()
    play = Play(Choices(awaited))
    play.run()
    assert any("opens more streams than it may" in str(error) for error in play.errors)
    monkeypatch.setattr(session_play, "OPENS", 1 << 30)
    monkeypatch.setattr(session_play, "AWAITED", 1 << 30)
    with pytest.raises(RuntimeError, match="ended ones"):
        Play(Choices(awaited)).run()


def test_the_judge_sees_what_a_closed_session_keeps() -> None:
    play = honest_play()
    with pytest.raises(RuntimeError, match="keeps something"):
        play.judges[0].check_closed(0.0)


def test_the_judge_sees_bytes_that_are_lost() -> None:
    play = honest_play()
    sender = next(app for app in play.apps if app.dialler)
    sender.say(b"one two")
    sender.told += b" three"
    with pytest.raises(RuntimeError, match="did not arrive"):
        play._check_honest()


def test_the_judge_takes_no_error_between_honest_sessions() -> None:
    play = honest_play()
    (carrier,) = play.carriers
    carrier.fail(carrier.paths[0], PeerError(CloseReason.PROTOCOL, "it does not understand"))
    with pytest.raises(RuntimeError, match="disagree: it does not understand"):
        play._look_at_carriers()


def test_a_witness_may_not_be_called_after_its_end() -> None:
    play = honest_play()
    witness = play._witness(dialler=True)
    witness.stream = Stream(
        play.victim.table, 9, StreamProtocol.TCP, Destination("192.0.2.1", 1), witness, 0.0
    )
    with pytest.raises(RuntimeError, match="before `opened`"):
        witness.data_received(memoryview(b"-"))
    witness.opened()
    with pytest.raises(RuntimeError, match="on an open stream"):
        witness.refused(StreamReason.GENERAL)
    witness.eof_received()
    with pytest.raises(RuntimeError, match="after the peer's end"):
        witness.data_received(memoryview(b"-"))
    with pytest.raises(RuntimeError, match="a stream of bytes"):
        witness.datagram_received(Destination("192.0.2.1", 1), memoryview(b"-"))
    witness.reset(StreamReason.CANCELLED)
    with pytest.raises(RuntimeError, match="after the end"):
        witness.writable()
    exit_witness: Witness = play._witness(dialler=False)
    with pytest.raises(RuntimeError, match="at the exit"):
        exit_witness.opened()
