"""What the three flights of the handshake carry besides keys: an offer, a choice, and the client's request.

Each payload is encoded and decoded here and nowhere else. The decoders raise HandshakeError only. They accept
exactly the bytes that an encoder of this version can write, and in an offer also values of later versions. Where the
other side does not speak this version they read its versions only. There is no fallback: what does not match ends the
handshake.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final, Self

from ..errors import HandshakeError, LocalError
from .noise import TICKET_SIZE
from .primitives import HASH_SIZE, Cipher, constant_time_equal, hkdf, hmac_sha256

VERSION = 2


class Pattern(IntEnum):
    """How the handshake goes on after the first flight."""

    SIGNED = 0
    """Both sides sign. It begins a session, or joins one."""
    SHORT = 1
    """Nobody signs: it adds a path to a session, for a client with a ticket of it."""


class Feature(IntFlag):
    """What a side can do besides streams; a session has the features of both sides."""

    LANE = 1
    """Datagrams beside the carrier, on the UDP port with the carrier's number."""
    PACKETS = 2
    """IP packets of the whole system: the exit has a network interface for them."""
    REPORT = 4
    """The exit tells about itself when it is asked."""


_CHOICE = struct.Struct("!BBI")
_JOIN = struct.Struct("!B16sI32s")
_INVITE = struct.Struct("!B16s")
_PATH = struct.Struct("!I")

OFFER_MIN: Final = 8
"""That of version 1."""
OFFER_LIMIT: Final = 64
CHOICE_SIZE: Final = _CHOICE.size
PROOF_MIN: Final = 1
PROOF_LIMIT: Final = 128
PATH_SIZE: Final = _PATH.size
SESSION_ID_SIZE: Final = 16
INVITE_SIZE: Final = 16
SIGNED_SECONDS: Final = 86_400.0
"""How long after a signed handshake its session may be joined by the short pattern."""

# --- payloads 1 and 2 ---


@dataclass(frozen=True, slots=True)
class HandshakeOffer:
    """Payload 1: what the client supports, the preferred first.

        versions  1 byte: how many (at least 1), then one byte each
        ciphers   1 byte: how many (at least 1), then one byte each
        features  4 bytes, big endian: one bit each
        pattern   1 byte: that of the flights that follow

    The exit ignores values that it does not know, but for the pattern. The payload has at most 64 bytes. What stands
    behind the versions may be different in every version: that of version 1 has no pattern.
    """

    versions: tuple[int, ...]
    ciphers: tuple[int, ...]
    features: int
    pattern: Pattern = Pattern.SIGNED

    def encode(self) -> bytes:
        lists = b"".join(bytes((len(values), *values)) for values in (self.versions, self.ciphers))
        return lists + self.features.to_bytes(4) + bytes((self.pattern,))

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Raises HandshakeError on anything that `encode` would not write. An offer without this version is not read
        beyond its versions: it has no ciphers and no features here."""
        if len(payload) > OFFER_LIMIT:
            raise HandshakeError("the client's offer is too long")
        versions, offset = _list(payload, 0)
        if VERSION not in versions:
            return cls(versions, (), 0)
        ciphers, offset = _list(payload, offset)
        if len(payload) != offset + 5:
            raise HandshakeError("the client's offer has the wrong length")
        try:
            pattern = Pattern(payload[-1])
        except ValueError:
            raise HandshakeError("the client's offer names a pattern that does not exist") from None
        return cls(versions, ciphers, int.from_bytes(payload[offset:-1]), pattern)


def _list(payload: bytes, offset: int) -> tuple[tuple[int, ...], int]:
    """The values of a list of an offer that begins at `offset`, and where it ends."""
    end = offset + 1 + (payload[offset] if offset < len(payload) else 0)
    if not offset + 1 < end <= len(payload):
        raise HandshakeError("the client's offer is malformed")
    return tuple(payload[offset + 1 : end]), end


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
        """Raises HandshakeError on a wrong length and on a cipher that does not exist. Of an exit that chose another
        version nothing but that is read."""
        if payload and payload[0] != VERSION:
            return cls(payload[0], Cipher.CHACHA20_POLY1305, 0)
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

    The version is this one also where the client does not offer it. It tells such a client which side to update.
    """
    if VERSION not in offer.versions:
        return Choice(VERSION, Cipher.CHACHA20_POLY1305, 0)
    cipher = Cipher.CHACHA20_POLY1305
    if offer.ciphers[0] == ciphers[0] == Cipher.AES_256_GCM:
        cipher = Cipher.AES_256_GCM
    if cipher not in offer.ciphers or cipher not in ciphers:
        raise HandshakeError("the client offers no cipher that this exit accepts")
    return Choice(VERSION, cipher, offer.features & features)


def version_mismatch(theirs: int, peer: str, own: str) -> str:
    """The sentence for two sides without a common version: `peer`, which speaks version `theirs`, and this side, `own`
    (each "client" or "exit")."""
    older = f"the {peer}" if theirs < VERSION else f"this {own}"
    return (
        f"the {peer} speaks version {theirs} of the protocol and this {own} version {VERSION}; update {older}"
    )


# --- payload 3 ---

JOIN_CLIENT = b"resume C"
JOIN_EXIT = b"resume S"


def join_proof(resume: bytes, role: bytes, h: bytes, path: int) -> bytes:
    """The proof of a side that it holds the session: HMAC-SHA256 (32 bytes) with the session's resume secret.

    It covers `role` (`JOIN_CLIENT` in the third flight, `JOIN_EXIT` in the answer), `h` (the `join_hash` of this
    handshake) and the number of the path (4 bytes, big endian).
    """
    return hmac_sha256(resume, role + h + _path_bytes(path))


def join_ticket(resume: bytes, path: int) -> bytes:
    """The ticket (16 bytes) with which the short pattern joins a session as this path, once.

    HKDF-SHA256 with ikm = the session's resume secret, no salt, info = "cryprq/2 ticket" || path (4 bytes, big endian).
    It shows nobody else which session it is of, or that two of them are of the same one.
    """
    return hkdf(resume, b"", b"cryprq/2 ticket" + _path_bytes(path), TICKET_SIZE)


def _path_bytes(path: int) -> bytes:
    if not 0 <= path < 2**32:
        raise LocalError("the number of a path has 32 bits")
    return _PATH.pack(path)


@dataclass(frozen=True, slots=True)
class JoinClaim:
    """Payload 3 of a client that adds a path to a session, with signatures."""

    session_id: bytes
    """16 bytes, from the session's first handshake."""
    path: int
    """The number of the path, above all that the client has named before; below 2^32."""
    proof: bytes
    """32 bytes."""

    def __post_init__(self) -> None:
        if (len(self.session_id), len(self.proof)) != (SESSION_ID_SIZE, HASH_SIZE):
            raise LocalError("a session id has 16 bytes and a proof 32")

    @classmethod
    def make(cls, session_id: bytes, resume: bytes, h: bytes, path: int) -> Self:
        """The claim of a client in the handshake whose `join_hash` is `h`."""
        return cls(session_id, path, join_proof(resume, JOIN_CLIENT, h, path))

    def proves(self, resume: bytes, h: bytes) -> bool:
        """Whether the client knows the session's resume secret; `h` is the exit's `join_hash`."""
        return constant_time_equal(self.proof, join_proof(resume, JOIN_CLIENT, h, self.path))


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


type Claim = JoinClaim | InviteClaim | None
"""What payload 3 of the signed pattern requests; None: a new session without an invite."""

_KIND_NEW = 0
_KIND_JOIN = 1
_KIND_INVITE = 2


def encode_proof(claim: Claim) -> bytes:
    """Payload 3 of the signed pattern: kind (1 byte) and the fields of that kind.

    0, new session
    1, join: session id (16 bytes), path (4, big endian), proof (32)
    2, new session with an invite: secret (16)
    """
    if claim is None:
        return bytes((_KIND_NEW,))
    if isinstance(claim, InviteClaim):
        return _INVITE.pack(_KIND_INVITE, claim.secret)
    return _JOIN.pack(_KIND_JOIN, claim.session_id, claim.path, claim.proof)


def decode_proof(payload: bytes) -> Claim:
    """The inverse of `encode_proof`. Raises HandshakeError on an unknown kind and on a wrong length."""
    kind = payload[0] if payload else None
    if kind == _KIND_NEW and len(payload) == 1:
        return None
    if kind == _KIND_JOIN and len(payload) == _JOIN.size:
        _, session_id, path, proof = _JOIN.unpack(payload)
        return JoinClaim(session_id, path, proof)
    if kind == _KIND_INVITE and len(payload) == _INVITE.size:
        return InviteClaim(payload[1:])
    raise HandshakeError("the client's third flight requests something unknown")


def encode_path(path: int) -> bytes:
    """Payload 3 of the short pattern: the number of the new path (4 bytes, big endian)."""
    return _path_bytes(path)


def decode_path(payload: bytes) -> int:
    """The inverse of `encode_path`. Raises HandshakeError on a wrong length."""
    if len(payload) != PATH_SIZE:
        raise HandshakeError("the client's third flight has a payload of the wrong length")
    return int.from_bytes(payload)
