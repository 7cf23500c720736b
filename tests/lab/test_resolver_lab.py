"""The system's resolver and the bootstrap on hosts of the lab: real mounts, attributes and filters."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import dns.message
import dns.rrset
import pytest

from cryprq_proxy.base.resolv_conf import nameservers
from cryprq_proxy.errors import ConfigError
from tests.support.lab.net import RESOLVER, Lab, Namespace
from tun.linux.resolver import choose as resolver
from tun.linux.resolver.resolvconf import ResolvConf
from tun.linux.resolver.resolvconf_files import RESOLV_CONF
from tun.resolver.bootstrap import Bootstrap, BootstrapError

MARK = 0x6372
OURS = ("198.18.255.53", "fd63:7279:7071::53")


def set_on(host: Namespace) -> list[Mapping[str, Any]]:
    """Set it as the program does that is killed afterwards; what it wrote to the journal."""

    def run() -> list[Mapping[str, Any]]:
        entries: list[Mapping[str, Any]] = []
        system = ResolvConf(entries.append, RESOLV_CONF, host.directory / "state")
        asyncio.run(system.set(OURS, 7, "cryprq0"))
        assert system.upstreams() == ("192.168.77.1",)
        return entries

    return host.call(run)


def undo_on(host: Namespace, entries: Sequence[Mapping[str, Any]]) -> None:
    def run() -> None:
        undoers = resolver.undoers(RESOLV_CONF, host.directory / "state")
        for entry in reversed(entries):
            undoers[entry["kind"]](entry)

    host.call(run)


def says(host: Namespace) -> str:
    return host.run(["cat", "/etc/resolv.conf"])


@pytest.mark.parametrize("kind", ["own", "bound"])
def test_set_and_undone(lab: Lab, kind: Any) -> None:
    """A file of its own; and one that is mounted, over which nothing can be renamed."""
    host = lab.namespace("host", kind)
    machine = RESOLV_CONF.read_bytes()
    listing = sorted(os.listdir("/etc"))
    entries = set_on(host)
    assert nameservers(says(host).encode()) == OURS
    for _ in range(2):
        undo_on(host, entries)
        assert says(host) == RESOLVER
        assert list((host.directory / "state").iterdir()) == []
    assert RESOLV_CONF.read_bytes() == machine
    assert sorted(os.listdir("/etc")) == listing
    assert ".resolv.conf" not in host.run(["ls", "-a", "/etc"])


def test_a_mounted_file_in_a_read_only_root(lab: Lab) -> None:
    """As containers with a read-only root have it: the directory cannot be written, the file can."""
    host = lab.namespace("host", "bound")
    host.run(["mount", "--bind", "/etc", "/etc"])
    host.run(["mount", "--bind", f"/etc/netns/{host.name}/resolv.conf", "/etc/resolv.conf"])
    host.run(["mount", "-o", "remount,bind,ro", "/etc"])
    entries = set_on(host)
    assert nameservers(says(host).encode()) == OURS
    undo_on(host, entries)
    assert says(host) == RESOLVER


def test_a_read_only_file_stays(lab: Lab) -> None:
    host = lab.namespace("host", "bound")
    host.run(["mount", "-o", "remount,bind,ro", "/etc/resolv.conf"])
    undo_on(host, set_on(host))
    assert says(host) == RESOLVER


def test_a_protected_file_that_names_no_server_is_one_sentence(lab: Lab, tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text("# nothing\n")
    done = subprocess.run(["chattr", "+i", path], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"this file system knows no immutable files: {done.stderr.strip()}")
    try:
        with pytest.raises(ConfigError, match="protected from changes"):
            asyncio.run(ResolvConf([].append, path, tmp_path / "state").set(OURS, 7, "cryprq0"))  # type: ignore[arg-type]
    finally:
        subprocess.run(["chattr", "-i", path], check=True)
    assert path.read_text() == "# nothing\n"
    assert sorted(os.listdir(tmp_path)) == ["resolv.conf", "state"]
    assert os.listdir(tmp_path / "state") == []


# The bootstrap


class Answers(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self.transport = transport

    def datagram_received(self, data: bytes, address: Any) -> None:
        query = dns.message.from_wire(data)
        response = dns.message.make_response(query)
        if query.question[0].rdtype == 1:
            response.answer.append(dns.rrset.from_text(query.question[0].name, 60, "IN", "A", "192.0.2.5"))
        self.transport.sendto(response.to_wire(), address)


FILTER = """table inet t {
    set bootstrap { type ipv4_addr; }
    chain o {
        type filter hook output priority 0; policy drop;
        meta mark %d ip daddr @bootstrap udp dport 53 accept
        udp sport 53 accept
        reject
    }
}
"""


@pytest.mark.parametrize(("mark", "passes"), [(MARK, True), (0, False)])
def test_only_marked_questions_pass_and_only_while_it_is_open(lab: Lab, mark: int, passes: bool) -> None:
    host = lab.namespace("host")
    lab.address(host, "lo", "192.0.2.53/32")
    host.nft(FILTER % MARK)

    def nft(command: str) -> None:
        subprocess.run(["nft", command], check=True)

    @contextlib.asynccontextmanager
    async def opening(resolvers: Sequence[str]) -> AsyncIterator[None]:
        nft(f"add element inet t bootstrap {{ {', '.join(resolvers)} }}")
        try:
            yield
        finally:
            nft("flush set inet t bootstrap")

    @contextlib.asynccontextmanager
    async def nothing(resolvers: Sequence[str]) -> AsyncIterator[None]:
        yield

    async def ask(open_it: bool) -> tuple[str, ...]:
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            Answers, local_addr=("192.0.2.53", 53)
        )
        bootstrap = Bootstrap(
            lambda: ["192.0.2.53"],
            opening if open_it else nothing,
            mark=mark,
            hosts=Path("/nowhere"),
            rounds=1,
        )
        with contextlib.closing(transport):
            return await bootstrap.resolve("exit.example.org")

    def run(open_it: bool) -> tuple[str, ...]:
        return asyncio.run(ask(open_it))

    if passes:
        assert host.call(lambda: run(True)) == ("192.0.2.5",)
    else:
        with pytest.raises(BootstrapError, match="cannot be resolved"):
            host.call(lambda: run(True))
    assert "elements" not in host.run(["nft", "list", "set", "inet", "t", "bootstrap"])
    with pytest.raises(BootstrapError, match="cannot be resolved"):
        host.call(lambda: run(False))
