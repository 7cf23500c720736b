"""An exit takes other limits and a renewed certificate over at a SIGHUP; what is open goes on."""

from __future__ import annotations

import shutil
import signal

import pytest

from cryprq_proxy.address import Destination
from cryprq_proxy.process.control import query
from tests.support.applications import Refused, read_exactly, through
from tests.support.programs import Exit, World, free_port, until
from tests.support.targets import TcpTarget
from tests.support.web_links import make_certificates, serial_of, serial_shown


def test_other_limits_are_for_what_comes(world: World, echo_target: TcpTarget) -> None:
    exit = world.exit()
    client = world.client(exit, {"connect": "exact"})
    file = world.directory / f"{exit.name}.toml"
    text = file.read_text()

    def with_streams(number: int) -> None:
        assert text.count("[limits]\n") == 1
        file.write_text(text.replace("[limits]\n", f"[limits]\nstreams_per_peer = {number}\n"))
        query(exit.control, "reload")

    with through(client.port, echo_target.port) as first, through(client.port, echo_target.port) as second:
        with_streams(2)
        exit.says("reloaded: 1 peer allowed, other limits$")
        with pytest.raises(Refused):
            through(client.port, echo_target.port)
        with_streams(1)
        for old in (first, second):
            old.sendall(b"still here")
            assert read_exactly(old, 10) == b"still here"
        with_streams(3)
        with through(client.port, echo_target.port) as third:
            third.sendall(b"hello")
            assert read_exactly(third, 5) == b"hello"


def failed(exit: Exit) -> str:
    """What the log says about a SIGHUP that changes no certificate."""
    mark = exit.written
    exit.process.send_signal(signal.SIGHUP)
    return exit.says("the certificate stays the one it was: .*", since=mark).group()


def test_a_renewed_certificate_is_shown_to_who_comes(world: World, echo_target: TcpTarget) -> None:
    web = Destination("127.0.0.1", free_port())
    ca, certificate, key = make_certificates(world.directory)
    (other := world.directory / "other").mkdir()
    other_ca, *renewed = make_certificates(other)
    with ca.open("ab") as file:
        file.write(other_ca.read_bytes())
    tls = {"listen": str(web), "path": "/link", "certificate": str(certificate), "key": str(key)}
    exit = world.exit({"websocket": tls})
    exit.may_complain = True
    peer = f"cryprq+wss://{exit.peer_id}@{web}/link"
    client = world.client(None, {"peer": peer, "ca": str(ca)})
    old = serial_of(certificate)
    with through(client.port, echo_target.port) as stream:
        shutil.copyfile(renewed[0], certificate)
        said = failed(exit)
        assert f"the key {key} does not belong to the certificate {certificate}; " in said
        assert "mend certificate and key in [websocket]" in said
        assert serial_shown(web) == old
        shutil.copyfile(renewed[1], key)
        exit.reload()
        assert serial_shown(web) == serial_of(renewed[0]) != old
        stream.sendall(b"still here")
        assert read_exactly(stream, 10) == b"still here"
        assert exit.log.count("link up: ") == 1 and "link resumed" not in exit.log
    late = world.client(None, {"peer": peer, "ca": str(ca)})
    with through(late.port, echo_target.port) as stream:
        stream.sendall(b"hello")
        assert read_exactly(stream, 5) == b"hello"
    until(lambda: len(exit.sessions) == 2, "both clients are there")
