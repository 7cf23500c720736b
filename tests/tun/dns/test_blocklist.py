"""The blocklist of the forwarder: files and single names as one, asked by wire form.

The formats of files are tested in test_rules_lists.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from cryprq_proxy.errors import ConfigError
from cryprq_proxy.rules import lists
from cryprq_proxy.rules.lists import ListedNames
from tun.dns.blocklist import blocks, load
from tun.dns.names import from_text, to_host


def blocked(found: ListedNames, *names: str) -> list[bool]:
    return [blocks(found, from_text(name)) for name in names]


def listed(tmp_path: Path, *texts: str, **options: tuple[str, ...]) -> ListedNames:
    paths = [tmp_path / f"list{number}.txt" for number in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    return load(paths, **options)


def test_all_files_are_one_list(tmp_path: Path) -> None:
    found = listed(
        tmp_path,
        "0.0.0.0 ads.example\na b\n",
        "tracker.example\n",
        "||net.example^\n@@||ok.tracker.example^\n",
    )
    assert blocked(found, "ads.example", "a.tracker.example", "a.net.example") == [True] * 3
    assert blocked(found, "a.ads.example", "ok.tracker.example", "example") == [False] * 3
    assert (len(found), found.broken) == (4, 1)
    assert [problem.path.name for problem in found.problems] == ["list0.txt"]


def test_single_names_and_exceptions(tmp_path: Path) -> None:
    found = listed(
        tmp_path,
        "0.0.0.0 good.ads.example\n",
        block=("ads.example", "*.x.example", ".B\u00fccher.example"),
        allow=("good.ads.example", "*.ok.x.example"),
    )
    assert (
        blocked(found, "ads.example", "bad.ads.example", "y.x.example", "b\u00fccher.example") == [True] * 4
    )
    assert (
        blocked(found, "good.ads.example", "very.good.ads.example", "x.example", "ok.x.example")
        == [False] * 4
    )


def test_nothing_is_blocked_without_lists() -> None:
    assert not blocks(load(), from_text("example.com"))


def test_odd_labels_are_themselves_no_entry_and_hide_nothing_above_them() -> None:
    found = load(block=("ads.example",))
    assert blocks(found, b"\3a!b\3ads\7example\0")
    assert blocks(found, b"\3a.b\3ads\7example\0")
    assert not blocks(found, b"\x0bads.example\0")
    assert not blocks(found, b"\0")
    assert to_host(b"\3a.b\2\xff\x80\3ads\0") == "a?b.??.ads"


def test_what_a_person_must_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"none\.txt cannot be read: no such file"):
        load([tmp_path / "none.txt"])
    with pytest.raises(ConfigError, match="'a b' is not a domain; write it like"):
        load(block=("a b",))
    with pytest.raises(ConfigError, match="not a domain"):
        load(allow=("ads.example/x",))
    path = tmp_path / "list.txt"
    path.write_text("a.example\nb.example\nc.example\n")
    monkeypatch.setattr(lists, "MAX_NAMES", 2)
    with pytest.raises(ConfigError, match=r"more than 2 names at .*list\.txt, line 3"):
        load([path])
