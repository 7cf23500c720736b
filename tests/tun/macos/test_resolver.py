"""The resolver through the dynamic store, on a Mac that is made up."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.base.macos_marks import RESOLVER_KEY
from cryprq_proxy.errors import ConfigError
from tests.support.macos import disturbances, fake_scutil
from tests.support.macos.machine import FakeMac
from tun.macos import scutil
from tun.macos.programs import PATHS, Command, ProgramAnswer, ProgramError
from tun.macos.resolver import KIND, ScutilResolver, choose, take_away_left, undoers

OURS = ("198.18.255.53", "fd63:7279:7071::53")
LINK = (0, "utun4")


class Mac:
    """A fake Mac, its runner, and a journal."""

    def __init__(self, directory: Path) -> None:
        self.fake = FakeMac(directory)
        self.entries: list[dict[str, Any]] = []
        self.seen: list[object] = []
        """What was under our key when an entry was written."""
        self.before: Callable[[Command], ProgramAnswer | None] = lambda _: None
        self.changed: list[Command] = []

    def run(self, command: Command) -> ProgramAnswer:
        if command.changes:
            self.changed.append(command)
        if (answer := self.before(command)) is not None:
            return answer
        code, out, err = self.fake.answer([PATHS[command.argv[0]], *command.argv[1:]], command.stdin)
        return ProgramAnswer(out, err, code)

    def record(self, entry: Mapping[str, object]) -> None:
        self.seen.append(self.key())
        self.entries.append(dict(entry))

    def key(self) -> object:
        return self.fake.read().store.get(RESOLVER_KEY)

    def first(self) -> list[str]:
        """Whom programs ask."""
        return fake_scutil.resolvers(self.fake.read())[0]

    def undo(self) -> None:
        for entry in reversed(self.entries):
            undoers(self.run)[entry["kind"]](entry)

    def resolver(self) -> ScutilResolver:
        return ScutilResolver(self.record, self.run)


@pytest.fixture
def mac(tmp_path: Path) -> Mac:
    return Mac(tmp_path / "mac")


async def test_all_names_are_asked_at_the_forwarder_and_then_as_before(mac: Mac) -> None:
    before = mac.fake.snapshot()
    resolver = mac.resolver()
    await resolver.set(OURS, *LINK)
    assert mac.first() == list(OURS)
    assert mac.entries == [{"kind": KIND, "addresses": list(OURS)}] and mac.seen == [None]
    assert await resolver.look() == ""
    assert resolver.upstreams() == ("192.168.1.1", "192.168.1.2")
    assert mac.fake.read().flushes == 2
    await resolver.close()
    mac.undo()
    mac.undo()
    assert mac.fake.snapshot() == before


async def test_the_commands_of_a_start(mac: Mac) -> None:
    await mac.resolver().set(OURS, *LINK)
    assert [str(command) for command in mac.changed] == [
        "scutil",
        "dscacheutil -flushcache",
        "killall -HUP mDNSResponder",
    ]
    assert mac.changed[0].stdin == (
        "d.init\n"
        "d.add ServerAddresses * 198.18.255.53 fd63:7279:7071::53\n"
        'd.add SupplementalMatchDomains * ""\n'
        "d.add SupplementalMatchOrders * # 1\n"
        "set State:/Network/Service/cryprq-proxy/DNS\n"
        "quit\n"
    )


async def test_what_others_change_is_put_back_without_a_new_entry(mac: Mac) -> None:
    resolver = mac.resolver()
    await resolver.set(OURS, *LINK)
    disturbances.resolver_removed(mac.fake, RESOLVER_KEY)
    assert await resolver.look() == "no servers of ours"
    await resolver.put_back()
    assert await resolver.look() == "" and mac.first() == list(OURS)
    disturbances.resolver_set(mac.fake, RESOLVER_KEY, ["192.0.2.1"])
    assert await resolver.look() == "other servers in our setting"
    await resolver.put_back()
    disturbances.resolver_set(mac.fake, RESOLVER_KEY, OURS)
    assert await resolver.look() == "other domains in our setting"
    await resolver.put_back()
    assert await resolver.look() == "" and len(mac.entries) == 1


async def test_other_addresses_are_a_new_entry(mac: Mac) -> None:
    resolver = mac.resolver()
    await resolver.set(OURS, *LINK)
    await resolver.set(OURS[:1], *LINK)
    assert [entry["addresses"] for entry in mac.entries] == [list(OURS), list(OURS[:1])]
    assert mac.first() == list(OURS[:1])


async def test_the_earlier_resolvers_follow_the_network(mac: Mac) -> None:
    resolver = mac.resolver()
    assert resolver.upstreams() == ("192.168.1.1", "192.168.1.2")
    await resolver.set(OURS, *LINK)
    disturbances.lose_network(mac.fake)
    assert await resolver.look() == ""
    assert resolver.upstreams() == ()
    disturbances.resolver_set(mac.fake, "State:/Network/Service/other/DNS", ["192.0.2.7", "no address"])
    with mac.fake.change() as state:
        state.store["State:/Network/Service/other/DNS"]["SupplementalMatchDomains"] = [""]
    await resolver.look()
    assert resolver.upstreams() == ("192.0.2.7",), "another VPN's, and not our own"


async def test_a_pause_takes_it_away_and_puts_it_back(mac: Mac, monkeypatch: pytest.MonkeyPatch) -> None:
    resolver = mac.resolver()
    await resolver.set(OURS, *LINK)
    over = asyncio.Event()
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        await over.wait()

    monkeypatch.setattr("tun.macos.resolver.asyncio.sleep", sleep)
    await resolver.stand_aside(30)
    assert mac.key() is None and await resolver.look() == ""
    await resolver.put_back()
    await resolver.set(OURS[:1], *LINK)
    assert mac.key() is None, "nothing puts it back in the pause"
    over.set()
    assert resolver._aside is not None
    await resolver._aside
    assert slept == [30] and mac.first() == list(OURS[:1])
    assert await resolver.look() == ""


async def test_a_pause_that_is_not_over_ends_with_its_owner(mac: Mac) -> None:
    resolver = mac.resolver()
    await resolver.stand_aside(30)
    assert resolver._aside is None, "nothing is set that could stand aside"
    await resolver.set(OURS, *LINK)
    await resolver.stand_aside(30)
    aside = resolver._aside
    assert aside is not None
    await resolver.close()
    await asyncio.wait([aside])
    mac.undo()
    assert mac.key() is None


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (
            ProgramAnswer("", "scutil: configd is not there\n", 1),
            "`scutil` failed: scutil: configd is not there",
        ),
        (ProgramAnswer("  Permission denied\n"), "scutil refuses the change: Permission denied"),
    ],
)
async def test_a_refused_change_is_a_sentence(mac: Mac, answer: ProgramAnswer, said: str) -> None:
    mac.before = lambda command: answer if command.stdin.startswith("d.init") else None
    resolver = mac.resolver()
    with pytest.raises(ConfigError, match=f"^the resolver of this system cannot be set: {said}$"):
        await resolver.set(OURS, *LINK)
    assert await resolver.look() == "" and mac.key() is None


async def test_a_change_without_effect_is_a_sentence(mac: Mac) -> None:
    mac.before = lambda command: ProgramAnswer("") if command.stdin.startswith("d.init") else None
    with pytest.raises(ConfigError, match="has taken the setting, but there are no servers of ours"):
        await mac.resolver().set(OURS, *LINK)


@pytest.mark.parametrize(
    "answer", ["", "<plist> {", "<dictionary> {\n  a : b\n", "<dictionary> {\n  a\n}", "}"]
)
async def test_an_unknown_answer_is_a_sentence(mac: Mac, answer: str) -> None:
    resolver = mac.resolver()
    await resolver.set(OURS, *LINK)
    mac.before = lambda command: ProgramAnswer(answer) if command.stdin.startswith("show") else None
    with pytest.raises(ProgramError, match="scutil answers what this program does not understand: "):
        await resolver.look()
    assert resolver.upstreams() == ("192.168.1.1", "192.168.1.2"), "as they were"


async def test_a_cache_that_is_not_emptied_is_no_failure(mac: Mac) -> None:
    mac.before = lambda command: ProgramAnswer("", "no", 1) if command.argv[0] != "scutil" else None
    await mac.resolver().set(OURS, *LINK)
    assert mac.first() == list(OURS)


@pytest.mark.parametrize(
    "addresses", [None, [], "198.18.255.53", ["x"], [1], ["1.1.1.1"] * 9, [f"show {RESOLVER_KEY}"]]
)
def test_an_entry_of_others_is_refused(mac: Mac, addresses: object) -> None:
    with pytest.raises(ConfigError, match="that this program did not write"):
        undoers(mac.run)[KIND]({"kind": KIND, "addresses": addresses})
    assert not mac.changed


def test_after_a_reboot_there_is_nothing_to_undo(mac: Mac) -> None:
    undoers(mac.run)[KIND]({"kind": KIND, "addresses": list(OURS), "boot": "another"})
    assert not mac.fake.commands()


def test_without_the_key_nothing_is_changed(mac: Mac) -> None:
    undoers(mac.run)[KIND]({"kind": KIND, "addresses": list(OURS)})
    assert not mac.changed


async def test_what_stays_is_a_failure_of_the_undo(mac: Mac) -> None:
    await mac.resolver().set(OURS, *LINK)
    mac.before = lambda command: ProgramAnswer("") if command.stdin.startswith("remove") else None
    with pytest.raises(ProgramError, match="scutil does not remove"):
        mac.undo()


async def test_what_a_run_without_its_journal_has_left_goes_first(
    mac: Mac, caplog: pytest.LogCaptureFixture
) -> None:
    await mac.resolver().set(OURS, *LINK)
    caplog.set_level(logging.INFO)
    resolver = await choose(mac.record, run=mac.run)
    assert resolver.kind == "scutil" and mac.key() is None
    assert caplog.messages[-1] == "the resolver was left by an earlier run; it is as before now"
    await mac.resolver().set(OURS, *LINK)
    assert take_away_left(mac.run) == "resolver" and take_away_left(mac.run) == ""


@pytest.mark.parametrize(
    ("servers", "works"),
    [
        (["192.168.1.1"], False),
        ([], False),
        (["192.168.1.1", "9.9.9.9"], True),
        (["127.0.0.1"], True),
        (["fe80::1%en0"], False),
        (["2620:fe::fe"], True),
    ],
)
async def test_a_resolver_that_is_left_alone_warns_where_names_do_not_work(
    mac: Mac, servers: list[str], works: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with mac.fake.change() as state:
        for service in state.services:
            state.store.pop(f"State:/Network/Service/{service.identifier}/DNS", None)
            service.dns = servers
    resolver = await choose(mac.record, leave=True, run=mac.run)
    assert resolver.kind == "left alone"
    await resolver.set(OURS, *LINK)
    assert mac.key() is None and not mac.entries
    assert bool(caplog.messages) == (not works), caplog.messages
    if not works:
        assert "are on the local network, or there are none" in caplog.messages[0]


# --- answers ---

SHOWN = """\
<dictionary> {
  DomainName : home.example
  Nested : <dictionary> {
    Empty : <array> {
    }
    Inner : <array> {
      0 : <dictionary> {
        a : b
      }
      1 : x
    }
  }
  ServerAddresses : <array> {
    0 : 192.168.1.1
    1 : 2001:db8::1
  }
  SupplementalMatchDomains : <array> {
    0 :\x20
  }
  __CONFIGURATION_ID__ : Default: 0
  __IF_INDEX__ : 6
}
"""
READ = {
    "DomainName": "home.example",
    "Nested": {"Empty": [], "Inner": ["x"]},
    "ServerAddresses": ["192.168.1.1", "2001:db8::1"],
    "SupplementalMatchDomains": [""],
    "__CONFIGURATION_ID__": "Default: 0",
    "__IF_INDEX__": "6",
}


def test_a_dictionary_is_read() -> None:
    assert scutil.parse(SHOWN) == READ


@given(st.text(st.sampled_from("<dictionary> {}array:\n 01ab"), max_size=200))
def test_whatever_is_shown_is_read_or_refused(text: str) -> None:
    try:
        scutil.parse("<dictionary> {\n" + text)
    except ProgramError as error:
        assert "\n" not in str(error)


def test_an_answer_is_read_within_bounds() -> None:
    deep = (
        "<dictionary> {\n" + "a : <dictionary> {\n" * (scutil.MAX_DEPTH + 1) + "}\n" * (scutil.MAX_DEPTH + 2)
    )
    long = "<dictionary> {\n" + "a : b\n" * scutil.MAX_LINES + "}"
    for text in (deep, long):
        with pytest.raises(ProgramError):
            scutil.parse(text)


def test_servers_of_all_resolvers(mac: Mac) -> None:
    assert scutil.nameservers(mac.run) == ["192.168.1.1", "192.168.1.2"] * 2, "for all names, and scoped"


# --- the fake programs ---


def test_the_fake_scutil_says_failures_and_goes_on(mac: Mac) -> None:
    said = mac.fake.answer(
        ["/usr/sbin/scutil"],
        "set State:/x\nshow State:/x\nremove State:/x\nd.add a b\nno.such\nd.init\nd.add a\nd.add a # x\n"
        "d.add a b c\nd.add a * b c\nd.add n # 1\nset State:/x\nd.init\nget State:/x\nd.show\nlist State:/x\n"
        "list State:/none\nquit\nlist\n",
    )
    assert said.code == 0 and said.stdout.splitlines() == [
        "  value not set",
        "  No such key",
        "  No such key",
        "d.add: dictionary must be initialized.",
        'no.such: unknown, type "help" for command info',
        "d.add: too few arguments",
        "d.add: invalid number",
        "d.add: too many values",
        "<dictionary> {",
        "  a : <array> {",
        "    0 : b",
        "    1 : c",
        "  }",
        "  n : 1",
        "}",
        "  subKey [0] = State:/x",
        "  no keys.",
    ]
    assert mac.fake.answer(["/usr/sbin/scutil", "--what"]).code == 64
    assert "en0" in mac.fake.answer(["/usr/sbin/scutil", "--nwi"]).stdout
    user = FakeMac(mac.fake.directory, uid=501)
    assert "Permission denied" in user.answer(["/usr/sbin/scutil"], "remove State:/x\n").stdout


def test_the_fake_sysctl_reads_and_sets(mac: Mac) -> None:
    def sysctl(*words: str, uid: int = 0) -> tuple[int, str, str]:
        return FakeMac(mac.fake.directory, uid=uid).answer(["/usr/sbin/sysctl", *words])

    assert sysctl("net.inet.ip.forwarding") == (0, "net.inet.ip.forwarding: 0\n", "")
    assert sysctl("-w", "net.inet.ip.forwarding=1") == (0, "net.inet.ip.forwarding: 0 -> 1\n", "")
    assert sysctl("-n", "net.inet.ip.forwarding") == (0, "1\n", "")
    assert sysctl("-n", "kern.bootsessionuuid")[1].strip() == mac.fake.read().boot_id
    assert sysctl("no.such") == (1, "", "sysctl: unknown oid 'no.such'\n")
    assert sysctl("kern.bootsessionuuid=1")[0] == 1
    assert sysctl("net.inet.ip.forwarding=0", uid=501)[0] == 1
    assert sysctl()[0] == 1 and sysctl("-Z", "kern.ostype")[0] == 1
