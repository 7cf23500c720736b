"""/etc/resolv.conf replaced and put back, on files of the test's own; bind mounts and the like are in tests/lab."""

from __future__ import annotations

import errno
import ipaddress
import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.base.resolv_conf import MAX_NAMESERVERS, nameservers
from cryprq_proxy.errors import ConfigError
from tun.linux.resolver import resolvconf, resolvconf_files
from tun.linux.resolver.choose import choose
from tun.linux.resolver.resolvconf import ResolvConf
from tun.linux.resolver.resolvconf_files import undo
from tun.linux.resolver.resolvconf_text import render

OURS = ("198.18.255.53", "fd63:7279:7071::53")
LINK = (7, "cryprq0")
BEFORE = "# by hand\nnameserver 192.0.2.1\nnameserver 192.0.2.2\nsearch lan example.org\noptions ndots:2 trust-ad\n"


class System:
    """A resolv.conf, a state directory and a journal that went over the disk."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "etc" / "resolv.conf"
        self.path.parent.mkdir()
        self.state = directory / "state"
        self.entries: list[str] = []
        self.seen: list[str | None] = []
        """What the file said when an entry was written."""

    def record(self, entry: Mapping[str, object]) -> None:
        self.entries.append(json.dumps(entry))
        self.seen.append(self.path.read_text() if self.path.exists() else None)

    def resolver(self, **more: object) -> ResolvConf:
        return ResolvConf(more.pop("record", self.record), self.path, self.state, **more)  # type: ignore[arg-type]

    async def set(self) -> ResolvConf:
        resolver = self.resolver()
        await resolver.set(OURS, *LINK)
        return resolver

    def undo(self) -> None:
        """What another process does with the journal later."""
        for entry in reversed(self.entries):
            undo(json.loads(entry), path=self.path, state=self.state)

    def left(self) -> list[str]:
        """Files of ours that are still about."""
        return [
            path.name for path in (*self.state.glob("*"), *self.path.parent.iterdir()) if path != self.path
        ]


@pytest.fixture
def system(tmp_path: Path) -> System:
    return System(tmp_path)


async def test_a_file_comes_back_as_it_was(system: System) -> None:
    system.path.write_text(BEFORE)
    system.path.chmod(0o640)
    os.utime(system.path, ns=(10**18, 10**18))
    before = system.path.stat()
    old = os.umask(0o077)
    try:
        resolver = await system.set()
    finally:
        os.umask(old)
    lines = [line for line in system.path.read_text().splitlines() if not line.startswith("#")]
    assert lines == [
        *(f"nameserver {address}" for address in OURS),
        "search lan example.org",
        "options ndots:2",
    ]
    assert system.path.stat().st_mode & 0o777 == 0o644
    assert system.seen == [BEFORE]  # the journal came first
    assert resolver.upstreams() == ("192.0.2.1", "192.0.2.2")
    system.undo()
    assert system.path.read_text() == BEFORE
    after = system.path.stat()
    assert (after.st_mode, after.st_uid, after.st_gid, after.st_mtime_ns) == (
        before.st_mode,
        before.st_uid,
        before.st_gid,
        before.st_mtime_ns,
    )
    assert system.left() == []
    system.undo()
    assert system.path.read_text() == BEFORE


@pytest.mark.parametrize("target", ["../run/resolv.conf", "/nowhere/resolv.conf"])
async def test_a_link_comes_back_as_a_link(system: System, target: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    manager = tmp_path / "run" / "resolv.conf"
    manager.write_text(BEFORE)
    system.path.symlink_to(target)
    resolver = await system.set()
    assert not system.path.is_symlink()
    assert manager.read_text() == BEFORE  # the link was replaced, not what it leads to
    assert nameservers(system.path.read_bytes()) == OURS
    assert resolver.upstreams() == (("192.0.2.1", "192.0.2.2") if ".." in target else ())
    if ".." in target:
        manager.write_text("nameserver 192.0.2.9\n")  # the manager behind it goes on
        assert resolver.upstreams() == ("192.0.2.9",)
    system.undo()
    assert os.readlink(system.path) == target
    assert system.left() == []


async def test_a_missing_file_is_missing_again(system: System) -> None:
    resolver = await system.set()
    assert nameservers(system.path.read_bytes()) == OURS
    assert resolver.upstreams() == ()
    system.undo()
    assert not system.path.exists()
    assert system.left() == []


@pytest.mark.parametrize("kind", ["file", "link", "missing"])
async def test_undo_from_the_journal(system: System, kind: str) -> None:
    if kind == "file":
        system.path.write_text(BEFORE)
    elif kind == "link":
        system.path.symlink_to("../run/resolv.conf")
    await system.set()  # and the process is killed
    for _ in range(2):
        system.undo()
        assert system.path.is_symlink() == (kind == "link")
        assert system.path.exists() == (kind == "file")
        if kind == "file":
            assert system.path.read_text() == BEFORE
        assert system.left() == []


@pytest.mark.parametrize("change", ["appended", "replaced", "linked", "removed"])
async def test_what_is_no_longer_ours_stays(system: System, change: str) -> None:
    system.path.write_text(BEFORE)
    await system.set()
    if change == "appended":
        with system.path.open("a") as file:
            file.write("nameserver 192.0.2.7\n")
    elif change == "replaced":
        system.path.write_text("nameserver 192.0.2.7\n")
    else:
        content = system.path.read_bytes()
        system.path.unlink()
        if change == "linked":  # even if the target says the same
            (system.path.parent.parent / "other").write_bytes(content)
            system.path.symlink_to("../other")
    now = (system.path.is_symlink(), system.path.read_text() if system.path.exists() else None)
    system.undo()
    assert (system.path.is_symlink(), system.path.read_text() if system.path.exists() else None) == now
    assert system.left() == []


async def test_killed_between_journal_and_change(system: System) -> None:
    """The entry is there, the change is not."""
    system.path.write_text(BEFORE)

    class Killed(BaseException):
        pass

    def record(entry: Mapping[str, object]) -> None:
        system.record(entry)
        raise Killed

    with pytest.raises(Killed):
        await system.resolver(record=record).set(OURS, *LINK)
    temporary = system.path.with_name(".resolv.conf.cryprq-proxy")
    temporary.write_text("half of it")  # or killed a little later
    system.undo()
    assert system.path.read_text() == BEFORE
    assert system.left() == []


@pytest.mark.parametrize("longer", [True, False])
async def test_killed_between_the_steps_of_writing_in_place(
    system: System, monkeypatch: pytest.MonkeyPatch, longer: bool
) -> None:
    """Where nothing can be renamed over the file it is overwritten, then cut."""
    before = BEFORE + "# more\n" * 100 if longer else "nameserver 192.0.2.1\n"
    system.path.write_text(before)

    def no_rename(*_: object) -> None:
        raise OSError(16, "busy")

    monkeypatch.setattr(os, "rename", no_rename)
    cut = os.ftruncate

    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(os, "ftruncate", killed)
    with pytest.raises(Killed):
        await system.set()
    assert system.path.read_text() != before
    with pytest.raises(Killed):
        system.undo()
    monkeypatch.setattr(os, "ftruncate", cut)
    system.undo()
    assert system.path.read_text() == before
    assert system.left() == []


async def test_set_again_with_other_addresses(system: System) -> None:
    system.path.write_text(BEFORE)
    resolver = await system.set()
    await resolver.set(OURS[:1], *LINK)
    assert nameservers(system.path.read_bytes()) == OURS[:1]
    assert resolver.upstreams() == ("192.0.2.1", "192.0.2.2")
    system.undo()
    assert system.path.read_text() == BEFORE
    assert system.left() == []


async def test_a_leftover_without_a_journal_is_refused(system: System) -> None:
    system.path.write_bytes(render(OURS, b"", "0" * 16))
    with pytest.raises(ConfigError, match="journal is gone"):
        await system.set()
    assert system.entries == []


@pytest.fixture
def protected(system: System, monkeypatch: pytest.MonkeyPatch) -> System:
    """Nothing in its directory can be written."""
    for name in ("_create", "_overwrite"):
        denied = _deny(getattr(resolvconf_files, name), system.path.parent, errno.EROFS)
        monkeypatch.setattr(resolvconf_files, name, denied)
    return system


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing\n",
        "nameserver fe80::1%eth0\n",
        "nameserver 2001:db8::1\n",  # in a tunnel without IPv6
    ],
)
async def test_what_cannot_be_changed_where_names_would_not_work_is_one_sentence(
    protected: System, text: str
) -> None:
    protected.path.write_text(text)
    with pytest.raises(ConfigError, match=r"resolv.conf cannot be changed: its file system is read-only$"):
        await protected.resolver().set(OURS[:1], *LINK)
    assert protected.path.read_text() == text
    assert protected.left() == []


@pytest.mark.parametrize("text", [BEFORE, "nameserver 127.0.0.1\n", "nameserver 2001:db8::1\n"])
async def test_what_cannot_be_changed_stays_where_names_work(
    protected: System, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Also for other addresses later, and for an undo."""
    protected.path.write_text(text)
    resolver = await protected.set()
    assert "cannot be changed: its file system is read-only; it stays" in caplog.text
    assert resolver.kind == "left alone"
    assert resolver.upstreams() == nameservers(text.encode())
    if "2001" not in text:
        await resolver.set(OURS[:1], *LINK)
    protected.undo()
    assert protected.path.read_text() == text
    assert protected.left() == []


async def test_a_file_that_is_protected_while_ours_is_put_back_later(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    system.path.write_text(BEFORE)
    await system.set()
    with monkeypatch.context() as patch:
        for name in ("_create", "_overwrite"):
            denied = _deny(getattr(resolvconf_files, name), system.path.parent, errno.EPERM)
            patch.setattr(resolvconf_files, name, denied)
        with pytest.raises(ConfigError, match=r"resolv.conf cannot be changed"):
            system.undo()
    assert nameservers(system.path.read_bytes()) == OURS
    system.undo()
    assert system.path.read_text() == BEFORE
    assert system.left() == []


async def test_a_resolver_to_be_left_alone_is_only_read(
    system: System, caplog: pytest.LogCaptureFixture
) -> None:
    system.path.write_text(BEFORE)
    resolver = await choose(system.record, leave=True, path=system.path, state=system.state)
    await resolver.set(OURS, *LINK)
    assert (resolver.kind, resolver.upstreams()) == ("left alone", ("192.0.2.1", "192.0.2.2"))
    assert (system.path.read_text(), system.entries, system.left()) == (BEFORE, [], [])
    assert not caplog.text
    system.path.write_text("search lan\n")
    await resolver.set(OURS, *LINK)
    assert "names no server whose questions reach the forwarder" in caplog.text


def _deny(function, directory: Path, number: int):  # type: ignore[no-untyped-def]
    def denied(path: Path, *arguments: object) -> object:
        if path.parent == directory:
            raise OSError(number, os.strerror(number))
        return function(path, *arguments)

    return denied


async def test_strange_things_are_refused(system: System) -> None:
    system.path.write_bytes(b"#" * (resolvconf_files.MAX_FILE + 1))
    with pytest.raises(ConfigError, match="file too large"):
        await system.set()
    system.path.unlink()
    system.path.mkdir()
    with pytest.raises(ConfigError):
        await system.set()
    system.path.rmdir()
    os.mkfifo(system.path)
    with pytest.raises(ConfigError, match="neither a file nor a link"):
        await system.set()
    assert system.entries == []


@pytest.mark.parametrize(
    "change",
    [
        {"tag": "../../../etc/passwd"},
        {"tag": 7},
        {"was": "device"},
        {"ours": "all"},
        {"ours": ["x"] * 4},
        {"tag": None},
    ],
)
async def test_undo_judges_the_entry(system: System, change: dict[str, object]) -> None:
    system.path.write_text(BEFORE)
    await system.set()
    with pytest.raises(ConfigError, match="did not write"):
        undo({**json.loads(system.entries[0]), **change}, path=system.path, state=system.state)


# Being overwritten


async def keep(resolver: ResolvConf) -> str:
    """As the reconciler does once."""
    found = await resolver.look()
    if found:
        await resolver.put_back()
    return found


async def kept(system: System, writes: list[str] | None = None) -> ResolvConf:
    """A resolver that is set; while a look waits, another program writes the next of `writes`."""

    async def pause(seconds: float) -> None:
        if writes:
            system.path.write_text(writes.pop(0))

    resolver = system.resolver(pause=pause)
    await resolver.set(OURS, *LINK)
    return resolver


async def test_is_set_again_and_the_news_are_kept(system: System) -> None:
    system.path.write_text(BEFORE)
    news = "nameserver 192.0.2.77\nsearch other\n"
    resolver = await kept(system, writes := [])
    assert await keep(resolver) == ""
    system.path.write_text("name")  # it is being written
    writes += ["nameserver 192.0.2.7", news]
    assert await keep(resolver) == f"{system.path} named 192.0.2.77"
    assert nameservers(system.path.read_bytes()) == OURS
    assert b"search other" in system.path.read_bytes()
    assert resolver.upstreams() == ("192.0.2.77",)
    assert len(system.left()) == 1  # one backup
    assert await keep(resolver) == ""
    system.undo()
    assert system.path.read_text() == news
    assert system.left() == []


async def test_a_removed_file_and_a_link_are_news_too(system: System) -> None:
    system.path.write_text(BEFORE)
    resolver = await kept(system)
    system.path.unlink()
    assert await keep(resolver) == f"{system.path} named no server"
    assert nameservers(system.path.read_bytes()) == OURS
    system.path.unlink()
    system.path.symlink_to("../elsewhere")
    assert await keep(resolver) == f"{system.path} was made a link to '../elsewhere'"
    assert nameservers(system.path.read_bytes()) == OURS
    system.undo()
    assert os.readlink(system.path) == "../elsewhere"


async def test_an_older_one_of_ours_is_no_news(system: System) -> None:
    """Some program had saved our file and put it back."""
    system.path.write_text(BEFORE)
    resolver = await kept(system)
    saved = system.path.read_bytes()
    system.path.write_text("nameserver 192.0.2.77\n")
    assert await keep(resolver)
    ours = system.path.read_bytes()
    assert ours != saved
    system.path.write_bytes(saved)
    assert await keep(resolver)
    assert system.path.read_bytes() == ours
    assert len(system.entries) == 2
    system.undo()
    assert system.path.read_text() == "nameserver 192.0.2.77\n"


async def test_a_fight_ends_before_the_journal_grows_without_bound(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolvconf, "MAX_REPAIRS", 12)
    system.path.write_text(BEFORE)
    resolver = await kept(system)
    for _ in range(12):
        system.path.write_text("nameserver 192.0.2.77\n")
        assert await keep(resolver)
    system.path.write_text("nameserver 192.0.2.77\n")
    with pytest.raises(ConfigError, match="its version stays"):
        await keep(resolver)
    assert system.path.read_text() == "nameserver 192.0.2.77\n"
    system.undo()
    assert system.path.read_text() == "nameserver 192.0.2.77\n"
    assert system.left() == []


async def test_a_failed_repair_is_tried_again(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    system.path.write_text(BEFORE)
    resolver = await kept(system)
    system.path.write_text("nameserver 192.0.2.77\n")
    with monkeypatch.context() as broken:
        broken.setattr(resolvconf_files, "write", _deny_write)
        with pytest.raises(ConfigError, match="cannot be changed"):
            await keep(resolver)
    assert await keep(resolver)
    assert nameservers(system.path.read_bytes()) == OURS
    system.undo()
    assert system.path.read_text() == "nameserver 192.0.2.77\n"
    assert system.left() == []


def _deny_write(path: Path, *_: object) -> None:
    raise ConfigError(f"{path} cannot be changed: for the test")


# Reading what others wrote


def test_render_keeps_no_name_server_and_no_trust() -> None:
    before = b"domain lan\nsortlist 192.0.2.0/24\noptions trust-ad\noptions edns0 rotate\nsearch a\x1b[0m\nsearch b c\n"
    ours = render(OURS, before, "ab" * 8).decode()
    assert "# cryprq-proxy abababababababab" in ours
    assert [line for line in ours.splitlines() if line[0] != "#"][2:] == [
        "domain lan",
        "options edns0 rotate",
        "search b c",
    ]


@pytest.mark.parametrize(
    ("before", "kept"),
    [
        ("search lan büro.example example.org", ["search lan example.org"]),
        ("search lan  # für alle", ["search lan # alle"]),
        ("search büro.example", []),
        ("domain\tlan\x00.example  ok.example\f", ["domain ok.example"]),
        ("options ndots:2 größe:7 rotate trust-ad", ["options ndots:2 rotate"]),
        ("sürch lan", []),
        ("é search lan", []),
        ("# für\u2028nameserver 192.0.2.66", []),
        ("search lan\rnameserver 192.0.2.66", ["search lan nameserver 192.0.2.66"]),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_an_odd_word_costs_itself_only(before: str, kept: list[str], encoding: str) -> None:
    content = before.encode(encoding, "replace") + b"\nnameserver 192.0.2.1 # f\xfcr\nsearch last\n"
    assert nameservers(content) == ("192.0.2.1",)
    ours = render(OURS, content, "0" * 16).decode("ascii")
    assert ours.splitlines()[4:] == [*kept, "search last"]


lines = st.builds(
    lambda word, rest, end: word + rest + end,
    st.sampled_from([b"nameserver ", b"search ", b"options ", b"domain\t", b"#", b""]),
    st.one_of(st.binary(max_size=40), st.ip_addresses().map(lambda address: str(address).encode())),
    st.sampled_from([b"\n", b"\r\n", b" ", b""]),
)


@given(st.lists(lines, max_size=30).map(b"".join))
def test_any_file_can_be_read_and_rendered(content: bytes) -> None:
    found = nameservers(content)
    assert len(found) <= MAX_NAMESERVERS
    for address in found:
        ipaddress.ip_address(address)
    ours = render(OURS, content, "0" * 16)
    assert nameservers(ours) == OURS
    assert render(OURS, ours, "0" * 16) == ours
