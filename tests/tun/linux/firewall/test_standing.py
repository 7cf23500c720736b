"""Whether a table stands as it was written, by what `nft -j` lists."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, Self

import pytest

from cryprq_proxy.base.netlink import NETFILTER
from tun.linux.firewall.nft import UnreadableAnswer
from tun.linux.firewall.standing import Standing, generation

GONE = "the table inet cryprq was removed"
CHANGED = "the table inet cryprq was changed"


def listed(
    *, packets: int = 0, handle: int = 1, verdict: str = "drop", left: int = 5
) -> list[dict[str, Any]]:
    return [
        {"table": {"family": "inet", "name": "cryprq", "handle": handle}},
        {"counter": {"name": "dns", "packets": packets, "bytes": packets}},
        {"set": {"name": "open", "flags": ["timeout"], "elem": [{"elem": {"val": 1, "expires": left}}]}},
        {"set": {"name": "lan", "flags": ["interval"], "elem": ["10.0.0.0/8"]}},
        {
            "rule": {
                "handle": handle,
                "expr": [{"counter": {"packets": packets, "bytes": 0}}, {verdict: None}],
            }
        },
    ]


class Kernel:
    def __init__(self) -> None:
        self.listed: list[dict[str, Any]] | None = listed()
        self.generation: int | None = 7
        self.asked = 0
        self.unreadable = False

    def ask(self, *command: str) -> list[dict[str, Any]] | None:
        assert command == ("list", "table", "inet", "cryprq")
        self.asked += 1
        if self.unreadable:
            raise UnreadableAnswer("no JSON")
        return self.listed


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
def standing(kernel: Kernel) -> Standing:
    standing = Standing("cryprq", kernel.ask, lambda: kernel.generation)
    standing.written()
    return standing


def test_what_changes_by_itself_does_not_count(kernel: Kernel, standing: Standing) -> None:
    kernel.listed = listed(packets=9, handle=4, left=2)
    assert standing.look() == ""


@pytest.mark.parametrize(("now", "found"), [(None, GONE), (listed(verdict="accept"), CHANGED), ([], CHANGED)])
def test_what_others_did_is_found_until_it_is_written_again(
    kernel: Kernel, standing: Standing, now: list[dict[str, Any]] | None, found: str
) -> None:
    assert standing.look() == ""
    kernel.listed, kernel.generation = now, 8
    assert standing.look() == found
    assert standing.look() == found
    kernel.listed = listed()
    standing.written()
    assert standing.look() == ""


def test_what_nft_cannot_list_was_changed_until_it_is_written_again(
    kernel: Kernel, standing: Standing
) -> None:
    """As a table with flags: a dormant one filters nothing."""
    kernel.unreadable, kernel.generation = True, 8
    assert standing.look() == f"{CHANGED}, and nft cannot list it"
    # Changed again right after it was written.
    standing.written()
    assert standing.look() == f"{CHANGED}, and nft cannot list it"
    kernel.unreadable = False
    assert standing.look() == CHANGED
    standing.written()
    assert standing.look() == ""


def test_the_table_is_listed_only_after_a_change(kernel: Kernel, standing: Standing) -> None:
    for _ in range(3):
        assert standing.look() == ""
    assert kernel.asked == 2
    kernel.generation = 8
    assert standing.look() == ""
    assert kernel.asked == 3


def test_a_kernel_that_tells_no_generation_is_asked_each_time(kernel: Kernel, standing: Standing) -> None:
    kernel.generation = None
    assert standing.look() == ""
    kernel.listed = None
    assert standing.look() == GONE


class Netlink:
    """A netlink socket with one answer, or none."""

    def __init__(self, answer: tuple[int, bytes] | OSError | None) -> None:
        self._answer = answer

    def __call__(self, protocol: int) -> Self:
        assert protocol == NETFILTER
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def ask(self, kind: int, flags: int, body: bytes) -> Iterator[tuple[int, bytes]]:
        if isinstance(self._answer, OSError):
            raise self._answer
        if self._answer is not None:
            yield self._answer


def answer(
    kind: int = 10 << 8 | 15, attribute: int = 1, number: bytes = (77).to_bytes(4)
) -> tuple[int, bytes]:
    """NFT_MSG_NEWGEN with the generation 77 (linux/netfilter/nf_tables.h)."""
    return kind, bytes(4) + struct.pack("=HH", 4 + len(number), attribute) + number


@pytest.mark.parametrize(
    ("said", "number"),
    [
        (answer(), 77),
        (answer(kind=2), None),
        (answer(attribute=2), None),
        (answer(number=b"M"), None),
        ((10 << 8 | 15, b"short"), None),
        (None, None),
        (PermissionError(), None),
        (TimeoutError(), None),
    ],
)
def test_the_generation_is_a_number_or_the_kernel_does_not_tell(
    said: tuple[int, bytes] | OSError | None, number: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tun.linux.firewall.standing.NetlinkSocket", Netlink(said))
    assert generation() == number
