"""What the three flights of the handshake carry besides keys: an offer, a choice, and the client's request.

Each payload is encoded and decoded here and nowhere else. The decoders raise HandshakeError only. They accept
exactly the bytes that an encoder of this version can write, and in an offer also values of later versions.
There is no fallback: what does not match ends the handshake.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntFlag
from typing import Final, Self

from ..errors import HandshakeError, LocalError
from .primitives import HASH_SIZE, Cipher, constant_time_equal, hmac_sha256

VERSION = 1


class Feature(IntFlag):
    """What a side can do besides streams; a session has the features of both sides."""

    LANE = 1
    """Datagrams beside the carrier, on the UDP port with the carrier's number."""
    PACKETS = 2
    """IP packets of the whole system: the exit has a network interface for them."""


_CHOICE = struct.Struct("!BBI")
_RESUME = struct.Struct("!B16sIQ32s")
_INVITE = struct.Struct("!B16s")

OFFER_MIN: Final = 8
OFFER_LIMIT: Final = 64
CHOICE_SIZE: Final = _CHOICE.size
PROOF_MIN: Final = 1
PROOF_LIMIT: Final = 128
SESSION_ID_SIZE: Final = 16
INVITE_SIZE: Final = 16

# --- payloads 1 and 2 ---


@dataclass(frozen=True, slots=True)
class HandshakeOffer:
    """Payload 1: what the client supports, the preferred first.

        versions  1 byte: how many (at least 1), then one byte each
        ciphers   1 byte: how many (at least 1), then one byte each
        features  4 bytes, big endian: one bit each

    The exit ignores values that it does not know. The payload has at most 64 bytes.
    """

    versions: tuple[int, ...]
    ciphers: tuple[int, ...]
    features: int

    def encode(self) -> bytes:
        lists = b"".join(bytes((len(values), *values)) for values in (self.versions, self.ciphers))
        return lists + self.features.to_bytes(4)

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Raises HandshakeError on anything that `encode` would not write."""
        if len(payload) > OFFER_LIMIT:
            raise HandshakeError("the client's offer is too long")
        lists, offset = [], 0
        for _ in range(2):
            end = offset + 1 + (payload[offset] if offset < len(payload) else 0)
            if not offset + 1 < end <= len(payload):
                raise HandshakeError("the client's offer is malformed")
            lists.append(tuple(payload[offset + 1 : end]))
            offset = end
        if len(payload) != offset + 4:
            raise HandshakeError("the client's offer has the wrong length")
        return cls(lists[0], lists[1], int.from_bytes(payload[offset:]))


@dataclass(frozen=True, slots=True)
class Choice:
    """Payload 2: what the exit chose from the offer.

    version   1 byte
    cipher    1 byte
    features  4 bytes, big endian: the bits that both sides have
    """

    version: int
    cipher: Cipher
    features: int

    def encode(self) -> bytes:
        return _CHOICE.pack(self.version, self.cipher, self.features)

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Raises HandshakeError on a wrong length and on a cipher that does not exist."""
        if len(payload) != _CHOICE.size:
            raise HandshakeError("the exit's choice has the wrong length")
        version, cipher, features = _CHOICE.unpack(payload)
        try:
            return cls(version, Cipher(cipher), features)
        except ValueError:
            raise HandshakeError("the exit chose a cipher that does not exist") from None


def choose(offer: HandshakeOffer, ciphers: tuple[Cipher, ...], features: int = 0) -> Choice:
    """The exit's choice. `ciphers` is the exit's own list, the preferred first; `features` is what it can do.

    AES-256-GCM is fast only with instructions of the CPU on both sides, so it is chosen only if it is first in
    both lists; else the choice is ChaCha20-Poly1305. Raises HandshakeError if the client does not offer it.
    """
    if VERSION not in offer.versions:
        raise HandshakeError("the client speaks no version of the protocol that this exit speaks")
    cipher = Cipher.CHACHA20_POLY1305
    if offer.ciphers[0] == ciphers[0] == Cipher.AES_256_GCM:
        cipher = Cipher.AES_256_GCM
    if cipher not in offer.ciphers or cipher not in ciphers:
        raise HandshakeError("the client offers no cipher that this exit accepts")
    return Choice(VERSION, cipher, offer.features & features)


# --- payload 3 ---

RESUME_CLIENT = b"resume C"
RESUME_EXIT = b"resume S"


def resume_proof(resume_secret: bytes, role: bytes, h: bytes, attempt: int, rx: int) -> bytes:
    """The proof of a side that it holds the session: HMAC-SHA256 (32 bytes) with the session's resume secret.

    It covers `role` (`RESUME_CLIENT` in the third flight, `RESUME_EXIT` in the answer), `h` (the `resume_hash` of
    this handshake), `attempt` (4 bytes, big endian) and `rx` (8 bytes, big endian): the number of numbered frames
    that this side has received.
    """
    if not (0 <= attempt < 2**32 and 0 <= rx < 2**64):
        raise LocalError("an attempt has 32 bits and a count of frames 64")
    return hmac_sha256(resume_secret, role + h + attempt.to_bytes(4) + rx.to_bytes(8))


@dataclass(frozen=True, slots=True)
class ResumeRequest:
    """Payload 3 of a client that resumes a session."""

    session_id: bytes
    """16 bytes, from the session's first handshake."""
    attempt: int
    """Number of the client's attempt to resume this session, from 1; below 2^32."""
    rx: int
    """How many numbered frames the client has received; below 2^64."""
    proof: bytes
    """32 bytes."""

    def __post_init__(self) -> None:
        if (len(self.session_id), len(self.proof)) != (SESSION_ID_SIZE, HASH_SIZE):
            raise LocalError("a session id has 16 bytes and a proof 32")

    @classmethod
    def make(cls, session_id: bytes, resume_secret: bytes, h: bytes, attempt: int, rx: int) -> Self:
        """The request of a client in the handshake whose `resume_hash` is `h`."""
        return cls(session_id, attempt, rx, resume_proof(resume_secret, RESUME_CLIENT, h, attempt, rx))

    def proves(self, resume_secret: bytes, h: bytes) -> bool:
        """Whether the client knows the session's resume secret; `h` is the exit's `resume_hash`."""
        return constant_time_equal(
            self.proof, resume_proof(resume_secret, RESUME_CLIENT, h, self.attempt, self.rx)
        )


@dataclass(frozen=True, slots=True, repr=False)
class InviteClaim:
    """Payload 3 of a client that begins a session with an invite; the exit may not know the client yet."""

    secret: bytes
    """16 bytes, valid for one peer."""

    def __post_init__(self) -> None:
        if len(self.secret) != INVITE_SIZE:
            raise LocalError(f"the secret of an invite has {INVITE_SIZE} bytes")

    def __repr__(self) -> str:
        return "InviteClaim(...)"


type Claim = ResumeRequest | InviteClaim | None
"""What payload 3 requests; None: a new session without an invite."""

_KIND_NEW = 0
_KIND_RESUME = 1
_KIND_INVITE = 2


def encode_proof(claim: Claim) -> bytes:
    """Payload 3: kind (1 byte) and the fields of that kind.

    0, new session
    1, resume: session id (16 bytes), attempt (4, big endian), rx (8, big endian), proof (32)
    2, new session with an invite: secret (16)
    """
    if claim is None:
        return bytes((_KIND_NEW,))
    if isinstance(claim, InviteClaim):
        return _INVITE.pack(_KIND_INVITE, claim.secret)
    return _RESUME.pack(_KIND_RESUME, claim.session_id, claim.attempt, claim.rx, claim.proof)


def decode_proof(payload: bytes) -> Claim:
    """The inverse of `encode_proof`. Raises HandshakeError on an unknown kind and on a wrong length."""
    kind = payload[0] if payload else None
    if kind == _KIND_NEW and len(payload) == 1:
        return None
    if kind == _KIND_RESUME and len(payload) == _RESUME.size:
        _, session_id, attempt, rx, proof = _RESUME.unpack(payload)
        return ResumeRequest(session_id, attempt, rx, proof)
    if kind == _KIND_INVITE and len(payload) == _INVITE.size:
        return InviteClaim(payload[1:])
    raise HandshakeError("the client's third flight requests something unknown")
