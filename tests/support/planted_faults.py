"""Faults for a session that a play of two sessions must find: the test of session_play.py and its judges.

A seed of the corpus has the name of the fault that it finds. When the acts of a play change, it plays something else:
`python -m tests.support.planted_faults` looks for new ones.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any, Final

import pytest

from cryprq_proxy.errors import CloseReason, PeerError
from cryprq_proxy.session.control_rates import ControlRates
from cryprq_proxy.session.number_set import NumberSet
from cryprq_proxy.session.path import SessionPath
from cryprq_proxy.session.reassembly import PieceBudget
from cryprq_proxy.session.retention import PathLog, Retention
from cryprq_proxy.session.session_credit import SessionCredit
from cryprq_proxy.session.stream_numbers import StreamNumbers
from cryprq_proxy.session.stream_receiver import StreamReceiver
from cryprq_proxy.session.stream_table import ENDED
from cryprq_proxy.session.streams import Stream, StreamHandler
from cryprq_proxy.session.windows import WindowPool
from tests.support.choices import Choices
from tests.support.session_play import Play


def data_without_credit(patch: pytest.MonkeyPatch) -> None:
    def take_data(stream: Stream, end: int, now: float, pool: WindowPool) -> bool:
        stream.received = end
        return True

    patch.setattr(Stream, "take_data", take_data)


def data_without_credit_of_the_session(patch: pytest.MonkeyPatch) -> None:
    def take(credit: SessionCredit, size: int) -> None:
        credit.received += size

    patch.setattr(SessionCredit, "take", take)


def data_in_any_order(patch: pytest.MonkeyPatch) -> None:
    deliver = StreamReceiver._deliver
    patch.setattr(
        StreamReceiver, "_deliver_later", lambda receiver, stream, _, data: deliver(receiver, stream, data)
    )


def pieces_without_bound(patch: pytest.MonkeyPatch) -> None:
    def take(budget: PieceBudget) -> None:
        budget.used += 1

    patch.setattr(PieceBudget, "take", take)


def gaps_without_bound(patch: pytest.MonkeyPatch) -> None:
    def insert(numbers: NumberSet, at: int, begin: int, end: int) -> None:
        numbers._begins.insert(at, begin)
        numbers._ends.insert(at, end)

    patch.setattr(NumberSet, "_insert", insert)


def reset_told_twice(patch: pytest.MonkeyPatch) -> None:
    def receive_reset(receiver: StreamReceiver, id: int, reason: Any, final: int) -> None:
        table = receiver._table
        stream = table.live.get(id)
        if stream is None:
            receiver._late_end(5, id, final)
            return
        table.answer_end(stream)
        handler: StreamHandler = stream.handler
        stream.handler = ENDED
        try:
            handler.reset(reason)
            handler.reset(reason)
        except Exception as error:
            table.faults.report(error)

    patch.setattr(StreamReceiver, "receive_reset", receive_reset)


def no_control_rate(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ControlRates, "control", lambda *_: None)


def no_late_rate(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ControlRates, "late", lambda *_: None)


def unknown_streams(patch: pytest.MonkeyPatch) -> None:
    late = StreamNumbers.late

    def accept(numbers: StreamNumbers, kind: int, id: int, now: float) -> None:
        try:
            late(numbers, kind, id, now)
        except PeerError as error:
            if error.reason is not CloseReason.PROTOCOL:
                raise

    patch.setattr(StreamNumbers, "late", accept)


def work_that_is_not_spent(patch: pytest.MonkeyPatch) -> None:
    receive = SessionPath.receive

    def forget(path: SessionPath, data: memoryview, now: float) -> int:
        left = path.session.turn.left
        used = receive(path, data, now)
        path.session.turn.left = left
        return used

    patch.setattr(SessionPath, "receive", forget)


def lost_units_in_the_order_of_their_loss(patch: pytest.MonkeyPatch) -> None:
    def lose(retention: Retention, log: PathLog) -> None:
        if log.units:
            retention._lost.append(log)
            retention._lost_logs.setdefault(log.number, []).append(log)

    patch.setattr(Retention, "lose", lose)


def opens_that_are_overtaken(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Retention, "repeat_opens", lambda *_: None)


PLANTED: Final[dict[Callable[[pytest.MonkeyPatch], None], str]] = {
    data_without_credit: "there was credit for",
    data_without_credit_of_the_session: "than the session allows",
    data_in_any_order: "bytes of a stream were delivered of",
    pieces_without_bound: "pieces wait",
    gaps_without_bound: "gaps between the numbers of streams",
    reset_told_twice: "reset was called after the end of the stream",
    no_control_rate: "control frames were taken",
    no_late_rate: "late frames were taken",
    unknown_streams: "was taken for an unknown stream",
    work_that_is_not_spent: "units of work were done, and",
    lost_units_in_the_order_of_their_loss: "a frame for an unknown stream",
    opens_that_are_overtaken: "a frame for an unknown stream",
}
"""Each fault, with a part of what a play says of it."""
OF_HONEST_PLAYS: Final = (lost_units_in_the_order_of_their_loss, opens_that_are_overtaken)
HONEST: Final = 3
"""The byte of a seed that makes one play in four honest."""
SEEDS: Final = Path(__file__).parents[1] / "fuzz/corpus/session"


def finds(plant: Callable[[pytest.MonkeyPatch], None], data: bytes) -> bool:
    """Whether the play of `data` fails for this fault, and without it passes."""
    with pytest.MonkeyPatch.context() as patch:
        plant(patch)
        try:
            Play(Choices(data)).run()
        except RuntimeError as error:
            if PLANTED[plant] not in str(error):
                return False
        else:
            return False
    Play(Choices(data)).run()
    return True


def _find_seeds() -> None:
    for plant in PLANTED:
        for number in count():
            seed = bytearray(random.Random(number).randbytes(400))
            if plant in OF_HONEST_PLAYS:
                seed[HONEST] = 3
            if finds(plant, bytes(seed)):
                SEEDS.joinpath(plant.__name__).write_bytes(seed)
                break


if __name__ == "__main__":
    _find_seeds()
