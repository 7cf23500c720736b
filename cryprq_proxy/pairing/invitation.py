"""Pairing, the exit's side: the text of an invitation, and the exit's address in it.

    cryprq://PEERID@exit.example:4433#abcdefghijklmnopqrstuvwxyz
    ------------- a peer URL -------- # the secret, 16 bytes in base32

An invitation is the value of `peer` in a client's configuration, followed by the secret of an invite. The secret adds
one peer to the exit's list. A person who gets the text before it is used can take that place. A used or expired
invitation is invalid.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import re
import shlex
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Final, Self

from ..address import Destination, parse_host_port
from ..base.file_access import exists
from ..base.log import one_line
from ..base.program import to_run
from ..base.source_address import source_address
from ..base.text import counted
from ..carriers.dial.endpoint import DEFAULT_PORTS
from ..config.authorized import PeersFile, check_name
from ..config.exit import ExitConfig
from ..config.keys import choose_provider, own_identity
from ..config.urls import parse_peer_url, parse_public
from ..crypto.identity import Identity, PeerId
from ..crypto.payloads import INVITE_SIZE
from ..crypto.primitives import Provider
from ..errors import ConfigError
from ..process.control import NotRunning, query, query_status
from ..status import ExitStatus, PeerStatus, Status
from .invite_store import LEAST_SECONDS, MOST_SECONDS, InviteStore, beside

SECRET_LENGTH: Final = 26
"""Characters of a secret: 128 bits and 2 zero pad bits, 5 bits each."""
MAX_URI: Final = 2048
_EXPIRY: Final = re.compile("([1-9][0-9]{0,6})([mhd])")
_UNITS: Final = {"m": 60, "h": 3600, "d": 86_400}


@dataclass(frozen=True, slots=True)
class Invitation:
    """The invitation that one person gives to another."""

    url: str
    """The exit, as `peer` in a client's configuration names it."""
    secret: bytes = field(repr=False)
    """16 bytes."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read an invite. Raises ConfigError, which never shows the secret."""
        url, mark, secret = text.strip().partition("#")
        if len(text) > MAX_URI or not mark:
            raise ConfigError(
                f"an invite ends with # and {SECRET_LENGTH} characters; copy it whole, as cryprq-proxy invite showed it"
            )
        if not url.isascii() or not url.isprintable() or " " in url:
            raise ConfigError("an invite has no spaces and no control characters; copy it again")
        parse_peer_url(url)
        return cls(url, _parse_secret(secret))

    @property
    def peer_id(self) -> PeerId:
        """The identity that the exit must prove."""
        return parse_peer_url(self.url).peer_id

    def __str__(self) -> str:
        return f"{self.url}#{base64.b32encode(self.secret).decode().rstrip('=').lower()}"


def _parse_secret(text: str) -> bytes:
    try:
        secret = base64.b32decode(text + "=" * 6, casefold=True) if len(text) == SECRET_LENGTH else b""
    except (binascii.Error, ValueError):
        secret = b""
    if len(secret) != INVITE_SIZE or base64.b32encode(secret).decode().rstrip("=") != text.upper():
        raise ConfigError(
            f"after # {SECRET_LENGTH} characters are expected, letters a to z and digits 2 to 7; copy the invite again"
        )
    return secret


def parse_expiry(text: str) -> int:
    """Read a duration like "30m", "1h" or "7d"; in seconds. Raises ConfigError."""
    match = _EXPIRY.fullmatch(text)
    seconds = int(match[1]) * _UNITS[match[2]] if match else 0
    if not LEAST_SECONDS <= seconds <= MOST_SECONDS:
        raise ConfigError("--expires: expected a time from 1m to 30d, like 30m, 1h or 7d")
    return seconds


# --- the address ---


def public_url(peer_id: PeerId, address: str, port: int) -> str:
    """The peer URL of an exit that is reached at `address`: HOST, HOST:PORT, wss://HOST/PATH or ws://HOST/PATH.

    `port` completes an address without one. Raises ConfigError.
    """
    scheme, separator, rest = parse_public(address).partition("://")
    carrier, where = (f"cryprq+{scheme}", rest) if separator else ("cryprq", parse_host_port(address, port))
    url = f"{carrier}://{peer_id}@{where}"
    parse_peer_url(url)
    return url


def own_address(listen: Sequence[Destination]) -> Destination:
    """The address at which clients reach an exit that listens on `listen`: a global one if this machine knows one.

    Raises ConfigError if this machine has no address of use to others.
    """
    found = []
    for host, port in listen:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        address: str | None = host
        if Destination(host, port).is_ip and ip_address(host).is_unspecified:
            address = source_address(family)
        if address is not None and port:
            found.append(Destination(address, port))
    if not found:
        raise ConfigError("this machine does not know its own address; give it with --address HOST:PORT")
    return next(filter(is_global, found), found[0])


def is_global(address: Destination) -> bool:
    """Whether the whole internet can reach it; True for all names."""
    return not address.is_ip or ip_address(address.host).is_global


# --- the identity ---


def exit_identity(provider: Provider, config: ExitConfig, authorized: Path | None) -> Identity:
    """The exit's identity; one is made where nobody knows this exit by another. Raises ConfigError."""
    if authorized is not None:
        refuse_lost_identity(config, authorized)
    return own_identity(provider, config.identity)


def refuse_lost_identity(config: ExitConfig, authorized: Path) -> None:
    """Raise ConfigError where the identity is missing, and the list `authorized` or open invites are not.

    Peers and invites beside a missing identity belong to one that was lost: with a new one no client gets in, and the
    old one could only be put back over it. So a person says which of the two it is to be.
    """
    if exists(config.identity, "the identity"):
        return
    known, opened = PeersFile(authorized).read(), InviteStore(beside(authorized)).open(time.time())
    if known or opened:
        counts = [
            counted(len(some), what) for some, what in ((known, "peer"), (opened, "open invite")) if some
        ]
        raise ConfigError(
            f"the identity {config.identity} is missing, and this exit is known by it to "
            f"{' and '.join(counts)} in {authorized.parent}: put it back from a backup; or begin anew with "
            f"`{to_run(f'keygen {shlex.quote(str(config.identity))}')}`, and invite every client again"
        )


# --- an invite ---


@dataclass(frozen=True, slots=True)
class ExitHere:
    """The exit of this machine, as a command needs it."""

    config: ExitConfig
    authorized: Path
    """Its list of peers; the invites are in the same directory."""
    socket: Path | None
    """Where it answers; None if it does not run."""
    peers: Sequence[PeerStatus]
    """What it has seen of them, of at most 1000."""
    listed: int
    """How many it lets in; 0 where it does not run."""
    peer_id: PeerId | None
    """None while the exit does not run: then the identity has it."""
    listen: Sequence[Destination]
    public: str
    psk: bool


def exit_here(config: ExitConfig, authorized: Path, socket: Path | None) -> ExitHere:
    """The exit of this configuration, with the list `authorized` unless the exit that answers at `socket` says
    otherwise. Raises CryprqError."""
    status: Status | None = None
    if socket is not None:
        with contextlib.suppress(NotRunning):
            status = query_status(socket)
    if not isinstance(status, ExitStatus) or status.pairing is None:
        return ExitHere(
            config, authorized, None, (), 0, None, config.listen, config.public, config.psk_file is not None
        )
    pairing = status.pairing
    return ExitHere(
        config,
        authorized if pairing.authorized is None else Path(pairing.authorized),
        socket,
        status.peers,
        status.authorized,
        PeerId.parse(status.peer_id),
        [parse_host_port(listen) for listen in pairing.listen],
        pairing.public,
        pairing.psk,
    )


def make_invite(
    here: ExitHere, name: str, seconds: int, address: str | None, now: float
) -> tuple[Invitation, list[str]]:
    """Open an invite for `seconds` from `now` on (seconds since 1970). Returns warnings for the person too.

    Without `address` and without `public` in the configuration it holds an address of this machine. Raises CryprqError.
    """
    check_name(name)
    if any(peer.name == name for peer in PeersFile(here.authorized).read()):
        raise ConfigError(
            f"a peer has the name {one_line(name)} already; choose another name, or revoke that peer first"
        )
    public = here.public if address is None else parse_public(address)
    warnings = []
    if here.socket is None:
        warnings.append(
            f"no exit with this configuration runs now: start it with {to_run('exit')}, or name its file with --config"
        )
    if not public:
        own = own_address(here.listen)
        if not is_global(own):
            warnings.append(
                f"{own.host} is not an address of the internet: clients elsewhere need an invite made with --address"
            )
        public = str(own)
    if here.psk:
        warnings.append(
            "this exit has a pre-shared key: a client needs psk_file in its client.toml before it joins"
        )
    config, port = here.config, next((port for _, port in here.listen if port), DEFAULT_PORTS["tcp"])
    peer_id = here.peer_id or exit_identity(choose_provider(config.provider), config, here.authorized).peer_id
    url = public_url(peer_id, public, port)
    secret = InviteStore(beside(here.authorized)).create(name, seconds, now)
    return Invitation(url, secret), warnings


def reload_exit(here: ExitHere) -> None:
    """Let the running exit read its list again, so that revoked peers lose their links. Without one, do nothing.

    Raises CryprqError if the running exit cannot be asked.
    """
    if here.socket is not None:
        with contextlib.suppress(NotRunning):
            query(here.socket, "reload")
