"""The identity of a peer: a hybrid signing key, and the id that names it.

An identity is an Ed25519 key and an ML-DSA-65 key, each from a seed of 32 bytes. Both seeds are one line of a
file that only its owner may read. The peer id is the SHA-256 of both public keys, written as 52 characters of
base32. Signatures are pairs too: `verify_signatures` is true only if both are valid. Ed25519 alone would not be
safe: a public key of small order has signatures that are valid for any data.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

from ..errors import ConfigError, LocalError
from .primitives import (
    ED25519_PUBLIC_SIZE,
    ED25519_SIGNATURE_SIZE,
    HASH_SIZE,
    MLDSA_PUBLIC_SIZE,
    MLDSA_SIGNATURE_SIZE,
    SEED_SIZE,
    Ed25519Key,
    Entropy,
    MldsaKey,
    Provider,
    ed25519_verify,
    sha256,
    system_entropy,
)

PUBLIC_SIZE = ED25519_PUBLIC_SIZE + MLDSA_PUBLIC_SIZE
"""Ed25519 public key (32 bytes), ML-DSA-65 public key (1952)."""
SIGNATURE_SIZE = ED25519_SIGNATURE_SIZE + MLDSA_SIGNATURE_SIZE
"""Ed25519 signature (64 bytes), ML-DSA-65 signature (3309)."""
PEER_ID_SIZE = HASH_SIZE
PEER_ID_LENGTH = 52
"""Characters of a peer id: 256 bits and 4 zero pad bits, 5 bits each."""
_PEER_ID = re.compile(f"[A-Za-z2-7]{{{PEER_ID_LENGTH}}}")
_BASE32_TO_INT = str.maketrans("abcdefghijklmnopqrstuvwxyz234567", "0123456789abcdefghijklmnopqrstuv")
"""From the digits of RFC 4648 to those of `int`."""
SIGNATURE_CONTEXT = b"cryprq/1"
"""The context string of the ML-DSA signatures (FIPS 204, section 5.2)."""


@dataclass(frozen=True, slots=True, order=True, repr=False)
class PeerId:
    """The name of a peer. Two are equal if their 32 bytes are equal, in whatever case they were written."""

    raw: bytes

    def __post_init__(self) -> None:
        if len(self.raw) != PEER_ID_SIZE:
            raise LocalError(f"a peer id has {PEER_ID_SIZE} bytes, not {len(self.raw)}")

    @classmethod
    def of(cls, public: bytes) -> Self:
        """The id of a public key (1984 bytes, as in `Identity.public`)."""
        return cls(sha256(public))

    @classmethod
    def parse(cls, text: str) -> Self:
        """The id that `text` spells in base32, in either case and without padding (RFC 4648, section 6).

        Apart from case an id has one spelling. Raises ConfigError for every other text.
        """
        if len(text) != PEER_ID_LENGTH:
            raise ConfigError(f"a peer id has {PEER_ID_LENGTH} characters, but this one has {len(text)}")
        if not _PEER_ID.fullmatch(text):
            raise ConfigError("a peer id consists of the letters a to z and the digits 2 to 7")
        # A list may hold 250,000 ids, and base64.b32decode would make reading them five times as slow.
        bits = int(text.lower().translate(_BASE32_TO_INT), 32)
        # The last character carries one bit of the id; its other four bits must be zero.
        if bits & 0b1111:
            raise ConfigError(f"the last character of the peer id cannot be {text[-1]!r}; copy the id again")
        return cls((bits >> 4).to_bytes(PEER_ID_SIZE))

    def __bytes__(self) -> bytes:
        return self.raw

    def __str__(self) -> str:
        return base64.b32encode(self.raw).decode().rstrip("=").lower()

    def __repr__(self) -> str:
        return f"PeerId({str(self)[:8]}...)"


def verify_signatures(provider: Provider, public: bytes, signature: bytes, data: bytes) -> bool:
    """Whether both signatures in `signature` (3373 bytes) are valid for `data` and the keys in `public` (1984)."""
    if len(public) != PUBLIC_SIZE or len(signature) != SIGNATURE_SIZE:
        return False
    return ed25519_verify(
        public[:ED25519_PUBLIC_SIZE], signature[:ED25519_SIGNATURE_SIZE], data
    ) and provider.mldsa_verify(
        public[ED25519_PUBLIC_SIZE:], signature[ED25519_SIGNATURE_SIZE:], data, SIGNATURE_CONTEXT
    )


_FILE_FORMAT = re.compile(rb"cryprq-identity-1 ([A-Za-z0-9+/]{86}==)\n")


class Identity:
    """The signing keys of this peer. Safe to use from several threads."""

    def __init__(self, provider: Provider, ed25519_seed: bytes, mldsa_seed: bytes) -> None:
        """From two seeds of 32 bytes; see also `generate` and `parse`.

        The first use expands the ML-DSA key (0.3 ms, or 12 ms with the pure provider), so that loading a
        file only to check it is cheap.
        """
        if len(ed25519_seed) != SEED_SIZE or len(mldsa_seed) != SEED_SIZE:
            raise LocalError(f"an identity is made of two seeds of {SEED_SIZE} bytes")
        self._provider = provider
        self._seeds = ed25519_seed + mldsa_seed
        self._ed25519 = Ed25519Key(ed25519_seed)

    @classmethod
    def generate(cls, provider: Provider, entropy: Entropy = system_entropy) -> Self:
        """A new identity."""
        return cls(provider, entropy(SEED_SIZE), entropy(SEED_SIZE))

    @cached_property
    def _mldsa(self) -> MldsaKey:
        return self._provider.mldsa_key(self._seeds[SEED_SIZE:])

    @cached_property
    def public(self) -> bytes:
        """Both public keys, 32 + 1952 bytes."""
        return self._ed25519.public + self._mldsa.public

    @cached_property
    def peer_id(self) -> PeerId:
        return PeerId.of(self.public)

    def sign(self, data: bytes, entropy: Entropy = system_entropy) -> bytes:
        """Both signatures over `data`, 64 + 3309 bytes. Takes milliseconds: keep it off the event loop."""
        return self._ed25519.sign(data) + self._mldsa.sign(data, SIGNATURE_CONTEXT, entropy)

    def __repr__(self) -> str:
        return f"Identity({self.peer_id!r})"

    # --- the file ---

    def line(self) -> bytes:
        """The content of the file (config/keys.py): the seeds, which are secret."""
        return b"cryprq-identity-1 " + base64.b64encode(self._seeds) + b"\n"

    @classmethod
    def parse(cls, provider: Provider, line: bytes, path: Path) -> Self:
        """The identity whose `line` was read from `path`. Raises ConfigError."""
        match = _FILE_FORMAT.fullmatch(line)
        seeds = b"" if match is None else base64.b64decode(match[1])
        if match is None or base64.b64encode(seeds) != match[1]:
            raise ConfigError(
                f"{path} is not an identity of this version; restore it from a copy or make a new one"
            )
        return cls(provider, seeds[:SEED_SIZE], seeds[SEED_SIZE:])
