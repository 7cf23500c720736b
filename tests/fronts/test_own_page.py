"""The page at http://cryprq.test/: who gets it, and that all others hear of no such name."""

from __future__ import annotations

import asyncio

import h11
import msgspec
import pytest
from msgspec import structs

from cryprq_proxy.address import Destination
from cryprq_proxy.errors import StreamReason, words_of
from cryprq_proxy.fronts.own_page import OWN_PAGE, Checked, Facts, form, head, opens_page
from cryprq_proxy.status import ExitReport, OutwardReport, ResolverReport
from tests.support.http_fakes import Stage

BOTH = OutwardReport(route=True, address="5.75.10.2"), OutwardReport(route=True, address="2001:db8::7")
REPORT = ExitReport(ipv4=BOTH[0], ipv6=BOTH[1])
FACTS = Facts(exit="home", address="5.75.10.2:4433", up=True, report=REPORT)
NAVIGATES = b"Upgrade-Insecure-Requests: 1\r\n"
CURL = b"User-Agent: curl/8.5.0\r\n"
HOST = b"Host: cryprq.test\r\n"


async def facts() -> Facts:
    return FACTS


def request(*fields: bytes, method: str = "GET") -> h11.Request:
    split = [field.partition(b": ") for field in (b"Host: cryprq.test", *fields)]
    headers = [(name, value) for name, _, value in split]
    return h11.Request(method=method, target="/", headers=headers)


MODERN = (b"Sec-Fetch-Mode: navigate", b"Sec-Fetch-Dest: document")


@pytest.mark.parametrize(
    "fields",
    [
        (b"Upgrade-Insecure-Requests: 1", b"User-Agent: Mozilla/5.0", b"Referer: http://example.org/"),
        MODERN,
        (b"User-Agent: curl/8.5.0",),
        (b"User-Agent: Wget/1.21.3",),
    ],
)
def test_who_gets_it(fields: tuple[bytes, ...]) -> None:
    assert opens_page(request(*fields)) and opens_page(request(*fields, method="HEAD"))


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("GET", ()),
        ("GET", (b"User-Agent: Mozilla/5.0", b"Accept: text/html")),
        ("GET", (b"User-Agent: Mozilla/5.0 curl/8.5.0",)),
        ("GET", (b"Upgrade-Insecure-Requests: 1", b"Origin: http://example.org")),
        ("GET", (b"Upgrade-Insecure-Requests: 1", b"Sec-Purpose: prefetch")),
        ("GET", (b"Upgrade-Insecure-Requests: 1", b"Purpose: prefetch")),
        ("GET", (b"Upgrade-Insecure-Requests: 1", b"X-Moz: prefetch")),
        ("GET", (b"Upgrade-Insecure-Requests: 1", b"Sec-Fetch-Mode: navigate", b"Sec-Fetch-Dest: iframe")),
        ("GET", (b"User-Agent: curl/8.5.0", b"Sec-Fetch-Mode: no-cors", b"Sec-Fetch-Dest: image")),
        ("POST", (*MODERN, b"Content-Length: 0")),
        ("OPTIONS", MODERN),
    ],
)
def test_who_does_not(method: str, fields: tuple[bytes, ...]) -> None:
    assert not opens_page(request(*fields, method=method))


def written(facts: Facts, *accept: bytes, named: bool = True) -> str:
    wanted = form(request(*(b"Accept: " + kind for kind in accept)))
    return wanted.beginning + wanted.end(facts, named)


def test_what_it_says_as_html_as_text_and_as_json() -> None:
    page = written(FACTS, b"text/html,*/*")
    for said in (
        "This browser uses cryprq-proxy",
        "home (5.75.10.2:4433)",
        "at the exit",
        "<dd>yes</dd>",
        "<dt>WebRTC</dt>",
        "media.peerconnection.ice.proxy_only",
    ):
        assert said in page
    text = written(FACTS, b"*/*", named=False)
    assert "The world sees: 5.75.10.2, 2001:db8::7\n" in text and "Names: are resolved here" in text
    checked = msgspec.json.decode(written(FACTS, b"application/json"), type=Checked)
    assert checked.good and ("IPv6", "yes") in checked.lines
    assert written(FACTS) == written(FACTS, b"*/*")


@pytest.mark.parametrize(
    ("accept", "kind"),
    [(b"text/html", b"text/html; charset=utf-8"), (b"*/*", b"text/plain; charset=utf-8")],
)
def test_nobody_may_frame_it_or_read_it_from_elsewhere(accept: bytes, kind: bytes) -> None:
    fields = dict(head(form(request(b"Accept: " + accept))).headers)
    assert fields[b"content-type"] == kind
    assert b"frame-ancestors 'none'" in fields[b"content-security-policy"]
    assert fields[b"x-frame-options"] == b"DENY" and fields[b"cache-control"] == b"no-store"
    assert fields[b"cross-origin-resource-policy"] == b"same-origin"
    assert not [name for name in fields if name.startswith(b"access-control")]


def test_what_is_not_known_is_not_said() -> None:
    text = written(Facts(exit="<b>", address="x", problem="bad\x1b[31m", unasked="there is no link"))
    assert "there is no link: bad?[31m" in text and text.count("unknown: there is no link") == 3
    assert "Names: unknown: there is no link\n" in text
    html = written(Facts(exit="<b>"), b"text/html")
    assert "&lt;b&gt;" in html and "<b>" not in html


def test_names_that_fail_on_this_machine_are_no_good_though_the_exit_finds_them() -> None:
    assert FACTS.good
    facts = structs.replace(FACTS, names_problem="exit: connection refused")
    assert not facts.good
    said = "; of the programs that --tun routes none finds a name: exit: connection refused\n"
    assert f"Names: are resolved at the exit{said}" in written(facts)


NAT = OutwardReport(route=True)


@pytest.mark.parametrize(
    ("report", "seen", "ipv6", "good"),
    [
        (REPORT, "5.75.10.2, 2001:db8::7", "yes", True),
        (ExitReport(ipv4=BOTH[0]), "5.75.10.2", "no: the exit has no route for it", True),
        (
            ExitReport(ipv4=NAT, ipv6=NAT),
            "an IPv4 and an IPv6 address that the exit does not know",
            "yes",
            True,
        ),
        (
            ExitReport(ipv4=NAT, ipv6=BOTH[1]),
            "2001:db8::7, an IPv4 address that the exit does not",
            "yes",
            True,
        ),
        (ExitReport(), "nothing: the exit has no route to the Internet", "no: the exit", False),
        (ExitReport(ipv4=BOTH[0], resolver=ResolverReport(problem="timed out")), "5.75.10.2", "no:", False),
    ],
)
def test_what_the_exit_tells(report: ExitReport, seen: str, ipv6: str, good: bool) -> None:
    facts = structs.replace(FACTS, report=report)
    checked = msgspec.json.decode(written(facts, b"application/json"), type=Checked)
    told = dict(checked.lines)
    assert told["The world sees"].startswith(seen) and told["IPv6"].startswith(ipv6) and checked.good == good
    assert ("resolver fails: timed out" in told["Names"]) == bool(report.resolver.problem)
    assert not structs.replace(facts, up=False).good and not structs.replace(facts, report=None).good


def test_a_resolver_that_answers_that_there_is_no_such_name_works() -> None:
    problem = words_of(StreamReason.NAME_NOT_FOUND)
    facts = structs.replace(FACTS, report=structs.replace(REPORT, resolver=ResolverReport(problem=problem)))
    assert facts.good
    assert "Names: are resolved at the exit, whose resolver knows no name of the Internet\n" in written(facts)


# Through the proxy


async def all_of(stage: Stage) -> bytes:
    """A whole answer in chunks."""
    await stage.client.until(lambda: stage.client.sent.endswith(b"\r\n0\r\n\r\n"))
    answer = bytes(stage.client.sent)
    stage.client.sent.clear()
    return answer


async def test_the_page_begins_before_the_exit_has_told_anything() -> None:
    """In a frame the time until then would tell that there is a page."""
    told = asyncio.Event()

    async def slow() -> Facts:
        await told.wait()
        return FACTS

    async with Stage(facts=slow) as stage:
        stage.refusals[OWN_PAGE] = StreamReason.NAME_NOT_FOUND
        stage.says(b"GET http://cryprq.test/ HTTP/1.1\r\n" + HOST + NAVIGATES + b"\r\n")
        await stage.client.until(lambda: b"This program uses" in stage.client.sent)
        told.set()
        assert b"home" in await all_of(stage)


async def test_a_person_gets_it_when_the_exit_has_said_that_there_is_no_such_name() -> None:
    async with Stage(facts=facts) as stage:
        stage.refusals[OWN_PAGE] = StreamReason.NAME_NOT_FOUND
        stage.says(b"GET http://cryprq.test/ HTTP/1.1\r\n" + HOST + NAVIGATES + b"\r\n")
        answer = await all_of(stage)
        assert answer.startswith(b"HTTP/1.1 200 ") and b"home (5.75.10.2:4433)" in answer
        stage.says(b"HEAD http://CRYPRQ.test./ HTTP/1.1\r\n" + HOST + CURL + b"\r\n")
        assert b"X-Frame-Options: DENY" in await stage.client.gets_message_head()
        stage.says(b"GET http://cryprq.test/ HTTP/1.1\r\n" + HOST + CURL + b"\r\n")
        assert b"The world sees: 5.75.10.2" in await all_of(stage)
        assert stage.asked == [OWN_PAGE] * 3


async def test_the_page_comes_not_before_the_exits_answer() -> None:
    async with Stage(facts=facts) as stage:
        stage.says(b"GET http://cryprq.test/ HTTP/1.1\r\n" + HOST + NAVIGATES + b"\r\n")
        somebody = await stage.origin()  # where every name exists
        await all_of(stage)
        assert somebody.aborted and not somebody.sent


@pytest.mark.parametrize("fields", [b"", NAVIGATES + b"Origin: http://example.org\r\n"])
async def test_what_a_web_page_asks_for_is_refused_as_any_name_that_does_not_exist(fields: bytes) -> None:
    async with Stage(facts=facts) as stage:
        answers = []
        for host in ("cryprq.test", "abcdef.test"):
            stage.refusals[Destination(host, 80)] = StreamReason.NAME_NOT_FOUND
            stage.says(f"GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\n".encode() + fields + b"\r\n")
            answers.append((await stage.client.gets_message()).replace(host.encode(), b""))
        assert answers[0] == answers[1]
        assert answers[0].startswith(b"HTTP/1.1 502 ")
        assert b"frame-ancestors 'none'" in answers[0]


@pytest.mark.parametrize(
    "target", ["http://cryprq.test/a", "http://cryprq.test:81/", "http://a.cryprq.test/"]
)
async def test_there_is_one_page_alone(target: str) -> None:
    async with Stage(facts=facts) as stage:
        for destination in (OWN_PAGE, OWN_PAGE._replace(port=81), OWN_PAGE._replace(host="a.cryprq.test")):
            stage.refusals[destination] = StreamReason.NAME_NOT_FOUND
        stage.says(f"GET {target} HTTP/1.1\r\nHost: x\r\n".encode() + NAVIGATES + b"\r\n")
        assert (await stage.client.gets_message()).startswith(b"HTTP/1.1 502 ")


async def test_a_tunnel_to_the_name_is_refused() -> None:
    async with Stage(facts=facts) as stage:
        stage.refusals[OWN_PAGE] = StreamReason.NAME_NOT_FOUND
        stage.says(b"CONNECT cryprq.test:80 HTTP/1.1\r\nHost: cryprq.test:80\r\n" + CURL + b"\r\n")
        assert (await stage.client.gets_message()).startswith(b"HTTP/1.1 502 ")


# As the server of the page


async def test_at_the_page_itself() -> None:
    async with Stage(facts=facts, at_page=True) as stage:
        stage.refusals[OWN_PAGE] = StreamReason.NAME_NOT_FOUND
        stage.says(b"GET / HTTP/1.1\r\n" + HOST + NAVIGATES + b"\r\n")
        assert b"This program uses" in await all_of(stage)
        stage.says(b"GET / HTTP/1.1\r\nHost: cryprq.test:80\r\n" + CURL + b"\r\n")
        assert b"home" in await all_of(stage)


@pytest.mark.parametrize(
    "asked",
    [
        b"GET / HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /favicon.ico HTTP/1.1\r\n" + HOST + NAVIGATES + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: evil.example\r\n" + NAVIGATES + b"\r\n",
        b"GET http://example.org/ HTTP/1.1\r\nHost: example.org\r\n" + NAVIGATES + b"\r\n",
        b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + HOST + b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    ],
)
async def test_at_the_page_all_else_is_reset_when_the_exit_has_refused(asked: bytes) -> None:
    async with Stage(facts=facts, at_page=True) as stage:
        stage.refusals[OWN_PAGE] = StreamReason.NAME_NOT_FOUND
        stage.says(asked)
        await stage.ends()
        assert stage.asked == [OWN_PAGE] and not stage.client.sent
    assert stage.reset is StreamReason.CONNECTION_RESET


# In system-wide mode, where a name that does not exist is answered here and at once


async def test_where_the_name_was_resolved_here_nobody_is_waited_for() -> None:
    async with Stage(facts=facts, at_page=True, named=False) as stage:
        stage.says(b"GET / HTTP/1.1\r\n" + HOST + NAVIGATES + b"\r\n")
        assert b"Names: are resolved here" in await all_of(stage)
        stage.says(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
        await stage.ends()
        assert not stage.asked and not stage.client.sent
    assert stage.reset is StreamReason.CONNECTION_RESET


def test_a_pause_is_told() -> None:
    assert "Pause" not in written(FACTS)
    assert "Pause: new connections of --tun go past the exit, for 57 s more\n" in written(
        structs.replace(FACTS, paused=57)
    )
