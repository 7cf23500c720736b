"""From two fresh machines to the first page through two services: five commands, and nothing written by hand."""

from __future__ import annotations

import json
import shlex

import pytest

from tests.support.lab.hosts import EXIT4, SERVER4, ThreeHosts
from tests.support.lab.links import Links
from tests.support.lab.machine import Machine
from tests.support.lab.server import FarServer

PAGE = f"http://{SERVER4}/address"
PROXY = ("-x", "socks5h://127.0.0.1:1080")


class Counted:
    """The commands that a person types."""

    def __init__(self) -> None:
        self.typed: list[str] = []

    def types(self, machine: Machine, *arguments: str) -> str:
        self.typed.append(shlex.join(arguments))
        return machine.command(*arguments)


@pytest.fixture
def there(three_hosts: ThreeHosts, links: Links) -> Machine:
    return Machine(links, three_hosts.exit)


@pytest.fixture
def here(three_hosts: ThreeHosts, links: Links) -> Machine:
    return Machine(links, three_hosts.client)


@pytest.mark.parametrize("joins", ["first", "last"])
def test_two_services_in_few_commands(there: Machine, here: Machine, server: FarServer, joins: str) -> None:
    person = Counted()
    said = person.types(there, "service", "install", "exit")
    assert "Start it by hand, as root, with:" in said and said.endswith(
        "Next:\n  cryprq-proxy invite laptop\n"
    )
    # Once more is an upgrade: what the service's user has is read as that user.
    there.command("service", "install", "exit")
    there.start("cryprq-exit")
    invite = person.types(there, "invite", "laptop").strip()
    if joins == "first":
        assert "joined: " in person.types(here, "join", invite)
        said = person.types(here, "service", "install", "proxy")
    else:
        said = person.types(here, "service", "install", "proxy")
        assert said.endswith("Next:\n  cryprq-proxy join 'cryprq://...#...'\n")
        said = person.types(here, "join", invite)
    assert "by hand" in said and "cryprq-proxy check\n" in said
    here.start("cryprq-proxy")
    assert here.page(PAGE, *PROXY) == EXIT4 != here.page(PAGE)
    person.typed.append("the page")
    assert len(person.typed) <= 6

    # From now on root's commands speak to the services, and write as their user.
    assert json.loads(here.command("status", "--json"))["link"]
    [peer] = json.loads(there.command("peers", "--json"))["peers"]
    assert peer["name"] == "laptop"
    there.command("peers", "rename", "laptop", "desk")
    for machine in (there, here):
        for line in machine.listing("/etc/cryprq").splitlines():
            assert line.endswith(" cryprq 600"), line
    assert "installed, but no service manager runs here" in there.command("service", "status")

    said = there.command("service", "uninstall")
    assert "its keys, configuration and lists stay in /etc/cryprq" in said
    assert "cryprq-exit" not in there.listing("/etc/systemd/system") and "identity" in there.listing(
        "/etc/cryprq"
    )


def test_what_was_tried_by_hand_becomes_a_service(there: Machine, here: Machine, server: FarServer) -> None:
    """Both sides try it without root, as the front page says, and find each other again as services."""
    sudo = there.person("alice")
    tried = there.by_hand("exit", there.as_user("alice", "exit"))
    invite = there.host.run(there.as_user("alice", "invite", "laptop"), env=there.environment).strip()
    here.person("bob")
    here.host.run(here.as_user("bob", "join", invite), env=here.environment)
    assert "yours is in /opt/alice/.config/cryprq" in there.sentence("peers", **sudo)
    assert "runs by hand" in there.sentence("service", "install", **sudo)
    tried.stop()

    said = there.command("service", "install", **sudo)
    assert "carried from /opt/alice/.config/cryprq to /etc/cryprq" in said
    assert there.listing("/opt/alice/.config/cryprq") == ""
    assert sorted(there.listing("/etc/cryprq").split("\n")[:-1]) == [
        "authorized cryprq 600",
        "identity cryprq 600",
        "invites cryprq 600",
    ]
    # It answers no first flight again that the person's exit has answered.
    assert there.listing("/opt/alice/.local/state/cryprq") == ""
    assert there.listing("/var/lib/cryprq") == "first-flights cryprq 600\n"
    service = there.start("cryprq-exit")
    assert "first flight" not in service.log
    said = here.host.run(here.as_user("bob", "service", "install", "proxy", "--user"), env=here.environment)
    assert said.endswith("cryprq-proxy check\n")
    here.start("cryprq-proxy", "bob")
    assert here.page(PAGE, *PROXY) == EXIT4


def test_what_a_user_has_joined_is_named_or_carried(there: Machine, here: Machine) -> None:
    there.command("service", "install", "exit")
    there.start("cryprq-exit")
    sudo = here.person("bob")
    invite = there.command("invite", "laptop").strip()
    here.host.run(here.as_user("bob", "join", invite), env=here.environment)
    assert "add: --config /opt/bob/.config/cryprq/client.toml" in here.sentence("--tun", **sudo)
    # A read-only home keeps what it has, and so does a damaged one.
    directory = "/opt/bob/.config/cryprq"
    before = here.listing(directory)
    here.host.run(["mount", "--bind", directory, directory])
    here.host.run(["mount", "-o", "remount,bind,ro", directory])
    assert "cannot be changed" in here.sentence("service", "install", "proxy", **sudo)
    here.host.run(["umount", directory])
    here.host.run(["sh", "-c", f"echo nonsense >>{directory}/client.toml"])
    assert "client.toml" in here.sentence("service", "install", "proxy", **sudo)
    here.host.run(["sed", "-i", "/^nonsense/d", f"{directory}/client.toml"])
    assert here.listing(directory) == before and "cryprq" not in here.listing("/etc/systemd/system")
    here.host.run(["chown", "-R", "bob", directory])
    here.command("service", "install", "proxy", **sudo)
    here.start("cryprq-proxy").says("link up")
