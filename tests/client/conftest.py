"""What several tests of the client begin with."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from cryprq_proxy.client.second_path import SecondPath
from tests.support.web_links import Place, place


@pytest.fixture
async def here() -> AsyncIterator[Place]:
    """An exit with both entrances; the clients that are made of it end with it."""
    async with place() as here:
        yield here


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A link of any age was of use."""
    monkeypatch.setattr("cryprq_proxy.client.link.STABLE_SECONDS", 0.0)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No second path is kept beside the one in use."""
    monkeypatch.setattr(SecondPath, "_wanted", False)
