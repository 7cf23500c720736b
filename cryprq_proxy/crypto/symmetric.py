"""The symmetric half of the Noise Protocol Framework (revision 34, sections 5.1 and 5.2): ciphers, keys and hashes.

noise.py decides what is mixed in, and in which order. Cipher and hash are always ChaCha20-Poly1305 and SHA-256.
"""

from __future__ import annotations

import struct
from typing import Final

from ..errors import HandshakeError, LocalError
from .primitives import HASH_SIZE, Aead, Cipher, InvalidTag, hkdf, hmac_sha256, new_aead, sha256

_NONCE: Final = struct.Struct("<4xQ")
_MAX_NONCE: Final = 2**64 - 1


class CipherState:
    """A key and a counter (section 5.1); without a key, data passes unchanged."""

    __slots__ = ("_aead", "_nonce")

    def __init__(self, key: bytes | None = None) -> None:
        self._aead: Aead | None = None if key is None else new_aead(Cipher.CHACHA20_POLY1305, key)
        self._nonce = 0

    @property
    def has_key(self) -> bool:
        return self._aead is not None

    def _next_nonce(self) -> bytes:
        # The specification reserves the last nonce for rekeying.
        if self._nonce == _MAX_NONCE:
            raise LocalError("the nonces of this key are used up")
        nonce = _NONCE.pack(self._nonce)
        self._nonce += 1
        return nonce

    def encrypt(self, ad: bytes, plaintext: bytes) -> bytes:
        """The ciphertext, 16 bytes longer than the plaintext."""
        return plaintext if self._aead is None else self._aead.encrypt(self._next_nonce(), plaintext, ad)

    def decrypt(self, ad: bytes, ciphertext: bytes) -> bytes:
        """The plaintext. Raises HandshakeError if the ciphertext does not authenticate."""
        if self._aead is None:
            return ciphertext
        try:
            return self._aead.decrypt(self._next_nonce(), ciphertext, ad)
        except InvalidTag:
            raise HandshakeError("a message of the handshake does not authenticate") from None


class SymmetricState:
    """The chaining key `ck` and the handshake hash `h` (section 5.2)."""

    __slots__ = ("_cipher", "_ck", "h")

    def __init__(self, name: bytes) -> None:
        self.h = name.ljust(HASH_SIZE, b"\0") if len(name) <= HASH_SIZE else sha256(name)
        self._ck = self.h
        self._cipher = CipherState()

    @property
    def has_key(self) -> bool:
        return self._cipher.has_key

    def _derive(self, material: bytes, count: int) -> list[bytes]:
        """The HKDF of section 4.3: `count` outputs of 32 bytes."""
        key, output, outputs = hmac_sha256(self._ck, material), b"", []
        for index in range(1, count + 1):
            output = hmac_sha256(key, output + bytes((index,)))
            outputs.append(output)
        return outputs

    def mix_key(self, material: bytes) -> None:
        self._ck, key = self._derive(material, 2)
        self._cipher = CipherState(key)

    def mix_hash(self, data: bytes) -> None:
        self.h = sha256(self.h + data)

    def mix_key_and_hash(self, material: bytes) -> None:
        self._ck, hashed, key = self._derive(material, 3)
        self.mix_hash(hashed)
        self._cipher = CipherState(key)

    def encrypt_and_hash(self, plaintext: bytes) -> bytes:
        ciphertext = self._cipher.encrypt(self.h, plaintext)
        self.mix_hash(ciphertext)
        return ciphertext

    def decrypt_and_hash(self, ciphertext: bytes) -> bytes:
        plaintext = self._cipher.decrypt(self.h, ciphertext)
        self.mix_hash(ciphertext)
        return plaintext

    def export(self, info: bytes, length: int) -> bytes:
        return hkdf(self._ck, self.h, info, length)
