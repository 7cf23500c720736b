"""Blocklists as they are found in the wild: both formats, and everything that goes wrong in them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.errors import ConfigError
from tun.dns import blocklist as module
from tun.dns.blocklist import MAX_PROBLEMS, Blocklist, load
from tun.dns.names import from_text


def blocked(found: Blocklist, *names: str) -> list[bool]:
    return [found.blocks(from_text(name)) for name in names]


def listed(tmp_path: Path, text: str | bytes, **options: tuple[str, ...]) -> Blocklist:
    path = tmp_path / "list.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load([path], **options)


def test_hosts_lines_block_exactly_their_names(tmp_path: Path) -> None:
    found = listed(
        tmp_path,
        "# a list\n127.0.0.1 localhost\n::1 localhost ip6-loopback\n0.0.0.0 0.0.0.0\nff02::1 ip6-allnodes\n"
        "0.0.0.0 Ads.Example tracker.example # both\r\n::\tsix.example\n\n   \n",
    )
    assert found.problems == []
    assert len(found) == 3
    assert blocked(found, "ads.example", "tracker.example", "six.example") == [True] * 3
    assert blocked(found, "www.ads.example", "example", "localhost", "xads.example") == [False] * 4


def test_plain_domains_block_all_below_them(tmp_path: Path) -> None:
    found = listed(tmp_path, "ads.example\n.dot.example\n*.below.example\nfinal.example.\n")
    assert found.problems == []
    assert blocked(found, "ads.example", "a.b.ads.example", "dot.example", "a.dot.example") == [True] * 4
    assert blocked(found, "a.below.example", "a.b.below.example", "final.example") == [True] * 3
    assert blocked(found, "below.example", "example", "bads.example") == [False] * 3


def test_other_scripts_become_a_labels(tmp_path: Path) -> None:
    found = listed(tmp_path, "b\u00fccher.example\n*.Gr\u00fcn.example\n0.0.0.0 \u0440\u0444.example\n")
    assert found.problems == []
    assert blocked(found, "xn--bcher-kva.example", "x.xn--grn-ioa.example") == [True, True]
    assert found.blocks(from_text("\u0440\u0444.example"))


def test_a_mark_of_byte_order_and_a_missing_last_newline_do_not_matter(tmp_path: Path) -> None:
    found = listed(tmp_path, b"\xef\xbb\xbfone.example\ntwo.example")
    assert found.problems == []
    assert blocked(found, "one.example", "two.example") == [True, True]


def test_broken_lines_are_named_and_the_rest_counts(tmp_path: Path) -> None:
    lines = [
        "good.example",
        "||adblock.example^",
        "192.168.1.9 nas.example",
        "a..example",
        "x" * 64 + ".example",
        "1.2.3.4",
        b"\xff\xfe.example".decode("latin-1"),
        "a b c",
        "y" * 5000,
        "0.0.0.0 fine.example bad/name",
        "http://example/",
        "*.*.example",
        "better.example",
    ]
    raw = "\n".join(lines).encode("latin-1")
    found = listed(tmp_path, raw)
    assert [problem.line for problem in found.problems] == [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
    assert found.broken == 11
    assert str(found.problems[0]).endswith("list.txt, line 2: '||adblock.example^' is not a domain")
    assert "is followed by something" in found.problems[1].text
    assert found.problems[7].text == "the line is too long"
    assert blocked(found, "good.example", "fine.example", "better.example") == [True] * 3
    assert not found.blocks(from_text("nas.example"))


def test_only_some_broken_lines_are_described(tmp_path: Path) -> None:
    found = listed(tmp_path, "a b\n" * 1000)
    assert len(found.problems) == MAX_PROBLEMS
    assert found.broken == 1000


def test_single_names_and_exceptions(tmp_path: Path) -> None:
    found = listed(
        tmp_path,
        "0.0.0.0 good.ads.example\n",
        block=("ads.example", "*.x.example"),
        allow=("good.ads.example",),
    )
    assert blocked(found, "ads.example", "bad.ads.example", "y.x.example") == [True] * 3
    assert blocked(found, "good.ads.example", "very.good.ads.example", "x.example") == [False] * 3


def test_nothing_is_blocked_without_lists() -> None:
    assert not load().blocks(from_text("example.com"))


def test_what_a_person_must_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"none\.txt cannot be read: No such file"):
        load([tmp_path / "none.txt"])
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load([tmp_path])
    with pytest.raises(ConfigError, match="not a domain"):
        load(block=("a b",))
    monkeypatch.setattr(module, "MAX_NAMES", 3)
    with pytest.raises(ConfigError, match=r"more than 3 names at .*, line 4"):
        listed(tmp_path, "a.example\nb.example\nc.example\nd.example\n")


@given(st.binary(max_size=300))
def test_any_file_loads(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.txt"
    path.write_bytes(raw)
    found = load([path])
    assert found.broken >= len(found.problems)


def test_a_large_list_is_small_in_memory(tmp_path: Path) -> None:
    found = listed(tmp_path, "".join(f"0.0.0.0 host{n}.example\n" for n in range(20_000)))
    assert len(found) == 20_000
    assert found._exact._found.itemsize == 8
    assert blocked(found, "host0.example", "host19999.example", "host20000.example") == [True, True, False]
