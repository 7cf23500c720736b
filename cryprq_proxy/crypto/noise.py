"""The parts of the Noise Protocol Framework (revision 34) that the link needs, driven by tables.

A pattern is a tuple of messages; a message is a tuple of tokens. To write or read a message is to process its
tokens in order. The objects have the names of the specification, section 5. Besides the specification's tokens
`e`, `s`, `ee` and `psk` there are three of its published extensions:

    e1      the initiator's ephemeral ML-KEM key, encrypted (hfs)
    ekem1   an encapsulation to that key, encrypted; its secret is mixed into the key (hfs)
    sig     a signature of the handshake hash with the key that `s` carried, encrypted (sig)

and two of the link's own, for sides that share a secret already, of which the responder may have many:

    ticket  16 bytes that name the secret, encrypted
    resume  the secret, mixed into key and hash as a psk is (section 9.2)

Here `s` is a signing key only, without Diffie-Hellman. An `Authenticator` defines what a signing key is, and
which ones are accepted; `Tickets` define which secret a ticket names. Two rules are not in the tables: in a pattern
with a psk, `e` is also mixed into the key (section 9.2), so that a first message is never encrypted under the psk
alone; and two patterns may have one name and one first message, so that the responder learns from its payload
which of them the initiator follows (`HandshakeState.follow`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Final, Literal, Protocol

from ..errors import HandshakeError, LocalError
from .primitives import (
    AEAD_TAG_SIZE,
    MLKEM_CIPHERTEXT_SIZE,
    MLKEM_PUBLIC_SIZE,
    X25519_SIZE,
    Entropy,
    KemKey,
    Provider,
    X25519Key,
    system_entropy,
)
from .symmetric import SymmetricState

type Token = Literal["psk", "e", "ee", "e1", "ekem1", "s", "sig", "ticket", "resume"]
type Pattern = tuple[tuple[Token, ...], ...]

PATTERNS: Final[Mapping[str, Pattern]] = {
    "NN": (("e",), ("e", "ee")),
    "NNpsk0": (("psk", "e"), ("e", "ee")),
    "NNhfs+psk0": (
        ("psk", "e", "e1"),
        ("e", "ee", "ekem1"),
    ),
    "XXhfs+sig+psk0": (
        ("psk", "e", "e1"),
        ("e", "ee", "ekem1", "s", "sig"),
        ("s", "sig"),
    ),
    "XXhfs+sig+psk0 short": (
        ("psk", "e", "e1"),
        ("e", "ee", "ekem1"),
        ("ticket", "resume"),
    ),
}
"""The initiator writes the first message; then the sides alternate. What stands behind a space is no part of the name:
such a pattern has the name and the first message of the one without it."""

MAX_MESSAGE = 65535
PSK_SIZE = 32
TICKET_SIZE = 16

_TOKENS = {
    name: frozenset(token for message in pattern for token in message) for name, pattern in PATTERNS.items()
}


@cache
def protocol_name(pattern: str) -> bytes:
    """The name that begins the handshake hash, for example Noise_NNhfs+psk0_25519+MLKEM768_ChaChaPoly_SHA256."""
    name = pattern.partition(" ")[0]
    tokens = _TOKENS[name]
    keys = "25519" + ("+MLKEM768" if "e1" in tokens else "") + ("+Ed25519+MLDSA65" if "sig" in tokens else "")
    return f"Noise_{name}_{keys}_ChaChaPoly_SHA256".encode()


class Authenticator(Protocol):
    """What the tokens `s` and `sig` stand for: our signing key, and the check of the peer's."""

    @property
    def public(self) -> bytes:
        """What `s` carries."""

    @property
    def public_size(self) -> int: ...

    @property
    def signature_size(self) -> int: ...

    def sign(self, h: bytes) -> bytes:
        """What `sig` carries, for the handshake hash right after `s`."""

    def verify(self, public: bytes, signature: bytes, h: bytes) -> None:
        """Return if the peer is accepted; raise HandshakeError if not."""


class Tickets(Protocol):
    """What the tokens `ticket` and `resume` stand for. An initiator shows one ticket, a responder looks it up."""

    def show(self) -> tuple[bytes, bytes]:
        """The ticket of 16 bytes, and the secret that it names."""

    def look_up(self, ticket: bytes) -> bytes:
        """The secret that `ticket` names; raises HandshakeError if there is none."""


class HandshakeState:
    """One handshake of one side (section 5.3).

    The owner calls `write_message` and `read_message` in the order of the pattern, and drops the object as soon
    as one of them raises: HandshakeError for bytes of the peer, LocalError for a call out of turn.
    """

    def __init__(
        self,
        pattern: str,
        *,
        initiator: bool,
        prologue: bytes,
        provider: Provider,
        psk: bytes | None = None,
        authenticator: Authenticator | None = None,
        entropy: Entropy = system_entropy,
    ) -> None:
        """`psk` (32 bytes) and `authenticator` are given if and only if the pattern has their tokens."""
        self._messages = PATTERNS[pattern]
        tokens = _TOKENS[pattern]
        if (psk is not None) is not ("psk" in tokens) or (psk is not None and len(psk) != PSK_SIZE):
            raise LocalError(f"this psk does not fit the pattern {pattern}")
        if (authenticator is not None) is not ("s" in tokens):
            raise LocalError(f"this authenticator does not fit the pattern {pattern}")
        self._name = protocol_name(pattern)
        self._initiator = initiator
        self._provider = provider
        self._entropy = entropy
        self._psk = psk
        self._authenticator = authenticator
        self.tickets: Tickets | None = None
        """For the tokens `ticket` and `resume`: the owner sets it before their message."""
        self._turn = 0
        self._broken = False
        self._e: X25519Key | None = None
        self._re = b""
        self._e1: KemKey | None = None
        self._re1 = b""
        self._rs = b""
        self._resume = b""
        self._input, self._offset = b"", 0
        self._symmetric = SymmetricState(self._name)
        self._symmetric.mix_hash(prologue)

    @property
    def h(self) -> bytes:
        """The handshake hash over everything so far, 32 bytes. Between messages both sides have the same."""
        return self._symmetric.h

    @property
    def finished(self) -> bool:
        return self._turn == len(self._messages) and not self._broken

    def export(self, label: bytes, length: int) -> bytes:
        """`length` bytes of key material for one purpose; valid after the last message only.

        HKDF-SHA256 (RFC 5869) with ikm = the final chaining key, salt = the final handshake hash,
        info = "cryprq/2 " || label.
        """
        if not self.finished:
            raise LocalError("the handshake is not finished")
        return self._symmetric.export(b"cryprq/2 " + label, length)

    def follow(self, pattern: str) -> None:
        """Go on with `pattern`, which has the same name; the messages so far must be the same in both."""
        done = slice(self._turn)
        if (
            self._broken
            or protocol_name(pattern) != self._name
            or PATTERNS[pattern][done] != self._messages[done]
        ):
            raise LocalError(f"a handshake that has come this far cannot follow the pattern {pattern}")
        self._messages = PATTERNS[pattern]

    # --- a message ---

    def write_message(self, payload: bytes = b"") -> bytes:
        """The next message, which carries `payload`."""
        tokens = self._begin(writing=True)
        parts = [_WRITERS[token](self) for token in tokens]
        parts.append(self._symmetric.encrypt_and_hash(payload))
        message = b"".join(parts)
        if len(message) > MAX_MESSAGE:
            raise LocalError("a Noise message has at most 65535 bytes")
        self._end()
        return message

    def read_message(self, message: bytes) -> bytes:
        """The payload of the peer's next message."""
        tokens = self._begin(writing=False)
        if len(message) > MAX_MESSAGE:
            raise HandshakeError("a Noise message has at most 65535 bytes")
        self._input, self._offset = message, 0
        for token in tokens:
            _READERS[token](self)
        payload = self._take_encrypted(max(0, len(message) - self._offset - self._tag_size))
        self._end()
        return payload

    def _begin(self, *, writing: bool) -> tuple[Token, ...]:
        ours = (self._turn % 2 == 0) is self._initiator
        if self._broken or self._turn == len(self._messages) or ours is not writing:
            raise LocalError("a message of the handshake is out of turn")
        # Until the message is complete.
        self._broken = True
        return self._messages[self._turn]

    def _end(self) -> None:
        self._turn += 1
        self._broken = False

    def _take(self, size: int) -> bytes:
        end = self._offset + size
        if end > len(self._input):
            raise HandshakeError("a message of the handshake is too short")
        piece, self._offset = self._input[self._offset : end], end
        return piece

    @property
    def _tag_size(self) -> int:
        return AEAD_TAG_SIZE if self._symmetric.has_key else 0

    def _take_encrypted(self, size: int) -> bytes:
        return self._symmetric.decrypt_and_hash(self._take(size + self._tag_size))

    # --- the tokens, in the order of the patterns; a writer returns what goes into the message ---

    def _mix_psk(self) -> bytes:
        if self._psk is None:
            raise LocalError("the pattern needs a psk")
        self._symmetric.mix_key_and_hash(self._psk)
        return b""

    def _mix_e(self, public: bytes) -> None:
        self._symmetric.mix_hash(public)
        if self._psk is not None:
            self._symmetric.mix_key(public)

    def _write_e(self) -> bytes:
        self._e = X25519Key(self._entropy)
        self._mix_e(self._e.public)
        return self._e.public

    def _read_e(self) -> None:
        self._re = self._take(X25519_SIZE)
        self._mix_e(self._re)

    def _mix_ee(self) -> bytes:
        if self._e is None:
            raise LocalError("ee before e")
        self._symmetric.mix_key(self._e.exchange(self._re))
        return b""

    def _write_e1(self) -> bytes:
        self._e1 = self._provider.generate_kem(self._entropy)
        return self._symmetric.encrypt_and_hash(self._e1.public)

    def _read_e1(self) -> None:
        self._re1 = self._take_encrypted(MLKEM_PUBLIC_SIZE)

    def _write_ekem1(self) -> bytes:
        secret, ciphertext = self._provider.encapsulate(self._re1, self._entropy)
        encrypted = self._symmetric.encrypt_and_hash(ciphertext)
        self._symmetric.mix_key(secret)
        return encrypted

    def _read_ekem1(self) -> None:
        if self._e1 is None:
            raise LocalError("ekem1 before e1")
        self._symmetric.mix_key(self._e1.decapsulate(self._take_encrypted(MLKEM_CIPHERTEXT_SIZE)))

    def _our_authenticator(self) -> Authenticator:
        if self._authenticator is None:
            raise LocalError("the pattern needs an authenticator")
        return self._authenticator

    def _write_s(self) -> bytes:
        return self._symmetric.encrypt_and_hash(self._our_authenticator().public)

    def _read_s(self) -> None:
        self._rs = self._take_encrypted(self._our_authenticator().public_size)

    def _write_sig(self) -> bytes:
        return self._symmetric.encrypt_and_hash(self._our_authenticator().sign(self.h))

    def _read_sig(self) -> None:
        authenticator, h = self._our_authenticator(), self.h
        authenticator.verify(self._rs, self._take_encrypted(authenticator.signature_size), h)

    def _our_tickets(self) -> Tickets:
        if self.tickets is None:
            raise LocalError("the pattern needs tickets")
        return self.tickets

    def _write_ticket(self) -> bytes:
        ticket, self._resume = self._our_tickets().show()
        return self._symmetric.encrypt_and_hash(ticket)

    def _read_ticket(self) -> None:
        self._resume = self._our_tickets().look_up(self._take_encrypted(TICKET_SIZE))

    def _mix_resume(self) -> bytes:
        self._symmetric.mix_key_and_hash(self._resume)
        return b""


_WRITERS: Final[Mapping[Token, Callable[[HandshakeState], bytes]]] = {
    "psk": HandshakeState._mix_psk,
    "e": HandshakeState._write_e,
    "ee": HandshakeState._mix_ee,
    "e1": HandshakeState._write_e1,
    "ekem1": HandshakeState._write_ekem1,
    "s": HandshakeState._write_s,
    "sig": HandshakeState._write_sig,
    "ticket": HandshakeState._write_ticket,
    "resume": HandshakeState._mix_resume,
}

_READERS: Final[Mapping[Token, Callable[[HandshakeState], object]]] = {
    "psk": HandshakeState._mix_psk,
    "e": HandshakeState._read_e,
    "ee": HandshakeState._mix_ee,
    "e1": HandshakeState._read_e1,
    "ekem1": HandshakeState._read_ekem1,
    "s": HandshakeState._read_s,
    "sig": HandshakeState._read_sig,
    "ticket": HandshakeState._read_ticket,
    "resume": HandshakeState._mix_resume,
}


def message_overhead(pattern: str, index: int, *, public_size: int = 0, signature_size: int = 0) -> int:
    """The size in bytes of message `index` with an empty payload. For patterns with a psk: all but `e` is encrypted."""
    sizes = {
        "e": X25519_SIZE,
        "e1": MLKEM_PUBLIC_SIZE + AEAD_TAG_SIZE,
        "ekem1": MLKEM_CIPHERTEXT_SIZE + AEAD_TAG_SIZE,
        "s": public_size + AEAD_TAG_SIZE,
        "sig": signature_size + AEAD_TAG_SIZE,
        "ticket": TICKET_SIZE + AEAD_TAG_SIZE,
    }
    return sum(sizes.get(token, 0) for token in PATTERNS[pattern][index]) + AEAD_TAG_SIZE
