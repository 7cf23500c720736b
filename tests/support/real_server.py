"""A server that is another program: started on 127.0.0.1, waited for, and ended."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from .background import PATIENCE
from .programs import until


class RealServer:
    """`command` serves in the foreground at `port`. What it says goes to the file `log`."""

    def __init__(
        self, command: Sequence[str], port: int, log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.port = port
        self._command = command
        self._log = log
        self._environment = os.environ | (environment or {})
        self.start()

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        until(self._answers, f"{self._command[0]} is ready")

    def _answers(self) -> bool:
        assert self.process.poll() is None, self._log.read_text()
        try:
            socket.create_connection(("127.0.0.1", self.port)).close()
        except OSError:
            return False
        return True

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(PATIENCE)


def filled(sample: str, *changes: tuple[str, str]) -> str:
    """A sample of configs/ with `changes`, of which each must fit one place."""
    for old, new in changes:
        assert sample.count(old) == 1, old
        sample = sample.replace(old, new)
    return sample
