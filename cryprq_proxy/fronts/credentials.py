"""The user name and password that the local proxy may require, for SOCKS5 and HTTP.

Only digests are kept. So a dump or a log line shows no secret, and a comparison takes the same time for every guess.
(RFC 1929 and RFC 7617 both send the password in clear, here over loopback.)
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from hashlib import sha256
from typing import Self

from ..errors import ConfigError

MAX_PART = 255
"""The most bytes in a name or a password: the length is one byte (RFC 1929 section 2)."""


@dataclass(frozen=True, slots=True, repr=False)
class Credentials:
    """SHA-256 digests of a user name and a password; make it with `parse`."""

    user_digest: bytes
    password_digest: bytes

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read "NAME:PASSWORD", each 1 to 255 bytes of UTF-8; the password may hold colons. Raises ConfigError."""
        name, colon, secret = text.partition(":")
        try:
            user, password = name.encode(), secret.encode()
        except UnicodeEncodeError:
            raise ConfigError("the user or password is not valid UTF-8") from None
        if not colon or not 0 < len(user) <= MAX_PART or not 0 < len(password) <= MAX_PART:
            raise ConfigError(
                f"give the user and password as NAME:PASSWORD, each 1 to {MAX_PART} bytes, no colon in the name"
            )
        if any(ord(character) < 0x20 or ord(character) == 0x7F for character in text):
            raise ConfigError("the user and password must not hold control characters")
        return cls(sha256(user).digest(), sha256(password).digest())

    def check(self, user: bytes, password: bytes) -> bool:
        """Whether both are right. Takes the same time, whichever is wrong."""
        right_user = hmac.compare_digest(sha256(user).digest(), self.user_digest)
        right_password = hmac.compare_digest(sha256(password).digest(), self.password_digest)
        return right_user & right_password

    def __repr__(self) -> str:
        return "<Credentials>"
