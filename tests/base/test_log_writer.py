"""Lines that nobody reads stop nothing, and it is said how many were lost."""

from __future__ import annotations

import fcntl
import logging
import os
import select
import signal
import threading
from collections.abc import Iterator
from typing import IO

import pytest

from cryprq_proxy.base import log_writer
from cryprq_proxy.base.log_writer import LogWriter
from tests.support.background import PATIENCE


class Pipe:
    """A pipe of one page that is read when a test says so."""

    def __init__(self) -> None:
        self.source, sink = os.pipe()
        fcntl.fcntl(sink, fcntl.F_SETPIPE_SZ, 4_096)
        self.stream: IO[str] = os.fdopen(sink, "w", encoding="utf-8")
        self.logger = logging.getLogger("test.log_writer")
        self.logger.propagate = False
        self.writer = LogWriter(self.stream)
        self.writer.setFormatter(logging.Formatter("%(message)s"))
        self.logger.addHandler(self.writer)
        self._read = b""

    def fill(self) -> None:
        """Until the thread waits in write(2): the first line fits no more, and is taken out of the queue."""
        os.set_blocking(self.stream.fileno(), False)
        try:
            while True:
                os.write(self.stream.fileno(), b"-" * 63 + b"\n")
        except BlockingIOError:
            pass
        os.set_blocking(self.stream.fileno(), True)
        self.logger.warning("the line that waits")
        with self.writer._changed:
            assert self.writer._changed.wait_for(lambda: self.writer._writing, PATIENCE)

    def line(self) -> str:
        while b"\n" not in self._read:
            assert select.select([self.source], [], [], PATIENCE)[0]
            self._read += os.read(self.source, 65_536)
        line, _, self._read = self._read.partition(b"\n")
        return line.decode() if not line.startswith(b"---") else self.line()

    def close(self) -> None:
        self.logger.removeHandler(self.writer)
        self.writer.close()
        os.close(self.source)
        self.stream.close()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close()


def test_lines_arrive_in_their_order(pipe: Pipe) -> None:
    for number in range(2_000):
        pipe.logger.warning("%d", number)
    assert [pipe.line() for _ in range(2_000)] == [str(number) for number in range(2_000)]


def test_a_full_queue_drops_and_says_how_many(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_writer, "MAX_LINES", 10)
    pipe.fill()
    for number in range(15):
        pipe.logger.warning("%d", number)
    assert [pipe.line() for _ in range(12)] == [
        "the line that waits",
        *map(str, range(10)),
        "5 lines were not written, because nobody read this log",
    ]
    pipe.logger.warning("again")
    assert pipe.line() == "again"


def test_the_length_of_all_lines_is_bounded_too(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_writer, "MAX_CHARACTERS", 1_000)
    pipe.fill()
    pipe.logger.warning("x" * 900)
    pipe.logger.warning("y" * 101)
    pipe.logger.warning("z")
    assert [pipe.line()[:1] for _ in range(4)] == ["t", "x", "z", "1"]


def test_flush_waits_for_a_bounded_time(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_writer, "FLUSH_SECONDS", 0.01)
    pipe.fill()
    pipe.writer.flush()
    monkeypatch.setattr(log_writer, "FLUSH_SECONDS", PATIENCE)
    flushed = threading.Thread(target=pipe.writer.flush)
    flushed.start()
    assert pipe.line() == "the line that waits"
    flushed.join(PATIENCE)
    assert not flushed.is_alive()
    assert not pipe.writer._writing


def test_a_descriptor_that_somebody_made_non_blocking_loses_nothing(pipe: Pipe) -> None:
    os.set_blocking(pipe.stream.fileno(), False)
    for number in range(3_000):
        pipe.logger.warning("%d", number)
    assert [pipe.line() for _ in range(3_000)] == [str(number) for number in range(3_000)]


def test_nothing_is_written_to_a_descriptor_that_was_closed(pipe: Pipe) -> None:
    """Its number may be that of a connection by now."""
    number, (other, sink) = pipe.stream.fileno(), os.pipe()
    pipe.stream.close()
    os.dup2(sink, number)
    try:
        pipe.logger.warning("not for you")
        pipe.writer.flush()
        os.set_blocking(other, False)
        with pytest.raises(BlockingIOError):
            os.read(other, 1)
    finally:
        for open_one in (other, sink, number):
            os.close(open_one)


def test_a_reader_that_is_gone_is_no_error(pipe: Pipe) -> None:
    os.close(pipe.source)
    pipe.source = os.open(os.devnull, os.O_RDONLY)
    assert signal.getsignal(signal.SIGPIPE) is signal.SIG_IGN
    pipe.logger.warning("into the void")
    pipe.writer.flush()
    assert not pipe.writer._lines


def test_a_call_with_wrong_arguments_is_no_error(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    pipe.logger.warning("%d", "no number")
    pipe.logger.warning("after it")
    assert pipe.line() == "after it"


def test_a_child_writes_its_own_lines_only(pipe: Pipe) -> None:
    """As after a fork: no thread, no lines, and no lock that the parent held."""
    pipe.fill()
    pipe.logger.warning("the parent's")
    with pipe.writer._changed:
        log_writer._forget_parent()
    assert not pipe.writer._lines and pipe.writer._thread is None
    pipe.logger.warning("the child's")
    assert {pipe.line(), pipe.line()} == {"the line that waits", "the child's"}
