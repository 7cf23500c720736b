"""Rules in the running client: what each sends where, also after the file has changed, and what the commands say."""

from __future__ import annotations

import json
import signal
import subprocess
import urllib.error
import urllib.request
from typing import Any

import pytest

from cryprq_proxy.process.control import query
from tests.support.applications import Curl, Refused, read_exactly, through
from tests.support.programs import Client, Exit, World, free_port, until
from tests.support.targets import HttpTarget, TcpTarget


class Ruled:
    """An exit, and a client whose rules can be written anew."""

    def __init__(self, world: World, rules: str, **settings: Any) -> None:
        self.world = world
        self.exit: Exit = world.exit()
        self.admin = free_port()
        self.client: Client = world.client(self.exit, {"admin": f"127.0.0.1:{self.admin}", **settings})
        self.file = world.directory / f"{self.client.name}.toml"
        self._plain = self.file.read_text()
        self.loaded = 0.0
        self.write(rules)
        self.until_loaded()

    def write(self, rules: str, *, level: str = "debug") -> None:
        self.loaded = self.client.status()["rules"]["loaded_at"]
        self.file.write_text(self._plain.replace('"debug"', f'"{level}"') + rules)

    def until_loaded(self) -> None:
        until(lambda: self.client.status()["rules"]["loaded_at"] > self.loaded, "the rules were read again")

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.world.command(*arguments, "--config", str(self.file)),
            env=self.world.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


def test_blocked_direct_and_tunnelled(
    world: World, curl: Curl, http: HttpTarget, echo_target: TcpTarget
) -> None:
    (world.directory / "ads.txt").write_text("0.0.0.0 ads.test\n||tracker.test^\nnot a domain!\n")
    ruled = Ruled(
        world,
        '[[rule]]\nname = "no ads"\nto = "block"\nlists = ["ads.txt"]\n'
        f'[[rule]]\nto = "direct"\ncidrs = ["127.0.0.0/8"]\nports = [{http.port}]\n',
    )
    client = ruled.client
    rules = client.status()["rules"]
    assert (rules["rules"], rules["names"], rules["default"]) == (2, 2, "tunnel")
    assert rules["broken"] == 1 and "ads.txt, line 3: " in rules["problems"][0]
    # Blocked: the precise reply, and a page that names the rule.
    with pytest.raises(Refused) as refused:
        through(client.port, 80, "ads.test")
    assert refused.value.code == 2
    page = curl.run("-x", f"http://127.0.0.1:{client.port}", "-i", "http://sub.tracker.test/").stdout
    assert page.startswith(b"HTTP/1.1 403") and b"no ads" in page
    # Direct: no stream at the exit. Through the tunnel: one.
    url = f"http://127.0.0.1:{http.port}/hello"
    assert curl.get("--socks5-hostname", f"127.0.0.1:{client.port}", url) == b"hello\n"
    with through(client.port, echo_target.port) as sock:
        sock.sendall(b"x")
        assert read_exactly(sock, 1) == b"x"
        assert ruled.exit.streams == 1
    counts = client.status()["connections"]
    assert counts["by"] == {"tunnel": 1, "direct": 1, "block": 2, "exit": 0}


def test_rules_are_read_again_when_they_change(world: World, echo_target: TcpTarget) -> None:
    ruled = Ruled(world, 'default = "tunnel"')
    client, port = ruled.client, echo_target.port
    with through(client.port, port) as kept:
        ruled.write(f'[[rule]]\nto = "block"\nports = [{port}]')
        ruled.until_loaded()
        with pytest.raises(Refused) as refused:
            through(client.port, port)
        assert refused.value.code == 2
        kept.sendall(b"still")
        assert read_exactly(kept, 5) == b"still"
    client.says("reloaded: 1 rule, 0 listed names")
    # By a signal, before anybody has looked at the file; log level and rules.
    ruled.write("", level="info")
    client.process.send_signal(signal.SIGHUP)
    ruled.until_loaded()
    with through(client.port, port):
        assert client.status()["log_level"] == "info"


def test_a_wrong_file_changes_nothing_and_is_named(world: World, echo_target: TcpTarget) -> None:
    ruled = Ruled(world, f'[[rule]]\nto = "block"\nports = [{echo_target.port}]')
    client = ruled.client
    client.may_complain = True
    ruled.write('[[rule]]\nto = "nowhere"\nports = [1]')
    until(lambda: client.status()["rules"]["error"] is not None, "the file was found wrong")
    error = client.status()["rules"]["error"]
    assert 'rule[1].to: expected "tunnel", "direct", "block" or "exit:NAME"' in error
    assert error in [entry["text"] for entry in client.status()["errors"]]
    with pytest.raises(Refused):
        through(client.port, echo_target.port)
    done = ruled.command("reload")
    assert (done.returncode, done.stdout) == (1, "") and "rule[1].to: expected" in done.stderr
    ruled.write("")
    done = ruled.command("reload")
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("0 rules, 0 listed names")
    assert client.status()["rules"]["error"] is None
    through(client.port, echo_target.port).close()


def test_a_direct_name_does_not_lead_to_this_machine(
    world: World, echo_target: TcpTarget, curl: Curl
) -> None:
    """The owner of a name decides that it resolves to loopback (DNS rebinding)."""
    world.environment = {**world.environment, "E2E_HOSTS": "rebound.test=127.0.0.1 localhost=127.0.0.1"}
    ruled, name, port = Ruled(world, 'default = "direct"\n'), "rebound.test", echo_target.port
    client = ruled.client
    with pytest.raises(Refused) as refused:
        through(client.port, port, name)
    assert refused.value.code == 2
    page = curl.run("-x", f"http://127.0.0.1:{client.port}", "-i", f"http://{name}:{port}/").stdout
    assert page.startswith(b"HTTP/1.1 403") and b"names its address too, in cidrs" in page
    for host in ("127.0.0.1", "localhost"):
        through(client.port, port, host).close()
    # The rule of the name itself says so.
    ruled.write(f'[[rule]]\nto = "direct"\ndomains = ["{name}"]\ncidrs = ["127.0.0.1"]\n')
    ruled.until_loaded()
    through(client.port, port, name).close()


def test_a_private_address_needs_a_rule(world: World, curl: Curl) -> None:
    """The exit forbids it; the page says what the person can do."""
    exit = world.exit({"allow_private": False})
    client = world.client(exit)
    page = curl.run("-x", f"http://127.0.0.1:{client.port}", "-i", "http://192.168.1.1/").stdout
    assert page.startswith(b"HTTP/1.1 403") and b'[[rule]] to = "direct"' in page


def test_the_pac_file_follows_the_rules(world: World) -> None:
    ruled = Ruled(world, '[[rule]]\nto = "direct"\ndomains = [".corp.test"]')
    url = f"http://127.0.0.1:{ruled.admin}/proxy.pac"
    with urllib.request.urlopen(url, timeout=20) as answer:
        first, tag = answer.read(), answer.headers["ETag"]
        assert answer.headers["Content-Type"] == "application/x-ns-proxy-autoconfig"
    assert b"corp.test" in first
    assert ruled.command("pac").stdout.encode() == first
    again = urllib.request.Request(url, headers={"If-None-Match": tag})
    with pytest.raises(urllib.error.HTTPError) as unchanged:
        urllib.request.urlopen(again, timeout=20)
    with unchanged.value as answer:
        assert answer.code == 304
    ruled.write('[[rule]]\nto = "direct"\ndomains = [".home.test"]')
    ruled.until_loaded()
    with urllib.request.urlopen(again, timeout=20) as answer:
        assert b"home.test" in answer.read() and answer.headers["ETag"] != tag


def test_explain_says_which_rule_decides(world: World) -> None:
    ruled = Ruled(world, '[[rule]]\nname = "work"\nto = "direct"\ndomains = [".corp.test"]')
    done = ruled.command("explain", "https://www.corp.test/x", "--json")
    told = json.loads(done.stdout)
    assert (done.returncode, told["rule"], told["action"]) == (0, "work", "direct")
    assert ruled.command("explain", "ftp://").returncode == 2


def test_streams_are_listed_and_closed(world: World, echo_target: TcpTarget) -> None:
    ruled = Ruled(world, f'[[rule]]\nname = "echo"\nto = "tunnel"\nports = [{echo_target.port}]')
    with through(ruled.client.port, echo_target.port) as sock:
        sock.sendall(b"hello")
        assert read_exactly(sock, 5) == b"hello"
        [row] = query(ruled.client.control, "streams")["streams"]
        assert (row["target"], row["rule"], row["to"]) == (f"127.0.0.1:{echo_target.port}", "echo", "tunnel")
        assert (row["sent"], row["received"]) == (5, 5)
        query(ruled.client.control, "close", argument=row["id"])
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    until(lambda: ruled.exit.streams == 0, "the exit has let go of it")


def test_switching_between_exits(world: World) -> None:
    first, second = world.exit(identity="exit"), world.exit(identity="other")
    tables = [
        {"name": name, "peer": f"cryprq://{exit.peer_id}@127.0.0.1:{exit.port}", "priority": number}
        for number, (name, exit) in enumerate([("home", first), ("away", second)])
    ]
    client = world.client(None, {"exit": tables}, wait=False)
    file = str(world.directory / f"{client.name}.toml")
    until(lambda: all(exit["healthy"] for exit in client.status()["exits"]), "both links are up")

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            world.command(*arguments, "--config", file),
            env=world.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    assert command("switch", "away").stdout == "new connections go through away\n"
    assert [exit["name"] for exit in client.status()["exits"] if exit["active"] and exit["pinned"]] == [
        "away"
    ]
    done = command("switch", "nowhere")
    assert done.returncode == 1 and "there is no exit of that name; choose one of: home, away" in done.stderr
    assert "through the best exit" in command("switch", "auto").stdout
    assert not any(exit["pinned"] for exit in client.status()["exits"])
