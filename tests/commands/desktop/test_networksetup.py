"""The proxy settings of macOS: `networksetup` is played by the fake Mac's."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from cryprq_proxy.address import Destination
from cryprq_proxy.base import networksetup as program
from cryprq_proxy.cli import run_command
from cryprq_proxy.commands.desktop.kept import turn_off, turn_on
from cryprq_proxy.commands.desktop.networksetup import NetworkSetup
from cryprq_proxy.errors import ConfigError, CryprqError
from tests.support.macos.machine import FakeMac
from tests.support.macos.state import Proxy, Service

PROXY = Destination("127.0.0.1", 1080)
URL = "http://127.0.0.1:1081/proxy.pac"
PEER = "cryprq://" + "a" * 52 + "@exit.example:4433"


@pytest.fixture
def mac(tmp_path: Path) -> FakeMac:
    mac = FakeMac(tmp_path / "mac", uid=501)
    with mac.change() as state:
        state.services.append(Service("USB 10/100/1000 LAN of Ann", "X", "en7", "USB LAN"))
        state.services.append(Service("Thunderbolt Bridge", "Y", "bridge0", "Bridge", enabled=False))
    return mac


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state" / "system-proxy.json"


def settings(mac: FakeMac) -> NetworkSetup:
    def run(arguments: Sequence[str]) -> str:
        code, said, _ = mac.answer([program.PROGRAM, *arguments])
        if code or "** Error" in said:
            raise CryprqError(f"networksetup says: {said.strip().splitlines()[-1]}")
        return said

    return NetworkSetup(run)


def on(mac: FakeMac, file: Path, proxy: Destination = PROXY) -> None:
    turn_on(lambda: settings(mac), settings(mac).manual(proxy), file)


def on_by_pac(mac: FakeMac, file: Path) -> None:
    turn_on(lambda: settings(mac), settings(mac).automatic(URL), file)


def off(mac: FakeMac, file: Path) -> list[str] | None:
    return turn_off(lambda: settings(mac), file)


def hers(mac: FakeMac) -> None:
    """What a person had set."""
    with mac.change() as state:
        wifi = next(service for service in state.services if service.name == "Wi-Fi")
        wifi.proxies = {
            "web": Proxy(True, "old.example", 3128),
            "secureweb": Proxy(False, "old.example", 3129),
        }
        wifi.autoproxy = Proxy(True, "http://pac.example/a%20b.pac")
        wifi.discovery = True
        wifi.bypass = ["*.local"]


def service(mac: FakeMac, name: str) -> Service:
    return next(service for service in mac.read().services if service.name == name)


def test_every_enabled_service_gets_the_proxy(mac: FakeMac, file: Path) -> None:
    on(mac, file)
    for name in ("Ethernet", "Wi-Fi", "USB 10/100/1000 LAN of Ann"):
        found = service(mac, name)
        assert found.proxies == dict.fromkeys(
            ("web", "secureweb", "socksfirewall"), Proxy(True, "127.0.0.1", 1080)
        )
        assert (found.autoproxy.enabled, found.discovery) == (False, False)
    assert service(mac, "Thunderbolt Bridge").proxies == {}


def test_a_pac_file_alone(mac: FakeMac, file: Path) -> None:
    """The proxies keep their hosts and are off, or programs would ask both."""
    hers(mac)
    on_by_pac(mac, file)
    found = service(mac, "Wi-Fi")
    assert found.autoproxy == Proxy(True, URL)
    assert found.proxies["web"] == Proxy(False, "old.example", 3128)
    assert not found.discovery


@pytest.mark.parametrize("turn", [on, on_by_pac])
@pytest.mark.parametrize("set_before", [False, True])
def test_on_and_off(set_before: bool, turn: object, mac: FakeMac, file: Path) -> None:
    assert callable(turn)
    if set_before:
        hers(mac)
    before = settings(mac).read()
    turn(mac, file)
    assert settings(mac).read() != before
    assert file.stat().st_mode & 0o777 == 0o600
    assert off(mac, file) == []
    assert settings(mac).read() == before
    assert off(mac, file) is None


def test_from_one_to_the_other(mac: FakeMac, file: Path) -> None:
    hers(mac)
    before = mac.snapshot()
    on(mac, file)
    on_by_pac(mac, file)
    on(mac, file, Destination("127.0.0.1", 9999))
    assert service(mac, "Wi-Fi").proxies["socksfirewall"].port == 9999
    assert off(mac, file) == []
    after = mac.read()
    for each in after.services:
        each.proxies = {kind: proxy for kind, proxy in each.proxies.items() if proxy != Proxy()}
    with mac.change() as state:
        state.services = after.services
    assert mac.snapshot() == before


def test_what_a_person_changes_meanwhile_stays_and_is_named(mac: FakeMac, file: Path) -> None:
    on(mac, file)
    with mac.change() as state:
        state.services[1].proxies["web"] = Proxy(True, "new.example", 8080)
    assert off(mac, file) == ["web of Wi-Fi"]
    assert service(mac, "Wi-Fi").proxies["web"] == Proxy(True, "new.example", 8080)
    assert not service(mac, "Wi-Fi").proxies.get("secureweb", Proxy()).enabled


def test_a_service_that_was_disabled_meanwhile_is_restored(mac: FakeMac, file: Path) -> None:
    """It may be enabled again, without this program."""
    on(mac, file)
    with mac.change() as state:
        state.services[1].enabled = False
    assert off(mac, file) == []
    assert not service(mac, "Wi-Fi").proxies.get("web", Proxy()).enabled


def test_a_service_that_is_gone_is_named(mac: FakeMac, file: Path) -> None:
    on(mac, file)
    with mac.change() as state:
        gone = state.services.pop(2).name
    assert off(mac, file) == sorted(
        f"{what} of {gone}" for what in ("web", "secureweb", "socksfirewall", "pac", "discovery")
    )
    assert not service(mac, "Wi-Fi").proxies.get("web", Proxy()).enabled


def test_a_password_is_not_lost(mac: FakeMac, file: Path) -> None:
    with mac.change() as state:
        state.services[1].proxies["web"] = Proxy(True, "old.example", 3128, authenticated=True)
    with pytest.raises(ConfigError, match="Wi-Fi has a proxy with a password"):
        settings(mac).manual(PROXY)
    on_by_pac(mac, file)
    assert service(mac, "Wi-Fi").proxies["web"] == Proxy(False, "old.example", 3128, authenticated=True)
    assert off(mac, file) == []
    assert service(mac, "Wi-Fi").proxies["web"] == Proxy(True, "old.example", 3128, authenticated=True)


@pytest.mark.parametrize("changes", range(0, 16, 3))
def test_killed_half_way(changes: int, mac: FakeMac, file: Path) -> None:
    """The record stands before the first change."""
    hers(mac)
    before = settings(mac).read()
    left = [changes]

    def run(arguments: Sequence[str]) -> str:
        if arguments[0].startswith("-set"):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
        return mac.answer([program.PROGRAM, *arguments]).stdout

    with pytest.raises(KeyboardInterrupt):
        turn_on(lambda: NetworkSetup(run), NetworkSetup(run).manual(PROXY), file)
    off(mac, file)
    now = settings(mac).read()
    # What was about to change is left where a half of it stands: it is named, and nothing else differs.
    assert sum(now[name] != before[name] for name in before) <= 1


def test_no_administrator(mac: FakeMac, file: Path) -> None:
    mac.uid = 502
    before = mac.snapshot()
    with pytest.raises(CryprqError, match="run this as one of them, or with sudo"):
        on(mac, file)
    assert mac.snapshot() == before


def test_no_service(mac: FakeMac) -> None:
    with mac.change() as state:
        state.services = []
    with pytest.raises(CryprqError, match="no enabled network service"):
        settings(mac)


@pytest.mark.parametrize(
    "answer", ["", "Enabled: Yes\n", "\0\n\n", "Wi-Fi is not a recognized network service."]
)
def test_answers_that_nobody_knows(answer: str) -> None:
    with pytest.raises(CryprqError, match="otherwise than known"):
        program.proxy_of("Wi-Fi", "web", lambda _: answer)


def test_real_answers() -> None:
    """As macOS 14 writes them."""
    listed = (
        "An asterisk (*) denotes that a network service is disabled.\n"
        "USB 10/100/1000 LAN\nWi-Fi\n*Thunderbolt Bridge\niPhone USB\n"
    )
    assert program.services(lambda _: listed) == {
        "USB 10/100/1000 LAN": True,
        "Wi-Fi": True,
        "Thunderbolt Bridge": False,
        "iPhone USB": True,
    }
    never = "Enabled: No\nServer: \nPort: 0\nAuthenticated Proxy Enabled: 0\n"
    assert program.proxy_of("Wi-Fi", "web", lambda _: never) == (False, "", 0, False)
    some = "Enabled: Yes\nServer: proxy.example\nPort: 3128\nAuthenticated Proxy Enabled: 1\n"
    assert program.proxy_of("Wi-Fi", "web", lambda _: some) == (True, "proxy.example", 3128, True)
    assert program.pac_of("Wi-Fi", lambda _: "URL: (null)\nEnabled: No\n") == (False, "")
    assert program.discovers("Wi-Fi", lambda _: "Auto Proxy Discovery: On\n")


@pytest.mark.process
def test_the_command(
    mac: FakeMac, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(program, "PROGRAM", str(mac.install() / "usr/sbin/networksetup"))
    monkeypatch.setattr(sys, "platform", "darwin")
    config = tmp_path / "client.toml"
    config.write_text(f'peer = "{PEER}"\nlisten = "127.0.0.1:3333"\nadmin = "127.0.0.1:4444"\n')
    config.chmod(0o600)
    assert run_command(["system-proxy", "on", "--config", str(config)]) == 0
    assert service(mac, "Wi-Fi").proxies["web"] == Proxy(True, "127.0.0.1", 3333)
    assert run_command(["system-proxy", "on", "--pac", "--config", str(config)]) == 0
    assert service(mac, "Wi-Fi").autoproxy == Proxy(True, "http://127.0.0.1:4444/proxy.pac")
    assert run_command(["system-proxy", "off"]) == 0
    assert not service(mac, "Wi-Fi").autoproxy.enabled
    assert "as they were before" in capsys.readouterr().out


@pytest.mark.process
@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo '** Error: The parameters were not valid.'", "says: The parameters were not valid"),
        ("echo 'Wi-Fi is not a recognized network service.'; exit 4", "says: Wi-Fi is not a recognized"),
        ("exit 3", "says: exit code 3"),
    ],
)
def test_complaints(script: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some come with the exit code 0."""
    file = tmp_path / "networksetup"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    monkeypatch.setattr(program, "PROGRAM", str(file))
    with pytest.raises(CryprqError, match=said):
        program.run(["-getwebproxy", "Wi-Fi"])


@pytest.mark.process
def test_no_such_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "PROGRAM", str(tmp_path / "none"))
    with pytest.raises(CryprqError, match="cannot be run"):
        program.run(["-listallnetworkservices"])
