"""Mistakes that people make, each as a process in a home of its own: one sentence, which says what to do instead.

No traceback, exit code 2 where the command line or a file is wrong and 1 otherwise, one line on standard error, and in
that line the word that leads on.
"""

from __future__ import annotations

import os
import shlex
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from cryprq_proxy.crypto.identity import Identity
from cryprq_proxy.crypto.primitives import select_provider
from cryprq_proxy.pairing.invitation import Invitation
from cryprq_proxy.pairing.invite_store import InviteStore, beside
from tests.support.forked import Forked
from tests.support.logged import BUGS
from tests.support.programs import World

NOBODY: Final = 65534
CLIENT, EXIT, IDENTITY = "config/cryprq/client.toml", "config/cryprq/exit.toml", "config/cryprq/identity"
LISTED = "config/cryprq/authorized"


class Mistake(NamedTuple):
    """`{...}` in texts are the names of `Home.names`."""

    what: str
    command: str
    leads: str
    """What the sentence must have in it: the remedy."""
    code: int = 2
    files: dict[str, str] = {}  # noqa: RUF012  nobody changes it
    """Path in the home -> content; a directory if it ends with /. Files have the mode 0600."""
    modes: dict[str, int] = {}  # noqa: RUF012
    root: bool = False
    """Whether root makes it; others are made by a user without rights where the tests run as root."""
    given: str = ""
    """Standard input."""


PEER = 'peer = "{peer}"\n'
GOOD = {CLIENT: PEER, IDENTITY: "{identity}"}
SERVES = {EXIT: 'listen = "127.0.0.1:0"\n', IDENTITY: "{identity}", LISTED: "{id} laptop\n"}


def client(text: str) -> dict[str, str]:
    """A client's files, with `text` in the configuration."""
    return {**GOOD, CLIENT: PEER + text}


def exit(text: str) -> dict[str, str]:
    return {**SERVES, EXIT: SERVES[EXIT] + text}


MISTAKES = (
    # --- the command line
    Mistake("a command that is none", "start", "--help"),
    Mistake("a command with a typo", "stauts", "status"),
    Mistake("a flag that is none", "--tunnel", "--help"),
    Mistake("a flag with a typo", "--lissten 1080", "--listen"),
    Mistake("a flag without its value", "--listen", "--help"),
    Mistake("a flag before the command", "--config x status", "behind"),
    Mistake("a word too many", "status home", "--help"),
    Mistake("the URI as a word", "{peer}", "--peer"),
    Mistake("an invite without join", "{invite}", "join"),
    Mistake("a command of others", "client", "without a command"),
    Mistake("host and port as one word", "connect web.example:80", "behind the host"),
    Mistake("a missing word", "explain", "--help"),
    Mistake("a choice that is none", "--carrier quic", "'udp'"),
    Mistake("a number that is none", "pause soon", "whole number"),
    Mistake("a negative number", "pause -5", "from 1 to"),
    Mistake("too long a pause", "pause 100000000", "from 1 to"),
    Mistake("flags of --tun without it", "--exclude 192.0.2.0/24", "needs --tun", files=GOOD),
    Mistake("--yes without --tun", "--yes", "needs --tun", files=GOOD),
    Mistake("lockdown without a word", "lockdown", "--help"),
    Mistake("lockdown with another word", "lockdown status", "'off'"),
    Mistake("a shell that is none", "completion tcsh", "'fish'"),
    # --- addresses
    Mistake("no configuration at all", "", "join"),
    Mistake("a port that is none", "--listen 127.0.0.1:http", "ports are 0 to 65535", files=GOOD),
    Mistake("a port out of range", "--listen 127.0.0.1:70000", "65535", files=GOOD),
    Mistake("an address with a scheme", "--listen http://127.0.0.1:1080", "only host and port", files=GOOD),
    Mistake("IPv6 without brackets", "--listen ::1:1080", "[", files=GOOD),
    Mistake("a proxy for everybody", "--listen 0.0.0.0:1080", "user_file", files=GOOD),
    Mistake("an address of another machine", "--listen 192.0.2.1:1080 --user a:b", "--listen", 1, files=GOOD),
    Mistake("a port in use", "--listen 127.0.0.1:{port}", "--listen", 1, files=GOOD),
    Mistake("a port of root", "--listen 127.0.0.1:80", "1024", 1, files=GOOD),
    Mistake("a name that is none", "--listen nowhere.invalid:1080 --user a:b", "--listen", 1, files=GOOD),
    # --- peers
    Mistake("a peer without an id", "--peer 192.0.2.1:4433", "cryprq://"),
    Mistake("a peer with a short id", "--peer cryprq://abc@192.0.2.1:4433", "id"),
    Mistake("a peer of another scheme", "--peer https://192.0.2.1", "cryprq://"),
    Mistake("a peer with port 0", "--peer cryprq://{id}@192.0.2.1:0", "65535"),
    Mistake("an invite as a peer", "--peer {invite}", "join"),
    Mistake("an upstream of another kind", "--upstream ftp://192.0.2.1:21", "socks5://", files=GOOD),
    Mistake("an upstream without a port", "--upstream socks5://192.0.2.1", "PORT", files=GOOD),
    # --- configuration files
    Mistake("a configuration that is not there", "--config nowhere.toml", "exist"),
    Mistake("a directory as a configuration", "--config .", "name a file"),
    Mistake("TOML cut off", "", "line 2", files=client("[limits\n")),
    Mistake("a key twice", "", "line 2", files=client(PEER)),
    Mistake("an unknown key", "", "listen", files=client('lissten = "127.0.0.1:1080"\n')),
    Mistake("a key of the exit", "", "exit", files=client('authorized = "x"\n')),
    Mistake("a number for a text", "", "listen", files=client("listen = 1080.5\n")),
    Mistake("a text for a number", "", "number", files=client('wait_for_link = "long"\n')),
    Mistake("a word that is no choice", "", "learned", files=client('connect = "fast"\n')),
    Mistake(
        "a rule without an action", "", "to is missing", files=client('[[rule]]\ndomains = ["a.example"]\n')
    ),
    Mistake(
        "a rule to an exit that is none",
        "",
        "exit",
        files=client('[[rule]]\nto = "exit:work"\ndomains = ["a.example"]\n'),
    ),
    Mistake(
        "a rule with a bad prefix",
        "",
        "cidrs",
        files=client('[[rule]]\nto = "direct"\ncidrs = ["10.0.0.0/33"]\n'),
    ),
    Mistake(
        "a list that is not there",
        "",
        "ads.txt cannot be read",
        files=client('[[rule]]\nto = "block"\nlists = ["ads.txt"]\n'),
    ),
    Mistake("a configuration in Latin-1", "", "UTF-8", files={**GOOD, CLIENT: "\udcff"}),
    Mistake("a configuration that all may write", "", "chmod", files=GOOD, modes={CLIENT: 0o666}),
    Mistake("no right to read it", "", "read", files=GOOD, modes={CLIENT: 0o000}),
    Mistake(
        "a password that all may read",
        "",
        "chmod 600",
        files=client('user_file = "pw"\n') | {"config/cryprq/pw": "u:p\n"},
        modes={"config/cryprq/pw": 0o644},
    ),
    Mistake(
        "a file of passwords without one",
        "",
        "NAME:PASSWORD",
        files=client('user_file = "pw"\n') | {"config/cryprq/pw": "u\n"},
    ),
    Mistake("a user without a password", "--user me", "NAME:PASSWORD", files=GOOD),
    # --- keys
    Mistake("keys that all may read", "", "chmod 600", files=GOOD, modes={IDENTITY: 0o644}),
    Mistake("keys that are damaged", "", "from a copy", files={**GOOD, IDENTITY: "{identity}"[:5]}),
    Mistake("an empty file of keys", "", "from a copy", files={**GOOD, IDENTITY: ""}),
    Mistake("a directory in place of the keys", "", "name a file", files={CLIENT: PEER, IDENTITY + "/": ""}),
    Mistake("keys over keys", "keygen", "exists", files=GOOD),
    Mistake("keys into no directory", "keygen notes.txt/key", "directory", files={"notes.txt": ""}),
    Mistake("the id of no file", "id nothing", "keygen"),
    Mistake("the id of a text", "id notes.txt", "make a new one", files={"notes.txt": "hello\n"}),
    Mistake(
        "the id of a public key",
        "id key.pub",
        "make a new one",
        files={"key.pub": "ssh-ed25519 AAAA me@here\n"},
    ),
    # --- invites
    Mistake("to join with a peer", "join {peer}", "invite"),
    Mistake("to join with half a URI", "join cryprq://abc", "invite"),
    Mistake("to join with nothing", "join -", "invite", given="\n"),
    Mistake("to join without quotes", "join {half}", "copy it whole"),
    Mistake("to join with a used invite", "join {used}", "invite", 1),
    Mistake("to join with an expired invite", "join {expired}", "invite", 1),
    Mistake("to join with an invented secret", "join {invented}", "invite", 1),
    Mistake(
        "to invite with a client's configuration",
        "invite laptop --config config/cryprq/client.toml",
        "peer",
        files=GOOD,
    ),
    Mistake("to invite to nowhere", "invite phone --address http://x", "exit.example:4433", files=SERVES),
    Mistake("to invite for no time", "invite phone --expires never", "30m", files=SERVES),
    Mistake("to invite for years", "invite phone --expires 400d", "30d", files=SERVES),
    Mistake("to invite a name that is let in", "invite laptop", "another name", files=SERVES),
    Mistake("to invite an odd name", "invite 'a\tb'", "name", files=SERVES),
    Mistake("to withdraw no invite", "invite --cancel phone", "invite --list", files=SERVES),
    # --- peers of an exit
    Mistake("to let in what is no id", "peers add abc laptop", "id", files=SERVES),
    Mistake("to revoke whom nobody knows", "peers revoke phone", "cryprq-proxy peers", files=SERVES),
    Mistake("to rename whom nobody knows", "peers rename phone tablet", "cryprq-proxy peers", files=SERVES),
    Mistake("a list with a line that is none", "exit", "line 1", files={**SERVES, LISTED: "laptop\n"}),
    Mistake("a list that all may write", "exit", "chmod", files=SERVES, modes={LISTED: 0o666}),
    Mistake("an exit at a port in use", "exit --listen 127.0.0.1:{port}", "--listen", 1, files=SERVES),
    Mistake("an exit with a client's key", "exit", "known keys are", files=exit('peer = "x"\n')),
    Mistake(
        "a certificate that is not there",
        "exit",
        "mend certificate and key",
        files=exit('[websocket]\nlisten = "127.0.0.1:0"\ncertificate = "c.pem"\nkey = "k.pem"\n'),
    ),
    # --- in the wrong order
    Mistake("status of nothing", "status", "start it", 1),
    Mistake("a switch of nothing", "switch home", "start it", 1),
    Mistake("a reload of nothing", "reload", "start it", 1),
    Mistake("a dashboard of nothing", "dashboard", "start it", 1),
    Mistake("to confirm nothing", "confirm", "start it", 1),
    Mistake("to connect through nothing", "connect example.com 22", "start", 1, files=GOOD),
    Mistake("a target that is none", "explain http://", "URL", files=GOOD),
    # --- root
    Mistake("the system without root", "--tun", "sudo", files=GOOD),
    Mistake("an exit for systems without root", "exit --tun", "sudo", files=SERVES),
    Mistake("cleanup without root", "cleanup", "sudo"),
    Mistake("lockdown without root", "lockdown on", "sudo", files=GOOD),
    Mistake("lockdown off without root", "lockdown off", "sudo", files=GOOD),
    Mistake("a leak test without root", "leaktest", "sudo"),
    Mistake("a leak test of no address", "leaktest --target example.com", "IP address"),
    Mistake(
        "the system and an upstream",
        "--tun --upstream socks5://192.0.2.1:1080",
        "exclude each other",
        files=GOOD,
    ),
    Mistake("all addresses past the tunnel", "--tun --exclude 0.0.0.0/0", "smaller", files=GOOD, root=True),
    Mistake("an address within a prefix", "--tun --exclude 10.0.0.1/8", "10.0.0.0/8", files=GOOD),
    Mistake("a user that is none", "--tun --exclude-uid nobody-of-this-name", "ids like", files=GOOD),
)


class Home:
    """Where one mistake is made."""

    def __init__(self, directory: Path, names: dict[str, str]) -> None:
        self.directory = directory
        self.names = names
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(directory),
            "XDG_CONFIG_HOME": str(directory / "config"),
            "XDG_STATE_HOME": str(directory / "state"),
            "XDG_RUNTIME_DIR": str(directory / "run"),
            "LC_ALL": "C.UTF-8",
        }

    def filled(self, text: str) -> str:
        for name, value in self.names.items():
            text = text.replace(f"{{{name}}}", value)
        return text

    def furnish(self, mistake: Mistake, uid: int | None) -> None:
        (self.directory / "config/cryprq").mkdir(parents=True, mode=0o700)
        for name, content in mistake.files.items():
            path = self.directory / name
            if name.endswith("/"):
                path.mkdir()
                continue
            path.write_text(self.filled(content), encoding="utf-8", errors="surrogateescape")
            path.chmod(mistake.modes.get(name, 0o600))
        if uid is not None:
            for path in (self.directory, *self.directory.rglob("*")):
                os.chown(path, uid, uid)


@pytest.fixture(scope="module")
def forked() -> Iterator[Forked]:
    with Forked() as forked:
        yield forked


@pytest.fixture(scope="module")
def names(shared_world: World, forked: Forked) -> Iterator[dict[str, str]]:
    """What `{...}` stands for: keys, a port that is taken, and invites of an exit that runs."""
    listed = shared_world.directory / "listed" / "authorized"
    listed.parent.mkdir(mode=0o700)
    listed.touch(0o600)
    exit = shared_world.exit({"authorized": str(listed)})
    store, now = InviteStore(beside(listed)), time.time()

    def invite(name: str, at: float = now) -> str:
        return str(Invitation(f"cryprq://{exit.peer_id}@127.0.0.1:{exit.port}", store.create(name, 60, at)))

    identity = Identity.generate(select_provider())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        peer = f"cryprq://{identity.peer_id}@192.0.2.1:4433"
        found = {
            "id": str(identity.peer_id),
            "identity": identity.line().decode(),
            "peer": peer,
            "port": str(taken.getsockname()[1]),
            "expired": invite("expired", now - 3600),
            "used": invite("used"),
            "invite": f"{peer}#{'a' * 26}",
            "invented": f"cryprq://{exit.peer_id}@127.0.0.1:{exit.port}#{'a' * 26}",
        }
        found["half"] = found["invite"].partition("#")[0]
        with tempfile.TemporaryDirectory() as directory:
            home = Home(Path(directory), found)
            assert forked.run(["join", found["used"]], home.environment, home.directory).code == 0
        yield found


def test_there_are_enough() -> None:
    assert len(MISTAKES) >= 71
    assert len({mistake.what for mistake in MISTAKES}) == len(MISTAKES)


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.what.replace(" ", "-"))
def test_one_sentence_says_what_to_do(mistake: Mistake, forked: Forked, names: dict[str, str]) -> None:
    as_root = not os.geteuid()
    if mistake.root and not as_root:
        pytest.skip("root alone makes this mistake")
    uid = NOBODY if as_root and not mistake.root else None
    with tempfile.TemporaryDirectory() as directory:
        home = Home(Path(directory), names)
        home.furnish(mistake, uid)
        words = shlex.split(home.filled(mistake.command))
        ended = forked.run(words, home.environment, home.directory, uid=uid, given=mistake.given)
    told = f"{mistake.command!r} ended with {ended.code}: {ended.err or ended.out}"
    assert not BUGS.search(ended.err), told
    assert ended.code == mistake.code, told
    assert ended.err.startswith("cryprq-proxy: ") and ended.err.count("\n") == 1, told
    assert mistake.leads in ended.err, told
    assert "a" * 26 not in ended.err + ended.out, "the secret of an invite"
