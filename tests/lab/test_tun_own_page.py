"""http://cryprq.test/ in system-wide mode: not there until a person asks for it, and no packet leaves for it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import dns.message
import dns.query
import dns.rcode
import pytest

from tests.support.browser import FLAGS, NOT_INSTALLED, find
from tests.support.lab.hosts import SERVER4
from tests.support.lab.net import LONG, until
from tests.support.lab.stage import Stage, beside_the_link

NAME: Final = "cryprq.test"
RESOLVERS: Final = ("198.18.255.53", "9.9.9.9", "192.168.77.1")
NAVIGATES: Final = ("-H", "Upgrade-Insecure-Requests: 1", "-A", "Mozilla/5.0")
FETCHES: Final = ("-A", "Mozilla/5.0")
"""As a page of the web can ask."""
NO_NAME, REFUSED, RESET = 6, 7, 56
"""Exit codes of curl."""
EXCLUDED: Final = 4321
"""A user without a name on this machine, whose programs go past the tunnel."""


@pytest.fixture(scope="module")
def stage(namespaces: None) -> Iterator[Stage]:
    with Stage() as stage:
        yield stage


@pytest.fixture
def tunnel(stage: Stage) -> Iterator[None]:
    """With a server for all of "test", which is never asked for our name, as no other is."""
    split = {"tun": {"dns": {"split": [f"test=tcp://{SERVER4}:53"]}}}
    stage.server.forget()
    stage.resolver.forget()
    with stage.tunnel("--exclude-uid", str(EXCLUDED), settings=split):
        yield
    heard = {visit.what.lower() for visit in (*stage.server.visits, *stage.resolver.visits)}
    assert not any(NAME in what for what in heard), heard


def ask(stage: Stage, kind: str = "A", server: str = RESOLVERS[0], name: str = NAME) -> dns.message.Message:
    with stage.client.entered():
        return dns.query.udp(dns.message.make_query(name, kind), server, timeout=LONG)


def address(stage: Stage, server: str = RESOLVERS[0], name: str = NAME) -> str:
    """Its IPv4 address; empty if there is no such name."""
    answer = ask(stage, server=server, name=name)
    assert answer.rcode() == (dns.rcode.NOERROR if answer.answer else dns.rcode.NXDOMAIN)
    return answer.answer[0][0].to_text() if answer.answer else ""


def curl(
    stage: Stage, *options: str, url: str = f"http://{NAME}/", user: int = 0
) -> subprocess.CompletedProcess[str]:
    asked = ["curl", "-sS", "--noproxy", "*", "--max-time", f"{LONG:g}", *options, url]
    switched = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--"] if user else []
    return stage.client.attempt([*switched, *asked], cwd=Path("/"))


def open_page(stage: Stage) -> None:
    file = stage.links.directory / "client.toml"
    done = stage.links.call(stage.client, "check", "--browser", "--config", str(file))
    assert done.stdout.startswith(f"http://{NAME}/ can be opened in a browser for 300 s\n"), done.stderr


@pytest.mark.usefixtures("tunnel")
def test_the_page_is_there_when_a_person_has_asked_for_it(stage: Stage) -> None:
    with stage.wire() as wire:
        for server in RESOLVERS:
            assert not address(stage, server)
        assert curl(stage, *NAVIGATES).returncode == NO_NAME
        open_page(stage)
        assert all(address(stage, server).startswith("127.") for server in RESOLVERS)
        for kind in ("AAAA", "HTTPS"):
            assert ask(stage, kind).rcode() == dns.rcode.NOERROR and not ask(stage, kind).answer
        page = curl(stage, *NAVIGATES, "-H", "Accept: text/html").stdout
        assert "This browser uses cryprq-proxy." in page and "are resolved here" in page
        assert curl(stage).stdout.startswith("This program uses cryprq-proxy.")
        for options in (FETCHES, (*NAVIGATES, "-H", "Origin: http://x"), (*NAVIGATES, "-X", "POST")):
            assert curl(stage, *options).returncode == RESET
        assert curl(stage, *NAVIGATES, url=f"http://{NAME}/favicon.ico").returncode == RESET
        assert curl(stage, *NAVIGATES, url=f"https://{NAME}/").returncode == REFUSED
        assert curl(stage, *NAVIGATES, user=EXCLUDED).returncode == REFUSED, "its packets miss the tunnel"
        # A browser may go back to the name while it still has the address from before.
        assert curl(stage, *FETCHES, url=f"http://{address(stage)}/").returncode == RESET
    assert not beside_the_link(wire)
    file = stage.links.directory / "client.toml"
    tested = stage.links.call(stage.client, "leaktest", "--target", SERVER4, "--config", str(file))
    assert not tested.returncode, tested.stdout + tested.stderr
    assert not any(repair["repairs"] for repair in stage.status()["repairs"]), (
        "nobody has taken anything away"
    )


@pytest.mark.usefixtures("tunnel")
def test_the_page_is_there_in_a_pause_and_without_a_link(stage: Stage) -> None:
    open_page(stage)
    stage.pause(600)
    for server in RESOLVERS:
        # As a resolver writes a name that guards against forged answers.
        assert address(stage, server, "CrYpRq.tEsT").startswith("127.")
    # The network's own resolver is asked for all else.
    assert not address(stage, name="abcdef.test")
    assert "abcdef.test. A" in {visit.what for visit in stage.resolver.visits}
    page = curl(stage, *NAVIGATES).stdout
    assert "Pause: new connections of --tun go past the exit" in page
    stage.hosts.exit.ip("link set eth0 down")
    try:
        until(lambda: stage.links.status()["link"] != "up", "the link is down")
        page = curl(stage, *NAVIGATES).stdout
        assert "; there is no link: " in page and "unknown: there is no link" in page
    finally:
        stage.hosts.exit.ip("link set eth0 up")


@pytest.mark.usefixtures("tunnel")
def test_chromium_opens_it(stage: Stage) -> None:
    chromium = find()
    if chromium is None:
        pytest.skip(NOT_INSTALLED)
    open_page(stage)
    profile = stage.client.directory / "chromium"
    command = [chromium, *FLAGS, "--no-proxy-server", f"--user-data-dir={profile}", "--dump-dom"]
    environment = {"HOME": str(profile), "PATH": "/usr/bin:/bin"}
    page = stage.client.attempt([*command, f"http://{NAME}/"], limit=60, env=environment)
    assert "This browser uses cryprq-proxy." in page.stdout, page.stderr[-2000:]
