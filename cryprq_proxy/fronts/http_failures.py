"""The answers to failed requests of HTTP clients: for each reason a status, a type (RFC 9209) and a sentence."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import h11

from ..address import Destination
from ..errors import CryprqError, StreamReason, words_of

type Field = tuple[bytes, bytes]

UNREADABLE: Final[tuple[Field, ...]] = (
    (b"Cache-Control", b"no-store"),
    (b"X-Content-Type-Options", b"nosniff"),
    (b"X-Frame-Options", b"DENY"),
    (b"Cross-Origin-Resource-Policy", b"same-origin"),
    (b"Referrer-Policy", b"no-referrer"),
)
"""Fields of all that the proxy itself answers: no page of the web gets anything of it, in a frame or otherwise."""


class RequestRefused(CryprqError):
    """A request that the proxy itself answers; the text names the error and the remedy.

    `error` is the type of RFC 9209 section 2.3 for the Proxy-Status field, `fields` are sent in addition, and `close`
    ends the connection after the answer.
    """

    def __init__(
        self,
        status: int,
        text: str,
        error: str = "http_request_error",
        *,
        fields: Iterable[Field] = (),
        close: bool = False,
    ) -> None:
        super().__init__(text)
        self.status = status
        self.error = error
        self.fields = tuple(fields)
        self.close = close


@dataclass(frozen=True, slots=True)
class Failure:
    """The answer to one reason."""

    status: int
    error: str
    """RFC 9209 section 2.3."""
    text: str


FAILURES: Final[dict[StreamReason, Failure]] = {
    StreamReason.GENERAL: Failure(502, "destination_unavailable",
        "The exit could not reach the target. Look into the exit's log."),
    StreamReason.NOT_ALLOWED: Failure(403, "destination_ip_prohibited",
        "The exit's policy forbids this target. If it is in your own network, write a rule in client.toml:"
        ' [[rule]] to = "direct" with its address in cidrs, or its name in domains (docs/rules.md). Private addresses'
        " at the exit need the consent of its operator."),
    StreamReason.NETWORK_UNREACHABLE: Failure(502, "destination_ip_unroutable",
        "The exit has no route to the target's network, perhaps for lack of IPv6."),
    StreamReason.HOST_UNREACHABLE: Failure(502, "destination_ip_unroutable",
        "The target's network says that the host is unreachable."),
    StreamReason.CONNECTION_REFUSED: Failure(502, "connection_refused",
        "The target refused the connection. Check the port, and whether the server runs."),
    StreamReason.TIMED_OUT: Failure(504, "connection_timeout",
        "The target did not answer in time. Check the address, or try again later."),
    StreamReason.NAME_NOT_FOUND: Failure(502, "dns_error",
        "There is no such host name. Check its spelling."),
    StreamReason.NAME_FAILED: Failure(502, "dns_error",
        "A DNS server could not resolve the name. Try again; if it persists, the domain's own servers may be broken."),
    StreamReason.NAME_TIMED_OUT: Failure(504, "dns_timeout",
        "No DNS server answered in time for the name. Try again; if it persists, tell the exit's operator."),
    StreamReason.LIMIT: Failure(503, "connection_limit_reached",
        "The exit allows no more connections for now. Close some, then try again."),
    StreamReason.EXHAUSTED: Failure(503, "proxy_internal_error",
        "The exit has no descriptor or memory left for a connection. Try again later; tell its operator."),
    StreamReason.SHUTTING_DOWN: Failure(503, "destination_unavailable",
        "The exit or this proxy is shutting down. Try again in a moment."),
    StreamReason.CONNECTION_RESET: Failure(502, "connection_terminated",
        "The target ended the connection before it answered. Try again."),
    StreamReason.CANCELLED: Failure(502, "connection_terminated",
        "The connection was closed before there was an answer. Try again."),
    StreamReason.LINK_DOWN: Failure(503, "destination_unavailable",
        "There is no link to the exit. 'cryprq-proxy status' says more."),
    StreamReason.SESSION_LOST: Failure(502, "connection_terminated",
        "The link to the exit was lost before there was an answer. Try again."),
}  # fmt: skip
"""The answer to each reason for a refused or lost stream."""


def refusal_for(reason: StreamReason, destination: Destination, *, direct: bool = False) -> RequestRefused:
    """The answer if the stream failed before any byte of the response was sent; `direct`: without an exit."""
    failure = FAILURES[reason]
    text = failure.text
    if direct:
        text = (
            f"A rule sends this target past the exit, and the direct connection failed: {words_of(reason)}."
        )
        if reason is StreamReason.NOT_ALLOWED and not destination.is_ip:
            text += " A name that means this machine needs a rule that names its address too, in cidrs."
    return RequestRefused(failure.status, f"{text} (Target: {destination})", failure.error)


def blocked(rule: str, destination: Destination) -> RequestRefused:
    """The answer if a rule blocks the target; `rule` is its name."""
    return RequestRefused(
        403,
        f"This target is blocked by your rules: {rule}. `cryprq-proxy explain` tells more. (Target: {destination})",
        "http_request_denied",
    )


def error_page(refusal: RequestRefused, *, close: bool) -> tuple[h11.Response, bytes]:
    """The response and its body, a short text for a person."""
    phrase = HTTPStatus(refusal.status).phrase
    body = f"{refusal.status} {phrase}\n\n{refusal}\n".encode()
    fields: list[Field] = [
        (b"Content-Type", b"text/plain; charset=utf-8"),
        (b"Content-Length", b"%d" % len(body)),
        (b"Content-Security-Policy", b"default-src 'none'; frame-ancestors 'none'"),
        *UNREADABLE,
        (b"Proxy-Status", f"cryprq-proxy; error={refusal.error}".encode("ascii")),
        *refusal.fields,
    ]
    if close:
        fields.append((b"Connection", b"close"))
    return h11.Response(status_code=refusal.status, reason=phrase.encode("ascii"), headers=fields), body
