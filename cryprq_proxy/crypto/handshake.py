"""The handshake of the link: three flights, from which come all secrets of a session's first epoch.

    client                                                     exit
      -> psk, e, e1              payload 1: what the client offers
      <- e, ee, ekem1, s, sig    payload 2: what the exit chose
      -> s, sig                  payload 3: a new session (perhaps with an invite), or one to resume

It is Noise XX with signatures instead of static Diffie-Hellman keys, an ML-KEM exchange beside the X25519
one, and a psk. The client knows the exit's id before it dials: id and psk are part of the first key. A
stranger that does not know the id cannot make a valid first flight, and must get no byte in answer. After
the third flight the caller decides whether this client is authorized.

No I/O here. Each method is one flight and pure computation: a driver may run it on an executor thread, but
never two at the same time. On the wire each flight follows its length (`LENGTH`, two bytes). A driver refuses
a length outside of `FIRST_SIZE`, `SECOND_SIZE` or `THIRD_SIZE` before it waits for the bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, Self

from ..errors import HandshakeError, LocalError
from .identity import PUBLIC_SIZE, SIGNATURE_SIZE, Identity, PeerId, verify_signatures
from .noise import PSK_SIZE, HandshakeState, message_overhead
from .payloads import (
    CHOICE_SIZE,
    OFFER_LIMIT,
    OFFER_MIN,
    PROOF_LIMIT,
    PROOF_MIN,
    SESSION_ID_SIZE,
    VERSION,
    Choice,
    Claim,
    HandshakeOffer,
    InviteClaim,
    ResumeRequest,
    choose,
    decode_proof,
    encode_proof,
)
from .primitives import AEAD_KEY_SIZE, Cipher, Entropy, Provider, ciphers_by_speed, sha256, system_entropy

PATTERN = "XXhfs+sig+psk0"
LENGTH = struct.Struct("!H")
"""The length of a flight, in front of it."""


def _sizes(index: int, least: int, most: int) -> range:
    overhead = message_overhead(PATTERN, index, public_size=PUBLIC_SIZE, signature_size=SIGNATURE_SIZE)
    return range(overhead + least, overhead + most + 1)


FIRST_SIZE: Final = _sizes(0, OFFER_MIN, OFFER_LIMIT)
"""Valid lengths of a first flight in bytes; the ranges leave room in the payloads for later versions."""
SECOND_SIZE: Final = _sizes(1, CHOICE_SIZE, OFFER_LIMIT)
THIRD_SIZE: Final = _sizes(2, PROOF_MIN, PROOF_LIMIT)

SECRET_SIZE = 32


# --- what comes out ---


@dataclass(frozen=True, slots=True, repr=False)
class EpochSecrets:
    """The secrets of one epoch, 32 bytes each. Each direction has keys of its own."""

    client_record: bytes
    """For records from the client to the exit."""
    exit_record: bytes
    """For records from the exit to the client."""
    client_lane: bytes
    """For datagrams from the client to the exit."""
    exit_lane: bytes
    chain: bytes
    """The psk of the next rotation."""
    hash: bytes
    """The handshake hash; the next rotation binds it. Not a secret."""

    @classmethod
    def derive(cls, noise: HandshakeState) -> Self:
        """From a finished handshake or rotation: `HandshakeState.export` with the labels below."""
        labels = (b"client record", b"exit record", b"client lane", b"exit lane")
        client_record, exit_record, client_lane, exit_lane = (
            noise.export(label, AEAD_KEY_SIZE) for label in labels
        )
        chain = noise.export(b"chain", PSK_SIZE)
        return cls(client_record, exit_record, client_lane, exit_lane, chain, noise.h)

    def __repr__(self) -> str:
        return "EpochSecrets(...)"


@dataclass(frozen=True, slots=True, repr=False)
class Established:
    """The result of a handshake. All fields but `peer` are equal on both sides."""

    cipher: Cipher
    """The cipher of the records."""
    features: int
    """The feature bits that both sides know."""
    peer: PeerId
    """The id of the other side, authenticated."""
    epoch: EpochSecrets
    session_id: bytes
    """16 bytes, for a new session. A resumed session keeps the id and the resume secret of its first handshake."""
    resume_secret: bytes
    """32 bytes, for a new session."""
    provider: str
    """Name of this side's post-quantum provider, for the status."""

    def __repr__(self) -> str:
        return f"Established(cipher={self.cipher.name}, peer={self.peer!r}, provider={self.provider!r})"


# --- the two sides ---

_PROLOGUE = b"cryprq/1 link"
_PSK_LABEL = b"cryprq/1 psk0"
_SIGNED_LABEL = b"cryprq/1 handshake\0"
_ROLE_CLIENT = b"C"
_ROLE_EXIT = b"S"


def default_psk(exit_id: PeerId) -> bytes:
    """The psk of an exit whose configuration has none."""
    return sha256(_PSK_LABEL + exit_id.raw)


class _Step(Enum):
    NEW = auto()
    FIRST_DONE = auto()
    SECOND_DONE = auto()
    DONE = auto()
    FAILED = auto()


_Transitions = Mapping[tuple[_Step, str], _Step]

_CLIENT_STEPS: Final[_Transitions] = {
    (_Step.NEW, "write_first"): _Step.FIRST_DONE,
    (_Step.FIRST_DONE, "read_second"): _Step.SECOND_DONE,
    (_Step.SECOND_DONE, "write_third"): _Step.DONE,
}
_EXIT_STEPS: Final[_Transitions] = {
    (_Step.NEW, "read_first"): _Step.FIRST_DONE,
    (_Step.FIRST_DONE, "write_second"): _Step.SECOND_DONE,
    (_Step.SECOND_DONE, "read_third"): _Step.DONE,
}


class _Signer:
    """The tokens `s` and `sig` on the link: hybrid signatures and, at a client, one pinned peer."""

    public_size = PUBLIC_SIZE
    signature_size = SIGNATURE_SIZE

    def __init__(
        self, identity: Identity, provider: Provider, role: bytes, expected: PeerId | None, entropy: Entropy
    ) -> None:
        self._identity = identity
        self._provider = provider
        self._role = role
        self._expected = expected
        self._entropy = entropy
        self.peer: PeerId | None = None

    @property
    def public(self) -> bytes:
        return self._identity.public

    def sign(self, h: bytes) -> bytes:
        return self._identity.sign(_SIGNED_LABEL + self._role + h, self._entropy)

    def verify(self, public: bytes, signature: bytes, h: bytes) -> None:
        peer = PeerId.of(public)
        if self._expected is not None and peer != self._expected:
            raise HandshakeError(f"the exit has the id {peer}, not the expected one")
        role = _ROLE_EXIT if self._role == _ROLE_CLIENT else _ROLE_CLIENT
        if not verify_signatures(self._provider, public, signature, _SIGNED_LABEL + role + h):
            raise HandshakeError(f"the signatures of {peer} are invalid")
        self.peer = peer


class _Side:
    """What both sides share: the order of the flights, and the result.

    A flight that raises ends the handshake: every later call raises LocalError.
    """

    def __init__(
        self,
        steps: _Transitions,
        identity: Identity,
        provider: Provider,
        exit_id: PeerId,
        psk: bytes | None,
        entropy: Entropy,
    ) -> None:
        self._steps = steps
        self._step = _Step.NEW
        self._provider = provider
        self._choice: Choice | None = None
        self._resume_hash = b""
        self._result: Established | None = None
        initiator = steps is _CLIENT_STEPS
        role, expected = (_ROLE_CLIENT, exit_id) if initiator else (_ROLE_EXIT, None)
        self._signer = _Signer(identity, provider, role, expected, entropy)
        self._noise = HandshakeState(
            PATTERN,
            initiator=initiator,
            prologue=_PROLOGUE + exit_id.raw,
            psk=default_psk(exit_id) if psk is None else psk,
            provider=provider,
            authenticator=self._signer,
            entropy=entropy,
        )

    @contextmanager
    def _flight(self, call: str) -> Iterator[None]:
        following = self._steps.get((self._step, call))
        if following is None:
            raise LocalError(f"{call} is out of turn: the handshake is at {self._step.name}")
        # Until the flight is complete.
        self._step = _Step.FAILED
        yield
        self._step = following

    def _finish(self) -> None:
        if self._signer.peer is None or self._choice is None:
            raise LocalError("the handshake is not finished")
        self._result = Established(
            cipher=self._choice.cipher,
            features=self._choice.features,
            peer=self._signer.peer,
            epoch=EpochSecrets.derive(self._noise),
            session_id=self._noise.export(b"session id", SESSION_ID_SIZE),
            resume_secret=self._noise.export(b"resume secret", SECRET_SIZE),
            provider=self._provider.name,
        )

    @property
    def resume_hash(self) -> bytes:
        """The handshake hash after the second flight (32 bytes); resume proofs cover it."""
        if not self._resume_hash:
            raise LocalError("there is no resume hash before the second flight")
        return self._resume_hash

    @property
    def result(self) -> Established:
        """Valid after the third flight. An exit must still decide whether this peer is authorized."""
        if self._result is None:
            raise LocalError("the handshake is not finished")
        return self._result


class ClientHandshake(_Side):
    """The side that dials: `write_first`, `read_second`, `write_third`, then `result`.

    Raises HandshakeError if the exit does not have the expected id or breaks the protocol; the driver then
    closes the carrier.
    """

    def __init__(
        self,
        identity: Identity,
        exit_id: PeerId,
        provider: Provider,
        *,
        psk: bytes | None = None,
        ciphers: tuple[Cipher, ...] | None = None,
        features: int = 0,
        entropy: Entropy = system_entropy,
    ) -> None:
        """`psk`: the exit's 32 bytes, if it has a psk; `ciphers`: the offer, the preferred first; `features`: what this
        side can do (payloads.Feature)."""
        super().__init__(_CLIENT_STEPS, identity, provider, exit_id, psk, entropy)
        self._offer = HandshakeOffer((VERSION,), ciphers or ciphers_by_speed(), features)

    def write_first(self) -> bytes:
        """The first flight."""
        with self._flight("write_first"):
            return self._noise.write_message(self._offer.encode())

    def read_second(self, flight: bytes) -> None:
        """Check that the exit is the pinned one, that both signatures are valid, and that its choice was offered."""
        with self._flight("read_second"):
            if len(flight) not in SECOND_SIZE:
                raise HandshakeError("the second flight has the wrong length")
            choice = Choice.decode(self._noise.read_message(flight))
            if (
                choice.version not in self._offer.versions
                or choice.cipher not in self._offer.ciphers
                or choice.features & ~self._offer.features
            ):
                raise HandshakeError("the exit chose something that was not offered")
            self._choice = choice
            self._resume_hash = self._noise.h

    def write_third(self, claim: Claim = None) -> bytes:
        """The third flight; records may follow it at once. Takes milliseconds: it signs."""
        with self._flight("write_third"):
            flight = self._noise.write_message(encode_proof(claim))
            self._finish()
            return flight


class ExitHandshake(_Side):
    """The side that listens: `read_first`, `write_second`, `read_third`, then `result`, `resume` and `invite`.

    Raises HandshakeError if the client's bytes are invalid; the driver must then close without an answer. It
    must open no record that follows the third flight before it has accepted `result.peer`.
    """

    def __init__(
        self,
        identity: Identity,
        provider: Provider,
        *,
        psk: bytes | None = None,
        ciphers: tuple[Cipher, ...] | None = None,
        features: int = 0,
        entropy: Entropy = system_entropy,
    ) -> None:
        """`psk`: the configured 32 bytes, if any; `ciphers`: of this exit, the preferred first; `features`: as at the
        client."""
        super().__init__(_EXIT_STEPS, identity, provider, identity.peer_id, psk, entropy)
        self._features = features
        self._ciphers = ciphers or ciphers_by_speed()
        self._claim: Claim = None

    def read_first(self, flight: bytes) -> None:
        """Cheap enough for the event loop: a client that does not know this exit's id fails at the first AEAD."""
        with self._flight("read_first"):
            if len(flight) not in FIRST_SIZE:
                raise HandshakeError("the first flight has the wrong length")
            self._choice = choose(
                HandshakeOffer.decode(self._noise.read_message(flight)), self._ciphers, self._features
            )

    def write_second(self) -> bytes:
        """The second flight. Takes milliseconds: it signs."""
        with self._flight("write_second"):
            if self._choice is None:
                raise LocalError("there is no choice before the first flight")
            flight = self._noise.write_message(self._choice.encode())
            self._resume_hash = self._noise.h
            return flight

    def read_third(self, flight: bytes) -> None:
        """Check both signatures of the client."""
        with self._flight("read_third"):
            if len(flight) not in THIRD_SIZE:
                raise HandshakeError("the third flight has the wrong length")
            self._claim = decode_proof(self._noise.read_message(flight))
            self._finish()

    @property
    def resume(self) -> ResumeRequest | None:
        """The session that the client wants to resume, unchecked (see `ResumeRequest.proves`); None for a new one."""
        claim = self._claimed()
        return claim if isinstance(claim, ResumeRequest) else None

    @property
    def invite(self) -> bytes | None:
        """The invite (16 bytes) that the client presents for a new session, unchecked; None if it presents none."""
        claim = self._claimed()
        return claim.secret if isinstance(claim, InviteClaim) else None

    def _claimed(self) -> Claim:
        if self._result is None:
            raise LocalError("the handshake is not finished")
        return self._claim
