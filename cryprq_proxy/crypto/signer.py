"""The tokens `s` and `sig` on the link: hybrid signatures and, at a client, one pinned peer."""

from __future__ import annotations

from typing import Final

from ..errors import HandshakeError
from .identity import PUBLIC_SIZE, SIGNATURE_SIZE, Identity, PeerId, verify_signatures
from .primitives import Entropy, Provider

ROLE_CLIENT: Final = b"C"
ROLE_EXIT: Final = b"S"
_LABEL: Final = b"cryprq/1 handshake\0"


class Signer:
    """An `Authenticator` for a handshake of `role`. `expected`: the only peer that is accepted, if there is one."""

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
        """The other side, as soon as its signatures were valid."""

    @property
    def public(self) -> bytes:
        return self._identity.public

    def sign(self, h: bytes) -> bytes:
        return self._identity.sign(_LABEL + self._role + h, self._entropy)

    def verify(self, public: bytes, signature: bytes, h: bytes) -> None:
        peer = PeerId.of(public)
        if self._expected is not None and peer != self._expected:
            raise HandshakeError(f"the exit has the id {peer}, not the expected one")
        role = ROLE_EXIT if self._role == ROLE_CLIENT else ROLE_CLIENT
        if not verify_signatures(self._provider, public, signature, _LABEL + role + h):
            raise HandshakeError(f"the signatures of {peer} are invalid")
        self.peer = peer
