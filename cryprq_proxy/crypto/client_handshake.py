"""The side of the handshake that dials: signed, or short for a client that has a session already."""

from __future__ import annotations

from typing import ClassVar, Final

from ..errors import HandshakeError, LocalError
from .flights import Side, Step, Transitions, finished
from .handshake import (
    SECOND_SIZE,
    SHORT_PATTERN,
    SHORT_SECOND_SIZE,
    SIGNED_PATTERN,
    Established,
    EstablishedPath,
    begin,
)
from .identity import Identity, PeerId
from .noise import HandshakeState
from .payloads import (
    VERSION,
    Choice,
    Claim,
    HandshakeOffer,
    Pattern,
    encode_path,
    encode_proof,
    join_ticket,
    version_mismatch,
)
from .primitives import Cipher, Entropy, Provider, ciphers_by_speed, system_entropy
from .signer import ROLE_CLIENT, Signer

_CLIENT_STEPS: Final[Transitions] = {
    (Step.NEW, "write_first"): Step.FIRST_DONE,
    (Step.FIRST_DONE, "read_second"): Step.SECOND_DONE,
    (Step.SECOND_DONE, "write_third"): Step.DONE,
}


class ClientSide(Side):
    """The first two flights of a client, in both patterns."""

    second_size: ClassVar[range]
    """Valid lengths of the second flight in bytes."""

    def __init__(self, provider: Provider, noise: HandshakeState, offer: HandshakeOffer) -> None:
        super().__init__(_CLIENT_STEPS, provider, noise)
        self._offer = offer
        self._choice: Choice | None = None
        self._join_hash = b""

    def write_first(self) -> bytes:
        """The first flight."""
        with self._flight("write_first"):
            return self._noise.write_message(self._offer.encode())

    def read_second(self, flight: bytes) -> None:
        """Check the exit's flight, and that its choice was offered."""
        with self._flight("read_second"):
            if len(flight) not in self.second_size:
                raise HandshakeError("the second flight has the wrong length")
            choice = Choice.decode(self._noise.read_message(flight))
            if choice.version not in self._offer.versions:
                raise HandshakeError(version_mismatch(choice.version, "exit", "client"))
            if choice.cipher not in self._offer.ciphers or choice.features & ~self._offer.features:
                raise HandshakeError("the exit chose something that was not offered")
            self._choice = choice
            self._join_hash = self._noise.h


class ClientHandshake(ClientSide):
    """The side that dials, signed: `write_first`, `read_second`, `write_third`, then `result`.

    `read_second` checks that the exit is the pinned one and both of its signatures. Raises HandshakeError if the exit
    does not have the expected id, speaks another version (the text says which side to update) or breaks the protocol;
    the driver then closes the carrier.
    """

    second_size = SECOND_SIZE

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
        self._signer = Signer(identity, provider, ROLE_CLIENT, exit_id, entropy)
        noise = begin(
            SIGNED_PATTERN, exit_id, psk, provider, entropy, initiator=True, authenticator=self._signer
        )
        super().__init__(
            provider,
            noise,
            HandshakeOffer((VERSION,), ciphers or ciphers_by_speed(), features, Pattern.SIGNED),
        )
        self._result: Established | None = None

    def write_third(self, claim: Claim = None) -> bytes:
        """The third flight; records may follow it at once, but for a claim to join. Takes milliseconds: it signs."""
        with self._flight("write_third"):
            flight = self._noise.write_message(encode_proof(claim))
            self._result = Established.derive(
                self._noise, finished(self._choice), finished(self._signer.peer), self._provider
            )
            return flight

    @property
    def join_hash(self) -> bytes:
        """The handshake hash after the second flight (32 bytes); proofs of a join cover it."""
        return finished(self._join_hash or None)

    @property
    def result(self) -> Established:
        """Valid after the third flight."""
        return finished(self._result)


class ShortClientHandshake(ClientSide):
    """The side that dials, with a ticket of its session: `write_first`, `read_second`, `write_third`, then `result`.

    Nothing here proves who the exit is. Only the one that has the session can open the third flight and the records
    behind it, and say so with its verdict; a second flight says nothing at all. An exit that speaks another version
    answers as in the signed pattern, with a flight of a wrong length. Whatever goes wrong, the client's next handshake
    is a signed one.
    """

    second_size = SHORT_SECOND_SIZE

    def __init__(
        self,
        exit_id: PeerId,
        provider: Provider,
        resume: bytes,
        path: int,
        *,
        psk: bytes | None = None,
        ciphers: tuple[Cipher, ...] | None = None,
        features: int = 0,
        entropy: Entropy = system_entropy,
    ) -> None:
        """`resume`: the resume secret of the session's epoch; `path`: the number of the new path, above all before. The
        others are those of a `ClientHandshake`."""
        noise = begin(SHORT_PATTERN, exit_id, psk, provider, entropy, initiator=True)
        noise.tickets = _Shown(join_ticket(resume, path), resume)
        super().__init__(
            provider,
            noise,
            HandshakeOffer((VERSION,), ciphers or ciphers_by_speed(), features, Pattern.SHORT),
        )
        self._path = path
        self._result: EstablishedPath | None = None

    def write_third(self) -> bytes:
        """The third flight; records may follow it at once."""
        with self._flight("write_third"):
            flight = self._noise.write_message(encode_path(self._path))
            choice = finished(self._choice)
            self._result = EstablishedPath.derive(self._noise, choice, self._path, self._provider)
            return flight

    @property
    def result(self) -> EstablishedPath:
        """Valid after the third flight."""
        return finished(self._result)


class _Shown:
    """The tokens `ticket` and `resume` of a client."""

    def __init__(self, ticket: bytes, secret: bytes) -> None:
        self._ticket = ticket
        self._secret = secret

    def show(self) -> tuple[bytes, bytes]:
        return self._ticket, self._secret

    def look_up(self, ticket: bytes) -> bytes:
        raise LocalError("a client looks up no tickets")
