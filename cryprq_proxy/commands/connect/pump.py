"""The bytes between standard input, a connection, and standard output, each direction for itself.

    standard input  -> connection        a thread; its end is the end of what is sent
    connection      -> standard output   the main thread; its end closes standard output

Reads and writes block, so that a slow side slows down the other one, and the descriptors stay as they are: a terminal
that was made non-blocking would stay so for its shell. When both directions have ended, the connection is closed in
order. Until then a close is a reset, also when this process is killed.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
from typing import Final, NamedTuple

from ...address import Destination
from ...base.sockets import set_end_on_close
from ...errors import CryprqError, reason_of

PIECE: Final = 131_072
"""Bytes of one read."""
_GONE: Final = select.POLLERR | select.POLLHUP | select.POLLNVAL


class OutputClosed(BrokenPipeError):
    """The reader of standard output has gone."""


class Streams(NamedTuple):
    """The descriptors of standard input and output."""

    input: int
    output: int


def run(sock: socket.socket, first: bytes, streams: Streams, target: Destination) -> None:
    """Move everything, `first` before all; until both directions have ended, or only the other side's if standard input
    is a terminal, where a person would have to end it.

    Raises CryprqError if the connection or an input is broken, and OutputClosed.
    """
    upload = _Upload(sock, streams.input, target)
    upload.start()
    try:
        _download(sock, first, streams)
    except OutputClosed:
        raise
    except OSError as error:
        raise _broken(target, error) from None
    _close_output(streams.output)
    if not os.isatty(streams.input):
        upload.join()
    if upload.error is not None:
        raise upload.error
    set_end_on_close(sock)


def wait_for_data(sock: socket.socket, streams: Streams) -> None:
    """Return when there is something to receive, or an end or an error. Raises OutputClosed."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    poll.register(streams.output, 0)
    events = dict(poll.poll())
    if events.get(streams.output, 0) & _GONE:
        raise OutputClosed


def _download(sock: socket.socket, first: bytes, streams: Streams) -> None:
    """Raises OutputClosed, and OSError of the connection."""
    data = first
    while True:
        _write(streams.output, data)
        wait_for_data(sock, streams)
        data = sock.recv(PIECE)
        if not data:
            return


def _write(output: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(output, rest) :]
        except BlockingIOError:
            _wait(output, select.POLLOUT)
        except BrokenPipeError:
            raise OutputClosed from None
        except OSError as error:
            raise CryprqError(f"standard output cannot be written: {reason_of(error)}") from None


def _wait(descriptor: int, events: int) -> None:
    """For a descriptor that somebody else has made non-blocking."""
    poll = select.poll()
    poll.register(descriptor, events)
    poll.poll()


def _close_output(output: int) -> None:
    """The reader sees the end. The number stays in use, so that nothing else is taken for standard output."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, output)
    os.close(nothing)


class _Upload(threading.Thread):
    """`error` is why not all was sent, once it has ended."""

    def __init__(self, sock: socket.socket, input: int, target: Destination) -> None:
        super().__init__(name="upload", daemon=True)
        self._sock = sock
        self._input = input
        self._target = target
        self.error: CryprqError | None = None

    def run(self) -> None:
        try:
            while data := self._read():
                self._sock.sendall(data)
            self._sock.shutdown(socket.SHUT_WR)
        except CryprqError as error:
            self._fail(error)
        except OSError as error:
            self._fail(_broken(self._target, error))

    def _read(self) -> bytes:
        """Raises CryprqError."""
        while True:
            try:
                return os.read(self._input, PIECE)
            except BlockingIOError:
                _wait(self._input, select.POLLIN)
            except OSError as error:
                raise CryprqError(f"standard input cannot be read: {reason_of(error)}") from None

    def _fail(self, error: CryprqError) -> None:
        """Wake the other thread, which waits for the connection. Nothing is sent: an end would look like the whole."""
        self.error = error
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RD)


def _broken(target: Destination, error: OSError) -> CryprqError:
    return CryprqError(f"the connection to {target} is broken: {reason_of(error)}")
