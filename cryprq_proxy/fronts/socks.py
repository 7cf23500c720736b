"""The server side of SOCKS5, SOCKS4 and SOCKS4a: bytes in, bytes out, no socket and no clock.

The negotiation is a chain of states, one method each. A state waits until the buffer holds its whole message. Then it
takes the message, puts its answer into the output and names the next state:

    version ── 5 ──> methods ── 2 ──> password ──┐
       │                └────── 0 ───────────────┴──> request5 ──> request or failed
       └────── 4 ──> request4 ──────────────────────> request or failed

Every message has a largest size, so `MAX_NEGOTIATION` bounds the memory of a connection. RFC 1928 and RFC 1929 define
SOCKS5; SOCKS4 and 4a have no RFC, only memos of their authors. SOCKS4 has a user id but no password, so it is refused
if credentials are required.

The end of the file has the header of SOCKS5 UDP datagrams (RFC 1928 section 7).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from asyncio_socks_server.core.address import encode_reply
from asyncio_socks_server.core.protocol import build_auth_reply, build_method_reply
from asyncio_socks_server.core.types import AuthMethod, Cmd, Rep

from ..address import AddressError, Buffer, Destination, canonical_host, decode, encode, encoded_size
from ..errors import CryprqError, LocalError, StreamReason
from .credentials import Credentials

MAX_NEGOTIATION = (2 + 255) + (2 + 255 + 1 + 255) + (3 + 1 + 1 + 255 + 2)
"""Bytes of the longest possible SOCKS5 methods, password and request; the same bound serves SOCKS4."""

SOCKS4_GRANTED = 90
SOCKS4_REJECTED = 91

REPLIES: dict[StreamReason, Rep] = {
    StreamReason.GENERAL: Rep.GENERAL_FAILURE,
    StreamReason.NOT_ALLOWED: Rep.CONNECTION_NOT_ALLOWED,
    StreamReason.NETWORK_UNREACHABLE: Rep.NETWORK_UNREACHABLE,
    StreamReason.HOST_UNREACHABLE: Rep.HOST_UNREACHABLE,
    StreamReason.CONNECTION_REFUSED: Rep.CONNECTION_REFUSED,
    # RFC 1928 has no code for a time-out. Other proxies send "TTL expired", and curl prints it so.
    StreamReason.TIMED_OUT: Rep.TTL_EXPIRED,
    StreamReason.NAME_NOT_FOUND: Rep.HOST_UNREACHABLE,
    StreamReason.NAME_FAILED: Rep.HOST_UNREACHABLE,
    StreamReason.NAME_TIMED_OUT: Rep.TTL_EXPIRED,
    StreamReason.LIMIT: Rep.GENERAL_FAILURE,
    StreamReason.EXHAUSTED: Rep.GENERAL_FAILURE,
    StreamReason.SHUTTING_DOWN: Rep.GENERAL_FAILURE,
    StreamReason.CONNECTION_RESET: Rep.GENERAL_FAILURE,
    StreamReason.CANCELLED: Rep.GENERAL_FAILURE,
    # Without its exit the proxy has no network, and the application should say so. "General failure" would blame the
    # target.
    StreamReason.LINK_DOWN: Rep.NETWORK_UNREACHABLE,
    StreamReason.SESSION_LOST: Rep.GENERAL_FAILURE,
}
"""The reply code (RFC 1928 section 6) that tells an application why it got no stream."""


_SUCCEEDED = encode_reply(Rep.SUCCEEDED)
"""Encoded once: the encoder parses its address, which took 5 % of the time of a new connection."""


class DatagramError(CryprqError):
    """An invalid SOCKS5 UDP datagram (truncated, a fragment, or without a valid address), to be dropped."""


@dataclass(frozen=True, slots=True)
class SocksRequest:
    """An application's request."""

    command: Cmd
    destination: Destination
    """The target; for UDP_ASSOCIATE a hint about the source of the application's datagrams, often zeros, and 0.0.0.0
    for a host that makes no sense."""
    version: int
    """4 or 5."""


class SocksServer:
    """One application's negotiation, until its request is complete or refused.

    After each `receive` the caller sends the result of `take_output`. If `failed` is set, it then closes the
    connection. If `request` is set, it sends the result of `succeed` or `refuse`; after a success it first puts
    `leftover` into the stream. The caller also bounds the time of a negotiation.
    """

    def __init__(self, credentials: Credentials | None) -> None:
        self.request: SocksRequest | None = None
        self.failed: str | None = None
        """Why to close the connection, for the log; None without a reason."""
        self._credentials = credentials
        self._buffer = bytearray()
        self._output = bytearray()
        self._taken = 0
        # A function of the class: a bound method would make a cycle, and the negotiation outlive its connection.
        self._state: Callable[[SocksServer], int] = SocksServer._version

    @property
    def leftover(self) -> bytes:
        """The bytes after the request; they belong to the stream."""
        return bytes(self._buffer) if self.request else b""

    def receive(self, data: bytes) -> None:
        """Take the application's bytes, split anywhere. Raises nothing: errors set `failed`."""
        if self.failed:
            return
        self._buffer += data
        while not self.request and not self.failed:
            size = self._state(self)
            if not size:
                if self._taken + len(self._buffer) > MAX_NEGOTIATION and not self.failed:
                    self.failed = "the SOCKS negotiation is too long"
                return
            self._taken += size
            del self._buffer[:size]

    def take_output(self) -> bytes:
        """The bytes to send to the application now; may be empty."""
        output = bytes(self._output)
        self._output.clear()
        return output

    # The states. Each returns the size of the message it has taken, or 0 if it needs more bytes.

    def _version(self) -> int:
        if self._buffer:
            if self._buffer[0] == 5:
                self._state = SocksServer._methods
                return self._methods()
            if self._buffer[0] == 4:
                self._state = SocksServer._request4
                return self._request4()
            self.failed = f"{self._buffer[0]} is no SOCKS version"
        return 0

    def _methods(self) -> int:
        """RFC 1928 section 3: VER 5 | NMETHODS | METHODS."""
        buffer = self._buffer
        if len(buffer) < 2 or len(buffer) < 2 + buffer[1]:
            return 0
        offered = buffer[2 : 2 + buffer[1]]
        if self._credentials is None and AuthMethod.NO_AUTH in offered:
            chosen, self._state = AuthMethod.NO_AUTH, SocksServer._request5
        elif AuthMethod.USERNAME_PASSWORD in offered:
            chosen, self._state = AuthMethod.USERNAME_PASSWORD, SocksServer._password
        else:
            chosen = AuthMethod.NO_ACCEPTABLE
            self.failed = "the application offers no authentication method that this proxy accepts"
        self._output += build_method_reply(chosen)
        return 2 + buffer[1]

    def _password(self) -> int:
        """RFC 1929 section 2: VER 1 | ULEN | UNAME | PLEN | PASSWD.

        Without configured credentials every pair is accepted: some applications offer only this method.
        """
        buffer = self._buffer
        if buffer and buffer[0] != 1:
            self._output += build_auth_reply(False)
            self.failed = f"{buffer[0]} is no version of SOCKS password authentication"
            return 0
        if len(buffer) < 2 or len(buffer) < 3 + buffer[1]:
            return 0
        middle = 2 + buffer[1]
        end = middle + 1 + buffer[middle]
        if len(buffer) < end:
            return 0
        user, password = bytes(buffer[2:middle]), bytes(buffer[middle + 1 : end])
        if self._credentials is None or self._credentials.check(user, password):
            self._output += build_auth_reply(True)
            self._state = SocksServer._request5
        else:
            self._output += build_auth_reply(False)
            self.failed = "the SOCKS user or password is wrong"
        return end

    def _request5(self) -> int:
        """RFC 1928 section 4: VER 5 | CMD | RSV | ATYP | DST.ADDR | DST.PORT."""
        buffer = self._buffer
        if buffer and buffer[0] != 5:
            return self._deny5(Rep.GENERAL_FAILURE, f"{buffer[0]} is no version of a SOCKS5 request")
        try:
            size = encoded_size(buffer, 3)
        except AddressError as error:
            return self._deny5(Rep.ADDRESS_TYPE_NOT_SUPPORTED, str(error))
        if not size or len(buffer) < 3 + size:
            return 0
        try:
            command = Cmd(buffer[1])
        except ValueError:
            return self._deny5(Rep.COMMAND_NOT_SUPPORTED, f"SOCKS5 command {buffer[1]} is not supported")
        try:
            destination, end = decode(buffer, 3)
        except AddressError as error:
            if command is Cmd.UDP_ASSOCIATE:
                end = 3 + size
                self.request = SocksRequest(
                    command, Destination("0.0.0.0", int.from_bytes(buffer[end - 2 : end])), 5
                )
                return end
            # An invalid name gets the answer for an unknown name.
            return self._deny5(REPLIES[StreamReason.NAME_NOT_FOUND], str(error))
        if command is Cmd.CONNECT and not destination.port:
            return self._deny5(REPLIES[StreamReason.CONNECTION_REFUSED], "nothing listens on port 0")
        self.request = SocksRequest(command, destination, 5)
        return end

    def _request4(self) -> int:
        """VER 4 | CMD | DSTPORT | DSTIP | USERID | 0, and for DSTIP 0.0.0.x (SOCKS4a) also DOMAIN | 0."""
        buffer = self._buffer
        user_end = buffer.find(0, 8)
        if user_end < 0:
            return 0
        end = user_end + 1
        host = ".".join(map(str, buffer[4:8]))
        named = buffer[4:7] == b"\0\0\0" and buffer[7] != 0
        if named:
            end = buffer.find(0, user_end + 1) + 1
            if not end:
                return 0
        if self._credentials is not None:
            return self._deny4("this proxy asks for a password, which SOCKS4 does not have; use SOCKS5")
        if buffer[1] != Cmd.CONNECT:
            return self._deny4(f"SOCKS4 command {buffer[1]} is not supported")
        try:
            if named:
                host = canonical_host(bytes(buffer[user_end + 1 : end - 1]))
        except AddressError as error:
            return self._deny4(str(error))
        port = int.from_bytes(buffer[2:4])
        if not port:
            return self._deny4("nothing listens on port 0")
        self.request = SocksRequest(Cmd.CONNECT, Destination(host, port), 4)
        return end

    def _deny5(self, reply: Rep, why: str) -> int:
        self._output += encode_reply(reply)
        self.failed = why
        return 0

    def _deny4(self, why: str) -> int:
        self._output += _reply4(SOCKS4_REJECTED, None)
        self.failed = why
        return 0

    # The last answer, when the request is decided.

    def succeed(self, bound: tuple[str, int] | None) -> bytes:
        """The reply of a success. `bound` is the proxy's address and port for the application, None if unknown.

        Only UDP_ASSOCIATE needs it: the application sends its datagrams there.
        """
        if self._version_asked() == 4:
            return _reply4(SOCKS4_GRANTED, bound)
        return encode_reply(Rep.SUCCEEDED, *bound) if bound else _SUCCEEDED

    def refuse(self, reason: StreamReason) -> bytes:
        """The reply of a refusal. The caller then closes the connection."""
        if self._version_asked() == 4:
            return _reply4(SOCKS4_REJECTED, None)
        return encode_reply(REPLIES[reason])

    def _version_asked(self) -> int:
        if self.request is None:
            raise LocalError("a SOCKS reply needs a request first")
        return self.request.version


def _reply4(code: int, bound: tuple[str, int] | None) -> bytes:
    """VN 0 | CD | DSTPORT | DSTIP; applications ignore the last two, which cannot hold IPv6."""
    if bound and ":" not in bound[0]:
        address = encode(Destination(*bound))
        return bytes((0, code)) + address[5:7] + address[1:5]
    return bytes((0, code)) + bytes(6)


def parse_datagram(buffer: Buffer) -> tuple[Destination, bytes]:
    """Split RSV 0 0 | FRAG | ATYP | DST.ADDR | DST.PORT | DATA into destination and data.

    Fragments are refused: section 7 permits that without reassembly. Raises DatagramError.
    """
    if len(buffer) < 4 or buffer[0] or buffer[1]:
        raise DatagramError("the datagram has no SOCKS5 header")
    if buffer[2]:
        raise DatagramError("the datagram is a fragment, which this proxy does not reassemble")
    try:
        destination, end = decode(buffer, 3)
    except AddressError as error:
        raise DatagramError(str(error)) from None
    if not destination.port:
        raise DatagramError("the datagram goes to port 0")
    return destination, bytes(buffer[end:])


def encode_datagram(source: Destination, data: bytes) -> bytes:
    """The same layout for the application; `source` is the sender of `data`. Raises AddressError."""
    return b"\0\0\0" + encode(source) + data
