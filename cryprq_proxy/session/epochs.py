"""The ledger of a session's epochs: which keys carried how much, and for how long.

An epoch's bytes are those of its records on the carrier (ciphertext and tags), which the sealer and the opener of the
epoch count anyway. They are copied here when the keys go, so nothing is counted twice and no key is kept alive: the
ledger holds numbers and names only. The two directions change keys at different moments; what the next keys have
carried before the epoch begins on this side counts with the one that ends.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from ..status import EpochStatus
from .records import RecordOpener, RecordSealer

MAX_EPOCHS: Final = 32
"""Entries kept, the newest; the oldest goes."""
EXCHANGE: Final = "X25519 + ML-KEM-768"
"""How the secret of every epoch comes about: in the handshake, and again with each rotation."""


@dataclass(slots=True)
class LedgerEntry:
    """`carrier` counts the session's carriers from 1, `number` the epochs of one from 0; `began` and `ended` are times
    of the session's clock, `ended` None for the epoch in use. Sizes in bytes."""

    carrier: int
    number: int
    cipher: str
    began: float
    ended: float | None = None
    sent: int = 0
    received: int = 0


class EpochLedger:
    """What became of the last MAX_EPOCHS epochs."""

    __slots__ = ("_carriers", "_epochs", "rotations")

    def __init__(self) -> None:
        self._epochs: deque[LedgerEntry] = deque(maxlen=MAX_EPOCHS)
        self._carriers = 0
        self.rotations = 0
        """Epochs that began on a carrier that stood already."""

    def begin(self, number: int, cipher: str, now: float) -> None:
        """From now on another epoch is in use: 0 is the first of a new carrier."""
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
        """The carrier is gone, and the epoch with it."""
        self._epochs[-1].ended = now

    def report(self, now: float, keys: tuple[RecordSealer, RecordOpener] | None) -> tuple[EpochStatus, ...]:
        """For `status`, newest first; `keys` are those in use, None if none are."""
        told: list[EpochStatus] = []
        for epoch in reversed(self._epochs):
            current = keys is not None and not told
            told.append(
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
        return tuple(told)
