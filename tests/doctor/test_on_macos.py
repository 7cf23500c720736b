"""What doctor looks at on macOS, with programs that are made up; and that it names none of Linux's there."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cryprq_proxy.address import Destination
from cryprq_proxy.base import macos_programs
from cryprq_proxy.config.client import ClientConfig
from cryprq_proxy.config.exit import ExitConfig
from cryprq_proxy.doctor import exit_machine, machine, on_macos, reach
from cryprq_proxy.doctor.checks import CheckState, Context
from cryprq_proxy.status import ClientStatus

RULES = 'scrub-anchor "com.apple/*" all fragment reassemble\nanchor "com.apple/*" all'


class Programs:
    """What the programs say, by their name."""

    def __init__(self) -> None:
        self.said: dict[str, str | None] = {"pfctl": RULES, "scutil": "", "sysctl": "8388608"}
        self.asked: list[str] = []

    def __call__(self, argv: Sequence[str], stdin: str = "") -> str | None:
        self.asked.append(" ".join(argv))
        return self.said[argv[0].rpartition("/")[2]]


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> Programs:
    found = Programs()
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(macos_programs, "said", found)
    return found


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for path in on_macos.PROGRAMS:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    return tmp_path


def context(root: Path, *, enabled: bool = True, experimental: bool = True, euid: int = 0) -> Context:
    config = SimpleNamespace(tun=SimpleNamespace(enabled=enabled, experimental=experimental))
    return Context(exit=cast(ExitConfig, config), root=root, euid=euid)


async def test_what_tun_needs_is_there(programs: Programs, root: Path) -> None:
    verdict = await machine.tun(context(root))
    assert (verdict.state, verdict.text) == (CheckState.OK, "what --tun needs is there")
    assert programs.asked == ["/sbin/pfctl -s rules"]


async def test_each_lack_is_named_with_its_remedy(programs: Programs, root: Path) -> None:
    (root / "usr/sbin/scutil").unlink()
    verdict = await machine.tun(context(root, experimental=False, euid=501))
    assert verdict.state is CheckState.FAIL
    for word in ("/usr/sbin/scutil", "not been proved on macOS", "not root"):
        assert word in verdict.text
    assert "--experimental" in verdict.remedy and "launchd" in verdict.remedy
    assert not programs.asked, "only root may ask pf"
    assert (await machine.tun(context(root, enabled=False))).state is CheckState.SKIP


async def test_other_rules_of_pf_than_the_systems_are_named(programs: Programs, root: Path) -> None:
    programs.said["pfctl"] = "block drop all"
    verdict = await machine.tun(context(root))
    assert verdict.state is CheckState.FAIL and 'anchor "com.apple/*"' in verdict.text
    assert "pfctl -f /etc/pf.conf" in verdict.remedy
    programs.said["pfctl"] = None
    assert (await machine.tun(context(root))).state is CheckState.OK, "it is not known"


@pytest.mark.parametrize(
    ("problem", "platform", "state"),
    [
        ("192.168.1.9:4433 was not reached: no route to host", "darwin", CheckState.WARN),
        ("192.168.1.9:4433 was not reached: no route to host", "linux", CheckState.OK),
        ("192.168.1.9:4433 was not reached: connection refused", "darwin", CheckState.OK),
        (None, "darwin", CheckState.OK),
    ],
)
async def test_a_client_that_is_kept_from_the_local_network(
    problem: str | None, platform: str, state: CheckState, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A terminal may reach it, so this process does."""

    async def dialled(*_: object) -> SimpleNamespace:
        return SimpleNamespace(close=lambda: None)

    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(reach, "dial", dialled)
    monkeypatch.setattr(reach, "_kept_in", lambda: None)
    exits = [SimpleNamespace(endpoints=["192.168.1.9:4433"], ca=None)]
    config = cast(ClientConfig, SimpleNamespace(upstream=None, exits=lambda: exits))
    running = ClientStatus(link="down", last_error=problem)
    verdict = await reach.reach(Context(client=config, running=running))
    assert verdict.state is state
    assert ("Local Network" in verdict.remedy) is (state is CheckState.WARN)


SETTINGS = """<dictionary> {
  ExceptionsList : <array> {
    0 : *.local
    SOCKSEnable : 9
  }
  HTTPEnable : 0
  SOCKSEnable : %s
  SOCKSPort : %s
  SOCKSProxy : 127.0.0.1
}"""
PAC = "<dictionary> {\n  ProxyAutoConfigEnable : 1\n  ProxyAutoConfigURLString : %s\n}"


@pytest.mark.parametrize(
    ("said", "state", "word"),
    [
        (None, CheckState.SKIP, "cannot be read"),
        (SETTINGS % (1, 1080), CheckState.OK, "uses this proxy"),
        (SETTINGS % (1, 1081), CheckState.WARN, "another proxy, 127.0.0.1:1081"),
        (SETTINGS % (1, "x"), CheckState.WARN, "another proxy"),
        (SETTINGS % (0, 1080), CheckState.WARN, "no SOCKS proxy"),
        (PAC % "http://127.0.0.1:8053/proxy.pac", CheckState.OK, "PAC file"),
        (PAC % "http://127.0.0.1:8054/proxy.pac", CheckState.WARN, "another PAC file"),
    ],
)
async def test_where_browsers_look_for_a_proxy(
    programs: Programs, monkeypatch: pytest.MonkeyPatch, said: str | None, state: CheckState, word: str
) -> None:
    answers = True

    async def accepts(_: Destination) -> bool:
        return answers

    monkeypatch.setattr(machine, "_accepts", accepts)
    programs.said["scutil"] = said
    config = SimpleNamespace(
        listen=Destination("127.0.0.1", 1080),
        admin=Destination("127.0.0.1", 8053),
        tun=SimpleNamespace(enabled=False),
    )
    client = Context(client=cast(ClientConfig, config))
    verdict = await machine.desktop(client)
    assert verdict.state is state and word in verdict.text
    answers = False
    dead = await machine.desktop(client)
    assert dead.state is (CheckState.FAIL if state is CheckState.OK else state)
    client = replace(client, client=cast(ClientConfig, SimpleNamespace(tun=SimpleNamespace(enabled=True))))
    assert (await machine.desktop(client)).state is CheckState.SKIP


@pytest.mark.parametrize(
    ("said", "state"),
    [("16777216", CheckState.OK), ("65536", CheckState.WARN), ("", CheckState.SKIP), (None, CheckState.SKIP)],
)
async def test_the_buffers_of_an_exit(programs: Programs, said: str | None, state: CheckState) -> None:
    programs.said["sysctl"] = said
    config = SimpleNamespace(lane=SimpleNamespace(enabled=True))
    verdict = await exit_machine.buffers(Context(exit=cast(ExitConfig, config), euid=0))
    assert verdict.state is state


async def test_no_advice_of_linux_is_given(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    verdict = await exit_machine.firewall(Context(euid=0))
    assert verdict.state is CheckState.SKIP and "pfctl -s rules" in verdict.text
    monkeypatch.setattr("resource.getrlimit", lambda _: (256, 256))
    verdict = await exit_machine.descriptors(Context())
    assert verdict.state is CheckState.WARN and "launchd.plist" in verdict.remedy
    taken: Callable[[Any, Any], None] = _in_use
    monkeypatch.setattr("socket.socket.bind", taken)
    verdict = machine.bindable([Destination("127.0.0.1", 1080)])
    assert verdict.state is CheckState.FAIL and "lsof -nP -iTCP:1080 -sTCP:LISTEN" in verdict.remedy


def _in_use(_: object, address: object) -> None:
    raise OSError(48, "Address already in use")


def test_what_is_said_on_macos_names_nothing_of_linux() -> None:
    tree = ast.parse(Path(on_macos.__file__).read_text())
    words = " ".join(
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    for word in ("nft", "/dev/net/tun", "modprobe", "apt ", "systemctl", "ss -", "/proc", "timedatectl"):
        assert word not in words
