"""A key with its counter: the end of the nonces, and a state without a key. test_noise.py has the published vectors."""

from __future__ import annotations

import pytest

from cryprq_proxy.crypto import symmetric
from cryprq_proxy.crypto.symmetric import CipherState
from cryprq_proxy.errors import LocalError


def test_nonces_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(symmetric, "_MAX_NONCE", 1)
    cipher = CipherState(bytes(32))
    cipher.encrypt(b"", b"")
    with pytest.raises(LocalError, match="used up"):
        cipher.encrypt(b"", b"")


def test_no_key_no_cipher() -> None:
    cipher = CipherState()
    assert cipher.encrypt(b"", b"x") == cipher.decrypt(b"", b"x") == b"x"
