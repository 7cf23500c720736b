"""The exit's list of peers: what counts as a line, and what changes leave alone."""

from __future__ import annotations

import contextlib
import fcntl
import os
import string
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.base import files as shared_file
from cryprq_proxy.base.files import SharedFile
from cryprq_proxy.base.paths import MAX_FILE, MAX_LIST
from cryprq_proxy.config import authorized
from cryprq_proxy.config.authorized import (
    MAX_NAME,
    Peer,
    PeersFile,
    RepeatedPeer,
    check_name,
    find,
    free_name,
    parse_peers,
    read_peers,
    repeated_peers,
    revoked_beside,
)
from cryprq_proxy.crypto.identity import PeerId
from cryprq_proxy.errors import ConfigError

ALICE, BOB, CAROL = (PeerId(bytes((number,)) * 32) for number in (1, 2, 3))
TEXT = f"""# friends

{ALICE} laptop   # since May
  {BOB}
{ALICE} the same again
{CAROL}\tphone of Carol#x
# {BOB} no
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "authorized"
    path.write_text(TEXT)
    return path


def test_lines(file: Path) -> None:
    peers = [
        Peer(ALICE, "laptop"),
        Peer(BOB, ""),
        Peer(ALICE, "the same again"),
        Peer(CAROL, "phone of Carol"),
    ]
    assert list(PeersFile(file).read()) == peers
    assert list(read_peers(file).values()) == peers
    assert peers[1].shown == str(BOB)


def test_a_peer_on_several_lines(file: Path) -> None:
    assert repeated_peers(read_peers(file)) == (RepeatedPeer(Peer(ALICE, "the same again"), 3, 5),)
    file.write_text(f"{BOB}\n{ALICE} a\n\n{BOB} b\n{ALICE} c\n{BOB} d\n")
    assert repeated_peers(read_peers(file)) == (
        RepeatedPeer(Peer(BOB, "d"), 1, 6),
        RepeatedPeer(Peer(ALICE, "c"), 2, 5),
    )
    file.write_text(f"{BOB} same\n{ALICE} same\n")
    assert repeated_peers(read_peers(file)) == ()


def test_an_editor_may_put_a_byte_order_mark_in_front_and_end_lines_in_its_own_manner(file: Path) -> None:
    file.write_bytes(f"\ufeff{ALICE} laptop\r\n{BOB}\r\n".encode())
    assert list(read_peers(file).values()) == [Peer(ALICE, "laptop"), Peer(BOB, "")]
    PeersFile(file).rename("laptop", "desk")
    assert list(read_peers(file).values()) == [Peer(ALICE, "desk"), Peer(BOB, "")]


def test_a_missing_file_is_an_empty_list_here_and_an_error_where_it_is_named(tmp_path: Path) -> None:
    assert PeersFile(tmp_path / "none").read() == ()
    with pytest.raises(ConfigError, match="does not exist"):
        read_peers(tmp_path / "none")


def test_adding(tmp_path: Path) -> None:
    path = tmp_path / "new" / "authorized"
    peers = PeersFile(path)
    assert peers.add(ALICE, "laptop") == Peer(ALICE, "laptop")
    assert peers.add(BOB, "laptop") == Peer(BOB, "laptop-2")
    assert peers.add(ALICE, "other") == Peer(ALICE, "laptop")
    assert path.read_text() == f"{ALICE} laptop\n{BOB} laptop-2\n"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert os.listdir(path.parent) == ["authorized"]


def test_adding_behind_a_line_without_an_end(file: Path) -> None:
    file.write_text(f"{BOB} b")
    PeersFile(file).add(ALICE, "a")
    assert file.read_text() == f"{BOB} b\n{ALICE} a\n"


def test_renaming_touches_the_lines_of_that_peer_alone(file: Path) -> None:
    PeersFile(file).rename("laptop", "Alice, at home")
    assert file.read_text() == TEXT.replace("laptop   #", "Alice, at home   #").replace(
        "the same again", "Alice, at home"
    )
    PeersFile(file).rename(str(BOB), "desk")
    PeersFile(file).rename("phone of Carol", r"\1 \g<id>")
    assert f"  {BOB} desk\n" in file.read_text()
    assert f"{CAROL} \\1 \\g<id>#x\n" in file.read_text()
    with pytest.raises(ConfigError, match="another peer is called desk already"):
        PeersFile(file).rename("Alice, at home", "desk")
    PeersFile(file).rename("desk", "desk")


def test_revoking(file: Path) -> None:
    assert PeersFile(file).revoke("laptop").peer_id == ALICE
    assert file.read_text() == "".join(
        line for line in TEXT.splitlines(True) if not line.startswith(str(ALICE))
    )
    PeersFile(file).revoke(str(BOB).upper())
    assert [peer.peer_id for peer in PeersFile(file).read()] == [CAROL]
    assert PeersFile(file).revoked() == (Peer(ALICE, "laptop"), Peer(BOB, ""))
    assert revoked_beside(file).read_text() == f"{ALICE} laptop\n{BOB}\n"
    for gone in ("laptop", str(BOB), ""):
        with pytest.raises(ConfigError, match="no peer is called"):
            PeersFile(file).revoke(gone)


def test_adding_again_ends_a_revocation(file: Path) -> None:
    old = file.read_text()
    PeersFile(file).revoke(str(BOB))
    PeersFile(file).revoke("laptop")
    file.write_text(old)  # an editor saves what it had
    PeersFile(file).revoke("laptop")
    assert [peer.peer_id for peer in PeersFile(file).revoked()] == [BOB, ALICE]
    assert PeersFile(file).add(ALICE, "desk") == Peer(ALICE, "desk")
    assert PeersFile(file).add(BOB, "other") == Peer(BOB, "")
    assert PeersFile(file).revoked() == ()


def test_a_crash_while_revoking_lets_nobody_in(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Crash(Exception):
        pass

    def crash(shared: SharedFile, text: str) -> None:
        if shared.path == file:
            raise Crash
        replace(shared, text)

    replace = SharedFile.replace
    monkeypatch.setattr(SharedFile, "replace", crash)
    with pytest.raises(Crash):
        PeersFile(file).revoke("laptop")
    assert [peer.peer_id for peer in PeersFile(file).revoked()] == [ALICE]


def test_revocations_are_bounded_and_the_latest_stay(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authorized, "MAX_REVOKED", 2)
    for who in (ALICE, BOB, CAROL):
        PeersFile(file).revoke(str(who))
    assert [peer.peer_id for peer in PeersFile(file).revoked()] == [BOB, CAROL]


def test_two_of_one_name_are_told_apart_by_their_ids(file: Path) -> None:
    file.write_text(f"{ALICE} x\n{BOB} x\n")
    with pytest.raises(ConfigError, match="2 peers are called x; say which one by its peer id"):
        PeersFile(file).revoke("x")
    PeersFile(file).revoke(str(ALICE))
    assert file.read_text() == f"{BOB} x\n"


def test_a_broken_line_is_named_and_nothing_is_written(file: Path) -> None:
    file.write_text(f"{ALICE} a\nnonsense\n")
    peers = PeersFile(file)
    changes: list[Callable[[], Peer]] = [
        lambda: peers.add(BOB, "b"),
        lambda: peers.revoke("a"),
        lambda: peers.rename("a", "b"),
    ]
    for change in changes:
        with pytest.raises(ConfigError, match="line 2: a peer id has 52 characters"):
            change()
    assert file.read_text() == f"{ALICE} a\nnonsense\n"


def test_mode_and_link_stay(file: Path, tmp_path: Path) -> None:
    file.chmod(0o640)
    link = tmp_path / "there" / "authorized"
    link.parent.mkdir()
    link.symlink_to(file)
    PeersFile(link).add(PeerId(bytes(32)), "new")
    assert link.is_symlink()
    assert file.stat().st_mode & 0o777 == 0o640
    assert len(PeersFile(file).read()) == 5


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_root_changes_no_list_of_another_user(file: Path) -> None:
    before = file.read_text()
    os.chown(file, 12345, 23456)
    with pytest.raises(ConfigError, match=f"belongs to the user 12345; run: chown root {file}"):
        PeersFile(file).revoke("laptop")
    os.chown(file.parent, 12345, 23456)
    with pytest.raises(ConfigError, match="is in the hands of the user 12345"):
        PeersFile(file).revoke("laptop")
    assert file.read_text() == before


def test_a_full_list(file: Path) -> None:
    text = "#" * (MAX_LIST - 10)
    file.write_text(text)
    with pytest.raises(ConfigError, match="larger than 16 MiB"):
        PeersFile(file).add(ALICE, "a")
    assert file.stat().st_size == MAX_LIST - 10
    file.write_text(f"{text}{text}")
    with pytest.raises(ConfigError, match="larger than 16 MiB"):
        read_peers(file)


def test_thirty_thousand_peers(file: Path) -> None:
    text = "".join(f"{PeerId(number.to_bytes(32))} peer {number}\n" for number in range(30_000))
    file.write_text(text)
    assert file.stat().st_size > MAX_FILE
    assert len(read_peers(file)) == 30_000
    assert PeersFile(file).add(ALICE, "peer 7").name == "peer 7-2"
    assert PeersFile(file).revoke("peer 29999").peer_id == PeerId((29_999).to_bytes(32))
    assert len(PeersFile(file).read()) == 30_000


def test_what_a_killed_writer_left_is_in_nobodys_way(file: Path) -> None:
    (file.parent / ".authorized.new").write_text("half")
    PeersFile(file).add(PeerId(bytes(32)), "new")
    assert os.listdir(file.parent) == ["authorized"]


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"the list of authorized peers .* cannot be written: "):
        PeersFile(tmp_path / "file" / "authorized").add(ALICE, "a")


def test_a_lock_that_is_never_given_up_is_an_error(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_file, "LOCK_SECONDS", 0.0)
    handle = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match=r"another program keeps .* locked"):
            PeersFile(file).revoke("laptop")
    finally:
        os.close(handle)
    PeersFile(file).revoke("laptop")


# --- names ---


@pytest.mark.parametrize(
    "name",
    [
        "",
        " a",
        "a ",
        "a#b",
        "a\nb",
        "a\x1b[31m",
        "a\u202eb",
        "a\u2028b",
        "a\x85b",
        "\ud800",
        "x" * (MAX_NAME + 1),
        str(ALICE),
        str(ALICE).upper(),
    ],
)
def test_names_that_are_none(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        PeersFile(tmp_path / "authorized").add(ALICE, name)
    assert str(caught.value).isprintable()
    assert not (tmp_path / "authorized").exists()


names = st.text(
    st.characters(codec="utf-8", exclude_categories=("C", "Z"), exclude_characters="#") | st.just(" "),
    min_size=1,
    max_size=MAX_NAME,
).filter(lambda name: name == name.strip() and name.isprintable())


@given(names)
def test_any_good_name_comes_back_from_the_file(name: str) -> None:
    assert check_name(name) == name
    assert parse_peers(f"{ALICE} {name}\n", Path("f")) == (Peer(ALICE, name),)


@given(names, st.integers(1, 30))
def test_names_that_are_taken_get_a_number(name: str, times: int) -> None:
    taken: list[str] = []
    for _ in range(times):
        taken.append(check_name(free_name(name, taken)))
    assert len(set(taken)) == times


LINES = st.lists(
    st.sampled_from([f"{ALICE} a", f" {BOB}", f"{CAROL} c # d", "# x", "", f"{BOB} b"])
    | st.text(string.printable, max_size=20)
)


@given(LINES)
def test_any_text_is_a_list_or_one_sentence(lines: list[str]) -> None:
    text = "\n".join(lines)
    try:
        peers = parse_peers(text, Path("f"))
    except ConfigError as error:
        assert str(error).startswith("f: line ")
        return
    assert {peer.peer_id for peer in peers} <= {ALICE, BOB, CAROL}
    with contextlib.suppress(ConfigError):
        assert find(peers, str(ALICE)).peer_id == ALICE
