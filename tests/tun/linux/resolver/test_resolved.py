"""systemd-resolved as the system's resolver, against a fake one on a bus of the test's own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from dbus_fast import Message, MessageType, NameFlag, Variant
from dbus_fast.aio import MessageBus

from cryprq_proxy.errors import ConfigError
from tun.linux.resolver import choose as resolver
from tun.linux.resolver import resolved, resolved_bus
from tun.linux.resolver.resolvconf import ResolvConf
from tun.linux.resolver.resolved import Resolved
from tun.resolver.left_alone import LeftAlone

pytestmark = pytest.mark.skipif(
    shutil.which("dbus-daemon") is None,
    reason="dbus-daemon is not installed; on Debian: apt-get install dbus",
)

CONFIG = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <listen>unix:path={directory}/bus</listen>
  <servicedir>{directory}/services</servicedir>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow receive_sender="*"/>
    <allow own="*"/>
  </policy>
</busconfig>
"""
OURS = ("198.18.255.53", "fd63:7279:7071::53")
LINK = (7, "cryprq0")


class Daemon:
    """A dbus-daemon with a socket of its own, which can be restarted."""

    def __init__(self, directory: Path) -> None:
        self.address = f"unix:path={directory}/bus"
        self._config = directory / "bus.conf"
        self._config.write_text(CONFIG.format(directory=directory))
        # As where resolved is installed: a call would start it, here with a failure.
        services = directory / "services"
        services.mkdir()
        service = f"[D-BUS Service]\nName={resolved_bus.NAME}\nExec=/bin/false\n"
        (services / f"{resolved_bus.NAME}.service").write_text(service)
        self._socket = directory / "bus"
        self.start()

    def start(self) -> None:
        self._socket.unlink(missing_ok=True)
        command = [
            "dbus-daemon",
            f"--config-file={self._config}",
            "--nofork",
            "--nopidfile",
            "--print-address=1",
        ]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        assert self._process.stdout.readline().startswith(b"unix:")  # it listens now

    def stop(self) -> None:
        self._process.kill()  # without goodbyes
        self._process.communicate()


SIGNATURES = {
    "SetLinkDNS": "ia(iay)",
    "SetLinkDomains": "ia(sb)",
    "SetLinkDefaultRoute": "ib",
    "SetLinkLLMNR": "is",
    "SetLinkMulticastDNS": "is",
    "SetLinkDNSSEC": "is",
    "SetLinkDNSOverTLS": "is",
    "RevertLink": "i",
    "FlushCaches": "",
}
"""Of org.freedesktop.resolve1.Manager (org.freedesktop.resolve1(5))."""


class Fake:
    """Keeps the calls, and answers as `errors` says: member -> names of D-Bus errors, one for each call."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.errors: dict[str, list[str]] = {}
        self.flushed = asyncio.Queue[None]()
        self.servers: Variant | None = None
        """The property DNS of the interface; None as in a version without it."""
        self.over_tls: Variant | None = None
        """The property DNSOverTLS of all; None as in a version without it."""

    def answer(self, message: Message) -> Message | None:
        if message.member == "Get" and message.path == "/org/freedesktop/resolve1/link/_37":
            assert message.body == ["org.freedesktop.resolve1.Link", "DNS"]
            if self.servers is not None:
                return Message.new_method_return(message, "v", [self.servers])
        if message.member == "Get" and message.body == ["org.freedesktop.resolve1.Manager", "DNSOverTLS"]:
            if self.over_tls is None:
                return Message.new_error(message, "org.freedesktop.DBus.Error.UnknownProperty", "none")
            return Message.new_method_return(message, "v", [self.over_tls])
        if message.message_type is not MessageType.METHOD_CALL or message.path != "/org/freedesktop/resolve1":
            return None
        assert message.interface == "org.freedesktop.resolve1.Manager"
        assert message.member is not None
        if message.signature != SIGNATURES[message.member]:
            return Message.new_error(message, "org.freedesktop.DBus.Error.InvalidArgs", message.signature)
        errors = self.errors.get(message.member)
        if errors:
            return Message.new_error(message, errors.pop(0), f"no {message.member} today")
        self.calls.append((message.member, *message.body))
        if message.member == "FlushCaches":
            self.flushed.put_nowait(None)
        return Message.new_method_return(message)


class Service:
    """The fake on a bus; `leave` and `come` are a restart as others on the bus see it."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.fake = Fake()

    async def connect(self) -> None:
        self._bus = await MessageBus(bus_address=self.daemon.address).connect()
        self._bus.add_message_handler(self.fake.answer)
        await self.come()

    async def come(self) -> None:
        await self._bus.request_name(resolved_bus.NAME, NameFlag.DO_NOT_QUEUE)

    async def leave(self) -> None:
        await self._bus.release_name(resolved_bus.NAME)

    async def disconnect(self) -> None:
        if self._bus.connected:
            self._bus.disconnect()
        with contextlib.suppress(OSError, EOFError):
            await self._bus.wait_for_disconnect()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path)
    yield daemon
    daemon.stop()


@pytest.fixture
async def service(daemon: Daemon) -> AsyncIterator[Service]:
    service = Service(daemon)
    await service.connect()
    yield service
    await service.disconnect()


class Entries(list[Mapping[str, object]]):
    """A journal; with a service it also keeps how many calls had come when an entry was written."""

    def __init__(self, service: Service) -> None:
        super().__init__()
        self._service = service
        self.calls_before: list[int] = []

    def __call__(self, entry: Mapping[str, object]) -> None:
        self.append(entry)
        self.calls_before.append(len(self._service.fake.calls))


def settings(index: int = 7) -> list[tuple[Any, ...]]:
    return [
        ("SetLinkLLMNR", index, "no"),
        ("SetLinkMulticastDNS", index, "no"),
        ("SetLinkDNSSEC", index, "no"),
        ("SetLinkDNSOverTLS", index, "no"),
        (
            "SetLinkDNS",
            index,
            [(2, socket.inet_aton(OURS[0])), (10, socket.inet_pton(socket.AF_INET6, OURS[1]))],
        ),
        ("SetLinkDomains", index, [(".", True)]),
        ("SetLinkDefaultRoute", index, True),
        ("FlushCaches",),
    ]


def resolver_for(service: Service, **more: Any) -> Resolved:
    return Resolved(more.pop("record", Entries(service)), bus_address=service.daemon.address, **more)


@pytest.mark.process
async def test_sets_what_the_journal_knows(service: Service) -> None:
    entries = Entries(service)
    system = resolver_for(service, record=entries)
    await system.set(OURS, *LINK)
    assert service.fake.calls == settings()
    assert entries == [{"kind": "resolved", "index": 7, "name": "cryprq0"}]
    assert entries.calls_before == [0]
    await system.set(OURS[:1], *LINK)
    assert len(entries) == 1, "a line for each change of the servers would fill the journal"
    await system.close()


async def found(system: Resolved) -> str:
    """What a look finds, once it finds something."""
    while not (what := await system.look()):
        await asyncio.sleep(0.001)
    return what


@pytest.mark.process
async def test_sets_again_after_each_restart(service: Service) -> None:
    system = resolver_for(service)
    await system.set(OURS, *LINK)
    assert await system.look() == ""
    for _ in range(2):
        service.fake.calls.clear()
        await service.leave()
        assert await found(system) == "systemd-resolved was restarted"
        with pytest.raises(ConfigError, match="has stopped"):
            await system.put_back()
        assert await system.look()
        await service.come()
        await system.put_back()
        assert service.fake.calls == settings()
        # The signal of its return may come only now.
        if await system.look():
            await system.put_back()
        assert await system.look() == ""
    await system.close()


@pytest.mark.process
async def test_servers_that_others_change_are_set_again(service: Service) -> None:
    """As `resolvectl revert cryprq0` and `resolvectl dns cryprq0 192.0.2.1` do, which no signal tells."""
    system = resolver_for(service)
    await system.set(OURS, *LINK)
    ours = [[2, socket.inet_aton(OURS[0])], [10, socket.inet_pton(socket.AF_INET6, OURS[1])]]
    for servers in ([], [[2, b"\xc0\0\2\1"]], ours[:1]):
        service.fake.servers = Variant("a(iay)", servers)
        assert await system.look() == "other servers for cryprq0 in systemd-resolved"
        service.fake.calls.clear()
        await system.put_back()
        assert service.fake.calls == settings()
        service.fake.servers = Variant("a(iay)", ours[::-1])
        assert await system.look() == ""
    service.fake.servers = Variant("s", "strange")
    assert await system.look() == ""
    await system.close()


@pytest.mark.process
async def test_a_restarted_resolved_gets_time(service: Service) -> None:
    """It owns its name before it knows all interfaces."""
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    system = resolver_for(service, retries=(0.5, 1.0), pause=pause)
    await system.set(OURS, *LINK)
    await service.leave()
    await found(system)
    await service.come()
    service.fake.calls.clear()
    service.fake.errors["SetLinkLLMNR"] = ["org.freedesktop.resolve1.NoSuchLink"] * 2
    await system.put_back()
    assert service.fake.calls == settings()
    assert pauses == [0.5, 1.0]
    service.fake.errors["SetLinkLLMNR"] = ["org.freedesktop.resolve1.NoSuchLink"] * 3
    with pytest.raises(ConfigError, match="did not take the resolver"):
        await system.put_back()
    assert await system.look()
    await system.close()


@pytest.mark.process
async def test_comes_back_when_the_bus_does(daemon: Daemon) -> None:
    """A restart of the bus ends all connections, also that of resolved."""
    service = Service(daemon)
    await service.connect()
    system = resolver_for(service, retries=())
    await system.set(OURS, *LINK)
    daemon.stop()
    assert await found(system) == "systemd-resolved was restarted"
    with pytest.raises(ConfigError, match="cannot be reached"):
        await system.put_back()
    await service.disconnect()
    daemon.start()
    again = Service(daemon)
    await again.connect()
    assert await system.look()
    await system.put_back()
    assert again.fake.calls == settings()
    await system.close()
    await again.disconnect()


@pytest.mark.process
async def test_an_older_resolved_lacks_some_calls(service: Service) -> None:
    for member in ("SetLinkDNSOverTLS", "SetLinkDefaultRoute"):
        service.fake.errors[member] = ["org.freedesktop.DBus.Error.UnknownMethod"]
    system = resolver_for(service)
    await system.set(OURS, *LINK)
    left_out = ("SetLinkDNSOverTLS", "SetLinkDefaultRoute")
    assert service.fake.calls == [call for call in settings() if call[0] not in left_out]
    await system.close()


@pytest.mark.process
@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        ("org.freedesktop.DBus.Error.AccessDenied", "does not let this user change the resolver of cryprq0"),
        (
            "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired",
            "does not let this user change the resolver of cryprq0",
        ),
        ("org.freedesktop.resolve1.LinkBusy", "Unmanaged=yes"),
        ("org.freedesktop.resolve1.NoSuchLink", "no SetLinkDNS today"),
        ("org.freedesktop.DBus.Error.UnknownMethod", "no SetLinkDNS today"),
    ],
)
async def test_a_refusal_is_one_sentence_and_changes_nothing(
    service: Service, error: str, sentence: str
) -> None:
    service.fake.errors["SetLinkDNS"] = [error]
    system = resolver_for(service)
    with pytest.raises(ConfigError) as caught:
        await system.set(OURS, *LINK)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert service.fake.calls[-2:] == [("RevertLink", 7), ("FlushCaches",)]


async def test_no_bus_is_one_sentence(tmp_path: Path) -> None:
    system = Resolved([].append, bus_address=f"unix:path={tmp_path}/none")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"cannot be reached over D-Bus .*: no such file"):
        await system.set(OURS, *LINK)


@pytest.mark.process
async def test_no_answer_is_one_sentence(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolved_bus, "CALL_SECONDS", 0.0)
    with pytest.raises(ConfigError, match="did not answer within 0 s"):
        await resolver_for(service).set(OURS, *LINK)


@pytest.fixture
def interface() -> tuple[int, str]:
    """One that exists; the undo goes by its number and its name."""
    return next((index, name) for index, name in socket.if_nameindex())


@pytest.mark.process
async def test_undo_from_the_journal(service: Service, interface: tuple[int, str]) -> None:
    """The undo blocks, so it runs on a thread here, as the service has to answer on this loop."""
    index, name = interface
    undo = resolver.undoers(bus_address=service.daemon.address)["resolved"]
    entry = {"kind": "resolved", "index": index, "name": name}
    for _ in range(2):
        await asyncio.to_thread(undo, entry)
        assert service.fake.calls == [("RevertLink", index), ("FlushCaches",)]
        service.fake.calls.clear()
    service.fake.errors["RevertLink"] = ["org.freedesktop.resolve1.NoSuchLink"]
    await asyncio.to_thread(undo, entry)
    service.fake.errors["RevertLink"] = ["org.freedesktop.DBus.Error.AccessDenied"]
    with pytest.raises(ConfigError, match="run this as root"):
        await asyncio.to_thread(undo, entry)
    service.fake.calls.clear()
    await asyncio.to_thread(undo, {**entry, "index": index + 1000})  # after a reboot: another's number
    await asyncio.to_thread(undo, {**entry, "name": "cq-not-there"})
    await asyncio.to_thread(undo, {**entry, "boot": "another"})
    await service.leave()
    await asyncio.to_thread(undo, entry)  # resolved does not run, and is not started for this
    assert service.fake.calls == []


def test_undo_without_a_bus(tmp_path: Path, interface: tuple[int, str]) -> None:
    index, name = interface
    resolved.undo({"index": index, "name": name}, bus_address=f"unix:path={tmp_path}/none")


@pytest.mark.parametrize(
    "entry",
    [
        {},
        {"index": 0, "name": "lo"},
        {"index": "1", "name": "lo"},
        {"index": 1, "name": ""},
        {"index": 1, "name": "a/b"},
        {"index": 1 << 40, "name": "lo"},
    ],
)
def test_undo_judges_the_entry(entry: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="did not write"):
        resolved.undo(entry)


def test_upstreams_come_from_the_uplink_file(tmp_path: Path) -> None:
    uplink = tmp_path / "resolv.conf"
    system = Resolved([].append, uplink=uplink)  # type: ignore[arg-type]
    assert system.upstreams() == ()
    uplink.write_text("# resolved's\nnameserver 192.0.2.1\nnameserver fe80::1%eth0\nsearch lan\n")
    assert system.upstreams() == ("192.0.2.1", "fe80::1%eth0")


@pytest.mark.process
async def test_our_own_address_is_no_upstream(service: Service, tmp_path: Path) -> None:
    uplink = tmp_path / "resolv.conf"
    uplink.write_text(f"nameserver {OURS[0]}\nnameserver 192.0.2.1\nnameserver {OURS[1]}\n")
    system = resolver_for(service, uplink=uplink)
    await system.set(OURS, *LINK)
    assert system.upstreams() == ("192.0.2.1",)
    await system.close()


# The choice


@pytest.mark.process
async def test_left_alone_it_asks_the_forwarder_or_a_sentence_says_why_not(
    service: Service, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uplink = tmp_path / "uplink.conf"
    made = resolver_for(service, uplink=uplink)
    system = LeftAlone(made)

    async def said(servers: str, over_tls: Variant | None = None) -> str:
        uplink.write_text("".join(f"nameserver {server}\n" for server in servers.split()))
        service.fake.over_tls = over_tls
        caplog.clear()
        await system.set(ours, *LINK)
        return caplog.text

    ours: Sequence[str] = OURS
    assert not await said("2001:db8::1")
    assert f"for example DNS={OURS[0]}" in await said("fe80::1%2")
    ours = OURS[:1]

    assert not await said("192.168.1.1")
    assert not await said("fe80::1%2 127.0.0.1", Variant("s", "opportunistic"))
    assert not await said("2001:db8::1 192.168.1.1", Variant("u", 7))
    for servers in ("", "2001:db8::1"):
        assert "knows no server whose questions reach the forwarder; name one in" in await said(servers)
    assert "by TLS only, which is refused past the tunnel" in await said("192.168.1.1", Variant("s", "yes"))
    assert service.fake.calls == []
    await service.leave()
    assert not await said("192.168.1.1", Variant("s", "yes"))


@pytest.mark.process
async def test_choice(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "stub-resolv.conf").write_text("nameserver 127.0.0.53\n")
    monkeypatch.setattr(resolver, "RESOLVED_FILES", (run,))
    file = tmp_path / "resolv.conf"

    async def chosen() -> str:
        made = await resolver.choose([].append, path=file, state=tmp_path, bus_address=service.daemon.address)  # type: ignore[arg-type]
        assert isinstance(made, Resolved | ResolvConf)
        return made.kind

    assert await chosen() == "resolv.conf"  # no file
    file.symlink_to(run / "stub-resolv.conf")
    assert await chosen() == "systemd-resolved"
    file.unlink()
    file.symlink_to(os.path.relpath(run / "resolv.conf", tmp_path))  # even while resolved has not written it
    assert await chosen() == "systemd-resolved"
    file.unlink()
    file.write_text("nameserver 127.0.0.53\noptions edns0\n")
    assert await chosen() == "systemd-resolved"
    for other in ("nameserver 192.0.2.1\n", "nameserver 127.0.0.53\nnameserver 192.0.2.1\n", ""):
        file.write_text(other)
        assert await chosen() == "resolv.conf"
    file.write_text("nameserver 127.0.0.53\n")
    await service.leave()
    assert await chosen() == "resolv.conf"


async def test_choice_without_a_bus(tmp_path: Path) -> None:
    file = tmp_path / "resolv.conf"
    file.write_text("nameserver 127.0.0.53\n")
    made = await resolver.choose(
        [].append,  # type: ignore[arg-type]
        path=file,
        state=tmp_path,
        bus_address=f"unix:path={tmp_path}/none",
    )
    assert made.kind == "resolv.conf"


async def until(condition: Callable[[], bool]) -> None:
    """Let other tasks run until `condition` holds; the test's time limit bounds it."""
    while not condition():
        await asyncio.sleep(0.001)
