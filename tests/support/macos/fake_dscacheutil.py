"""dscacheutil(1), as far as its cache of names is emptied."""

from __future__ import annotations

from collections.abc import Sequence

from tests.support.macos.machine import Answer, FakeMac


def main(argv: Sequence[str], stdin: str, mac: FakeMac) -> Answer:
    if list(argv[1:]) != ["-flushcache"]:
        return Answer(64, "", "Usage: dscacheutil -h\n")
    with mac.change() as state:
        state.flushes += 1
    return Answer(0)
