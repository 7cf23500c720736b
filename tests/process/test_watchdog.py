"""The watchdog is fed by progress: a part that has work and does none is stuck, and is named."""

from __future__ import annotations

import asyncio
import socket
import threading

import pytest

from cryprq_proxy.base.accept_loop import Acceptor
from cryprq_proxy.base.work import Work
from cryprq_proxy.exit.handshake_thread import HandshakeThread
from cryprq_proxy.process.sd_notify import Notifier
from cryprq_proxy.process.watchdog import Watchdog
from tests.support.notify_socket import NotifySocket


class Part:
    """One part with 30 s, and a watchdog that looks at it every 15 s of a virtual clock."""

    def __init__(self) -> None:
        self.done, self.waits, self.now = 0, True, 0.0
        self.watchdog = Watchdog(
            lambda: [Work("the rest", 0, False, 1.0), Work("the thread", self.done, self.waits, 30.0)],
            lambda: self.now,
        )

    def step(self, what: str) -> None:
        """15 s in which it "works", is "idle" or "stands" still."""
        self.now += 15.0
        self.done += what == "works"
        self.waits = what != "idle"


@pytest.mark.parametrize(
    ("steps", "stuck"),
    [
        ("stands stands stands stands", [False, False, True, True]),
        ("works works works works", [False] * 4),
        ("idle idle idle idle", [False] * 4),
        ("stands stands idle stands stands stands", [False] * 5 + [True]),
        ("stands stands works stands stands", [False] * 4 + [True]),
        ("stands stands stands works", [False, False, True, False]),
    ],
)
def test_only_work_that_stands_still_for_its_time_is_stuck(steps: str, stuck: list[bool]) -> None:
    part, found = Part(), []
    for step in steps.split():
        part.step(step)
        found.append(part.watchdog.stuck())
    assert found == ["the thread" if one else "" for one in stuck]


async def test_the_manager_hears_nothing_while_a_part_is_stuck(caplog: pytest.LogCaptureFixture) -> None:
    part = Part()
    with NotifySocket("@cryprq-test-watchdog") as manager:
        notifier = Notifier(manager.address, watchdog=60.0)
        notifier.ready(lambda: "", part.watchdog)
        manager.drain()
        heard = []
        for step in ("stands", "stands", "stands", "stands", "works"):
            part.step(step)
            notifier._feed_watchdog()
            heard.append(not manager.silent_for(0.001))
            manager.drain()
        notifier.close()
    assert heard == [True, True, False, False, True]
    assert [record.getMessage() for record in caplog.records] == [
        "the thread stands still although there is work: the service manager may start this program anew"
    ]


# --- the parts ---


async def test_a_listening_socket_that_lost_its_reader_has_work_and_does_none() -> None:
    loop = asyncio.get_running_loop()
    listener = socket.create_server(("127.0.0.1", 0))
    arrived: asyncio.Queue[socket.socket] = asyncio.Queue()
    acceptor = Acceptor(loop, listener, lambda sock, _: arrived.put_nowait(sock))
    acceptor.start()
    assert acceptor.work("x") == Work("x", 0, False, 30.0)
    loop.remove_reader(listener)
    with socket.create_connection(listener.getsockname()):
        assert acceptor.work("x") == Work("x", 0, True, 30.0)
        acceptor.stop()
        assert not acceptor.work("x").waits
        acceptor.start()
        (await asyncio.wait_for(arrived.get(), 20)).close()
        assert acceptor.work("x") == Work("x", 1, False, 30.0)
    acceptor.close()


async def test_a_step_of_a_handshake_that_hangs_has_work_and_does_none() -> None:
    thread, go_on = HandshakeThread(), threading.Event()
    assert thread.work()[1:3] == (0, False)
    step = thread.submit(go_on.wait)
    assert thread.work()[1:3] == (0, True)
    go_on.set()
    await asyncio.wait_for(step, 20)
    await asyncio.sleep(0)
    assert thread.work()[1:3] == (1, False)
    thread.close()
