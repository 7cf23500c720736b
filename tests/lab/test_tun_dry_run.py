"""What `--dry-run` says is what a start does: its commands, carried out by hand, make the same machine as a start, and
what it says of undoing them makes the machine from before. It changes nothing itself, and needs no root.
"""

from __future__ import annotations

import difflib
import json
import re
import shlex
from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from tests.support.lab.net import Namespace
from tests.support.lab.stage import Stage

RUN = re.compile(r"0x637[0-9a-f]{5}\b")
INDEX = re.compile(r"^\d+: (?=cryprq)", re.MULTILINE)
TAG = re.compile(r"cryprq-proxy [0-9a-f]{16}:")


def said(stage: Stage, host: Namespace, *command: str, file: Path) -> dict[str, Any]:
    before = host.snapshot()
    done = stage.links.call(host, *command, "--dry-run", "--json", "--config", str(file))
    assert not done.returncode, done.stderr
    assert host.snapshot() == before
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def normal(snapshot: str) -> str:
    """Without what is drawn at each start, and what shows that nobody reads the device."""

    def first_run(mark: re.Match[str]) -> str:
        return f"{int(mark[0], 16) & 0xFFF003FF | 1 << 10:#x}"

    text = TAG.sub("cryprq-proxy TAG:", RUN.sub(first_run, snapshot)).replace(" linkdown", "")
    return INDEX.sub("", text)


def carry_out(host: Namespace, changes: Iterable[Mapping[str, str]], known: Mapping[str, str]) -> None:
    for change in changes:
        what, text = change["what"], change["text"]
        for placeholder, address in known.items():
            what, text = what.replace(placeholder, address), text.replace(placeholder, address)
        words = shlex.split(what)
        if what == "nft -f -":
            host.nft(text)
        elif words[0] in ("ip", "sysctl"):
            host.run(words)
        elif what == "write /etc/resolv.conf":
            host.resolv_conf.write_text(text)


def undo(host: Namespace, changes: Iterable[Mapping[str, str]], device: str) -> None:
    host.run(["ip", "link", "del", device])
    for change in reversed(list(changes)):
        words = shlex.split(change["undo"].partition(",")[0])
        if words[0] in ("ip", "sysctl"):
            host.run(words)
        elif words[0] == "nft":
            # Each version of the one table names it.
            host.attempt(words)


def same(told: str, started: str) -> None:
    one, other = normal(told), normal(started)
    assert one == other, "\n".join(difflib.unified_diff(one.split("\n"), other.split("\n"), n=0))


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--lan", "block", "--exclude", "203.0.113.0/24", "--exclude-uid", "1000-1002", "--inbound", "keep"),
        ("--kill-switch", "off", "--include", "93.184.0.0/16", "--resolver", "leave"),
    ],
)
def test_the_client(stage: Stage, options: tuple[str, ...]) -> None:
    with stage.tunnel(*options):
        started = stage.client.snapshot()
        addresses = stage.status()["addresses"]
    before, resolver = stage.client.snapshot(), stage.client.resolv_conf.read_text()
    found = said(stage, stage.client, "--tun", *options, file=stage.client_file())
    placeholders = ("192.0.2.1", "2001:db8::1")
    known = dict(zip(placeholders, addresses, strict=True))
    # The filter looks into the packets that ICMP errors quote, by numbers.
    known |= {
        f"{int(ip_address(one)):#x}": f"{int(ip_address(other)):#x}"
        for one, other in zip(placeholders, addresses, strict=True)
    }
    carry_out(stage.client, found["changes"], known)
    try:
        same(stage.client.snapshot(), started)
    finally:
        stage.client.resolv_conf.write_text(resolver)
        undo(stage.client, found["changes"], "cryprq0")
    stage.unchanged_since(before)


def test_the_exit(stage: Stage) -> None:
    host = stage.hosts.exit
    started = host.snapshot()

    def meanwhile() -> None:
        before = host.snapshot()
        found = said(stage, host, "exit", "--tun", file=stage.links.directory / "exit.toml")
        carry_out(host, found["changes"], {})
        try:
            same(host.snapshot(), started)
        finally:
            undo(host, found["changes"], "cryprq-exit0")
        assert host.snapshot() == before

    stage.restart_exit(meanwhile)


def test_a_running_role_is_named(stage: Stage) -> None:
    with stage.tunnel():
        found = said(stage, stage.client, "--tun", file=stage.client_file())
    assert any("runs already" in remark for remark in found["remarks"])
