"""Faults of this program where a carrier ends or begins: there is a new link soon, and the exit keeps nothing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from cryprq_proxy.base import linger
from cryprq_proxy.carriers.carrier import Carrier
from cryprq_proxy.carriers.dial import tcp as dial_tcp
from cryprq_proxy.carriers.tcp import TcpCarrier
from cryprq_proxy.carriers.websocket import WebSocketCarrier, WebSocketPipe
from cryprq_proxy.client.client import Client
from cryprq_proxy.client.endpoints import Endpoints
from cryprq_proxy.client.kept_session import KeptSession
from cryprq_proxy.client.link import ClientLink
from cryprq_proxy.client.path_opening import PathOpener
from cryprq_proxy.errors import CarrierFault, CloseReason, PeerError, StreamReason, StreamRefused
from cryprq_proxy.exit.exit import Exit
from cryprq_proxy.exit.peer_session import PeerSession
from cryprq_proxy.exit.sessions import Sessions
from cryprq_proxy.exit.ticket_book import TicketBook
from cryprq_proxy.session.path import SessionPath
from cryprq_proxy.session.session import Session
from cryprq_proxy.session.wire import StreamProtocol
from tests.support.links import App
from tests.support.settle import settle, until
from tests.support.web_links import Place, lose_paths


class Planted:
    """`owner.name` raises the next `times` calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, times: int = 1) -> None:
        self.left = times
        original = getattr(owner, name)

        def faulty(*args: Any, **options: Any) -> Any:
            if self.left:
                self.left -= 1
                raise ZeroDivisionError(name)
            return original(*args, **options)

        monkeypatch.setattr(owner, name, faulty)


def leave(here: Place, client: Client) -> None:
    """The client leaves its carrier."""
    lose_paths(client)


def lose(here: Place, client: Client) -> None:
    """The exit leaves its carrier."""
    for entry in here.exit.sessions:
        assert entry.carrier is not None
        entry.carrier.drop()


def close(here: Place, client: Client) -> None:
    """The exit ends the session."""
    for entry in here.exit.sessions:
        here.exit.sessions.end(entry, CloseReason.NORMAL)


def break_rules(here: Place, client: Client) -> None:
    """The client finds that the exit has broken the protocol."""
    fail(client, PeerError(CloseReason.PROTOCOL, "broken"))


def fail(client: Client, error: PeerError) -> None:
    """The link ends for this reason."""
    session = client._kept.session
    assert session is not None
    client._link._fail(session.session_id, error)


def assert_bounded(here: Place) -> None:
    """Each session of the exit has a carrier, or ends at a certain time."""
    for entry in here.exit.sessions:
        carried = entry.carrier is not None and entry.carrier.open
        assert carried or (entry.expiry is not None and not entry.expiry.cancelled())


async def until_it_echoes(here: Place, client: Client) -> None:
    """The exit may meet its fault when the client's link seems to be up."""
    while True:
        with suppress(StreamRefused):
            assert await here.echoes(client)
            return


async def assert_heals(
    here: Place, client: Client, planted: Planted, caplog: pytest.LogCaptureFixture, faults: int = 1
) -> None:
    await until(lambda: not planted.left)
    await until(lambda: client.up and client.status().carriers > 1)
    await until_it_echoes(here, client)
    assert_bounded(here)
    logged = [record.exc_info[0] for record in caplog.records if record.exc_info]
    assert logged == [ZeroDivisionError] * faults


ENDS = [
    (Client, "link_down"),
    (KeptSession, "carrier_lost"),
    (ClientLink, "carrier_lost"),
    (SessionPath, "lost"),
    (Session, "path_lost"),
    (Carrier, "_last_record"),
    (PeerSession, "carrier_lost"),
    (Sessions, "carrier_lost"),
    (Sessions, "keep_detached"),
]


@pytest.mark.parametrize("kind", ["tcp", "ws"])
@pytest.mark.parametrize("cause", [leave, lose])
@pytest.mark.parametrize(("owner", "name"), [*ENDS, (TcpCarrier, "_finish")])
async def test_a_fault_where_a_carrier_ends(
    here: Place,
    kind: Any,
    cause: Callable[[Place, Client], None],
    owner: type,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """There was no link any more, and the process went on."""
    if owner is TcpCarrier and kind == "ws":
        owner = WebSocketCarrier
    client = here.client(here.endpoint(kind))
    await until(lambda: client.up)
    planted = Planted(monkeypatch, owner, name)
    cause(here, client)
    await assert_heals(here, client, planted, caplog)


@pytest.mark.parametrize(
    ("owner", "name"), [(Session, "close"), (SessionPath, "fill"), (Sessions, "_forget")]
)
async def test_a_fault_where_a_session_ends(
    here: Place, owner: type, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client = here.client(here.endpoint("tcp"))
    await until(lambda: client.up)
    planted = Planted(monkeypatch, owner, name)
    break_rules(here, client)
    await assert_heals(here, client, planted, caplog)


BEGINS = [
    (Client, "link_up"),
    (KeptSession, "attach"),
    (KeptSession, "take_path"),
    (ClientLink, "connect"),
    (ClientLink, "path_up"),
    (Endpoints, "worked"),
    (Session, "attach"),
    (TcpCarrier, "start"),
    (TcpCarrier, "__init__"),
    (dial_tcp, "_start"),
    (Exit, "_attach"),
    (Sessions, "keep_detached"),
    (SessionPath, "announce"),
]
OF_A_TICKET = [
    (PathOpener, "_short_handshakes"),
    (TicketBook, "advance"),
]
OF_A_SIGNED_CLAIM = [
    (KeptSession, "signed"),
    (PathOpener, "_handshake"),
    (PathOpener, "_claim"),
    (Sessions, "by_id"),
]


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize(
    ("owner", "name", "signed"),
    [
        *((*place, False) for place in BEGINS + OF_A_TICKET),
        *((*place, True) for place in BEGINS + OF_A_SIGNED_CLAIM),
    ],
)
async def test_a_fault_where_a_carrier_begins(
    here: Place,
    owner: Any,
    name: str,
    signed: bool,
    times: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The client ended with a traceback."""
    client = here.client(here.endpoint("tcp"))
    await until(lambda: client.up)
    planted = Planted(monkeypatch, owner, name, times)
    here.exit._settings = replace(here.exit._settings, advertise=here.tcp)
    client._kept.sign_next = signed
    leave(here, client)
    await assert_heals(here, client, planted, caplog, times)


@pytest.mark.parametrize(
    ("owner", "name"), [(TicketBook, "find"), (PathOpener, "_accepted"), (PathOpener, "_send_third")]
)
async def test_a_fault_of_a_ticket_is_followed_by_a_signed_claim(
    here: Place, owner: type, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The client signs, and keeps its session."""
    client = here.client(here.endpoint("tcp"))
    await until(lambda: client.up)
    session = client._kept.session
    planted = Planted(monkeypatch, owner, name)
    leave(here, client)
    await assert_heals(here, client, planted, caplog)
    assert client._kept.session is session


async def test_a_session_of_the_exit_that_cannot_begin_is_forgotten(
    here: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    planted = Planted(monkeypatch, Sessions, "keep_detached")
    client = here.client(here.endpoint("tcp"))
    await until(lambda: client.up)
    assert not planted.left and len(list(here.exit.sessions)) == 1
    assert_bounded(here)


async def test_a_fault_in_one_request_that_waited_leaves_the_others(here: Place) -> None:
    def fail(stream: object) -> None:
        raise ZeroDivisionError

    client = here.client(here.endpoint("tcp"))
    bad, good = App(), App()
    client.request(StreamProtocol.TCP, here.echo, bad, fail)
    client.request(StreamProtocol.TCP, here.echo, good, lambda stream: None)
    assert client.status().waiting == 2
    await until(lambda: ("opened",) in good.events)
    assert bad.events == [("reset", StreamReason.GENERAL)]
    assert client.status().carriers == client.open_streams == 1


async def test_a_fault_that_stays_is_met_with_the_backoff(
    here: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = here.client(here.endpoint("tcp"))
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        await settle(1)

    client._link._rest._pause = pause
    planted = Planted(monkeypatch, PathOpener, "_handshake", 6)
    await until(lambda: client.up)
    assert not planted.left and len(pauses) == 6
    assert all(after > before for before, after in pairwise(pauses[:5]))


async def test_a_fault_after_some_bytes_is_no_reason_for_haste(here: Place) -> None:
    client = here.client(here.endpoint("tcp"))
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        await settle(1)

    client._link._rest._pause = pause
    await until(lambda: client.up)
    assert await here.echoes(client)
    fail(client, CarrierFault())
    await until(lambda: client.up)
    assert len(pauses) == 1


async def test_a_websocket_whose_end_fails_is_cut(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    client = here.client(here.endpoint("ws"))
    await until(lambda: client.up)
    planted = Planted(monkeypatch, WebSocketPipe, "finish")
    leave(here, client)
    assert not planted.left
    await until(lambda: client.up and client.status().carriers > 1)


@pytest.mark.parametrize("name", ["_write", "_read"])
async def test_a_fault_in_a_farewell_closes_the_connection(
    here: Place, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client = here.client(here.endpoint("tcp"))
    await until(lambda: client.up)
    planted = Planted(monkeypatch, linger.Farewell, name)
    close(here, client)
    await assert_heals(here, client, planted, caplog)
