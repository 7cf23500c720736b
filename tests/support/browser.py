"""A headless Chromium, if one is installed."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-quic", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-gpu", "--disable-dev-shm-usage",
    "--disable-extensions", "--disable-default-apps", "--no-first-run", "--no-default-browser-check",
)  # fmt: skip
NOT_INSTALLED = "Chromium is not installed; on Debian: apt-get install chromium"


def find() -> str | None:
    """The browser's path, if one is installed."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def started(
    directory: Path, *arguments: str, output: int = subprocess.DEVNULL
) -> Iterator[subprocess.Popen[str]]:
    """A browser with a profile of its own, `directory`/profile, ended with all its helpers."""
    path = find()
    assert path is not None
    process = subprocess.Popen(
        [path, *FLAGS, f"--user-data-dir={directory}/profile", *arguments],
        stdin=subprocess.DEVNULL, stdout=output, stderr=output, text=True,
        start_new_session=True, env={"PATH": "/usr/bin:/bin", "HOME": str(directory)},
    )  # fmt: skip
    try:
        yield process
    finally:
        end(process)
        process.wait()


def end(process: subprocess.Popen[str]) -> None:
    """Kill the browser and all its helpers."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
