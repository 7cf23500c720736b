"""The side of the handshake that listens. The client's first flight decides how it goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from ..errors import HandshakeError, LocalError
from .flights import Side, Step, Transitions, finished
from .handshake import (
    FIRST_SIZE,
    SHORT_PATTERN,
    SHORT_THIRD_SIZE,
    SIGNED_PATTERN,
    THIRD_SIZE,
    Established,
    EstablishedPath,
    begin,
)
from .identity import Identity
from .payloads import (
    VERSION,
    Choice,
    Claim,
    HandshakeOffer,
    InviteClaim,
    JoinClaim,
    Pattern,
    choose,
    decode_path,
    decode_proof,
)
from .primitives import Cipher, Entropy, Provider, ciphers_by_speed, system_entropy
from .signer import ROLE_EXIT, Signer

_EXIT_STEPS: Final[Transitions] = {
    (Step.NEW, "read_first"): Step.FIRST_DONE,
    (Step.FIRST_DONE, "write_second"): Step.SECOND_DONE,
    (Step.SECOND_DONE, "read_third"): Step.DONE,
}
_SHORT_EXIT_STEPS: Final[Transitions] = {
    (Step.FIRST_DONE, "write_second"): Step.SECOND_DONE,
    (Step.SECOND_DONE, "read_short_third"): Step.DONE,
}
_OUTDATED_EXIT_STEPS: Final[Transitions] = {
    (Step.FIRST_DONE, "write_second"): Step.FAILED,
}


class KnownTicket(Protocol):
    """What an exit knows of a ticket."""

    @property
    def path(self) -> int:
        """The number of the path that it is for."""

    @property
    def secret(self) -> bytes:
        """The resume secret that it was made with, 32 bytes."""


class _Lookup[Known: KnownTicket]:
    """The tokens `ticket` and `resume` of an exit, for one handshake."""

    def __init__(self, find: Callable[[bytes], Known | None]) -> None:
        self._find = find
        self.known: Known | None = None
        """What was found."""

    def show(self) -> tuple[bytes, bytes]:
        raise LocalError("an exit shows no ticket")

    def look_up(self, ticket: bytes) -> bytes:
        self.known = self._find(ticket)
        if self.known is None:
            raise HandshakeError("the client's ticket is unknown")
        return self.known.secret


class ExitHandshake(Side):
    """The side that listens: `read_first`, `write_second`, and one of two endings that `pattern` tells.

    SIGNED: `read_third`, then `result`, `joins` and `invite`. It must open no record that follows the third flight
    before it has accepted `result.peer`. SHORT: `read_short_third`, then `path`.

    If `outdated` has a value, the second flight is the last one: it tells a client of another version which side to
    update. The driver closes behind it.

    Raises HandshakeError if the client's bytes are invalid; the driver must then close without an answer.
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
        exit_id = identity.peer_id
        self._signer = Signer(identity, provider, ROLE_EXIT, None, entropy)
        noise = begin(
            SIGNED_PATTERN, exit_id, psk, provider, entropy, initiator=False, authenticator=self._signer
        )
        super().__init__(_EXIT_STEPS, provider, noise)
        self._features = features
        self._ciphers = ciphers or ciphers_by_speed()
        self._offer: HandshakeOffer | None = None
        self._choice: Choice | None = None
        self._join_hash = b""
        self._claim: Claim = None
        self._result: Established | None = None
        self._path: EstablishedPath | None = None

    def read_first(self, flight: bytes) -> None:
        """Cheap enough for the event loop: a client that does not know this exit's id fails at the first AEAD."""
        with self._flight("read_first"):
            if len(flight) not in FIRST_SIZE:
                raise HandshakeError("the first flight has the wrong length")
            offer = HandshakeOffer.decode(self._noise.read_message(flight))
            self._choice = choose(offer, self._ciphers, self._features)
            self._offer = offer
            if self.outdated is not None:
                self._steps = _OUTDATED_EXIT_STEPS
            elif offer.pattern is Pattern.SHORT:
                self._steps = _SHORT_EXIT_STEPS
                self._noise.follow(SHORT_PATTERN)

    @property
    def pattern(self) -> Pattern:
        """What the client's first flight chose."""
        return self._offered().pattern

    @property
    def outdated(self) -> int | None:
        """The newest version that the client speaks, if it does not speak that of this exit. `version_mismatch` has the
        sentence."""
        versions = self._offered().versions
        return None if VERSION in versions else max(versions)

    @property
    def third_size(self) -> range:
        """Valid lengths of the third flight in bytes."""
        return SHORT_THIRD_SIZE if self.pattern is Pattern.SHORT else THIRD_SIZE

    def write_second(self) -> bytes:
        """The second flight. It takes milliseconds if it signs, or if the provider is slow."""
        with self._flight("write_second"):
            flight = self._noise.write_message(finished(self._choice).encode())
            self._join_hash = self._noise.h
            return flight

    def read_third(self, flight: bytes) -> None:
        """The end of the signed pattern: check both signatures of the client."""
        with self._flight("read_third"):
            if len(flight) not in THIRD_SIZE:
                raise HandshakeError("the third flight has the wrong length")
            self._claim = decode_proof(self._noise.read_message(flight))
            self._result = Established.derive(
                self._noise, finished(self._choice), finished(self._signer.peer), self._provider
            )

    def read_short_third[Known: KnownTicket](
        self, flight: bytes, find: Callable[[bytes], Known | None]
    ) -> Known:
        """The end of the short pattern. `find` says what is known of a ticket of 16 bytes, None for an unknown one.

        Returns what it found, if the client has the secret too. Whether the path may still join is not judged here, and
        the ticket is used up only now: one that was copied does not come so far. Cheap enough for the event loop.
        """
        with self._flight("read_short_third"):
            if len(flight) not in SHORT_THIRD_SIZE:
                raise HandshakeError("the third flight has the wrong length")
            self._noise.tickets = lookup = _Lookup(find)
            number = decode_path(self._noise.read_message(flight))
            known = finished(lookup.known)
            if number != known.path:
                raise HandshakeError("the client's ticket is for another path")
            self._path = EstablishedPath.derive(self._noise, finished(self._choice), number, self._provider)
            return known

    @property
    def join_hash(self) -> bytes:
        """The handshake hash after the second flight (32 bytes); proofs of a join cover it."""
        return finished(self._join_hash or None)

    @property
    def result(self) -> Established:
        """Valid after `read_third`. The exit must still decide whether this peer is authorized."""
        return finished(self._result)

    @property
    def path(self) -> EstablishedPath:
        """Valid after `read_short_third`."""
        return finished(self._path)

    @property
    def joins(self) -> JoinClaim | None:
        """The session that the client wants to join, unchecked (see `JoinClaim.proves`); None for a new one."""
        claim = self._claimed()
        return claim if isinstance(claim, JoinClaim) else None

    @property
    def invite(self) -> bytes | None:
        """The invite (16 bytes) that the client presents for a new session, unchecked; None if it presents none."""
        claim = self._claimed()
        return claim.secret if isinstance(claim, InviteClaim) else None

    def _claimed(self) -> Claim:
        finished(self._result)
        return self._claim

    def _offered(self) -> HandshakeOffer:
        return finished(self._offer)
