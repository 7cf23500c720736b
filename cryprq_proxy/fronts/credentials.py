"""The one user name and password that the local proxy may ask for, with SOCKS5 and with HTTP alike.

Only digests are kept: a dump of the object or a log line shows nothing, and comparing digests of equal length
takes the same time for every guess (RFC 1929 and RFC 7617 both send the password in clear, to loopback).
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from hashlib import sha256
from typing import Self

from ..errors import ConfigError

MAX_PART = 255
"""Bytes in a name or a password: what the length byte of RFC 1929 section 2 can say."""


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
            raise ConfigError("the user and password are not valid text; write them in UTF-8") from None
        if not colon or not 0 < len(user) <= MAX_PART or not 0 < len(password) <= MAX_PART:
            raise ConfigError(
                f"give the user and password as NAME:PASSWORD, each 1 to {MAX_PART} bytes, no colon in the name"
            )
        if any(ord(character) < 0x20 or ord(character) == 0x7F for character in text):
            raise ConfigError("the user and password must not hold control characters")
        return cls(sha256(user).digest(), sha256(password).digest())

    def check(self, user: bytes, password: bytes) -> bool:
        """Whether both are right; takes the same time whichever of them is wrong."""
        right_user = hmac.compare_digest(sha256(user).digest(), self.user_digest)
        right_password = hmac.compare_digest(sha256(password).digest(), self.password_digest)
        return right_user & right_password

    def __repr__(self) -> str:
        return "<Credentials>"
