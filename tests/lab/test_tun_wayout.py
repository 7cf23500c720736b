"""After any end of system-wide mode there is one thing to do, and every tool names it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree

import pytest

from tests.support.config_files import Settings
from tests.support.lab.flows import Flow
from tests.support.lab.hosts import EXIT4, ROUTER_LAN4, SERVER4, ThreeHosts
from tests.support.lab.links import PORT, Links, Role
from tests.support.lab.net import Namespace
from tests.support.lab.server import FarServer

QUIET: Settings = {"log_level": "info"}
CLEANUP = f"sudo {sys.executable} -m cryprq_proxy cleanup"
SENTENCE = f"the kill switch of an earlier --tun stands: start it again, or {CLEANUP}"
VALID_MARK = "net.ipv4.conf.all.src_valid_mark"
BEFORE = f"# of the lab\nnameserver {ROUTER_LAN4}\n"


@pytest.fixture
def hosts(three_hosts: ThreeHosts, server: FarServer, links: Links) -> ThreeHosts:
    """The standard hosts with the exit running."""
    links.exit(three_hosts.exit, QUIET, clients=("client", "proxy"))
    return three_hosts


def difference(before: str, after: str) -> set[str]:
    """The lines of two snapshots that are not in both; `src_valid_mark` is known to the journal alone."""
    return {
        line for line in set(before.splitlines()) ^ set(after.splitlines()) if "src_valid_mark" not in line
    }


def cleanup(links: Links, host: Namespace, state: Path) -> subprocess.CompletedProcess[str]:
    return links.call(host, "cleanup", "--state-dir", str(state))


def as_told(host: Namespace, said: str, command: str) -> None:
    """Call the command that `said` names, exactly as it stands there."""
    assert f"call: {command}" in said
    host.run(["sh", "-c", command])


def killed(links: Links, host: Namespace) -> None:
    links.client(host, settings=QUIET).kill()


def standing(host: Namespace) -> bool:
    return not host.attempt(["nft", "list", "table", "inet", "cryprq"]).returncode


def works(host: Namespace) -> None:
    with Flow(host, SERVER4) as flow:
        flow.moves()
        assert flow.finish()


# --- without the journal -----------------------------------------------------------------------------------------


def test_without_its_journal_cleanup_takes_the_backup(hosts: ThreeHosts, links: Links) -> None:
    client = hosts.client
    before = client.snapshot()
    killed(links, client)
    (links.state_dir / "client.journal").write_bytes(b"")
    done = cleanup(links, client, links.state_dir)
    assert done.returncode == 1
    assert all(what in done.stderr for what in ("resolv.conf", "table cryprq", "routing"))
    as_told(client, done.stderr, f"sysctl -w {VALID_MARK}=0")
    assert client.resolv_conf.read_text() == BEFORE
    assert client.snapshot() == before
    assert not list(links.state_dir.glob("resolv.conf.*"))
    assert "nothing was left" in cleanup(links, client, links.state_dir).stdout


def test_without_its_state_directory_cleanup_takes_what_the_system_offers(
    hosts: ThreeHosts, links: Links
) -> None:
    """And where the system offers nothing, it says so each time, with exit code 1; the rest is undone."""
    client = hosts.client
    killed(links, client)
    rmtree(links.state_dir)
    for again in (False, True):
        done = cleanup(links, client, links.state_dir)
        assert done.returncode == 1
        if not again:
            as_told(client, done.stderr, f"sysctl -w {VALID_MARK}=0")
        assert "nameserver ADDRESS" in done.stderr and "Traceback" not in done.stderr
        assert not standing(client)
        assert "25458" not in client.run(["ip", "rule"]) + client.run(["ip", "-6", "rule"])
    offered = "/run/NetworkManager/resolv.conf"
    with run_file(client, offered, f"nameserver {ROUTER_LAN4}\n"):
        done = cleanup(links, client, links.state_dir)
        assert done.returncode == 0, done.stderr
        assert offered in done.stdout
        assert client.run(["cat", "/etc/resolv.conf"]) == f"nameserver {ROUTER_LAN4}\n"


@contextmanager
def run_file(host: Namespace, path: str, text: str) -> Iterator[None]:
    """A file in a directory below /run that only this host has."""
    directory = str(Path(path).parent)
    host.run(["mkdir", "-p", directory])
    host.run(["mount", "-t", "tmpfs", "none", directory])
    try:
        host.run(["tee", path], stdin=text)
        yield
    finally:
        host.run(["umount", directory])
        host.run(["rmdir", directory])


@pytest.mark.parametrize("lost", ["the journal", "the directory"])
def test_the_next_start_copes_without_its_journal(hosts: ThreeHosts, links: Links, lost: str) -> None:
    client = hosts.client
    before = client.snapshot()
    killed(links, client)
    if lost == "the journal":
        (links.state_dir / "client.journal").unlink()
    else:
        rmtree(links.state_dir)
    role = links.client(client, settings=QUIET)
    works(client)
    role.says(f"warning .*journal of an earlier run is lost.*call: sysctl -w {VALID_MARK}=0")
    assert role.stop() == 0
    if lost == "the journal":
        assert client.resolv_conf.read_text() == BEFORE
        assert difference(before, client.snapshot()) == set()
    else:
        assert "which name server it had is lost" in role.log
        assert "nameserver" not in client.resolv_conf.read_text()
    assert not standing(client)


def test_cleanup_with_another_state_directory_leaves_a_running_client_alone(
    hosts: ThreeHosts, links: Links
) -> None:
    """It would open the kill switch of a client that lives; a second start there would take it over."""
    client = hosts.client
    links.client(client, settings=QUIET)
    during = client.snapshot()
    other = links.directory / "other-state"
    done = cleanup(links, client, other)
    assert done.returncode == 2
    assert "stop that one first" in done.stderr
    assert during == client.snapshot()
    peer = f"cryprq://{links.identity('exit')[1]}@{EXIT4}:{PORT}"
    file = links.config("second", {"peer": peer, "tun": {"state_dir": str(other)}})
    done = links.call(client, "--tun", "--listen", "127.0.0.1:0", "--config", str(file))
    assert done.returncode == 2, done.stderr
    assert "another cryprq-proxy runs in system-wide mode" in done.stderr
    assert "stop that one first" in done.stderr
    assert during == client.snapshot()
    works(client)


# --- every tool names it -----------------------------------------------------------------------------------------


def as_user(links: Links, host: Namespace, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command of the program by a user who may do nothing, in a user namespace, so that it finds its interpreter."""
    user = ["unshare", "--user", "--map-user=1000", "--map-group=1000", "--"]
    return host.attempt(user + links.command(*arguments), env={**links.environment, "HOME": "/nonexistent"})


def test_every_tool_says_what_to_do(hosts: ThreeHosts, links: Links) -> None:
    client = hosts.client
    role = links.client(client, settings=QUIET)
    assert SENTENCE not in links.call(client, "doctor", "--no-speed").stdout
    role.kill()
    config = str(links.directory / "client.toml")
    for done in (
        links.call(client, "doctor", "--no-speed", "--config", config),
        links.call(client, "doctor"),
        as_user(links, client, "doctor"),
    ):
        assert done.returncode == 1
        first = next(line for line in done.stdout.splitlines() if line.startswith("FAIL"))
        assert "leftovers" in first and SENTENCE in first, done.stdout
    for done in (links.call(client, "status"), as_user(links, client, "status")):
        assert done.returncode == 1
        assert SENTENCE in done.stderr
    proxy = links.client(client, settings=QUIET, name="proxy", tun=False, ready="no link to")
    proxy.says(SENTENCE)
    assert cleanup(links, client, links.state_dir).returncode == 0
    proxy.says("link up")
    assert SENTENCE not in links.call(client, "status").stderr
    leftovers = next(
        line for line in as_user(links, client, "doctor").stdout.splitlines() if "leftovers" in line
    )
    assert leftovers.startswith("ok"), leftovers


def test_every_tool_names_what_is_left_where_no_filter_stands(hosts: ThreeHosts, links: Links) -> None:
    """As after a reboot, which takes the kernel's part away."""
    client = hosts.client
    killed(links, client)
    client.run(["nft", "flush", "ruleset"])
    for version in ("-4", "-6"):
        client.run(["sh", "-c", f"while ip {version} rule del protocol 114 2>/dev/null; do :; done"])
    left = f"an earlier --tun has left /etc/resolv.conf: start it again, or {CLEANUP}"
    for done in (links.call(client, "status"), as_user(links, client, "status")):
        assert done.returncode == 1
        assert left in done.stderr
    assert "an earlier --tun has left /etc/resolv.conf" in links.call(client, "doctor").stdout
    proxy = links.client(client, settings=QUIET, name="proxy", tun=False, ready="ready: ")
    assert "earlier --tun" not in proxy.log
    assert cleanup(links, client, links.state_dir).returncode == 0
    assert client.resolv_conf.read_text() == BEFORE
    assert "earlier --tun" not in links.call(client, "doctor").stdout


def test_a_kill_before_the_link_is_named_to_root(three_hosts: ThreeHosts, links: Links) -> None:
    """Only the filter stands by then, which users cannot see."""
    client = three_hosts.client
    role = links.client(client, settings=QUIET, ready="no link to")
    assert SENTENCE not in role.log, "its own kill switch is no earlier one"
    assert SENTENCE not in links.call(client, "doctor").stdout
    role.kill()
    assert SENTENCE in links.call(client, "doctor").stdout
    assert SENTENCE in links.call(client, "status").stderr
    assert cleanup(links, client, links.state_dir).returncode == 0


# --- bad input ---------------------------------------------------------------------------------------------------


def refused(links: Links, host: Namespace) -> Role:
    role = links.client(host, settings=QUIET, ready=r"^cryprq-proxy: ")
    assert role.wait() in (1, 2)
    return role


@pytest.mark.parametrize("pages", [1, 2])
def test_a_full_disk_leaves_nothing_half_done(hosts: ThreeHosts, links: Links, pages: int) -> None:
    """Journal, its lock and the backup have one page of 4 KiB each."""
    client = hosts.client
    before = client.snapshot()
    links.state_dir.mkdir(mode=0o700)
    client.run(["mount", "-t", "tmpfs", "-o", f"size={4 * pages}k,mode=700", "none", str(links.state_dir)])
    role = refused(links, client)
    assert "no space left" in role.lines[-1]
    assert "Traceback" not in role.log and "this is a bug" not in role.log
    assert sum(line.startswith("cryprq-proxy: ") for line in role.lines) == 1
    after = client.snapshot()
    assert set(before.splitlines()) ^ set(after.splitlines()) == set()
    left = client.run(["ls", str(links.state_dir)]).split()
    assert not [name for name in left if name.startswith("resolv.conf")], left
    client.run(["umount", str(links.state_dir)])


def test_a_state_directory_of_another_user(hosts: ThreeHosts, links: Links) -> None:
    """It is neither used nor believed: its owner could have written any journal and any backup."""
    client = hosts.client
    before = client.snapshot()
    killed(links, client)
    owner = ["chown", "-R", "1234:1234", str(links.state_dir)]
    client.run(owner)
    during = client.snapshot()
    role = refused(links, client)
    assert str(links.state_dir) in role.lines[-1]
    assert difference(during, client.snapshot()) == set()
    done = cleanup(links, client, links.state_dir)
    assert done.returncode == 1
    assert str(links.state_dir) in done.stderr and "nameserver ADDRESS" in done.stderr
    assert not standing(client)
    client.run(["chown", "-R", "0:0", str(links.state_dir)])
    assert cleanup(links, client, links.state_dir).returncode == 0
    assert set(before.splitlines()) ^ set(client.snapshot().splitlines()) == set()


# --- the exit ----------------------------------------------------------------------------------------------------


def test_an_exit_whose_journal_is_lost(three_hosts: ThreeHosts, links: Links) -> None:
    """Its table is removed. What the kernel's settings were nobody knows, so `cleanup` says what to look at."""
    host = three_hosts.exit
    state = links.directory / "state-exit"
    role = links.exit(host, QUIET)
    during = host.snapshot()
    for directory in (state, links.directory / "elsewhere"):
        assert cleanup(links, host, directory).returncode == 2
    assert during == host.snapshot()
    role.kill()
    rmtree(state)
    assert "cryprq_exit" in links.call(host, "doctor", "--exit").stdout
    done = cleanup(links, host, state)
    assert done.returncode == 1
    as_told(
        host,
        done.stderr,
        "sysctl -w net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0 net.netfilter.nf_conntrack_tcp_be_liberal=0"
        " net.ipv6.conf.eth0.accept_ra=1",
    )
    assert "cryprq_exit" not in host.run(["nft", "list", "tables"])
    assert cleanup(links, host, state).returncode == 0
    links.exit(host, QUIET).kill()
    rmtree(state)
    assert links.exit(host, QUIET).stop() == 0, "the next start takes over a table whose journal is lost"
    assert "cryprq_exit" not in host.run(["nft", "list", "tables"])


def test_an_exit_on_a_full_disk(three_hosts: ThreeHosts, links: Links) -> None:
    host = three_hosts.exit
    before = host.snapshot()
    state = links.directory / "state-exit"
    state.mkdir(mode=0o700)
    host.run(["mount", "-t", "tmpfs", "-o", "size=4k,mode=700", "none", str(state)])
    with pytest.raises(AssertionError, match=r"cryprq-proxy: .*no space left"):
        links.exit(host, QUIET)
    assert links.roles[-1].wait() in (1, 2)
    assert before == host.snapshot()


def test_every_tool_names_what_a_killed_exit_has_left(three_hosts: ThreeHosts, links: Links) -> None:
    """With and without a configuration; a user without rights sees its routes, and no table."""
    host = three_hosts.exit
    links.exit(host, QUIET).kill()
    table, routes = "the table cryprq_exit of the packet filter", "routes to clients"
    left = f"no cryprq-proxy is running; an earlier --tun has left {table}, {routes}: start it again, or sudo"
    file = links.directory / "exit.toml"
    for options in ((), ("--config", str(file))):
        done = links.call(host, "status", *options)
        assert done.returncode == 1 and left in done.stderr
    assert f"an earlier --tun has left {routes}: start it" in as_user(links, host, "status").stderr
    assert routes in as_user(links, host, "doctor").stdout
    assert cleanup(links, host, links.directory / "state-exit").returncode == 0
    assert "earlier --tun" not in links.call(host, "status").stderr
    assert "earlier --tun" not in links.call(host, "doctor").stdout
