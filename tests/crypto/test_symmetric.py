"""A key with its counter: the end of the nonces, and a state without a key. test_noise.py has the published vectors."""

from __future__ import annotations

import pytest

from cryprq_proxy.crypto import symmetric
from cryprq_proxy.crypto.primitives import Cipher, new_aead
from cryprq_proxy.crypto.symmetric import CipherState
from cryprq_proxy.errors import LocalError


def test_nonces_count_from_zero() -> None:
    """Section 12.3: four zero bytes, then the counter in eight bytes, little endian."""
    cipher, aead = CipherState(bytes(32)), new_aead(Cipher.CHACHA20_POLY1305, bytes(32))
    for number in range(3):
        nonce = bytes(4) + number.to_bytes(8, "little")
        assert cipher.encrypt(b"ad", b"plain") == aead.encrypt(nonce, b"plain", b"ad")


def test_nonces_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(symmetric, "_MAX_NONCE", 1)
    cipher = CipherState(bytes(32))
    cipher.encrypt(b"", b"")
    with pytest.raises(LocalError, match="used up"):
        cipher.encrypt(b"", b"")


def test_no_key_no_cipher() -> None:
    cipher = CipherState()
    assert cipher.encrypt(b"", b"x") == cipher.decrypt(b"", b"x") == b"x"
