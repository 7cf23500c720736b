"""A real browser: headless Chromium loads a page with many parallel resources through the proxy."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.background import PATIENCE
from tests.support.programs import Client
from tests.support.targets import RESOURCES, HttpTarget

NAMES = ("chromium", "chromium-browser", "google-chrome")

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-quic", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-gpu", "--disable-dev-shm-usage",
    "--disable-extensions", "--disable-default-apps", "--no-first-run", "--no-default-browser-check",
    "--proxy-bypass-list=<-loopback>", "--timeout=20000", "--virtual-time-budget=20000",
)  # fmt: skip


@pytest.mark.parametrize("scheme", ["socks5", "http"])
def test_page_with_many_resources(scheme: str, client: Client, http: HttpTarget, tmp_path: Path) -> None:
    """Only the exit knows the name, so the browser has left it to the proxy."""
    chromium = next(filter(None, map(shutil.which, NAMES)), None)
    if chromium is None:
        pytest.skip("Chromium is not installed; on Debian: apt-get install chromium")
    browser = subprocess.Popen(
        [
            chromium, *FLAGS, f"--user-data-dir={tmp_path}/profile",
            f"--proxy-server={scheme}://127.0.0.1:{client.port}",
            "--dump-dom", f"http://site.test:{http.port}/page",
        ],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
    )  # fmt: skip
    try:
        page, errors = browser.communicate(timeout=3 * PATIENCE)
    except subprocess.TimeoutExpired:
        end_group(browser)
        page, errors = browser.communicate()
    finally:
        end_group(browser)
    assert f"loaded {RESOURCES} of {RESOURCES}" in page, page + errors
    assert sum(line.startswith("GET /resource/") for line in http.seen) >= RESOURCES
    http.seen.clear()


def end_group(browser: subprocess.Popen[str]) -> None:
    """The browser and all its helpers."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(browser.pid, signal.SIGKILL)
