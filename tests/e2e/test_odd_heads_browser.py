"""Odd heads of responses in real Chromium: what it shows of a server, it shows of it through the proxy.

The PAC file sends one name past the proxy and another one to it; both are the same server.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from cryprq_proxy.rules.engine import load_rules
from cryprq_proxy.rules.syntax import Rule, RuleAction, Verdict
from tests.support.background import Background
from tests.support.odd_heads import BODY, LISTED, OTHERS
from tests.support.pac_site import Site, browse
from tests.support.programs import Client

CASES = {**LISTED, **OTHERS}
NAMES = list(CASES)


class OddOrigin:
    """Answers a request for /N with the response of number N, and closes."""

    def __init__(self, background: Background) -> None:
        self._background = background
        self.port = background.run(self._start())

    async def _start(self) -> int:
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            number = int(head.split(b" ")[1].strip(b"/"))
            writer.write(CASES[NAMES[number]])
            await writer.drain()
            writer.write_eof()
            # The client ends first, so that no reset overtakes the body.
            await reader.read()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _stop(self) -> None:
        self._server.close()

    def close(self) -> None:
        self._background.run(self._stop())


def test_what_a_browser_shows_directly_it_shows_through_the_proxy(
    site: Site, client: Client, background: Background, tmp_path: Path
) -> None:
    origin = OddOrigin(background)
    direct = Rule(action=RuleAction(Verdict.DIRECT), domains=(".near.test",))
    rules = load_rules([direct], RuleAction(Verdict.TUNNEL))
    urls = {
        host: [f"http://{host}:{origin.port}/{number}" for number in range(len(NAMES))]
        for host in ("near.test", "site.test")
    }
    try:
        found = browse(site, tmp_path, rules, client.port, [*urls["near.test"], *urls["site.test"]])
    finally:
        origin.close()
    shown = {host: {name: found[url] for name, url in zip(NAMES, urls[host], strict=True)} for host in urls}
    near, proxied = shown["near.test"], shown["site.test"]
    # An answer of HTTP/0.9, as which Chromium takes ICY, has no field that lets the page read it.
    assert {name for name in LISTED if near[name] not in (BODY.decode(), "opaque")} == set()
    assert {name for name in LISTED if proxied[name] != BODY.decode()} == set()
    lost = {name: (near[name], proxied[name]) for name in NAMES if near[name] and not proxied[name]}
    assert lost == {}
    other = {
        name: (near[name], proxied[name])
        for name in NAMES
        if near[name] not in ("", "opaque") and proxied[name] != near[name]
    }
    assert other == {}
