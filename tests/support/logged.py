"""Processes of the program whose log is read as it comes: the base of what tests start here and inside of hosts."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import IO, Final

from tests.support.background import PATIENCE

ROOT: Final = Path(__file__).resolve().parents[2]
BUGS: Final = re.compile(r"Traceback|this is a bug")
UNWANTED: Final = re.compile(rf"{BUGS.pattern}|^\S+ (error|critical) ", re.MULTILINE)


def environment_in(directory: Path, *import_from: Path) -> dict[str, str]:
    """Of a process that has all its files in `directory`, and runs this working tree."""
    kept = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH")
    return {name: value for name, value in os.environ.items() if name in kept} | {
        "HOME": str(directory),
        "XDG_CONFIG_HOME": f"{directory}/config",
        "XDG_STATE_HOME": f"{directory}/.local/state",
        "XDG_RUNTIME_DIR": f"{directory}/run",
        "PYTHONPATH": os.pathsep.join(map(str, (*import_from, ROOT))),
        "PYTHONUNBUFFERED": "1",
    }


class Lines:
    """What a process writes to one pipe, line by line; read on a thread, so that the pipe is never full."""

    def __init__(self, pipe: IO[str], name: str) -> None:
        self._pipe = pipe
        self._name = name
        self._changed = threading.Condition()
        self._ended = False
        self.lines: list[str] = []
        self._thread = threading.Thread(target=self._read, name=f"log of {name}", daemon=True)
        self._thread.start()

    def __str__(self) -> str:
        with self._changed:
            return "\n".join(self.lines)

    def __len__(self) -> int:
        with self._changed:
            return len(self.lines)

    def _read(self) -> None:
        with self._pipe as pipe:
            for line in pipe:
                with self._changed:
                    self.lines.append(line.rstrip("\n"))
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def wait(self, pattern: str, after: int = 0, seconds: float = PATIENCE) -> re.Match[str]:
        """The first match in a line from number `after` on, waiting for it."""
        expression = re.compile(pattern)
        deadline = time.monotonic() + seconds
        with self._changed:
            while True:
                for line in self.lines[after:]:
                    if match := expression.search(line):
                        return match
                after = max(after, len(self.lines))
                rest = deadline - time.monotonic()
                if self._ended or rest <= 0:
                    raise AssertionError(f"{self._name} did not say {pattern!r}; it said:\n{self}")
                self._changed.wait(rest)

    def join(self) -> None:
        """Return when all lines of a process that has ended are there."""
        self._thread.join(PATIENCE)


class LoggedProcess:
    """A running process, and its standard error."""

    def __init__(self, name: str, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        self.name = name
        self.process = process
        self._lines = Lines(process.stderr, name)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def lines(self) -> list[str]:
        return self._lines.lines

    @property
    def log(self) -> str:
        return str(self._lines)

    @property
    def written(self) -> int:
        """How many lines there are by now, for `since`."""
        return len(self._lines)

    def says(self, pattern: str, *, since: int = 0, seconds: float = PATIENCE) -> re.Match[str]:
        """Wait for a line with `pattern` in it, from line number `since` on."""
        return self._lines.wait(pattern, since, seconds)

    def kill(self) -> int:
        """As `kill -9`, and wait for its end."""
        self.process.kill()
        return self.wait()

    def stop(self, seconds: float = PATIENCE) -> int:
        """SIGTERM, and the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait(seconds)

    def wait(self, seconds: float = PATIENCE) -> int:
        """The exit code of a process that ends, by SIGKILL if it takes longer."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self._lines.join()
        return code
