"""The handshake of the link: three flights, from which come all secrets of a session's first epoch, or of one path.

    client                                                     exit
      -> psk, e, e1              payload 1: what the client offers, and which pattern follows

    signed                                                     a session begins, or has a new path
      <- e, ee, ekem1, s, sig    payload 2: what the exit chose
      -> s, sig                  payload 3: a new session (perhaps with an invite), or one to join

    short                                                      a session has a new path
      <- e, ee, ekem1            payload 2: what the exit chose
      -> ticket, resume          payload 3: the number of the path

The signed pattern is Noise XX with signatures instead of static Diffie-Hellman keys, an ML-KEM exchange beside the
X25519 one, and a psk. The client knows the exit's id before it dials: id and psk are part of the first key. A
stranger that does not know the id cannot make a valid first flight, and must get no byte in answer. After
the third flight the caller decides whether this client is authorized.

In the short pattern nobody proves an identity. Both sides have the resume secret of a session, of which the client
shows a ticket. Anybody who knows the exit's id can write the second flight, and reads the ticket then. It is of no use
to him: the secret is in every key that follows, so that he reads nothing else and writes nothing.

Here is what the sides share, and what comes out; client_handshake.py and exit_handshake.py have the sides. No I/O:
each of their methods is one flight and pure computation. A driver may run it on an executor thread, but never two at
the same time. On the wire each flight follows its length (`LENGTH`, two bytes). A driver refuses a length outside of
`FIRST_SIZE`, the client's `second_size` or the exit's `third_size` before it waits for the bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, Self

from .identity import PUBLIC_SIZE, SIGNATURE_SIZE, PeerId
from .noise import PSK_SIZE, Authenticator, HandshakeState, message_overhead
from .payloads import (
    CHOICE_SIZE,
    OFFER_LIMIT,
    OFFER_MIN,
    PATH_SIZE,
    PROOF_LIMIT,
    PROOF_MIN,
    SESSION_ID_SIZE,
    Choice,
)
from .primitives import AEAD_KEY_SIZE, Cipher, Entropy, Provider, hkdf, sha256

SIGNED_PATTERN: Final = "XXhfs+sig+psk0"
SHORT_PATTERN: Final = "XXhfs+sig+psk0 short"
LENGTH = struct.Struct("!H")
"""The length of a flight, in front of it."""


def _sizes(pattern: str, index: int, least: int, most: int) -> range:
    overhead = message_overhead(pattern, index, public_size=PUBLIC_SIZE, signature_size=SIGNATURE_SIZE)
    return range(overhead + least, overhead + most + 1)


FIRST_SIZE: Final = _sizes(SIGNED_PATTERN, 0, OFFER_MIN, OFFER_LIMIT)
"""Valid lengths of a first flight in bytes; the ranges leave room in the payloads for later versions."""
SECOND_SIZE: Final = _sizes(SIGNED_PATTERN, 1, CHOICE_SIZE, OFFER_LIMIT)
THIRD_SIZE: Final = _sizes(SIGNED_PATTERN, 2, PROOF_MIN, PROOF_LIMIT)
SHORT_SECOND_SIZE: Final = _sizes(SHORT_PATTERN, 1, CHOICE_SIZE, OFFER_LIMIT)
SHORT_THIRD_SIZE: Final = _sizes(SHORT_PATTERN, 2, PATH_SIZE, PATH_SIZE)

SECRET_SIZE = 32


# --- what comes out ---


@dataclass(frozen=True, slots=True, repr=False)
class EpochSecrets:
    """The secrets of one epoch, 32 bytes each."""

    records: bytes
    """From which each path has its record keys (`record_keys`)."""
    client_lane: bytes
    """For datagrams from the client to the exit."""
    exit_lane: bytes
    """For datagrams from the exit to the client."""
    chain: bytes
    """The psk of the next rotation."""
    resume: bytes
    """With which the session is joined."""
    hash: bytes
    """The handshake hash; the next rotation binds it. Not a secret."""

    @classmethod
    def derive(cls, noise: HandshakeState) -> Self:
        """From a finished handshake or rotation: `HandshakeState.export` with the labels below."""
        return cls(
            records=noise.export(b"records", SECRET_SIZE),
            client_lane=noise.export(b"client lane", AEAD_KEY_SIZE),
            exit_lane=noise.export(b"exit lane", AEAD_KEY_SIZE),
            chain=noise.export(b"chain", PSK_SIZE),
            resume=noise.export(b"resume", SECRET_SIZE),
            hash=noise.h,
        )

    def __repr__(self) -> str:
        return "EpochSecrets(...)"


def record_keys(records: bytes, path: int) -> tuple[bytes, bytes]:
    """The keys of the records of one path, from the `records` secret of an epoch: the client's, the exit's.

    HKDF-SHA256 without a salt, info = "cryprq/2 client record" || path (4 bytes, big endian), and the same with
    "exit record".
    """
    client, exit_ = (
        hkdf(records, b"", b"cryprq/2 " + label + path.to_bytes(4), AEAD_KEY_SIZE)
        for label in (b"client record", b"exit record")
    )
    return client, exit_


@dataclass(frozen=True, slots=True, repr=False)
class Established:
    """The result of a signed handshake. All fields but `peer` and `provider` are equal on both sides."""

    cipher: Cipher
    """The cipher of the records."""
    features: int
    """The feature bits that both sides know."""
    peer: PeerId
    """The id of the other side, authenticated."""
    epoch: EpochSecrets
    """The first epoch of a new session. A path that joins one takes nothing but its `records` from here."""
    session_id: bytes
    """16 bytes, for a new session."""
    provider: str
    """Name of this side's post-quantum provider, for the status."""

    @classmethod
    def derive(cls, noise: HandshakeState, choice: Choice, peer: PeerId, provider: Provider) -> Self:
        """After the last flight."""
        return cls(
            cipher=choice.cipher,
            features=choice.features,
            peer=peer,
            epoch=EpochSecrets.derive(noise),
            session_id=noise.export(b"session id", SESSION_ID_SIZE),
            provider=provider.name,
        )

    def __repr__(self) -> str:
        return f"Established(cipher={self.cipher.name}, peer={self.peer!r}, provider={self.provider!r})"


@dataclass(frozen=True, slots=True, repr=False)
class EstablishedPath:
    """The result of a short handshake: a new path of a session. All fields but `provider` are equal on both sides."""

    number: int
    cipher: Cipher
    """The cipher of the path's records."""
    features: int
    """The feature bits that both sides know."""
    records: bytes
    """32 bytes, from which the path has its first record keys (`record_keys`)."""
    provider: str
    """Name of this side's post-quantum provider, for the status."""

    @classmethod
    def derive(cls, noise: HandshakeState, choice: Choice, number: int, provider: Provider) -> Self:
        """After the last flight."""
        return cls(
            number=number,
            cipher=choice.cipher,
            features=choice.features,
            records=noise.export(b"records", SECRET_SIZE),
            provider=provider.name,
        )

    def __repr__(self) -> str:
        return f"EstablishedPath(number={self.number}, cipher={self.cipher.name}, provider={self.provider!r})"


# --- how it begins ---

_PROLOGUE = b"cryprq/1 link"
_PSK_LABEL = b"cryprq/1 psk0"


def default_psk(exit_id: PeerId) -> bytes:
    """The psk of an exit whose configuration has none."""
    return sha256(_PSK_LABEL + exit_id.raw)


def begin(
    pattern: str,
    exit_id: PeerId,
    psk: bytes | None,
    provider: Provider,
    entropy: Entropy,
    *,
    initiator: bool,
    authenticator: Authenticator | None = None,
) -> HandshakeState:
    """The state of a side before the first flight. `psk`: the exit's 32 bytes, if its configuration has some."""
    return HandshakeState(
        pattern,
        initiator=initiator,
        prologue=_PROLOGUE + exit_id.raw,
        psk=default_psk(exit_id) if psk is None else psk,
        provider=provider,
        authenticator=authenticator,
        entropy=entropy,
    )
