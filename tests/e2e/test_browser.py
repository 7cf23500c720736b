"""A real browser: headless Chromium loads a page with many parallel resources through the proxy."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.background import PATIENCE
from tests.support.browser import NOT_INSTALLED, end, find, started
from tests.support.programs import Client
from tests.support.targets import RESOURCES, HttpTarget

LOADS = ("--proxy-bypass-list=<-loopback>", "--timeout=20000", "--virtual-time-budget=20000", "--dump-dom")


@pytest.mark.parametrize("scheme", ["socks5", "http"])
def test_page_with_many_resources(scheme: str, client: Client, http: HttpTarget, tmp_path: Path) -> None:
    """Only the exit knows the name, so the browser has left it to the proxy."""
    if find() is None:
        pytest.skip(NOT_INSTALLED)
    url = f"http://site.test:{http.port}/page"
    proxy = f"--proxy-server={scheme}://127.0.0.1:{client.port}"
    with started(tmp_path, *LOADS, proxy, url, output=subprocess.PIPE) as browser:
        try:
            page, errors = browser.communicate(timeout=3 * PATIENCE)
        except subprocess.TimeoutExpired:
            end(browser)
            page, errors = browser.communicate()
    assert f"loaded {RESOURCES} of {RESOURCES}" in page, page + errors
    assert sum(line.startswith("GET /resource/") for line in http.seen) >= RESOURCES
    http.seen.clear()
