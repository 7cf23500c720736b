"""The last warnings and errors: what one entry is, and how many are kept."""

from __future__ import annotations

import logging

from cryprq_proxy.process.recent_errors import MAX_ENTRIES, MAX_TEXT, RecentErrors

LOG = logging.getLogger("test.recent_errors")


def test_an_entry_is_one_short_line() -> None:
    with RecentErrors() as recent:
        LOG.warning("a\x1b[31m\n%s", "b" * 2 * MAX_TEXT)
        try:
            raise ValueError("bad\x00value")
        except ValueError:
            LOG.exception("it failed")
    newest, oldest = recent.status()
    assert (newest.level, oldest.level) == ("error", "warning")
    assert "bad" in newest.text and newest.text.startswith("it failed: ")
    for entry in (newest, oldest):
        assert entry.text.isprintable() and len(entry.text) <= MAX_TEXT


def test_a_repeated_line_is_counted_and_displaces_no_other() -> None:
    with RecentErrors() as recent:
        LOG.warning("first")
        for _ in range(2 * MAX_ENTRIES):
            LOG.warning("again")
    assert [(entry.text, entry.count) for entry in recent.status()] == [
        ("again", 2 * MAX_ENTRIES),
        ("first", 1),
    ]
    assert recent.totals() == {"warning": 2 * MAX_ENTRIES + 1, "error": 0}


def test_the_newest_are_kept() -> None:
    with RecentErrors() as recent:
        for number in range(MAX_ENTRIES + 5):
            LOG.error("number %d", number)
    LOG.error("not heard any more")
    entries = recent.status()
    assert len(entries) == MAX_ENTRIES
    assert entries[0].text == f"number {MAX_ENTRIES + 4}"
