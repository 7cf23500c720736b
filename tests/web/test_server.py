"""The admin server over real connections: what each address answers, and who gets nothing.

Requests are written by hand, since a client that sends what a hostile page or a rebound name makes a browser send
must be able to send anything.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.address import Destination
from cryprq_proxy.base.tasks import spawn
from cryprq_proxy.base.text import to_json
from cryprq_proxy.commands.dashboard import dashboard as dashboard_command
from cryprq_proxy.errors import CryprqError
from cryprq_proxy.process.answers import OneATurn
from cryprq_proxy.process.recent_errors import MAX_ENTRIES, MAX_TEXT, RecentErrors
from cryprq_proxy.status import ClientStatus, ExitStatus, Status, Traffic
from cryprq_proxy.web import connections, events
from cryprq_proxy.web import server as web_server
from cryprq_proxy.web.connections import READ_SIZE
from cryprq_proxy.web.events import MAX_LISTENERS, Events
from cryprq_proxy.web.guard import Asked, Refusal, RequestGuard, new_token
from cryprq_proxy.web.metrics import Exposition
from cryprq_proxy.web.page import dashboard
from cryprq_proxy.web.server import MAX_BODY, AdminServer, MetricsServer
from tests.support.pages import ROOT, table
from tests.support.settle import settle
from tests.support.turn_count import counted_turns
from tests.support.web_fakes import World

TOKEN = new_token()
LOOPBACK = Destination("127.0.0.1", 0)
JSON = {"Content-Type": "application/json"}
ALLOWED = {**JSON, "Authorization": f"Bearer {TOKEN}"}
READS = ("/api/status", "/api/streams", "/proxy.pac", "/metrics", "/healthz", "/")
CHANGES: tuple[tuple[str, dict[str, str]], ...] = (
    ("/api/streams/close", {"id": "home/17"}),
    ("/api/exit", {"name": "home"}),
    ("/api/reload", {}),
)


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    """By lower-case names."""
    body: bytes

    def json(self) -> object:
        return json.loads(self.body)


class Site:
    """A running server and a way to ask it."""

    def __init__(self, world: World, address: Destination) -> None:
        self.world = world
        self.address = address

    async def ask(
        self, path: str, method: str = "GET", body: object = None, headers: dict[str, str] | None = None
    ) -> Answer:
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        sent = {"Host": str(self.address), "Connection": "close"} | (
            {"Content-Length": str(len(data))} if data else {}
        )
        sent |= headers or {}
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in sent.items() if value)]
        return await self.raw("\r\n".join([*lines, "", ""]).encode() + data)

    async def raw(self, request: bytes) -> Answer:
        reader, writer = await asyncio.open_connection(*self.address)
        try:
            writer.write(request)
            async with asyncio.timeout(20):
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                first, *lines = head.rstrip().split("\r\n")
                headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
                assert len(headers) == len(lines), "a header stands there twice"
                length = headers.get("content-length")
                body = b"" if length is None else await reader.read() if length == "" else b""
                if length and not request.startswith(b"HEAD") and " 304 " not in first:
                    body = await reader.readexactly(int(length))
        finally:
            writer.close()
        return Answer(int(first.split()[1]), headers, body)


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    world = World()
    server = AdminServer(LOOPBACK, world, TOKEN)
    yield Site(world, await server.start())
    await server.stop()


# --- what it answers ---


async def test_the_page_runs_its_own_script_and_no_other(site: Site) -> None:
    answer = await site.ask("/")
    assert answer.status == 200 and answer.headers["content-type"] == "text/html; charset=utf-8"
    page, policy = answer.body.decode(), answer.headers["content-security-policy"]
    for tag, directive in (("script", "script-src"), ("style", "style-src")):
        found = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.S)
        assert len(found) == 1 and len(found[0]) > 1000
        digest = b64encode(sha256(found[0].encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy and "*" not in policy
    for part in ("frame-ancestors 'none'", "base-uri 'none'", "form-action 'none'", "connect-src 'self'"):
        assert part in policy
    assert not re.search(r"""(?:src|href|url)\s*[=(]\s*["']?(?:https?:)?//""", page), "an asset from outside"
    assert "innerHTML" not in page and " style=" not in page and " onclick" not in page


async def test_status_and_streams(site: Site) -> None:
    status, streams = await site.ask("/api/status"), await site.ask("/api/streams")
    assert status.headers["content-type"] == "application/json"
    assert status.json() == json.loads(to_json(await site.world.status()))
    assert streams.json() == site.world.open
    assert (await site.ask("/healthz")).body == b"ok\n"


async def test_healthz_is_as_the_page_says(site: Site) -> None:
    """At the client and at the exit."""

    async def status() -> ExitStatus:
        return ExitStatus()

    server = MetricsServer(LOOPBACK, status, TOKEN)
    exit = Site(World(), await server.start())
    rows = table(ROOT / "docs" / "operations.md", "asked for `/healthz`", "answer")
    assert len(rows) == 4
    try:
        for where in (site, exit):
            for asked, told in rows:
                headers = {"Host": "other.example"} if "not its own" in asked else {}
                answer = await where.ask("/healthz", asked.partition(",")[0], headers=headers)
                assert answer.status == int(told.split()[0])
                assert (answer.body == b"ok\n") == (told == "200 ok")
    finally:
        await server.stop()


async def test_pac_with_its_type_and_tag(site: Site) -> None:
    first = await site.ask("/proxy.pac")
    assert first.status == 200 and first.body.decode() == site.world.pac()
    assert first.headers["content-type"] == "application/x-ns-proxy-autoconfig"
    assert first.headers["cache-control"] == "no-cache"
    tag = first.headers["etag"]
    assert re.fullmatch('"[0-9a-f]{32}"', tag)
    for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = await site.ask("/proxy.pac", headers={"If-None-Match": known})
        assert (again.status, again.body, again.headers["etag"]) == (304, b"", tag)
    assert (await site.ask("/proxy.pac", headers={"If-None-Match": '"other"'})).status == 200


async def test_the_tag_changes_with_the_file() -> None:
    world = World()
    texts = iter(("one", "two"))
    world.pac = lambda: next(texts)  # type: ignore[method-assign]
    server = AdminServer(LOOPBACK, world, TOKEN)
    site = Site(world, await server.start())
    try:
        first, second = await site.ask("/proxy.pac"), await site.ask("/proxy.pac")
        assert first.headers["etag"] != second.headers["etag"]
    finally:
        await server.stop()


async def test_changes_with_the_token(site: Site) -> None:
    assert (await site.ask("/api/streams/close", "POST", {"id": "home/17"}, ALLOWED)).json() == {
        "closed": "home/17"
    }
    assert site.world.closed == ["home/17"]
    gone = await site.ask("/api/streams/close", "POST", {"id": "home/17"}, ALLOWED)
    assert gone.status == 404 and "no longer open" in gone.body.decode()
    assert (await site.ask("/api/exit", "POST", {"name": "office"}, ALLOWED)).status == 200
    assert (await site.ask("/api/exit", "POST", {"name": "auto"}, ALLOWED)).status == 200
    assert site.world.chosen == ["office", "auto"]
    unknown = await site.ask("/api/exit", "POST", {"name": "nowhere"}, ALLOWED)
    assert (unknown.status, unknown.json()) == (409, {"error": "there is no exit of that name"})
    assert (await site.ask("/api/reload", "POST", {}, ALLOWED)).json() == {"reloaded": "4 rules"}


async def test_every_answer_is_sealed_off(site: Site) -> None:
    answers = [await site.ask(path) for path in (*READS, "/nothing")]
    answers += [
        await site.ask("/api/exit", "POST", {"name": "x"}),
        await site.ask("/", headers={"Host": "x"}),
    ]
    answers += [await site.raw(b"nonsense\r\n\r\n")]
    for answer in answers[:-1]:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
        assert "no-" in answer.headers["cache-control"]
    for answer in answers:
        assert not answer.headers.get("server")
        assert not any(name.startswith("access-control") for name in answer.headers)


# --- who gets nothing ---


@pytest.mark.parametrize("path", READS)
@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "", "[::1]"]
)
async def test_a_rebound_name_reads_nothing(site: Site, path: str, host: str) -> None:
    answer = await site.ask(path, headers={"Host": host.format(port=site.address.port)})
    assert answer.status in (400, 421) and b"cryprq-proxy</h1>" not in answer.body and site.world.asked == 0


async def test_own_names(site: Site) -> None:
    for name in ("127.0.0.1", "localhost", "LOCALHOST", "[::1]"):
        assert (await site.ask("/healthz", headers={"Host": f"{name}:{site.address.port}"})).status == 200


@pytest.mark.parametrize("path", READS)
@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}, {"Origin": "http://evil.example"},
        {"Origin": "null"}, {"Origin": "http://127.0.0.1:9"}, {"Upgrade": "websocket", "Connection": "Upgrade"},
        {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
         "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="},
    ],
)  # fmt: skip
async def test_another_site_reads_nothing(site: Site, path: str, headers: dict[str, str]) -> None:
    assert (await site.ask(path, headers=headers)).status == 403
    assert site.world.asked == 0


@pytest.mark.parametrize(("path", "body"), CHANGES)
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (JSON, 401),
        ({**JSON, "Authorization": "Bearer "}, 401),
        ({**JSON, "Authorization": f"Bearer {TOKEN[:-1]}"}, 401),
        ({**JSON, "Authorization": f"Bearer {TOKEN}x"}, 401),
        ({**JSON, "Authorization": f"Basic {TOKEN}"}, 401),
        ({**JSON, "Authorization": TOKEN}, 401),
        ({**JSON, "Authorization": "Bearer \xff\xfe"}, 401),
        ({**ALLOWED, "Sec-Fetch-Site": "cross-site"}, 403),
        ({**ALLOWED, "Sec-Fetch-Site": "same-site"}, 403),
        ({**ALLOWED, "Origin": "http://evil.example"}, 403),
        ({**ALLOWED, "Origin": "https://{host}"}, 403),
        ({**ALLOWED, "Host": "evil.example"}, 421),
        ({**ALLOWED, "Upgrade": "h2c"}, 403),
        ({**ALLOWED, "Content-Type": "text/plain"}, 415),
        ({**ALLOWED, "Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({**ALLOWED, "Content-Type": ""}, 415),
    ],
)
async def test_nothing_is_changed(
    site: Site, path: str, body: object, headers: dict[str, str], status: int
) -> None:
    headers = {name: value.format(host=site.address) for name, value in headers.items()}
    answer = await site.ask(path, "POST", body, headers)
    assert answer.status == status
    assert answer.headers.get("www-authenticate") == ("Bearer" if status == 401 else None)
    assert (site.world.closed, site.world.chosen, site.world.reloads) == ([], [], 0)


async def test_a_link_leads_to_the_empty_page_only(site: Site) -> None:
    visit = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    for path in READS:
        assert (await site.ask(path, headers=visit)).status == (200 if path in ("/", "/healthz") else 403)
    assert (await site.ask("/", headers={**visit, "Sec-Fetch-Dest": "iframe"})).status == 403
    assert (await site.ask("/", "POST", {}, {**ALLOWED, **visit})).status == 403


async def test_the_own_page_may(site: Site) -> None:
    headers = {**ALLOWED, "Origin": f"http://{site.address}", "Sec-Fetch-Site": "same-origin"}
    assert (await site.ask("/api/reload", "POST", {}, headers)).status == 200
    assert (await site.ask("/api/status", headers={"Sec-Fetch-Site": "none"})).status == 200


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "POST"])
async def test_methods(site: Site, method: str) -> None:
    answer = await site.ask("/api/status", method, headers=ALLOWED)
    assert answer.status == 405 and answer.headers["allow"] == "GET,HEAD"
    assert (await site.ask("/api/exit", headers=ALLOWED)).status == 405
    assert (await site.ask("/nothing", headers=ALLOWED)).status == 404


async def test_a_preflight_gets_no_permission(site: Site) -> None:
    headers = {
        "Origin": "http://evil.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }
    answer = await site.ask("/api/exit", "OPTIONS", headers=headers)
    assert answer.status == 403 and not any(name.startswith("access-control") for name in answer.headers)


async def test_it_is_no_proxy(site: Site) -> None:
    answer = await site.ask(f"http://{site.address}/api/status")
    assert answer.status == 400 and site.world.asked == 0


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'{"id": 1}',
        b'{"id": ""}',
        b'{"id": "x", "more": 1}',
        b"\xff",
        b'{"id": "' + b"x" * 200 + b'"}',
    ],
)
async def test_bodies_that_are_none(site: Site, body: bytes) -> None:
    headers = {**ALLOWED, "Content-Length": str(len(body))}
    assert (await site.ask("/api/streams/close", "POST", body, headers)).status == 400
    assert site.world.closed == []


async def test_bodies_are_bounded(site: Site) -> None:
    body = b'{"id": "' + b"x" * MAX_BODY + b'"}'
    assert (await site.ask("/api/streams/close", "POST", body, ALLOWED)).status == 413
    chunked = {**ALLOWED, "Transfer-Encoding": "chunked", "Content-Length": ""}
    parts = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    assert (await site.ask("/api/streams/close", "POST", parts, chunked)).status == 413


async def test_a_body_has_its_time(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_server, "BODY_SECONDS", 0.01)
    headers = {**ALLOWED, "Content-Length": "100"}
    assert (await site.ask("/api/streams/close", "POST", b'{"id"', headers)).status == 408


async def test_beyond_loopback_reading_needs_the_token_too() -> None:
    world = World()
    server = AdminServer(Destination("0.0.0.0", 0), world, TOKEN)
    bound = await server.start()
    site = Site(world, Destination("127.0.0.1", bound.port))
    try:
        for path in ("/api/status", "/api/streams", "/proxy.pac", "/metrics", "/api/events"):
            assert (await site.ask(path)).status == 401
        assert world.asked == 0
        assert (await site.ask("/api/status", headers=ALLOWED)).status == 200
        for path in ("/", "/healthz"):
            assert (await site.ask(path)).status == 200
        assert (await site.ask("/", headers={"Host": f"192.0.2.1:{bound.port}"})).status == 200
        assert (await site.ask("/", headers={"Host": f"evil.example:{bound.port}"})).status == 421
    finally:
        await server.stop()


async def test_the_exit_has_metrics_and_nothing_else() -> None:
    async def status() -> ExitStatus:
        return ExitStatus(bytes=Traffic(sent=1, received=2))

    server = MetricsServer(LOOPBACK, status, TOKEN)
    site = Site(World(), await server.start())
    try:
        metrics = await site.ask("/metrics")
        assert metrics.status == 200 and b'cryprq_link_bytes_total{direction="sent"} 1.0' in metrics.body
        assert (await site.ask("/healthz")).status == 200
        for path in ("/", "/api/status", "/api/events", "/proxy.pac"):
            assert (await site.ask(path)).status == 404
        assert (await site.ask("/metrics", headers={"Host": "evil.example"})).status == 421
    finally:
        await server.stop()


async def test_the_metrics_of_an_exit_need_the_token_beyond_loopback() -> None:
    async def status() -> ExitStatus:
        return ExitStatus()

    server = MetricsServer(Destination("0.0.0.0", 0), status, TOKEN)
    bound = await server.start()
    site = Site(World(), Destination("127.0.0.1", bound.port))
    try:
        assert (await site.ask("/metrics")).status == 401
        wrong = {"Authorization": f"Bearer {TOKEN[:-1]}{'y' if TOKEN.endswith('x') else 'x'}"}
        assert (await site.ask("/metrics", headers=wrong)).status == 401
        assert (await site.ask("/metrics", headers={"Authorization": f"Bearer {TOKEN}"})).status == 200
    finally:
        await server.stop()


async def test_little_is_read_at_once(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    take = connections.AdminConnection.data_received

    def data_received(self: connections.AdminConnection, data: bytes) -> None:
        sizes.append(len(data))
        take(self, data)

    monkeypatch.setattr(connections.AdminConnection, "data_received", data_received)
    one = f"GET /healthz HTTP/1.1\r\nHost: {site.address}\r\n\r\n".encode()
    reader, writer = await asyncio.open_connection(*site.address)
    writer.write(one * 500)
    async with asyncio.timeout(20):
        for _ in range(500):
            await reader.readuntil(b"ok\n")
    writer.close()
    assert sum(sizes) == 500 * len(one)
    assert max(sizes) <= READ_SIZE


@pytest.mark.parametrize("host", ["", "evil.example"])
async def test_one_request_is_answered_in_a_turn_of_the_loop(
    host: str, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short ones behind each other, which nobody needs a token for, stopped the loop for half a second."""
    at: list[int] = []
    refuse = RequestGuard.refuse

    def judge(self: RequestGuard, asked: Asked) -> Refusal | None:
        at.append(turns.now)
        return refuse(self, asked)

    monkeypatch.setattr(RequestGuard, "refuse", judge)
    one = f"GET /healthz HTTP/1.1\r\nHost: {host or site.address}\r\n\r\n".encode()
    with counted_turns() as turns:
        pairs = [await asyncio.open_connection(*site.address) for _ in range(8)]
        for _, writer in pairs:
            writer.write(one * 20)
        async with asyncio.timeout(20):
            for reader, writer in pairs:
                for _ in range(20):
                    await reader.readuntil(b'"}' if host else b"ok\n")
                writer.close()
    assert len(set(at)) == len(at) == 160


async def test_who_asks_for_metrics_together_shares_the_status_and_no_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    at: list[int] = []
    write, ready, asked = Exposition.write, asyncio.Event(), list[int]()

    async def status() -> ExitStatus:
        asked.append(turns.now)
        await ready.wait()
        return ExitStatus()

    def note(self: Exposition, status: Status, accept: str) -> tuple[bytes, str]:
        at.append(turns.now)
        return write(self, status, accept)

    monkeypatch.setattr(Exposition, "write", note)
    server = MetricsServer(LOOPBACK, status, TOKEN)
    site = Site(World(), await server.start())
    turn, gone_on = OneATurn.turn, list[int]()

    async def counted(self: OneATurn) -> None:
        await turn(self)
        gone_on.append(1)

    monkeypatch.setattr(OneATurn, "turn", counted)
    with counted_turns() as turns:
        asking = [spawn(site.ask("/metrics"), "asks") for _ in range(12)]
        await until(lambda: len(gone_on) == 12)
        await settle()
        ready.set()
        assert {answer.status for answer in await asyncio.gather(*asking)} == {200}
    await server.stop()
    assert len(set(at)) == len(at) == 12
    assert len(asked) == 2, "those that came while the first one was made did not share the second one"


async def test_a_body_that_breaks_off_is_no_failure_of_ours(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """Sixty-four connections wrote as many tracebacks."""
    caplog.set_level(logging.DEBUG)
    _reader, writer = await asyncio.open_connection(*site.address)
    head = f"POST /api/reload HTTP/1.1\r\nHost: {site.address}\r\nAuthorization: Bearer {TOKEN}\r\n"
    writer.write(f"{head}Content-Type: application/json\r\nContent-Length: 9\r\n\r\n{{".encode())
    await writer.drain()
    assert (await site.ask("/healthz")).status == 200
    await settle()
    writer.transport.abort()
    await until(lambda: "no whole one" in caplog.text)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who says nothing is cut off, and then there is room again."""
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 3)
    # As the fourth one asks, the other three must still be there.
    for seconds in (60.0, 0.01):
        monkeypatch.setattr(connections, "FIRST_REQUEST_SECONDS", seconds)
        world = World()
        server = AdminServer(LOOPBACK, world, TOKEN)
        site = Site(world, await server.start())
        silent = [await asyncio.open_connection(*site.address) for _ in range(3)]
        try:
            if seconds > 1:
                with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                    await site.ask("/healthz")
                continue
            async with asyncio.timeout(20):
                for reader, _ in silent:
                    with suppress(ConnectionResetError):
                        assert await reader.read(1) == b""
            assert (await site.ask("/healthz")).status == 200
        finally:
            for _, writer in silent:
                writer.close()
            await server.stop()


async def test_who_asks_for_the_pac_file_leaves_nothing_behind(site: Site) -> None:
    """Neither an open connection nor a timer that holds one, which had stayed for ten and for thirty seconds."""
    for _ in range(5):
        reader, writer = await asyncio.open_connection(*site.address)
        writer.write(f"GET /proxy.pac HTTP/1.1\r\nHost: {site.address}\r\n\r\n".encode())
        answer = await asyncio.wait_for(reader.read(), 20)
        assert b"FindProxyForURL" in answer and b"Connection: close" in answer
        writer.close()
        await writer.wait_closed()
    timers = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
    assert not [timer for timer in timers if not timer.cancelled() and "onnection" in repr(timer)]


async def test_start_names_a_port_in_use(site: Site) -> None:
    with pytest.raises(OSError, match="in use"):
        await AdminServer(site.address, World(), TOKEN).start()


# --- live data ---


class Listener:
    """One page that follows the events."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def follow(cls, site: Site) -> Listener:
        reader, writer = await asyncio.open_connection(*site.address, limit=4 << 20)
        writer.write(f"GET /api/events HTTP/1.1\r\nHost: {site.address}\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        assert b" 200 " in head.split(b"\r\n")[0] and b"text/event-stream" in head
        return cls(reader, writer)

    async def event(self) -> tuple[str, object]:
        async with asyncio.timeout(20):
            while not (line := await self.reader.readline()).startswith(b"event: "):
                assert line, "the server closed the stream"
            data = await self.reader.readline()
        return line[7:].decode().strip(), json.loads(data[6:])


async def live(world: World, seconds: float) -> tuple[AdminServer, Events, Site]:
    feed = Events(world, seconds, lambda: world.now)
    server = AdminServer(LOOPBACK, world, TOKEN, feed)
    return server, feed, Site(world, await server.start())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


async def test_one_ticker_for_all_and_none_for_nobody() -> None:
    world = World()
    server, feed, site = await live(world, 0.01)
    try:
        await asyncio.sleep(0)
        assert world.asked == 0
        listeners = [await Listener.follow(site) for _ in range(5)]
        for listener in listeners:
            name, value = await listener.event()
            assert name == "status" and isinstance(value, dict)
            assert value["at"] == world.now and value["status"]["link"] == "up"
            assert await listener.event() == ("streams", world.open)
        assert world.asked <= feed.ticks + 1, "the status is asked for once a tick, not once a listener"
        for listener in listeners:
            listener.writer.close()
        await until(lambda: feed.listeners == 0)
        asked = world.asked
        await asyncio.sleep(0.05)
        assert world.asked == asked
        again = await Listener.follow(site)
        assert (await again.event())[0] == "status"
        again.writer.close()
    finally:
        await server.stop()


async def test_a_long_list_comes_with_every_third_event() -> None:
    world = World(events.MANY)
    server, _, site = await live(world, 0.01)
    try:
        for _ in range(2):  # whenever one comes, the list is there at once
            listener = await Listener.follow(site)
            names = [(await listener.event())[0] for _ in range(12)]
            assert names[:2] == ["status", "streams"]
            rest = "".join(name[2] for name in names[2:])
            assert "aaar" in rest and "aaaa" not in rest
            listener.writer.close()
    finally:
        await server.stop()


async def test_listeners_are_bounded_and_stop_ends_them() -> None:
    world = World()
    server, feed, site = await live(world, 0.01)
    listeners = [await Listener.follow(site) for _ in range(MAX_LISTENERS)]
    assert (await site.ask("/api/events")).status == 503
    await server.stop()
    for listener in listeners:
        async with asyncio.timeout(20):
            await listener.reader.read()
        listener.writer.close()
    assert feed.listeners == 0


async def test_a_listener_that_takes_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "WRITE_SECONDS", 0.2)
    world = World(1000)
    server, feed, site = await live(world, 0.001)
    try:
        slow = await Listener.follow(site)
        quick = await Listener.follow(site)
        await until(lambda: feed.listeners == 2)
        slow.reader._transport.pause_reading()  # type: ignore[attr-defined]
        while feed.listeners == 2:
            await quick.event()
        assert feed.listeners == 1
        await quick.event()
        slow.writer.close()
        quick.writer.close()
    finally:
        await server.stop()


async def test_a_failing_report_is_said_once_and_not_the_end(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    failing = True
    good = world.status

    async def status() -> ClientStatus | ExitStatus:
        if failing:
            world.asked += 1
            raise RuntimeError("a bug")
        return await good()

    world.status = status  # type: ignore[method-assign]
    server, _, site = await live(world, 0.001)
    try:
        with caplog.at_level(logging.ERROR):
            listener = await Listener.follow(site)
            await until(lambda: world.asked > 3)
            failing = False
            assert (await listener.event())[0] == "status"
        assert len([each for each in caplog.records if "dashboard" in each.message]) == 1
        listener.writer.close()
    finally:
        await server.stop()


async def test_hostile_text_stays_data(site: Site) -> None:
    name = "</script><img src=x onerror=alert(1)>\x1b]0;x\x07\n\nevent: status\ndata: {}\r\u2028\u202e\ud800"
    site.world.open[0] = {**site.world.open[0], "target": name}
    answer = await site.ask("/api/streams")
    assert answer.json() == site.world.open
    assert answer.headers["content-type"] == "application/json"
    listener = await Listener.follow(site)
    assert (await listener.event())[0] == "status"
    event, streams = await listener.event()
    assert event == "streams" and isinstance(streams, list) and streams[0]["target"] == name
    listener.writer.close()


# --- the guard alone ---


@given(
    target=st.text(max_size=40),
    hosts=st.lists(st.text(max_size=30), max_size=3),
    headers=st.dictionaries(
        st.sampled_from(["Origin", "Sec-Fetch-Site", "Authorization", "Content-Type", "Upgrade"]),
        st.text(max_size=40),
    ),
    changes=st.booleans(),
    tells=st.booleans(),
    host=st.sampled_from(["127.0.0.1", "0.0.0.0", "::1", "::", "192.0.2.1"]),
)
def test_nobody_guesses_the_way_in(
    target: str, hosts: list[str], headers: dict[str, str], changes: bool, tells: bool, host: str
) -> None:
    """For whatever is asked there is an answer, and no change without the token."""
    bound = Destination(host, 1081)
    guard = RequestGuard(bound, bound, TOKEN)
    refusal = guard.refuse(Asked(target, tuple(hosts), headers, changes, tells))
    assert refusal is not None or not changes


@given(bound=st.sampled_from(["127.0.0.1", "::1"]), given=st.text(max_size=80))
def test_only_the_token_is_the_token(bound: str, given: str) -> None:
    address = Destination(bound, 1081)
    guard = RequestGuard(address, address, TOKEN)
    headers = {**JSON, "Authorization": f"Bearer {given}"}
    allowed = guard.refuse(Asked("/api/exit", ("localhost:1081",), headers, True, True)) is None
    assert allowed == (given.strip() == TOKEN)


def test_the_token_is_no_guess() -> None:
    tokens = {new_token() for _ in range(100)}
    assert len(tokens) == 100 and all(re.fullmatch("[A-Za-z0-9_-]{32}", token) for token in tokens)


def test_the_page_is_built_once() -> None:
    assert dashboard() is dashboard()


# --- the last warnings and errors ---


def test_recent_errors() -> None:
    log = logging.getLogger("test.recent")
    with RecentErrors() as recent:
        log.info("nothing to see")
        log.warning("the target %s is odd", "a\x1b[31m\nb")
        log.error("it failed", exc_info=CryprqError("the exit is gone"))
        log.warning("x" * 2 * MAX_TEXT)
        log.warning("again")
        log.warning("again")
        recent.handle(logging.LogRecord("x", logging.WARNING, "", 0, "wrong %d", ("arguments",), None))
    log.warning("after the end")
    entries = recent.status()
    assert [entry.text for entry in entries[:2]] == ["wrong %d", "again"] and entries[1].count == 2
    assert len(entries[2].text) == MAX_TEXT
    assert [(entry.level, entry.text) for entry in entries[3:]] == [
        ("error", "it failed: the exit is gone"),
        ("warning", "the target a\\x1b[31m\\nb is odd"),
    ]
    assert recent.totals() == {"warning": 5, "error": 1}
    assert all(entry.at > 1e9 for entry in entries)


def test_recent_errors_are_bounded() -> None:
    with RecentErrors() as recent:
        for number in range(3 * MAX_ENTRIES):
            logging.getLogger("test.recent").warning("number %d", number)
    texts = [entry.text for entry in recent.status()]
    assert len(texts) == MAX_ENTRIES and texts[0] == f"number {3 * MAX_ENTRIES - 1}"


# --- the command ---


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What was opened in the browser, of a client that answers `dashboard`."""
    opened: list[str] = []

    def answer(sockets: list[Path], command: str = "status", argument: str = "") -> list[dict[str, object]]:
        assert command == "dashboard" and not any(path.name.startswith("exit") for path in sockets)
        return [{"url": f"http://127.0.0.1:1081/#token={TOKEN}"}]

    monkeypatch.setattr("cryprq_proxy.commands.dashboard.ask", answer)
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or True)  # type: ignore[func-returns-value]
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return opened


def test_the_token_does_not_reach_the_list_of_processes(asked: list[str], tmp_path: Path) -> None:
    for _ in range(2):
        result = CliRunner().invoke(dashboard_command, [])
        assert result.exit_code == 0 and TOKEN not in result.output
    file = tmp_path / "cryprq" / "dashboard.html"
    assert asked == [file.as_uri()] * 2
    assert TOKEN in file.read_text() and file.stat().st_mode & 0o777 == 0o600


def test_the_address_can_be_printed(asked: list[str]) -> None:
    result = CliRunner().invoke(dashboard_command, ["--print"])
    assert result.output == f"http://127.0.0.1:1081/#token={TOKEN}\n" and asked == []
