"""Open invites: each works once and for its time, whatever happens at the same moment; guesses do nothing."""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.base.file_access import mark
from cryprq_proxy.base.files import SharedFile
from cryprq_proxy.config.authorized import Peer, PeersFile
from cryprq_proxy.crypto.identity import PeerId
from cryprq_proxy.errors import ConfigError
from cryprq_proxy.exit.providers import Redeemed
from cryprq_proxy.pairing.invite_store import (
    MAX_OPEN,
    WHAT,
    Invite,
    InviteStore,
    Redeemer,
    beside,
    parse_invites,
)

NOW = 1_800_000_000.5
PEER, OTHER = PeerId(bytes(32)), PeerId(bytes(range(32)))


@pytest.fixture
def store(tmp_path: Path) -> InviteStore:
    return InviteStore(tmp_path / "invites")


def test_an_invite_works_once(store: InviteStore) -> None:
    secret = store.create("laptop", 3600, NOW)
    other = store.create("phone", 3600, NOW)
    assert len(secret) == 16
    assert secret != other
    assert store.find(secret, NOW)
    assert store.redeem(secret, PEER, NOW) == "laptop"
    assert store.open(NOW)[0].name == "phone"
    assert store.redeem(secret, PEER, NOW) is None
    assert [invite.name for invite in store.open(NOW)] == ["phone"]
    assert store.redeem(other, PEER, NOW) == "phone"
    assert store.open(NOW) == ()


def test_the_file_holds_no_secret_and_is_private(store: InviteStore, tmp_path: Path) -> None:
    secret = store.create("laptop", 60, NOW)
    file = tmp_path / "invites"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    text = file.read_text()
    assert secret.hex() not in text
    assert hashlib.sha256(secret).hexdigest() in text
    assert parse_invites(text, file) == (
        Invite("laptop", hashlib.sha256(secret).hexdigest(), int(NOW), int(NOW) + 60),
    )


def test_the_secret_comes_from_the_entropy(store: InviteStore) -> None:
    assert store.create("a", 60, NOW, lambda size: bytes(range(size))) == bytes(range(16))


def test_an_invite_expires(store: InviteStore, tmp_path: Path) -> None:
    secret = store.create("laptop", 60, NOW)
    assert store.find(secret, NOW + 59)
    assert not store.find(secret, NOW + 60)
    assert store.redeem(secret, PEER, NOW + 60) is None
    assert store.open(NOW + 60) == ()
    store.create("laptop", 60, NOW + 60)  # its name is free again, and it is swept
    assert len((tmp_path / "invites").read_text().splitlines()) == 1


@pytest.mark.parametrize("seconds", [-1, 0, 59, 30 * 86_400 + 1])
def test_times_have_bounds(store: InviteStore, seconds: int) -> None:
    with pytest.raises(ConfigError, match="1 minute to 30 days"):
        store.create("a", seconds, NOW)


def test_cancelled(store: InviteStore) -> None:
    secret = store.create("laptop", 60, NOW)
    with pytest.raises(ConfigError, match="no open invite for phone"):
        store.cancel("phone", NOW)
    store.cancel("laptop", NOW)
    assert store.redeem(secret, PEER, NOW) is None
    with pytest.raises(ConfigError, match="no open invite"):
        store.cancel("laptop", NOW)


def test_names_are_unique_and_the_number_is_bounded(store: InviteStore, tmp_path: Path) -> None:
    lines = [
        f'{{"name":"n{n}","hash":"{n:064x}","created":0,"expires":{2**40}}}\n' for n in range(MAX_OPEN - 1)
    ]
    (tmp_path / "invites").write_text("".join(lines))
    with pytest.raises(ConfigError, match="an open invite for n7 already"):
        store.create("n7", 60, NOW)
    secret = store.create("last", 60, NOW)
    with pytest.raises(ConfigError, match="1000 invites are open"):
        store.create("more", 60, NOW)
    assert store.redeem(secret, PEER, NOW) == "last"
    store.create("more", 60, NOW)  # and the used one has lost its place
    assert len((tmp_path / "invites").read_text().splitlines()) == MAX_OPEN
    assert not store.find(secret, NOW)


GOOD = '{"name":"a","hash":"' + "0" * 64 + '","created":0,"expires":2000000000}'
BROKEN = [
    "nonsense",
    "{}",
    "[" * 5000,
    GOOD[:-1],
    GOOD + " " + GOOD,
    GOOD.replace("0" * 64, "0" * 63),
    GOOD.replace("0" * 64, "0" * 63 + "G"),
    GOOD.replace('"a"', '""'),
    GOOD.replace('"a"', '"a\\n"'),
    GOOD.replace('"a"', '"\\u001b[1m"'),
    GOOD.replace('"a"', '"\\ud800"'),
    GOOD.replace('"a"', '"' + "a" * 65 + '"'),
    GOOD.replace("2000000000", "-1"),
    GOOD.replace("2000000000", "1e999"),
    GOOD.replace("2000000000", "true"),
    GOOD.replace("2000000000", str(2**48)),
    GOOD.replace('"created"', '"createt"'),
    GOOD.replace("{", '{"more":1,'),
    GOOD.replace("{", '{"peer":"aaaa",'),
]


@pytest.mark.parametrize("line", BROKEN, ids=range(len(BROKEN)))
def test_a_corrupt_file_is_one_sentence_and_lets_nobody_in(line: str, tmp_path: Path) -> None:
    file = tmp_path / "invites"
    store = InviteStore(file)
    secret = store.create("b", 60, NOW)
    file.write_text(file.read_text() + line + "\n")
    before = file.read_bytes()
    for call in (
        lambda: store.redeem(secret, PEER, NOW),
        lambda: store.find(secret, NOW),
        lambda: store.open(NOW),
        lambda: store.create("c", 60, NOW),
        lambda: store.cancel("b", NOW),
    ):
        with pytest.raises(ConfigError, match="invites: line 2 is not a valid invite; delete that line"):
            call()
    assert file.read_bytes() == before


def test_too_many_lines(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="more than 1000 invites"):
        parse_invites((GOOD + "\n") * (MAX_OPEN + 1), tmp_path / "f")


@given(st.text() | st.sampled_from([GOOD, *BROKEN[:5]]).map(lambda line: f"{GOOD}\n{line}"))
def test_any_text_is_a_list_or_a_config_error(text: str) -> None:
    try:
        invites = parse_invites(text, Path("invites"))
    except ConfigError:
        return
    assert all(invite.name.isprintable() and 1 <= len(invite.name) <= 64 for invite in invites)


# --- at the same time ---


def test_of_many_threads_one_wins(store: InviteStore, tmp_path: Path) -> None:
    """The last moment counts: all of them have seen the invite before any has taken it."""
    secret = store.create("laptop", 60, NOW)
    barrier, won = threading.Barrier(8), []

    def race() -> None:
        mine = InviteStore(tmp_path / "invites")
        assert mine.find(secret, NOW)
        barrier.wait()
        won.append(mine.redeem(secret, PEER, NOW))

    threads = [threading.Thread(target=race) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(str, won)) == ["None"] * 7 + ["laptop"]


def _create(file: Path, first: int) -> None:
    for number in range(first, first + 20):
        InviteStore(file).create(f"n{number}", 60, NOW)


@pytest.mark.process
def test_processes_lose_nothing_of_each_other(tmp_path: Path) -> None:
    """What `invite` writes while the exit redeems: no line gets lost, none comes back."""
    file = tmp_path / "invites"
    store = InviteStore(file)
    secrets = [store.create(f"mine{number}", 60, NOW) for number in range(20)]
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_create, args=(file, first)) for first in (0, 100)]
    for writer in writers:
        writer.start()
    assert [store.redeem(secret, PEER, NOW) for secret in secrets] == [
        f"mine{number}" for number in range(20)
    ]
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert {invite.name for invite in store.open(NOW)} == {f"n{n}" for n in (*range(20), *range(100, 120))}


def test_used_up_before_anybody_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash between the two writes costs an invite, never lets it work twice."""
    store, redeemer = InviteStore(tmp_path / "invites"), Redeemer(tmp_path / "authorized", lambda: NOW)
    secret = store.create("laptop", 60, NOW)

    def crash(*_: object) -> Peer:
        assert store.open(NOW) == ()
        raise KeyboardInterrupt

    monkeypatch.setattr(PeersFile, "add", crash)
    with pytest.raises(KeyboardInterrupt):
        redeemer.redeem_now(secret, PEER)
    monkeypatch.undo()
    assert redeemer.redeem_now(secret, PEER) == (Redeemed.BEFORE, "")
    assert PeersFile(tmp_path / "authorized").read() == ()
    redeemer.close()


# --- the running exit ---


async def test_a_redeemed_invite_lists_the_peer_under_its_name(tmp_path: Path) -> None:
    listed = tmp_path / "authorized"
    listed.write_text(f"{OTHER} laptop\n")
    store, redeemer = InviteStore(beside(listed)), Redeemer(listed, lambda: NOW)
    secret = store.create("laptop", 60, NOW)
    assert (await redeemer.redeem(bytes(16), PEER))[0] is Redeemed.NOT
    assert (await redeemer.redeem(secret, PEER))[0] is Redeemed.NOW
    assert (await redeemer.redeem(secret, PEER))[0] is Redeemed.BEFORE
    assert (await redeemer.redeem(secret, OTHER))[0] is Redeemed.NOT
    assert listed.read_text() == f"{OTHER} laptop\n{PEER} laptop-2\n"
    redeemer.close()


async def test_a_broken_list_of_peers_costs_nobody_the_invite(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    listed = tmp_path / "authorized"
    listed.write_text("nonsense\n")
    store, redeemer = InviteStore(beside(listed)), Redeemer(listed, lambda: NOW)
    secret = store.create("laptop", 60, NOW)
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            assert (await redeemer.redeem(secret, PEER))[0] is Redeemed.NOT
    assert len(caplog.messages) == 1
    assert "authorized: line 1: a peer id has 52 characters" in caplog.messages[0]
    listed.write_text("")
    assert (await redeemer.redeem(secret, PEER))[0] is Redeemed.NOW
    redeemer.close()


def test_ten_thousand_guesses(tmp_path: Path) -> None:
    """None gets in, each only reads the file of invites without its lock, and the real one still works."""
    listed = tmp_path / "authorized"
    listed.write_text("nonsense\n")  # whoever reads the list of peers fails
    store, redeemer = InviteStore(beside(listed)), Redeemer(listed, lambda: NOW)
    secrets = [store.create(f"n{number}", 60, NOW) for number in range(20)]
    before = mark(beside(listed))
    near = bytearray(secrets[7])
    near[15] ^= 1
    guesses = [hashlib.sha256(number.to_bytes(4)).digest()[:16] for number in range(10_000)]
    guesses[5000] = bytes(near)
    with SharedFile(beside(listed), WHAT).locked():
        assert all(redeemer.redeem_now(guess, PEER)[0] is Redeemed.NOT for guess in guesses)
    assert mark(beside(listed)) == before
    assert listed.read_text() == "nonsense\n"
    listed.write_text("")
    assert redeemer.redeem_now(secrets[7], PEER) == (Redeemed.NOW, "n7")
    redeemer.close()
