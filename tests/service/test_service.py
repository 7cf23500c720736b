"""Client and exit as processes: ready lines, signals, reload, restart, and what the control socket tells."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from cryprq_proxy.crypto.primitives import select_provider
from tests.support.pairs import Setup, echo, new_identity, proxy_port
from tests.support.processes import Program, call, echo_server, socks_connect


@pytest.fixture
def pair(tmp_path: Path) -> Setup:
    return Setup(tmp_path)


@pytest.fixture(scope="module")
def target() -> Iterator[int]:
    with echo_server() as port:
        yield port


@pytest.mark.process
def test_status_tells_of_a_running_pair(pair: Setup, target: int) -> None:
    with pair.exit() as exit, pair.client() as client:
        client.log.wait("link up")
        sock, reply = socks_connect(proxy_port(client), target)
        with sock:
            assert reply == 0
            echo(sock, b"hello")
            told = pair.status("client")
            session = told["session"]
            assert isinstance(session, dict)
            assert (told["role"], told["link"], told["peer_id"]) == ("client", "up", pair.client_id)
            assert told["exit"] == {"peer_id": pair.exit_id, "address": f"127.0.0.1:{pair.exit_port}"}
            assert told["provider"] == select_provider().name
            assert (session["streams"], session["epoch"]) == (1, 0)
            assert session["bytes_sent"] > 0 < session["bytes_received"]
            assert session["epoch_age"] >= 0 <= session["round_trip"]
            told = pair.status("exit")
            assert isinstance(told["sessions"], list)
            assert (told["role"], told["authorized"]) == ("exit", 1)
            assert [(s["peer_id"], s["link"]) for s in told["sessions"]] == [(pair.client_id, "up")]

            shown = call("status", "--config", str(pair.directory / "client.toml"))
            assert (shown.returncode, shown.stderr) == (0, "")
            for words in (
                "link",
                "up",
                pair.client_id,
                f"127.0.0.1 (127.0.0.1:{pair.exit_port})",
                "epoch",
                "cipher",
                "ML-KEM",
                "streams",
            ):
                assert words in shown.stdout
            shown = call("status", "--config", str(pair.directory / "exit.toml"))
            assert pair.exit_id in shown.stdout
            assert f"laptop ({pair.client_id[:8]}...)" in shown.stdout
        assert client.end() == 0
        exit.log.wait("link down: .* closed the link: normal")
        assert pair.status("exit")["sessions"] == []
        assert exit.end() == 0


@pytest.mark.process
def test_identities_on_first_use_and_default_places(own_directories: Path) -> None:
    with Program("exit", "--listen", "127.0.0.1:0") as exit:
        made = exit.log.wait("a new identity is in (.*): its peer id is ([a-z2-7]{52})")
        assert made[1] == str(own_directories / ".config/cryprq/identity")
        exit.log.wait("no peer is allowed yet")
        url = exit.log.wait(r"clients say --peer (cryprq://\S+)")[1]
        assert made[2] in url
        with Program("--listen", "127.0.0.1:0", "--peer", url, "--log-format", "json") as client:
            advice = json.loads(client.log.wait(".*peers add.*")[0])
            assert advice["level"] == "warning"
            assert made[2] in advice["message"]
            answers = call("status", "--json")
            assert answers.stdout.count('"role"') == 2
            assert client.end(signal.SIGINT) == 0
        assert exit.end(signal.SIGINT) == 0


@pytest.mark.process
def test_a_port_in_use_is_one_sentence(pair: Setup) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        peer = f"cryprq://{pair.exit_id}@127.0.0.1:1"
        key = str(pair.directory / "client.key")
        for arguments in (
            ("--listen", where, "--peer", peer, "--identity", key),
            ("exit", "--listen", "127.0.0.1:0", "--listen", where, "--allow", pair.client_id),
            ("demo", "--listen", where),
        ):
            done = call(*arguments)
            assert done.returncode == 1
            assert f"cryprq-proxy: {where} is in use by another program" in done.stderr.splitlines()[-1]
            assert "Traceback" not in done.stderr


@pytest.mark.process
def test_a_second_one_with_the_same_control_socket_is_refused(pair: Setup) -> None:
    with pair.exit() as exit:
        done = call("exit", "--config", str(pair.directory / "exit.toml"))
        assert done.returncode == 2
        assert "another cryprq-proxy is running" in done.stderr
        assert exit.end() == 0


@pytest.mark.process
def test_reload_lets_a_new_peer_in_and_a_removed_one_go(pair: Setup) -> None:
    guest = new_identity(pair.directory / "guest.key")
    with pair.exit() as exit, pair.client() as client, pair.client("guest") as late:
        client.log.wait("link up")
        late.log.wait(f"at the exit, run: cryprq-proxy peers add {guest} NAME")
        (pair.directory / "authorized").write_text("nonsense\n")
        exit.send(signal.SIGHUP)
        exit.log.wait("everything stays as it was: .*authorized: line 1: ")
        (pair.directory / "authorized").write_text(f"# only the guest\n{guest}\n")
        exit.send(signal.SIGHUP)
        exit.log.wait("reloaded: 1 peer allowed")
        client.log.wait("link down: .*not authorized")
        late.log.wait("link up")
        assert late.end() == 0
        assert client.end() == 0
        assert exit.end() == 0


@pytest.mark.process
def test_sigterm_lets_open_streams_end(pair: Setup, target: int) -> None:
    with pair.exit() as exit, pair.client() as client:
        client.log.wait("link up")
        sock, _ = socks_connect(proxy_port(client), target)
        with sock:
            exit.send(signal.SIGTERM)
            exit.log.wait("stopping: open streams have 30 s")
            client.log.wait("link to the exit .* left, .* 1 go on to their end")
            echo(sock, b"still here")
        assert exit.wait() == 0
        assert client.end() == 0


@pytest.mark.process
def test_a_second_signal_ends_open_streams(pair: Setup, target: int) -> None:
    with pair.exit() as exit, pair.client() as client:
        client.log.wait("link up")
        sock, _ = socks_connect(proxy_port(client), target)
        with sock:
            exit.send(signal.SIGTERM)
            exit.log.wait("stopping: ")
            assert exit.end() == 0
            exit.log.wait("stopping at once")
        assert client.end() == 0


@pytest.mark.process
def test_the_client_comes_back_to_a_restarted_exit(pair: Setup, target: int) -> None:
    with pair.exit() as exit, pair.client() as client:
        client.log.wait("link up")
        assert exit.end(signal.SIGKILL) == -signal.SIGKILL
        client.log.wait("link down")
        seen = len(client.log.lines)
        with pair.exit() as again:  # also over the control socket that nobody removed
            client.log.wait("link up", seen)
            sock, reply = socks_connect(proxy_port(client), target)
            with sock:
                assert reply == 0
                echo(sock, b"back")
            assert client.end() == 0
            assert again.end() == 0


@pytest.mark.process
def test_the_slow_provider_is_named_with_a_warning(pair: Setup) -> None:
    config = pair.directory / "slow.toml"
    config.write_text(
        f'identity = "client.key"\nlisten = "127.0.0.1:0"\ncontrol_socket = "s.sock"\nprovider = "pure"\n'
        f'peer = "cryprq://{pair.exit_id}@127.0.0.1:1"\n'
    )
    with Program("--config", str(config)) as client:
        client.log.wait("warning .*kyber-py.*not constant-time")
        client.log.wait("ready: ")
        assert pair.status("slow")["provider"] == "kyber-py + dilithium-py"
        assert pair.status("slow")["link"] == "down"
        assert client.end() == 0


@pytest.mark.process
def test_debug_and_json_flags_before_and_behind_the_command() -> None:
    for arguments in (("-v", "--log-format", "json", "exit"), ("exit", "-v", "--log-format", "json")):
        with Program(*arguments, "--listen", "127.0.0.1:0") as exit:
            ready = json.loads(exit.log.wait(".*ready: .*")[0])
            assert ready["level"] == "info"
            assert exit.end() == 0
