"""Pairing: what an invite looks like, what becomes of the configuration, and who gets in with one over a real link."""

from __future__ import annotations

import asyncio
import base64
import logging
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.address import Destination
from cryprq_proxy.base.tasks import spawn
from cryprq_proxy.carriers.dial.endpoint import Endpoint
from cryprq_proxy.client.client import Client
from cryprq_proxy.client.requests import ClientObserver
from cryprq_proxy.config.authorized import PeersFile
from cryprq_proxy.config.client import ClientConfig, load_client
from cryprq_proxy.config.exit import ExitConfig
from cryprq_proxy.config.keys import load_identity
from cryprq_proxy.crypto.identity import Identity, PeerId
from cryprq_proxy.crypto.primitives import select_provider
from cryprq_proxy.errors import CloseReason, ConfigError, CryprqError, PeerError
from cryprq_proxy.exit.egress_policy import EgressPolicy
from cryprq_proxy.exit.exit import REFUSALS_LOGGED, Exit
from cryprq_proxy.exit.providers import Invites, Redeemed
from cryprq_proxy.exit.settings import WebSocketSettings
from cryprq_proxy.outbound.resolving.resolver import SystemResolver
from cryprq_proxy.pairing import invitation as pairing
from cryprq_proxy.pairing import join as join_module
from cryprq_proxy.pairing.invitation import (
    ExitHere,
    Invitation,
    own_address,
    parse_expiry,
    public_url,
    reload_exit,
)
from cryprq_proxy.pairing.invite_store import InviteStore, Redeemer, beside
from cryprq_proxy.pairing.join import ATTEMPTS, RETRY_SECONDS, join, plan, write
from cryprq_proxy.rules.engine import RuleSet
from cryprq_proxy.rules.syntax import Verdict, parse_action
from tests.support.settings import client_settings, exit_settings

FAST = select_provider()
ID = PeerId(bytes(range(32)))
SECRET, SECRET_TEXT = bytes(range(15, -1, -1)), "b4ha2dalbieqqbygaucagaqbaa"
TEXT = f"cryprq://{ID}@exit.example:4433#{SECRET_TEXT}"

# --- the URI ---


def test_an_invite_is_a_peer_url_and_a_secret() -> None:
    invitation = Invitation.parse(TEXT)
    assert (invitation.url, invitation.secret) == (TEXT.partition("#")[0], SECRET)
    assert invitation.peer_id == ID
    assert str(invitation) == TEXT
    assert Invitation.parse(f" {TEXT}\n") == invitation
    assert "#" not in repr(invitation) and str(SECRET) not in repr(invitation)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "#",
        TEXT.partition("#")[0],
        TEXT.partition("#")[0] + "#",
        TEXT[:-1],
        TEXT + "a",
        TEXT[:-1] + "5",  # pad bits
        TEXT[:-1] + "1",
        TEXT[:-1] + "=",
        TEXT[:-1] + "\u0131",
        TEXT + "#" + TEXT.partition("#")[2],
        TEXT.replace("cryprq:", "https:"),
        TEXT.replace(str(ID), str(ID)[:-1]),
        TEXT.replace(":4433", ":"),
        TEXT.replace(":4433", ":0"),
        TEXT.replace("exit", "ex it"),
        TEXT.replace("exit", "exit\n"),
        TEXT.replace("exit", "b\u00fccher"),
        TEXT.replace("exit.example", "e" * 3000),
    ],
)
def test_what_is_no_invite(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Invitation.parse(text)
    assert str(caught.value).isprintable()
    assert SECRET_TEXT not in str(caught.value)


urls = st.sampled_from(
    [
        f"cryprq://{ID}@192.0.2.1:4433",
        f"cryprq://{ID}@[2001:db8::1]:1",
        f"cryprq+wss://{ID}@exit.example/path",
        f"cryprq+ws://{ID}@exit.example:8080/a/b",
    ]
)


@given(urls, st.binary(min_size=16, max_size=16))
def test_round_trip(url: str, secret: bytes) -> None:
    text = str(Invitation(url, secret))
    assert Invitation.parse(text) == Invitation(url, secret)
    assert len(text) - len(url) == 27


@given(st.text() | st.builds(lambda text, end: text + end, urls, st.text()))
def test_any_text_is_an_invite_or_a_config_error(text: str) -> None:
    try:
        invitation = Invitation.parse(text)
    except ConfigError:
        return
    assert Invitation.parse(str(invitation)) == invitation


@given(st.text("abcdefghijklmnopqrstuvwxyz234567AZ=1 ", min_size=25, max_size=27))
def test_a_secret_has_one_spelling(text: str) -> None:
    url = TEXT.partition("#")[0]
    with suppress(ConfigError):
        secret = Invitation.parse(f"{url}#{text}").secret
        assert base64.b32encode(secret).decode().rstrip("=") == text.strip().upper()


@pytest.mark.parametrize(
    ("text", "seconds"), [("1m", 60), ("30m", 1800), ("1h", 3600), ("7d", 604_800), ("30d", 2_592_000)]
)
def test_times(text: str, seconds: int) -> None:
    assert parse_expiry(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "h", "0m", "1", "1s", "1H", "31d", "721h", "1.5h", "-1h", "1h ", "\u0661h", "9" * 5000 + "m"]
)
def test_times_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="--expires: expected a time from 1m to 30d"):
        parse_expiry(text)


# --- the address ---


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("exit.example", f"cryprq://{ID}@exit.example:5000"),
        ("EXIT.example:1", f"cryprq://{ID}@exit.example:1"),
        ("192.0.2.1", f"cryprq://{ID}@192.0.2.1:5000"),
        ("[2001:db8::1]:7", f"cryprq://{ID}@[2001:db8::1]:7"),
        ("wss://exit.example/path", f"cryprq+wss://{ID}@exit.example/path"),
        ("ws://exit.example:80/path", f"cryprq+ws://{ID}@exit.example:80/path"),
    ],
)
def test_addresses_that_are_given(address: str, url: str) -> None:
    assert public_url(ID, address, 5000) == url


@pytest.mark.parametrize(
    "address", ["", "a b", "a#b", "x@y", "https://a/b", "://", "wss://", "a:0", "a:99999", "a\n", "a/b"]
)
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(ConfigError) as caught:
        public_url(ID, address, 5000)
    assert str(caught.value).isprintable()


def test_the_own_address(monkeypatch: pytest.MonkeyPatch) -> None:
    outward = {socket.AF_INET: "10.0.0.5", socket.AF_INET6: "2606:2800:20::1"}
    monkeypatch.setattr(pairing, "source_address", outward.get)
    any4, any6 = Destination("0.0.0.0", 4433), Destination("::", 4434)
    assert own_address([any4]) == ("10.0.0.5", 4433)
    assert own_address([any4, any6]) == ("2606:2800:20::1", 4434)  # a global one goes first
    assert own_address([Destination("127.0.0.1", 9)]) == ("127.0.0.1", 9)
    assert own_address([Destination("exit.example", 9), any6]) == ("exit.example", 9)
    outward.clear()
    for listen in ([any4, any6], [Destination("127.0.0.1", 0)]):
        with pytest.raises(ConfigError, match="give it with --address HOST:PORT"):
            own_address(listen)


# --- the configuration ---

INVITATION = Invitation.parse(TEXT)
OTHER_ID = PeerId(bytes(32))
OTHER = f"cryprq://{OTHER_ID}@other.example:1"


def ids_of(config: ClientConfig) -> list[PeerId]:
    return [each.peer_id for each in config.exits()]


def test_a_new_configuration(own_directories: Path) -> None:
    planned = plan(INVITATION, None, None, False)
    assert planned.file == own_directories / ".config/cryprq/client.toml"
    assert planned.changed and not planned.file.exists()
    write(planned)
    assert planned.file.stat().st_mode & 0o777 == 0o600
    assert ids_of(load_client()) == [ID]
    assert SECRET_TEXT not in planned.file.read_text()
    again = plan(INVITATION, None, None, False)
    assert not again.changed
    write(again)


def test_a_configuration_without_an_exit_is_extended(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('# mine\nlisten = "127.0.0.1:9"\n[lane]\noffload = "off"')
    write(plan(INVITATION, file, None, False))
    loaded = load_client(file)
    assert (loaded.listen.port, loaded.lane.offload, ids_of(loaded)) == (9, "off", [ID])
    assert file.read_text().endswith('# mine\nlisten = "127.0.0.1:9"\n[lane]\noffload = "off"')


@pytest.mark.parametrize("first", [f"peer = '{OTHER}'", f"[[exit]]\nname = 'x'\npeer = ['{OTHER}']"])
def test_a_second_exit_is_added(first: str, tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(f"{first}  # mine")
    write(plan(INVITATION, file, "home", False))
    loaded = load_client(file)
    assert ids_of(loaded) == [OTHER_ID, ID]
    assert loaded.exits()[1].name == "home"
    assert file.read_text().startswith(f"{first}  # mine\n")
    with pytest.raises(ConfigError, match=r"the exit cannot be added to .* begin a new one with --force"):
        third = Invitation(f"cryprq://{PeerId(bytes([9]) * 32)}@third.example:1", SECRET)
        plan(third, file, "home", False)


def test_a_new_configuration_proposes_a_rule_for_private_networks(tmp_path: Path) -> None:
    """Else the person's own router is asked of the exit, which has other private networks and refuses."""
    file = tmp_path / "c.toml"
    planned = plan(INVITATION, file, None, False)
    write(planned)
    assert planned.proposes
    assert load_client(file).rules() == ()
    head, rule = file.read_text().split("\n#[[rule]]\n")
    file.write_text(f"{head}\n[[rule]]\n{rule.replace('#', '')}")
    rules = RuleSet(load_client(file).rules(), load_client(file).default)
    assert rules.decide("192.168.1.1", 80).action.verdict is Verdict.DIRECT
    assert rules.decide("192.0.2.1", 80).action.verdict is Verdict.TUNNEL


@pytest.mark.parametrize("old", ["", "[lane]\noffload = 'off'", f"peer = '{INVITATION.url}'"])
def test_a_rule_for_private_networks_by_flag(tmp_path: Path, old: str) -> None:
    file = tmp_path / "c.toml"
    file.write_text(old)
    for _ in range(2):
        planned = plan(INVITATION, file, None, False, direct_private=True)
        assert not planned.proposes
        write(planned)
    loaded = load_client(file)
    assert ids_of(loaded) == [ID] and len(loaded.rules()) == 1
    rules = RuleSet(loaded.rules(), loaded.default)
    for host in ("10.1.2.3", "172.16.0.1", "192.168.1.1", "fd00::1"):
        assert rules.decide(host, 80) == (parse_action("direct"), "private networks", 0)
    assert rules.decide("172.32.0.1", 80).action.verdict is Verdict.TUNNEL


def test_the_first_one_with_a_name(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    write(plan(INVITATION, file, "home", False))
    assert [(each.name, each.peer_id) for each in load_client(file).exits()] == [("home", ID)]
    for name in ("", "a b", 'x"', "\x1b"):
        with pytest.raises(ConfigError, match="letters, digits") as caught:
            plan(INVITATION, tmp_path / "d.toml", name, False)
        assert str(caught.value).isprintable()


def test_force_begins_anew_and_keeps_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    for number, kept in enumerate(("c.toml.old", "c.toml.old2")):
        file.write_text(f"# {number}\npeer = '{OTHER}'\n")
        planned = plan(INVITATION, file, None, True)
        assert planned.keep == tmp_path / kept
        write(planned)
        assert (tmp_path / kept).read_text().startswith(f"# {number}")
        assert ids_of(load_client(file)) == [ID]


@pytest.mark.parametrize("text", ["peer = 1", "= nonsense", "nonsense = 1", "peer = " + "[" * 5000])
def test_a_configuration_that_cannot_be_extended_stays(text: str, tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"c\.toml"):
        plan(INVITATION, file, None, False)
    assert file.read_text() == text


def test_a_file_that_changes_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    planned = plan(INVITATION, file, None, False)
    file.write_text("# somebody was here\n")
    with pytest.raises(ConfigError, match="was changed meanwhile"):
        write(planned)
    assert file.read_text() == "# somebody was here\n"


# --- over a real link ---


class World:
    """An exit on loopback that takes invites, and clients."""

    def __init__(
        self, directory: Path, exit: Exit, redeemer: Redeemer, endpoint: Endpoint, peer: PeerId
    ) -> None:
        self.listed = PeersFile(directory / "authorized")
        self.store = InviteStore(directory / "invites")
        self.exit = exit
        self.redeemer = redeemer
        self.endpoint = endpoint
        self.peer = peer
        self.now = 1_800_000_000.0

    def client(self, secret: bytes | None, identity: Identity | None = None) -> Client:
        settings = client_settings(peer=self.peer, endpoints=(self.endpoint,), invite=secret)
        return Client(identity or Identity.generate(FAST), settings, FAST)

    async def comes_in(self, secret: bytes | None, identity: Identity | None = None) -> bool:
        client = self.client(secret, identity)
        try:
            await client.reach()
            return True
        except PeerError as error:
            assert error.reason is CloseReason.NOT_AUTHORIZED
            return False
        finally:
            await client.stop()

    def invitation(self, name: str) -> Invitation:
        url = f"cryprq://{self.peer}@{self.endpoint.address}"
        return Invitation(url, self.store.create(name, 60, self.now))

    def names(self) -> list[str]:
        return [peer.name for peer in self.listed.read()]


@asynccontextmanager
async def running(
    directory: Path, invites: Invites | None = None, *, websocket: bool = False, **bounds: Any
) -> AsyncIterator[World]:
    redeemer = Redeemer(directory / "authorized", lambda: world.now)
    identity, resolver = Identity.generate(FAST), SystemResolver()
    anywhere = Destination("127.0.0.1", 0)
    settings = exit_settings(
        anywhere,
        bounds={"handshakes_per_minute": 1_000_000, **bounds},
        websocket=WebSocketSettings(anywhere, "/link") if websocket else None,
    )
    exit = Exit(identity, settings, {}, EgressPolicy(), resolver, FAST, invites=invites or redeemer)
    *_, address = await exit.start()
    endpoint = Endpoint("ws", address, "/link") if websocket else Endpoint("tcp", address)
    world = World(directory, exit, redeemer, endpoint, identity.peer_id)
    try:
        yield world
    finally:
        await exit.stop(0.0)
        redeemer.close()
        resolver.close()


async def test_an_invite_lets_one_in_for_good(tmp_path: Path) -> None:
    async with running(tmp_path) as world:
        laptop, thief = Identity.generate(FAST), Identity.generate(FAST)
        assert not await world.comes_in(None, laptop)
        secret = world.store.create("laptop", 60, world.now)
        assert await world.comes_in(secret, laptop)
        assert world.names() == ["laptop"]
        assert await world.comes_in(None, laptop)
        assert await world.comes_in(secret, laptop)  # who is listed may show what they like
        assert not await world.comes_in(secret, thief)
        assert world.names() == ["laptop"]


async def test_an_invite_over_websocket(tmp_path: Path) -> None:
    async with running(tmp_path, websocket=True) as world:
        secret = world.store.create("laptop", 60, world.now)
        url = public_url(world.peer, str(world.endpoint), 0)
        invitation = Invitation(url, secret)
        await join(invitation, plan(invitation, tmp_path / "c.toml", None, False))
        assert world.names() == ["laptop"]
        (known,) = load_client(tmp_path / "c.toml").exits()
        assert known.endpoints == (world.endpoint,)
        assert not await world.comes_in(secret)


def test_a_running_exit_reads_its_list_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[Path, str]] = []
    monkeypatch.setattr(pairing, "query", lambda path, command: asked.append((path, command)))
    config = ExitConfig(control_socket=tmp_path / "exit.sock")
    for place in (None, config.control_socket):
        reload_exit(ExitHere(config, tmp_path / "authorized", place, (), 0, None, (), "", False))
    assert asked == [(config.control_socket, "reload")]


async def test_a_revoked_peer_is_out_at_once(tmp_path: Path) -> None:
    async with running(tmp_path) as world:
        secret = world.store.create("laptop", 60, world.now)
        client, changed = world.client(secret), asyncio.Event()

        class Watcher(ClientObserver):
            def changed(self) -> None:
                changed.set()

        client.observer = Watcher()
        link = spawn(client.run(), "link")
        await changed.wait()
        assert client.up
        changed.clear()
        world.listed.revoke("laptop")
        world.exit.authorize(dict(world.listed.read()))
        assert world.exit.counts()[0] == 0
        await changed.wait()
        assert not client.up
        await client.stop()
        assert link.done()


async def test_one_who_is_let_in_uses_the_invite_up_and_is_listed(tmp_path: Path) -> None:
    async with running(tmp_path) as world:
        laptop = Identity.generate(FAST)
        world.exit.authorize({laptop.peer_id: ""})
        secret = world.store.create("phone", 60, world.now)
        assert await world.comes_in(secret, laptop)
        assert world.store.open(world.now) == ()
        assert world.names() == ["phone"]
        assert not await world.comes_in(secret), "another one"


async def test_one_who_is_let_in_cannot_join_with_an_invented_secret(tmp_path: Path) -> None:
    async with running(tmp_path) as world:
        laptop = Identity.generate(FAST)
        world.exit.authorize({laptop.peer_id: ""})
        assert not await world.comes_in(secrets.token_bytes(16), laptop)
        assert await world.comes_in(None, laptop)


async def test_who_has_used_an_invite_may_show_it_again_until_it_expires_or_is_revoked(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as world:
        laptop = Identity.generate(FAST)
        secret = world.store.create("laptop", 60, world.now)
        assert await world.comes_in(secret, laptop)
        assert await world.comes_in(secret, laptop)
        assert world.names() == ["laptop"]
        world.listed.revoke("laptop")
        world.exit.authorize({})
        assert not await world.comes_in(secret, laptop)
        world.exit.authorize({laptop.peer_id: ""})
        world.now += 60
        assert not await world.comes_in(secret, laptop)


async def test_expired_and_withdrawn(tmp_path: Path) -> None:
    async with running(tmp_path) as world:
        late, withdrawn = (world.store.create(name, 60, world.now) for name in ("late", "withdrawn"))
        world.store.cancel("withdrawn", world.now)
        assert not await world.comes_in(withdrawn)
        world.now += 60
        assert not await world.comes_in(late)
        assert world.names() == []


async def test_two_at_once(tmp_path: Path) -> None:
    async with running(tmp_path) as world:
        secret = world.store.create("laptop", 60, world.now)
        came = await asyncio.gather(*(world.comes_in(secret) for _ in range(4)))
        assert sorted(came) == [False, False, False, True]
        assert world.names() == ["laptop"]


async def test_guesses_over_the_link(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with running(tmp_path) as world:
        secret = world.store.create("laptop", 60, world.now)
        with caplog.at_level(logging.INFO):
            for _ in range(2 * REFUSALS_LOGGED):
                assert not await world.comes_in(secrets.token_bytes(16))
            refused = [line for line in caplog.messages if "refused" in line]
            assert 0 < len(refused) <= REFUSALS_LOGGED + 1
            assert "with an invite that is invalid, used or expired" in refused[0]
            assert world.names() == []
            assert await world.comes_in(secret)
        assert secret.hex() not in caplog.text
        assert sum("used an invite" in line for line in caplog.messages) == 1


async def test_a_corrupt_file_lets_nobody_in(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with running(tmp_path) as world:
        secret = world.store.create("laptop", 60, world.now)
        beside(tmp_path / "authorized").write_text("nonsense\n")
        assert not await world.comes_in(secret)
        assert any("line 1 is not a valid invite" in line for line in caplog.messages)


async def test_who_breaks_off_is_listed_all_the_same(tmp_path: Path) -> None:
    """The invite is used up by then: its owner comes again, with the same keys."""
    asked, answer = asyncio.Event(), asyncio.Event()

    class Slow(Invites):
        async def redeem(self, secret: bytes, peer: PeerId) -> tuple[Redeemed, str]:
            asked.set()
            await answer.wait()
            return (Redeemed.NOW if secret == SECRET else Redeemed.NOT), "alice"

    async with running(tmp_path, Slow()) as world:
        laptop = Identity.generate(FAST)
        client = world.client(SECRET, laptop)
        attempt = asyncio.ensure_future(client.reach())
        await asked.wait()
        attempt.cancel()
        await asyncio.wait([attempt])
        await client.stop()
        answer.set()
        assert await world.comes_in(SECRET, laptop)
        assert await world.comes_in(None, laptop)


async def test_join_writes_a_configuration_that_works(tmp_path: Path, own_directories: Path) -> None:
    async with running(tmp_path) as world:
        host, port = world.endpoint.address
        url = f"cryprq://{world.peer}@{host}:{port}"
        secret = world.store.create("laptop", 60, world.now)
        invitation = Invitation(url, secret)
        peer_id = await join(invitation, plan(invitation, None, None, False))
        assert [peer.peer_id for peer in world.listed.read()] == [peer_id]
        loaded = load_client()
        assert load_identity(FAST, loaded.identity).peer_id == peer_id
        assert ids_of(loaded) == [world.peer]

        other = tmp_path / "other.toml"
        other.write_text('identity = "other.key"\n')
        with pytest.raises(CryprqError, match="refused this invite: it was used, has expired"):
            await join(invitation, plan(invitation, other, None, False))
        assert other.read_text() == 'identity = "other.key"\n'


class Pauses:
    """Between the attempts of a `join`; they take no time."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)


async def test_join_says_why_it_did_not_work(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    pauses = Pauses()
    nowhere = Invitation(f"cryprq://{ID}@127.0.0.1:{port}", SECRET)
    with pytest.raises(CryprqError, match=r"the exit was not reached: .*refused.*; make sure that the exit"):
        await join(nowhere, plan(nowhere, tmp_path / "c.toml", None, False), pauses)
    assert len(pauses.seconds) == ATTEMPTS - 1
    assert [record.getMessage()[-14:] for record in caplog.records] == ["; trying again"], "said once"
    async with running(tmp_path) as world:
        stranger = Invitation(f"cryprq://{ID}@{world.endpoint.address}", SECRET)
        with pytest.raises(CryprqError, match=r"the exit was not reached: .*ended the connection"):
            await join(stranger, plan(stranger, tmp_path / "c.toml", None, False), pauses)
    assert not (tmp_path / "c.toml").exists()


async def test_join_begins_no_attempt_after_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(join_module, "clock", lambda: now)

    async def pause(_: float) -> None:
        nonlocal now
        now += RETRY_SECONDS / 2

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    nowhere = Invitation(f"cryprq://{ID}@127.0.0.1:{port}", SECRET)
    with pytest.raises(CryprqError, match="the exit was not reached"):
        await join(nowhere, plan(nowhere, tmp_path / "c.toml", None, False), pause)
    assert now == RETRY_SECONDS


async def test_join_tries_again_at_a_busy_exit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gave up after one attempt, and the person had to call again."""
    async with running(tmp_path) as world:
        accepted, busy = world.exit.listener.accepted, 3

        def shut(entrance: None, sock: socket.socket, host: str) -> None:
            nonlocal busy
            busy -= 1
            if busy >= 0:
                sock.close()
            else:
                accepted(entrance, sock, host)

        monkeypatch.setattr(world.exit.listener._acceptors[0], "_accepted", partial(shut, None))
        invitation = world.invitation("laptop")
        pauses = Pauses()
        await join(invitation, plan(invitation, tmp_path / "c.toml", None, False), pauses)
        assert world.names() == ["laptop"]
        assert len(pauses.seconds) == 3
        assert pauses.seconds[0] < pauses.seconds[1] < pauses.seconds[2]


async def test_a_refused_invite_is_not_tried_again(tmp_path: Path) -> None:
    async with running(tmp_path) as world:
        invitation, pauses = Invitation(world.invitation("laptop").url, SECRET), Pauses()
        with pytest.raises(CryprqError, match="refused this invite"):
            await join(invitation, plan(invitation, tmp_path / "c.toml", None, False), pauses)
        assert not pauses.seconds


async def test_fifty_at_once(tmp_path: Path) -> None:
    """At an exit that has room for few handshakes at once. With one attempt each, most of them were turned away."""
    async with running(tmp_path, handshakes_in_flight=16) as world:
        names, joins = [f"laptop{number}" for number in range(50)], []
        for name in names:
            config = tmp_path / f"{name}.toml"
            config.write_text(f'identity = "{name}.key"\n')
            invitation = world.invitation(name)
            joins.append(join(invitation, plan(invitation, config, None, False)))
        await asyncio.gather(*joins)
        assert sorted(world.names()) == sorted(names)
