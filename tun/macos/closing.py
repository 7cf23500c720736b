"""Closes what is open for a time, whether the program that opened it lives or not: pf itself has no clock.

`Closing.start` begins a small process in a session of its own before anything is opened. It gets all texts beforehand.
When a time has come, and the rules in the anchor still are those of this opening, it puts the next text in their
place. So it does nothing where they were closed or changed meanwhile, by this program or another.
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any, Final, NamedTuple, Self

from cryprq_proxy.base.clock import CLOCK
from cryprq_proxy.errors import reason_of

from . import pfctl, programs
from .pfctl import PfError
from .programs import ProgramError

MAX_STAGES: Final = 4
_PATIENCE: Final = 10.0
"""Seconds for the process to begin."""
_ATTEMPTS: Final = 10
_LOOK: Final = 1.0
"""Seconds between two looks at the clock: what is open stays so for no longer after the machine has slept."""
_ROOT: Final = Path(__file__).parents[2]


class Stage(NamedTuple):
    """What stands in the anchor from a time on."""

    at: float
    """By `clock`, which all processes share, and which goes on while the machine sleeps."""
    text: str


class Closing:
    """The process, while it waits."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        """For `start` only."""
        self._process = process

    @classmethod
    def start(cls, anchor: str, mark: str, stages: Sequence[Stage]) -> Self:
        """Begin to wait; returns when the process has all that it needs. Raises PfError.

        `mark` stands in the rules of this opening and in no others.
        """
        given = {
            "pfctl": programs.PATHS["pfctl"],
            "anchor": anchor,
            "mark": mark,
            "clock": CLOCK,
            "stages": [list(stage) for stage in stages[:MAX_STAGES]],
        }
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "tun.macos.closing"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env={"PYTHONPATH": str(_ROOT), "LC_ALL": "C"},
                start_new_session=True,
            )
        except OSError as error:
            raise PfError(
                f"nothing was opened, as no process can close it again: {reason_of(error)}"
            ) from error
        made = cls(process)
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(given).encode())
            process.stdin.close()
            ready, _, _ = select.select([process.stdout], [], [], _PATIENCE)
            said = process.stdout.readline() if ready else b""
        except OSError:
            said = b""
        if said != b"ready\n":
            made.stop()
            raise PfError("nothing was opened, as the process that is to close it again does not start")
        process.stdout.close()
        return made

    def stop(self) -> None:
        """It is closed already, or another one will do it."""
        self._process.kill()
        self._process.wait()
        for file in (self._process.stdin, self._process.stdout):
            if file is not None:
                file.close()


def close_in_time(given: dict[str, Any], run: programs.Run) -> None:
    """What the process does: wait, look, replace."""
    for at, text in given["stages"]:
        _wait_until(at, given["clock"])
        for attempt in range(_ATTEMPTS):
            try:
                rules = pfctl.loaded(given["anchor"], run).rules
                if not any(f'"{given["mark"]}"' in rule for rule in rules):
                    return
                pfctl.load(given["anchor"], text, run)
                break
            except (PfError, ProgramError):
                time.sleep(min(attempt + 1, 5))


def _wait_until(at: float, number: int) -> None:
    """Until that clock of clock_gettime(2) shows `at`. time.sleep stands still in a sleep of the machine, so it is
    looked at again and again."""
    while (left := at - time.clock_gettime(number)) > 0:
        time.sleep(min(left, _LOOK))


def main(source: IO[str], sink: IO[str]) -> None:
    given = json.load(source)
    sink.write("ready\n")
    sink.flush()
    close_in_time(given, partial(programs.run, paths={"pfctl": given["pfctl"]}))


if __name__ == "__main__":
    main(sys.stdin, sys.stdout)
