"""All peers of an exit, page by page from whatever answers at the control socket."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cryprq_proxy.errors import CryprqError
from cryprq_proxy.process import peers_pages
from cryprq_proxy.process.peers_pages import MAX_PAGES, PEERS, query_peers

SOCKET = Path("exit.sock")


def answering(monkeypatch: pytest.MonkeyPatch, *pages: dict[str, Any]) -> list[str]:
    """Asked for page after page, the exit answers with these, and then with the last one again. Returns with what it
    was asked."""
    asked: list[str] = []

    def query(path: Path, command: str, *, argument: str) -> dict[str, Any]:
        assert (path, command) == (SOCKET, PEERS)
        asked.append(argument)
        return pages[min(len(asked), len(pages)) - 1]

    monkeypatch.setattr(peers_pages, "query", query)
    return asked


def test_each_page_says_where_the_next_one_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answering(monkeypatch, {"peers": [{"name": "a"}], "next": 1}, {"peers": [{"name": "b"}]})
    assert [peer.name for peer in query_peers(SOCKET)] == ["a", "b"]
    assert asked == ["0", "1"]


def test_pages_without_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exit of another user may answer anything to root."""
    asked = answering(monkeypatch, {"next": 1})
    with pytest.raises(CryprqError, match="tells of more peers than a list holds"):
        list(query_peers(SOCKET))
    assert len(asked) == MAX_PAGES


def test_an_answer_in_another_form(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, {"peers": 1})
    with pytest.raises(CryprqError, match="has another version, restart it"):
        list(query_peers(SOCKET))
