"""Records: the sealed units that carry everything on a carrier after the handshake.

    length u32 | ciphertext and tag, `length` bytes

`length` counts ciphertext and tag (17 to MAX_RECORD bytes); it is the associated data. The nonce is the record's number
in its direction and epoch, 12 bytes big-endian. It is never sent: a replayed or reordered record, or one after a lost
record, does not open.
"""

from __future__ import annotations

from typing import Final

from ..crypto.primitives import Cipher, InvalidTag, new_aead
from ..errors import CarrierError, CloseReason
from .wire import MAX_PLAINTEXT

HEADER: Final = 4
TAG: Final = 16
OVERHEAD: Final = HEADER + TAG
MAX_RECORD: Final = MAX_PLAINTEXT + TAG
"""The largest value of the length field."""
LARGE: Final = 16_384
"""Records of at least this length are opened into one buffer that all carriers share: to allocate and clear a new one
each time would be slow."""

_plaintext: Final = memoryview(bytearray(MAX_PLAINTEXT))


class RecordSealer:
    """Seals one direction of one epoch.

    `records` and `bytes` count what was sealed; the session rotates before they reach a limit.
    """

    __slots__ = ("_encrypt_into", "bytes", "records")

    def __init__(self, cipher: Cipher, key: bytes) -> None:
        self._encrypt_into = new_aead(cipher, key).encrypt_into
        self.records = 0
        self.bytes = 0

    def seal_into(self, plaintext: bytes | memoryview, out: memoryview, position: int) -> int:
        """Write one record to `out` at `position` and return the position after it.

        `plaintext` is 1 to MAX_PLAINTEXT bytes; `out` needs OVERHEAD more than that.
        """
        length = len(plaintext) + TAG
        header = length.to_bytes(HEADER)
        start = position + HEADER
        end = start + length
        out[position:start] = header
        self._encrypt_into(self.records.to_bytes(12), plaintext, header, out[start:end])
        self.records += 1
        self.bytes += length
        return end

    def seal(self, plaintext: bytes) -> bytes:
        """Seal one record into bytes of its own."""
        out = bytearray(len(plaintext) + OVERHEAD)
        self.seal_into(plaintext, memoryview(out), 0)
        return bytes(out)


class RecordOpener:
    """Opens one direction of one epoch; the counterpart of RecordSealer."""

    __slots__ = ("_decrypt", "_decrypt_into", "bytes", "records")

    def __init__(self, cipher: Cipher, key: bytes) -> None:
        aead = new_aead(cipher, key)
        self._decrypt, self._decrypt_into = aead.decrypt, aead.decrypt_into
        self.records = 0
        self.bytes = 0

    def open(self, data: memoryview, position: int) -> tuple[bytes | memoryview | None, int]:
        """Open the record that starts at `position`: (plaintext, position after it), or (None, position) if `data`
        does not hold all of it yet. A large plaintext is a view that is valid until the next record is opened.

        Raises CarrierError (BAD_RECORD) for a length out of range or a record that does not authenticate. Read
        nothing from the carrier after that.
        """
        start = position + HEADER
        header = data[position:start]
        if len(header) < HEADER:
            return None, position
        length = int.from_bytes(header)
        if not TAG < length <= MAX_RECORD:
            raise CarrierError(
                CloseReason.BAD_RECORD, "a record of impossible length arrived: the carrier is damaged"
            )
        end = start + length
        if end > len(data):
            return None, position
        plaintext: bytes | memoryview
        try:
            if length < LARGE:
                plaintext = self._decrypt(self.records.to_bytes(12), data[start:end], header)
            else:
                plaintext = _plaintext[: length - TAG]
                self._decrypt_into(self.records.to_bytes(12), data[start:end], header, plaintext)
        except InvalidTag:
            raise CarrierError(
                CloseReason.BAD_RECORD, "a record did not authenticate: it was changed, replayed or reordered"
            ) from None
        self.records += 1
        self.bytes += length
        return plaintext, end
