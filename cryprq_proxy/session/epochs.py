"""The ledger of a session's epochs: how many bytes each carried, and for how long.

An epoch's bytes are those of records (ciphertext and tags) on all paths. The sealers and openers of the paths count
them; the ledger copies the counts when the keys are dropped. It holds numbers and names only, so it keeps no key alive.
Paths and directions come to an epoch at different times, so several epochs may grow at once. What a path carries on the
keys of its handshake counts for the epoch of the secret by which it joined.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from ..status import EpochStatus
from .path_keys import PathKeys
from .records import RecordOpener, RecordSealer

MAX_EPOCHS: Final = 32
"""Number of epochs kept; the oldest is dropped first."""
EXCHANGE: Final = "X25519 + ML-KEM-768"
"""The key exchange behind the secrets of every epoch: in the handshake, and again in each rotation."""


@dataclass(slots=True)
class LedgerEntry:
    """`number` counts the epochs from 0. `began` and `ended` are times of the session's clock; `ended` is None for the
    epoch in use. Sizes in bytes."""

    number: int
    cipher: str
    began: float
    ended: float | None = None
    sent: int = 0
    received: int = 0


class EpochLedger:
    """The last MAX_EPOCHS epochs of a session."""

    __slots__ = ("_epochs",)

    def __init__(self) -> None:
        self._epochs: deque[LedgerEntry] = deque(maxlen=MAX_EPOCHS)

    @property
    def rotations(self) -> int:
        return self._epochs[-1].number

    def begin(self, number: int, cipher: str, now: float) -> None:
        """An epoch comes into use; number 0 is the first."""
        if self._epochs:
            self._epochs[-1].ended = now
        self._epochs.append(LedgerEntry(number, cipher, now))

    def sealed(self, number: int, sealer: RecordSealer) -> None:
        """`sealer`, of epoch `number`, has sealed its last record."""
        for epoch in self._epochs:
            if epoch.number == number:
                epoch.sent += sealer.bytes

    def opened(self, number: int, opener: RecordOpener) -> None:
        """`opener`, of epoch `number`, has opened its last record."""
        for epoch in self._epochs:
            if epoch.number == number:
                epoch.received += opener.bytes

    def report(self, now: float, paths: Iterable[PathKeys]) -> tuple[EpochStatus, ...]:
        """For `status`: the epochs, newest first. `paths`: the keys in use on them."""
        shown: list[EpochStatus] = []
        paths = list(paths)
        for epoch in reversed(self._epochs):
            sent = sum(keys.sealer.bytes for keys in paths if keys.send_epoch == epoch.number)
            received = sum(keys.opener.bytes for keys in paths if keys.receive_epoch == epoch.number)
            shown.append(
                EpochStatus(
                    number=epoch.number,
                    current=not shown,
                    since=round(now - epoch.began, 3),
                    lasted=round((now if epoch.ended is None else epoch.ended) - epoch.began, 3),
                    bytes_sent=epoch.sent + sent,
                    bytes_received=epoch.received + received,
                    exchange=EXCHANGE,
                    cipher=epoch.cipher,
                )
            )
        return tuple(shown)
