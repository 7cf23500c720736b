"""Frames as they are written, byte by byte."""

from __future__ import annotations

import pytest

from cryprq_proxy.session import wire
from cryprq_proxy.session.wire import Kind
from tests.support.frames import WORKED, Worked


def test_every_kind_is_here() -> None:
    assert {worked.decoded[0] for worked in WORKED} == set(Kind)


def test_the_plain_numbers_are_those_of_the_kinds() -> None:
    assert {kind.name: getattr(wire, kind.name) for kind in Kind} == {kind.name: int(kind) for kind in Kind}


def test_reliable_kinds_are_told_by_their_number() -> None:
    assert {kind.name for kind in Kind if kind < wire.RELIABLE} == {
        *("OPEN", "OPENED", "REFUSED", "DATA", "RESET", "WINDOW", "STREAMS"),
        *("REKEY", "REKEY_ANSWER", "REKEY_PLEASE", "LANE", "NETWORK", "TAKEN", "GOAWAY", "PREFER", "ABANDON"),
        "FIN",
    }


@pytest.mark.parametrize("worked", WORKED, ids=[worked.name for worked in WORKED])
def test_the_worked_bytes(worked: Worked) -> None:
    assert worked.encoded == bytes.fromhex(worked.shown)
    assert worked.name.partition(",")[0] == Kind(worked.decoded[0]).name
