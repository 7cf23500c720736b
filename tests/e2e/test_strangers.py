"""What strangers, broken clients and garbage get, at the exit and at the proxy port."""

from __future__ import annotations

import contextlib
import random
import socket
import subprocess
import time

import pytest

from cryprq_proxy.crypto.handshake import FIRST_SIZE
from cryprq_proxy.exit.flight_memory import RECENT
from tests.support.applications import connect, read_all, read_exactly, through
from tests.support.background import PATIENCE
from tests.support.programs import Client, Exit, World, until
from tests.support.strangers import first_flight, silence
from tests.support.targets import HttpTarget, TcpTarget

GARBAGE = random.Random(2)

# --- at the exit ---


def end(sock: socket.socket) -> None:
    """Say that nothing more comes, if the other side still listens."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize(
    "size", [0, 1, FIRST_SIZE.start - 1, FIRST_SIZE.start, FIRST_SIZE.stop - 1, FIRST_SIZE.stop, 65_535]
)
def test_random_flight(size: int, exit: Exit) -> None:
    mark = exit.written
    with connect(exit.port) as sock:
        sock.sendall(size.to_bytes(2) + GARBAGE.randbytes(size))
        silence(sock)
    exit.says("a handshake from 127.0.0.1 failed", since=mark)


def test_random_bytes(exit: Exit) -> None:
    with connect(exit.port) as sock:
        sock.sendall(b"\xff\xff" + GARBAGE.randbytes(100))
        silence(sock)


@pytest.mark.parametrize(
    "text", [b"GET / HTTP/1.1\r\n\r\n", b"SSH-2.0-x\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc"]
)
def test_other_protocols(text: bytes, exit: Exit) -> None:
    with connect(exit.port) as sock:
        sock.sendall(text)
        end(sock)
        silence(sock)


@pytest.mark.parametrize("kept", [1, 2, 3, 500, -1])
def test_truncated_first_flight(kept: int, exit: Exit) -> None:
    with connect(exit.port) as sock:
        sock.sendall(first_flight(exit.peer_id)[:kept])
        end(sock)
        silence(sock)


def test_changed_first_flight(exit: Exit) -> None:
    """Without its pre-shared knowledge, the exit's id, nobody gets an answer; nor with one bit wrong."""
    flight = bytearray(first_flight(exit.peer_id))
    flight[-1] ^= 1
    with connect(exit.port) as sock:
        sock.sendall(flight)
        silence(sock)


def test_replayed_first_flight(exit: Exit) -> None:
    flight = first_flight(exit.peer_id)
    mark = exit.written
    with connect(exit.port) as sock:
        sock.sendall(flight)
        assert sock.recv(1)
    with connect(exit.port) as sock:
        sock.sendall(flight)
        silence(sock)
    exit.says("replayed", since=mark)


def test_a_first_flight_that_was_recorded_before_a_crash(world: World) -> None:
    """The exit is killed and started again, and knows the flight."""
    exit = world.exit()
    flight = first_flight(exit.peer_id)
    with connect(exit.port) as sock:
        sock.sendall(flight)
        assert sock.recv(1)
    kept = world.directory / ".local/state/cryprq" / RECENT
    until(kept.exists, "the flight is on disk")
    exit.kill()
    exit = world.exit(port=exit.port)
    mark = exit.written
    with connect(exit.port) as sock:
        sock.sendall(flight)
        silence(sock)
    exit.says("replayed", since=mark)
    with connect(exit.port) as sock:
        sock.sendall(first_flight(exit.peer_id))
        assert sock.recv(1)


def test_garbage_after_the_second_flight(exit: Exit) -> None:
    mark = exit.written
    with connect(exit.port) as sock:
        sock.sendall(first_flight(exit.peer_id))
        read_exactly(sock, int.from_bytes(read_exactly(sock, 2)))
        sock.sendall((6_000).to_bytes(2) + GARBAGE.randbytes(6_000))
        silence(sock)
    exit.says("a handshake from 127.0.0.1 failed", since=mark)


def test_wrong_exit_id(world: World) -> None:
    """The exit stays silent towards a client that looks for another exit, and the client says so."""
    exit = world.exit()
    client = world.client((world.identity("another")[1], exit.port), {"wait_for_link": 0}, wait=False)
    client.says("no link to 127.0.0.1")
    exit.says("a handshake from 127.0.0.1 failed")
    assert not client.up
    assert not exit.sessions


def test_impostor(world: World) -> None:
    """As above, with the pinned exit's address taken over by one that says nothing at all."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)
        port = listener.getsockname()[1]
        client = world.client((world.identity("exit")[1], port), {"wait_for_link": 0}, wait=False)
        with listener.accept()[0] as sock:
            sock.settimeout(PATIENCE)
            read_exactly(sock, 2)
            sock.sendall(GARBAGE.randbytes(10_000))
        client.says("no link to 127.0.0.1")


def test_unlisted_peer(world: World, echo_target: TcpTarget) -> None:
    """The client is told what to do, the exit logs who it was, and SIGHUP lets it in."""
    authorized = world.directory / "authorized"
    authorized.write_text("")
    exit = world.exit({"authorized": str(authorized)}, clients=())
    client = world.client(exit, wait=False)
    peer_id = world.identity("client")[1]
    client.says(f"not authorized - at the exit, run: cryprq-proxy peers add {peer_id} NAME")
    exit.says(f"refused {peer_id} from 127.0.0.1")
    assert not exit.sessions
    authorized.write_text(f"{peer_id} a remark\n")
    exit.reload()
    client.wait_up()
    with through(client.port, echo_target.port) as sock:
        mark = client.written
        authorized.write_text("# nobody\n")
        exit.reload()
        client.says("link down.*not authorized", since=mark)
        with pytest.raises(ConnectionResetError):
            sock.sendall(b"x")
            sock.recv(1)
    assert not exit.sessions


def test_wrong_psk(world: World) -> None:
    files = []
    for name in ("a", "b"):
        files.append(world.directory / f"psk-{name}")
        files[-1].write_text(name * 64)
        files[-1].chmod(0o600)
    exit = world.exit({"psk_file": str(files[0])})
    client = world.client(exit, {"psk_file": str(files[1]), "wait_for_link": 0}, wait=False)
    client.says("no link to 127.0.0.1")
    exit.says("a handshake from 127.0.0.1 failed")
    assert client.stop() == 0
    world.client(exit, {"psk_file": str(files[0])})


def test_handshakes_in_flight_are_bounded(world: World) -> None:
    """Of more than that some are closed, and silent connections do not count."""
    exit = world.exit({"limits": {"handshakes_in_flight": 4, "handshakes_per_minute": 100_000}})
    silent = [connect(exit.port) for _ in range(100)]
    begun = [connect(exit.port) for _ in range(20)]
    for sock in begun:
        sock.sendall(first_flight(exit.peer_id))
    until(lambda: exit.status()["refused"].get("too_many", 0) >= 16, "all but four were closed")
    assert exit.status()["handshakes"] <= 4
    assert exit.status()["strangers"] == 100
    for sock in begun:
        sock.close()
    world.client(exit)
    for sock in silent:
        sock.close()
    until(lambda: exit.status()["strangers"] == 0, "all strangers have gone")


def test_handshakes_of_an_address_are_bounded(world: World) -> None:
    exit = world.exit({"limits": {"handshakes_per_minute": 2}})
    for _ in range(2):
        with connect(exit.port) as sock:
            sock.sendall(first_flight(exit.peer_id))
            assert sock.recv(1)
    until(lambda: exit.status()["handshakes"] == 0, "all handshakes have ended")
    with connect(exit.port) as sock:
        silence(sock)


def test_strangers_do_not_disturb(world: World, http: HttpTarget) -> None:
    """A flood of bad handshakes, while a client works."""
    exit, client = world.pair()
    with through(client.port, http.port) as sock:
        for _ in range(200):
            with connect(exit.port) as stranger:
                stranger.sendall((1_300).to_bytes(2) + GARBAGE.randbytes(1_300))
        sock.sendall(b"GET /hello HTTP/1.0\r\n\r\n")
        assert read_all(sock).endswith(b"hello\n")
    assert "link down" not in client.log
    until(lambda: exit.status()["handshakes"] == 0, "all handshakes have ended")


# --- at the proxy port ---


@pytest.fixture(scope="module")
def hasty(shared_world: World, pair: tuple[Exit, Client]) -> Client:
    """A client that gives applications half a second to say what they want."""
    return shared_world.client(pair[0], {"negotiation_timeout": 0.5})


@pytest.mark.parametrize(
    "data",
    [
        b"\x00", b"\xff" * 100, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"hello\r\n\r\n",
        b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x00" * 200_000,
    ],
)  # fmt: skip
def test_garbage(data: bytes, client: Client) -> None:
    """What is no SOCKS is answered as bad HTTP."""
    with connect(client.port) as sock:
        try:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            answer = read_all(sock)
        except (ConnectionResetError, BrokenPipeError):
            answer = b""
    assert not answer or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 5"))


@pytest.mark.parametrize(
    ("data", "reply"),
    [
        (b"\x05\x00", b"\x05\xff"),
        (b"\x05\x01\x01", b"\x05\xff"),
        (b"\x05\x01\x00\x05\x01\x00\x09", b"\x05\x00\x05\x08"),
        (b"\x05\x01\x00\x05\x09\x00\x01\x7f\x00\x00\x01\x00\x50", b"\x05\x00\x05\x07"),
        (b"\x05\x01\x00\x04\x01\x00\x01\x7f\x00\x00\x01\x00\x50", b"\x05\x00\x05\x01"),
        (b"\x05\x01\x00\x05\x01\x00\x03\x00\x00\x50", b"\x05\x00\x05"),
        (b"\x04\x09\x00\x50\x7f\x00\x00\x01\x00", b"\x00\x5b"),
    ],
)
def test_bad_socks(data: bytes, reply: bytes, client: Client) -> None:
    with connect(client.port) as sock:
        sock.sendall(data)
        assert read_all(sock).startswith(reply)


def test_origin_form(client: Client, http: HttpTarget) -> None:
    """A web page that reaches for the port gets 400, whatever it says in Host."""
    seen = len(http.seen)
    with connect(client.port) as sock:
        sock.sendall(b"GET /hello HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nConnection: close\r\n\r\n" % http.port)
        assert read_all(sock).startswith(b"HTTP/1.1 400 ")
    assert len(http.seen) == seen


@pytest.mark.parametrize(
    "start", [b"", b"\x05", b"\x04", b"\x05\x01\x00", b"\x05\x01\x00\x05\x01", b"G", b"GET http:"]
)
def test_slow_application(start: bytes, hasty: Client) -> None:
    """It says something, and then nothing more: the connection ends within a short time."""
    began = time.monotonic()
    with connect(hasty.port) as sock:
        sock.sendall(start)
        answer = read_all(sock)
    assert time.monotonic() - began < 10, "the default, which this client does not use"
    assert not answer or answer.startswith((b"\x05\x00", b"HTTP/1.1 408 "))


def test_one_byte_after_another(hasty: Client) -> None:
    """Each byte comes in good time, all of them do not."""
    began = time.monotonic()
    with connect(hasty.port) as sock:
        sock.settimeout(0.1)
        for byte in b"GET http://127.0.0.1/" * 100:
            try:
                sock.send(bytes((byte,)))
                if not sock.recv(1_000):
                    break
            except TimeoutError:
                continue
            except OSError:
                break
    assert time.monotonic() - began < PATIENCE, "two thousand bytes at this pace would take longer"


def test_port_is_taken(world: World) -> None:
    """One sentence and exit code 1, no traceback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listen = f"127.0.0.1:{listener.getsockname()[1]}"
        done = subprocess.run(
            world.command("--peer", f"cryprq://{world.identity('exit')[1]}@127.0.0.1:9", "--listen", listen),
            env=world.environment, capture_output=True, text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"cryprq-proxy: {listen} is in use")
    assert "Traceback" not in done.stderr
