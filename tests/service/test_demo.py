"""The demo in this process: what it says, that bytes go through it, and how it ends. tests/e2e has it as a process."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from cryprq_proxy.errors import ConfigError, CryprqError
from cryprq_proxy.process.garbage import COLLECTOR
from cryprq_proxy.process.lifecycle import Stop
from cryprq_proxy.service import demo
from cryprq_proxy.service.demo import run_demo
from tests.support.background import PATIENCE
from tests.support.processes import echo_server

HELLO = b"through it all"


@pytest.fixture
def target() -> Iterator[int]:
    with echo_server() as port:
        yield port


@pytest.fixture(autouse=True)
def collector(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process has objects of other tests, which are not to be frozen."""
    monkeypatch.setattr(COLLECTOR, "start", lambda: None)


@contextlib.asynccontextmanager
async def running(listen: str | None, said: list[str]) -> AsyncIterator[int]:
    """The port of a demo that has said all it says. It has ended in good order at the end."""
    ready, stop = asyncio.Event(), Stop()

    def say(line: str) -> None:
        said.append(line)
        if line.startswith("Ctrl-C"):
            ready.set()

    task = asyncio.create_task(run_demo(listen, say, stop))
    waiting = asyncio.create_task(ready.wait())
    async with asyncio.timeout(PATIENCE):
        await asyncio.wait((task, waiting), return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if task.done():
            await task
        found = re.search(r"curl -x socks5h://127\.0\.0\.1:(\d+) https://", "\n".join(said))
        assert found is not None
        yield int(found[1])
        stop.asked.set()
        await task


async def through(port: int, target: int) -> bytes:
    """What the echo server sends back over the proxy on `port` (RFC 1928)."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(b"\5\1\0\5\1\0\1" + socket.inet_aton("127.0.0.1") + target.to_bytes(2))
        greeting = await reader.readexactly(2 + 10)
        assert greeting[:4] == b"\5\0\5\0"
        writer.write(HELLO)
        return await reader.readexactly(len(HELLO))
    finally:
        writer.close()


async def test_what_it_prints_is_what_works(target: int, own_directories: Path) -> None:
    said: list[str] = []
    async with running("127.0.0.1:0", said) as port:
        assert await through(port, target) == HELLO
    assert said[-2:] == [f"  curl -x socks5h://127.0.0.1:{port} http://cryprq.test/", "Ctrl-C ends the demo."]
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)
    assert [path for path in own_directories.rglob("*") if path.is_file()] == []


async def test_a_free_port_where_the_usual_one_is_taken(target: int) -> None:
    said: list[str] = []
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # taken by another one already: as good
            stack.enter_context(socket.create_server(("127.0.0.1", 1080)))
        async with running(None, said) as port:
            assert port != 1080
            assert await through(port, target) == HELLO
    assert said[0] == "127.0.0.1:1080 is in use by another program, so the demo takes a free port."


async def test_a_port_that_was_asked_for_and_is_taken_is_one_sentence(target: int) -> None:
    with pytest.raises(CryprqError, match=rf"127\.0\.0\.1:{target}.* in use") as refused:
        async with running(f"127.0.0.1:{target}", []):
            pass
    assert "\n" not in str(refused.value)


async def test_it_ends_with_its_listener_when_the_link_cannot_be_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def fails() -> None:
        raise ConfigError("the link is lost for good")

    monkeypatch.setattr(demo, "keep_up", lambda exits: asyncio.ensure_future(fails()))
    said: list[str] = []
    with pytest.raises(ConfigError, match="lost for good"):
        await run_demo("127.0.0.1:0", said.append, Stop())
    found = re.search(r"socks5h://127\.0\.0\.1:(\d+) ", "\n".join(said))
    assert found is not None
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", int(found[1]))
