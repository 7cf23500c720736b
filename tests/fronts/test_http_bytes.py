"""Bytes from the fuzzer's corpus through the HTTP proxy; and a proxy that passes on what was for it is found."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from cryprq_proxy.fronts import http_messages
from tests.support.http_bytes import play

CORPUS = sorted((Path(__file__).parents[1] / "fuzz/corpus/http").iterdir())


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_an_origin_gets_nothing_that_was_for_the_proxy(path: Path, loop: asyncio.AbstractEventLoop) -> None:
    play(path.read_bytes(), loop)


@pytest.mark.parametrize("name", ["password", "trailer"])
def test_a_password_that_reaches_an_origin_is_found(
    name: str, loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kept in ("_NOT_FORWARDED", "_NO_TRAILERS"):
        monkeypatch.setattr(http_messages, kept, getattr(http_messages, kept) - {b"proxy-authorization"})
    (path,) = [path for path in CORPUS if path.name == name]
    with pytest.raises(RuntimeError, match="a field that was for the proxy"):
        play(path.read_bytes(), loop)
