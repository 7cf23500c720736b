"""The long line's benchmark: what its load generator takes for an answer, and once all of it together."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))
import wan_changes  # noqa: E402
import wan_clock  # noqa: E402
import wan_load  # noqa: E402
from hosts import CLIENT, Wire  # noqa: E402
from line import LIMIT  # noqa: E402
from wan import Bench  # noqa: E402
from wan_changes import black_outs, forgotten  # noqa: E402
from wan_groups import limit_of  # noqa: E402
from wan_proxies import MOVED, CryprqProxy, Proxy, Result  # noqa: E402
from wan_tests import cold_starts, loaded  # noqa: E402

from tests.support.lab.net import Lab, missing  # noqa: E402

Serve = Callable[[str], bytes]


def right(name: str) -> bytes:
    body = wan_load.content(name)
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def measured(
    test: Callable[[argparse.Namespace], Awaitable[wan_load.Result]],
    serve: Serve,
    socks: bytes | None = None,
    ends: bool = False,
    **more: object,
) -> tuple[wan_load.Result, list[str]]:
    """The test's result against such a server, and what was asked for on each connection; with `socks`, the server is
    a proxy too and answers a SOCKS request with that; with `ends`, it ends a connection after an answer."""
    asked: list[str] = []

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        names: list[str] = []
        try:
            if socks is not None:
                assert await reader.readexactly(3) == b"\x05\x01\x00"
                writer.write(b"\x05\x00")
                assert await reader.readexactly(10) == b"\x05\x01\x00\x01\x01\x02\x03\x04\x00\x50"
                writer.write(socks)
            while not (ends and names):
                names.append((await reader.readuntil(b"\r\n\r\n")).decode().split()[1][1:])
                writer.write(serve(names[-1]))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()
        asked.append(" ".join(names))

    async def run() -> wan_load.Result:
        server = await asyncio.start_server(connection, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        options = {"downloads": 0, "count": 3, "workers": 2, "kept": False, "warm": 0.0}
        target = ("127.0.0.1", port) if socks is None else ("1.2.3.4", 80)
        places = {"server": target, "proxy": 0 if socks is None else port}
        try:
            return await test(argparse.Namespace(**{**options, **places, **more}))
        finally:
            server.close()
            await server.wait_closed()

    return asyncio.run(run()), asked


def test_a_page_is_an_object_on_each_connection() -> None:
    result, asked = measured(wan_load.page, right, count=8)
    assert sorted(asked) == [f"20000-{number}" for number in range(8)]
    assert isinstance(result["page"], float)


@pytest.mark.parametrize("kept", [False, True])
def test_requests_are_counted_on_fresh_and_on_kept_connections(kept: bool) -> None:
    result, asked = measured(wan_load.requests, right, kept=kept, count=5)
    assert isinstance(result["times"], list)
    assert len(result["times"]) == 5
    assert len(asked) == (2 if kept else 5)


def test_it_speaks_socks_step_by_step() -> None:
    _, asked = measured(wan_load.requests, right, b"\x05\x00\x00\x01" + bytes(6))
    assert len(asked) == 3


@pytest.mark.parametrize(
    ("serve", "said"),
    [
        (lambda name: right(name)[:-1] + b"?", "is wrong"),
        (lambda name: right(name).replace(b" 200 ", b" 404 "), "begins with"),
        (lambda name: b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", "begins with"),
    ],
)
def test_a_wrong_answer_is_no_figure(serve: Serve, said: str) -> None:
    with pytest.raises(wan_load.WrongAnswer, match=said):
        measured(wan_load.requests, serve, workers=1)


def test_an_answer_that_ends_early_is_no_figure() -> None:
    with pytest.raises(wan_load.WrongAnswer, match="ended early"):
        measured(wan_load.requests, lambda name: right(name)[:-1], workers=1, ends=True)


def test_a_refusal_of_the_proxy_is_no_figure() -> None:
    with pytest.raises(wan_load.WrongAnswer, match="SOCKS reply 5"):
        measured(wan_load.requests, right, b"\x05\x05\x00\x01" + bytes(6), workers=1)


def test_a_download_of_wrong_bytes_is_no_figure() -> None:
    async def one(options: argparse.Namespace) -> wan_load.Result:
        downloads = wan_load.Downloads(options, 1)
        await downloads.start()
        while True:
            downloads.check()
            await asyncio.sleep(0.001)

    with pytest.raises(wan_load.WrongAnswer, match="wrong bytes"):
        measured(one, lambda name: HEAD + bytes(1000) + b"x" * 200_000)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % wan_load.LARGE


def test_a_silence_is_waited_for_only_where_it_has_to_come(capsys: pytest.CaptureFixture[str]) -> None:
    """The server gives a million bytes and then no more: silent for less than what is notable, and for longer."""
    short, long = (
        measured(wan_load.silence, lambda name: HEAD + bytes(10**6), seconds=0.1, notable=notable)[0]
        for notable in (0.0, 60.0)
    )
    assert short["ended"] == ""
    assert "nothing came" in str(long["ended"])
    assert capsys.readouterr().out == "flowing\n" * 2


def test_a_clock_that_speaks_first_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> wan_load.Result:
        server = await asyncio.start_server(wan_clock.answer, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        monkeypatch.setattr(wan_load, "CLOCK_PORT", port)
        async with server:
            options = argparse.Namespace(server=(host, 80), proxy=0, count=3, pause=0.01)
            return await wan_load.late(options)

    times = asyncio.run(run())["times"]
    assert isinstance(times, list)
    assert len(times) == 3
    assert min(times) > 0


def test_a_queue_is_counted_in_products_of_the_round_trip() -> None:
    """80 Mbit/s and 50 ms each direction: 1 MB for 100 ms, of which half is under way in one direction."""
    assert limit_of(80e6, 0.050, 0) == 500_000
    assert limit_of(80e6, 0.050, 1) == 1_500_000


def round_(silence: float, ended: str = "") -> Result:
    return {
        "silence": silence,
        "ended": ended,
        "wall": 1.0,
        "proxy_cpu": 0.5,
        "line_share": 0.1,
        "load_share": 0.2,
    }


def black_out_rows(**rounds: list[Result]) -> list[list[str]]:
    """The rows of a table in which each contender had these rounds of a black-out."""
    bench = Bench({}, 3, None, [])
    [test] = black_outs()
    bench.add("black-out", {label.replace("_", "-"): results for label, results in rounds.items()}, test)
    return bench.rows


def test_a_round_that_broke_is_counted_and_part_of_no_figure() -> None:
    ours = [round_(1.0), round_(2.0), round_(4.0)]
    rows = black_out_rows(
        cryprq_proxy=ours, other=[round_(-3.0, "a download ended early"), round_(3.0), round_(5.0)]
    )
    assert rows == [
        ["black-out", "cryprq-proxy", "2.00 s", "-", "50 %", "10 %, 20 %"],
        [
            "black-out", "other", "4.00 s; ended early in 1 of 3: a download ended early", "1.38 (1.25..1.50)", "50 %",
            "10 %, 20 %",
        ],
    ]  # fmt: skip


def test_where_every_round_broke_there_is_no_figure() -> None:
    broken = [round_(-3.0, "a download ended early"), round_(-2.9, "nothing came within 25 s")]
    [_, other] = black_out_rows(cryprq_proxy=[round_(1.0), round_(1.0)], other=broken)
    assert other[2:] == [
        "ended early in 2 of 2: a download ended early, nothing came within 25 s", "-", "-", "-",
    ]  # fmt: skip


def test_where_ours_broke_the_others_are_by_the_rest() -> None:
    rows = black_out_rows(cryprq_proxy=[round_(-3.0, "ended"), round_(2.0)], other=[round_(9.0), round_(3.0)])
    assert rows[1][2:4] == ["6.00 s", "1.50 (1.50..1.50)"]


def test_a_line_without_a_rate_holds_what_comes() -> None:
    assert limit_of(0, 0.1, 1) == LIMIT


@pytest.fixture
def wan() -> Iterator[Lab]:
    reason = missing()
    for program in ("nginx", "iperf3"):
        if reason is None and shutil.which(program) is None:
            reason = f"{program} is not installed"
    if reason is not None:
        pytest.skip(reason)
    with Lab() as lab:
        yield lab


@pytest.mark.root
@pytest.mark.parametrize("kind", [Proxy, CryprqProxy])
def test_a_contender_is_loaded_on_its_line_and_told_what_it_took(wan: Lab, kind: type[Proxy]) -> None:
    """Hosts, server, proxy and generator together, and a client that starts anew."""
    wire = Wire(delay=0.005, rate=100e6, limit=limit_of(100e6, 0.005, 1), segments=True)
    with kind(wan, wire, "reno") as proxy:
        proxy.start()
        result = loaded(proxy, "page", "--count", "4")
        # Whatever connects early, an answer takes a round trip.
        assert result["page"] >= 2 * wire.delay
        assert result["line_share"] >= 0
        assert result["wall"] >= result["cpu"] >= 0
        [cold] = cold_starts(2 * wire.delay)
        assert cold.value(cold.measure(proxy)) >= 1
        assert proxy.client.sysctl("net.ipv4.tcp_congestion_control") == "reno"


@pytest.mark.root
def test_what_happens_to_the_hosts_of_a_contender(wan: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two addresses in turn, each of which carries what is new; the NAT goes when it was measured."""
    monkeypatch.setattr(wan_changes, "PAUSES", 1)
    monkeypatch.setattr(wan_changes, "MEMORY", -4)
    with Proxy(wan, Wire(), None) as proxy:
        proxy.start()
        for address in (MOVED, CLIENT):
            proxy.move_client()
            assert proxy.client.ip("-4 -o addr show dev eth0").count(f"inet {address}/") == 1
            assert proxy.answers()
        [nat] = forgotten()
        assert nat.measure(proxy)["times"][0] > 0
        assert "nat_of_exit" not in proxy.exit.run(["nft", "list", "tables"])
