"""The keys of one path: what seals and opens its records, and the borders between epochs.

A path begins on the keys of the handshake by which it came. From then on each direction goes over to the newest epoch
of the session by itself, at a border that its sender names: SWITCH is the last record under the old key, and the next
record is number 0 under the new one. The keys of an epoch differ from path to path, so no nonce is used twice.

Both sides know of which epoch the resume secret was by which the path joined. The keys of its handshake stand for those
of that epoch, so that each side knows which borders are to come.
"""

from __future__ import annotations

from typing import NamedTuple

from ..crypto.handshake import record_keys
from ..crypto.primitives import Cipher
from ..errors import CarrierError, CloseReason
from .records import RecordOpener, RecordSealer


class CarrierKeys(NamedTuple):
    """What the handshake of a path results in. `sealer` and `opener` continue where admission stopped."""

    cipher: Cipher
    sealer: RecordSealer
    opener: RecordOpener


class PathKeys:
    """The keys of path `number`, which joined by the resume secret of `epoch`; 0 for the path of a new session.

    `send_epoch` and `receive_epoch` are the epochs in use. `sent_before` and `received_before` count the records of
    those before; `acknowledged` is how many records the peer has, of all epochs: the session sets it. The older of the
    two keys is in use `since` then.
    """

    __slots__ = (
        "_bytes_opened",
        "_bytes_sealed",
        "_dialler",
        "_receive_since",
        "_send_since",
        "acknowledged",
        "cipher",
        "joined",
        "number",
        "opener",
        "receive_epoch",
        "received_before",
        "sealer",
        "send_epoch",
        "sent_before",
        "since",
    )

    def __init__(self, number: int, keys: CarrierKeys, now: float, *, dialler: bool, epoch: int = 0) -> None:
        self.number = number
        self._dialler = dialler
        self.cipher, self.sealer, self.opener = keys
        self.send_epoch = self.receive_epoch = epoch
        self.sent_before = self.received_before = self.acknowledged = 0
        self._bytes_sealed = self._bytes_opened = 0
        """Under the keys before those in use."""
        self.joined = self._send_since = self._receive_since = now
        self.since = now

    def used(self, records: int, size: int) -> bool:
        """Whether one of the two keys has sealed or opened so many records, or bytes of ciphertext and tags."""
        sealer, opener = self.sealer, self.opener
        return (
            sealer.records >= records
            or opener.records >= records
            or sealer.bytes >= size
            or opener.bytes >= size
        )

    @property
    def records_sent(self) -> int:
        """Of all epochs."""
        return self.sent_before + self.sealer.records

    @property
    def records_received(self) -> int:
        return self.received_before + self.opener.records

    @property
    def bytes_sent(self) -> int:
        """Ciphertext and tags, of all epochs."""
        return self._bytes_sealed + self.sealer.bytes

    @property
    def bytes_received(self) -> int:
        return self._bytes_opened + self.opener.bytes

    def settled(self, epoch: int) -> bool:
        """Whether both directions have come to `epoch`, and the peer is known to have seen it."""
        return self.receive_epoch >= epoch <= self.send_epoch and self.acknowledged >= self.sent_before

    def switch_sending(self, epoch: int, secret: bytes, now: float) -> None:
        """SWITCH has been sealed: the next record is number 0 of `epoch`, whose `records` secret is given."""
        self.sent_before += self.sealer.records
        self._bytes_sealed += self.sealer.bytes
        self.sealer = RecordSealer(self.cipher, record_keys(secret, self.number)[not self._dialler])
        self.send_epoch, self._send_since = epoch, now
        self.since = self._receive_since

    def switch_receiving(self, epoch: int, secret: bytes | None, now: float) -> None:
        """The peer's SWITCH was opened. `secret`: None for an epoch that this side does not know.

        Raises CarrierError (REKEY) for that, and for an epoch not above the present one.
        """
        if secret is None or epoch <= self.receive_epoch:
            raise CarrierError(CloseReason.REKEY, "the peer changed to keys that it may not use")
        self.received_before += self.opener.records
        self._bytes_opened += self.opener.bytes
        self.opener = RecordOpener(self.cipher, record_keys(secret, self.number)[self._dialler])
        self.receive_epoch, self._receive_since = epoch, now
        self.since = self._send_since
