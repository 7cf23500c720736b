"""A resolver file that cannot be changed, or is to be left alone: names go through the tunnel all the same, since the
filter brings every question to the forwarder, whichever server the file names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from tests.support.lab.net import RESOLVER, Namespace
from tests.support.lab.stage import Stage, beside_the_link

type Arranged = Callable[[Namespace], AbstractContextManager[None]]


@pytest.fixture(scope="module")
def stage(namespaces: None) -> Iterator[Stage]:
    with Stage() as stage:
        stage.server.dns.answers["big.example.com.", "TXT"] = [f'"{i:03}{"x" * 200}"' for i in range(20)]
        yield stage


@contextmanager
def linked_in_a_read_only_etc(client: Namespace) -> Iterator[None]:
    """The link cannot be replaced; the file that it leads to could be written."""
    target = client.directory / "linked"
    target.write_text(RESOLVER)
    client.run(["sh", "-c", 'mv /etc/resolv.conf /etc/saved; ln -s "$0" /etc/resolv.conf', str(target)])
    client.run(["sh", "-c", "mount --bind /etc /etc && mount -o remount,bind,ro /etc"])
    try:
        yield
    finally:
        client.run(["sh", "-c", "umount /etc; mv /etc/saved /etc/resolv.conf"])
    assert target.read_text() == RESOLVER


@contextmanager
def protected(client: Namespace) -> Iterator[None]:
    """By chattr, on a file system that knows it."""
    done = client.attempt(["chattr", "+i", "/etc/resolv.conf"])
    if done.returncode:
        pytest.skip(f"this file system knows no immutable files: {done.stderr.strip()}")
    try:
        yield
    finally:
        client.run(["chattr", "-i", "/etc/resolv.conf"])


@pytest.mark.parametrize("arranged", [linked_in_a_read_only_etc, protected])
def test_a_file_that_cannot_be_changed_is_a_warning(stage: Stage, arranged: Arranged) -> None:
    with arranged(stage.client):
        with stage.wire() as wire, stage.tunnel() as client:
            client.says("warning .*resolv.conf cannot be changed")
            names_work(stage)
        assert not beside_the_link(wire)
        # Neither after a kill is there anything to put back.
        before = stage.client.snapshot()
        stage.links.client(stage.client).kill()
        done = stage.links.call(stage.client, "cleanup", "--state-dir", str(stage.links.state_dir))
        assert not done.returncode, done.stderr
        stage.unchanged_since(before)


def test_a_file_that_is_to_be_left_alone(stage: Stage) -> None:
    with stage.wire() as wire, stage.tunnel("--resolver", "leave") as client:
        names_work(stage)
        assert "warning" not in client.log
        assert stage.status()["dns"]["resolver"] == "left alone"
    assert not beside_the_link(wire)


def names_work(stage: Stage) -> None:
    stage.server.forget()
    stage.resolver.forget()
    assert stage.client.resolv_conf.read_text() == RESOLVER
    assert stage.client.run(["dig", "+short", "a.example.com"]) == "192.0.2.7\n"
    assert len(stage.client.run(["dig", "+short", "+tcp", "big.example.com", "TXT"]).splitlines()) == 20
    assert stage.client.run(["getent", "ahostsv4", "a.example.com"]).startswith("192.0.2.7")
    assert not stage.resolver.visits
