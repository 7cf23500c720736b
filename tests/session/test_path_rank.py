"""Which path is chosen: the table of what goes before what."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import cast

import pytest

from cryprq_proxy.session.path import SessionPath
from cryprq_proxy.session.path_choice import choose

NONE = -1


@dataclass
class FakePath:
    number: int
    admitted: bool = True
    in_doubt: bool = False


def chosen(*paths: FakePath, preferred: int = NONE, current: FakePath | None = None) -> int | None:
    """The number of the chosen path, whatever the order in which they are looked at."""
    orders = itertools.permutations(cast("tuple[SessionPath, ...]", paths))
    [number] = {
        None if path is None else path.number
        for path in (choose(order, preferred, cast("SessionPath | None", current)) for order in orders)
    }
    return number


def test_without_a_path_there_is_no_choice() -> None:
    assert chosen() is None
    assert chosen(preferred=3) is None


def test_the_newest_is_taken_where_none_is_in_use() -> None:
    assert chosen(FakePath(0), FakePath(4), FakePath(2)) == 4


def test_the_one_in_use_stays_in_use() -> None:
    used = FakePath(2)
    assert chosen(FakePath(0), used, FakePath(4), current=used) == 2


def test_the_one_that_is_preferred_takes_its_place() -> None:
    used = FakePath(2)
    assert chosen(FakePath(0), used, FakePath(4), current=used, preferred=0) == 0
    assert chosen(FakePath(0), used, FakePath(4), current=used, preferred=7) == 2, "it is not there"


@pytest.mark.parametrize("preferred", [NONE, 2])
def test_one_in_doubt_comes_after_all_others(preferred: int) -> None:
    used = FakePath(2, in_doubt=True)
    assert chosen(used, FakePath(0), current=used, preferred=preferred) == 0
    assert chosen(used, FakePath(0, in_doubt=True), current=used, preferred=preferred) == 2


@pytest.mark.parametrize("preferred", [NONE, 4])
def test_one_that_waits_for_its_verdict_comes_last(preferred: int) -> None:
    joining = FakePath(4, admitted=False)
    assert chosen(FakePath(0, in_doubt=True), joining, preferred=preferred) == 0
    assert chosen(joining, preferred=preferred) == 4, "early frames are better than none"
