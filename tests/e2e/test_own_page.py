"""http://cryprq.test/ through the running program: curl and a browser see it, a page of the web cannot find it out."""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.support.applications import Curl
from tests.support.browser import NOT_INSTALLED, find
from tests.support.devtools import Browser, Tab, chromium
from tests.support.programs import Client, Exit, World

URL = "http://cryprq.test/"


@pytest.mark.parametrize("scheme", ["socks5h", "socks4a", "http"])
def test_curl(scheme: str, pair: tuple[Exit, Client], curl: Curl) -> None:
    exit, client = pair
    said = curl.get("-x", f"{scheme}://127.0.0.1:{client.port}", URL).decode()
    assert said.startswith("This program uses cryprq-proxy.\n")
    assert f"127.0.0.1:{exit.port}" in said and "Names: are resolved at the exit" in said
    # A web page's request, as it has no field that only a person's has.
    failed = curl.fails(
        {"http": 22}.get(scheme, 56),
        "-f",
        "-A",
        "Mozilla/5.0",
        "-x",
        f"{scheme}://127.0.0.1:{client.port}",
        URL,
    )
    assert "cryprq-proxy" not in failed


def test_check(pair: tuple[Exit, Client], shared_world: World) -> None:
    """The exit of these tests knows no name but its own, which is no failure of its resolver."""
    exit, client = pair
    command = shared_world.command("check", "--config", str(client.control.with_suffix(".toml")))
    ran = subprocess.run(command, capture_output=True, text=True, env=shared_world.environment, timeout=60)
    assert ran.returncode == 0 and ran.stderr == ""
    assert f"127.0.0.1:{exit.port}" in ran.stdout and "resolver knows no name of the Internet" in ran.stdout


PROBES = {
    "fetch": "fetch(URL).then(() => 'answered', (error) => String(error))",
    "opaque fetch": "fetch(URL, {mode: 'no-cors'}).then(() => 'answered', (error) => String(error))",
    "fetch as a program": """fetch(URL, {mode: "no-cors", headers: {"User-Agent": "curl/8", Accept: "text/html"}})
        .then(() => 'answered', (error) => String(error))""",
    "fetch with a field": """fetch(URL, {headers: {"Upgrade-Insecure-Requests": "1"}})
        .then(() => 'answered', (error) => String(error))""",
    "HEAD": "fetch(URL, {method: 'HEAD', mode: 'no-cors'}).then(() => 'answered', (error) => String(error))",
    "XMLHttpRequest": """new Promise((on) => {
        const asked = new XMLHttpRequest();
        asked.onloadend = () => on([asked.status, asked.responseText, asked.getAllResponseHeaders()]);
        asked.open("GET", URL);
        asked.send();
    })""",
    "EventSource": "new Promise((on) => { new EventSource(URL).onerror = () => on('error'); })",
    "WebSocket": """new Promise((on) => {
        new WebSocket(URL.replace("http", "ws")).onclose = (event) => on([event.code, event.reason, event.wasClean]);
    })""",
    **{
        tag: f"element({json.dumps(tag)}, {json.dumps(field)})"
        for tag, field in {
            "img": "src",
            "script": "src",
            "iframe": "src",
            "object": "data",
            "embed": "src",
            "video": "src",
        }.items()
    },
    "stylesheet": "element('link', 'href', {rel: 'stylesheet'})",
    "prefetch": "element('link', 'href', {rel: 'prefetch'})",
    "preload": "element('link', 'href', {rel: 'preload', as: 'image'})",
    "form in a frame": """new Promise((on) => {
        const frame = document.createElement("iframe");
        frame.name = "target" + Math.random();
        document.body.append(frame);
        const form = document.createElement("form");
        Object.assign(form, {action: URL, target: frame.name, method: "GET"});
        document.body.append(form);
        frame.onload = () => on(looked(frame.contentWindow));
        form.submit();
    })""",
    "another window": """new Promise((on) => {
        const opened = window.open(URL);
        const look = () => {
            try { if (opened.location.href) setTimeout(look, 5); } catch { on(looked(opened)); opened.close(); }
        };
        look();
    })""",
    "resource timing": """performance.getEntriesByType("resource").filter((entry) => entry.name === URL)
        .map((entry) => entry.toJSON()).map((entry) => Object.entries(entry)
            .filter(([name, value]) => !(name.endsWith("Time") || name.endsWith("Start") || name.endsWith("End")
                || name === "duration" || name === "name")).join()).sort()""",
}
"""What a page can learn of an address, in values that do not tell how long it took."""

HELPERS = """
const looked = (other) => {
    const seen = [other.length, other.closed];
    for (const name of ["document", "origin", "name"])
        try { seen.push(String(other[name])); } catch (error) { seen.push(error.name); }
    return seen;
};
const element = (tag, field, more) => new Promise((on) => {
    const made = document.createElement(tag);
    made.onload = () => on(["load", tag === "iframe" && looked(made.contentWindow), made.offsetWidth]);
    made.onerror = () => on(["error", made.offsetWidth]);
    Object.assign(made, more, {[field]: URL});
    document.body.append(made);
});
"""


@pytest.fixture
async def site() -> AsyncIterator[str]:
    """A hostile page in plain HTTP: one in HTTPS can frame and ask for less."""

    async def page(_: web.Request) -> web.Response:
        return web.Response(text="<!doctype html><title>hostile</title><body>", content_type="text/html")

    application = web.Application()
    application.add_routes([web.get("/", page)])
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://site.test:{runner.addresses[0][1]}/"
    await runner.cleanup()


async def probed(tab: Tab, url: str) -> dict[str, Any]:
    found = {}
    for name, probe in PROBES.items():
        script = f"(() => {{ const URL = {json.dumps(url)}; {HELPERS} return {probe}; }})()"
        nothing = "new Promise((on) => setTimeout(() => on('nothing'), 3000))"
        found[name] = await tab.run(f"Promise.race([{script}, {nothing}])")
    return found


@pytest.mark.parametrize("scheme", ["socks5", "http"])
async def test_a_browser(scheme: str, pair: tuple[Exit, Client], site: str, tmp_path: Path) -> None:
    if find() is None:
        pytest.skip(NOT_INSTALLED)
    proxy = f"{scheme}://127.0.0.1:{pair[1].port}"
    async with chromium(tmp_path, "--disable-popup-blocking", proxy=proxy) as browser:
        await see(browser)
        async with browser.tab() as tab:
            await tab.open(site)
            await tab.until("document.title === 'hostile' && document.body")
            seen = await probed(tab, URL)
            assert seen == await probed(tab, "http://abcdef.test/")
            assert "answered" not in seen.values()


async def see(browser: Browser) -> None:
    """A person opens it."""
    async with browser.tab() as tab:
        await tab.open(URL)
        await tab.until("document.querySelectorAll('dd').length === 5")
        assert await tab.run("document.querySelector('h1').textContent") == "This browser uses cryprq-proxy."
        assert await tab.run("getComputedStyle(document.querySelector('dl')).display") == "grid", (
            "it has no style"
        )
        assert tab.log == [] and tab.console == []
