"""The rotation of keys inside a running link: from the secrets of one epoch to those of the next.

    client                                            exit
      -> psk, e, e1          with psk = chain of epoch n
      <- e, ee, ekem1

This is Noise NNhfs+psk0 with the prologue

    "cryprq/2 rekey" || session id (16 bytes) || n + 1 (4 bytes, big endian) || handshake hash of epoch n (32)

and empty payloads. Nothing is signed: only the peer of epoch n knows its chain secret. The exchange is fresh: a
passive attacker that learns the secrets of epoch n does not learn those of epoch n + 1. The session decides when
these messages are sent, and from which record on the new keys are used (session/rotation.py).
"""

from __future__ import annotations

from typing import Final

from ..errors import HandshakeError, LocalError
from .handshake import EpochSecrets
from .noise import HandshakeState, message_overhead
from .payloads import SESSION_ID_SIZE
from .primitives import Entropy, Provider, system_entropy

PATTERN = "NNhfs+psk0"
REKEY_SIZE: Final = message_overhead(PATTERN, 0)
REKEY_ANSWER_SIZE: Final = message_overhead(PATTERN, 1)

_PROLOGUE = b"cryprq/2 rekey"


def _noise(
    provider: Provider,
    session_id: bytes,
    epoch: EpochSecrets,
    number: int,
    entropy: Entropy,
    *,
    initiator: bool,
) -> HandshakeState:
    if len(session_id) != SESSION_ID_SIZE or not 0 < number < 2**32:
        raise LocalError("a rotation needs a session id of 16 bytes and a number of 32 bits")
    return HandshakeState(
        PATTERN,
        initiator=initiator,
        prologue=_PROLOGUE + session_id + number.to_bytes(4) + epoch.hash,
        psk=epoch.chain,
        provider=provider,
        entropy=entropy,
    )


def _read(noise: HandshakeState, message: bytes, size: int) -> None:
    if len(message) != size:
        raise HandshakeError("a message of the rotation has the wrong length")
    noise.read_message(message)


class RekeyInitiator:
    """The client's side of one rotation: `write` once, then `read` the answer once."""

    def __init__(
        self,
        provider: Provider,
        session_id: bytes,
        epoch: EpochSecrets,
        number: int,
        entropy: Entropy = system_entropy,
    ) -> None:
        """From `epoch` to the one with `number`, which is one more than the number of `epoch`."""
        self._noise = _noise(provider, session_id, epoch, number, entropy, initiator=True)

    def write(self) -> bytes:
        """The message to the exit, 1248 bytes."""
        return self._noise.write_message()

    def read(self, answer: bytes) -> EpochSecrets:
        """The secrets of the new epoch; raises HandshakeError if the answer is not the exit's."""
        _read(self._noise, answer, REKEY_ANSWER_SIZE)
        return EpochSecrets.derive(self._noise)


def answer_rekey(
    provider: Provider,
    session_id: bytes,
    epoch: EpochSecrets,
    number: int,
    message: bytes,
    entropy: Entropy = system_entropy,
) -> tuple[bytes, EpochSecrets]:
    """The exit's side: the answer to the client (1152 bytes) and the secrets of epoch `number`.

    Raises HandshakeError if the message is not the client's, or names another epoch.
    """
    noise = _noise(provider, session_id, epoch, number, entropy, initiator=False)
    _read(noise, message, REKEY_SIZE)
    answer = noise.write_message()
    return answer, EpochSecrets.derive(noise)
