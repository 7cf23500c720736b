"""The messages of an HTTP/1.1 forward proxy: pure functions on h11 events, no I/O.

In the order of a request: `check_request` and `parse_target` decide whether and where it goes, `authorized` checks the
client's password, `forward_request` and `forward_response` make the message for the other side, `relay_body` moves the
body. http_failures.py has the answers to failures.

A message is never passed on unchanged. Fields about one connection (RFC 9110 section 7.6.1) are left out. The fields
about the body's end are written anew from the result of h11. Request smuggling needs two parsers that read one message
differently; here the next parser gets only bytes that this side has made.
"""

from __future__ import annotations

import binascii
import re
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote_to_bytes

import h11

from ..address import AddressError, Destination, parse_host_port
from .credentials import Credentials
from .http_failures import Field, RequestRefused

Message = h11.Request | h11.Response | h11.InformationalResponse

type _Fields = dict[bytes, list[bytes]]
"""The values of each name, which is in lower case."""

_PLAIN_SCHEMES: Final = (b"http", b"ws")
_ABSOLUTE = re.compile(rb"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)([^#]*)(#.*)?")

# h11 lets all but NUL and line ends pass. Some servers take the others for line ends too (RFC 9110 section 5.5).
_CONTROLS: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")

_HOP_BY_HOP: Final = frozenset(
    (b"connection", b"proxy-connection", b"keep-alive", b"te", b"transfer-encoding", b"upgrade")
)
# Fields for or about the proxy. A client's must not reach the origin. An origin's would make the client ask its user
# for the password of this proxy. HTTP2-Settings belongs to an upgrade that is not passed on.
_OF_THE_PROXY: Final = frozenset(
    (b"proxy-authorization", b"proxy-authenticate", b"proxy-authentication-info", b"http2-settings")
)
_WRITTEN_ANEW: Final = frozenset((b"host", b"content-length"))
_NOT_FORWARDED: Final = _HOP_BY_HOP | _OF_THE_PROXY | _WRITTEN_ANEW
# Fields that are unsafe after the body (RFC 9110 section 6.5.1).
_NO_TRAILERS: Final = _NOT_FORWARDED | frozenset(
    (b"authorization", b"content-encoding", b"content-range", b"content-type", b"set-cookie", b"trailer")
)

_REPEATABLE: Final = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"))

HOW_TO_USE: Final = (
    "This port is an HTTP and SOCKS proxy, not a web server. "
    "Set it as the proxy of your application: for example curl -x http://HOST:PORT http://example.org/"
)


@dataclass(frozen=True, slots=True)
class Target:
    """The target of a request."""

    destination: Destination
    authority: bytes
    """Host and port as the client wrote them; the value of Host."""
    path: bytes
    """The request target for the origin: path and query, or an asterisk; empty for CONNECT."""
    authorization: bytes = field(default=b"", repr=False)
    """A value of Authorization for a user and password that the URI held; empty without them."""


def _by_name(message: Message) -> _Fields:
    # Not `message.headers` itself: it makes a call for each field.
    fields: _Fields = {}
    for name, value in message.headers.raw_items():
        fields.setdefault(name.lower(), []).append(value)
    return fields


# Reading a request


def has_body(request: h11.Request) -> bool:
    """Whether a body follows: chunks, or a length other than 0 (RFC 9112 section 6.3)."""
    fields = _by_name(request)
    return b"transfer-encoding" in fields or int(_first(fields, b"content-length") or 0) > 0


def ends_with_head(request: h11.Request, response: h11.Response) -> bool:
    """Whether the response has no body, whatever its fields say (RFC 9112 section 6.3)."""
    return request.method == b"HEAD" or response.status_code in (204, 304)


def is_repeatable(request: h11.Request) -> bool:
    """Whether it may be sent again after a reused connection ended (RFC 9110 section 9.2.2)."""
    return request.method in _REPEATABLE and not has_body(request)


def check_request(request: h11.Request) -> None:
    """Refuse what h11 accepts but a proxy must not forward. Raises RequestRefused."""
    if not request.http_version.startswith(b"1."):
        raise RequestRefused(505, "This proxy speaks HTTP/1.1 only.", close=True)
    if any(_CONTROLS.search(value) for _, value in request.headers):
        raise RequestRefused(400, "A field of the request has a control character.", close=True)
    fields = _by_name(request)
    if b"transfer-encoding" in fields and (b"content-length" in fields or request.http_version == b"1.0"):
        # RFC 9112 sections 6.1 and 6.3 let a proxy reject a message that another server may frame differently.
        raise RequestRefused(400, "The request has both a length and chunks.", close=True)
    if request.method in (b"CONNECT", b"TRACE") and has_body(request):
        raise RequestRefused(400, f"A {request.method.decode()} request has no body.", close=True)
    if _max_forwards(request, fields) == 0:
        raise RequestRefused(501, "Max-Forwards ends at this proxy, which does not answer this request.")


def parse_target(request: h11.Request) -> Target:
    """The destination of a CONNECT or of an absolute `http://` URI (RFC 9112 section 3.2). Some libraries write `ws://`
    (RFC 6455 section 3), which means the same. Raises RequestRefused."""
    target = request.target
    if request.method == b"CONNECT":
        destination = _parse_authority(target, None)
        return Target(destination, target, b"")
    match = _ABSOLUTE.fullmatch(target)
    if not match:
        # Also the answer if a web page makes the browser contact this port.
        raise RequestRefused(400, HOW_TO_USE, close=True)
    scheme, authority, path, fragment = match.groups()
    if scheme.lower() not in _PLAIN_SCHEMES:
        raise RequestRefused(
            501, "Only http:// and ws:// can be requested like this; use CONNECT for all else."
        )
    if fragment is not None:
        raise RequestRefused(400, "The URI has a fragment; leave out the # part.")
    userinfo, _, authority = authority.rpartition(b"@")
    authority = authority.removesuffix(b":")
    destination = _parse_authority(authority, 80)
    if not path:
        # RFC 9112 section 3.2.4: this asks a proxy to send "OPTIONS *".
        path = b"*" if request.method == b"OPTIONS" else b"/"
    elif path.startswith(b"?"):
        path = b"/" + path
    return Target(destination, authority, path, _basic(userinfo))


def _basic(userinfo: bytes) -> bytes:
    """The value of Authorization (Basic, RFC 7617) for the user and password of a URI; empty without them."""
    if not userinfo:
        return b""
    user, _, password = userinfo.partition(b":")
    pair = unquote_to_bytes(user) + b":" + unquote_to_bytes(password)
    return b"Basic " + binascii.b2a_base64(pair, newline=False)


def _parse_authority(authority: bytes, default_port: int | None) -> Destination:
    try:
        if not authority.startswith(b"[") and authority.count(b":") > 1:
            raise AddressError("an IPv6 address needs brackets in a URI, as in [2001:db8::1]")
        destination = parse_host_port(authority.decode("ascii"), default_port)
        if not destination.port:
            raise AddressError("nothing listens on port 0")
    except AddressError as error:
        raise RequestRefused(400, f"The host or port of the request is invalid: {error}.") from None
    return destination


def authorized(request: h11.Request, credentials: Credentials) -> bool:
    """Whether Proxy-Authorization holds the right user and password (Basic, RFC 7617)."""
    value = _first(_by_name(request), b"proxy-authorization")
    if value is None:
        return False
    scheme, _, encoded = value.partition(b" ")
    if scheme.lower() != b"basic":
        return False
    try:
        user, colon, password = binascii.a2b_base64(encoded.strip(), strict_mode=True).partition(b":")
    except binascii.Error:
        return False
    return credentials.check(user, password) and colon == b":"


def check_authorization(request: h11.Request, credentials: Credentials) -> None:
    """Raise RequestRefused, with the challenge, for a wrong or missing user and password."""
    if not authorized(request, credentials):
        raise RequestRefused(
            407,
            "This proxy asks for a user and a password; give them in the proxy settings of your application.",
            "http_request_denied",
            fields=[(b"Proxy-Authenticate", b'Basic realm="cryprq-proxy", charset="UTF-8"')],
        )


# Making the other side's message


def _first(fields: _Fields, name: bytes) -> bytes | None:
    return fields[name][0] if name in fields else None


def _tokens(fields: _Fields, name: bytes) -> set[bytes]:
    """The members of a comma-separated field, in lower case and without parameters."""
    values = fields.get(name, ())
    return {member.partition(b";")[0].strip().lower() for value in values for member in value.split(b",")}


def _end_to_end(message: Message, received: _Fields, via: str | None) -> list[Field]:
    """The fields for the other end, spelled as received."""
    dropped = _NOT_FORWARDED | _tokens(received, b"connection")
    kept = [(raw, value) for raw, value in message.headers.raw_items() if raw.lower() not in dropped]
    if via is not None:
        kept.append((b"Via", message.http_version + b" " + via.encode("ascii")))
    return kept


def _max_forwards(request: h11.Request, received: _Fields) -> int | None:
    """The number of hops that TRACE and OPTIONS may still go (RFC 9110 section 7.6.2)."""
    value = _first(received, b"max-forwards") if request.method in (b"OPTIONS", b"TRACE") else None
    return int(value) if value is not None and value.isdigit() and len(value) < 10 else None


def forward_request(request: h11.Request, target: Target, via: str | None) -> h11.Request:
    """The request for the origin; `via` is this proxy's pseudonym for Via, None for no Via."""
    # RFC 9112 section 3.2.2: the URI replaces Host.
    fields: list[Field] = [(b"Host", target.authority)]
    modern = request.http_version != b"1.0"
    received = _by_name(request)
    hops = _max_forwards(request, received)
    for raw, value in _end_to_end(request, received, via):
        name = raw.lower()
        if name == b"max-forwards" and hops is not None:
            fields.append((raw, b"%d" % (hops - 1)))
        elif name != b"expect" or modern:  # RFC 9110 section 10.1.1: HTTP/1.0 has no 100
            fields.append((raw, value))
    if target.authorization and b"authorization" not in received:
        fields.append((b"Authorization", target.authorization))
    length = _first(received, b"content-length")
    if b"transfer-encoding" in received:
        fields.append((b"Transfer-Encoding", b"chunked"))
    elif length is not None:
        fields.append((b"Content-Length", length))
    connection = []
    if modern and (upgrades := _upgrades(received)):
        fields.append((b"Upgrade", b", ".join(upgrades)))
        connection.append(b"Upgrade")
    if modern and b"trailers" in _tokens(received, b"te"):
        fields.append((b"TE", b"trailers"))
        connection.append(b"TE")
    if connection:
        fields.append((b"Connection", b", ".join(connection)))
    return h11.Request(method=request.method, target=target.path, headers=fields)


def _upgrades(received: _Fields) -> list[bytes]:
    """The protocols to offer to the other side; never h2c, whose settings are a field of this hop."""
    if b"upgrade" not in _tokens(received, b"connection"):
        return []
    members = [member.strip() for value in received.get(b"upgrade", ()) for member in value.split(b",")]
    return [member for member in members if member and member.lower() != b"h2c"]


def forward_response[R: (h11.Response, h11.InformationalResponse)](
    response: R, via: str | None, *, close: bool = False
) -> R:
    """The response for the client; h11 adds what the client's version needs to find the body's end."""
    status = response.status_code
    received = _by_name(response)
    fields = _end_to_end(response, received, via)
    length = _first(received, b"content-length")
    # RFC 9110 section 8.6 forbids a length in 1xx and 204. With chunks the length is void (RFC 9112 section 6.3).
    if length is not None and status >= 200 and status != 204 and b"transfer-encoding" not in received:
        fields.append((b"Content-Length", length))
    connection = [b"close"] if close else []
    # 426 must name the protocols (RFC 9110 section 15.5.22); elsewhere the offer is for this hop.
    if status in (101, 426) and (upgrades := _upgrades(received)):
        fields.append((b"Upgrade", b", ".join(upgrades)))
        connection.append(b"Upgrade")
    if connection:
        fields.append((b"Connection", b", ".join(connection)))
    return type(response)(status_code=status, reason=response.reason, headers=fields)


def closes(response: h11.Response) -> bool:
    """Whether the origin closes its connection after this response (RFC 9112 section 9.3)."""
    return response.http_version == b"1.0" or b"close" in _tokens(_by_name(response), b"connection")


def has_both_framings(response: Message) -> bool:
    """Whether it has a length and chunks, so that its connection must not be reused (RFC 9112 section 6.3)."""
    fields = _by_name(response)
    return b"content-length" in fields and b"transfer-encoding" in fields


def relay_body(source: h11.Connection, sink: h11.Connection, *, trailers: bool = True) -> tuple[bytes, bool]:
    """Take the received part of a body from `source` and frame it for `sink`: the bytes to send, and whether it ended.

    The chunks of one slice (http_reader.py) leave as one piece. `trailers` says whether `sink` can take trailer fields
    (HTTP/1.0 cannot). Raises h11.RemoteProtocolError if the body is malformed or cut short; the pieces of this call are
    lost.
    """
    pieces: list[h11.Data] = []
    while type(event := source.next_event()) is h11.Data:
        pieces.append(event)
    output: list[bytes] = []
    if pieces:
        whole = pieces[0] if len(pieces) == 1 else h11.Data(data=b"".join([piece.data for piece in pieces]))
        output += sink.send_with_data_passthrough(whole) or ()
    if type(event) is not h11.EndOfMessage:
        return b"".join(output), False
    kept = [
        (raw, value)
        for raw, value in event.headers.raw_items()
        if raw.lower() not in _NO_TRAILERS and not _CONTROLS.search(value)
    ]
    output += sink.send_with_data_passthrough(h11.EndOfMessage(headers=kept if trailers else [])) or ()
    return b"".join(output), True
