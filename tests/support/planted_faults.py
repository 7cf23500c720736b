"""Faults for a session that a play of two sessions must find: the test of session_play.py and its judges.

A seed of the corpus has the name of the fault that it finds. When the acts of a play change, it plays something else:
`python -m tests.support.planted_faults` looks for new ones.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from cryprq_proxy.errors import CloseReason, PeerError
from cryprq_proxy.session import session as session_module
from cryprq_proxy.session import wire
from cryprq_proxy.session.control_rates import ControlRates
from cryprq_proxy.session.session import Session
from cryprq_proxy.session.streams import Stream, StreamHandler
from cryprq_proxy.session.windows import WindowPool
from tests.support.choices import Choices
from tests.support.session_play import Play


def data_without_credit(patch: pytest.MonkeyPatch) -> None:
    def take_data(stream: Stream, size: int, now: float, pool: WindowPool) -> bool:
        stream.received += size
        return True

    patch.setattr(Stream, "take_data", take_data)


def reset_told_twice(patch: pytest.MonkeyPatch) -> None:
    def receive_reset(session: Session, stream: Stream, reason: Any) -> None:
        session._answer_end(stream)
        handler: StreamHandler = stream.handler
        try:
            handler.reset(reason)
            handler.reset(reason)
        except Exception as error:
            session._faults.report(error)

    patch.setitem(session_module._ON_STREAM, wire.RESET, receive_reset)


def no_control_rate(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ControlRates, "control", lambda *_: None)


def no_late_rate(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ControlRates, "late", lambda *_: None)


def unknown_streams(patch: pytest.MonkeyPatch) -> None:
    receive_late = Session._receive_late

    def accept(session: Session, kind: int, id: int) -> None:
        try:
            receive_late(session, kind, id)
        except PeerError as error:
            if error.reason is not CloseReason.PROTOCOL:
                raise

    patch.setattr(Session, "_receive_late", accept)


def work_that_is_not_spent(patch: pytest.MonkeyPatch) -> None:
    receive = Session.receive

    def forget(session: Session, data: memoryview, now: float) -> int:
        left = session.turn.left
        used = receive(session, data, now)
        session.turn.left = left
        return used

    patch.setattr(Session, "receive", forget)


PLANTED: Final[dict[Callable[[pytest.MonkeyPatch], None], str]] = {
    data_without_credit: "more data was received than there was credit for",
    reset_told_twice: "reset was called after the end of the stream",
    no_control_rate: "control frames were taken",
    no_late_rate: "late frames were taken",
    unknown_streams: "was taken for an unknown stream",
    work_that_is_not_spent: "units of work were done, and",
}
"""Each fault, with a part of what a play says of it."""
SEEDS: Final = Path(__file__).parents[1] / "fuzz/corpus/session"


def finds(plant: Callable[[pytest.MonkeyPatch], None], data: bytes) -> bool:
    """Whether the play of `data` fails for this fault, and without it passes."""
    Play(Choices(data)).run()
    with pytest.MonkeyPatch.context() as patch:
        plant(patch)
        try:
            Play(Choices(data)).run()
        except RuntimeError as error:
            return PLANTED[plant] in str(error)
    return False


def _find_seeds() -> None:
    for plant in PLANTED:
        numbers = iter(range(100_000))
        while not finds(plant, seed := random.Random(next(numbers)).randbytes(400)):
            pass
        SEEDS.joinpath(plant.__name__).write_bytes(seed)


if __name__ == "__main__":
    _find_seeds()
