"""All exceptions of the program, and the reasons that travel on the link.

There are two families. `LocalError`: our own caller broke a rule. `PeerError`: the bytes of the peer broke one. The
text of every exception is one sentence for a person: what is wrong and, if there is a remedy, what to do. Reasons are
numbers on the wire (docs/protocol.md); their meaning never changes. `words_of` has their words, such as "connection
refused", and `reason_of` those of an error of the system.
"""

from __future__ import annotations

import os
from enum import Enum, IntEnum


class CloseReason(IntEnum):
    """Why a side closes the link: the argument of a CLOSE frame, one byte."""

    NORMAL = 0
    NOT_AUTHORIZED = 1
    PROTOCOL = 2
    """An unknown frame, a frame for an unknown stream, a malformed field."""
    CREDIT = 3
    """More data than the announced window."""
    RESUME = 4
    """An acknowledgement or a resume count outside of what was sent."""
    REKEY = 5
    """A rotation out of turn, failed or unfinished in time."""
    BAD_RECORD = 6
    """A record that does not authenticate, or a length out of range."""
    TIMED_OUT = 7
    SHUTTING_DOWN = 8
    LIMIT = 9
    """Too many sessions for this peer."""


class StreamReason(IntEnum):
    """Why a stream was refused or reset: the argument of REFUSED and RESET frames, one byte."""

    GENERAL = 0
    NOT_ALLOWED = 1
    """The exit's egress policy forbids the target."""
    NETWORK_UNREACHABLE = 2
    HOST_UNREACHABLE = 3
    CONNECTION_REFUSED = 4
    TIMED_OUT = 5
    NAME_NOT_FOUND = 6
    """The name does not exist (NXDOMAIN) or has no address."""
    NAME_FAILED = 7
    """A DNS server of the exit failed or refused the question; another try may succeed."""
    LIMIT = 8
    """The peer's limit on streams, on their rate, or on names that wait is reached."""
    SHUTTING_DOWN = 9
    CONNECTION_RESET = 10
    """The target's or application's TCP connection was reset."""
    CANCELLED = 11
    """The other side no longer wants the stream."""
    LINK_DOWN = 12
    """Never on the wire: the exit is not connected."""
    SESSION_LOST = 13
    """Never on the wire: the session ended while the stream was open."""
    NAME_TIMED_OUT = 14
    """No DNS server of the exit answered in time."""
    EXHAUSTED = 15
    """The exit has no descriptor or no memory left for a socket."""


def reason_of(error: OSError) -> str:
    """The reason of an error as the end of a sentence: "connection refused", "no such file or directory".

    Never empty and never "None", even for errors without a number and for those of getaddrinfo and TLS.
    """
    # The numbers of gaierror and SSLError are not the system's. The text of asyncio's errors contains the address.
    if error.errno and error.errno > 0 and type(error).__module__ == "builtins":
        text = os.strerror(error.errno)
    else:
        unnamed = "timed out" if isinstance(error, TimeoutError) else "no reason given"
        texts = (error.strerror, *error.args, unnamed)
        text = next(text for text in texts if isinstance(text, str) and text)
    return text[:1].lower() + text[1:]


def words_of(reason: Enum) -> str:
    """A CloseReason or a StreamReason in words: "connection refused", "shutting down"."""
    return reason.name.lower().replace("_", " ")


class CryprqError(Exception):
    """Base of all errors of this program; its text is one sentence for a person."""


class LocalError(CryprqError):
    """Our own caller broke the rules of an interface: a bug on this side."""


class ConfigError(CryprqError):
    """A configuration, a flag or a file that a person must change; the program ends with exit code 2."""


class PeerError(CryprqError):
    """The peer broke the protocol after it was authenticated; the session ends.

    `reason` is what goes into the CLOSE frame.
    """

    def __init__(self, reason: CloseReason, text: str) -> None:
        super().__init__(text)
        self.reason = reason


def to_be_let_in(peer_id: object) -> str:
    """What whoever runs the exit can do about NOT_AUTHORIZED; it takes a revocation back as well."""
    return f"at the exit, run: cryprq-proxy peers add {peer_id} NAME"


class NotAdmitted(PeerError):
    """The exit's verdict is a refusal, or none at all: there is no session, and the carrier ends without a CLOSE."""


class CarrierError(PeerError):
    """The carrier is silent, or its bytes cannot be trusted; the session may resume on another carrier."""


class Unanswered(CarrierError):
    """A connection came about, and ended before the exit had answered the first flight."""


class HandshakeError(PeerError):
    """The handshake failed: wrong key, id, signature or length. The carrier closes without an answer."""

    def __init__(self, text: str) -> None:
        super().__init__(CloseReason.PROTOCOL, text)


class CarrierFault(CarrierError):
    """A fault of this program, already logged, has ended the carrier, or an attempt to bring one up."""

    def __init__(self) -> None:
        super().__init__(CloseReason.TIMED_OUT, "a fault in this program, which the log describes")


class StreamRefused(CryprqError):
    """The exit (or this side, while the link is down) refused a stream; `reason` says why."""

    def __init__(self, reason: StreamReason) -> None:
        super().__init__(f"the stream was refused: {words_of(reason)}")
        self.reason = reason


class StreamBlocked(StreamRefused):
    """A rule of this side forbids the destination; `rule` is its text for people."""

    def __init__(self, rule: str) -> None:
        super().__init__(StreamReason.NOT_ALLOWED)
        self.rule = rule


class DirectRefused(StreamRefused):
    """A direct connection, without any exit, failed; `reason` says why."""


class StreamReset(CryprqError):
    """A stream ended before its data did; `reason` says why."""

    def __init__(self, reason: StreamReason) -> None:
        super().__init__(f"the stream was reset: {words_of(reason)}")
        self.reason = reason
