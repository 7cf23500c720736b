"""Without a free descriptor, with real sockets: each attempt is a failure of its own, and the next one works."""

from __future__ import annotations

import asyncio
import errno
import logging
import resource
import socket

import pytest

from cryprq_proxy.address import Destination
from cryprq_proxy.base import descriptors, leftovers
from cryprq_proxy.base.descriptors import RESERVE, Shortage, SpareDescriptor
from cryprq_proxy.carriers.dial.connect import Dialling
from cryprq_proxy.carriers.dial.dial import dial
from cryprq_proxy.carriers.dial.endpoint import CarrierKind, Endpoint
from cryprq_proxy.client.own_listeners import DirectPolicy
from cryprq_proxy.errors import CarrierError, StreamReason
from cryprq_proxy.outbound.dialer import connect_literal
from cryprq_proxy.outbound.udp_association import UdpAssociation
from cryprq_proxy.outbound.waiting_datagrams import HeldBytes
from cryprq_proxy.session.turns import TurnBudget
from tests.support.descriptors import no_free_descriptor

HERE = Destination("127.0.0.1", 9)


@pytest.mark.parametrize("carrier", ["tcp", "ws", "wss"])
async def test_a_dial_fails(carrier: CarrierKind) -> None:
    with no_free_descriptor(), pytest.raises(CarrierError, match="too many open files"):
        await dial(Endpoint(carrier, HERE, "/"), Dialling())


async def test_a_target_is_refused_with_the_reason() -> None:
    reasons: list[StreamReason | None] = []
    with no_free_descriptor():
        connect_literal(asyncio.get_running_loop(), *HERE, lambda _, reason: reasons.append(reason))
    assert reasons == [StreamReason.EXHAUSTED]


class Everywhere:
    def check_name(self, name: str, port: int) -> bool:
        return True

    def check_address(self, ip: str, port: int, name: str | None = None) -> bool:
        return True


class NoNames:
    async def resolve(self, name: str) -> list[str]:
        return []

    def remembered(self, name: str) -> list[str] | None:
        return None


async def test_a_datagram_is_lost_and_the_next_one_is_not() -> None:
    loop = asyncio.get_running_loop()
    association = UdpAssociation(
        loop,
        lambda *_: None,
        lambda _: None,
        Everywhere(),
        NoNames(),
        HeldBytes(),
        TurnBudget(loop.call_soon),
    )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as host:
        host.setblocking(False)
        host.bind(("127.0.0.1", 0))
        target = Destination(*host.getsockname())
        with no_free_descriptor():
            association.datagram_received(target, b"lost")
        association.datagram_received(target, b"found")
        assert await asyncio.wait_for(loop.sock_recv(host, 100), 20) == b"found"
    association.reset(StreamReason.CANCELLED)


def test_nobody_is_seen_to_live_and_no_error_leaves() -> None:
    """A client asks this whenever it has no link; the error had ended it."""
    with no_free_descriptor():
        assert leftovers.holder("client") is None
        assert leftovers.left_by_client() == ""


def test_the_proxy_is_not_reached_through_itself() -> None:
    """An address that cannot be looked at counts as this machine's."""
    policy = DirectPolicy()
    policy.listening.append(Destination("0.0.0.0", 1080))
    assert policy.check_address("192.0.2.1", 1080)
    with no_free_descriptor():
        assert not policy.check_address("192.0.2.1", 1080)
        assert policy.check_address("192.0.2.1", 80)


def test_a_spare_descriptor_is_free_for_the_next_call() -> None:
    spare = SpareDescriptor()
    with no_free_descriptor():
        with pytest.raises(OSError, match=r"[Tt]oo many open files"):
            socket.socket()
        spare.release()
        sock = socket.socket()
        spare.keep()
        assert spare._held < 0
        sock.close()
        spare.keep()
        assert spare._held >= 0
    spare.release()


def test_one_line_a_minute_says_how_many_attempts_failed(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    shortage = Shortage(lambda: now)
    with caplog.at_level(logging.WARNING):
        for second in range(0, 121, 10):
            now = float(second)
            shortage.note(OSError(errno.EMFILE, "Too many open files"))
    assert ["other failures" in line for line in caplog.messages] == [False, True, True]
    assert caplog.messages[1].endswith("; 5 other failures were not logged")


@pytest.mark.parametrize(
    ("limit", "streams", "applications"),
    [(64, 16, 16), (1_024, 384, 384), (20_000, 9_872, 8_686), (resource.RLIM_INFINITY, 524_160, 458_688)],
)
def test_what_a_limit_allows(
    limit: int, streams: int, applications: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    assert (descriptors.for_streams(), descriptors.for_applications()) == (streams, applications)
    assert limit == 64 or streams + RESERVE <= descriptors.limit() // 2
    assert limit == 64 or 2 * applications + descriptors.for_direct() + RESERVE <= descriptors.limit()
