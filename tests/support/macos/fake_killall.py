"""killall(1), as far as mDNSResponder is told to forget its names."""

from __future__ import annotations

from collections.abc import Sequence

from tests.support.macos.machine import Answer, FakeMac


def main(argv: Sequence[str], stdin: str, mac: FakeMac) -> Answer:
    match list(argv[1:]):
        case ["-HUP", "mDNSResponder"] if mac.uid:
            return Answer(1, "", "No matching processes belonging to you were found\n")
        case ["-HUP", "mDNSResponder"]:
            with mac.change() as state:
                state.flushes += 1
            return Answer(0)
    return Answer(
        1, "", "usage: killall [-delmsvqz] [-help] [-I] [-u user] [-t tty] [-c cmd] [-SIGNAL] [cmd]...\n"
    )
