"""Root in another user's directory: what the deputy does, what it cannot do, and what root makes of its answers.

The first tests run the deputy's loop on a thread, with the rights of this process; the last ones fork it, and look at
it from outside. No process of the program runs here; tests/e2e/test_foreign_directory.py has those.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from cryprq_proxy.base import deputy, file_access
from cryprq_proxy.base.deputy import Deputy, DeputyAnswer, act_as_owner
from cryprq_proxy.base.file_access import OWN, access_for, appoint, exists, mark
from cryprq_proxy.base.files import SharedFile
from cryprq_proxy.base.owners import Owner
from cryprq_proxy.base.paths import MAX_FILE, read_text
from cryprq_proxy.errors import ConfigError
from tests.support.deputies import on_a_thread
from tests.support.logged import ROOT

ALICE = 4_321

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")


@pytest.fixture(autouse=True)
def dismissed() -> Iterator[None]:
    """No deputy outlives its test."""
    yield
    file_access._deputies.clear()


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def alices(directory: Path) -> Iterator[Deputy]:
    """The deputy for that directory, with the rights of this process."""
    with on_a_thread(directory) as found:
        yield found


def test_a_shared_file_by_way_of_a_deputy(directory: Path, alices: Deputy) -> None:
    appoint(alices)
    shared = SharedFile(directory / "lists" / "peers", "the list")
    assert shared.read() == ""
    assert not exists(directory / "lists", "the list")
    with shared.locked():
        shared.replace("grüße")
        with pytest.raises(BlockingIOError):
            alices.lock(directory / "lists")
    assert shared.read() == read_text(Path("lists/peers"), "the list")[0] == "grüße"
    assert (directory / "lists" / "peers").stat().st_mode & 0o777 == 0o600
    alices.rename(directory / "lists" / "peers", directory / "old")
    assert read_text(directory / "old", "the list")[0] == "grüße"
    assert exists(directory / "lists", "the list")
    assert mark(directory / "old") == OWN.mark(directory / "old") != mark(directory / "missing") is None
    alices.unlock(alices.lock(directory))
    alices.remove(directory / "old")
    assert not exists(directory / "old", "the list")


def test_errors_of_the_system_come_back_with_their_number(directory: Path, alices: Deputy) -> None:
    alices.create(directory / "file", b"text")
    with pytest.raises(FileExistsError):
        alices.create(directory / "file", b"other")
    with pytest.raises(FileNotFoundError):
        alices.read(directory / "missing", 5)
    with pytest.raises(OSError, match="Invalid argument"):
        alices.read(directory / "nul\0", 5)
    assert alices.read(directory / "file", 3).data == b"tex"


def test_no_file_that_is_a_link_is_followed(directory: Path, alices: Deputy) -> None:
    outside = directory / "outside"
    outside.write_bytes(b"precious")
    (directory / "link").symlink_to(outside)
    with pytest.raises(OSError) as caught:
        alices.read(directory / "link", 10)
    assert caught.value.errno == errno.ELOOP
    with pytest.raises(FileExistsError):
        alices.create(directory / "link", b"new")
    alices.replace(directory / "link", b"new")
    assert outside.read_bytes() == b"precious"
    assert (directory / "link").read_bytes() == b"new"
    assert not (directory / "link").is_symlink()


def test_it_serves_its_directory_or_everything(directory: Path, alices: Deputy) -> None:
    appoint(alices)
    assert access_for(Path("x"), "the file") is access_for(directory / "a" / "b", "the file") is alices
    assert access_for(directory.parent / "x", "the file") is OWN
    everywhere = Deputy(alices._owner, directory, alices._sock, everywhere=True)
    assert everywhere.serves(Path("/etc/passwd"))
    assert everywhere._seen(Path("/etc/passwd")) == "/etc/passwd"
    below = Deputy(alices._owner._replace(rest=Path("config")), directory, alices._sock, everywhere=True)
    assert below._seen(directory / "exit.toml") == "config/exit.toml"


@pytest.fixture
def answered(directory: Path) -> Iterator[tuple[Deputy, socket.socket]]:
    """A deputy whose answers the test writes."""
    ours, theirs = socket.socketpair()
    ours.settimeout(10)
    with ours, theirs:
        yield Deputy(Owner(ALICE, ALICE, directory, Path()), directory, ours, everywhere=True), theirs


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        (1).to_bytes(4) + b"\xc1",
        (2).to_bytes(4) + b"\x91\xa0",
        (1 << 31).to_bytes(4),
        (3 + deputy._MORE + 1).to_bytes(4),
    ],
    ids=["nothing", "no message", "wrong type", "huge", "more than asked for"],
)
def test_an_answer_that_is_none_ends_it(answered: tuple[Deputy, socket.socket], answer: bytes) -> None:
    alices, theirs = answered
    theirs.sendall(answer)
    theirs.shutdown(socket.SHUT_WR)
    for _ in range(2):
        with pytest.raises(ConfigError, match=f"the process that works as the user {ALICE} has ended; start"):
            alices.read(Path("file"), 3)
    alices.unlock(5)
    appoint(alices)
    # A list that cannot be asked for is not an empty one.
    with pytest.raises(ConfigError, match="has ended"):
        exists(Path("file"), "the list")


def test_silence_ends_it(answered: tuple[Deputy, socket.socket]) -> None:
    alices, _ = answered
    alices._sock.settimeout(0.01)
    for _ in range(2):
        with pytest.raises(ConfigError, match="has ended"):
            alices.read(Path("file"), 3)


def test_an_answer_that_trickles_ends_it(answered: tuple[Deputy, socket.socket]) -> None:
    alices, theirs = answered
    alices._sock.settimeout(0.3)
    theirs.sendall((200).to_bytes(4))
    gone, sent = threading.Event(), [0]

    def trickle() -> None:
        with suppress(OSError):
            while sent[0] < 199 and not gone.wait(0.1):
                theirs.sendall(b"\x91")
                sent[0] += 1

    thread = threading.Thread(target=trickle)
    thread.start()
    with pytest.raises(ConfigError, match="has ended"):
        alices.read(Path("file"), 3)
    gone.set()
    thread.join(10)
    assert sent[0] < 199


def test_data_that_was_not_asked_for_is_refused(answered: tuple[Deputy, socket.socket]) -> None:
    alices, theirs = answered
    deputy._send(theirs, deputy._encode(DeputyAnswer(data=b"four")))
    with pytest.raises(OSError, match="Message too long"):
        alices.read(Path("file"), 3)


def test_owner_and_mode_count_for_the_user_it_stands_for(answered: tuple[Deputy, socket.socket]) -> None:
    alices, theirs = answered
    appoint(alices)
    told = DeputyAnswer(data=b"text", mode=0o100600, uid=ALICE, gid=ALICE)
    for answer, error in (
        (told, ""),
        (DeputyAnswer(data=b"text", mode=0o100644, uid=0), ""),
        (
            DeputyAnswer(data=b"text", mode=0o100600, uid=ALICE + 1),
            f"belongs to the user {ALICE + 1}; run: chown {ALICE} ",
        ),
        (
            DeputyAnswer(data=b"text", mode=0o100622, uid=ALICE, gid=54_321),
            "others can write .*; run: chmod go-w ",
        ),
        (DeputyAnswer(mode=0o10600, uid=ALICE), "is not a regular file"),
        (DeputyAnswer(data=bytes(MAX_FILE + 1), mode=0o100600, uid=ALICE), "is larger than 1 MiB"),
    ):
        # More than the socket holds.
        sender = threading.Thread(target=deputy._send, args=(theirs, deputy._encode(answer)))
        sender.start()
        try:
            if error:
                with pytest.raises(ConfigError, match=error):
                    read_text(Path("file"), "the list")
            else:
                assert read_text(Path("file"), "the list")[0] == "text"
        finally:
            sender.join(10)


def test_other_users_and_root_at_home_need_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    act_as_owner(tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: ALICE)
    act_as_owner(Path("/no/such\0path"))
    assert file_access._deputies == []


# --- its birth, without a child ---


def forked_on_a_thread(monkeypatch: pytest.MonkeyPatch, owner: Owner) -> list[threading.Thread]:
    """From now on os.fork() begins a thread that does what the child would do."""
    threads: list[threading.Thread] = []
    ours, theirs = socket.socketpair()
    base, end = os.open(owner.base, os.O_RDONLY | os.O_DIRECTORY), theirs.dup()

    def work() -> None:
        with end:
            deputy._work(owner, base, end)
        os.close(base)

    def fork() -> int:
        threads.append(threading.Thread(target=work))
        threads[0].start()
        return 1

    monkeypatch.setattr(os, "fork", fork)
    monkeypatch.setattr(socket, "socketpair", lambda: (ours, theirs))
    return threads


def test_the_child_says_that_it_is_ready(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    became: list[Owner] = []
    monkeypatch.setattr(deputy, "become", became.append)
    owner = Owner(os.geteuid(), os.getegid(), directory, Path())
    threads = forked_on_a_thread(monkeypatch, owner)
    monkeypatch.setattr(deputy, "owner_of", lambda path: owner._replace(uid=ALICE))
    real = deputy._start
    monkeypatch.setattr(deputy, "_start", lambda asked: real(owner))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    act_as_owner(directory)
    act_as_owner(Path("/anything"))  # served already
    (alices,) = file_access._deputies
    assert (alices.uid, became) == (ALICE, [owner])
    assert alices._sock.gettimeout() == deputy.ANSWER_SECONDS  # type: ignore[attr-defined]
    alices.create(directory / "file", b"text")
    assert (directory / "file").read_bytes() == b"text"
    alices._sock.close()  # type: ignore[attr-defined]
    threads[0].join(10)
    assert not threads[0].is_alive()


@pytest.mark.parametrize("child", ["cannot become the user", "dies"])
def test_a_child_that_is_not_the_user_is_one_sentence(
    directory: Path, monkeypatch: pytest.MonkeyPatch, child: str
) -> None:
    def refuse(owner: Owner) -> None:
        raise PermissionError(errno.EPERM, "") if child != "dies" else EOFError

    monkeypatch.setattr(deputy, "become", refuse)
    owner = Owner(os.geteuid(), os.getegid(), directory, Path())
    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)
    threads = forked_on_a_thread(monkeypatch, owner)
    with pytest.raises(OSError, match="Operation not permitted" if child != "dies" else "No child processes"):
        deputy._start(owner)
    threads[0].join(10)


def test_a_child_that_says_nothing_leaves_no_socket(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error left with the socket open."""
    ours, theirs = socket.socketpair()
    monkeypatch.setattr(os, "fork", lambda: 1)
    monkeypatch.setattr(socket, "socketpair", lambda: (ours, theirs))
    monkeypatch.setattr(deputy, "ANSWER_SECONDS", 0.01)
    with theirs.dup(), pytest.raises(TimeoutError):
        deputy._start(Owner(os.geteuid(), os.getegid(), directory, Path()))
    assert ours.fileno() == -1


def test_a_directory_that_was_exchanged_is_not_served(directory: Path) -> None:
    owner = Owner(os.geteuid() + 1, os.getegid(), directory, Path())
    with pytest.raises(OSError, match="Stale"):
        deputy._start(owner)
    (directory / "link").symlink_to(directory)
    with pytest.raises(NotADirectoryError):
        deputy._start(owner._replace(base=directory / "link"))


class Ended(BaseException):
    """Stands for the end of a process."""


def test_nothing_leads_the_child_back(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def end(code: int) -> None:
        raise Ended

    def fail(owner: Owner, base: int, sock: socket.socket) -> None:
        done.append("work")
        sock.close()
        raise RuntimeError

    done: list[object] = []
    ours, theirs = socket.socketpair()
    monkeypatch.setattr(signal, "signal", lambda number, handler: done.append((number, handler)))
    monkeypatch.setattr(os, "dup2", lambda old, new: done.append(new))
    monkeypatch.setattr(os, "closerange", lambda first, end: done.append((first, end)))
    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(deputy, "_work", fail)
    handle, base = theirs.detach(), 5_000
    with ours, pytest.raises(Ended):
        deputy._live(Owner(ALICE, ALICE, directory, Path()), base, handle)
    ignored = [
        (number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE)
    ]
    limits = (3, handle), (handle + 1, base), (base + 1, os.sysconf("SC_OPEN_MAX"))
    assert done == [*ignored, 0, 1, 2, *limits, "work"]


# --- a child with the rights of another user ---

_LOOK = """
import os, sys, time
from pathlib import Path
from cryprq_proxy.base import file_access
from cryprq_proxy.base.deputy import act_as_owner
from cryprq_proxy.errors import ConfigError

inherited = os.open("/etc/passwd", os.O_RDONLY)
os.set_inheritable(inherited, True)
os.setgroups([0, 1, 2])
act_as_owner(Path(sys.argv[1]))
(child,) = (int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())
lines = Path(f"/proc/{child}/status").read_text().splitlines()
status = dict(line.split(":\\t", 1) for line in lines if ":\\t" in line)
for name in ("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs"):
    print(name, *status[name].split())
print("cwd", os.readlink(f"/proc/{child}/cwd"))
handles = [os.readlink(entry.path) for entry in os.scandir(f"/proc/{child}/fd")]
print("open", *sorted({name.partition(":")[0] for name in handles}))
print("files of", os.stat(f"/proc/{child}/mem").st_uid)
access = file_access.access_for(Path("/"), "the file")
for path in ("/etc/shadow", sys.argv[2]):
    try:
        print(access.read(Path(path), 5).data)
    except OSError as error:
        print(error.strerror)
print(access.read(Path(sys.argv[1]) / "file", 5).data)
"""


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )


@only_root
@pytest.mark.process
def test_the_child_is_that_user_and_nothing_else(tmp_path: Path) -> None:
    """The directory is below one that the user cannot enter, as with systemd's dynamic users."""
    hers, secret = tmp_path / "closed" / "hers", tmp_path / "closed" / "secret"
    hers.mkdir(parents=True)
    (hers / "file").write_bytes(b"hello")
    secret.write_bytes(b"root's")
    secret.chmod(0o600)
    for path in (hers, hers / "file"):
        os.chown(path, ALICE, ALICE + 1)
        path.chmod(0o700)
    (tmp_path / "closed").chmod(0o700)
    done = run_python(_LOOK, str(hers), str(secret))
    assert done.stderr == ""
    user, group, none = f"{ALICE} " * 4, f"{ALICE + 1} " * 4, "0" * 16
    assert done.stdout.splitlines() == [
        f"Uid {user.strip()}",
        f"Gid {group.strip()}",
        "Groups",
        f"CapInh {none}",
        f"CapPrm {none}",
        f"CapEff {none}",
        f"CapBnd {none}",
        f"CapAmb {none}",
        "NoNewPrivs 1",
        f"cwd {hers}",
        f"open /dev/null {hers} socket",
        "files of 0",
        "Permission denied",
        "Permission denied",
        "b'hello'",
    ]


_WITHOUT_RIGHTS = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(24, 7, 0, 0, 0)  # CAP_SETUID
os.execv(sys.executable, [sys.executable, "-c", '''
import sys
from pathlib import Path
from cryprq_proxy.base.deputy import act_as_owner
from cryprq_proxy.errors import ConfigError
try:
    act_as_owner(Path(sys.argv[1]))
except ConfigError as error:
    print(error)
''', sys.argv[1]])
"""


@only_root
@pytest.mark.process
def test_without_the_right_to_become_a_user_it_is_one_sentence(tmp_path: Path) -> None:
    os.chown(tmp_path, ALICE, ALICE)
    done = run_python(_WITHOUT_RIGHTS, str(tmp_path))
    assert (done.stdout, done.stderr) == (
        f"{tmp_path} belongs to the user {ALICE}, and root cannot act as that user here (operation not permitted): "
        "run this as that user\n",
        "",
    )
