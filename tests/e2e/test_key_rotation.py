"""Keys change in mid-transfer, many times, with either implementation of ML-KEM on either side."""

from __future__ import annotations

import hashlib

import pytest

from tests.support.applications import Curl
from tests.support.programs import World
from tests.support.targets import MIB, HttpTarget, digest


def rotating(provider: str, interval: float = 0.2) -> dict[str, object]:
    return {"provider": provider, "rotation": {"interval": interval}}


def fetch(curl: Curl, port: int, http: HttpTarget, size: int) -> None:
    url = f"http://127.0.0.1:{http.port}/bytes?size={size}"
    # At a bounded rate, so that time passes on any machine.
    got = curl.get("--limit-rate", "40M", "--socks5-hostname", f"127.0.0.1:{port}", url)
    assert hashlib.sha256(got).hexdigest() == digest(size)


def test_every_fifth_of_a_second(world: World, curl: Curl, http: HttpTarget) -> None:
    exit, client = world.pair(rotating("auto"))
    before = client.session["rotations"]
    fetch(curl, client.port, http, 80 * MIB)
    # They go on while they are asked for: the exit is asked last.
    rotations = client.session["rotations"]
    assert rotations >= before + 4
    assert exit.sessions[0]["rotations"] >= rotations - 1
    assert "link down" not in client.log


def test_by_records_and_bytes(world: World, curl: Curl, http: HttpTarget) -> None:
    exit, client = world.pair({"rotation": {"bytes": 8 * MIB, "records": 1_000}})
    fetch(curl, client.port, http, 100 * MIB)
    assert client.session["rotations"] >= 5
    assert "link down" not in client.log + exit.log


def test_only_the_exit_wants_to(world: World, curl: Curl, http: HttpTarget) -> None:
    """It asks, since only the client starts one, and that at most once a second."""
    exit = world.exit(rotating("auto"))
    client = world.client(exit)
    fetch(curl, client.port, http, 80 * MIB)
    assert client.session["rotations"] >= 1
    assert "link down" not in client.log


@pytest.mark.parametrize(
    ("exit_provider", "client_provider"),
    [("pure", "cryptography"), ("cryptography", "pure"), ("pure", "pure")],
)
def test_providers(
    exit_provider: str, client_provider: str, world: World, curl: Curl, http: HttpTarget
) -> None:
    """Both speak the same protocol."""
    exit = world.exit(rotating(exit_provider))
    client = world.client(exit, rotating(client_provider))
    names = exit.status()["provider"], client.status()["provider"]
    assert (names[0] == names[1]) == (exit_provider == client_provider)
    fetch(curl, client.port, http, 60 * MIB)
    assert client.session["rotations"] >= 2
    assert "link down" not in client.log
