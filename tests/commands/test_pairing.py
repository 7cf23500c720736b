"""The commands of pairing: what they print, where, and how they fail; and all of them with real processes."""

from __future__ import annotations

import contextlib
import io
import json
import re
import signal
import socket
from pathlib import Path

import pytest

from cryprq_proxy.cli import run_command
from cryprq_proxy.config.exit import load_exit
from cryprq_proxy.config.keys import load_identity, save_identity
from cryprq_proxy.crypto.identity import Identity, PeerId
from cryprq_proxy.crypto.primitives import select_provider
from cryprq_proxy.pairing.invitation import Invitation
from tests.support.processes import Program, call, echo_server, receive, socks_connect

ALICE, BOB = PeerId(bytes(32)), PeerId(bytes(range(32)))

type Capture = pytest.CaptureFixture[str]


@pytest.fixture
def files(own_directories: Path) -> Path:
    """The directory of an exit that lets two in."""
    directory = own_directories / ".config" / "cryprq"
    directory.mkdir(parents=True)
    (directory / "authorized").write_text(f"{ALICE} laptop\n{BOB} \x1b[31mphone\n")
    save_identity(Identity.generate(select_provider()), directory / "identity")
    return directory


def run(capsys: Capture, *arguments: str, code: int = 0) -> tuple[str, str]:
    """Standard output and standard error of a command that ends with `code`."""
    assert run_command(list(arguments)) == code, capsys.readouterr()
    out, err = capsys.readouterr()
    if code:
        assert len(err.splitlines()) == 1 and err.startswith("cryprq-proxy: "), err
    return out, err


# --- invite ---


def test_the_invite_alone_is_on_standard_output(own_directories: Path, capsys: Capture) -> None:
    out, err = run(capsys, "invite", "laptop", "--expires", "7d", "--address", "exit.example")
    invitation = Invitation.parse(out)
    own = load_identity(select_provider(), own_directories / ".config/cryprq/identity").peer_id
    assert invitation.url == f"cryprq://{own}@exit.example:4433"
    assert out == f"{invitation}\n"
    assert "for laptop, to be used once, until " in err
    assert "note: no exit with this configuration runs now" in err
    assert invitation.secret.hex() not in err and out.partition("#")[2].strip() not in err


def test_a_qr_code_where_it_is_asked_for(capsys: Capture) -> None:
    out, _ = run(capsys, "invite", "laptop", "--address", "exit.example", "--qr")
    first, *code = out.splitlines()
    Invitation.parse(first)
    assert len(code) > 15
    assert set("".join(code)) <= set(" \u2580\u2584\u2588")
    assert len({len(line) for line in code}) == 1


def test_the_address_of_the_configuration(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "exit.toml"
    file.write_text('public = "wss://exit.example/link"\nidentity = "key"\npsk_file = "psk"\n')
    out, err = run(capsys, "invite", "laptop", "--config", str(file))
    assert Invitation.parse(out).url.endswith("@exit.example/link")
    assert "note: this exit has a pre-shared key" in err
    assert (tmp_path / "invites").exists()
    out, _ = run(capsys, "invite", "phone", "--config", str(file), "--address", "192.0.2.9:5")
    assert Invitation.parse(out).url.endswith("@192.0.2.9:5")


def test_an_address_that_is_not_of_the_internet(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "exit.toml"
    file.write_text('identity = "key"\nlisten = "127.0.0.1:5000"\n')
    out, err = run(capsys, "invite", "laptop", "--config", str(file))
    assert Invitation.parse(out).url.endswith("@127.0.0.1:5000")
    assert "note: 127.0.0.1 is not an address of the internet" in err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["invite"], "one of NAME, --list and --cancel"),
        (["invite", "x", "--list"], "one of NAME, --list and --cancel"),
        (["invite", "x", "--expires", "1y"], "a time from 1m to 30d"),
        (["invite", "x", "--address", "a b"], "expected an address like exit.example:4433"),
        (["invite", "x", "--address", "https://a/b"], "expected"),
        (["invite", "x\x1b[2J"], "cannot name a peer"),
        (["invite", "--", "--help"], "looks like a flag"),
        (["invite", "laptop"], "a peer has the name laptop already"),
        (["invite", "--cancel", "x"], "no open invite for x"),
        (["join", "nonsense"], "an invite ends with #"),
        (["peers", "rename", "laptop", "a#b"], "cannot name a peer"),
        (["peers", "rename", "nobody", "x"], "no peer is called nobody"),
        (["peers", "revoke", "nobody\x1b[2J"], "no peer is called"),
        (["peers", "--config", "/no/such/file"], "does not exist"),
    ],
)
def test_how_they_fail(arguments: list[str], reason: str, files: Path, capsys: Capture) -> None:
    before = {path.name: path.read_bytes() for path in files.iterdir()}
    out, err = run(capsys, *arguments, code=2)
    assert reason in err and err.rstrip("\n").isprintable()
    assert out == ""
    assert {path.name: path.read_bytes() for path in files.iterdir()} == before


def test_open_invites_are_listed_and_withdrawn(files: Path, capsys: Capture) -> None:
    assert run(capsys, "invite", "--list")[0] == "no open invites\n"
    run(capsys, "invite", "guest", "--address", "a")
    assert re.fullmatch(r"guest, until \d{4}-\d\d-\d\d \d\d:\d\d \S+\n", run(capsys, "invite", "--list")[0])
    assert "guest, until" in run(capsys, "peers")[0]
    assert "an open invite for guest already" in run(capsys, "invite", "guest", "--address", "a", code=2)[1]
    assert "withdrawn" in run(capsys, "invite", "--cancel", "guest")[0]
    assert run(capsys, "invite", "--list")[0] == "no open invites\n"


def test_an_invite_from_standard_input(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """Where others can see the list of processes."""
    for text, reason in (("", "an invite ends with #"), (f"x#{'a' * 26}\n", "expected cryprq://")):
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        assert reason in run(capsys, "join", "-", code=2)[1]


# --- peers ---


def test_peers_are_listed_without_control_characters(files: Path, capsys: Capture) -> None:
    (files / "exit.toml").write_text(f'allow = ["{PeerId(bytes([7]) * 32)}", "{ALICE}"]\n')
    out, _ = run(capsys, "peers")
    assert out.splitlines() == [
        f"laptop         {ALICE}",
        f"\\x1b[31mphone  {BOB}",
        f"(allow)        {PeerId(bytes([7]) * 32)}",
    ]
    assert run(capsys, "peers", "list")[0] == out
    for arguments in (("peers", "--json"), ("peers", "list", "--json")):
        told = json.loads(run(capsys, *arguments)[0])
        assert told["peers"][:2] == [
            {"name": "laptop", "peer_id": str(ALICE)},
            {"name": "\x1b[31mphone", "peer_id": str(BOB)},
        ]
        assert (len(told["peers"]), told["invites"]) == (3, [])


def test_nobody_yet(capsys: Capture) -> None:
    assert run(capsys, "peers")[0] == "no peers; invite one with: cryprq-proxy invite NAME\n"


def test_rename_and_revoke(files: Path, capsys: Capture) -> None:
    assert run(capsys, "peers", "rename", "laptop", "desk")[0] == f"{ALICE} is called desk now\n"
    assert run(capsys, "peers", "revoke", str(BOB))[0] == "\\x1b[31mphone is no longer authorized\n"
    assert (files / "authorized").read_text() == f"{ALICE} desk\n"


def test_a_revoked_peer_that_an_old_copy_lists_is_shown_as_such(files: Path, capsys: Capture) -> None:
    old = (files / "authorized").read_text()
    run(capsys, "peers", "revoke", "laptop")
    (files / "authorized").write_text(old)
    out, _ = run(capsys, "peers")
    assert f"{ALICE}  revoked: not let in\n" in out
    assert f"{BOB}\n" in out
    told = json.loads(run(capsys, "peers", "--json")[0])
    assert [peer["peer_id"] for peer in told["peers"]] == [str(BOB)]
    assert told["revoked"] == [{"name": "laptop", "peer_id": str(ALICE)}]
    assert run(capsys, "peers", "add", str(ALICE), "desk")[0] == f"{ALICE} is authorized, as laptop\n"
    assert "revoked" not in run(capsys, "peers")[0]
    run(capsys, "peers", "revoke", "laptop")
    assert run(capsys, "peers", "add", str(ALICE), "desk")[0] == f"{ALICE} is authorized, as desk\n"
    assert "a peer id has 52 characters" in run(capsys, "peers", "add", "x", "y", code=2)[1]


def test_a_name_that_a_listed_peer_does_not_get_is_told(files: Path, capsys: Capture) -> None:
    out, err = run(capsys, "peers", "add", str(ALICE), "desk")
    assert out == f"{ALICE} is authorized, as laptop\n"
    assert err == (
        "note: it was on the list already and keeps its name; to change it: cryprq-proxy peers rename laptop desk\n"
    )
    assert run(capsys, "peers", "add", str(ALICE), "laptop")[1] == ""
    out, err = run(capsys, "peers", "add", str(PeerId(bytes([7]) * 32)), "laptop")
    assert (
        out.endswith(" is authorized, as laptop-2\n") and err == "note: laptop is the name of another peer\n"
    )


def test_an_invite_of_an_exit_whose_identity_is_lost_is_refused(files: Path, capsys: Capture) -> None:
    (files / "identity").unlink()
    err = run(capsys, "invite", "phone", "--address", "a", code=2)[1]
    lost = f"the identity {files}/identity is missing, and this exit is known by it to 2 peers in {files}: "
    assert lost in err
    assert f"`cryprq-proxy keygen {files}/identity`" in err
    assert not (files / "identity").exists() and not (files / "invites").exists()
    run(capsys, "keygen", str(files / "identity"))
    run(capsys, "invite", "phone", "--address", "a")
    (files / "identity").unlink()
    (files / "authorized").unlink()
    assert "to 1 open invite in " in run(capsys, "invite", "tablet", "--address", "a", code=2)[1]


def test_a_client_s_machine_makes_no_invite(own_directories: Path, capsys: Capture) -> None:
    directory = own_directories / ".config" / "cryprq"
    directory.mkdir(parents=True)
    (directory / "client.toml").touch()
    err = run(capsys, "invite", "laptop", "--address", "a", code=2)[1]
    assert (
        f"this machine is a client, by {directory}/client.toml, and no exit: make the invite at the exit"
        in err
    )
    assert not (directory / "identity").exists()
    (directory / "exit.toml").touch()
    run(capsys, "invite", "laptop", "--address", "a")


@pytest.mark.process
def test_an_exit_whose_identity_is_lost_does_not_start_with_another(files: Path, capsys: Capture) -> None:
    (files / "identity").unlink()
    refused = call("exit", "--listen", "127.0.0.1:0")
    assert refused.returncode == 2 and "known by it to 2 peers in " in refused.stderr
    assert not (files / "identity").exists()
    (files / "authorized").unlink()
    (files / "client.toml").touch()
    with Program("exit", "--listen", "127.0.0.1:0") as exit:
        exit.log.wait(
            f"this machine is a client, by {files}/client.toml; if the exit was to run on another machine"
        )
        exit.log.wait("ready: ")


@pytest.mark.parametrize("who", ["laptop", str(ALICE), str(BOB).upper()])
def test_whom_the_configuration_allows_is_revoked_too(files: Path, capsys: Capture, who: str) -> None:
    (files / "exit.toml").write_text(f'allow = ["{ALICE}", "{BOB}"]\n')
    out, err = run(capsys, "peers", "revoke", who)
    assert "is no longer authorized" in out
    assert "`allow` in the exit's configuration still names it" in err
    allowed, revoked, _ = load_exit(files / "exit.toml").peers()
    assert (allowed.keys(), revoked.keys()) == (
        ({BOB}, {ALICE}) if who != str(BOB).upper() else ({ALICE}, {BOB})
    )


def test_whom_only_the_configuration_allows_is_revoked_without_a_list(files: Path, capsys: Capture) -> None:
    (files / "authorized").unlink()
    (files / "exit.toml").write_text(f'allow = ["{ALICE}"]\n')
    run(capsys, "peers", "revoke", str(ALICE))
    assert not load_exit(files / "exit.toml").peers().allowed


# --- all of it ---


def proxied(port: int, target: int) -> None:
    sock, reply = socks_connect(port, target)
    with sock:
        assert reply == 0
        sock.sendall(b"hello")
        assert receive(sock, 5) == b"hello"


@pytest.mark.process
def test_from_nothing_to_a_proxy_and_out_again(own_directories: Path, tmp_path: Path) -> None:
    """A bare exit without a file, an invite from another process, join, the proxy, and the end by `peers revoke`."""
    config = own_directories / ".config" / "cryprq"
    here = tmp_path / "here.toml"
    here.write_text(
        f'identity = "{tmp_path}/key"\nlisten = "127.0.0.1:0"\ncontrol_socket = "{tmp_path}/c.sock"\n'
    )
    with Program("exit", "--listen", "127.0.0.1:0", "--allow-private") as exit, echo_server() as target:
        exit.log.wait("no peer is allowed yet, so nobody gets in: invite one with")
        exit.log.wait("ready: ")
        made = call("invite", "laptop")
        assert made.returncode == 0, made.stderr
        uri = made.stdout.strip()
        joined = call("join", uri, "--config", str(here))
        assert (joined.returncode, joined.stderr) == (0, "")
        assert f"-m cryprq_proxy --config {here}" in joined.stdout
        assert "take the # away" not in joined.stdout, "the file was there before"
        exit.log.wait("used an invite and is on the list of peers now, as laptop")
        assert (config / "authorized").read_text().endswith(" laptop\n")
        again = call("join", uri, "--config", str(tmp_path / "other.toml"))
        assert again.returncode == 1
        assert again.stderr == (
            "cryprq-proxy: the exit refused this invite: it was used, has expired or was withdrawn; "
            "ask for a new one\n"
        )
        assert not (tmp_path / "other.toml").exists()
        with Program("--config", str(here)) as client:
            port = int(client.log.wait(r"ready: .* proxy on 127\.0\.0\.1:(\d+)")[1])
            client.log.wait("link up")
            proxied(port, target)
            exit.log.wait("reloaded: 1 peer allowed")
            (told,) = json.loads(call("status", "--json").stdout)["peers"]
            assert (told["name"], told["sessions"]) == ("laptop", 1)
            sock, _ = socks_connect(port, target)
            with sock:
                assert call("peers", "revoke", "laptop").stdout == "laptop is no longer authorized\n"
                client.log.wait("link down: .*not authorized")
                with contextlib.suppress(ConnectionResetError):
                    assert sock.recv(1) == b""
            assert client.end() == 0
        assert exit.end(signal.SIGINT) == 0


@pytest.mark.process
def test_an_exit_that_was_set_up_anew_takes_its_own_place(tmp_path: Path) -> None:
    """In scripts nobody can be asked, so that they say it by a flag."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    file = tmp_path / "client.toml"
    file.write_text(f'identity = "{tmp_path}/key"\n')
    for again in (False, True):
        directory = tmp_path / f"exit{again}"
        directory.mkdir()
        config = directory / "exit.toml"
        config.write_text(f'identity = "key"\nlisten = "{address}"\ncontrol_socket = "{directory}/s"\n')
        with Program("exit", "--config", str(config)) as exit:
            exit.log.wait("ready: ")
            uri = call("invite", "laptop", "--config", str(config)).stdout.strip()
            if again:
                before = file.read_text()
                refused = call("join", uri, "--config", str(file))
                assert refused.returncode == 2 and refused.stdout == ""
                assert re.fullmatch(
                    r"cryprq-proxy: the exit 127\.0\.0\.1 is in \S+ with another identity, \w{52}: "
                    r"if it was set up anew, join with --replace, else ask its operator what has happened\n",
                    refused.stderr,
                )
                assert file.read_text() == before
            joined = call("join", uri, "--config", str(file), "--replace")
            assert joined.returncode == 0, joined.stderr
            assert ("has its new identity" in joined.stdout) == again
            assert file.read_text().count("cryprq://") == 1 and uri.partition("#")[0] in file.read_text()
            assert exit.end() == 0


@pytest.mark.process
def test_the_running_exit_says_where_its_lists_are(tmp_path: Path) -> None:
    """Flags have changed its list, its identity and its port; the commands have only the default configuration."""
    listed = tmp_path / "peers"
    listed.write_text(f"{ALICE} laptop\n")
    save_identity(Identity.generate(select_provider()), tmp_path / "key")
    flags = ("--authorized", str(listed), "--identity", str(tmp_path / "key"), "--listen", "127.0.0.1:0")
    with Program("exit", *flags) as exit:
        ready = exit.log.wait(r"ready: .* clients say --peer (\S+)")
        told = call("peers")
        assert f"laptop ({str(ALICE)[:8]}...)  0 " in told.stdout and "not since the start" in told.stdout
        assert told.stderr == ""
        made = call("invite", "phone")
        assert Invitation.parse(made.stdout).url == ready[1]
        assert "no exit with this" not in made.stderr
        assert (tmp_path / "invites").exists()
        assert exit.end() == 0
    assert call("peers").stdout.startswith("no peers")


@pytest.mark.process
def test_join_ends_with_a_signal(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        uri = str(Invitation(f"cryprq://{ALICE}@127.0.0.1:{port}", bytes(16)))
        config = tmp_path / "c.toml"
        with Program("join", uri, "--config", str(config)) as program:
            connection, _ = silent.accept()
            with connection:
                assert program.end(signal.SIGINT) == 1
    assert not config.exists()
