"""Both directions, each with its own end, over socket pairs and pipes."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from cryprq_proxy.address import Destination
from cryprq_proxy.base.sockets import set_reset_on_close
from cryprq_proxy.commands.connect.pump import OutputClosed, Streams, run
from cryprq_proxy.errors import CryprqError
from tests.support.applications import read_all, read_exactly
from tests.support.background import PATIENCE
from tests.support.targets import BLOCK

TARGET = Destination("site.test", 22)


class Joined:
    """A pump on a thread: `typed` is what standard input reads from, `shown` what standard output writes to, `far` the
    other end of its connection."""

    def __init__(self, first: bytes = b"") -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.sock = socket.create_connection(server.getsockname())
            self.far = server.accept()[0]
        set_reset_on_close(self.sock)
        self.far.settimeout(PATIENCE)
        self.input, self.typed = os.pipe()
        self.shown, self.output = os.pipe()
        self._descriptors = {self.input, self.typed, self.shown, self.output}
        self._first = first
        self._thread = ThreadPoolExecutor(1)
        self.ended: Future[None] = Future()

    def start(self, input: int | None = None) -> None:
        streams = Streams(self.input if input is None else input, self.output)
        self.ended = self._thread.submit(self._run, streams)

    def _run(self, streams: Streams) -> None:
        with self.sock:
            run(self.sock, self._first, streams, TARGET)

    def close(self, descriptor: int) -> None:
        self._descriptors.remove(descriptor)
        os.close(descriptor)

    def read(self) -> bytes:
        """All that is shown, until its end."""
        data = bytearray()
        while part := os.read(self.shown, 65_536):
            data += part
        return bytes(data)

    def answer(self, data: bytes) -> None:
        """All that the other end says."""
        self.far.sendall(data)
        self.far.shutdown(socket.SHUT_WR)

    def end(self) -> None:
        self.far.close()
        for descriptor in list(self._descriptors):
            self.close(descriptor)
        self._thread.shutdown()


@pytest.fixture
def joined() -> Iterator[Joined]:
    joined = Joined(b"banner ")
    yield joined
    joined.end()


def test_input_ends_first(joined: Joined) -> None:
    """The target hears the end and answers after it."""
    joined.start()
    os.write(joined.typed, b"\x00\xff\r\n")
    joined.close(joined.typed)
    assert read_all(joined.far) == b"\x00\xff\r\n"
    joined.answer(b"\xfe\x00answer")
    assert joined.read() == b"banner \xfe\x00answer"
    joined.ended.result(PATIENCE)
    assert joined.far.recv(1) == b"", "an end in order is no reset"


def test_target_ends_first(joined: Joined) -> None:
    """Standard output ends, and what is typed after that still arrives."""
    joined.start()
    joined.far.shutdown(socket.SHUT_WR)
    assert joined.read() == b"banner "
    os.write(joined.typed, b"late")
    assert read_exactly(joined.far, 4) == b"late"
    joined.close(joined.typed)
    joined.ended.result(PATIENCE)
    assert joined.far.recv(1) == b""


def test_the_end_of_the_target_is_the_end_at_a_terminal(joined: Joined) -> None:
    master, terminal = os.openpty()
    joined.start(terminal)
    joined.far.shutdown(socket.SHUT_WR)
    joined.ended.result(PATIENCE)
    # Ends the thread that reads it.
    os.write(master, b"\x04")
    os.close(terminal)
    os.close(master)


def test_a_reader_that_goes_ends_a_quiet_connection(joined: Joined) -> None:
    joined.start()
    assert os.read(joined.shown, 7) == b"banner "
    joined.close(joined.shown)
    with pytest.raises(OutputClosed):
        joined.ended.result(PATIENCE)
    with pytest.raises(ConnectionResetError):
        joined.far.recv(1)


def test_a_reset_is_an_error(joined: Joined) -> None:
    joined.start()
    assert os.read(joined.shown, 7) == b"banner "
    set_reset_on_close(joined.far)
    joined.far.close()
    with pytest.raises(
        CryprqError, match=r"^the connection to site\.test:22 is broken: connection reset by peer$"
    ):
        joined.ended.result(PATIENCE)


def test_an_input_that_cannot_be_read(joined: Joined, tmp_path: Path) -> None:
    directory = os.open(tmp_path, os.O_RDONLY)
    joined.start(directory)
    with pytest.raises(CryprqError, match=r"^standard input cannot be read: is a directory$"):
        joined.ended.result(PATIENCE)
    os.close(directory)
    with pytest.raises(ConnectionResetError):
        joined.far.recv(1)


def test_an_output_that_is_full(joined: Joined) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, joined.output)
    os.close(full)
    joined.start()
    with pytest.raises(CryprqError, match=r"^standard output cannot be written: no space left on device$"):
        joined.ended.result(PATIENCE)


def test_nothing_collects_behind_a_slow_reader(joined: Joined) -> None:
    """What the target sends stays with it, and comes whole in the end."""
    joined.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 262_144)
    joined.far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 262_144)
    joined.start()
    data = BLOCK * 8
    joined.far.setblocking(False)
    sent, quiet = 0, select.poll()
    quiet.register(joined.far, select.POLLOUT)
    while quiet.poll(200):
        sent += joined.far.send(data[sent : sent + 65_536])
    assert sent < len(data) // 2
    joined.far.setblocking(True)
    with ThreadPoolExecutor(1) as other:
        rest = other.submit(joined.answer, data[sent:])
        assert joined.read() == b"banner " + data
        rest.result(PATIENCE)


def test_descriptors_that_somebody_made_non_blocking(joined: Joined) -> None:
    os.set_blocking(joined.input, False)
    os.set_blocking(joined.output, False)
    joined.start()
    data = BLOCK
    with ThreadPoolExecutor(1) as other:
        back = other.submit(read_exactly, joined.far, len(data))
        view = memoryview(data)
        while view:
            view = view[os.write(joined.typed, view) :]
        assert back.result(PATIENCE) == data
        other.submit(joined.answer, data)
        assert joined.read() == b"banner " + data
