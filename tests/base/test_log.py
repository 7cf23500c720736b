from __future__ import annotations

import errno
import io
import json
import logging
import os
import sys
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.base import log
from cryprq_proxy.errors import CloseReason, ConfigError, PeerError

logger = logging.getLogger("cryprq_proxy.test")


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, raising = root.handlers[:], root.level, logging.raiseExceptions
    hooks = threading.excepthook, sys.unraisablehook
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.raiseExceptions = raising
    logging.captureWarnings(False)
    threading.excepthook, sys.unraisablehook = hooks


def fail(error: BaseException) -> None:
    try:
        raise error
    except BaseException:
        logger.exception("the carrier ended")


def test_text_is_one_line_with_time_and_level() -> None:
    out = io.StringIO()
    log.setup(stream=out)
    logger.info("the link to %s is up", "exit.example:4433")
    logger.debug("not asked for")
    line = out.getvalue()
    assert line.endswith(" info    the link to exit.example:4433 is up\n")
    assert line.count("\n") == 1
    assert line[2] == line[5] == ":"


def test_debug_is_of_this_program_alone() -> None:
    """Also of a library that sets the level of its logger when it is imported, later than our set-up."""
    out = io.StringIO()
    log.setup("debug", stream=out)
    chatty = logging.getLogger("pyroute2")
    chatty.setLevel(logging.NOTSET)
    logging.getLogger("pyroute2.netlink.core").debug("a message")
    chatty.warning("what a person should know")
    logger.debug("asked for")
    assert [line.split(maxsplit=2)[2] for line in out.getvalue().splitlines()] == [
        "what a person should know",
        "asked for",
    ]


def test_the_level_changes_while_it_runs() -> None:
    out = io.StringIO()
    log.setup(stream=out)
    logger.debug("not asked for")
    log.set_level("debug")
    logger.debug("asked for")
    fail(ValueError("odd"))
    log.set_level("warning")
    logger.info("no more")
    fail(ValueError("even"))
    lines = out.getvalue().splitlines()
    assert "asked for" in lines[0] and "odd" in lines[1]
    assert "Traceback" in lines[2]
    assert "even" in lines[-1] and "Traceback" not in "".join(lines[3:])


def test_an_exception_is_a_sentence_without_traceback() -> None:
    out = io.StringIO()
    log.setup(stream=out)
    fail(PeerError(CloseReason.CREDIT, "the peer sent more than its window"))
    fail(ValueError("odd"))
    fail(FileNotFoundError(2, "No such file or directory", "/nowhere"))
    fail(TimeoutError())
    assert [line.partition("ended: ")[2] for line in out.getvalue().splitlines()] == [
        "the peer sent more than its window",
        "ValueError: odd",
        "no such file or directory: /nowhere",
        "timed out",
    ]


def test_debug_adds_the_traceback() -> None:
    out = io.StringIO()
    log.setup("debug", stream=out)
    fail(ValueError("odd"))
    assert "Traceback" in out.getvalue()
    assert all(line.startswith("    ") for line in out.getvalue().splitlines()[1:])


def test_json_is_one_object_a_line() -> None:
    out = io.StringIO()
    log.setup("info", "json", out)
    logger.warning("two\nlines")
    fail(ConfigError("wrong"))
    first, second = map(json.loads, out.getvalue().splitlines())
    assert first.keys() == {"time", "level", "logger", "message"}
    assert first["level"] == "warning"
    assert first["message"] == "two\\nlines"
    assert first["time"].endswith("Z")
    assert second["error"] == "wrong"
    assert "traceback" not in second


def test_json_at_debug_has_the_traceback_in_a_field() -> None:
    out = io.StringIO()
    log.setup("debug", "json", out)
    fail(ConfigError("wrong"))
    [line] = out.getvalue().splitlines()
    assert "Traceback" in json.loads(line)["traceback"]


@pytest.mark.parametrize("style", ["text", "json"])
@given(text=st.text())
def test_nothing_forges_a_line_or_reaches_the_terminal(style: log.LogFormat, text: str) -> None:
    out = io.StringIO()
    log.setup("info", style, out)
    logger.info("asked for %s", text)
    fail(ConfigError(text))
    lines = out.getvalue().split("\n")
    assert len(lines) == 3
    assert all(line.isprintable() or style == "text" for line in lines)
    assert not any(character < " " or "\x7f" <= character <= "\x9f" for line in lines for character in line)
    out.getvalue().encode("utf-8")


def test_the_journal_gets_priorities_and_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader) as source, os.fdopen(writer, "w") as stream:
        status = os.fstat(writer)
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        log.setup(stream=stream)
        logger.warning("careful")
        log.flush()
        stream.close()
        assert source.read() == "<4>careful\n"


def test_without_standard_error_there_is_no_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    log.setup()
    logger.error("into the void")
    assert not log.write_behind("neither")


def test_a_last_line_comes_behind_all_that_was_logged() -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader) as source, os.fdopen(writer, "w") as stream:
        log.setup(stream=stream)
        logger.warning("first")
        assert log.write_behind("cryprq-proxy: last")
        stream.close()
        assert [line.rsplit(maxsplit=1)[-1] for line in source] == ["first", "last"]


def test_set_up_twice_writes_once() -> None:
    out = io.StringIO()
    log.setup(stream=io.StringIO())
    log.setup(stream=out)
    logger.info("once")
    assert out.getvalue().count("once") == 1


def test_a_closed_stream_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    out = io.StringIO()
    log.setup(stream=out)
    out.close()
    logger.info("into the void")
    assert capsys.readouterr().err == ""


def test_a_failing_thread_is_logged() -> None:
    out = io.StringIO()
    log.setup(stream=out)
    thread = threading.Thread(target=lambda: {"other": 1}["key"], name="signer")
    thread.start()
    thread.join()
    assert out.getvalue().endswith("the thread 'signer' failed: KeyError: 'key'\n")


def test_an_unraisable_error_is_logged() -> None:
    class Stubborn:
        def __del__(self) -> None:
            raise ValueError("not now")

    out = io.StringIO()
    log.setup(stream=out)
    Stubborn()
    assert out.getvalue().endswith("an error could not be raised: ValueError: not now\n")


def test_a_file_is_named_unless_any_other_would_have_failed_too() -> None:
    """An import without a free descriptor named a source file of the program."""
    assert log.describe(OSError(errno.EACCES, "", "/a")) == "permission denied: /a"
    assert log.describe(OSError(errno.EMFILE, "", "/a")) == "too many open files"
