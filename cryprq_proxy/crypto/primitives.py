"""Every primitive that the program uses, and the only file that imports a cryptographic library.

The classical half (X25519, Ed25519, the two AEADs) always comes from `cryptography`, that is from OpenSSL.
The post-quantum half (ML-KEM-768 of FIPS 203, ML-DSA-65 of FIPS 204) comes from one of two providers,
chosen once at start: `cryptography` if its OpenSSL has both, else `kyber-py` with `dilithium-py`, which are
correct but slow and not constant time. The two are never mixed: an OpenSSL that lacks one lacks both.

All randomness comes from an `Entropy`, a function from a size to that many bytes. A fixed one freezes whole
handshakes as test vectors: it fixes the ephemeral keys of both providers, but the encapsulations and
signatures of the pure pair only, because OpenSSL draws their randomness itself.
"""

from __future__ import annotations

import copy
import hashlib
import hmac
import os
from enum import IntEnum
from functools import cache
from time import perf_counter_ns
from typing import Any, Final, Protocol

from cryptography import exceptions
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.backends.openssl.backend import backend
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey, MLDSA65PublicKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ..errors import ConfigError, HandshakeError, LocalError

HASH_SIZE = 32
AEAD_KEY_SIZE = 32
AEAD_NONCE_SIZE = 12
AEAD_TAG_SIZE = 16
SEED_SIZE = 32
X25519_SIZE = 32
ED25519_PUBLIC_SIZE = 32
ED25519_SIGNATURE_SIZE = 64
MLKEM_PUBLIC_SIZE = 1184
MLKEM_CIPHERTEXT_SIZE = 1088
MLDSA_PUBLIC_SIZE = 1952
MLDSA_SIGNATURE_SIZE = 3309


type Buffer = bytes | bytearray | memoryview


# --- randomness ---


class Entropy(Protocol):
    """A source of random bytes."""

    def __call__(self, size: int, /) -> bytes:
        """Exactly `size` unpredictable bytes."""


system_entropy: Entropy = os.urandom


# --- hashes and key derivation ---

_SHA256: Final = hashes.SHA256()


def sha256(data: Buffer) -> bytes:
    """The SHA-256 of `data`, 32 bytes."""
    return hashlib.sha256(data).digest()


def hmac_sha256(key: bytes, data: bytes) -> bytes:
    """HMAC-SHA256 (RFC 2104), 32 bytes."""
    return hmac.digest(key, data, hashlib.sha256)


def hkdf(secret: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    """HKDF-SHA256 (RFC 5869): `length` bytes, at most 8160, from `secret`."""
    if not 0 <= length <= 255 * HASH_SIZE:
        raise LocalError(f"HKDF cannot give {length} bytes")
    return HKDF(_SHA256, length, salt, info).derive(secret) if length else b""


def constant_time_equal(left: bytes, right: bytes) -> bool:
    """Whether both are the same bytes. The time it takes reveals their lengths only."""
    return hmac.compare_digest(left, right)


# --- AEAD ---

InvalidTag = exceptions.InvalidTag
"""Raised by an Aead for data that is not authentic."""


class Cipher(IntEnum):
    """The AEAD of the records. The handshake's payloads carry these numbers."""

    AES_256_GCM = 1
    CHACHA20_POLY1305 = 2


class Aead(Protocol):
    """What both AEADs offer: keys of 32 bytes, nonces of 12, tags of 16 behind the ciphertext."""

    def encrypt(self, nonce: Buffer, data: Buffer, associated_data: Buffer | None, /) -> bytes:
        """Ciphertext and tag."""

    def encrypt_into(
        self, nonce: Buffer, data: Buffer, associated_data: Buffer | None, buf: Buffer, /
    ) -> int:
        """The same into `buf`, which has exactly the right size; returns that size."""

    def decrypt(self, nonce: Buffer, data: Buffer, associated_data: Buffer | None, /) -> bytes:
        """The plaintext. Raises InvalidTag unless `data` is exactly what was sealed."""

    def decrypt_into(
        self, nonce: Buffer, data: Buffer, associated_data: Buffer | None, buf: Buffer, /
    ) -> int:
        """The same into `buf`, which is exactly a tag shorter than `data`."""


def new_aead(cipher: Cipher, key: bytes) -> Aead:
    """The library's own object for a key of 32 bytes: the data path calls it without a wrapper."""
    return AESGCM(key) if cipher is Cipher.AES_256_GCM else ChaCha20Poly1305(key)


_PROBE = bytes(16384)
_PROBE_ROUNDS = 7


def _probe(cipher: Cipher) -> int:
    """Nanoseconds to seal 16 KiB: the shortest of a few runs, because other work can only prolong one."""
    aead, nonce, times = new_aead(cipher, bytes(AEAD_KEY_SIZE)), bytes(AEAD_NONCE_SIZE), []
    for _ in range(_PROBE_ROUNDS):
        start = perf_counter_ns()
        aead.encrypt(nonce, _PROBE, None)
        times.append(perf_counter_ns() - start)
    return min(times)


@cache
def ciphers_by_speed() -> tuple[Cipher, ...]:
    """Both ciphers, the faster one first: AES-256-GCM if the CPU has instructions for it.

    Measured (about 0.3 ms, once per process), not read from CPU flags: their names differ per architecture, and
    they do not say whether OpenSSL uses them. Without the instructions AES is several times slower than ChaCha20.
    """
    if _probe(Cipher.AES_256_GCM) < _probe(Cipher.CHACHA20_POLY1305):
        return (Cipher.AES_256_GCM, Cipher.CHACHA20_POLY1305)
    return (Cipher.CHACHA20_POLY1305, Cipher.AES_256_GCM)


# --- X25519 and Ed25519 ---


class X25519Key:
    """An ephemeral X25519 key pair (RFC 7748); `public` is 32 bytes."""

    __slots__ = ("_key", "public")

    def __init__(self, entropy: Entropy = system_entropy) -> None:
        self._key = X25519PrivateKey.from_private_bytes(entropy(X25519_SIZE))
        self.public = self._key.public_key().public_bytes_raw()

    def exchange(self, peer: bytes) -> bytes:
        """The shared secret, 32 bytes. Raises HandshakeError if it is all zero (RFC 7748, section 6.1)."""
        try:
            return self._key.exchange(X25519PublicKey.from_public_bytes(peer))
        except ValueError:
            raise HandshakeError("the peer's X25519 key is not usable") from None


class Ed25519Key:
    """An Ed25519 signing key (RFC 8032) from its seed of 32 bytes; `public` is 32 bytes."""

    __slots__ = ("_key", "public")

    def __init__(self, seed: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.public = self._key.public_key().public_bytes_raw()

    def sign(self, data: bytes) -> bytes:
        """The signature, 64 bytes."""
        return self._key.sign(data)


def ed25519_verify(public: bytes, signature: bytes, data: bytes) -> bool:
    """Whether `signature` is valid.

    Never rely on it alone: for keys of small order, signatures can be made without the private key.
    """
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True


# --- the post-quantum providers ---


class KemKey(Protocol):
    """An ephemeral ML-KEM-768 key pair."""

    @property
    def public(self) -> bytes:
        """The encapsulation key, 1184 bytes."""

    def decapsulate(self, ciphertext: bytes) -> bytes:
        """The shared secret of 32 bytes.

        A wrong ciphertext gives a random secret (FIPS 203, implicit rejection). Raises HandshakeError
        if it does not have 1088 bytes.
        """


class MldsaKey(Protocol):
    """An ML-DSA-65 signing key."""

    @property
    def public(self) -> bytes:
        """The verification key, 1952 bytes."""

    def sign(self, data: bytes, context: bytes, entropy: Entropy = system_entropy) -> bytes:
        """A hedged signature of 3309 bytes (FIPS 204, algorithm 2). Takes milliseconds, and not always as many."""


class Provider(Protocol):
    """Source of ML-KEM-768 and ML-DSA-65. Stateless: one object may serve all threads."""

    @property
    def name(self) -> str:
        """For the log and the status."""

    @property
    def fast(self) -> bool:
        """False if every operation takes milliseconds and is not constant time."""

    def generate_kem(self, entropy: Entropy = system_entropy) -> KemKey:
        """A fresh key pair, from 64 bytes of entropy (d, then z)."""

    def encapsulate(self, public: bytes, entropy: Entropy = system_entropy) -> tuple[bytes, bytes]:
        """A shared secret (32 bytes) and its ciphertext (1088).

        Raises HandshakeError if the key has a wrong length or a coefficient out of range (FIPS 203,
        section 7.2).
        """

    def mldsa_key(self, seed: bytes) -> MldsaKey:
        """The signing key of a seed of 32 bytes."""

    def mldsa_verify(self, public: bytes, signature: bytes, data: bytes, context: bytes) -> bool:
        """Whether `signature` is valid; False also for wrong lengths and encodings."""


_BAD_KEM_KEY = "the peer's ML-KEM key is malformed"
_BAD_CIPHERTEXT = "the peer's ML-KEM ciphertext has the wrong length"


class _OpensslKemKey:
    __slots__ = ("_key", "public")

    def __init__(self, seed: bytes) -> None:
        self._key = MLKEM768PrivateKey.from_seed_bytes(seed)
        self.public = self._key.public_key().public_bytes_raw()

    def decapsulate(self, ciphertext: bytes) -> bytes:
        if len(ciphertext) != MLKEM_CIPHERTEXT_SIZE:
            raise HandshakeError(_BAD_CIPHERTEXT)
        return self._key.decapsulate(ciphertext)


class _OpensslMldsaKey:
    __slots__ = ("_key", "public")

    def __init__(self, seed: bytes) -> None:
        self._key = MLDSA65PrivateKey.from_seed_bytes(seed)
        self.public = self._key.public_key().public_bytes_raw()

    def sign(self, data: bytes, context: bytes, entropy: Entropy = system_entropy) -> bytes:
        # OpenSSL draws the randomness of the hedge itself.
        return self._key.sign(data, context)


class _OpensslProvider:
    name = "cryptography"
    fast = True

    def generate_kem(self, entropy: Entropy = system_entropy) -> KemKey:
        return _OpensslKemKey(entropy(2 * SEED_SIZE))

    def encapsulate(self, public: bytes, entropy: Entropy = system_entropy) -> tuple[bytes, bytes]:
        try:
            return MLKEM768PublicKey.from_public_bytes(public).encapsulate()
        except ValueError:
            raise HandshakeError(_BAD_KEM_KEY) from None

    def mldsa_key(self, seed: bytes) -> MldsaKey:
        return _OpensslMldsaKey(seed)

    def mldsa_verify(self, public: bytes, signature: bytes, data: bytes, context: bytes) -> bool:
        try:
            MLDSA65PublicKey.from_public_bytes(public).verify(signature, data, context)
        except (InvalidSignature, ValueError):
            return False
        return True


def _with_entropy(scheme: Any, entropy: Entropy) -> Any:
    """A copy of a scheme of the pure pair that draws from `entropy`; the original is shared by all threads."""
    scheme = copy.copy(scheme)
    scheme.random_bytes = entropy
    return scheme


class _PureKemKey:
    __slots__ = ("_scheme", "_secret", "public")

    def __init__(self, scheme: Any, entropy: Entropy) -> None:
        self._scheme = scheme
        self.public: bytes
        self._secret: bytes
        self.public, self._secret = scheme.key_derive(entropy(2 * SEED_SIZE))

    def decapsulate(self, ciphertext: bytes) -> bytes:
        if len(ciphertext) != MLKEM_CIPHERTEXT_SIZE:
            raise HandshakeError(_BAD_CIPHERTEXT)
        return bytes(self._scheme.decaps(self._secret, ciphertext))


class _PureMldsaKey:
    __slots__ = ("_scheme", "_secret", "public")

    def __init__(self, scheme: Any, seed: bytes) -> None:
        self._scheme = scheme
        self.public: bytes
        self._secret: bytes
        self.public, self._secret = scheme.key_derive(seed)

    def sign(self, data: bytes, context: bytes, entropy: Entropy = system_entropy) -> bytes:
        return bytes(_with_entropy(self._scheme, entropy).sign(self._secret, data, context))


class _PureProvider:
    name = "kyber-py + dilithium-py"
    fast = False

    def __init__(self) -> None:
        try:
            from dilithium_py.ml_dsa import ML_DSA_65
            from kyber_py.ml_kem import ML_KEM_768
        except ImportError:
            raise ConfigError(
                "the packages kyber-py and dilithium-py are not installed; install them, or a `cryptography` "
                "whose OpenSSL has ML-KEM and ML-DSA (3.5 or later)"
            ) from None
        self._kem: Any = ML_KEM_768
        self._dsa: Any = ML_DSA_65

    def generate_kem(self, entropy: Entropy = system_entropy) -> KemKey:
        return _PureKemKey(self._kem, entropy)

    def encapsulate(self, public: bytes, entropy: Entropy = system_entropy) -> tuple[bytes, bytes]:
        try:
            secret, ciphertext = _with_entropy(self._kem, entropy).encaps(public)
        except ValueError:
            raise HandshakeError(_BAD_KEM_KEY) from None
        return secret, ciphertext

    def mldsa_key(self, seed: bytes) -> MldsaKey:
        return _PureMldsaKey(self._dsa, seed)

    def mldsa_verify(self, public: bytes, signature: bytes, data: bytes, context: bytes) -> bool:
        if len(public) != MLDSA_PUBLIC_SIZE or len(signature) != MLDSA_SIGNATURE_SIZE:
            return False
        return bool(self._dsa.verify(public, data, signature, context))


@cache
def select_provider(name: str | None = None) -> Provider:
    """The provider of this process.

    `name`: "cryptography" or "pure" forces one; None takes the fast one if this OpenSSL has it, else the pure
    one. Raises ConfigError if the requested one is not available.
    """
    supported = backend.mlkem_supported() and backend.mldsa_supported()
    if name == "pure" or (name is None and not supported):
        return _PureProvider()
    if name not in (None, "cryptography"):
        raise ConfigError(f"there is no provider {name!r}; choose cryptography or pure")
    if not supported:
        raise ConfigError(
            "the OpenSSL of `cryptography` has no ML-KEM and ML-DSA; take one of 3.5 or later, or choose pure"
        )
    return _OpensslProvider()
