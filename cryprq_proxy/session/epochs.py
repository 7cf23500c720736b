"""The ledger of a session's epochs: how many bytes each carried, and for how long.

An epoch's bytes are those of its records on the carrier (ciphertext and tags). The epoch's sealer and opener count
them; the ledger copies the counts when the keys are dropped. It holds numbers and names only, so it keeps no key alive.
The two directions change keys at different times: each count goes to the epoch that is in use at that time.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from ..status import EpochStatus
from .records import RecordOpener, RecordSealer

MAX_EPOCHS: Final = 32
"""Number of epochs kept; the oldest is dropped first."""
EXCHANGE: Final = "X25519 + ML-KEM-768"
"""The key exchange behind the secrets of every epoch: in the handshake, and again in each rotation."""


@dataclass(slots=True)
class LedgerEntry:
    """`carrier` counts the session's carriers from 1, `number` the epochs of a carrier from 0. `began` and `ended` are
    times of the session's clock; `ended` is None for the epoch in use. Sizes in bytes."""

    carrier: int
    number: int
    cipher: str
    began: float
    ended: float | None = None
    sent: int = 0
    received: int = 0


class EpochLedger:
    """The last MAX_EPOCHS epochs of a session."""

    __slots__ = ("_carriers", "_epochs", "rotations")

    def __init__(self) -> None:
        self._epochs: deque[LedgerEntry] = deque(maxlen=MAX_EPOCHS)
        self._carriers = 0
        self.rotations = 0
        """Epochs that began on an existing carrier."""

    def begin(self, number: int, cipher: str, now: float) -> None:
        """An epoch comes into use; number 0 is the first of a new carrier."""
        if number:
            self.end(now)
            self.rotations += 1
        else:
            self._carriers += 1
        self._epochs.append(LedgerEntry(self._carriers, number, cipher, now))

    def sealed(self, sealer: RecordSealer) -> None:
        """`sealer` has sealed its last record."""
        self._epochs[-1].sent += sealer.bytes

    def opened(self, opener: RecordOpener) -> None:
        """`opener` has opened its last record."""
        self._epochs[-1].received += opener.bytes

    def end(self, now: float) -> None:
        """The newest epoch is over."""
        self._epochs[-1].ended = now

    def report(self, now: float, keys: tuple[RecordSealer, RecordOpener] | None) -> tuple[EpochStatus, ...]:
        """For `status`: the epochs, newest first. `keys` are those in use, None without a carrier."""
        shown: list[EpochStatus] = []
        for epoch in reversed(self._epochs):
            current = keys is not None and not shown
            shown.append(
                EpochStatus(
                    carrier=epoch.carrier,
                    number=epoch.number,
                    current=current,
                    since=round(now - epoch.began, 3),
                    lasted=round((now if epoch.ended is None else epoch.ended) - epoch.began, 3),
                    bytes_sent=epoch.sent + (keys[0].bytes if keys is not None and current else 0),
                    bytes_received=epoch.received + (keys[1].bytes if keys is not None and current else 0),
                    exchange=EXCHANGE,
                    cipher=epoch.cipher,
                )
            )
        return tuple(shown)
