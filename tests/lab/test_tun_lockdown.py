"""Lockdown: while no client runs, from the boot on, nothing gets out; and only two commands lift it.

The unit's own ExecStart stands in for the boot, run by hand in the host: it is the same transaction of the kernel.
"""

from __future__ import annotations

import shlex
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cryprq_proxy.service.lockdown_unit import unit
from tests.support.config_files import Settings
from tests.support.lab.capture import Capture, is_neighbourly
from tests.support.lab.flows import Flow
from tests.support.lab.hosts import CLIENT6, DIRECT, EXIT4, EXIT6, ROUTER_LAN4, SERVER4, SERVER6, ThreeHosts
from tests.support.lab.links import PORT, Links, Role
from tests.support.lab.net import LONG, Namespace, until
from tests.support.lab.noise import Noise
from tests.support.lab.server import FarServer
from tun.linux.firewall.nft import program

QUIET: Settings = {"log_level": "info"}
LOCKED = "lockdown is on, so nothing gets out until --tun runs"
LINK = {(protocol, address, PORT) for protocol in ("tcp", "udp") for address in (EXIT4, EXIT6)}
FILTER, MARK = "cryprq", "cryprq_lockdown"


@pytest.fixture
def hosts(three_hosts: ThreeHosts, server: FarServer, links: Links) -> ThreeHosts:
    """The standard hosts with the exit running."""
    links.exit(three_hosts.exit, QUIET)
    return three_hosts


def client_file(links: Links, changes: Settings | None = None, address: str = f"{EXIT4}:{PORT}") -> Path:
    tun = {"state_dir": str(links.state_dir), **(changes or {})}
    peer = f"cryprq://{links.identity('exit')[1]}@{address}"
    return links.config("client", {"peer": peer, "admin": "off", **QUIET, "tun": tun})


def lockdown(links: Links, host: Namespace, state: str) -> str:
    """`lockdown on` or `off` as the configuration in the directory of `links` says, and what it said."""
    file = links.directory / "client.toml"
    done = links.call(host, "lockdown", state, "--yes", "--config", str(file))
    assert not done.returncode, done.stderr
    return done.stdout


def cleanup(links: Links, host: Namespace, *flags: str) -> str:
    done = links.call(host, "cleanup", "--state-dir", str(links.state_dir), *flags)
    assert not done.returncode, done.stderr
    return done.stdout


def boot(links: Links, host: Namespace) -> None:
    """The kernel has forgotten all of its filter; then the unit runs."""
    host.nft("flush ruleset")
    run_unit(links, host)


def run_unit(links: Links, host: Namespace) -> None:
    """What the start of the unit does."""
    text = unit(links.state_dir / "lockdown.nft", program())
    (line,) = (line for line in text.splitlines() if line.startswith("ExecStart="))
    host.run(shlex.split(line.removeprefix("ExecStart=")))


def tables(host: Namespace) -> set[str]:
    return {line.split()[-1] for line in host.run(["nft", "list", "tables"]).splitlines()}


def works(host: Namespace, address: str = SERVER4) -> None:
    with Flow(host, address) as flow:
        flow.moves()
        assert flow.finish()


def gets_out(host: Namespace, server: FarServer) -> bool:
    """Past any tunnel."""
    return host.attempt(["curl", "-sS", "--max-time", "5", f"http://{SERVER4}/address"]).stdout == DIRECT[4]


@contextmanager
def nothing_gets_out(host: Namespace) -> Iterator[None]:
    """But the link and neighbours: each packet that leaves is counted, of many programs that try all the time."""
    with Capture(host, "eth0") as capture, Noise(host, "eth0", SERVER4, SERVER6, "8.8.8.8") as noise:
        yield
        taken, refused = noise.stop()
    assert taken + refused
    left = {
        (packet.protocol, packet.destination, packet.destination_port)
        for packet in capture.packets
        if packet.sent and not is_neighbourly(packet)
    }
    assert left <= LINK


def test_from_the_boot_through_every_end_to_the_word_that_lifts_it(hosts: ThreeHosts, links: Links) -> None:
    client = hosts.client
    client_file(links)
    before = client.snapshot()
    assert "nothing gets out until --tun runs" in lockdown(links, client, "on")
    boot(links, client)
    with nothing_gets_out(client):
        assert tables(client) == {FILTER, MARK}
        role = links.client(client, settings=QUIET)
        works(client)
        standing = client.run(["nft", "list", "chain", "inet", FILTER, "output"])
        run_unit(links, client)
        assert client.run(["nft", "list", "chain", "inet", FILTER, "output"]) == standing, "the client's own"
        assert role.stop() == 0
        assert LOCKED in role.log and tables(client) == {FILTER, MARK}
        assert "198.18." not in client.run(["nft", "list", "table", "inet", FILTER]).replace(
            "198.18.255.53", ""
        )

        again = links.client(client, settings=QUIET)
        works(client)
        again.kill()
        assert tables(client) == {FILTER, MARK}
        said = cleanup(links, client)
        assert LOCKED in said and "routing" in said
        assert LOCKED in cleanup(links, client), "as often as it is called"
        assert client.run(["ip", "rule"]) in before

        assert links.client(client, settings=QUIET).stop() == 0
    said = lockdown(links, client, "off")
    assert said == "lockdown is off\n"
    assert client.snapshot() == before
    assert lockdown(links, client, "off") == "lockdown was off already\n"
    assert "nothing was left" in cleanup(links, client)


def test_cleanup_of_all_lifts_it(hosts: ThreeHosts, links: Links, server: FarServer) -> None:
    client = hosts.client
    client_file(links)
    before = client.snapshot()
    lockdown(links, client, "on")
    links.client(client, settings=QUIET).kill()
    assert not gets_out(client, server)
    done = links.call(client, "status")
    assert done.returncode == 1 and LOCKED in done.stderr
    done = links.call(client, "doctor", "--config", str(links.directory / "client.toml"))
    assert done.returncode == 1 and LOCKED in done.stdout
    assert "lockdown" in cleanup(links, client, "--all")
    assert gets_out(client, server)
    assert not (links.state_dir / "lockdown.nft").exists()
    assert client.snapshot().splitlines() == before.splitlines()


def test_another_directory_lifts_nothing(hosts: ThreeHosts, links: Links, server: FarServer) -> None:
    client_file(links)
    lockdown(links, hosts.client, "on")
    done = links.call(hosts.client, "cleanup", "--state-dir", str(links.directory / "other"))
    assert done.returncode == 1 and "--state-dir" in done.stderr and "--all" in done.stderr
    assert not gets_out(hosts.client, server)


@pytest.mark.parametrize("damage", ["empty", "damaged", "cut"])
def test_a_file_that_cannot_be_loaded_holds_everything_in(
    damage: str, hosts: ThreeHosts, links: Links
) -> None:
    """The unit's second word; the client then starts as ever, and writes the file anew."""
    client = hosts.client
    client_file(links)
    lockdown(links, client, "on")
    file = links.state_dir / "lockdown.nft"
    whole = file.read_text()
    file.write_text({"empty": "", "damaged": "table inet ?", "cut": whole[: len(whole) // 2]}[damage])
    boot(links, client)
    with nothing_gets_out(client):
        assert tables(client) == {FILTER, MARK}
        if damage == "damaged":
            role = links.client(client, settings=QUIET)
            works(client)
            assert role.stop() == 0
            assert LOCKED in role.log
            assert "table inet cryprq {" in file.read_text()


def test_the_local_network_as_configured_and_dhcp(hosts: ThreeHosts, links: Links) -> None:
    """Before any client has started; neighbours answer, or no packet would leave at all."""
    client = hosts.client
    for lan in ("allow", "block"):
        client_file(links, {"lan": lan})
        lockdown(links, client, "on")
        boot(links, client)
        client.ip("neigh flush all")
        with (
            Capture(client, "eth0") as capture,
            client.entered(),
            socket.socket(type=socket.SOCK_DGRAM) as asks,
        ):
            reached = not client.attempt(["ping", "-c", "1", "-W", "2", ROUTER_LAN4]).returncode
            asks.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            asks.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
            asks.bind(("", 68))
            asks.sendto(b"discover", ("255.255.255.255", 67))
        assert reached == (lan == "allow")
        assert ("255.255.255.255", 67) in {(p.destination, p.destination_port) for p in capture.sent()}


def test_a_shell_from_outside_lives_through_all_of_it(hosts: ThreeHosts, links: Links) -> None:
    """With `inbound = "keep"`: from before it is on, over a start and a stop, to after it is off."""
    client = hosts.client
    client_file(links, {"inbound": "keep"})
    with client.entered():
        listener = socket.create_server((CLIENT6, 2222), family=socket.AF_INET6)

    def comes_in() -> tuple[socket.socket, socket.socket]:
        with hosts.server.entered():
            outside = socket.create_connection((CLIENT6, 2222), LONG)
        inside, _ = listener.accept()
        inside.settimeout(LONG)
        return outside, inside

    with listener:
        shells = [comes_in()]

        def all_live() -> None:
            for one, other in shells:
                for sends, receives in ((one, other), (other, one)):
                    sends.sendall(b"x")
                    assert receives.recv(1) == b"x"

        lockdown(links, client, "on")
        all_live()
        shells.append(comes_in())
        role = links.client(client, "--inbound", "keep", settings=QUIET)
        all_live()
        shells.append(comes_in())
        assert role.stop() == 0
        all_live()
        shells.append(comes_in())
        lockdown(links, client, "off")
        all_live()
        for pair in shells:
            for sock in pair:
                sock.close()


def test_the_file_follows_the_client_that_runs(
    three_hosts: ThreeHosts, links: Links, server: FarServer
) -> None:
    """The configuration says less than its flags, and then there is another local network."""
    client = three_hosts.client
    links.exit(three_hosts.exit, QUIET)
    client_file(links)
    role = links.client(client, "--exclude", "203.0.113.0/24", settings=QUIET)
    said = lockdown(links, client, "on")
    assert "when the client that runs has ended" in said
    file = links.state_dir / "lockdown.nft"
    until(lambda: "203.0.113.0/24" in file.read_text(), "the file is the running client's", LONG)
    client.ip("addr add 10.20.0.9/24 dev eth0")
    until(lambda: "10.20.0.0/24" in file.read_text(), "the file has the new network", LONG)
    assert EXIT4 in file.read_text()
    with nothing_gets_out(client):
        assert role.stop() == 0
    assert lockdown(links, client, "off") == "lockdown is off\n"
    assert tables(client) == set()


def test_lifted_while_the_client_runs_it_ends_as_ever(
    hosts: ThreeHosts, links: Links, server: FarServer
) -> None:
    client = hosts.client
    client_file(links)
    before = client.snapshot()
    lockdown(links, client, "on")
    role = links.client(client, settings=QUIET)
    assert lockdown(links, client, "off") == "lockdown is off\n"
    assert tables(client) == {FILTER}
    works(client)
    assert role.stop() == 0
    assert LOCKED not in role.log
    assert client.snapshot() == before


def test_a_start_that_would_open_it_is_refused(hosts: ThreeHosts, links: Links, server: FarServer) -> None:
    client = hosts.client
    client_file(links)
    lockdown(links, client, "on")
    role = Role(
        "client",
        client,
        links.command("--tun", "--kill-switch", "off", "--config", str(links.directory / "client.toml")),
        links.environment,
    )
    assert role.wait() == 2
    assert "lockdown off" in role.log
    assert not gets_out(client, server)


def test_the_leak_test_needs_no_client(hosts: ThreeHosts, links: Links) -> None:
    client = hosts.client
    file = client_file(links)
    lockdown(links, client, "on")
    targets = ("--target", SERVER4, "--target", SERVER6, "--config", str(file))
    done = links.call(client, "leaktest", *targets)
    assert not done.returncode, done.stdout + done.stderr
    assert "blocked" in done.stdout
    client.nft("flush chain inet cryprq output")
    client.nft("add chain inet cryprq output { policy accept; }")
    assert links.call(client, "leaktest", *targets).returncode == 1
