"""The checks that every request to the admin server passes before anything is looked up.

The server listens on loopback, where two kinds of strangers reach it: other users of the machine, and every web page
that the user's browser shows. A page can send requests here, and with a name of its own that resolves to 127.0.0.1
(DNS rebinding) it could read the answers too. Therefore, in this order:

    request line in origin form      what takes the server for a proxy is refused
    Host is one of our own           a rebound name is not; RFC 9110 section 7.4: 421
    no Upgrade                       there are no WebSockets here, to which the same-origin policy does not apply
    Sec-Fetch-Site, Origin           a browser says by itself that another site is asking: 403
    the token                        for all that changes something; for all that tells something when the server
                                     listens on more than loopback
    JSON                             no form can send it, so a browser asks first, and gets no answer it could use

Nothing here ever answers with a CORS header.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from hashlib import sha256
from ipaddress import ip_address
from typing import Final, NamedTuple

from ..address import AddressError, Destination, parse_host_port
from ..crypto.primitives import constant_time_equal

TOKEN_BYTES: Final = 24
"""192 bits: more than can be guessed, and 32 characters."""


class Refusal(NamedTuple):
    """An HTTP status and one sentence for a person."""

    status: int
    text: str


class Asked(NamedTuple):
    """The parts of a request that decide. `headers` is case-insensitive."""

    target: str
    """The request target as it was sent."""
    hosts: tuple[str, ...]
    """All Host headers."""
    headers: Mapping[str, str]
    changes: bool
    """Whether it would change something."""
    tells: bool
    """Whether the answer tells anything of the running program."""


def new_token() -> str:
    """A fresh secret; needs no escape in a URL."""
    return secrets.token_urlsafe(TOKEN_BYTES)


class RequestGuard:
    """The checks for one listening address. `configured` is the address as a person wrote it, with the real port."""

    def __init__(self, bound: Destination, configured: Destination, token: str) -> None:
        self._port = bound.port
        self._token = sha256(token.encode()).digest()
        names = {"127.0.0.1", "localhost", "[::1]", _in_url(bound.host), _in_url(configured.host)}
        self._hosts = {f"{name}:{bound.port}" for name in names}
        if bound.port == 80:
            self._hosts |= names
        address = ip_address(bound.host)
        self._everywhere = address.is_unspecified
        self.loopback = address.is_loopback

    def refuse(self, asked: Asked) -> Refusal | None:
        """Why this request gets nothing; None if it may pass."""
        if not asked.target.startswith("/"):
            return Refusal(400, "this is no proxy; the proxy listens on another port")
        if len(asked.hosts) != 1 or not self._own(asked.hosts[0].lower()):
            return Refusal(421, "this server is asked by a name that is not its own; use its address")
        headers = asked.headers
        if "Upgrade" in headers:
            return Refusal(403, "there are no WebSockets here")
        if headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin") and not _is_navigation(asked):
            return Refusal(403, "another site's page may not ask this; type the address, or use a bookmark")
        origin = headers.get("Origin")
        if origin is not None and origin.lower() != f"http://{asked.hosts[0].lower()}":
            return Refusal(403, "another site's page may not ask this")
        if (asked.changes or (asked.tells and not self.loopback)) and not self._proves(headers):
            return Refusal(401, "this needs the token: open the page with `cryprq-proxy dashboard`")
        if asked.changes and _media_type(headers) != "application/json":
            return Refusal(415, "the body of such a request is JSON")
        return None

    def _own(self, host: str) -> bool:
        if host in self._hosts:
            return True
        if not self._everywhere:
            return False
        # Listening on all addresses. A name may be rebound, an address cannot.
        try:
            destination = parse_host_port(host)
        except AddressError:
            return False
        return destination.is_ip and destination.port == self._port

    def _proves(self, headers: Mapping[str, str]) -> bool:
        """Whether the request carries the token. Digests are compared, so that the time tells not even a length."""
        scheme, _, given = headers.get("Authorization", "").partition(" ")
        digest = sha256(given.strip().encode("utf-8", "surrogateescape")).digest()
        return constant_time_equal(digest, self._token) and scheme.lower() == "bearer"


def _is_navigation(asked: Asked) -> bool:
    """Whether a person follows a link to the page, not into a frame. The page is empty before it asks for data."""
    how = asked.headers.get("Sec-Fetch-Mode"), asked.headers.get("Sec-Fetch-Dest")
    return how == ("navigate", "document") and not asked.changes and not asked.tells


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host.lower()


def _media_type(headers: Mapping[str, str]) -> str:
    return headers.get("Content-Type", "").partition(";")[0].strip().lower()
