"""System-wide mode killed: nothing gets out meanwhile, and everything can be undone, on both sides.

"The link" on the wire is what goes to the exit's address and port. The kill switch must let nothing else out from the
moment it stands until it is taken away by a clean stop or by `cleanup`, whatever becomes of the process.
"""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from tests.support.config_files import Settings
from tests.support.lab.capture import Capture, Packet
from tests.support.lab.flows import Flow, lane_is
from tests.support.lab.hosts import EXIT4, ROUTER_LAN4, SERVER4, SERVER6, ThreeHosts
from tests.support.lab.hosts import three_hosts as three_hosts_of
from tests.support.lab.links import PORT, Links, Role
from tests.support.lab.net import LONG, Lab, Namespace, Resolver, until
from tests.support.lab.noise import Noise
from tests.support.lab.server import ECHO_PORT, FarServer
from tun.journal import boot_id

QUIET: Settings = {"log_level": "info"}
SEED = 20240607
CLOSED = "nothing gets out until the link is up"
"""The line that a client writes when its filter is up."""


@pytest.fixture
def hosts(three_hosts: ThreeHosts, server: FarServer, links: Links) -> ThreeHosts:
    """The standard hosts with the exit running."""
    links.exit(three_hosts.exit, QUIET)
    return three_hosts


def strangers(packets: Sequence[Packet]) -> set[tuple[str, str, int]]:
    """What left the host and is not the link."""
    return {
        (packet.protocol, packet.destination, packet.destination_port)
        for packet in packets
        if (packet.protocol, packet.destination, packet.destination_port)
        not in (("tcp", EXIT4, PORT), ("udp", EXIT4, PORT))
    }


@contextmanager
def only_the_link(host: Namespace) -> Iterator[None]:
    """Many programs try to get out all the time, and not one packet of theirs does."""
    with Capture(host, "eth0") as capture, Noise(host, "eth0", SERVER4, SERVER6, "8.8.8.8") as noise:
        yield
        taken, refused = noise.stop()
    assert taken + refused
    assert strangers(capture.sent()) == set()


def standing(host: Namespace) -> bool:
    return not host.attempt(["nft", "list", "table", "inet", "cryprq"]).returncode


def clean(links: Links, host: Namespace, state: str = "state") -> str:
    """`cleanup`, and what it said."""
    done = links.call(host, "cleanup", "--state-dir", str(links.directory / state))
    assert not done.returncode, done.stderr
    return done.stdout


def quickly(links: Links, host: Namespace) -> Role:
    """Start the client and wait for its first line only: nothing gets out from here on."""
    return links.client(host, settings=QUIET, ready="")


def difference(before: str, after: str) -> set[str]:
    """The lines of two snapshots that are not in both."""
    return set(before.splitlines()) ^ set(after.splitlines())


@pytest.mark.parametrize("resolver", ["own", "bound"])
def test_killed_while_it_starts_on_clean_ground(resolver: Resolver, lab: Lab, links: Links) -> None:
    """However far it came, what stands in the journal is enough to undo it; once the filter stands, it holds."""
    hosts = three_hosts_of(lab, resolver)
    client = hosts.client
    chance = random.Random(SEED)
    links.exit(hosts.exit, QUIET)
    before = client.snapshot()
    started = time.monotonic()
    assert links.client(client, settings=QUIET).stop() == 0
    usual = time.monotonic() - started
    assert client.snapshot() == before

    def killed(role: Role) -> bool:
        """Whether its filter stands; if so, it holds."""
        role.kill()
        closed = standing(client)
        if closed:
            with only_the_link(client):
                pass
        clean(links, client)
        after = client.snapshot()
        assert difference(before, after) == set()
        assert after == before
        return closed

    for _ in range(3):
        role = quickly(links, client)
        time.sleep(chance.uniform(usual / 3, usual))
        killed(role)
    assert killed(links.client(client, settings=QUIET, ready=CLOSED))


@pytest.mark.parametrize("server_address", [SERVER4, SERVER6])
def test_connections_of_the_tunnel_end_with_it(server_address: str, hosts: ThreeHosts, links: Links) -> None:
    """Else the kernel would send their rest from the tunnel's address by the ordinary route."""
    client = hosts.client
    role = links.client(client, settings=QUIET)
    with client.entered():
        kept, dropped = (socket.create_connection((server_address, ECHO_PORT), LONG) for _ in range(2))
    with kept, Capture(client, "eth0") as capture:
        own = kept.getsockname()[0]
        for sock in (kept, dropped):
            sock.settimeout(LONG)
            sock.sendall(b"echo")
            assert sock.recv(4) == b"echo"
        hosts.exit.run(["ip", "link", "set", "eth0", "down"])
        dropped.sendall(b"never acknowledged")
        dropped.close()
        assert role.stop() == 0
        with pytest.raises(ConnectionError):
            while True:
                kept.sendall(b"echo")
                kept.recv(4)
    assert not [packet for packet in capture.sent() if packet.source == own]


def test_started_again_after_a_kill(hosts: ThreeHosts, links: Links) -> None:
    """Without cleanup: all works again, the filter never opens, and a clean stop undoes what both have done."""
    client = hosts.client
    before = client.snapshot()
    first = links.client(client, settings=QUIET)
    resolver = client.resolv_conf.read_text()
    with only_the_link(client):
        first.kill()
        again = links.client(client, settings=QUIET)
        assert client.resolv_conf.read_text().splitlines()[1:] == resolver.splitlines()[1:]
        for address in (SERVER4, SERVER6):
            with Flow(client, address) as flow:
                flow.moves()
                assert flow.finish()
    assert again.stop() == 0
    assert difference(before, client.snapshot()) == set()


def test_started_while_the_exit_is_away(three_hosts: ThreeHosts, server: FarServer, links: Links) -> None:
    """Nothing gets out until it is there. A stop before that is a clean one, also after a crash."""
    client = three_hosts.client
    before = client.snapshot()
    role = links.client(client, settings=QUIET, ready="no link to")
    with only_the_link(client):
        role.kill()
        role = links.client(client, settings=QUIET, ready="no link to")
    assert role.stop() == 0
    assert difference(before, client.snapshot()) == set()
    role = links.client(client, settings=QUIET, ready="no link to")
    with only_the_link(client):
        links.exit(three_hosts.exit, QUIET)
        role.says("ready: ")
        with Flow(client, SERVER4) as flow:
            flow.moves()
            assert flow.finish()


def test_a_start_that_fails_opens_nothing_that_was_closed(hosts: ThreeHosts, links: Links) -> None:
    """After a crash the exit carries no packets any more: the start fails, and the kill switch stands as before.

    On clean ground the same failure leaves nothing behind.
    """
    client = hosts.client
    before = client.snapshot()
    links.client(client, settings=QUIET).kill()
    exit = links.roles[0]
    assert exit.stop() == 0
    links.exit(hosts.exit, QUIET, tun=False)
    with only_the_link(client):
        failed = links.client(client, settings=QUIET, ready="carries no packets")
        assert failed.wait() == 1
        assert standing(client)
    clean(links, client)
    assert difference(before, client.snapshot()) == set()
    failed = links.client(client, settings=QUIET, ready="carries no packets")
    assert failed.wait() == 1
    assert difference(before, client.snapshot()) == set()


def test_an_end_that_nobody_asked_for_leaves_the_kill_switch(hosts: ThreeHosts, links: Links) -> None:
    """The exit, started anew without a network, carries no packets: the client ends and lets nothing out."""
    client = hosts.client
    before = client.snapshot()
    role = links.client(client, settings=QUIET)
    with only_the_link(client):
        assert links.roles[0].stop() == 0
        links.exit(hosts.exit, QUIET, tun=False)
        role.says("carries no packets")
        assert role.wait() == 1
        assert standing(client)
    assert "kill switch stands" in role.log
    clean(links, client)
    assert difference(before, client.snapshot()) == set()


@pytest.mark.parametrize("command", ["link del cryprq0", "link set cryprq0 netns elsewhere"])
def test_the_device_is_removed_by_hand(hosts: ThreeHosts, links: Links, lab: Lab, command: str) -> None:
    """The process says so and ends with 1, so that a service manager starts it again; meanwhile nothing gets out."""
    client = hosts.client
    before = client.snapshot()
    role = links.client(client, settings=QUIET)
    with only_the_link(client):
        client.ip(command.replace("elsewhere", lab.namespace("elsewhere").name))
        assert role.wait() == 1
        assert standing(client)
        assert "another program removed the device cryprq0" in role.log
        role = links.client(client, settings=QUIET)
        with Flow(client, SERVER4) as flow:
            flow.moves()
            assert flow.finish()
    assert role.stop() == 0
    assert difference(before, client.snapshot()) == set()


def test_without_a_kill_switch_an_end_undoes_all(hosts: ThreeHosts, links: Links) -> None:
    client = hosts.client
    before = client.snapshot()
    role = links.client(client, "--kill-switch", "off", settings=QUIET)
    client.ip("link del cryprq0")
    assert role.wait() == 1
    assert difference(before, client.snapshot()) == set()


def test_cleanup_needs_no_configuration_and_no_journal(hosts: ThreeHosts, links: Links) -> None:
    """What bears our marks is found without the journal. Which kernel settings were changed only it knows."""
    client = hosts.client
    links.client(client, settings=QUIET).kill()
    (links.directory / "client.toml").unlink()
    (links.state_dir / "client.journal").rename(links.directory / "aside")
    done = links.call(client, "cleanup", "--state-dir", str(links.state_dir))
    assert done.returncode == 1
    assert "table cryprq" in done.stderr and "src_valid_mark=0" in done.stderr
    assert not standing(client)
    assert "25458" not in client.run(["ip", "rule"]) + client.run(["ip", "-6", "rule"])
    (links.directory / "aside").rename(links.state_dir / "client.journal")
    assert "resolv.conf" in clean(links, client)
    assert client.resolv_conf.read_text() == f"# of the lab\nnameserver {ROUTER_LAN4}\n"


def test_cleanup_leaves_a_running_client_alone(hosts: ThreeHosts, links: Links) -> None:
    client = hosts.client
    links.client(client, settings=QUIET)
    during = client.snapshot()
    done = links.call(client, "cleanup", "--state-dir", str(links.state_dir))
    assert done.returncode == 2
    assert "stop that one first" in done.stderr
    assert difference(during, client.snapshot()) == set()


# --- the exit --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["kill -9", "SIGTERM"])
def test_the_exit_is_started_again(way: str, hosts: ThreeHosts, links: Links) -> None:
    """The client is back by itself. What was open goes on or breaks, and does not hang."""
    client, exit = links.client(hosts.client, settings=QUIET), links.roles[0]
    lane_is(links, True)
    addresses = links.status()["tun"]["addresses"]
    outside = Capture(hosts.exit, "eth0")
    with only_the_link(hosts.client), Flow(hosts.client, SERVER4) as flow:
        flow.moves()
        written = client.written
        if way == "SIGTERM":
            assert exit.stop() == 0
        else:
            exit.kill()
        client.says("link (down|to the exit .* left)", since=written)
        links.exit(hosts.exit, QUIET)
        client.says("link up", since=written)
        for address in (SERVER4, SERVER6):
            with Flow(hosts.client, address) as new:
                new.moves()
                assert new.finish()
        flow.ends_or_moves()
    inner = [
        packet for packet in outside.stop() if packet.sent and packet.source.startswith(("198.18.", "fd63:"))
    ]
    assert not inner, "what is not translated must not leave the exit"
    lane_is(links, True)
    assert links.status()["tun"]["addresses"] == addresses


def test_the_exit_comes_back_with_another_pool(hosts: ThreeHosts, server: FarServer, links: Links) -> None:
    """The client takes its new addresses: new traffic flows, names are resolved.

    What was open is over, as whenever a machine's address changes; TCP notices by its own time-outs.
    """
    client, exit = links.client(hosts.client, settings=QUIET), links.roles[0]
    server.dns.answers[("after.example.com.", "A")] = [SERVER4]
    with only_the_link(hosts.client):
        written = client.written
        assert exit.stop() == 0
        links.exit(hosts.exit, {**QUIET, "tun": {"pool4": "100.127.0.0/24", "pool6": "fd00:127::/64"}})
        client.says("handed out other addresses", since=written)
        for address in (SERVER4, SERVER6):
            with Flow(hosts.client, address) as new:
                new.moves()
                assert new.finish()
        answer = hosts.client.run(["dig", "+short", "+time=5", "+tries=3", "after.example.com"])
        assert answer.split() == [SERVER4]
    addresses = links.status()["tun"]["addresses"]
    assert addresses[0].startswith("100.127.0.") and addresses[1].startswith("fd00:127:")


def test_an_exit_killed_while_it_starts(three_hosts: ThreeHosts, links: Links) -> None:
    host = three_hosts.exit
    chance = random.Random(SEED)
    before = host.snapshot()
    started = time.monotonic()
    assert links.exit(host, QUIET).stop() == 0
    usual = time.monotonic() - started
    for _ in range(3):
        command = links.command("exit", "--config", str(links.directory / "exit.toml"))
        process = host.popen(command, env=links.environment)
        time.sleep(chance.uniform(usual / 3, usual))
        process.kill()
        process.wait()
        clean(links, host, "state-exit")
        assert difference(before, host.snapshot()) == set()


def test_a_killed_exit_is_undone(three_hosts: ThreeHosts, server: FarServer, links: Links) -> None:
    """By its next start and clean stop, and by `cleanup`: table and sysctls; the device went with the process."""
    host = three_hosts.exit
    before = host.snapshot()
    links.exit(host, QUIET).kill()
    assert difference(before, host.snapshot())
    assert "nft_table" in clean(links, host, "state-exit")
    assert difference(before, host.snapshot()) == set()
    assert "nothing was left" in clean(links, host, "state-exit")
    links.exit(host, QUIET).kill()
    again = links.exit(host, QUIET)
    links.client(three_hosts.client, settings=QUIET)
    with Flow(three_hosts.client, SERVER4) as flow:
        flow.moves()
        assert flow.finish()
    assert again.stop() == 0
    assert difference(before, host.snapshot()) == set()


@pytest.mark.parametrize("command", ["link del cryprq-exit0", "link set cryprq-exit0 netns elsewhere"])
def test_the_exits_device_is_removed_by_hand(
    three_hosts: ThreeHosts, links: Links, lab: Lab, command: str
) -> None:
    host = three_hosts.exit
    before = host.snapshot()
    exit = links.exit(host, QUIET)
    host.ip(command.replace("elsewhere", lab.namespace("elsewhere").name))
    assert exit.wait() == 1
    assert "another program removed the device cryprq-exit0" in exit.log
    assert difference(before, host.snapshot()) == set()
    until(lambda: not host.pids(), "the exit is gone")


# --- a reboot --------------------------------------------------------------------------------------------------


def test_cleanup_after_a_reboot(hosts: ThreeHosts, links: Links) -> None:
    """The kernel has forgotten everything, so only files are put back: a sysctl that a person set since stays."""
    client = hosts.client
    before = client.snapshot()
    links.client(client, settings=QUIET).kill()
    after_boot(client, links)
    client.sysctl("net.ipv4.conf.all.src_valid_mark", "1")
    assert "resolv.conf" in clean(links, client)
    assert client.sysctl("net.ipv4.conf.all.src_valid_mark", "0") == "0"
    assert difference(before, client.snapshot()) == set()


def after_boot(host: Namespace, links: Links) -> None:
    """As the kernel is after a reboot: no rules, routes and tables of ours, and the journal is of another boot."""
    host.run(["nft", "flush", "ruleset"])
    for family in ("-4", "-6"):
        for line in host.run(["ip", family, "rule"]).splitlines():
            if 25400 <= (priority := int(line.partition(":")[0])) < 25500:
                host.ip(f"{family} rule del priority {priority}")
        host.attempt(["ip", family, "route", "flush", "table", "25458"])
    host.sysctl("net.ipv4.conf.all.src_valid_mark", "0")
    journal = links.state_dir / "client.journal"
    text = journal.read_text()
    boot = boot_id()
    assert boot in text
    journal.write_text(text.replace(boot, "00000000-0000-4000-8000-000000000000"))
