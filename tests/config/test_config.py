from __future__ import annotations

import contextlib
import functools
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.address import Destination
from cryprq_proxy.base.paths import MAX_FILE, MAX_LIST, config_dir
from cryprq_proxy.carriers.dial.endpoint import Endpoint
from cryprq_proxy.carriers.dial.upstream import UpstreamProxy
from cryprq_proxy.config import decode
from cryprq_proxy.config.authorized import read_peers
from cryprq_proxy.config.client import ClientConfig, client_from, load_client
from cryprq_proxy.config.decode import decode_table
from cryprq_proxy.config.exit import ExitConfig, authorized_file, exit_from, load_exit
from cryprq_proxy.config.exits import MAX_ENDPOINTS, MAX_EXITS
from cryprq_proxy.config.secret_files import read_psk, read_user
from cryprq_proxy.config.urls import PeerUrl, parse_peer_url, parse_upstream
from cryprq_proxy.crypto.identity import PeerId
from cryprq_proxy.errors import ConfigError
from cryprq_proxy.recovery.bbr import Bbr
from cryprq_proxy.recovery.cubic import Cubic
from cryprq_proxy.service.exit import exit_settings
from cryprq_proxy.session.wire import LaneUse

CONFIGS = Path(__file__).parent.parent.parent / "configs"
ID = "a" * 52
OTHER_ID = str(PeerId(bytes(range(32))))
PEER = f'peer = "cryprq://{ID}@exit.example:4433"\n'


def client(
    text: str = "", flags: Mapping[str, object] | None = None, *, private: bool = True
) -> ClientConfig:
    return client_from(PEER + text, Path("client.toml"), private, flags or {})


def exit_peer(text: str = "", flags: Mapping[str, object] | None = None) -> ExitConfig:
    return exit_from(text, Path("exit.toml"), flags or {})


def secret_file(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


# --- what is read ---


def test_a_client_needs_a_peer_and_nothing_else() -> None:
    read = client()
    assert read.peer == (PeerUrl(PeerId(bytes(32)), Endpoint("tcp", Destination("exit.example", 4433))),)
    assert read.listen == Destination("127.0.0.1", 1080)
    assert read.credentials() is None
    assert read.identity == Path("identity")


def test_an_exit_needs_nothing() -> None:
    read = exit_peer()
    assert read.listen == (Destination("0.0.0.0", 4433),)
    assert read.peers() == ({}, {}, ())


def test_both_sides_take_the_defaults_of_the_session() -> None:
    assert client().session_limits() == exit_peer().session_limits()


def test_all_of_a_client() -> None:
    read = client(
        """
        identity = "keys/me"
        psk_file = "/etc/cryprq/psk"
        listen = "[::]:8080"
        user = "alice:a:secret"
        upstream = "socks5://tor%20user:p%40ss@127.0.0.1:9050"
        wait_for_link = 2
        negotiation_timeout = 0.5
        via = true
        keepalive = 20
        provider = "pure"
        control_socket = "~/c.sock"
        log_level = "debug"
        log_format = "json"
        [rotation]
        interval = 1.5
        records = 1000
        bytes = "1 GiB"
        [limits]
        retained_bytes = 1_000_000
        window_pool = "64MiB"
        max_connections = 5
        """
    )
    assert read.identity == Path("keys/me")
    assert read.psk_file == Path("/etc/cryprq/psk")
    assert read.listen == Destination("::", 8080)
    credentials = read.credentials()
    assert credentials is not None
    assert credentials.check(b"alice", b"a:secret")
    assert read.upstream == UpstreamProxy(Destination("127.0.0.1", 9050), "tor user", "p@ss")
    assert (read.wait_for_link, read.negotiation_timeout, read.keepalive) == (2.0, 0.5, 20.0)
    assert isinstance(read.wait_for_link, float)
    assert read.via
    assert (read.provider, read.log_level, read.log_format) == ("pure", "debug", "json")
    assert read.control_socket == Path.home() / "c.sock"
    assert (read.rotation.interval, read.rotation.records, read.rotation.bytes) == (1.5, 1000, 1 << 30)
    assert read.limits.retained_bytes == 1_000_000
    assert read.limits.window_pool == 64 << 20
    assert read.limits.max_connections == 5


@pytest.mark.parametrize(
    ("carrier", "has_lane", "use"),
    [("auto", True, LaneUse.AUTO), ("tcp", False, LaneUse.TCP), ("udp", True, LaneUse.UDP)],
)
def test_carriers(carrier: str, has_lane: bool, use: LaneUse) -> None:
    read = client(f"carrier = '{carrier}'")
    assert read == client("", {"carrier": carrier})
    settings = read.link_settings(read.exits()[0], read.lane_settings())
    assert (settings.lane is not None, settings.lane_use) == (has_lane, use)


@pytest.mark.parametrize(
    ("text", "control"), [("", Bbr), ("congestion = 'bbr'", Bbr), ("congestion = 'cubic'", Cubic)]
)
def test_congestion_control_of_the_lane(text: str, control: type) -> None:
    read = client(f"[lane]\n{text}")
    lane = read.lane_settings()
    assert lane is not None and isinstance(lane.control(0.0, 1_200, 0.0), control)
    there = exit_settings(exit_peer(f"[lane]\n{text}")).lane
    assert there is not None and there.control is lane.control


def test_no_upstream_proxy_passes_a_lane_on() -> None:
    upstream = "upstream = 'socks5://127.0.0.1:9050'"
    assert client(upstream).lane_settings() is None
    with pytest.raises(ConfigError, match=r'carrier = "udp" needs UDP, .*; leave out one of the two'):
        client(upstream, {"carrier": "udp"})


def test_all_lists_of_an_exit() -> None:
    read = exit_peer(
        f"""
        listen = ["192.0.2.1:443", "[2001:db8::1]:443"]
        allow = ["{ID}", "{OTHER_ID.upper()}"]
        allow_private = true
        [egress]
        allow = ["192.168.1.0/24"]
        deny = [":25", "*.example.com"]
        only = []
        [limits]
        detached_sessions_per_peer = 0
        """
    )
    assert read.listen == (Destination("192.0.2.1", 443), Destination("2001:db8::1", 443))
    assert read.peers().allowed.keys() == {PeerId(bytes(32)), PeerId(bytes(range(32)))}
    assert read.allow_private
    assert read.egress.deny == (":25", "*.example.com")
    assert read.limits.detached_sessions_per_peer == 0


def test_one_string_is_a_list_of_one() -> None:
    assert exit_peer('listen = "127.0.0.1:0"').listen == (Destination("127.0.0.1", 0),)


def test_structs_are_frozen() -> None:
    with pytest.raises(AttributeError):
        client().listen = Destination("0.0.0.0", 1)  # type: ignore[misc]


# --- flags ---


def test_flags_override_the_file() -> None:
    read = client('listen = "127.0.0.1:1"\nwait_for_link = 1', {"listen": "127.0.0.1:2", "identity": None})
    assert read.listen.port == 2
    assert read.wait_for_link == 1.0
    peer = f"cryprq://{OTHER_ID}@[2001:db8::7]:1"
    assert client("", {"peer": peer}).peer == (
        PeerUrl(PeerId(bytes(range(32))), Endpoint("tcp", Destination("2001:db8::7", 1))),
    )


def test_flags_that_were_not_given_change_nothing() -> None:
    text = f'allow = ["{ID}"]\nallow_private = true'
    assert exit_peer(text, {"allow": (), "allow_private": None}) == exit_peer(text)
    assert exit_peer(text, {"allow": (OTHER_ID,)}).peers().allowed.keys() == {PeerId(bytes(range(32)))}


def test_a_user_on_the_command_line_replaces_the_file_of_the_configuration() -> None:
    read = client('user_file = "nowhere"', {"user": "a:b"})
    assert read.user_file is None
    assert read.credentials() is not None


def test_relative_paths_start_at_the_file_but_those_of_flags_do_not(tmp_path: Path) -> None:
    file = secret_file(tmp_path / "client.toml", PEER + 'identity = "me"\npsk_file = "psk"')
    read = load_client(file, {"psk_file": "psk"})
    assert read.identity == tmp_path / "me"
    assert read.psk_file == Path("psk")


# --- errors ---


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("listen = true", 'listen: expected a string like "127.0.0.1:1080", or a port, got true'),
        ("listen = [1080]", 'listen: expected a string like "127.0.0.1:1080", or a port, got a list'),
        ("listen = 65536", "listen: '65536' is not a port; ports are 0 to 65535"),
        ("listen = -1", "listen: '-1' lacks a port"),
        ("listen = ':1080'", "listen: ':1080' lacks a host in front of the colon, as in 127.0.0.1:1080"),
        ("listen = ''", "listen: expected a host and a port, as in example.com:443, got nothing"),
        ("listen = '192.0.2.1'", "listen: '192.0.2.1' lacks a port, as in 192.0.2.1:443"),
        ("via = 1", "via: expected true or false, got the integer 1"),
        ("via = 'yes'", "via: expected true or false, got a string"),
        ("wait_for_link = '10'", "wait_for_link: expected a number of seconds from 0 to 3600, got a string"),
        ("wait_for_link = true", "wait_for_link: expected a number of seconds from 0 to 3600, got true"),
        ("wait_for_link = -1", "wait_for_link: expected a number of seconds from 0 to 3600, got the integer -1"),
        ("wait_for_link = nan", "wait_for_link: expected a number of seconds from 0 to 3600, got the number nan"),
        ("keepalive = inf", "keepalive: expected a number of seconds from 0.1 to 600, got the number inf"),
        (
            "provider = 'openssl'",
            'provider: expected one of "auto", "cryptography", "pure", got a string',
        ),
        ("identity = ''", "identity: expected the path of a file, without control characters"),
        ("limits = 3", "limits: expected a table, [limits], got the integer 3"),
        (
            "[limits]\nmax_connections = 1.5",
            "limits.max_connections: expected a whole number from 1 to 1000000, got the number 1.5",
        ),
        (
            "[limits]\nretained_bytes = '16 MB'",
            'limits.retained_bytes: expected a size from 64 KiB to 1 GiB, in bytes or like "16 MiB",'
            " got a string",
        ),
        (
            "[limits]\nretained_bytes = 1",
            'limits.retained_bytes: expected a size from 64 KiB to 1 GiB, in bytes or like "16 MiB",'
            " got the integer 1",
        ),
        ("[rotation]\ninterval = 1979-05-27", "rotation.interval: expected a number of seconds from 0.1 to"
         " 86400, got a date or time"),
        ("lissten = 1", 'lissten: unknown key; did you mean "listen"?'),
        ("wait-for-link = 1", 'wait-for-link: unknown key; did you mean "wait_for_link"?'),
        ("retained_bytes = 1", 'retained_bytes: unknown key; did you mean "limits.retained_bytes"?'),
        ("[rotation]\nintervall = 1", 'rotation.intervall: unknown key; did you mean "rotation.interval"?'),
        ("[rotation]\nx = 1", "rotation.x: unknown key; known keys are interval, records, bytes"),
        ('"\\u001b[1m" = 1\n', "'\\x1b[1m': unknown key; known keys are identity, psk_file, "),
        ("listen = ", "not valid TOML: Invalid value (at "),
        ("listen = 1\nlisten = 2", "not valid TOML: a key or table stands there twice (at "),
        ("x = " + "[" * 5000, "not valid TOML: too deeply nested"),
        ("x = " + "1" * 5000, "not valid TOML: "),
        ("user = 'a:b'\nuser_file = 'u'", "user and user_file exclude each other; keep one of them"),
        ("listen = '0.0.0.0:1080'", "listening on 0.0.0.0:1080 lets other machines in: add --user "),
        ("listen = 'proxy.lan:1080'", "listening on proxy.lan:1080 lets other machines in: add --user "),
    ],
)  # fmt: skip
def test_an_error_names_file_key_and_what_is_expected(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        client(text)
    assert str(caught.value).startswith(f"client.toml: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("allow = [1]", "exit.toml: allow: expected a list of peer ids, got the integer 1"),
        ("allow = ['abc']", "exit.toml: allow: a peer id has 52 characters, but this one has 3"),
        ("listen = []", "exit.toml: listen is empty: name at least one address"),
        ("[egress]\nallow = ['example.com']", "exit.toml: egress.allow: 'example.com' has no address"),
        ("[egress]\ndeny = ['no way']", "exit.toml: egress.deny: 'no way' is invalid "),
        ("[egress]\nonly = 5", 'exit.toml: egress.only: expected a list of strings like "10.0.0.0/8", '),
        ("peer = 'x'", "exit.toml: peer: unknown key; "),
    ],
)
def test_the_same_for_the_exit(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        exit_peer(text)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"listen": "here"}, "--listen: 'here' lacks a port"),
        (
            {"wait_for_link": -1},
            "--wait-for-link: expected a number of seconds from 0 to 3600, got the integer -1",
        ),
        ({"peer": "cryprq://short@h:1"}, "--peer: a peer id has 52 characters"),
        ({"log_format": "xml"}, '--log-format: expected one of "text", "json", got a string'),
        ({"listen": "0.0.0.0:1080"}, "listening on 0.0.0.0:1080 lets other machines in"),
    ],
)
def test_an_error_names_the_flag(flags: Mapping[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        client_from("", Path("client.toml"), True, {"peer": f"cryprq://{ID}@exit.example:4433", **flags})
    assert str(caught.value).startswith(message)


def test_a_missing_peer_says_what_to_give() -> None:
    with pytest.raises(
        ConfigError,
        match=r"no exit is named: give --peer cryprq://PEERID@HOST:PORT, write .* or run cryprq-proxy join",
    ):
        load_client()


@pytest.mark.parametrize("key", ["listen", "admin"])
def test_a_port_alone_means_this_machine(key: str) -> None:
    expected = Destination("127.0.0.1", 2080)
    for read in (client(f"{key} = 2080"), client(f"{key} = '2080'"), client("", {key: "2080"})):
        assert getattr(read, key) == expected
    web = exit_peer("metrics = 9108\n[websocket]\nlisten = 8443")
    assert (web.metrics, web.websocket.listen) == (("127.0.0.1", 9108), ("127.0.0.1", 8443))


def test_a_port_alone_of_the_exit_means_all_addresses() -> None:
    everywhere = Destination("0.0.0.0", 4434)
    for read in (
        exit_peer("listen = 4434"),
        exit_peer("listen = '4434'"),
        exit_peer("", {"listen": ("4434",)}),
    ):
        assert read.listen == (everywhere,)
    both = exit_peer("listen = [4434, '[::1]:4434']")
    assert both.listen == (everywhere, Destination("::1", 4434))


def test_a_peer_without_a_port_has_the_usual_one() -> None:
    url = f"cryprq://{ID}@exit.example"
    assert parse_peer_url(url) == parse_peer_url(f"{url}:4433")


@pytest.mark.parametrize("listen", ["127.0.0.1:1080", "127.8.0.1:1080", "[::1]:1080", "localhost:1080"])
def test_loopback_needs_no_user(listen: str) -> None:
    assert client(f"listen = '{listen}'").credentials() is None


# --- addresses of peers and proxies ---


@pytest.mark.parametrize(
    "text",
    [
        "", "cryprq://", ID, f"{ID}@h:1", f"http://{ID}@h:1", f"cryprq:{ID}@h:1", f"cryprq://{ID}",
        f"cryprq://{ID}@", f"cryprq://{ID}@h:", f"cryprq://{ID}@h:0", f"cryprq://{ID}@h:x", f"cryprq://{ID}@h:65536",
        f"cryprq://{ID}@[::1:1", f"cryprq://{ID}@::1:1", f"cryprq://{ID[1:]}@h:1", f"cryprq://{ID[1:]}b@h:1",
        f"cryprq://{ID[1:]}1@h:1", f"cryprq://{ID}@h:1/x", f"cryprq://{ID}@h@h:1", f"cryprq://{ID}@h:1\n",
    ],
)  # fmt: skip
def test_what_is_no_peer_url(text: str) -> None:
    with pytest.raises(ConfigError):
        client_from("", Path("client.toml"), True, {"peer": text})


def test_an_invite_is_no_peer_and_its_secret_is_not_shown() -> None:
    secret = "abcdefghijklmnopqrstuvwxyz"
    for text in (f"cryprq://{ID}@192.0.2.1:4433#{secret}", f"cryprq:/{ID}#{secret}"):
        with pytest.raises(ConfigError, match="takes; a peer ends before the #") as refused:
            parse_peer_url(text)
        assert secret not in str(refused.value)


def test_peer_urls_have_spellings() -> None:
    expected = PeerUrl(PeerId(bytes(32)), Endpoint("tcp", Destination("exit.example", 4433)))
    assert parse_peer_url(f"CRYPRQ://{ID.upper()}@Exit.Example.:4433/") == expected


@pytest.mark.parametrize(
    "text",
    [
        "", "127.0.0.1:9050", "ftp://h:1", "http://h", "http://u%3A:p@h:1", "socks5://", "socks5://h", "socks5://h:0", "socks5://user@h:1",
        "socks5://:@h:1", "socks5://user:@h:1", "socks5://:password@h:1", "socks5://u:%ff@h:1",
        "socks5://u:" + "p" * 256 + "@h:1",
    ],
)  # fmt: skip
def test_what_is_no_upstream(text: str) -> None:
    with pytest.raises(ConfigError):
        client("", {"upstream": text})


def test_upstreams() -> None:
    assert parse_upstream("socks5://[::1]:9050") == UpstreamProxy(Destination("::1", 9050))
    assert parse_upstream("socks5h://u:p:q@h:1/") == UpstreamProxy(Destination("h", 1), "u", "p:q")
    assert parse_upstream("socks5://u%3A:p%40@h:1") == UpstreamProxy(Destination("h", 1), "u:", "p@")
    assert parse_upstream("http://u:p@h:3128") == UpstreamProxy(Destination("h", 3128), "u", "p", "http")


# --- secrets ---


def test_secrets_do_not_show() -> None:
    text = "user = 'alice:hunter2'\nupstream = 'socks5://me:hunter2@h:1'"
    assert "hunter2" not in repr(client(text))
    for wrong in ("user = 'hunter2'", "upstream = 'socks5://hunter2@h:1'", "listen = {x = 'hunter2'}"):
        with pytest.raises(ConfigError) as caught:
            client(wrong)
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("text", ["user = 'a:b'", "upstream = 'socks5://u:p@h:1'"])
def test_a_file_that_others_read_holds_no_password(tmp_path: Path, text: str) -> None:
    file = secret_file(tmp_path / "client.toml", PEER + text)
    load_client(file)
    file.chmod(0o604)
    with pytest.raises(ConfigError, match=f"others can read the configuration {file}, .*; run: chmod 600"):
        load_client(file)


def test_a_file_that_others_read_may_hold_the_rest(tmp_path: Path) -> None:
    file = tmp_path / "client.toml"
    file.write_text(PEER + "upstream = 'socks5://h:1'")
    file.chmod(0o644)
    assert load_client(file, {"user": "a:b"}).upstream is not None


def test_user_file(tmp_path: Path) -> None:
    file = secret_file(tmp_path / "user", "alice:s3cret\n")
    credentials = client(f"user_file = '{file}'\nlisten = '0.0.0.0:1080'").credentials()
    assert credentials is not None
    assert credentials.check(b"alice", b"s3cret")
    file.write_text("alice\n")
    with pytest.raises(ConfigError, match=f"{file}: .*NAME:PASSWORD"):
        read_user(file)
    file.chmod(0o644)
    with pytest.raises(ConfigError, match="others can read the user file"):
        read_user(file)
    file.unlink()
    with pytest.raises(ConfigError, match=r"the user file .* does not exist"):
        read_user(file)


def test_psk_file(tmp_path: Path) -> None:
    file = secret_file(tmp_path / "psk", bytes(range(32)).hex() + "\n")
    assert read_psk(file) == bytes(range(32))
    for wrong in ("", "00" * 31, "00" * 33, "zz" * 32, "00 " * 32):
        file.write_text(wrong)
        with pytest.raises(ConfigError, match="expected 64 hexadecimal digits"):
            read_psk(file)
    file.write_text("00" * 32)
    file.chmod(0o604)
    with pytest.raises(ConfigError, match=f"others can read the key file {file}, .*; run: chmod 600"):
        read_psk(file)


def test_odd_files_are_one_sentence(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "huge").write_bytes(b"#" * (MAX_LIST + 1))
    for name in ("fifo", "binary", "huge", ".", "missing", "nul\0"):
        with pytest.raises(ConfigError):
            load_client(tmp_path / name)
        with pytest.raises(ConfigError):
            read_peers(tmp_path / name)


def test_a_long_file_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "exit.toml"
    file.write_bytes(b"#" * MAX_FILE)
    load_exit(file)
    file.write_bytes(b"#" * (MAX_FILE + 1))
    with pytest.raises(ConfigError, match="is larger than 1 MiB"):
        load_exit(file)


# --- who is authorized, and default places ---


def test_authorized_peers_come_from_both_and_are_read_anew(tmp_path: Path) -> None:
    listed = tmp_path / "authorized"
    listed.write_text(f"# friends\n\n{OTHER_ID} laptop of Alice\n  {OTHER_ID}#again\n")
    (tmp_path / "exit.toml").write_text(f'allow = ["{ID}"]')
    read = load_exit(tmp_path / "exit.toml")
    assert read.peers().allowed.keys() == {PeerId(bytes(32)), PeerId(bytes(range(32)))}
    listed.write_text("")
    assert read.peers().allowed.keys() == {PeerId(bytes(32))}
    listed.write_text(f"{ID}\nnobody\n")
    with pytest.raises(ConfigError, match="authorized: line 2: a peer id has 52 characters"):
        read.peers()


def test_the_identity_is_beside_the_configuration(tmp_path: Path) -> None:
    """Root who names another user's configuration takes that user's keys with it."""
    (tmp_path / "client.toml").write_text(PEER)
    assert load_client(tmp_path / "client.toml").identity == tmp_path / "identity"
    assert load_client(tmp_path / "client.toml", {"identity": "/other"}).identity == Path("/other")
    assert load_exit().identity == config_dir() / "identity"


def test_a_revoked_peer_is_out_whatever_names_it(tmp_path: Path) -> None:
    (tmp_path / "authorized").write_text(f"{OTHER_ID} laptop\n")
    (tmp_path / "exit.toml").write_text(f'allow = ["{ID}"]')
    read = load_exit(tmp_path / "exit.toml")
    (tmp_path / "revoked").write_text(f"{OTHER_ID} old name\n{OTHER_ID}\n")
    assert read.peers()[:2] == ({PeerId(bytes(32)): ""}, {PeerId(bytes(range(32))): "laptop"})
    (tmp_path / "revoked").write_text(f"{ID}\n")
    assert read.peers()[:2] == ({PeerId(bytes(range(32))): "laptop"}, {PeerId(bytes(32)): ""})
    (tmp_path / "revoked").write_text("nonsense\n")
    with pytest.raises(ConfigError, match="revoked: line 1: a peer id has 52 characters"):
        read.peers()


def test_a_revoked_peer_is_out_without_a_list_too(tmp_path: Path) -> None:
    file = tmp_path / "exit.toml"
    file.write_text(f'allow = ["{ID}", "{OTHER_ID}"]')
    (tmp_path / "revoked").write_text(f"{ID} laptop\n")
    read = load_exit(file)
    assert read.authorized is None
    assert read.peers(authorized_file(file, read)) == (
        {PeerId(bytes(range(32))): ""},
        {PeerId(bytes(32)): ""},
        (),
    )


def test_a_named_list_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the list of authorized peers .* does not exist"):
        load_exit(None, {"authorized": str(tmp_path / "gone")}).peers()


def test_a_named_configuration_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the configuration .* does not exist"):
        load_exit(tmp_path / "exit.toml")
    assert load_exit() == exit_from("", config_dir() / "exit.toml", {})


def test_the_default_files_are_found() -> None:
    config_dir().mkdir(parents=True)
    (config_dir() / "client.toml").write_text(PEER + "keepalive = 33")
    (config_dir() / "exit.toml").write_text("keepalive = 44")
    assert load_client().keepalive == 33
    assert load_exit().keepalive == 44


# --- the examples ---


def uncommented(name: str) -> str:
    """The example with every key that it shows as a comment switched on."""
    return re.sub(r"^#(?=[a-z0-9_]+ = |\[\[)", "", (CONFIGS / name).read_text("utf-8"), flags=re.MULTILINE)


@functools.cache
def keys(kind: type[msgspec.Struct]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, hint in get_type_hints(kind).items():
        table = get_args(hint)[0] if get_origin(hint) is tuple and get_args(hint) else hint
        found[name] = keys(table) if isinstance(table, type) and issubclass(table, msgspec.Struct) else None
    return found


def shape(table: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a document; of [[tables]], those of the first."""
    found: dict[str, Any] = {}
    for name, value in table.items():
        each = value[0] if isinstance(value, list) and value and isinstance(value[0], dict) else value
        found[name] = shape(each) if isinstance(each, dict) else None
    return found


@pytest.mark.parametrize(("name", "kind"), [("client.toml", ClientConfig), ("exit.toml", ExitConfig)])
def test_the_examples_show_every_key(name: str, kind: type[msgspec.Struct]) -> None:
    assert shape(tomllib.loads(uncommented(name))) == keys(kind)


def test_the_examples_are_read_and_show_the_defaults() -> None:
    client_text = (CONFIGS / "client.toml").read_text("utf-8")
    assert client_from(client_text, Path("client.toml"), False, {}) == client()
    assert exit_peer((CONFIGS / "exit.toml").read_text("utf-8")) == exit_peer()
    placeful = {
        *("identity", "psk_file", "control_socket", "user", "upstream", "allow", "authorized"),
        *(
            "ca",
            "exit",
            "rule",
            "forward",
            "public",
            "advertise",
            "metrics",
            "metrics_token_file",
            "websocket",
        ),
    }
    shown = re.sub("^user_file = .*$", "", uncommented("client.toml"), flags=re.MULTILINE)
    # Without a pool the exit takes one that is free.
    exit_shown = re.sub("^pool[46] = .*$", "", uncommented("exit.toml"), flags=re.MULTILINE)
    for text, defaults in ((shown, client()), (exit_shown, exit_peer())):
        read = (client_from if defaults.__class__ is ClientConfig else _exit_with_privacy)(
            text, Path("x"), True, {}
        )
        for field in set(defaults.__struct_fields__) - placeful:
            assert getattr(read, field) == getattr(defaults, field), field


def _exit_with_privacy(text: str, source: Path, private: bool, flags: Mapping[str, object]) -> ExitConfig:
    return exit_from(text, source, flags)


@pytest.mark.parametrize("unit", ["cryprq-exit.service", "cryprq-proxy.service"])
def test_the_units_are_hardened(unit: str) -> None:
    text = (CONFIGS / unit).read_text("utf-8")
    for line in (
        "User=cryprq",
        "LimitCORE=0",
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "Restart=always",
    ):
        assert f"\n{line}\n" in text
    sections = re.findall(r"^\[(.*)\]$", text, re.MULTILINE)
    assert sections == ["Unit", "Service", "Install"]


# --- only documented exceptions ---

_scalars = st.none() | st.booleans() | st.integers(-10, 1 << 70) | st.floats() | st.text(max_size=30)
_strings = st.sampled_from(
    [
        f"cryprq://{ID}@h:1",
        "socks5://h:1",
        "0.0.0.0:1",
        "a:b",
        ID,
        "16 MiB",
        "auto",
        "debug",
        "json",
        "10.0.0.0/8",
    ]
)
_values = st.recursive(
    _scalars | _strings,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
)


def _documents(kind: type[msgspec.Struct]) -> st.SearchStrategy[dict[str, Any]]:
    names = st.sampled_from(sorted(keys(kind))) | st.text(max_size=9)
    return st.dictionaries(names, _values, max_size=4)


@given(_documents(ClientConfig))
def test_flags_raise_nothing_but_config_errors(flags: dict[str, Any]) -> None:
    known = {key: value for key, value in flags.items() if keys(ClientConfig).get(key, key) is None}
    with contextlib.suppress(ConfigError):
        assert isinstance(client("", known), ClientConfig)


@given(_documents(ClientConfig), _documents(ExitConfig))
def test_documents_raise_nothing_but_config_errors(first: dict[str, Any], second: dict[str, Any]) -> None:
    for kind, document in ((ClientConfig, first), (ExitConfig, second)):
        with contextlib.suppress(ConfigError):
            decode_table(kind, document, Path("f.toml"))


@given(st.text())
def test_texts_raise_nothing_but_config_errors(text: str) -> None:
    with contextlib.suppress(ConfigError):
        client_from(text, Path("client.toml"), True, {})
    with contextlib.suppress(ConfigError):
        parse_upstream(text)
    with contextlib.suppress(ConfigError):
        parse_upstream("socks5://" + text)


# --- several exits, and rules ---


def two_exits(more: str = "") -> str:
    return (
        f'[[exit]]\npeer = ["cryprq://{OTHER_ID}@a.example:1", "cryprq+wss://{OTHER_ID}@a.example/x"]\n'
        f'priority = 1\npsk_file = "a.psk"\n[[exit]]\nname = "b"\npeer = "cryprq://{THIRD_ID}@192.0.2.1:2"\n{more}'
    )


THIRD_ID = str(PeerId(bytes(range(1, 33))))


def test_one_exit_may_have_several_endpoints() -> None:
    (exit,) = client("", {"peer": (f"cryprq://{ID}@a.example:1", f"cryprq+wss://{ID}@a.example/x")}).exits()
    assert (exit.name, exit.peer_id) == ("a.example", PeerId(bytes(32)))
    assert [str(endpoint) for endpoint in exit.endpoints] == ["a.example:1", "wss://a.example/x"]


def test_exits_of_both_spellings_stand_beside_each_other() -> None:
    first, second, third = client(f'ca = "ca.pem"\npsk_file = "psk"\n{two_exits()}').exits()
    assert (first.name, first.priority, first.psk_file) == ("exit.example", 1, Path("psk"))
    assert (second.name, second.priority, second.psk_file) == ("a.example", 1, Path("a.psk"))
    assert (third.name, third.priority, third.psk_file) == ("b", 10, Path("psk"))
    assert len(second.endpoints) == 2 and third.ca == Path("ca.pem")


def test_several_peers_are_several_exits_in_their_order() -> None:
    exits = client(
        "", {"peer": (f"cryprq://{OTHER_ID}@[2001:db8::1]:1", f"cryprq://{ID}@b.example:1")}
    ).exits()
    assert [(exit.name, exit.priority) for exit in exits] == [("exit-1", 1), ("b.example", 2)]


def test_tables_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "MAX_TABLES", 3)
    rule = '[[rule]]\ndomains = "a.example"\nto = "block"\n'
    assert len(client(3 * rule).rule) == 3
    with pytest.raises(ConfigError, match="rule: expected at most 3 tables, got 4"):
        client(4 * rule)


def test_exits_and_their_endpoints_are_bounded() -> None:
    peers = [f"cryprq://{PeerId(number.to_bytes(32))}@192.0.2.{number}:1" for number in range(MAX_EXITS + 1)]
    assert len(client("", {"peer": peers[:-1]}).exits()) == MAX_EXITS
    with pytest.raises(ConfigError, match="there are 33 exits; at most 32 are allowed"):
        client("", {"peer": peers})
    endpoints = [f"cryprq://{ID}@192.0.2.{number}:1" for number in range(MAX_ENDPOINTS + 1)]
    assert len(client("", {"peer": endpoints[:-1]}).exits()[0].endpoints) == MAX_ENDPOINTS
    with pytest.raises(ConfigError, match=r"the exit 192\.0\.2\.0 has 9 addresses; at most 8 are allowed"):
        client("", {"peer": endpoints})


def test_a_peer_on_the_command_line_replaces_all_exits_of_the_file() -> None:
    exits = client(two_exits(), {"peer": (f"cryprq://{THIRD_ID}@c.example:1",)}).exits()
    assert [exit.name for exit in exits] == ["c.example"]


def test_exits_alone_are_enough() -> None:
    assert len(client_from(two_exits(), Path("x"), True, {}).exits()) == 2
    with pytest.raises(ConfigError, match="no exit is named: give --peer"):
        client_from("", Path("x"), True, {})


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (two_exits(f'[[exit]]\npeer = "cryprq://{ID}@c.example:1"\n'), "two exits are aaaa"),
        (
            f'[[exit]]\nname = "exit.example"\npeer = "cryprq://{OTHER_ID}@c.example:1"',
            "two exits are exit.example",
        ),
        (
            f'[[exit]]\npeer = ["cryprq://{OTHER_ID}@a.example:1", "cryprq://{THIRD_ID}@a.example:1"]',
            "exit[1]: peer has endpoints of one exit, with one id",
        ),
        ('[[exit]]\nname = "a"', "exit[1]: peer is missing"),
        ('[[exit]]\nname = "auto"\npeer = "x"', "exit[1].name: expected 1 to 60 letters"),
        ("exit = 1", "exit: expected tables, each under [[exit]], got the integer 1"),
        ("[exit]\npriority = 1", "exit: expected tables, each under [[exit]], got a table"),
        ('[[rule]]\nto = "exit:nowhere"\nports = [1]', 'rule 1: there is no exit called "nowhere"'),
        ('default = "exit:nowhere"', 'default: there is no exit called "nowhere"'),
        ('[[rule]]\nto = "direct"', "rule[1]: expected at least one of domains"),
        ("[[rule]]\nports = [1]", "rule[1]: to is missing"),
    ],
)
def test_exits_and_rules_that_make_no_sense(text: str, error: str) -> None:
    with pytest.raises(ConfigError) as raised:
        client(text)
    assert error in str(raised.value)


def test_rules_and_what_they_send_to_an_exit_by_name() -> None:
    read = client(
        'default = "block"\n[[rule]]\nto = "exit:exit.example"\nports = [22, "80-81"]\nlists = ["l"]'
    )
    (rule,) = read.rules()
    assert (str(rule.action), rule.ports, rule.lists) == (
        "exit:exit.example",
        ((22, 22), (80, 81)),
        (Path("l"),),
    )
    assert str(read.default) == "block"


def test_the_dashboard_and_the_second_entrance() -> None:
    assert client('admin = "off"').admin is None
    assert client().admin == Destination("127.0.0.1", 1081)
    web = exit_peer('metrics = "127.0.0.1:9108"\n[websocket]\nlisten = "[::1]:8443"\npath = "/a/b"').websocket
    assert (web.listen, web.path, web.forwarded) == (Destination("::1", 8443), "/a/b", False)
    with pytest.raises(ConfigError, match=r"websocket\.certificate and websocket.key belong together"):
        exit_peer('[websocket]\nkey = "k"')
    with pytest.raises(ConfigError, match=r"websocket\.path: expected a path like"):
        exit_peer('[websocket]\npath = "x?y"')
    for public in ("exit.example", "exit.example:1", "wss://exit.example/x"):
        assert exit_peer(f'public = "{public}"').public == public
    for public in ("", "http://exit.example", "exit.example:x", "wss://"):
        with pytest.raises(ConfigError, match="public: expected an address like"):
            exit_peer(f'public = "{public}"')


def test_proxies_that_name_their_clients() -> None:
    found = exit_peer('proxy_protocol = ["10.0.0.0/8", "192.0.2.1", "2001:db8::/32"]').proxy_protocol
    assert [str(network) for network in found] == ["10.0.0.0/8", "192.0.2.1/32", "2001:db8::/32"]
    assert exit_peer('proxy_protocol = "127.0.0.1"').proxy_protocol
    for wrong in ("10.0.0.1/8", "proxy.example", "", "fe80::1%eth0", "10.0.0.0/33"):
        with pytest.raises(ConfigError, match="proxy_protocol: "):
            exit_peer(f'proxy_protocol = ["{wrong}"]')
    with pytest.raises(ConfigError, match="proxy_protocol has 257 entries, more than 256"):
        exit_peer(f"proxy_protocol = {['192.0.2.1'] * 257}")


def test_where_this_exit_and_no_other_is_reached() -> None:
    assert exit_peer("").advertise is None
    for text, read in {
        "203.0.113.7:4433": Destination("203.0.113.7", 4433),
        "[2001:DB8::7]:443": Destination("2001:db8::7", 443),
        "127.0.0.1:1": Destination("127.0.0.1", 1),
        "10.0.0.7:65535": Destination("10.0.0.7", 65535),
    }.items():
        config = exit_peer(f'advertise = "{text}"')
        assert config.advertise == read
        assert exit_settings(config).advertise == read
    for wrong, sentence in {
        "exit.example:4433": "expected an address and a port like 203.0.113.7:4433, no name, got 'exit.example:4433'",
        "localhost:1": "no name",
        "203.0.113.7": "lacks a port",
        "203.0.113.7:0": "expected a port from 1 to 65535",
        "203.0.113.7:65536": "not a port",
        "2001:db8::7:443": "needs brackets",
        "": "",
        "off": "lacks a port",
        "0.0.0.0:4433": "nobody can dial '0.0.0.0:4433'",
        "[::]:4433": "nobody can dial",
        "255.255.255.255:1": "nobody can dial",
        "239.1.2.3:1": "nobody can dial",
        "[ff02::1]:1": "nobody can dial",
        "[::ffff:8.8.8.8]:1": "nobody can dial",
        "[fe80::1]:1": "nobody can dial",
        "[fe80::1%eth0]:1": "",
        "127.1:80": "",
    }.items():
        with pytest.raises(ConfigError, match=rf"advertise: .*{re.escape(sentence)}"):
            exit_peer(f'advertise = "{wrong}"')


def test_metrics_beyond_loopback_need_a_token(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="could be read by other machines: name a metrics_token_file"):
        exit_peer('metrics = "0.0.0.0:9108"')
    assert exit_peer('metrics = "[::1]:9108"').metrics_token() is None
    file = secret_file(tmp_path / "token", "0123456789abcdef\n")
    assert (
        exit_peer(f'metrics = "0.0.0.0:9108"\nmetrics_token_file = "{file}"').metrics_token()
        == "0123456789abcdef"
    )
    for text in ("", "short", "0123456789 abcdef", "0123456789\x00abcdef"):
        file.write_text(text)
        with pytest.raises(ConfigError, match="expected at least 16 characters"):
            exit_peer(f'metrics_token_file = "{file}"').metrics_token()


@pytest.mark.parametrize(("text", "what"), [(None, "gone"), ("", "empty"), ("\n", "empty")])
def test_a_file_that_was_there_is_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, what: str
) -> None:
    monkeypatch.setattr("cryprq_proxy.config.decode.config_dir", lambda: tmp_path)
    file = tmp_path / "client.toml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(
        ConfigError, match=rf"client\.toml is {what}; write it again, or run cryprq-proxy join"
    ):
        load_client(kept=True)
    assert load_client(None, {"peer": f"cryprq://{ID}@exit.example:4433"}, kept=True).peer
    with pytest.raises(ConfigError, match="no exit is named"):
        load_client()
