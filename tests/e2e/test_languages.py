"""Applications in several languages, with what each language calls its proxy settings: they get what they ask for,
and what they give up leaves nothing behind, while they live on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support.background import PATIENCE, Background
from tests.support.origins import Origin, never
from tests.support.programs import Client, Exit, until
from tests.support.targets import HttpTarget

HERE: Final = Path(__file__).resolve().parent.parent / "support" / "clients"
UPLOADED: Final = {"sha256": hashlib.sha256(bytes(300_000)).hexdigest(), "size": 300_000, "chunked": True}
COMMANDS: Final = {
    "java": ["java", str(HERE / "Client.java")],
    "node": ["node", str(HERE / "client.mjs")],
    "python": [sys.executable, str(HERE / "client.py")],
    "pysocks": [sys.executable, str(HERE / "client_pysocks.py")],
}
GO_CACHE: Final = Path.home() / ".cache" / "go-build"
"""Looked up here: tests have a home of their own."""
KINDS: Final = [
    ("java", "http"),
    ("java", "socks"),
    ("go", "http"),
    ("go", "socks"),
    ("node", "http"),
    ("node", "connect"),
    ("python", "http"),
    ("python", "connect"),
    ("pysocks", "http"),
    ("pysocks", "socks"),
    ("pysocks", "socks4"),
]


@pytest.fixture(scope="module")
def go_program(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Built once: that takes a minute on a machine that has built nothing for the network yet."""
    if shutil.which("go") is None:
        pytest.skip("go is not installed")
    program = tmp_path_factory.mktemp("go") / "client"
    subprocess.run(
        ["go", "build", "-o", str(program), str(HERE / "client.go")],
        env={**os.environ, "CGO_ENABLED": "0", "GOCACHE": str(GO_CACHE)},
        check=True,
    )
    return [str(program)]


@pytest.fixture
def origin(background: Background) -> Iterator[Origin]:
    """Never answers."""
    origin = Origin(background, never)
    yield origin
    origin.close()


type Start = Callable[[str, int, str], subprocess.Popen[str]]


@pytest.fixture(params=KINDS, ids=lambda kind: f"{kind[0]}-{kind[1]}")
def start(request: pytest.FixtureRequest, client: Client) -> Start:
    """Starts an application with its proxy."""
    language, kind = request.param
    command = request.getfixturevalue("go_program") if language == "go" else COMMANDS[language]
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    if (
        language == "pysocks"
        and subprocess.run([sys.executable, "-c", "import socks"], check=False).returncode
    ):
        pytest.skip("PySocks is not installed; requirements-dev.txt names it")

    def start(what: str, port: int, host: str = "site.test") -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
        # SOCKS4 and Python's own libraries for HTTP resolve names before they ask the proxy.
        host = "127.0.0.1" if kind == "socks4" or language == "pysocks" else host
        return subprocess.Popen(
            [*command, kind, str(client.port), f"http://{host}:{port}", what],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def test_a_download_and_an_upload(start: Start, http: HttpTarget) -> None:
    with start("work", http.port, "site.test") as application:
        out, errors = application.communicate(timeout=4 * PATIENCE)
    assert application.returncode == 0, errors
    hello, _, uploaded = out.partition("\n")
    assert hello == "hello"
    assert json.loads(uploaded) == UPLOADED


@contextlib.contextmanager
def killed_at_the_end(application: subprocess.Popen[str]) -> Iterator[None]:
    """Of a test that fails: nobody waits for it then."""
    try:
        yield
    except BaseException:
        application.kill()
        raise


def commands(client: Client) -> dict[str, list[str]]:
    """That ask for one URL and write its body, and give up after a part of a second."""
    proxy = f"http://127.0.0.1:{client.port}"
    curl = ["curl", "-q", "-sS", "--fail", "--max-time"]
    return {
        "curl-http": [*curl, "0.5", "-x", proxy],
        "curl-connect": [*curl, "0.5", "-p", "-x", proxy],
        "curl-socks": [*curl, "0.5", "-x", proxy.replace("http", "socks5h")],
        "curl-http1.0": [*curl, "0.5", "-0", "-x", proxy],
        "wget": ["wget", "-q", "-O-", "-t1", "-T0.5", "-e", "use_proxy=yes", "-e", f"http_proxy={proxy}"],
    }


@pytest.mark.parametrize("name", ["curl-http", "curl-connect", "curl-socks", "curl-http1.0", "wget"])
def test_commands(name: str, exit: Exit, client: Client, http: HttpTarget, origin: Origin) -> None:
    command = commands(client)[name]
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run([*command, f"http://site.test:{http.port}/hello"], capture_output=True, check=True)
    assert done.stdout == b"hello\n"
    until(lambda: exit.streams == client.status()["connections"]["open"] == 0, "the first one is gone")
    gives_up = [*command, f"http://127.0.0.1:{origin.port}/"]
    assert subprocess.run(gives_up, capture_output=True, timeout=PATIENCE, check=False).returncode != 0
    until(
        lambda: exit.streams == client.status()["connections"]["open"] == origin.open == 0,
        "nothing of the request is left",
        5.0,
    )
    assert origin.ends == ["end"]


def test_a_request_that_is_given_up(start: Start, exit: Exit, client: Client, origin: Origin) -> None:
    until(lambda: exit.streams == client.status()["connections"]["open"] == 0, "those before are gone")
    with start("give-up", origin.port, "127.0.0.1") as application, killed_at_the_end(application):
        assert application.stdout is not None and application.stdin is not None
        assert application.stdout.readline() == "gave up\n"
        until(
            lambda: exit.streams == client.status()["connections"]["open"] == origin.open == 0,
            "nothing of the request is left",
            5.0,
        )
        application.stdin.close()
    assert origin.ends == ["end"]
