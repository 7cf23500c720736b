"""The question to an exit about itself: its answer, and what else may come."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import msgspec
import pytest

from cryprq_proxy.carriers.dial.endpoint import Endpoint
from cryprq_proxy.client import ask_exit as module
from cryprq_proxy.client.ask_exit import MAX_REPORT, ask_exit, read_report
from cryprq_proxy.client.client import Client
from cryprq_proxy.crypto.payloads import Feature
from cryprq_proxy.errors import CryprqError, StreamReason
from cryprq_proxy.exit import report as exit_side
from cryprq_proxy.outbound.resolving.resolver import SystemResolver
from cryprq_proxy.session.streams import Stream
from tests.support.settle import until
from tests.support.web_links import Place


@pytest.fixture
async def client(here: Place, monkeypatch: pytest.MonkeyPatch) -> Client:
    """One whose link is up."""

    async def found(*_: object) -> tuple[str, ...]:
        return ("198.41.0.4",)

    monkeypatch.setattr(SystemResolver, "resolve_anew", found)
    client = here.client(Endpoint("tcp", here.tcp))
    await until(lambda: client.up)
    return client


async def test_the_exit_answers_and_hears_the_time(here: Place, client: Client) -> None:
    told = await ask_exit(client.start, "home")
    assert told.exit == "home" and told.report.resolver.problem == ""
    assert abs(told.clock_off) < 60
    (entry,) = here.exit.sessions
    assert entry.clock_off is not None and abs(entry.clock_off) < 60
    await until(lambda: not client.open_streams)


async def test_a_clock_that_is_ahead(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    async def ahead(*_: object) -> bytes:
        return json.dumps({"clock": time.time() + 259_200}).encode()

    monkeypatch.setattr(exit_side.Reporter, "told", ahead)
    told = await ask_exit(client.start, "home")
    assert told.clock_off == pytest.approx(259_200, abs=60)


async def test_an_exit_of_an_older_version_is_not_asked(here: Place, client: Client) -> None:
    """It would end the session, as an OPEN of an unknown protocol breaks the rules."""
    client._kept.features &= ~Feature.REPORT
    with pytest.raises(
        CryprqError, match=r"^the exit home cannot tell about itself: it runs an older version"
    ):
        await ask_exit(client.start, "home")
    assert not here.exit.sessions.streams_total and client.up


async def test_without_a_link(here: Place, client: Client) -> None:
    await client.stop()
    with pytest.raises(CryprqError, match=r"^there is no link to the exit home, so it cannot be asked$"):
        await ask_exit(client.start, "home")


async def test_an_exit_that_says_nothing(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    async def silent(*_: object) -> bytes:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(exit_side.Reporter, "told", silent)
    monkeypatch.setattr(module, "ASK_SECONDS", 0.2)
    with pytest.raises(CryprqError, match=r"has told nothing about itself within 0.2 s$"):
        await ask_exit(client.start, "home")
    await until(lambda: not client.open_streams)


async def test_an_exit_that_says_too_much(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    async def long(*_: object) -> bytes:
        return bytes(MAX_REPORT + 1)

    monkeypatch.setattr(exit_side.Reporter, "told", long)
    with pytest.raises(CryprqError, match=r"more about itself than 4096 bytes"):
        await ask_exit(client.start, "home")
    await until(lambda: not client.open_streams)


@pytest.mark.parametrize(
    ("reason", "sentence"),
    [
        (StreamReason.LIMIT, "the exit home does not tell about itself: limit"),
        (StreamReason.NOT_ALLOWED, "the exit home cannot tell about itself: it runs an older version"),
    ],
)
async def test_a_refusal(
    client: Client, monkeypatch: pytest.MonkeyPatch, reason: StreamReason, sentence: str
) -> None:
    def refuse(_: object, __: object, stream: Stream, claim: Any) -> None:
        claim.release()
        stream.refuse(reason)

    monkeypatch.setattr("cryprq_proxy.exit.sessions.ReportStream", refuse)
    with pytest.raises(CryprqError, match=f"^{sentence}"):
        await ask_exit(client.start, "home")


async def test_a_report_that_breaks_off(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(_: object, __: object, stream: Stream, claim: Any) -> None:
        claim.release()
        stream.accept()
        stream.reset(StreamReason.GENERAL)

    monkeypatch.setattr("cryprq_proxy.exit.sessions.ReportStream", cut)
    with pytest.raises(CryprqError, match=r"broke off while it told about itself$"):
        await ask_exit(client.start, "home")


# --- what is read ---


def test_what_is_missing_or_unknown_does_no_harm() -> None:
    report = read_report(b'{"later": [1], "ipv4": {"route": true}}')
    assert report.ipv4.route and not report.ipv6.route and report.clock_kept is None


@pytest.mark.parametrize(
    "told",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b'{"version": "a\\nb"}',
        b'{"version": "a\\u001b[2J"}',
        b'{"version": "' + b"a" * 65 + b'"}',
        b'{"version": "a\\n"}',
        b'{"clock": -1}',
        b'{"clock": 1e300}',
        b'{"clock": NaN}',
        b'{"ipv4": {"route": 1}}',
        b'{"resolver": {"seconds": "long"}}',
        b'{"ipv4": {"address": "example.com"}}',
        b'{"ipv6": {"address": "1.2.3"}}',
    ],
)
def test_what_is_no_report_is_one_sentence(told: bytes) -> None:
    with pytest.raises(CryprqError, match=r"update the older of the two sides$"):
        read_report(told)


def test_what_is_nested_too_deeply_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """How deep that is depends on the CPython and on its stack: a count of 1000 to 3.13, and then the room left."""

    def decode(*_: object, **__: object) -> None:
        raise RecursionError("maximum recursion depth exceeded while deserializing an object")

    monkeypatch.setattr(msgspec.json, "decode", decode)
    with pytest.raises(CryprqError, match=r"update the older of the two sides$"):
        read_report(b"{}")


def test_a_whole_report_is_short() -> None:
    longest: dict[str, Any] = {
        "version": "v" * 64,
        "clock": 1e11,
        "clock_kept": False,
        "ipv4": {"route": False, "address": "255.255.255.255"},
        "ipv6": {"route": False, "address": "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff"},
        "resolver": {"problem": "p" * 64, "seconds": 123456.789},
    }
    told = json.dumps(longest).encode()
    assert len(told) < MAX_REPORT / 4
    read_report(told)
