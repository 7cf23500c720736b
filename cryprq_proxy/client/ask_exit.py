"""Ask an exit about itself, and for its time: a stream that it answers with a report (exit/report.py)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from struct import Struct
from typing import Final

import msgspec

from ..address import packed
from ..base.clock import clock
from ..errors import CryprqError, StreamReason, StreamRefused, StreamReset, words_of
from ..outbound.bytestream import ByteStream
from ..session.wire import StreamProtocol
from ..status import AskedExit, ExitReport
from .requests import NOWHERE, StreamRequest, opened

MAX_REPORT: Final = 4096
"""Bytes."""
ASK_SECONDS: Final = 10.0
_QUESTION: Final = Struct("!Q")


async def ask_exit(start: Callable[[StreamRequest], None], name: str) -> AskedExit:
    """The report of the exit called `name`, on a stream that `start` gives. Raises CryprqError with one sentence."""
    began = clock()
    try:
        async with asyncio.timeout(ASK_SECONDS):
            stream = await opened(start, StreamProtocol.REPORT, NOWHERE, name)
            try:
                told = await _told(stream)
            finally:
                stream.abort()
    except StreamRefused as refusal:
        raise CryprqError(_refused(name, refusal.reason)) from None
    except StreamReset:
        raise CryprqError(f"the exit {name} broke off while it told about itself") from None
    except TimeoutError:
        raise CryprqError(f"the exit {name} has told nothing about itself within {ASK_SECONDS:g} s") from None
    now, report = time.time(), read_report(told)
    return AskedExit(
        exit=name, seconds=round(clock() - began, 3), clock_off=round(report.clock - now, 3), report=report
    )


async def _told(stream: ByteStream) -> bytes:
    """Tell the exit the time of this machine, and read its answer."""
    await stream.write(_QUESTION.pack(int(time.time() * 1e3)))
    stream.write_eof()
    told = b""
    while piece := await stream.read():
        told += piece
        if len(told) > MAX_REPORT:
            raise CryprqError(f"the exit tells more about itself than {MAX_REPORT} bytes, so it is not read")
    return told


def read_report(told: bytes) -> ExitReport:
    """Decode what an exit has told. Raises CryprqError, and nothing else."""
    try:
        report = msgspec.json.decode(told, type=ExitReport)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise CryprqError(
            "what the exit tells about itself cannot be read: update the older of the two sides"
        ) from None
    if any(family.address and packed(family.address) is None for family in (report.ipv4, report.ipv6)):
        raise CryprqError(
            "the exit names an address of its own that is none: update the older of the two sides"
        )
    return report


def _refused(name: str, reason: StreamReason) -> str:
    if reason is StreamReason.NOT_ALLOWED:
        return f"the exit {name} cannot tell about itself: it runs an older version, which is to be updated"
    if reason is StreamReason.LINK_DOWN:
        return f"there is no link to the exit {name}, so it cannot be asked"
    return f"the exit {name} does not tell about itself: {words_of(reason)}"
