"""An endpoint: the carrier, the address and, for WebSocket, the path at which an exit is reached.

An exit may have several endpoints; the client tries them against each other (race.py). People read the text form in the
log and in `status`, and the client stores it to remember which endpoint worked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

from ...address import AddressError, Destination, parse_host_port

type CarrierKind = Literal["tcp", "ws", "wss"]

DEFAULT_PATH: Final = "/cryprq"
DEFAULT_PORTS: Final[Mapping[CarrierKind, int]] = {"tcp": 4433, "ws": 80, "wss": 443}
MAX_PATH: Final = 512
"""Characters of a path."""


class Endpoint(NamedTuple):
    """One address of an exit, with the carrier to use; made by `parse_endpoint` or of parts known to be right."""

    carrier: CarrierKind
    address: Destination
    path: str = ""
    """Of the WebSocket carriers, with its leading "/"; empty for TCP."""

    def __str__(self) -> str:
        """ "exit.example:4433", "wss://exit.example/path": without the port where it is the usual one."""
        if self.carrier == "tcp":
            return str(self.address)
        host, port = self.address
        where = str(self.address)
        if port == DEFAULT_PORTS[self.carrier]:
            where = f"[{host}]" if ":" in host else host
        return f"{self.carrier}://{where}{self.path}"


def parse_endpoint(carrier: CarrierKind, text: str) -> Endpoint:
    """Read what follows the peer id in a peer URL: "HOST[:PORT]", or "HOST[:PORT][/PATH]" for WebSocket.

    Raises AddressError.
    """
    if carrier == "tcp":
        # Without brackets the last group of an IPv6 address could be meant as the port: it is not guessed.
        bare = not text.startswith("[") and text.count(":") > 1
        port = None if bare else DEFAULT_PORTS[carrier]
        return Endpoint(carrier, _with_port(parse_host_port(text.removesuffix("/"), port), text))
    host, slash, rest = text.partition("/")
    path = slash + rest if rest else DEFAULT_PATH
    if not is_path(path):
        raise AddressError(
            f"{path[:100]!a} is not a path; it has at most {MAX_PATH} letters, digits and characters of /-._~%"
        )
    return Endpoint(carrier, _with_port(parse_host_port(host, DEFAULT_PORTS[carrier]), host), path)


def is_path(text: str) -> bool:
    """Whether `text` is a path as endpoints and listeners take it: no query, no fragment, nothing to be escaped."""
    return (
        text.startswith("/")
        and len(text) <= MAX_PATH
        and text.isascii()
        and all(character.isalnum() or character in "/-._~%" for character in text)
    )


def _with_port(address: Destination, text: str) -> Destination:
    if address.port == 0:
        raise AddressError(f"expected a port from 1 to 65535 in {text!a}, got 0")
    return address
