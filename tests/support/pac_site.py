"""A web site for a browser with a PAC file: it serves the file, is the target, and gets to know what the page found."""

from __future__ import annotations

import queue
from pathlib import Path
from typing import Any

from aiohttp import web

from cryprq_proxy.address import Destination
from cryprq_proxy.rules.engine import RuleSet
from cryprq_proxy.rules.pac.script import PAC_TYPE, pac
from tests.support.background import PATIENCE, Background
from tests.support.browser import started

MAPPED = ("*near.test*", "192.0.2.7", "*2001*db8*", "blocked.test", "listed.test", "else.test")

ASK = """<!doctype html><title>asking</title><script>
function open(url) {
  if (url.slice(0, 2) !== "ws") return fetch(url, {cache: "no-store"}).then(r => r.text()).catch(() =>
    fetch(url, {cache: "no-store", mode: "no-cors"}).then(() => "opaque"));
  return new Promise((done, failed) => {
    const socket = new WebSocket(url);
    socket.onmessage = event => { socket.close(); done(event.data); };
    socket.onerror = failed;
  });
}
fetch("/urls").then(r => r.json()).then(urls =>
  Promise.all(urls.map(url => open(url).then(text => [url, text], () => [url, ""])))
).then(found => fetch("/done", {method: "POST", body: JSON.stringify(Object.fromEntries(found))}));
</script>
"""


class Site:
    """Serves a PAC file and a page, is the target of requests, and gets to know what the page found."""

    def __init__(self, background: Background) -> None:
        self._background = background
        self.page = ""
        self.script = ""
        self.urls: list[Any] = []
        self.asked: list[str] = []
        self.results: queue.Queue[Any] = queue.Queue()
        self.port = background.run(self._start())

    async def _start(self) -> int:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_get("/", self._page)
        app.router.add_get("/proxy.pac", self._pac)
        app.router.add_get("/urls", self._urls)
        app.router.add_post("/done", self._done)
        app.router.add_get("/target", self._target)
        app.router.add_get("/ws", self._ws)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return int(self._runner.addresses[0][1])

    def close(self) -> None:
        self._background.run(self._runner.cleanup())

    async def _page(self, request: web.Request) -> web.Response:
        return web.Response(text=self.page, content_type="text/html")

    async def _pac(self, request: web.Request) -> web.Response:
        return web.Response(body=self.script.encode("ascii"), content_type=PAC_TYPE)

    async def _urls(self, request: web.Request) -> web.Response:
        return web.json_response(self.urls)

    async def _done(self, request: web.Request) -> web.Response:
        self.results.put(await request.json())
        return web.Response()

    async def _target(self, request: web.Request) -> web.Response:
        self.asked.append(request.host)
        return web.Response(text=f"here {request.host}", headers={"Access-Control-Allow-Origin": "*"})

    async def _ws(self, request: web.Request) -> web.WebSocketResponse:
        self.asked.append(request.host)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.send_str(f"here {request.host}")
        await socket.close()
        return socket


def browse(site: Site, directory: Path, rules: RuleSet, proxy: int, urls: list[str]) -> dict[str, str]:
    """What came of each URL in a browser that has the PAC file of `rules`: the answer, or "" for none."""
    site.page, site.urls = ASK, urls
    address = Destination("127.0.0.1", proxy)
    site.script = pac(rules, address, address)
    mapped = ", ".join(f"MAP {name} 127.0.0.1" for name in MAPPED)
    flags = (
        f"--proxy-pac-url=http://127.0.0.1:{site.port}/proxy.pac",
        f"--host-resolver-rules={mapped}, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    )
    with started(directory, *flags, f"http://127.0.0.1:{site.port}/"):
        found: dict[str, str] = site.results.get(timeout=2 * PATIENCE)
    assert found.keys() == set(urls)
    return found
