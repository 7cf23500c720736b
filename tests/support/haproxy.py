"""A real HAProxy in front of exits, set up as configs/haproxy.cfg says."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.support.background import PATIENCE
from tests.support.programs import Exit, free_port, until

HAPROXY: Final = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")
NOT_INSTALLED: Final = "haproxy is not installed; on Debian: apt-get install haproxy"
FRAGMENT: Final = Path(__file__).resolve().parents[2] / "configs" / "haproxy.cfg"
PROXY: Final = "127.0.0.7"
"""Where HAProxy connects from."""
LOOKS_FROM: Final = "127.0.0.11"
"""Where a test connects from, to see whether HAProxy is there."""


def connect(port: int, source: str = "127.0.0.1") -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), PATIENCE, (source, 0))
    sock.settimeout(PATIENCE)
    return sock


class HAProxy:
    """HAProxy on `port`. `lead_to` exits, `start`, then `stop` or `kill`."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self._file, self._log = directory / "haproxy.cfg", directory / "haproxy.log"

    def lead_to(self, exit: Exit, other: Exit | None = None) -> None:
        """From the next start on."""
        text = FRAGMENT.read_text()
        changes = [
            ("bind :4433\n", f"bind 127.0.0.1:{self.port}\n"),
            ("127.0.0.1:4434 ", f"127.0.0.1:{exit.port} source {PROXY} "),
        ]
        if other is not None:
            changes.append(
                ("#server other 127.0.0.1:4435 ", f"server other 127.0.0.1:{other.port} source {PROXY} ")
            )
        for old, new in changes:
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        self._file.write_text(text.replace("inter 10s", "inter 500ms"))

    def start(self) -> None:
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                [str(HAPROXY), "-db", "-f", str(self._file)], stdout=output, stderr=output
            )
        until(self._answers, "haproxy is ready")

    def _answers(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()
        try:
            connect(self.port, LOOKS_FROM).close()  # which costs it a token
        except OSError:
            return False
        return True

    def kill(self) -> None:
        """End it and all connections through it, without a word."""
        self._process.kill()
        self._process.wait(PATIENCE)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(PATIENCE)


@contextmanager
def in_front_of(directory: Path, exit: Exit, other: Exit | None = None) -> Iterator[HAProxy]:
    """One that runs until the end of the block."""
    haproxy = HAProxy(directory)
    haproxy.lead_to(exit, other)
    haproxy.start()
    try:
        yield haproxy
    finally:
        haproxy.stop()
