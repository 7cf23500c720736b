"""An exit with a network interface is replaced while a stream is open: what only one exit can have changes hands."""

from __future__ import annotations

import re
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

import pytest

from cryprq_proxy.base.leftovers import holder
from tests.support.applications import UdpApplication, read_exactly, request
from tests.support.lab.flows import lane_is
from tests.support.lab.hosts import EXIT4, EXIT6, SERVER4, SERVER6
from tests.support.lab.links import PORT
from tests.support.lab.net import LONG, until
from tests.support.lab.server import ECHO_PORT
from tests.support.lab.stage import Stage
from tun.settings import EXIT_JOURNAL

PROXY: Final = ("127.0.0.1", 1080)
DEVICE: Final = "cryprq-exit0"
TABLE: Final = "cryprq_exit"
PATIENCE: Final = 10.0
"""Seconds that the hand-over may take on a machine that is busy with other things."""


@contextmanager
def through_the_tunnel(stage: Stage) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A TCP connection by packets and not by the proxy: the client's end and the server's."""
    with stage.hosts.server.entered():
        listener = socket.create_server((SERVER4, 0))
    with closing(listener), closing(stage.socket(SERVER4)) as inner:
        inner.connect(listener.getsockname()[:2])
        far, (source, _) = listener.accept()
        far.settimeout(LONG)
        assert source == EXIT4
        with closing(far):
            yield inner, far


@pytest.mark.parametrize("flags", [(), ("--overlap",)], ids=["one process", "parent and child"])
def test_a_successor_starts_beside_an_exit_whose_stream_goes_on(
    flags: tuple[str, ...], namespaces: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with Stage(exit_settings={"shutdown_grace": 60}, exit_flags=flags) as stage:
        exit, old = stage.hosts.exit, stage.exit
        journal = Path(stage.links.directory) / "state-exit" / EXIT_JOURNAL

        def held() -> list[str]:
            """What the exit has of what there is only once."""
            with exit.entered():
                sign = holder("exit")
            found = {
                "device": f"{DEVICE}:" in exit.ip("link"),
                "table": TABLE in exit.run(["nft", "list", "tables"]),
                "journal": journal.exists() and bool(journal.read_bytes().strip()),
                "socket": sign is not None,
            }
            return [name for name, there in found.items() if there]

        assert len(held()) == 4
        with (
            stage.tunnel() as client,
            closing(stage.socket(SERVER4)) as sock,
            through_the_tunnel(stage) as (inner, far),
        ):
            sock.connect(PROXY)
            assert request(sock, 1, SERVER4, ECHO_PORT)[0] == 0

            def goes_on() -> bool:
                sock.sendall(b"still here")
                return read_exactly(sock, 10) == b"still here"

            assert goes_on() and stage.fetch(SERVER4) == EXIT4
            mark, begun = client.written, time.monotonic()
            old.process.send_signal(signal.SIGTERM)
            old.says("released: another exit can start here")
            if flags:
                assert old.process.wait(PATIENCE) == 0, "a service manager sees it end"
            released = time.monotonic() - begun
            assert held() == ["table", "journal"], (
                "until there is a successor, answers for clients are still dropped"
            )
            far.sendall(b"while there is no exit")
            assert goes_on()
            begun = time.monotonic()
            stage.exit = stage._start_exit()
            client.says("link up", since=mark)
            until(lambda: stage.fetches(SERVER4) == EXIT4, "packets go through the successor")
            back = time.monotonic() - begun
            assert stage.fetch(SERVER6) == EXIT6
            assert len(held()) == 4
            assert (old.process.poll() is None or flags) and goes_on()
            assert read_exactly(inner, 22) == b"while there is no exit"
            inner.sendall(b"and on")
            assert read_exactly(far, 6) == b"and on"
            with closing(stage.socket(SERVER4)) as new:
                new.connect(PROXY)
                assert request(new, 1, SERVER4, ECHO_PORT)[0] == 0
            sock.close()
            assert old.wait() == 0
            assert len(held()) == 4, "its end takes nothing from the successor"
            assert stage.fetch(SERVER4) == EXIT4
            assert stage.exit.stop() == 0
            assert held() == []
        with capsys.disabled():
            print(
                f"\nhand-over of the exit's network: released in {released:.2f} s; "
                f"packets {back:.2f} s after the start of the successor"
            )
        assert released < PATIENCE


DATAGRAMS: Final = 200
"""So many that probes for the size of the lane's path do not count beside them."""


def test_both_exits_have_a_lane_on_one_port(namespaces: None) -> None:
    """Datagrams of an association from before the restart, and of one from after it, pass as UDP on the network: none
    takes the carrier."""
    with Stage(exit_settings={"shutdown_grace": 60}, exit_flags=("--overlap",)) as stage:
        old, router = stage.exit, stage.hosts.router
        router.nft(
            "table inet count { chain f { type filter hook forward priority 0; "
            f"udp dport {PORT} meta length > 1000 counter; }}; }}"
        )

        def association() -> UdpApplication:
            with stage.client.entered():
                return UdpApplication(PROXY[1])

        def on_the_lane(udp: UdpApplication) -> int:
            """How many large datagrams of the lane have passed the router while `udp` was used."""
            before = passed()
            for number in range(DATAGRAMS):
                data = b"%d" % number + bytes(1000)
                udp.send(data, ECHO_PORT, SERVER4)
                assert udp.receive()[1] == data
            return passed() - before

        def passed() -> int:
            found = re.search(r"counter packets (\d+)", router.run(["nft", "list", "table", "inet", "count"]))
            assert found is not None
            return int(found[1])

        with stage.tunnel() as client:
            lane_is(stage.links, True)
            with closing(association()) as before:
                assert on_the_lane(before) >= DATAGRAMS
                mark = client.written
                old.process.send_signal(signal.SIGTERM)
                assert old.process.wait(PATIENCE) == 0
                stage.exit = stage._start_exit()
                client.says("link up", since=mark)
                lane_is(stage.links, True)
                with closing(association()) as after:
                    assert on_the_lane(before) >= DATAGRAMS
                    assert on_the_lane(after) >= DATAGRAMS
            with closing(association()) as after:
                assert on_the_lane(after) >= DATAGRAMS
