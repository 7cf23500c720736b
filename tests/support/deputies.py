"""A deputy without a child process: its loop on a thread, with the rights of the test."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cryprq_proxy.base import deputy
from cryprq_proxy.base.deputy import Deputy
from cryprq_proxy.base.owners import Owner


@contextmanager
def on_a_thread(directory: Path, *, everywhere: bool = False) -> Iterator[Deputy]:
    """The deputy for `directory`, which must be the working directory."""
    ours, theirs = socket.socketpair()
    ours.settimeout(10)

    def serve() -> None:
        with theirs, pytest.raises(EOFError):
            deputy._serve(theirs)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield Deputy(
            Owner(os.geteuid(), os.getegid(), directory, Path()), directory, ours, everywhere=everywhere
        )
    finally:
        ours.close()
        thread.join(10)
        assert not thread.is_alive()
