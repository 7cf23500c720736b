"""What the host's files say, as any administrator may write them; and when they are read again."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import pytest

from cryprq_proxy.outbound.resolving import host_configuration
from cryprq_proxy.outbound.resolving.host_configuration import (
    MAX_FILE,
    MAX_SEARCH,
    MAX_SERVERS,
    ConfigurationReader,
    HostConfiguration,
    HostFiles,
    read_configuration,
    read_resolv_conf,
    why_library,
)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HostFiles:
    for variable in host_configuration.LIBRARY_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    return HostFiles(tmp_path / "resolv.conf", tmp_path / "hosts", tmp_path / "nsswitch.conf")


@pytest.mark.parametrize(
    ("text", "servers"),
    [
        ("nameserver 192.0.2.1\n", ("192.0.2.1",)),
        ("  nameserver\t192.0.2.1 # first\nnameserver 2001:DB8::1\n", ("192.0.2.1", "2001:db8::1")),
        ("search example.com\n#nameserver 192.0.2.1\n;nameserver 192.0.2.2\n", ("127.0.0.1",)),
        ("nameserver\nnameserver x\nnameserver 192.0.2.300\nnameservers 192.0.2.1\n", ("127.0.0.1",)),
        ("nameserver fe80::1%eth0\n", ("fe80::1%eth0",)),
        (
            "".join(f"nameserver 192.0.2.{n}\n" for n in range(9)),
            tuple(f"192.0.2.{n}" for n in range(MAX_SERVERS)),
        ),
        ("", ("127.0.0.1",)),
        ("\udcff\0", ("127.0.0.1",)),
        ("# one\u2028nameserver 192.0.2.66\nnameserver 192.0.2.1\n", ("192.0.2.1",)),
    ],
)
def test_name_servers(text: str, servers: tuple[str, ...]) -> None:
    assert read_resolv_conf(text.encode("utf-8", "surrogateescape")).servers == servers


@pytest.mark.parametrize(
    ("text", "search"),
    [
        ("", ("host.example",)),
        ("search a.example B.example.\n", ("a.example", "b.example")),
        ("search a.example\nsearch b.example\n", ("b.example",)),
        ("search a.example\ndomain b.example c.example\n", ("b.example",)),
        ("search .\n", ()),
        (
            "search " + " ".join(f"d{n}.example" for n in range(40)),
            tuple(f"d{n}.example" for n in range(MAX_SEARCH)),
        ),
    ],
)
def test_search_lists(text: str, search: tuple[str, ...]) -> None:
    assert read_resolv_conf(text.encode(), "exit.host.example").search == search


def test_options() -> None:
    found = read_resolv_conf(b"options ndots:5 timeout:2\noptions attempts:4 rotate use-vc edns0\n")
    expected = HostConfiguration(dots=5, seconds=2, attempts=4, rotate=True, only_tcp=True)
    assert found == expected


@pytest.mark.parametrize(
    ("options", "values"),
    [
        ("ndots:99 timeout:99 attempts:99", (15, 30, 5)),
        ("ndots:0 timeout:0 attempts:0", (0, 1, 1)),
        ("ndots timeout:x attempts:-1", (1, 5, 2)),
        ("ndots:" + "9" * 5000, (15, 5, 2)),
    ],
)
def test_numbers_have_bounds(options: str, values: tuple[int, int, int]) -> None:
    found = read_resolv_conf(f"options {options}\n".encode())
    assert (found.dots, found.seconds, found.attempts) == values


@pytest.mark.parametrize(
    "text", [b"", b"hosts: files dns\n", b"hosts:files dns # both\npasswd: files ldap\n"]
)
def test_files_and_dns_need_no_c_library(text: bytes) -> None:
    assert why_library(text, {}, "linux") == ""


@pytest.mark.parametrize(
    "sources",
    [
        "files mdns4_minimal [NOTFOUND=return] dns",
        "files resolve [!UNAVAIL=return] dns",
        "files myhostname dns",
        "files dns ldap",
        "dns files",
        "files",
        "",
    ],
)
def test_all_other_orders_are_left_to_the_c_library(sources: str) -> None:
    assert f"`hosts: {sources}`" in why_library(f"hosts: {sources}\n".encode(), {}, "linux")


def test_what_else_needs_the_c_library() -> None:
    assert "RES_OPTIONS" in why_library(b"", {"RES_OPTIONS": "ndots:3"}, "linux")
    assert why_library(b"", {}, "darwin")


def test_a_long_hosts_file_is_left_to_the_c_library(files: HostFiles) -> None:
    files.hosts.write_bytes(b"127.0.0.1 here.example\n".ljust(MAX_FILE, b"#"))
    found = read_configuration(files)
    assert (found.library, found.hosts) == ("", {"here.example": ("127.0.0.1",)})
    files.hosts.write_bytes(b"127.0.0.1 here.example\n".ljust(MAX_FILE + 1, b"#"))
    found = read_configuration(files)
    assert found.library.endswith("is larger than 1 MiB")
    assert not found.hosts


def test_files_that_cannot_be_read_are_empty(files: HostFiles, tmp_path: Path) -> None:
    assert read_configuration(files, lambda: "host") == HostConfiguration()
    assert read_configuration(HostFiles(tmp_path, tmp_path, tmp_path), lambda: "host") == HostConfiguration()


async def test_a_change_is_seen_by_the_next_who_asks(files: HostFiles) -> None:
    files.resolv_conf.write_text("nameserver 192.0.2.1\n")
    reader = ConfigurationReader(files)
    assert await reader.current() is reader.latest
    files.resolv_conf.write_text("nameserver 192.0.2.22\n")
    both = await asyncio.gather(reader.current(), reader.current())
    assert [found.servers for found in both] == [("192.0.2.22",)] * 2
    assert both[0] is both[1], "read once"
    files.resolv_conf.unlink()
    assert (await reader.current()).servers == ("127.0.0.1",)
    reader.close()


async def test_a_change_during_the_reading_is_seen_the_next_time(
    files: HostFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.hosts.write_text("192.0.2.1 a.example\n")
    reader = ConfigurationReader(files)
    real = host_configuration.read_configuration

    def slow(of: HostFiles) -> HostConfiguration:
        found = real(of)
        files.hosts.write_text("192.0.2.333 a.example\n192.0.2.3 a.example\n")
        return found

    files.hosts.write_text("192.0.2.22 a.example\n")
    monkeypatch.setattr(host_configuration, "read_configuration", slow)
    assert (await reader.current()).hosts == {"a.example": ("192.0.2.22",)}
    monkeypatch.undo()
    assert (await reader.current()).hosts == {"a.example": ("192.0.2.3",)}
    reader.close()


async def test_a_file_that_cannot_be_opened_for_now_is_read_later(
    files: HostFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else an exit without descriptors would take its resolv.conf for empty, and keep that."""
    files.resolv_conf.write_text("nameserver 192.0.2.1\n")
    reader = ConfigurationReader(files)
    files.resolv_conf.write_text("nameserver 192.0.2.22\n")

    def failing(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "no descriptors")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", failing)
        assert (await reader.current()).servers == ("192.0.2.1",)
    assert (await reader.current()).servers == ("192.0.2.22",)
    reader.close()


async def test_who_gives_up_does_not_stop_the_reading_for_others(files: HostFiles) -> None:
    reader = ConfigurationReader(files)
    files.resolv_conf.write_text("nameserver 192.0.2.1\n")
    first, second = asyncio.ensure_future(reader.current()), asyncio.ensure_future(reader.current())
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).servers == ("192.0.2.1",)
    reader.close()
