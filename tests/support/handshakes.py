"""Two peers that shake hands, a hostile provider, and what every flight must withstand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import pytest

from cryprq_proxy.crypto.client_handshake import ClientHandshake, ShortClientHandshake
from cryprq_proxy.crypto.exit_handshake import ExitHandshake
from cryprq_proxy.crypto.identity import Identity
from cryprq_proxy.crypto.payloads import Claim
from cryprq_proxy.crypto.primitives import Cipher, Entropy, KemKey, MldsaKey, select_provider, system_entropy
from cryprq_proxy.errors import HandshakeError, LocalError

AES, CHACHA = Cipher.AES_256_GCM, Cipher.CHACHA20_POLY1305
BOTH = (CHACHA, AES)
FAST = select_provider()
CLIENT = Identity.generate(FAST)
EXIT = Identity.generate(FAST)
RESUME: Final = bytes(range(50, 82))
"""The resume secret of the session that short clients join."""
PATH: Final = 3


def new_client(**changes: Any) -> ClientHandshake:
    arguments: dict[str, Any] = {
        "identity": CLIENT,
        "exit_id": EXIT.peer_id,
        "provider": FAST,
        "ciphers": BOTH,
    }
    return ClientHandshake(**(arguments | changes))


def new_short_client(**changes: Any) -> ShortClientHandshake:
    arguments: dict[str, Any] = {
        "exit_id": EXIT.peer_id,
        "provider": FAST,
        "resume": RESUME,
        "path": PATH,
        "ciphers": BOTH,
    }
    return ShortClientHandshake(**(arguments | changes))


def new_exit(**changes: Any) -> ExitHandshake:
    arguments: dict[str, Any] = {"identity": EXIT, "provider": FAST, "ciphers": BOTH}
    return ExitHandshake(**(arguments | changes))


def flights(client: ClientHandshake, exit_: ExitHandshake, claim: Claim = None) -> tuple[bytes, bytes, bytes]:
    first = client.write_first()
    exit_.read_first(first)
    second = exit_.write_second()
    client.read_second(second)
    third = client.write_third(claim)
    exit_.read_third(third)
    return first, second, third


class Hostile:
    """A provider whose KEM key or ciphertext is what the test says; the rest is the fast one's."""

    name = "hostile"
    fast = True

    def __init__(self, public: bytes = b"", ciphertext: bytes = b"") -> None:
        self.public = public
        self._ciphertext = ciphertext

    def generate_kem(self, entropy: Entropy = system_entropy) -> KemKey:
        return self

    def decapsulate(self, ciphertext: bytes) -> bytes:
        return bytes(32)

    def encapsulate(self, public: bytes, entropy: Entropy = system_entropy) -> tuple[bytes, bytes]:
        return bytes(32), self._ciphertext

    def mldsa_key(self, seed: bytes) -> MldsaKey:
        return FAST.mldsa_key(seed)

    def mldsa_verify(self, public: bytes, signature: bytes, data: bytes, context: bytes) -> bool:
        return FAST.mldsa_verify(public, signature, data, context)


@dataclass(frozen=True)
class FlightTest:
    """A flight whose every byte counts. `prepare` comes to the point where one side reads it, and gives both."""

    name: str
    prepare: Callable[[str], tuple[Callable[[bytes], object], bytes]]
    size: range
    """Lengths that the reader accepts."""
    boundaries: list[int]
    """Where its fields start."""

    def changed(self) -> None:
        """Wrong with any byte changed, and no second try."""
        for offset in self._offsets(len(self.prepare(self.name)[1])):
            read, flight = self.prepare(self.name)
            wrong = bytearray(flight)
            wrong[offset] ^= 0x80 if offset % 2 else 0x01
            with pytest.raises(HandshakeError):
                read(bytes(wrong))
            with pytest.raises(LocalError):  # not even the right one is read now
                read(flight)

    def other_lengths(self) -> None:
        right = len(self.prepare(self.name)[1])
        lengths = {0, 1, 31, 32, 33, right - 1, right + 1, self.size[0] - 1, self.size[0], self.size[-1] + 1}
        for length in sorted((lengths | {65535, *self.size[::9], *range(0, right, 499)}) - {right}):
            read, flight = self.prepare(self.name)
            with pytest.raises(HandshakeError) as caught:
                read((flight + bytes(65535))[:length])
            assert ("wrong length" in str(caught.value)) is (length not in self.size)

    def _offsets(self, size: int) -> Iterator[int]:
        """Both ends of every field, and a sample of what is in between."""
        near = {start + delta for start in self.boundaries for delta in (-1, 0, 1)}
        yield from sorted(
            offset for offset in near | set(range(7, size, 67)) | {size - 1} if 0 <= offset < size
        )
