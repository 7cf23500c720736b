"""Headless Chromium driven over the DevTools protocol, and only as far as the tests of the dashboard need it."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Literal, Self

import aiohttp

from tests.support.browser import started

FLAGS = ("--mute-audio", "--hide-scrollbars", "--remote-debugging-port=0")
PATIENCE = 30.0


class Navigated(Exception):
    """The page has gone to another address while it was asked something."""


class Tab:
    """One page. `console` collects what it wrote of errors and warnings, `log` what the browser said of it."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._number = 0
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._reader = asyncio.get_running_loop().create_task(self._read())
        self.console: list[str] = []
        self.log: list[str] = []

    async def _read(self) -> None:
        async for message in self._socket:
            event = json.loads(message.data)
            parameters = event.get("params", {})
            if "id" in event:
                future = self._answers.pop(event["id"])
                if not future.done():
                    future.set_result(event)
            elif event["method"] == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning"):
                self.console.append(str([each.get("value") for each in parameters["args"]]))
            elif event["method"] == "Runtime.exceptionThrown":
                self.console.append(json.dumps(parameters["exceptionDetails"])[:500])
            elif event["method"] == "Log.entryAdded":
                self.log.append(parameters["entry"]["text"])

    async def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        answer = self._answers[self._number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        async with asyncio.timeout(PATIENCE):
            result = await answer
        if "navigated" in str(result.get("error")):
            raise Navigated
        assert "error" not in result, (method, result)
        return dict(result["result"])

    async def begin(self) -> Self:
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.send(f"{domain}.enable")
        return self

    async def look(
        self,
        scheme: Literal["light", "dark"],
        width: int,
        height: int,
        *,
        scale: float = 1,
        reduced: bool = True,
    ) -> None:
        """The colours that the user prefers, and the size of the window."""
        await self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=scale, mobile=width < 500,
        )  # fmt: skip
        motion = "reduce" if reduced else "no-preference"
        await self.send(
            "Emulation.setEmulatedMedia",
            features=[
                {"name": "prefers-color-scheme", "value": scheme}, {"name": "prefers-reduced-motion", "value": motion}
            ],
        )  # fmt: skip

    async def open(self, url: str) -> None:
        await self.send("Page.navigate", url=url)

    async def run(self, script: str) -> Any:
        """The value of an expression; promises are awaited."""
        answer = await self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    async def until(self, condition: str) -> None:
        """Waits until the expression is truthy, also over the loading of another page."""
        looking = f"(() => {{ try {{ return Boolean({condition}); }} catch {{ return false; }} }})()"
        try:
            async with asyncio.timeout(PATIENCE):
                while True:
                    with suppress(Navigated):
                        if await self.run(looking):
                            return
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"waited in vain for: {condition}") from None

    async def picture(self, *, whole: bool = False) -> bytes:
        """A PNG of the window, or of the whole page."""
        answer = await self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        return base64.b64decode(answer["data"])

    async def press(self, key: str, code: int) -> None:
        for kind in ("rawKeyDown", "keyUp"):
            await self.send(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code
            )

    async def close(self) -> None:
        await self._socket.close()
        self._reader.cancel()
        await asyncio.wait([self._reader])


@asynccontextmanager
async def chromium(directory: Path, *flags: str, proxy: str | None = None) -> AsyncIterator[Browser]:
    """A browser with a profile of its own, which asks the `proxy`, a URL, ended with all its helpers."""
    proxied = "--no-proxy-server" if proxy is None else f"--proxy-server={proxy}"
    with started(directory, *FLAGS, proxied, *flags, "about:blank") as process:
        port = await _port(directory / "profile" / "DevToolsActivePort", process)
        async with aiohttp.ClientSession() as http:
            yield Browser(http, port)


async def _port(file: Path, process: subprocess.Popen[str]) -> int:
    async with asyncio.timeout(PATIENCE):
        while True:
            assert process.poll() is None, "the browser ended by itself"
            with suppress(FileNotFoundError, ValueError, IndexError):
                return int(file.read_text().splitlines()[0])
            await asyncio.sleep(0.02)


class Browser:
    def __init__(self, http: aiohttp.ClientSession, port: int) -> None:
        self._http = http
        self._port = port

    @asynccontextmanager
    async def tab(self) -> AsyncIterator[Tab]:
        async with self._http.put(f"http://127.0.0.1:{self._port}/json/new?about:blank") as answer:
            found: dict[str, Any] = await answer.json()
        async with self._http.ws_connect(found["webSocketDebuggerUrl"], max_msg_size=64 << 20) as socket:
            tab = Tab(socket)
            try:
                yield await tab.begin()
            finally:
                await tab.close()


def each_of(value: Any) -> Sequence[Any]:
    """A list that a page gave back."""
    assert isinstance(value, list)
    return value
