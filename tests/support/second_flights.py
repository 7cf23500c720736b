"""Identity, Noise and the flights of the second client: docs/protocol.md, sections 1 to 4 and the messages of 10."""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey, MLDSA65PublicKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

VERSION = 2
AES, CHACHA = 1, 2
LANE = 1
LINK_NAME = b"Noise_XXhfs+sig+psk0_25519+MLKEM768+Ed25519+MLDSA65_ChaChaPoly_SHA256"
REKEY_NAME = b"Noise_NNhfs+psk0_25519+MLKEM768_ChaChaPoly_SHA256"
CONTEXT = b"cryprq/1"


def hkdf(key: bytes, info: bytes, length: int = 32, salt: bytes = b"") -> bytes:
    return HKDF(SHA256(), length, salt or None, info).derive(key)


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


class FlightError(Exception):
    """The exit's flight or its verdict is wrong, or there is none."""


class OtherVersion(FlightError):
    """The exit speaks another version of the protocol."""


class Keys:
    """The two signing keys of an identity."""

    def __init__(self, ed25519_seed: bytes, mldsa_seed: bytes) -> None:
        self._ed25519 = Ed25519PrivateKey.from_private_bytes(ed25519_seed)
        self._mldsa = MLDSA65PrivateKey.from_seed_bytes(mldsa_seed)
        self.public = (
            self._ed25519.public_key().public_bytes_raw() + self._mldsa.public_key().public_bytes_raw()
        )
        self.peer_id = sha256(self.public)

    def sign(self, data: bytes) -> bytes:
        return self._ed25519.sign(data) + self._mldsa.sign(data, CONTEXT)


def check_signature(public: bytes, signature: bytes, data: bytes) -> None:
    Ed25519PublicKey.from_public_bytes(public[:32]).verify(signature[:64], data)
    MLDSA65PublicKey.from_public_bytes(public[32:]).verify(signature[64:], data, CONTEXT)


class Noise:
    """Noise's symmetric state."""

    def __init__(self, name: bytes, prologue: bytes) -> None:
        self.h = self.ck = sha256(name)
        self.k, self._n = b"", 0
        self.mix_hash(prologue)

    def mix_hash(self, data: bytes) -> None:
        self.h = sha256(self.h + data)

    def _outputs(self, data: bytes, count: int) -> list[bytes]:
        # Noise's own HKDF is that of RFC 5869 with the chaining key as the salt.
        out = hkdf(data, b"", 32 * count, self.ck)
        return [out[32 * i : 32 * i + 32] for i in range(count)]

    def mix_key(self, data: bytes) -> None:
        self.ck, self.k = self._outputs(data, 2)
        self._n = 0

    def mix_key_and_hash(self, data: bytes) -> None:
        self.ck, hashed, self.k = self._outputs(data, 3)
        self.mix_hash(hashed)
        self._n = 0

    def _nonce(self) -> bytes:
        self._n += 1
        return struct.pack("<4xQ", self._n - 1)

    def encrypt(self, plaintext: bytes) -> bytes:
        sealed = ChaCha20Poly1305(self.k).encrypt(self._nonce(), plaintext, self.h)
        self.mix_hash(sealed)
        return sealed

    def decrypt(self, sealed: bytes) -> bytes:
        plaintext = ChaCha20Poly1305(self.k).decrypt(self._nonce(), sealed, self.h)
        self.mix_hash(sealed)
        return plaintext


class Exchange(Noise):
    """What flights of both patterns and a rotation have in common: psk, e, e1 and then e, ee, ekem1."""

    def __init__(self, name: bytes, prologue: bytes, psk: bytes) -> None:
        super().__init__(name, prologue)
        self._psk = psk
        self._e = X25519PrivateKey.generate()
        self._e1 = MLKEM768PrivateKey.generate()

    def first(self, payload: bytes) -> bytes:
        self.mix_key_and_hash(self._psk)
        e = self._e.public_key().public_bytes_raw()
        self.mix_hash(e)
        self.mix_key(e)
        return e + self.encrypt(self._e1.public_key().public_bytes_raw()) + self.encrypt(payload)

    def second(self, message: bytes) -> bytes:
        """What stands behind the tokens."""
        e = message[:32]
        self.mix_hash(e)
        self.mix_key(e)
        self.mix_key(self._e.exchange(X25519PublicKey.from_public_bytes(e)))
        self.mix_key(self._e1.decapsulate(self.decrypt(message[32:1136])))
        return message[1136:]

    def secret(self, label: bytes, length: int = 32) -> bytes:
        return hkdf(self.ck, b"cryprq/2 " + label, length, self.h)


class Handshake(Exchange):
    """The client's side of three flights."""

    def __init__(
        self,
        exit_id: bytes,
        *,
        short: bool,
        versions: bytes = bytes([VERSION]),
        ciphers: bytes = b"\1\2",
        features: int = 0,
    ) -> None:
        super().__init__(LINK_NAME, b"cryprq/1 link" + exit_id, sha256(b"cryprq/1 psk0" + exit_id))
        self._exit_id, self._short = exit_id, short
        self._versions, self._ciphers, self._offered = versions, ciphers, features
        self.cipher = self.features = 0
        self.h2 = b""

    def flight1(self) -> bytes:
        lists = bytes([len(self._versions)]) + self._versions + bytes([len(self._ciphers)]) + self._ciphers
        return self.first(lists + struct.pack(">IB", self._offered, self._short))

    def lengths2(self) -> range:
        return range(1158, 1217) if self._short else range(6547, 6606)

    def read_flight2(self, flight: bytes) -> None:
        rest = self.second(flight)
        if not self._short:
            public = self.decrypt(rest[:2000])
            if sha256(public) != self._exit_id:
                raise FlightError("another exit")
            signed = b"cryprq/1 handshake\0S" + self.h
            check_signature(public, self.decrypt(rest[2000:5389]), signed)
            rest = rest[5389:]
        payload = self.decrypt(rest)
        if payload[0] not in self._versions:
            raise OtherVersion(payload[0])
        _, self.cipher, self.features = struct.unpack(">BBI", payload)
        if self.cipher not in self._ciphers or self.features & ~self._offered:
            raise FlightError("the exit chose what was not offered")
        self.h2 = self.h

    def flight3(self, keys: Keys, payload: bytes) -> bytes:
        s = self.encrypt(keys.public)
        return s + self.encrypt(keys.sign(b"cryprq/1 handshake\0C" + self.h)) + self.encrypt(payload)

    def short_flight3(self, resume: bytes, path: int) -> bytes:
        shown = self.encrypt(ticket(resume, path))
        self.mix_key_and_hash(resume)
        return shown + self.encrypt(struct.pack(">I", path))

    def proof(self, resume: bytes, role: bytes, path: int) -> bytes:
        return proof(resume, role, self.h2, path)


def ticket(resume: bytes, path: int) -> bytes:
    return hkdf(resume, b"cryprq/2 ticket" + struct.pack(">I", path), 16)


def proof(resume: bytes, role: bytes, h2: bytes, path: int) -> bytes:
    return hmac.digest(resume, b"resume " + role + h2 + struct.pack(">I", path), "sha256")


def path_key(records: bytes, side: bytes, path: int) -> bytes:
    return hkdf(records, b"cryprq/2 " + side + b" record" + struct.pack(">I", path))


@dataclass(frozen=True)
class Epoch:
    """The secrets of an epoch that this client uses."""

    number: int
    records: bytes
    chain: bytes
    resume: bytes
    client_lane: bytes
    exit_lane: bytes
    h: bytes

    @classmethod
    def of(cls, number: int, made: Exchange) -> Epoch:
        records, chain, resume, client_lane, exit_lane = (
            made.secret(label) for label in (b"records", b"chain", b"resume", b"client lane", b"exit lane")
        )
        return cls(number, records, chain, resume, client_lane, exit_lane, made.h)

    def rekey(self, session_id: bytes) -> Exchange:
        prologue = b"cryprq/2 rekey" + session_id + struct.pack(">I", self.number + 1) + self.h
        return Exchange(REKEY_NAME, prologue, self.chain)
