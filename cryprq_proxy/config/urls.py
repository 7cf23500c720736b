"""Addresses as a person writes them: of an exit, an upstream proxy, a listener."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import unquote_to_bytes

from ..address import AddressError, Destination, parse_host_port
from ..base.address_kinds import AddressKind, kind_of
from ..base.program import to_run
from ..carriers.dial.endpoint import CarrierKind, Endpoint, is_path, parse_endpoint
from ..carriers.dial.upstream import UpstreamProxy
from ..crypto.identity import PeerId
from ..errors import ConfigError


@dataclass(frozen=True, slots=True)
class PeerUrl:
    """An exit: the identity that it must prove, and its endpoint."""

    peer_id: PeerId
    endpoint: Endpoint


_THIS_MACHINE: Final = "127.0.0.1"
_EVERYWHERE: Final = "0.0.0.0"
_CARRIERS: Final[Mapping[str, CarrierKind]] = {"cryprq": "tcp", "cryprq+ws": "ws", "cryprq+wss": "wss"}
_PROXIES: Final[Mapping[str, Literal["socks5", "http"]]] = {
    "socks5": "socks5",
    "socks5h": "socks5",  # the proxy always resolves names
    "http": "http",
}


def parse_peer_url(text: str) -> PeerUrl:
    """Read "cryprq://PEERID@HOST[:PORT]", "cryprq+wss://PEERID@HOST[:PORT][/PATH]" or the same with ws. Raises
    ConfigError."""
    if "#" in text:
        # Its secret is not shown.
        raise ConfigError(f"that is an invite, which {to_run('join')} takes; a peer ends before the #")
    scheme, separator, rest = text.partition("://")
    peer, at, where = rest.partition("@")
    carrier = _CARRIERS.get(scheme.lower())
    if carrier is None or not separator or not at:
        raise ConfigError(
            f"expected cryprq://PEERID@HOST:PORT or cryprq+wss://PEERID@HOST/PATH, got {text[:100]!a}"
        )
    try:
        return PeerUrl(PeerId.parse(peer), parse_endpoint(carrier, where))
    except AddressError as error:
        raise ConfigError(str(error)) from None


def parse_upstream(text: str) -> UpstreamProxy:
    """Read "socks5://[USER:PASSWORD@]HOST:PORT" or the same with http, user and password percent-encoded where needed.
    Raises ConfigError."""
    scheme, separator, rest = text.partition("://")
    login, at, where = rest.removesuffix("/").rpartition("@")
    user, colon, password = login.partition(":")
    kind = _PROXIES.get(scheme.lower())
    try:
        if kind is None or not separator or (at and not colon):
            raise AddressError("not an address of a proxy")
        address = _endpoint(where)
    except AddressError:
        # The text is not shown: if a part is missing, another part may be the password.
        raise ConfigError(
            "expected socks5://HOST:PORT or http://HOST:PORT, perhaps with USER:PASSWORD@ before the host"
        ) from None
    if not at:
        return UpstreamProxy(address, kind=kind)
    upstream = UpstreamProxy(address, _login_part(user), _login_part(password), kind)
    if kind == "http" and ":" in (upstream.user or ""):
        raise ConfigError("the user of an HTTP proxy has no colon (RFC 7617)")
    return upstream


def _login_part(quoted: str) -> str:
    try:
        part = unquote_to_bytes(quoted)
        if 1 <= len(part) <= 255:
            return part.decode("utf-8")
    except UnicodeError:
        pass
    raise ConfigError("user and password of an upstream proxy have 1 to 255 bytes of UTF-8 each")


def _endpoint(text: str) -> Destination:
    address = parse_host_port(text)
    if address.port == 0:
        raise AddressError(f"expected a port from 1 to 65535 in {text!a}, got 0")
    return address


def parse_listen(text: str) -> Destination:
    """Read "HOST:PORT", or a port alone, which means 127.0.0.1. Raises AddressError."""
    return _parse_with_host(text, _THIS_MACHINE)


def parse_exit_listen(text: str) -> Destination:
    """Read "HOST:PORT", or a port alone, which means all IPv4 addresses of this machine. Raises AddressError."""
    return _parse_with_host(text, _EVERYWHERE)


def _parse_with_host(text: str, host: str) -> Destination:
    alone = text.isascii() and text.isdecimal()
    return parse_host_port(f"{host}:{text}" if alone else text)


def parse_listen_or_off(text: str) -> Destination | None:
    """Read what `parse_listen` does, or "off" as None. Raises AddressError."""
    return None if text == "off" else parse_listen(text)


def parse_web_path(text: str) -> str:
    """Read the path of a WebSocket listener, like "/cryprq". Raises ConfigError."""
    if is_path(text):
        return text
    raise ConfigError(f'expected a path like "/cryprq", without a query or a fragment, got {text[:100]!a}')


def parse_advertise(text: str) -> Destination:
    """Read the address of one exit, "HOST:PORT" with a literal host at which a client can dial. Raises ConfigError."""
    try:
        address = _endpoint(text)
    except AddressError as error:
        raise ConfigError(str(error)) from None
    if not address.is_ip:
        raise ConfigError(
            f"expected an address and a port like 203.0.113.7:4433, no name, got {text[:100]!a}"
        )
    if kind_of(address.host) is AddressKind.NO_HOST or (
        ":" in address.host and kind_of(address.host) is AddressKind.LINK_LOCAL
    ):
        raise ConfigError(
            f"nobody can dial {text[:100]!a}: expected the address of this exit, as clients reach it"
        )
    return address


def parse_public(text: str) -> str:
    """Read the public address of an exit: "HOST", "HOST:PORT" or "wss://HOST[:PORT]/PATH". Raises ConfigError."""
    scheme, separator, rest = text.partition("://")
    try:
        if not separator:
            parse_host_port(text, 1)
        elif scheme in ("ws", "wss"):
            parse_endpoint(_CARRIERS[f"cryprq+{scheme}"], rest)
        else:
            raise AddressError("not an address of an exit")
    except AddressError:
        raise ConfigError(
            f"expected an address like exit.example:4433 or wss://exit.example/path, got {text[:100]!a}"
        ) from None
    return text
