"""Lists as they are found in the wild: all formats, and everything that goes wrong in them."""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.errors import ConfigError
from cryprq_proxy.rules import lists as module
from cryprq_proxy.rules.lists import MAX_LINE, MAX_PROBLEMS, ListedNames, load

WHERE = Path("list.txt")


def read(*texts: str | bytes, masks: tuple[int, ...] = (1, 2, 4)) -> ListedNames:
    """The names of some files, with a bit for each."""
    found = ListedNames()
    for source, text in enumerate(texts):
        raw = text if isinstance(text, bytes) else text.encode()
        found.read(BytesIO(raw), WHERE, source, lambda _: None)
    found.seal(masks[: len(texts)])
    return found


def held(found: ListedNames, *hosts: str) -> list[bool]:
    return [found.mask(host) != 0 for host in hosts]


def test_hosts_lines_hold_exactly_their_names() -> None:
    found = read(
        "# a list\n127.0.0.1 localhost\n::1 localhost ip6-loopback\n0.0.0.0 0.0.0.0\nff02::1 ip6-allnodes\n"
        "0.0.0.0 localhost\n0.0.0.0 Ads.Example tracker.example # both\r\n::\tsix.example\n\n   \n0 zero.example\n"
        "127.0.0.1\tone.example\n  0.0.0.0   two.example.  \n"
    )
    assert found.problems == []
    assert len(found) == 6
    assert held(found, "ads.example", "tracker.example", "six.example", "zero.example") == [True] * 4
    assert held(found, "one.example", "two.example") == [True] * 2
    assert held(found, "www.ads.example", "example", "localhost", "xads.example", "") == [False] * 5


def test_plain_domains_hold_all_below_them() -> None:
    found = read("ads.example\n.dot.example\n*.below.example\nfinal.example.\n top.example # why\n")
    assert found.problems == []
    assert held(found, "ads.example", "a.b.ads.example", "dot.example", "a.dot.example") == [True] * 4
    assert held(found, "a.below.example", "a.b.below.example", "final.example", "x.top.example") == [True] * 4
    assert held(found, "below.example", "example", "bads.example", "ads.example.com") == [False] * 4


def test_lines_of_filter_lists() -> None:
    found = read(
        "[Adblock Plus 2.0]\n! Title: a list\n!\n||Ads.example^\n||b\u00fccher.example^\n@@||ok.ads.example^\n"
        "||dot.example.^\n"
    )
    assert found.problems == []
    assert held(found, "ads.example", "a.ads.example", "x.xn--bcher-kva.example", "dot.example") == [True] * 4
    assert held(found, "ok.ads.example", "a.ok.ads.example", "example") == [False] * 3


@pytest.mark.parametrize(
    "line",
    [
        *(
            "||ads.example",
            "||ads.example^$third-party",
            "||ads.example^*",
            "|https://ads.example/",
            "/banner/*",
        ),
        *(
            "ads.example^",
            ".ads.example^",
            "*.ads.example^",
            "@@ads.example^",
            "@@||ads.example",
            "@@.ads.example",
        ),
        *(
            "ads.example##.banner",
            "##.banner.ads",
            "ads.example#@#.x",
            "0.0.0.0 ads.example^",
            "||ads.example^ x",
        ),
        *(
            "||*.ads.example^",
            "||.ads.example^",
            "||^",
            "@@||^",
            "||1.2.3.4^",
            "|||ads.example^",
            "@@@@||ads.example^",
        ),
    ],
)
def test_other_filters_are_broken_lines(line: str) -> None:
    """Half of a filter would hold names that it is not meant for."""
    found = read(f"{line}\n")
    assert found.broken == (0 if line.startswith("##") else 1)
    assert len(found) == 0


def test_exceptions_count_within_their_own_bits() -> None:
    found = read(
        "ads.example\n", "ads.example\n@@||ok.ads.example^\n", "x.example\n", masks=(0b001, 0b010, 0b011)
    )
    assert found.mask("ads.example") == 0b011
    assert found.mask("ok.ads.example") == 0b001
    assert found.mask("x.example") == 0b011
    both = read("ads.example\n", "@@||ok.ads.example^\n", masks=(0b11, 0b10))
    assert both.mask("ok.ads.example") == 0b01


def test_other_scripts_become_a_labels() -> None:
    found = read(
        "b\u00fccher.example\n*.Gr\u00fcn.example\n0.0.0.0 \u0440\u0444.example\n.\u00dcber.example\n"
    )
    assert found.problems == []
    assert held(found, "xn--bcher-kva.example", "x.xn--grn-ioa.example", "xn--p1ai.example") == [True] * 3
    assert held(found, "xn--ber-goa.example", "xn--grn-ioa.example") == [True, False]


def test_a_mark_of_byte_order_and_a_missing_last_newline_do_not_matter() -> None:
    assert held(read(b"\xef\xbb\xbfone.example\ntwo.example"), "one.example", "two.example") == [True, True]
    assert held(read(b"\xef\xbb\xbfone.example"), "one.example") == [True]
    assert held(read(b"a.b"), "a.b") == [True]
    assert len(read(b"")) == len(read(b"\xef\xbb\xbf")) == 0


def test_broken_lines_are_named_and_the_rest_counts() -> None:
    lines = [
        *(
            "good.example",
            "||adblock.example^$x",
            "192.168.1.9 nas.example",
            "a..example",
            "x" * 64 + ".example",
        ),
        *(
            "1.2.3.4",
            b"\xff\xfe.example".decode("latin-1"),
            "a b c",
            "y" * 5000,
            "0.0.0.0 fine.example bad/name",
        ),
        *("http://example/", "*.*.example", "a.0x1f", "\x1b[31m.example", "a.b." * 64, "better.example"),
    ]
    found = read("\n".join(lines).encode("latin-1"))
    assert [problem.line for problem in found.problems] == list(range(2, 16))
    assert found.broken == 14
    assert str(found.problems[0]) == "list.txt, line 2: '||adblock.example^$x' is not a domain"
    assert "is followed by something" in found.problems[1].text
    assert found.problems[7].text == "the line is too long"
    assert all(str(problem).isprintable() for problem in found.problems)
    assert held(found, "good.example", "fine.example", "better.example") == [True] * 3
    assert held(found, "nas.example") == [False]


@pytest.mark.parametrize("chunk", [1, 7, 100, 5000])
def test_where_a_part_of_the_file_ends_does_not_matter(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(module, "_CHUNK", chunk)
    found = read("one.example\n" + "z" * (3 * MAX_LINE) + "\r\ntwo.example\na b\n\nthree.example")
    assert [problem.line for problem in found.problems] == [2, 4]
    assert held(found, "one.example", "two.example", "three.example") == [True] * 3


def test_the_longest_line() -> None:
    names = " ".join(f"{number}.example" for number in range(1000))[: MAX_LINE - 8].rpartition(" ")[0]
    line = f"0.0.0.0 {names}".ljust(MAX_LINE)
    assert read(line).broken == 0
    assert read(f"{line} ").broken == 1


def test_only_some_broken_lines_are_described() -> None:
    found = read("a b\n" * 1000)
    assert len(found.problems) == MAX_PROBLEMS
    assert found.broken == 1000


def test_a_name_a_thousand_times_is_one_entry() -> None:
    found = read("ads.example\n||ads.example^\n" * 1000 + "0.0.0.0 ads.example\n")
    assert len(found) == 2
    assert held(found, "ads.example", "a.ads.example") == [True, True]


def test_what_a_person_must_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"the list .*none\.txt cannot be read: no such file"):
        load([tmp_path / "none.txt"], [1])
    with pytest.raises(ConfigError, match="cannot be read: is a directory"):
        load([tmp_path], [1])
    with pytest.raises(ConfigError, match="cannot be read: it is no regular file"):
        load([Path("/dev/zero")], [1])
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="cannot be read: it is no regular file"):
        load([tmp_path / "pipe"], [1])
    path = tmp_path / "list.txt"
    path.write_text("a.example\nb.example\nc.example\nd.example\n")
    monkeypatch.setattr(module, "MAX_NAMES", 3)
    with pytest.raises(ConfigError, match=r"more than 3 names at .*list.txt, line 4; use shorter"):
        load([path], [1])
    monkeypatch.setattr(module, "MAX_NAMES", 4)
    assert len(load([path], [1])) == 4
    monkeypatch.setattr(module, "MAX_FILE", 39)
    with pytest.raises(ConfigError, match="it has more than"):
        load([path], [1])
    monkeypatch.setattr(module, "MAX_FILES", 1)
    with pytest.raises(ConfigError, match="2 lists are named, and at most 1"):
        load([path, path], [1, 1])


def test_a_list_that_grows_while_it_is_read_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Comments add no name, so the bound on names never ends such a list."""
    growing = GrowingList(b"# without an end\n")
    monkeypatch.setattr(module, "_CHUNK", 64)
    monkeypatch.setattr(module, "MAX_FILE", 640)
    with pytest.raises(ConfigError, match="it has more than"):
        ListedNames().read(growing, WHERE, 0, lambda _: None)
    assert growing.told <= 640 + 64 + 3


class GrowingList(BytesIO):
    """Gets another line for each one that is read, up to a size that is no bound of the program's."""

    def __init__(self, line: bytes) -> None:
        super().__init__()
        self._line = line
        self.told = 0

    def read(self, size: int | None = -1, /) -> bytes:
        if self.told > 1 << 20:
            return b""
        assert size is not None and size > 0
        data = (self._line * (size // len(self._line) + 1))[:size]
        self.told += len(data)
        return data


def test_progress_ends_with_all_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK", 64)
    paths = [tmp_path / "one.txt", tmp_path / "two.txt"]
    for path in paths:
        path.write_text("".join(f"host{number}.example\n" for number in range(50)))
    total = sum(path.stat().st_size for path in paths)
    seen: list[tuple[int, int]] = []
    load(paths, [1, 1], lambda done, all_: seen.append((done, all_)))
    assert seen == sorted(seen)
    assert len(seen) > 20
    assert seen[-1] == (total, total)


def test_a_large_list_is_small_in_memory() -> None:
    found = read("".join(f"0.0.0.0 host{n}.example\n" for n in range(20_000)))
    assert len(found) == 20_000
    sizes = [len(part) * part.itemsize for part in (found._keys, found._sources, found._starts)]
    assert sum(sizes) / len(found) < 18.1
    assert held(found, "host0.example", "host19999.example", "host20000.example") == [True, True, False]
    assert all(held(found, *(f"host{n}.example" for n in range(20_000))))


# --- any file ---


@given(st.binary(max_size=300))
def test_any_file_loads(raw: bytes) -> None:
    found = read(raw)
    assert found.broken >= len(found.problems)
    for problem in found.problems:
        assert str(problem).isprintable()


WORDS = st.sampled_from(
    [
        *(
            "ads.example",
            "a.ads.example",
            "ADS.example",
            "ads.example.",
            "localhost",
            "1.2.3.4",
            "x" * 64,
            "a..b",
        ),
        *(
            "com",
            "0.0.0.0",
            "127.0.0.1",
            "::",
            "::1",
            "0",
            "ff02::1",
            "*.ads.example",
            ".ads.example",
            "*.*",
            "",
        ),
        *(
            "||ads.example^",
            "@@||ads.example^",
            "||ads.example",
            "||com^$x",
            "!",
            "#",
            "[Adblock]",
            "b\u00fcch.example",
        ),
        *(
            "\ufeff",
            "\t",
            "^",
            "||",
            "@@",
            "y." * 126 + "z",
            "y." * 127 + "z",
            "a.0x",
            "a.0xf",
            "a.0xg",
            "a_b-c.d",
        ),
    ]
)


@given(st.lists(st.lists(WORDS, max_size=4).map(" ".join), max_size=6), st.sampled_from(["\n", "\r\n"]))
def test_the_short_way_for_common_lines_says_the_same(lines: list[str], end: str) -> None:
    raw = end.join(lines).encode()
    fast = read(raw)

    class Never:
        @staticmethod
        def fullmatch(_: bytes) -> None:
            return None

    with patch.object(module, "_COMMON", Never):
        slow = read(raw)
    assert (fast._keys, fast.problems, fast.broken) == (slow._keys, slow.problems, slow.broken)
