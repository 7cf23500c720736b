"""Files that hold one secret each: the proxy's user, a token, the pre-shared key. Only their owner may read them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from ..base.paths import read_text
from ..errors import ConfigError
from ..fronts.credentials import Credentials

PSK_SIZE: Final = 32
TOKEN_SIZE: Final = 16
_HEX: Final = re.compile("[0-9A-Fa-f]+")


def read_user(file: Path) -> Credentials:
    """NAME:PASSWORD from the first line of a file that only its owner can read. Raises ConfigError."""
    text, _ = read_text(file, "the user file", private=True)
    try:
        return Credentials.parse(text.removesuffix("\n").removesuffix("\r"))
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None


def read_token(file: Path) -> str:
    """A token, 16 or more printable characters, from the first line of a file of its owner. Raises ConfigError."""
    text, _ = read_text(file, "the token file", private=True)
    token = text.split("\n", 1)[0].strip()
    if len(token) >= TOKEN_SIZE and token.isascii() and token.isprintable() and " " not in token:
        return token
    raise ConfigError(
        f"{file}: expected at least {TOKEN_SIZE} characters, as made by: openssl rand -hex {TOKEN_SIZE}"
    )


def read_psk(file: Path) -> bytes:
    """The pre-shared key, 32 bytes, from 64 hexadecimal digits in a file of its owner. Raises ConfigError."""
    text, _ = read_text(file, "the key file", private=True)
    digits = text.strip()
    if len(digits) == 2 * PSK_SIZE and _HEX.fullmatch(digits):
        return bytes.fromhex(digits)
    raise ConfigError(
        f"{file}: expected {2 * PSK_SIZE} hexadecimal digits, as made by: openssl rand -hex {PSK_SIZE}"
    )
