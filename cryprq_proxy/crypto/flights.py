"""The order in which one side of a handshake writes and reads its flights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import Enum, auto

from ..errors import LocalError
from .noise import HandshakeState
from .primitives import Provider


class Step(Enum):
    """Which flight is complete."""

    NEW = auto()
    FIRST_DONE = auto()
    SECOND_DONE = auto()
    DONE = auto()
    FAILED = auto()


type Transitions = Mapping[tuple[Step, str], Step]
"""Which call is in turn at a step, and the step behind it."""


class Side:
    """What every side has. A flight that raises ends the handshake: every later call raises LocalError."""

    def __init__(self, steps: Transitions, provider: Provider, noise: HandshakeState) -> None:
        self._steps = steps
        self._step = Step.NEW
        self._provider = provider
        self._noise = noise

    @contextmanager
    def _flight(self, call: str) -> Iterator[None]:
        following = self._steps.get((self._step, call))
        if following is None:
            raise LocalError(f"{call} is out of turn: the handshake is at {self._step.name}")
        # Until the flight is complete.
        self._step = Step.FAILED
        yield
        self._step = following


def finished[T](value: T | None) -> T:
    """What a flight has left behind. Raises LocalError before it."""
    if value is None:
        raise LocalError("the handshake is not finished")
    return value
