"""Signs of life; the marks themselves are in tests/lab/test_tun_wayout.py."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from subprocess import PIPE
from typing import cast

import pytest

from cryprq_proxy.base import leftovers, linux_marks
from cryprq_proxy.base.abstract_sign import socket_name
from cryprq_proxy.base.leftovers import claimed, cleaning_up, holder
from cryprq_proxy.base.paths import Role
from cryprq_proxy.errors import ConfigError


@pytest.fixture
def role() -> Role:
    """One of this test alone: the names are those of the whole network namespace."""
    return cast(Role, f"test-{secrets.token_hex(4)}")


def test_a_role_is_alone_while_it_lives(role: Role) -> None:
    assert holder(role) is None
    with claimed(role):
        assert holder(role) == os.getpid()
        with pytest.raises(ConfigError, match=rf"\(pid {os.getpid()}\): stop that one first"), claimed(role):
            raise AssertionError("two of them")
    assert holder(role) is None


@pytest.fixture
def cleanup(role: Role, monkeypatch: pytest.MonkeyPatch) -> str:
    """The cleanup of this test alone, of `role` alone."""
    monkeypatch.setattr(leftovers, "ROLES", (role,))
    monkeypatch.setattr(leftovers, "_CLEANUP", f"{role}-cleanup")
    return f"{role}-cleanup"


def test_a_start_and_another_cleanup_wait_until_a_cleanup_has_ended(
    role: Role, cleanup: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for other in (lambda: claimed(role), cleaning_up):
        with ExitStack() as first:
            first.enter_context(cleaning_up())
            monkeypatch.setattr(time, "sleep", lambda _: first.close())
            with other():
                assert holder(role) == os.getpid()
        assert holder(role) is None


def test_a_cleanup_that_does_not_end_is_named(
    role: Role, cleanup: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leftovers, "CLEANUP_SECONDS", 0.0)
    said = rf"cryprq-proxy cleanup \(pid {os.getpid()}\) still runs: try again when it has ended"
    with cleaning_up(), pytest.raises(ConfigError, match=said), claimed(role):
        raise AssertionError("two of them")


@pytest.mark.process
def test_nothing_is_cleaned_up_under_a_role_that_lives(role: Role, cleanup: str) -> None:
    code = (
        "import socket, sys\n"
        "sign = socket.socket(socket.AF_UNIX)\n"
        f"sign.bind({socket_name(role)!r})\n"
        "sign.listen()\n"
        "print(flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=PIPE, stdout=PIPE) as other:
        assert other.stdout is not None and other.stdout.readline()
        said = rf"\(pid {other.pid}\): stop that one first"
        with pytest.raises(ConfigError, match=said), cleaning_up():
            raise AssertionError("two of them")
        assert other.stdin is not None
        other.stdin.close()


async def test_who_looks_does_not_fill_the_queue(role: Role, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "SOMAXCONN", 1)
    with claimed(role):
        for _ in range(300):
            assert holder(role) == os.getpid()
            await asyncio.sleep(0)


@pytest.mark.root
def test_a_user_who_has_the_name_keeps_nobody_from_the_work(role: Role) -> None:
    """Nor is he taken for a role that lives."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setuid(65534)
            sign = socket.socket(socket.AF_UNIX)
            sign.bind(socket_name(role))
            sign.listen()
            os.write(writing, b"x")
            os.read(os.pipe()[0], 1)
        finally:
            os._exit(0)
    try:
        assert os.read(reading, 1) == b"x"
        assert holder(role) is None
        with claimed(role):
            assert holder(role) is None
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        os.close(reading)
        os.close(writing)


def test_the_header_of_our_resolv_conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, role: Role) -> None:
    file = tmp_path / "resolv.conf"
    monkeypatch.setattr(linux_marks, "RESOLV_CONF", str(file))
    assert not linux_marks.has_header()
    file.write_text("# cryprq-proxy 0123456789abcdef: all names ...\n")
    assert linux_marks.has_header()
    file.write_text("# by hand\n")
    assert not linux_marks.has_header()
    file.unlink()
    os.mkfifo(file)
    assert not linux_marks.has_header(), "and it does not wait for a writer"


RULES, HEADER = "routing rules", "/etc/resolv.conf"
TABLE = "the table cryprq_exit of the packet filter"


@pytest.mark.parametrize(
    ("tables", "rules", "header", "said"),
    [
        ({"cryprq"}, True, True, leftovers.KILL_SWITCH_STANDS),
        ({"cryprq"}, False, False, leftovers.KILL_SWITCH_STANDS),
        # Without root nobody sees the tables, and rules come with one.
        (None, True, True, leftovers.KILL_SWITCH_STANDS),
        (None, False, True, f"an earlier --tun has left {HEADER}: {leftovers.REMEDY}"),
        # As after a reboot: the kernel's part is gone by itself.
        ({"other"}, False, True, f"an earlier --tun has left {HEADER}: {leftovers.REMEDY}"),
        (set(), True, True, f"an earlier --tun has left {RULES}, {HEADER}: {leftovers.REMEDY}"),
        ({"cryprq_exit"}, False, False, ""),
        (None, False, False, ""),
    ],
)
def test_what_is_left_is_named(
    tables: set[str] | None, rules: bool, header: bool, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leftovers, "holder", lambda role: None)
    monkeypatch.setattr(linux_marks, "_tables", lambda: tables)
    monkeypatch.setattr(linux_marks, "_has_rules", lambda: rules)
    monkeypatch.setattr(linux_marks, "has_header", lambda: header)
    monkeypatch.setattr(linux_marks, "_has_routes", lambda: False)
    assert leftovers.left_by_client() == said


CRASHED = f"an earlier --tun has left {RULES}: {leftovers.REMEDY}"


@pytest.mark.parametrize(
    ("tables", "unit", "rules", "said"),
    [
        ({"cryprq", "cryprq_lockdown"}, False, False, leftovers.LOCKDOWN_STANDS),
        ({"cryprq", "cryprq_lockdown"}, False, True, f"{leftovers.LOCKDOWN_STANDS}; {CRASHED}"),
        ({"cryprq_lockdown"}, False, False, leftovers.LOCKDOWN_LOST),
        ({"cryprq"}, True, False, leftovers.KILL_SWITCH_STANDS),
        # Without root nobody sees the tables, but the unit.
        (None, True, False, leftovers.LOCKDOWN_STANDS),
        (None, True, True, f"{leftovers.LOCKDOWN_STANDS}; {CRASHED}"),
    ],
)
def test_lockdown_is_no_leftover(
    tables: set[str] | None,
    unit: bool,
    rules: bool,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    wanted = tmp_path / linux_marks.LOCKDOWN_UNIT
    if unit:
        wanted.symlink_to("/nowhere")
    monkeypatch.setattr(linux_marks, "LOCKDOWN_WANTED", wanted)
    monkeypatch.setattr(leftovers, "holder", lambda role: None)
    monkeypatch.setattr(linux_marks, "_tables", lambda: tables)
    monkeypatch.setattr(linux_marks, "_has_rules", lambda: rules)
    monkeypatch.setattr(linux_marks, "has_header", lambda: False)
    assert leftovers.left_by_client() == said
    assert not leftovers.kill_switch_in(leftovers.marks("client")) or said == leftovers.KILL_SWITCH_STANDS
    monkeypatch.setattr(leftovers, "holder", lambda role: 7)
    assert leftovers.left_by_client() == ""


@pytest.mark.parametrize(
    ("tables", "routes", "said"),
    [
        ({"cryprq_exit"}, True, f"{TABLE}, routes to clients"),
        ({"cryprq_exit", "other"}, False, TABLE),
        ({"other"}, True, "routes to clients"),
        # Without root nobody sees the tables.
        (None, True, "routes to clients"),
        (None, False, ""),
    ],
)
def test_what_an_exit_has_left_is_named(
    tables: set[str] | None, routes: bool, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leftovers, "holder", lambda role: None)
    monkeypatch.setattr(linux_marks, "_tables", lambda: tables)
    monkeypatch.setattr(linux_marks, "_has_rules", lambda: False)
    monkeypatch.setattr(linux_marks, "_has_routes", lambda: routes)
    assert leftovers.table_stands("exit") == (None if tables is None else "cryprq_exit" in tables)
    monkeypatch.setattr(linux_marks, "has_header", lambda: False)
    assert leftovers.left_by_client() == ""
    left = f"an earlier --tun has left {said}: {leftovers.REMEDY}"
    assert leftovers.left_by_any() == (left if said else "")
    monkeypatch.setattr(linux_marks, "has_header", lambda: True)
    client = f"an earlier --tun has left {HEADER}: {leftovers.REMEDY}"
    assert leftovers.left_by_any() == (f"{client}; {left}" if said else client)


async def test_a_name_that_another_user_has_does_not_occupy_the_loop(
    role: Role, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The socket of this process, bound to nothing, is readable for ever: each turn of the loop looked at it."""
    watched: list[object] = []
    monkeypatch.setattr(asyncio.get_running_loop(), "add_reader", lambda *call: watched.append(call))
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(socket_name(role))  # not listening: so it has no process id, as of another namespace
        with claimed(role):
            assert not watched
