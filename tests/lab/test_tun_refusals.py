"""Starts that cannot be: one sentence that says why, exit code 2, and nothing on the host is changed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.lab.hosts import EXIT4, SERVER4
from tests.support.lab.net import Namespace
from tests.support.lab.stage import TUN, Stage


def hidden(path: str, command: list[str]) -> list[str]:
    """The command where nothing can be found or opened at `path`, as far as it can see."""
    script = 'if [ -d "$0" ]; then mount -t tmpfs none "$0"; else mount --bind /dev/null "$0"; fi; exec "$@"'
    return ["unshare", "--mount", "sh", "-c", script, path, *command]


def without_rights(command: list[str]) -> list[str]:
    """Root, but as in a container that may not change the network."""
    return ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", "--", *command]


def no_root(command: list[str]) -> list[str]:
    """In a user namespace in which the files of root are somebody's, who is not root there."""
    return ["unshare", "--user", "--map-user=1000", "--map-group=1000", "--", *command]


def plainly(command: list[str]) -> list[str]:
    return command


def nft_hidden(command: list[str]) -> list[str]:
    path = shutil.which("nft")
    assert path is not None
    return hidden(str(Path(path).resolve()), command)


def tun_hidden(command: list[str]) -> list[str]:
    return hidden("/dev/net", command)


DEVICE = (f"link add {TUN} type bridge", f"link del {TUN}")
EXIT_DEVICE = ("link add cryprq-exit0 type bridge", "link del cryprq-exit0")
TABLE = ("nft add table inet cryprq", "nft delete table inet cryprq")
EXIT_TABLE = ("nft add table inet cryprq_exit", "nft delete table inet cryprq_exit")
RULE = ("rule add to 192.0.2.1 lookup 7 priority 25420", "rule del priority 25420")
ROUTE = ("route add blackhole 192.0.2.0/24 table 25458", "route del blackhole 192.0.2.0/24 table 25458")
LACKS = (
    pytest.param((), no_root, "root", id="not root"),
    pytest.param((), without_rights, "root", id="no rights"),
    pytest.param((), nft_hidden, "nft", id="no nft"),
    pytest.param((), tun_hidden, "TUN", id="no tun"),
)
"""What either role needs."""


@pytest.mark.parametrize(
    ("taken", "wrapped", "says"),
    [
        *LACKS,
        pytest.param(DEVICE, plainly, TUN, id="device"),
        pytest.param(RULE, plainly, "25420", id="rule"),
        pytest.param(ROUTE, plainly, "25458", id="route"),
        pytest.param(TABLE, plainly, "table", id="table"),
    ],
)
def test_a_client_that_cannot_start_says_why_and_changes_nothing(
    stage: Stage, taken: tuple[str, ...], wrapped: Callable[[list[str]], list[str]], says: str
) -> None:
    file = stage.client_file()
    refused(stage, stage.client, ["--tun", "--config", str(file)], taken, wrapped, says)


@pytest.mark.parametrize(
    ("taken", "wrapped", "says"),
    [
        *LACKS,
        pytest.param(EXIT_DEVICE, plainly, "cryprq-exit0", id="device"),
        pytest.param(EXIT_TABLE, plainly, "table", id="table"),
    ],
)
def test_an_exit_that_cannot_start_says_why_and_changes_nothing(
    stage: Stage, taken: tuple[str, ...], wrapped: Callable[[list[str]], list[str]], says: str
) -> None:
    """On a host of its own: that of the client serves as well."""
    file = stage.links.config(
        "another",
        {
            "listen": ["127.0.0.1:0"],
            "allow": [stage.links.identity("client")[1]],
            "tun": {"enabled": True, "state_dir": str(stage.links.directory / "state-another")},
        },
    )
    refused(stage, stage.client, ["exit", "--config", str(file)], taken, wrapped, says)


def refused(
    stage: Stage,
    host: Namespace,
    arguments: list[str],
    taken: tuple[str, ...],
    wrapped: Callable[[list[str]], list[str]],
    says: str,
) -> None:
    def change(text: str) -> None:
        if text.startswith("nft "):
            host.run(text.split())
        else:
            host.ip(text)

    with ExitStack() as stack:
        if taken:
            change(taken[0])
            stack.callback(change, taken[1])
        before = host.snapshot()
        done = host.attempt(wrapped(stage.links.command(*arguments)), env=stage.links.environment)
        assert done.returncode == 2, done.stderr
        told = [line for line in done.stderr.splitlines() if line.startswith("cryprq-proxy: ")]
        assert len(told) == 1 and says in told[0], done.stderr
        assert "Traceback" not in done.stderr and "this is a bug" not in done.stderr
        stage.unchanged_since(before)
    assert stage.fetch(SERVER4) != EXIT4


def test_a_client_of_an_exit_without_packets_is_told_so(namespaces: None) -> None:
    with Stage(exit_settings={"tun": {"enabled": False}}) as stage:
        before = stage.client.snapshot()
        command = stage.links.command("--tun", "--config", str(stage.client_file()))
        done = stage.client.attempt(command, env=stage.links.environment)
        assert done.returncode == 1, done.stderr
        told = [line for line in done.stderr.splitlines() if line.startswith("cryprq-proxy: ")]
        assert len(told) == 1 and "exit" in told[0], done.stderr
        stage.unchanged_since(before)
