"""The Debian package, in fresh systems of the oldest Debian that it is for and the next one.

Nothing of the working tree is used but the package: from its installation to the first page, and back to what was
there before.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from cryprq_proxy import __version__
from tests.support.lab.debian import ENVIRONMENT, Debian, NoDebianError, built_package
from tests.support.lab.hosts import EXIT4, ROUTER_SERVER4, SERVER4, ThreeHosts
from tests.support.lab.links import READY, Links, Role
from tests.support.lab.net import LONG, Lab, Namespace
from tests.support.lab.server import FarServer

pytestmark = pytest.mark.timeout(600)

BEHIND = {
    "usr/bin/cryprq-proxy",
    "usr/share/man/man5/cryprq-proxy.toml.5.gz",
    "usr/share/man/man1/cryprq-proxy.1.gz",
    "usr/share/bash-completion/completions/cryprq-proxy",
}
_SYSTEMCTL = """#!/bin/sh
# A service manager that only notes what it is told; each service runs.
echo "$@" >>/run/told
if [ "$1" = is-active ]; then echo active; fi
"""


class Host:
    """A host of the lab with a Debian of its own."""

    def __init__(self, namespace: Namespace, debian: Debian, links: Links) -> None:
        self.namespace = namespace
        self.debian = debian
        self._links = links

    def start(self, name: str, *arguments: str) -> Role:
        """The installed program, which goes on."""
        role = Role(name, self.namespace, self.debian.command("cryprq-proxy", *arguments), ENVIRONMENT)
        self._links.roles.append(role)
        role.says(READY)
        return role

    def run_managed(self, *words: str) -> str:
        """As `run`, beside a service manager."""
        return self.namespace.run(self.debian.managed(*words), env=ENVIRONMENT, limit=60)

    def run(self, *words: str) -> str:
        return self.namespace.run(self.debian.command(*words), env=ENVIRONMENT, limit=60)

    def refused(self, *words: str) -> str:
        """What a command says that fails."""
        done = self.namespace.attempt(self.debian.command(*words), env=ENVIRONMENT, limit=60)
        assert done.returncode != 0, done.stdout
        return done.stderr

    def page(self, *proxy: str) -> str:
        """The address from which the far server saw us come."""
        return self.namespace.run(
            ["curl", "-sS", "--max-time", f"{LONG:g}", *proxy, f"http://{SERVER4}/address"]
        )


@pytest.fixture
def directory(lab: Lab, tmp_path: Path) -> Iterator[Path]:
    """A place for whole systems, which nobody wants to keep."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def installed(suite: str, package: Path, directory: Path) -> tuple[Debian, dict[str, str]]:
    """A fresh system with the package, and its files before."""
    debian = Debian(suite, directory)
    debian.prepare(package)
    before = debian.files()
    debian.apt("install", f"/tmp/{package.name}")
    return debian, before


@contextmanager
def managed(host: Host) -> Iterator[Path]:
    """As if a service manager ran, in which system-wide mode is a service. What it is told is in the file."""
    root = host.debian.root
    (root / "run/systemd/system").mkdir(parents=True)
    manager = root / "usr/bin/systemctl"
    manager.write_text(_SYSTEMCTL)
    manager.chmod(0o755)
    told = root / "run/told"
    try:
        host.run_managed("cryprq-proxy", "service", "install", "tun", "--yes")
        told.unlink()
        yield told
    finally:
        manager.unlink()
        shutil.rmtree(root / "run/systemd")


def upgraded(host: Host, package: Path) -> list[str]:
    """What a service manager is told in an upgrade."""
    with managed(host) as told:
        host.run_managed("dpkg", "--install", f"/tmp/{package.name}")
        return told.read_text().splitlines()


def refuses_to_upgrade(host: Host, package: Path) -> None:
    """An upgrade to a version that refuses the configuration says so, and leaves the service as it is."""
    file = host.debian.root / "etc/cryprq/client.toml"
    text = file.read_text()
    with managed(host) as told:
        file.write_text(f"of_another_version = 1\n{text}")
        command = host.debian.managed("dpkg", "--install", f"/tmp/{package.name}")
        done = host.namespace.attempt(command, env=ENVIRONMENT, limit=60)
        file.write_text(text)
        assert done.returncode == 0, done.stderr
        assert "client.toml: of_another_version: unknown key" in done.stderr, done.stderr
        assert "the service runs on as before: mend that" in done.stderr
        assert set(told.read_text().splitlines()) == {"--quiet is-active cryprq-client-tun.service"}


def test_from_two_fresh_systems_to_the_first_page_and_back(
    three_hosts: ThreeHosts, server: FarServer, links: Links, directory: Path
) -> None:
    try:
        package = built_package(directory)
        with ThreadPoolExecutor() as pool:
            made = [
                pool.submit(installed, suite, package, directory / suite) for suite in ("bookworm", "trixie")
            ]
        (old, old_before), (new, new_before) = (future.result() for future in made)
    except NoDebianError as error:
        pytest.skip(str(error))
    for debian, host in ((old, three_hosts.exit), (new, three_hosts.client)):
        debian.enter(host)
        assert {name for name in BEHIND if not (debian.root / name).exists()} == set()
    there, here = Host(three_hosts.exit, old, links), Host(three_hosts.client, new, links)
    assert there.run("cryprq-proxy", "--version") == f"cryprq-proxy {__version__}\n"

    exit = there.start("exit", "exit", "--tun")
    said = here.run("cryprq-proxy", "join", there.run("cryprq-proxy", "invite", "laptop").strip())
    assert "  cryprq-proxy\n" in said
    client = here.start("client")
    assert here.page("-x", "socks5h://127.0.0.1:1080") == EXIT4 != here.page()
    assert client.stop() == 0

    tunnel = here.start("client in system-wide mode", "--tun", "--yes")
    assert here.page() == EXIT4
    refusal = here.refused("dpkg", "--purge", "cryprq-proxy")
    assert "cryprq-proxy stays installed: " in refusal
    assert here.page() == EXIT4, "nothing was undone"
    told = upgraded(here, package)
    killed = told.index("kill --kill-whom=main -s KILL cryprq-client-tun.service")
    assert "restart cryprq-client-tun" in told[killed:]
    assert here.page() == EXIT4, "nothing was stopped"

    tunnel.kill()
    refuses_to_upgrade(here, package)
    here.run("cryprq-proxy", "lockdown", "on", "--yes")
    refusal = here.refused("dpkg", "--purge", "cryprq-proxy")
    assert "cryprq-proxy stays installed: lockdown is on" in refusal
    here.run("cryprq-proxy", "lockdown", "off")
    here.run("dpkg", "--purge", "cryprq-proxy")
    assert here.page() == ROUTER_SERVER4, "what the killed one has left is undone"
    assert exit.stop() == 0
    there.run("dpkg", "--purge", "cryprq-proxy")
    for debian, before in ((old, old_before), (new, new_before)):
        assert debian.files() == before
