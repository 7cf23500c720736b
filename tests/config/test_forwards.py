"""Local forwards: [[forward]] and -L, for this machine alone unless a person says that others are meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from cryprq_proxy.address import Destination
from cryprq_proxy.config.client import ClientConfig, client_from
from cryprq_proxy.config.forwards import MAX_FORWARDS, ForwardTable, parse_flags
from cryprq_proxy.errors import ConfigError

PEER = f'peer = "cryprq://{"a" * 52}@exit.example"\n'


def read(text: str, *flags: str) -> ClientConfig:
    return client_from(PEER + text, Path("client.toml"), True, {"forward": flags})


def rows(config: ClientConfig) -> list[tuple[str, str]]:
    return [(str(forward.listen), str(forward.to)) for forward in config.forward]


@pytest.mark.parametrize(
    ("flag", "listen", "to"),
    [
        ("5432:db.internal:5432", "127.0.0.1:5432", "db.internal:5432"),
        ("localhost:5432:DB.internal.:22", "localhost:5432", "db.internal:22"),
        ("[::1]:5432:[2001:db8::1]:22", "[::1]:5432", "[2001:db8::1]:22"),
        ("127.0.0.2:1:192.0.2.1:2", "127.0.0.2:1", "192.0.2.1:2"),
    ],
)
def test_flags(flag: str, listen: str, to: str) -> None:
    [forward] = parse_flags([flag])
    assert (str(forward.listen), str(forward.to)) == (listen, to)


@pytest.mark.parametrize(
    ("flag", "why"),
    [
        ("5432", r"expected \[ADDRESS:\]PORT:HOST:HOSTPORT"),
        ("5432:db.internal", r"expected \[ADDRESS:\]PORT:HOST:HOSTPORT"),
        ("2001:db8::1:5432:x:1", r"expected \[ADDRESS:\]PORT:HOST:HOSTPORT"),
        ("0:x:1", "port from 1"),
        ("1:x:0", "port from 1"),
        ("1:x:65536", "not a port"),
        ("1:a b:1", "not a host name"),
        ("0.0.0.0:1:x:1", "lets other machines use this forward"),
        ("[::]:1:x:1", "lets other machines use this forward"),
    ],
)
def test_wrong_flags(flag: str, why: str) -> None:
    with pytest.raises(ConfigError, match=f"^-L.*{why}"):
        read("", flag)


def test_flags_come_on_top_of_the_file() -> None:
    config = read('[[forward]]\nlisten = 5432\nto = "db:1"\n', "5433:db:2")
    assert rows(config) == [("127.0.0.1:5432", "db:1"), ("127.0.0.1:5433", "db:2")]


def test_other_machines_are_let_in_on_purpose_only() -> None:
    text = '[[forward]]\nlisten = "0.0.0.0:5432"\nto = "db:1"\n'
    with pytest.raises(
        ConfigError, match=r"^client\.toml: forward\[1\]: listening on 0\.0\.0\.0:5432 lets other"
    ):
        read(text)
    assert rows(read(text + "others = true\n")) == [("0.0.0.0:5432", "db:1")]


@pytest.mark.parametrize(
    "text",
    [
        '[[forward]]\nlisten = 1080\nto = "db:1"\n',
        '[[forward]]\nlisten = 1081\nto = "db:1"\n',
        '[[forward]]\nlisten = 5432\nto = "db:1"\n[[forward]]\nlisten = 5432\nto = "db:2"\n',
    ],
)
def test_two_at_one_place(text: str) -> None:
    with pytest.raises(ConfigError, match="give it another port"):
        read(text)


def test_forwards_are_bounded() -> None:
    def some(count: int) -> tuple[ForwardTable, ...]:
        to = Destination("db", 1)
        return tuple(ForwardTable(listen=Destination("127.0.0.1", 5000 + at), to=to) for at in range(count))

    assert len(ClientConfig(forward=some(MAX_FORWARDS)).forward) == MAX_FORWARDS
    with pytest.raises(ConfigError, match="there are 65 forwards, more than 64"):
        ClientConfig(forward=some(MAX_FORWARDS + 1))
